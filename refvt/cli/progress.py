"""Progress bars on stderr, the same in all commands. Without tqdm there are none, but one line says how to get them.

A terminal gets one live line. A file, a pipe or a notebook gets a plain line every ten seconds at most. REFVT_QUIET
leaves both out.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from functools import cache
from types import TracebackType
from typing import Any, Self

import numpy as np

from refvt.checks import printable
from refvt.evaluation import Evaluation, Record
from refvt.training.observer import Observer

__all__ = ["EvaluationBar", "ProgressBar", "TrainingBar", "headline"]


PAUSE = 10.0  # seconds between two lines where there is no terminal


def _is_terminal() -> bool:
    return sys.stderr.isatty()


class _PlainLines:
    """A file for tqdm that writes the state of a bar as a line of its own on stderr, if ``PAUSE`` seconds have passed.

    All bars together: the time counts from the last line, or from the program's start.
    """

    printed = time.monotonic()

    def write(self, text: str) -> None:
        text = text.strip()
        if text and time.monotonic() - _PlainLines.printed >= PAUSE:
            _PlainLines.printed = time.monotonic()
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


class ProgressBar:
    """A progress bar on stderr; nothing where tqdm is not installed or REFVT_QUIET is set."""

    def __init__(self, total: int, unit: str, done: int = 0) -> None:
        tqdm = None if os.environ.get("REFVT_QUIET") else _find_tqdm()
        self._bar: Any = None
        if tqdm is not None and _is_terminal():
            self._bar = tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True)
        elif tqdm is not None:
            self._bar = tqdm(total=total, initial=done, unit=unit, file=_PlainLines(), ncols=0, mininterval=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def describe(self, text: str) -> None:
        """Show a text before the bar."""
        if self._bar is not None:
            self._bar.set_description(text)

    def advance(self, text: str = "") -> None:
        """Go one unit further and show a text behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


@cache
def _find_tqdm() -> Any:
    """Return tqdm's class, or None after a hint on stderr; the hint is given once."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        print('refvt: for a progress bar: pip install "refvt[demo]"', file=sys.stderr)
        return None
    return tqdm


def _print_above_bars(message: str) -> None:
    """Print a line on stderr without breaking the bars that are shown."""
    message = printable(message)
    module = sys.modules.get("tqdm")  # loaded if there is a bar
    if module is not None:
        module.tqdm.write(message, file=sys.stderr)
    else:
        print(message, file=sys.stderr)


class TrainingBar(Observer):
    """Shows a run on stderr: a bar with the losses of the last step, and what went wrong. One after another may use it.

    visible: False leaves the bar out; problems are printed all the same.
    """

    def __init__(self, visible: bool = True) -> None:
        self._visible = visible
        self._bar: ProgressBar | None = None

    def on_start(self, steps: int, done: int) -> None:
        if self._visible:
            self._bar = ProgressBar(steps, "step", done)

    def on_step(self, line: Mapping[str, Any], evaluation: Evaluation | None) -> None:
        if self._bar is None:
            return
        tokens = " ".join(f"{n:.0f}" for n in line["tokens_per_layer"])
        text = (
            f"loss {line['loss']:.3f} = {line['recognition']:.3f} rec, {line['ponder']:.2f} ponder, "
            f"{line['motion']:.3f} motion | acc {line['accuracy']:.0%} | tokens {tokens} | {line['gflops']:.3g} GFLOPs"
        )
        if evaluation is not None and evaluation.clips:
            text += f" | test {headline(evaluation)}"
        self._bar.advance(text)

    def on_unreadable_clip(self, problem: str) -> None:
        _print_above_bars(f"refvt: {problem}")

    def on_abort(self, message: str) -> None:
        print(f"refvt: {message}", file=sys.stderr, flush=True)

    def on_end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class EvaluationBar:
    """Shows an evaluation on stderr: a bar with the figures so far. It appears with the first record."""

    def __init__(self, clips: int) -> None:
        self._clips = clips
        self._bar: ProgressBar | None = None
        self._read, self._right, self._gflops, self._skipped = 0, 0, 0.0, 0

    def add(self, record: Record) -> None:
        """Count one clip."""
        if self._bar is None:
            self._bar = ProgressBar(self._clips, "clip")
        if record.logits is not None and record.gflops is not None:
            self._read += 1
            self._right += int(np.argmax(record.logits)) in record.labels
            self._gflops += record.gflops
        else:
            self._skipped += 1
        figures = []
        if self._read:
            figures += [f"right={self._right / self._read:.1%}", f"GFLOPs={self._gflops / self._read:.2f}"]
        if self._skipped:
            figures += [f"skipped={self._skipped}"]
        self._bar.advance(", ".join(figures))

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def headline(found: Evaluation) -> str:
    """Name and value of an evaluation's main figure: top-1, or mAP for multi-label data."""
    name, figure = ("top-1", found.top1) if found.top1 is not None else ("mAP", found.mean_average_precision)
    return f"{name} –" if figure is None else f"{name} {figure:.1%}"
