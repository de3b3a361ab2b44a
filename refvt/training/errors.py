"""What training raises and warns of."""

from __future__ import annotations

from refvt.checks import NotFiniteError

__all__ = ["DivergedError", "TrainingError", "UnreadableClipWarning"]


class TrainingError(ValueError):
    """A run cannot begin or continue; the message says why, and whether it can be resumed."""


class DivergedError(TrainingError, NotFiniteError):
    """A loss, gradient, parameter or logit became NaN or infinite: the run is no success, and no model is written."""


class UnreadableClipWarning(UserWarning):
    """A training clip could not be read and was left out of its step."""
