"""``refvt experiment frontier``: accuracy against GFLOPs, by halting and by two simpler ways to save.

*Halting*: the recipe with other halting centres β and ponder weights. *Static dropping*: halting switched off, and the
Glimpser keeps the number of patches at which a clip costs most nearly what it costs with halting; that number is known
once the halting runs are done. *Fewer frames*: halting switched off, and every second (fourth) frame of the same clips;
``frames4`` is the run of four frames. All are trained alike.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median

from refvt.experiments.report import Findings, Spread, Table, spread
from refvt.experiments.runs import NO_HALTING, Grid, Result, Run, without_halting
from refvt.plots.charts import COLOURS, make_accuracy_charts, save_chart
from refvt.training.recipe import Recipe

__all__ = ["HELP", "frame_runs", "halting_runs", "keep_run", "matching_patches", "measure"]

HELP = "Accuracy against GFLOPs by β and ponder weight, with static token dropping and fewer frames as baselines."
CENTRES, QUICK_CENTRES = (2 / 3, 1.0, 4 / 3), (2 / 3, 1.0)  # times the recipe's β
PONDER_WEIGHTS, QUICK_PONDER_WEIGHTS = (0.25, 4.0), (4.0,)  # times the recipe's
EVERY, QUICK_EVERY = (2, 4), (2,)  # every second frame, every fourth
VERDICTS = {
    "confirmed": "above zero: halting is ahead",
    "contradicted": "below zero: halting is behind",
    "not told apart from zero": "not told apart from zero",
}
KINDS = ("halting", "static dropping", "fewer frames")


def halting_runs(recipe: Recipe, quick: bool) -> list[Run]:
    """The recipe at several β, and with several ponder weights at its own β."""
    found: dict[str, Run] = {}  # by name: if β is 0, all of its multiples are one run
    for share in QUICK_CENTRES if quick else CENTRES:
        center = float(f"{share * recipe.config.halting_center:.3g}")
        name = f"beta{center:g}"
        found[name] = Run(name, {"config.halting_center": center})
    if recipe.ponder_weight > 0:
        for share in QUICK_PONDER_WEIGHTS if quick else PONDER_WEIGHTS:
            weight = float(f"{share * recipe.ponder_weight:.3g}")
            name = f"ponder{weight:g}"
            found[name] = Run(name, {"ponder_weight": weight})
    return list(found.values())


def keep_run(recipe: Recipe, patches: int) -> Run:
    """The run without halting in which the last Glimpser block keeps this number of patches of every frame."""
    rates, S = recipe.config.keep_rates, recipe.config.patches_entering()[-2]
    # half a patch less: R · S is rounded up, and its last bit must not lift it over a whole number
    R = 1.0 if patches == S else (patches - 0.5) / S
    return Run(f"keep{patches}", {**NO_HALTING, "config.keep_rates": (*rates[:-1], R)})


def matching_patches(recipe: Recipe, gflops: float) -> int:
    """Number of patches of a frame to keep, for a clip without halting to cost most nearly ``gflops``."""

    def cost(patches: int) -> float:
        return without_halting(recipe.changed(keep_run(recipe, patches).changes).config)

    return min(range(1, recipe.config.patches_entering()[-2] + 1), key=lambda k: abs(cost(k) - gflops))


def frame_runs(recipe: Recipe, quick: bool) -> list[Run]:
    """The runs without halting on fewer frames; ``framesN`` sees N of them. Patches are kept at the recipe's rate."""
    T = recipe.config.num_frames
    numbers = [T // every for every in (QUICK_EVERY if quick else EVERY) if T // every > 0]
    return [Run(f"frames{t}", {**NO_HALTING, "config.num_frames": t}) for t in sorted({*numbers} - {T}, reverse=True)]


def measure(grid: Grid, quick: bool) -> Findings:
    """Train the halting runs, then those of the same cost that drop patches or frames, and compare them."""
    recipe = grid.recipe
    if not recipe.config.keep_rates:
        raise ValueError("recipe: expected a model with Glimpser blocks, got config.glimpser_depth 0")
    halting = grid.measure(halting_runs(recipe, quick))
    partner = {
        name: matching_patches(recipe, spread([r.gflops for r in found]).mean) for name, found in halting.items()
    }
    here = recipe.config.num_kept_patches(recipe.config.glimpser_depth - 1, recipe.config.patches_entering()[-2])
    numbers = sorted({*partner.values(), here}, reverse=True)
    both = [*(keep_run(recipe, k) for k in numbers), *frame_runs(recipe, quick)]
    others = grid.measure(both)
    static = {name: found for name, found in others.items() if name.startswith("keep")}
    frames = {name: found for name, found in others.items() if name.startswith("frames")}
    kinds = dict(zip(KINDS, (halting, static, frames), strict=True))
    every = [{2: "second", 4: "fourth"}[n] for n in (QUICK_EVERY if quick else EVERY)]
    pairs = [(name, f"keep{k}") for name, k in partner.items()]
    return Findings(
        title="Accuracy against GFLOPs: halting, static dropping, fewer frames",
        about=(
            "The paper compares halting at several β with methods that drop tokens or frames in advance. Here on "
            f"moving digits, {recipe.epochs} epochs. *Halting*: β and the ponder weight of the recipe are "
            "varied. *Static dropping*: nothing halts, and the Glimpser keeps as many patches of a frame as make a "
            f"clip cost nearest to what it costs with halting; keep{here} keeps {here} of them, and is the recipe "
            f"without halting. *Fewer frames*: nothing halts, and the model sees every {' or '.join(every)} of the "
            f"{recipe.config.num_frames} frames of the same clips, with the recipe's keep rate; framesN sees N frames. "
            + ("" if recipe.static_twins else "No run has static twins, so none has a motion loss.")
        ),
        figures={
            "points": [
                {
                    "kind": kind,
                    "run": name,
                    "top1": spread([r.top1 for r in found])._asdict(),
                    "gflops": spread([r.gflops for r in found])._asdict(),
                }
                for kind, points in kinds.items()
                for name, found in points.items()
            ],
            "equal_cost": [{"halting": one, "static": other} for one, other in pairs],
        },
        tables=[_points(kinds), _equal_cost(halting, static, pairs)],
        reading=_reading(halting, static, frames, pairs, f"keep{here}"),
        pictures={"": lambda path: _draw(kinds, path)},
    )


def _of(found: list[Result]) -> tuple[Spread, Spread]:
    """Accuracy and GFLOPs of a point."""
    return spread([r.top1 for r in found]), spread([r.gflops for r in found])


def _points(kinds: dict[str, dict[str, list[Result]]]) -> Table:
    rows = []
    for kind, points in kinds.items():
        for name, found in points.items():
            accuracy, cost = _of(found)
            rows.append((f"{kind}: {name}", accuracy.percent(), cost.number()))
    return Table("All points", ("", "accuracy", "GFLOPs"), rows)


def _equal_cost(
    halting: dict[str, list[Result]], static: dict[str, list[Result]], pairs: list[tuple[str, str]]
) -> Table:
    rows = []
    for one, other in pairs:
        (accuracy, cost), (static_accuracy, static_cost) = _of(halting[one]), _of(static[other])
        rows.append((one, cost.number(), accuracy.percent(), other, static_cost.number(), static_accuracy.percent()))
    header = ("halting", "GFLOPs", "accuracy", "static dropping", "GFLOPs", "accuracy")
    return Table("At equal cost", header, rows)


def _reading(
    halting: dict[str, list[Result]],
    static: dict[str, list[Result]],
    frames: dict[str, list[Result]],
    pairs: list[tuple[str, str]],
    unhalted: str,
) -> list[str]:
    said = []
    for one, other in pairs:
        both = list(zip(halting[one], static[other], strict=True))
        change, dearer = spread([a.top1 - b.top1 for a, b in both]), spread([a.gflops / b.gflops - 1 for a, b in both])
        said.append(
            f"{one} against {other}: {change.change()} points of accuracy for halting, at {dearer.change()} % of "
            f"GFLOPs. The difference in accuracy is {VERDICTS[change.verdict(1)]}."
        )
    shared = {other: n for other, n in Counter(other for _, other in pairs).items() if n > 1}
    said.append(
        "The paper puts halting ahead of dropping tokens in advance."
        + "".join(f" {n} of these comparisons share the runs of {other}: they are not independent."
                  for other, n in shared.items())
    )  # fmt: skip
    accuracy, cost = _of(static[unhalted])
    said.append(
        f"The same recipe trained without halting ({unhalted}): {accuracy.percent()} at {cost.number()} GFLOPs."
    )
    for name, found in frames.items():
        accuracy, cost = _of(found)
        as_cheap = [halted for halted in map(_of, halting.values()) if halted[1].mean <= cost.mean]
        best = max((a.mean for a, _ in as_cheap), default=None)
        comparison = (
            "no halting run is as cheap" if best is None else f"halting at no more than that: {100 * best:.1f} %"
        )
        said.append(f"{name}: {accuracy.percent()} at {cost.number()} GFLOPs; {comparison}.")
    return said


def _draw(kinds: dict[str, dict[str, list[Result]]], path: Path) -> None:
    middle = median(100 * _of(found)[0].mean for kind in KINDS[:2] for found in kinds[kind].values())
    titles = "Means over seeds", "Halting and static dropping, with 95 % intervals"
    figure, (everything, near) = make_accuracy_charts(*titles, width=11)
    for (kind, points), colour, marker in zip(kinds.items(), COLOURS, "os^", strict=False):
        # halting is not one curve: β and the ponder weight are two different ways to halt more
        style = {"marker": marker, "color": colour, "linestyle": "" if kind == KINDS[0] else "-"}
        middles = sorted((cost.mean, 100 * accuracy.mean) for accuracy, cost in map(_of, points.values()))
        everything.plot(*zip(*middles, strict=True), **style, markersize=8, label=kind)
        for name, found in points.items():
            accuracy, cost = _of(found)
            x, y = cost.mean, 100 * accuracy.mean
            if kind == KINDS[2]:
                everything.annotate(name, (x, y), (8, -3), textcoords="offset points", fontsize=8, color=colour)
                continue
            reach = 100 * (accuracy.interval or 0)
            near.errorbar(x, y, reach, marker=marker, color=colour, markersize=8, capsize=3, elinewidth=1)
            up = y >= middle  # names above the better half and below the others collide least
            near.annotate(
                name, (x, y + reach if up else y - reach), (0, 4 if up else -4), textcoords="offset points",
                rotation=90, ha="center", va="bottom" if up else "top", color=colour, fontsize=8,
            )  # fmt: skip
    for axes in (everything, near):
        axes.margins(0.2, 0.3)
    everything.legend()
    save_chart(figure, path)
