"""Random parameters and inputs of a model case: seeds are tried until the case shows the wanted property.

Weights are normal. Weights that write to channel 0, the halting logit, are scaled down, so that the logits of the
tokens of a clip differ by a few units instead of tens; biases then move the logits. A seed is accepted only if every
decision has a safe margin and rounding does not dominate the float32 gradients.
"""

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from golden.model_cases import ModelCase
from golden.torch_model import HaltingVT, Output, Record, total_loss
from golden.torch_ops import summation

DATA = Path(__file__).parent / "data"
MANIFEST = "manifest.json"
HALTING_MARGIN = 1e-3  # smallest |c - (1 - ε)|
SCORE_MARGIN = 1e-4  # smallest relative gap of scores, at the cut and between kept neighbours
GRADIENT_ERROR = 1e-5  # largest relative error of a gradient in float32, at any parameter or named tensor

Arrays = dict[str, np.ndarray]


def parameters(case: ModelCase, model: HaltingVT, rng: np.random.Generator) -> Arrays:
    """Draw the parameters; none keeps its initial value of zero or one."""
    config = case.config
    unit = 1 / config.halting_scale  # change of channel 0 for one unit of the logit
    drawn = {}
    for name, parameter in model.state_dict().items():
        shape, is_weight = tuple(parameter.shape), name.endswith("weight")
        fan_in = math.prod(shape[1:]) if name.endswith("weight") else 1
        scale = 1.0 / math.sqrt(fan_in) if fan_in > 1 else 0.3
        value = scale * rng.standard_normal(shape)
        if "qkv.weight" in name:
            value *= 1.5
        if "norm" in name and is_weight:
            value += 1
        if any(writer in name for writer in ("patch_embed", "attn.proj", "fc2", "temporal_fc")):
            value[0] *= 6 * unit / (1 + config.depth)
        if name in ("cls_token", "pos_embed", "time_embed"):
            value[..., 0] *= 2 * unit
        drawn[name] = value
    drawn["cls_token"][..., 0] += case.cls_shift * unit
    if case.clip_shift:
        # the mean pixel value of a clip (see ``inputs``) moves channel 0 of its patches
        drawn["patch_embed.proj.weight"][0] += unit / drawn["patch_embed.proj.weight"][0].size
    for layer in range(config.joint_depth):
        shift = config.halting_center + case.start if layer == 0 else case.step
        drawn[f"blocks.{config.glimpser_depth + layer}.mlp.fc2.bias"][0] += shift * unit
    return drawn


def inputs(case: ModelCase, rng: np.random.Generator) -> Arrays:
    """Draw clips [B, C, T, height, width], labels [B] or [B, K], and motion_labels [B]."""
    config, batch = case.config, case.batch
    clips = rng.uniform(-1, 1, (batch, config.channels, config.num_frames, *config.image_size))
    for clip, shift in zip(clips, case.clip_shift, strict=False):
        clip += shift
    labels: np.ndarray = rng.integers(0, config.num_classes, batch)
    motion: np.ndarray = np.arange(batch) % 2
    if case.twins:
        half = batch // 2
        clips[half:] = clips[:half, :, -1:]
        labels[half:], motion = labels[:half], np.repeat([1, 0], half)
    if case.soft_labels:  # multiples of 1/64 sum to exactly one, even in float32
        labels = rng.multinomial(64, np.full(config.num_classes, 1 / config.num_classes), batch) / 64
    return {"clips": clips, "labels": labels, "motion_labels": motion}


def is_safe(case: ModelCase, output: Output) -> bool:
    """True if the case shows the wanted property and every decision has a safe margin."""
    margins = output.margins
    clear = margins.get("halting", 1.0) >= HALTING_MARGIN
    clear = clear and min(margins.get("selection", 1.0), margins.get("order", 1.0)) >= SCORE_MARGIN
    return clear and case.wanted(output)


def is_well_conditioned(case: ModelCase, model: HaltingVT, arrays: Arrays, decided: Output) -> bool:
    """True if float32 gradients are close to float64 ones; otherwise all tolerances of the case would be too large."""
    rounded = HaltingVT(case.config)
    rounded.load_state_dict(model.state_dict())

    def gradients(of: HaltingVT) -> Sequence[torch.Tensor]:
        clips, labels = (torch.tensor(arrays[name]) for name in ("clips", "labels"))
        clips, labels = clips.to(of.cls_token), labels.to(of.cls_token) if labels.is_floating_point() else labels
        record, imposed = Record(True), {"kept": decided.kept, "halting_layer": decided.halting_layer}
        output = of(clips, **imposed, **drop_path(case), record=record)
        losses = total_loss(output, labels, torch.tensor(arrays["motion_labels"]), **case.loss_weights)
        at = [x for x in (*of.parameters(), *record.tensors.values()) if x.requires_grad]
        found: Sequence[torch.Tensor] = torch.autograd.grad(losses["total"], at, materialize_grads=True)
        return found

    truth = gradients(model)
    for order in ("plain", "reversed", "rolled"):
        with summation(order):
            pairs = zip(gradients(rounded), truth, strict=True)
            if any(float((near - exact).norm()) > GRADIENT_ERROR * float(exact.norm()) for near, exact in pairs):
                return False
    return True


def known_seeds() -> dict[str, int]:
    """The seeds of the model and training cases that are stored in this checkout, by case."""
    try:
        cases = json.loads((DATA / MANIFEST).read_text(encoding="utf-8"))["cases"]
    except OSError:
        return {}
    return {stem: entry["settings"]["seed"] for stem, entry in cases.items() if entry["kind"] != "op"}


def draw(case: ModelCase, known: int | None = None, attempts: int = 3000) -> tuple[int, HaltingVT, Arrays]:
    """The first seed with a safe model and inputs: (seed, model in float64, inputs).

    The gradients of a ``known`` seed, from an earlier search, are not checked again, so that a file does not depend on
    the float32 rounding of this machine; its decisions must still have safe margins.
    """
    for seed in range(attempts) if known is None else (known,):
        rng = np.random.default_rng([zlib.crc32(case.stem.encode()), seed])
        model = HaltingVT(case.config).double()
        values = parameters(case, model, rng)
        model.load_state_dict({name: torch.from_numpy(as_float32(value)) for name, value in values.items()})
        arrays = {name: as_float32(value) for name, value in inputs(case, rng).items()}
        with torch.no_grad():
            output = model(torch.from_numpy(arrays["clips"]), **drop_path(case))
        conditioned = known is not None or is_well_conditioned(case, model, arrays, output)
        if is_safe(case, output) and conditioned:
            return seed, model, arrays
    raise RuntimeError(
        f"{case.stem}: expected a seed with the wanted property, got none "
        + (f"below {attempts}" if known is None else f"with the known seed {known}")
    )


def drop_path(case: ModelCase) -> dict[str, Any]:
    """Arguments of a run with the stochastic depth of the case, with a newly seeded generator."""
    if not case.settings.get("drop_path"):
        return {}
    seed = int(case.settings["drop_path_seed"])
    return {"drop_path": case.settings["drop_path"], "rng": np.random.default_rng(seed)}


def as_float32(value: np.ndarray) -> np.ndarray:
    """Floats rounded to float32 and stored as float64, so that float32 candidates have exact inputs."""
    return value.astype(np.float32).astype(np.float64) if value.dtype.kind == "f" else value
