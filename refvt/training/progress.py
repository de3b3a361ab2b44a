"""The progress bar of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from refvt.evaluation import Evaluation

__all__ = ["Bar", "headline"]


class Bar:
    """A progress bar on stderr; none where it is not wanted, or tqdm is not installed."""

    def __init__(self, steps: int, done: int, wanted: bool) -> None:
        self._bar: Any = None
        if not wanted:
            return
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:
            print('refvt: for a progress bar: pip install "refvt[demo]"', file=sys.stderr)
        else:
            self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, problem: str) -> None:
        """A line on stderr beside the bar."""
        if self._bar is None:
            sys.stderr.write(f"refvt: {problem}\n")
        else:
            self._bar.write(f"refvt: {problem}", file=sys.stderr)

    def show(self, line: Mapping[str, Any], evaluation: Evaluation | None) -> None:
        """One step further. The line of its log, and the last evaluation if there was one."""
        if self._bar is None:
            return
        tokens = " ".join(f"{n:.0f}" for n in line["tokens_per_layer"])
        shown = (
            f"loss {line['loss']:.3f} = {line['recognition']:.3f} rec, {line['ponder']:.2f} ponder, "
            f"{line['motion']:.3f} motion | acc {line['accuracy']:.0%} | tokens {tokens} | {line['gflops']:.3g} GFLOPs"
        )
        if evaluation is not None and evaluation.clips:
            shown += f" | test {headline(evaluation)}"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update()


def headline(found: Evaluation) -> str:
    """The figure an evaluation is known by."""
    name, figure = ("top-1", found.top1) if found.top1 is not None else ("mAP", found.mean_average_precision)
    return f"{name} –" if figure is None else f"{name} {figure:.1%}"
