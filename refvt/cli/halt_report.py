"""What ``refvt halt`` prints of its report, line by line. Frames are counted from 1 here, from 0 in the report."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from refvt.checks import printable
from refvt.evaluation.scenes import ABOVE_NOISE, CHANGE
from refvt.model.config import HaltingVTConfig

__all__ = ["UNTRAINED", "lines_of_model", "lines_of_scene", "name_frames"]

WIDTH = 100  # characters of a line
UNTRAINED = (
    "These weights are not trained. They were set by hand so that a patch lives as long as something moves in it; "
    "the network recognises nothing."
)


def lines_of_scene(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines on the small trained model in windows over the frame."""
    rows, columns = report["windows"]
    yield from _what_was_seen(report, ", in grey")
    yield f"The small trained model that comes with refvt, in {rows} × {columns} windows"
    yield from _change(report)
    yield from _alive(report)
    yield _cost(report)
    yield from _names_of_files(report)


def _change(report: dict[str, Any]) -> Iterator[str]:
    """How much of the scene changes, and by what measure."""
    number, threshold = report["patches_changing"], report["change_threshold"]
    if number == 0 and not report["whole_frame_changes"]:
        return
    yield from _wrap(
        f"{number} of {report['patches']} patches change between neighbouring frames by more than {threshold:.1f} grey "
        f"levels, which is the larger of {CHANGE:g} and {ABOVE_NOISE:g} times the first quartile over all patches"
    )
    if report["whole_frame_changes"]:
        yield from _wrap(
            "Warning: nearly the whole frame changes from the first frame to the last. Does the camera move? This "
            "model knows only backgrounds that stand still, so it may not follow what moves."
        )


def _alive(report: dict[str, Any]) -> Iterator[str]:
    """The share of patches that are alive, layer by layer, and how well it follows what changes."""
    changing, other = report["alive_changing_per_layer"], report["alive_unchanging_per_layer"]
    if report["patches_changing"] == 0:
        yield "layer   alive"
        yield from (f"{layer:5d}   {share:>5.1%}" for layer, share in enumerate(other, start=1))
        what = "No patch changes more than the others" if report["whole_frame_changes"] else "Nothing changes"
        yield f"{what} in this clip, so there is no AUC. Dropped patches count as not alive."
        return
    yield "layer   alive, of those that change   of those that do not"
    for layer, shares in enumerate(zip(changing, other, strict=True), start=1):
        yield f"{layer:5d}   {shares[0]:>27.1%}   {shares[1]:>20.1%}"
    auc = report["auc_of_change"]
    if auc is None:
        yield "The Glimpser dropped all patches that change, so there is no AUC."
        return
    yield f"A patch that changes lives longer than one that does not: AUC {auc:.2f} (0.5: chance, 1: always)"
    yield "In the table, patches that the Glimpser dropped count as not alive; the AUC leaves them out."


def lines_of_model(config: HaltingVTConfig, report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines on a model that sees the whole frame."""
    yield from _what_was_seen(report, "")
    name = printable(report.get("preset") or report["config"])
    yield f"HaltingVT {name}, {config.joint_tokens} tokens enter the {config.joint_depth} joint blocks"
    if "classes" not in report:
        yield from _wrap(UNTRAINED)
    for row in report.get("classes", []):
        yield f"{row['probability']:6.1%}  {printable(str(row['class']))}"
    yield "layer   tokens alive   GFLOPs   without halting"
    rows = zip(
        report["tokens_per_layer"],
        report["gflops_per_layer"],
        report["gflops_per_layer_without_halting"],
        strict=True,
    )
    for layer, (tokens, cost, full) in enumerate(rows, start=1):
        yield f"{layer:5d}   {tokens:12d}   {cost:6.3f}   {full:15.3f}"
    yield f"{_cost(report)}, mean ponder {report['mean_ponder']:.2f}, {report['seconds']:.1f} s"
    yield from _names_of_files(report)


def name_frames(frames: Sequence[int], available: int) -> str:
    """The frames of a clip in words: "frames 17 to 24 of 40". frames: counted from 0."""
    of = f" of {available}"
    if len(frames) == 1:
        return f"frame {frames[0] + 1}{of}"
    stride = frames[1] - frames[0]
    apart = "" if stride == 1 else f", {stride} apart"
    return f"frames {frames[0] + 1} to {frames[-1] + 1}{of}{apart}"


def _what_was_seen(report: dict[str, Any], colours: str) -> Iterator[str]:
    """Which frames and which pixels of the video the model saw."""
    place, frames = report["place"], name_frames(report["frames"], report["frames_available"])
    where = "the middle of the video" if place is None else f"place {place:g} (0: the beginning, 1: the end)"
    yield f"{printable(report['video'])}: {frames}, {where}"
    (height, width), (seen_height, seen_width) = report["frame_size"], report["frame_size_seen"]
    if (height, width) == (seen_height, seen_width):
        yield f"The whole frame of {width}×{height} pixels{colours}"
    else:
        yield f"The centre {seen_width}×{seen_height} of {width}×{height} pixels{colours}"


def _cost(report: dict[str, Any]) -> str:
    return f"whole clip: {report['gflops']:.3f} GFLOPs against {report['gflops_without_halting']:.3f} without halting"


def _wrap(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH)


def _names_of_files(report: dict[str, Any]) -> Iterator[str]:
    for name in ("picture", "animation", "page"):
        if name in report:
            yield f"{f'{name}:':10s} {printable(report[name])}"
