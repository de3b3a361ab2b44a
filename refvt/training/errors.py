"""What training raises and warns of."""

from __future__ import annotations

__all__ = ["TrainingError", "UnreadableClipWarning"]


class TrainingError(ValueError):
    """A run cannot begin or continue; the message says why, and whether it can be resumed."""


class UnreadableClipWarning(UserWarning):
    """A training clip could not be read and was left out of its step."""
