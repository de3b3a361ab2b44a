"""What a training run reports while it is under way: the library prints nothing, a command shows it as it likes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from refvt.evaluation import Evaluation
from refvt.training.errors import UnreadableClipWarning

__all__ = ["Observer"]


class Observer:
    """Called by ``train`` as the run proceeds; a subclass overrides what it wants to know.

    Every process of a run calls its own observer.
    """

    def on_start(self, steps: int, done: int) -> None:
        """The run is about to take its first step. steps: of the whole run; done: how many were taken before."""

    def on_step(self, line: Mapping[str, Any], evaluation: Evaluation | None) -> None:
        """One step further. line: as in the log, without its time; evaluation: the last one, None before the first."""

    def on_unreadable_clip(self, problem: str) -> None:
        """A clip cannot be read; the step continues without it."""
        warnings.warn(problem, UnreadableClipWarning, stacklevel=2)

    def on_abort(self, message: str) -> None:
        """The run has failed here, and its other processes are ended now. A run of one process raises instead."""
        warnings.warn(message, RuntimeWarning, stacklevel=2)

    def on_end(self) -> None:
        """No step follows, whether the run succeeded or failed."""
