"""``refvt experiment figure3``: which tokens live, by layer and frame, on clips of a trained model.

The paper's Figure 3 shows that tokens on moving things live longer. Next to the pictures this experiment counts it,
over all test clips: the number of joint layers that patches live in which something moves, and the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.data.change import change_of_patches
from refvt.data.moving_digits import MovingDigits
from refvt.evaluation.patches import kept_patches, patch_states
from refvt.evaluation.selectivity import lives_of_clips, summarise_lives
from refvt.experiments.report import Findings, Table
from refvt.experiments.runs import Grid, Run
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import values_of_tokens
from refvt.model.haltingvt import HaltingVT, Output, load
from refvt.plots.charts import COLOURS, make_chart, save_chart
from refvt.plots.sheets import SheetClip, brighten, halting_sheet

__all__ = ["HELP", "measure"]

HELP = "Figure 3: alive tokens by layer and frame on clips of a trained model (--weights, or one trained here)."
CLIPS, QUICK_CLIPS = 8, 4  # drawn, the first test clips: one of each class in turn
BATCH = 16


def measure(grid: Grid, quick: bool, weights: Path | None, load_settings: Mapping[str, Any] | None = None) -> Findings:
    """Run the model of the weights given, or one trained by the grid's recipe, on all test clips.

    load_settings: more arguments of ``refvt.load`` for the weights.
    """
    model = _model(grid, weights, load_settings or {})
    config, data = grid.recipe.config, grid.data[1]
    outputs, clips = _run(model, data)
    count = min(QUICK_CLIPS if quick else CLIPS, len(data))
    drawn = [_drawn(model, data, index) for index in range(count)]
    figures = {
        "clips": [_clip_figures(one, config.num_frames) for one in drawn],
        "test_clips": len(data),
        **_figures(config, data, outputs, clips),
    }
    return Findings(
        title="Figure 3 in small: alive tokens by layer and frame",
        about=(
            "The paper's Figure 3 shows which patches still live, layer by layer: those on what moves live longer. "
            f"Here {'a model given by its weights' if weights else 'a model trained by the recipe'} on held-out moving "
            "digits. Every token is followed to its own halt, also where CLS has halted before it. A patch counts as "
            "moving if its pixels change against the frame before or after it by more than twice what the camera's "
            "noise changes them."
        ),
        figures=figures,
        tables=[_table(figures, config.num_frames)],
        reading=_reading(figures, config.joint_tokens, config.joint_depth),
        pictures={
            "": lambda path: _draw_sheet(drawn, config, path),
            "-curve": lambda path: _draw_curve(figures, config.joint_tokens, path),
        },
    )


def _figures(config: HaltingVTConfig, data: MovingDigits, outputs: list[Output], clips: list[Array]) -> dict[str, Any]:
    """The numbers over all test clips."""
    moves = np.concatenate(
        [
            values_of_tokens(change_of_patches(c, config.patch_size), kept_patches(config, o), 0.0)[:, 1:]
            for c, o in zip(clips, outputs, strict=True)
        ]
    )  # [clips, N' − 1]
    lived = np.concatenate([o.alive[:, :, 1:].sum(axis=1) for o in outputs])  # [clips, N' − 1], joint layers entered
    cls = np.concatenate([o.alive[:, :, 0].sum(axis=1) for o in outputs])
    right = np.concatenate([o.logits.argmax(axis=1) for o in outputs]) == np.arange(len(data)) % data.num_classes
    moving = moves > _noise(data)
    ink = data.ink()
    starts = np.cumsum([0, *(len(c) for c in clips)])
    lives = [
        each
        for start, output in zip(starts, outputs, strict=False)
        for each in lives_of_clips(ink[start : start + len(output.alive)], config, output)
    ]
    found = summarise_lives(lives)
    return {
        "selectivity": None if found is None else asdict(found),
        "top1": float(right.mean()),
        "tokens_per_layer": np.concatenate([o.alive.sum(axis=2) for o in outputs]).mean(axis=0).tolist(),  # [L]
        "cls_layers": float(cls.mean()),
        "share_of_patches_moving": float(moving.mean()),
        "layers_lived_moving": _mean(lived[moving]),
        "layers_lived_still": _mean(lived[~moving]),
    }


def _clip_figures(one: dict[str, Any], frames: int) -> dict[str, Any]:
    """The numbers of one drawn clip."""
    return {
        "index": one["index"],
        "class": one["class"],
        "answer": one["answer"],
        "tokens_per_layer": one["alive"].sum(axis=1).tolist(),
        "patches_by_layer_and_frame": _by_frame(one["alive"], frames).tolist(),
        "cls_halts_in_layer": int(one["alive"][:, 0].sum()),
    }


def _model(grid: Grid, weights: Path | None, load_settings: Mapping[str, Any]) -> HaltingVT:
    if weights is None:
        grid.seeds = 1
        return grid.model(grid.measure([Run("recipe", {})])["recipe"][0])
    return load(weights, grid.recipe.config, backend=grid.backend, **load_settings)


def _run(model: HaltingVT, data: MovingDigits) -> tuple[list[Output], list[Array]]:
    """Outputs for all clips, every token followed to its halt, and the clips, batch by batch."""
    outputs, clips = [], []
    for first in range(0, len(data), BATCH):
        batch = np.stack([data.clip(i) for i in range(first, min(first + BATCH, len(data)))])
        outputs.append(model(batch, full_ponder=True))
        clips.append(batch)
    return outputs, clips


def _drawn(model: HaltingVT, data: MovingDigits, index: int) -> dict[str, Any]:
    """One clip: its frames to look at, its class and the answer, and what happens to its tokens."""
    clip = data.clip(index)
    out = model(clip[None], full_ponder=True)
    return {
        "index": index,
        "class": data.names[data.target(index)],
        "answer": data.names[int(out.logits[0].argmax())],
        "frames": brighten(clip),
        "kept": kept_patches(model.config, out)[0],
        "alive": out.alive[0],
    }


def _noise(data: MovingDigits) -> float:
    """Twice the mean |difference| of two pixels that differ by noise alone, which is 2σ/√π for normal noise σ."""
    return float(2 * 2 / np.sqrt(np.pi) * data.noise / 127.5)


def _by_frame(alive: Array, frames: int) -> Array:
    """alive [L, N'] → living patches [L, T]."""
    return np.asarray(alive[:, 1:].reshape(len(alive), -1, frames).sum(axis=1))


def _mean(values: Array) -> float | None:
    return float(values.mean()) if values.size else None


def _table(figures: dict[str, Any], frames: int) -> Table:
    layers = [f"layer {i + 1}" for i in range(len(figures["tokens_per_layer"]))]
    rows = [
        (
            f"{one['class']} (answer: {one['answer']})",
            *map(str, one["tokens_per_layer"]),
            str(one["cls_halts_in_layer"]),
        )
        for one in figures["clips"]
    ]
    means = (f"{n:.1f}" for n in figures["tokens_per_layer"])
    rows.append((f"mean of {figures['test_clips']} clips", *means, f"{figures['cls_layers']:.2f}"))
    return Table("Tokens entering each joint layer", ("clip", *layers, "CLS halts in layer"), rows)


def _reading(figures: dict[str, Any], tokens: int, layers: int) -> list[str]:
    last = figures["tokens_per_layer"][-1]
    said = [
        f"The model is right on {100 * figures['top1']:.1f} % of {figures['test_clips']} clips. Of {tokens} tokens "
        f"that enter the first joint layer {last:.1f} ({100 * last / tokens:.1f} %) enter the last of {layers}; CLS "
        f"halts in layer {figures['cls_layers']:.2f} on average, of {layers}."
    ]
    moving, still = figures["layers_lived_moving"], figures["layers_lived_still"]
    if moving is None or still is None:
        said.append("All patches that enter the joint blocks are of one kind, moving or still: nothing to compare.")
        return said
    order = "as long as" if f"{moving:.2f}" == f"{still:.2f}" else "longer than" if moving > still else "shorter than"
    said.append(
        f"Patches in which something moves live {order} the others: {moving:.2f} against {still:.2f} of {layers} "
        f"layers. The paper's figure shows them living longer. {100 * figures['share_of_patches_moving']:.0f} % of "
        "the patches that enter are moving."
    )
    if (found := figures["selectivity"]) is not None:
        object_alive, background_alive = (
            ", ".join(f"{100 * share:.0f} %" for share in found[name]) for name in ("object_alive", "background_alive")
        )
        said.append(
            f"A patch that holds the digit lives longer than one that never holds it with probability "
            f"{found['auc']:.2f}, ties counted half (the AUC, mean over clips; 0.5 is chance). Alive in layers 1 to "
            f"{layers}: of the patches that hold it (a fifth of their pixels or more) {object_alive}; of those that "
            f"never hold it {background_alive}."
        )
    return said


def _draw_sheet(drawn: list[dict[str, Any]], config: HaltingVTConfig, path: Path) -> None:
    clips = [
        SheetClip(
            one["frames"],
            patch_states(one["kept"], one["alive"], config.grid, full_ponder=True),
            f"{one['class']} (answer: {one['answer']})",
            one["class"] == one["answer"],
        )
        for one in drawn
    ]
    note = (
        "Percentages: how many of all patches of the clip are alive in a layer; every token is followed to its own "
        "halt. Clips are drawn lighter than the model sees them, so that living patches can be told from dropped ones."
    )
    halting_sheet(clips, "Which patches live: frames across, joint layers down", note, path)


def _draw_curve(figures: dict[str, Any], tokens: int, path: Path) -> None:
    figure, axes = make_chart()
    layers = np.arange(1, len(figures["tokens_per_layer"]) + 1)
    for i, one in enumerate(figures["clips"]):
        style = "-" if i < len(COLOURS) else "--"
        share = 100 * np.array(one["tokens_per_layer"]) / tokens
        axes.plot(layers, share, f"o{style}", color=COLOURS[i % len(COLOURS)], markersize=4, label=one["class"])
    mean = 100 * np.array(figures["tokens_per_layer"]) / tokens
    axes.plot(layers, mean, "k-", linewidth=2.5, label=f"mean of {figures['test_clips']} clips")
    axes.set_xticks(layers)
    axes.set_ylim(0, 105)
    axes.set_xlabel("joint layer")
    axes.set_ylabel(f"tokens entering [% of {tokens}]")
    axes.legend(fontsize=8)
    save_chart(figure, path)
