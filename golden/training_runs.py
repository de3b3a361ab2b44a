"""Runs of training cases: autograd and torch.optim in float64, and the error of PyTorch's float32.

A seed is accepted if the loss falls, if some token halts in another layer in the last step than in the first, and if no
decision of any step is near its threshold, so that free runs can be compared. Training must also not be chaotic: from
many seeds, twenty steps of plain gradient descent amplify a float32 rounding to several percent, and a comparison would
mean nothing.
"""

import zlib
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from golden import torch_ops as ops
from golden.runs import NO_MARGINS, Arrays, as_tensor, describe
from golden.seeds import as_float32, inputs, is_safe, parameters
from golden.torch_model import HaltingVT, Output, Record, total_loss
from golden.training_cases import TrainingCase

MAX_DRIFT = 1e-5  # largest relative difference that float32 may make to the losses
UNDECAYED = ("cls_token", "pos_embed", "time_embed")


def run_training(
    case: TrainingCase, known_seed: int | None = None, attempts: int = 3000
) -> tuple[Arrays, dict[str, Any]]:
    """Run a training case. Returns its arrays and its manifest entry."""
    for seed in range(attempts) if known_seed is None else (known_seed,):
        start, batch = _draw(case, seed)
        found = _descend(case, start, batch, torch.float64)
        if found is None:
            continue
        truth, decisions, margins = found
        runs = _float32_runs(case, start, batch, decisions)
        if known_seed is not None or (runs and max(_apart(run, truth) for run in runs) < MAX_DRIFT):
            break
    else:
        raise RuntimeError(
            f"{case.stem}: expected a seed with the wanted property, got none "
            + (f"below {attempts}" if known_seed is None else f"with the known seed {known_seed}")
        )
    if not runs:
        raise RuntimeError(f"{case.stem}: expected the same decisions in float32 as in float64, got others")
    arrays = batch | {f"start/{name}": value for name, value in start.items()} | decisions | truth
    entry = {
        "kind": "training",
        "config": asdict(case.model.config),
        "settings": {
            **case.model.loss_weights,
            "optimiser": case.optimiser,
            "rate": case.rate,
            "weight_decay": case.weight_decay,
            "adam_epsilon": case.adam_epsilon,
            "seed": seed,
        },
        "margins": NO_MARGINS | margins,
        "tiny": False,
        "describes": case.model.describes,
        "tensors": describe(arrays, set(truth), runs, {}),
    }
    return arrays, entry


def _float32_runs(case: TrainingCase, start: Arrays, batch: Arrays, decisions: Arrays) -> list[Arrays]:
    """The results of float32 runs that round in different ways; empty if a run makes other decisions."""
    runs = []
    for order in (*ops.SUMMATIONS, "sdpa"):
        with ops.summation("plain" if order == "sdpa" else order):
            rounding = int(order[-1]) if order.startswith("shuffled") else None
            found = _descend(case, start, batch, torch.float32, order == "sdpa", rounding)
        assert found is not None
        if any(not np.array_equal(found[1][name], decided) for name, decided in decisions.items()):
            return []
        runs.append(found[0])
    return runs


def _apart(run: Arrays, truth: Arrays) -> float:
    """Relative difference of the losses of a run from the truth."""
    return float(np.linalg.norm(run["losses"] - truth["losses"]) / np.linalg.norm(truth["losses"]))


def _draw(case: TrainingCase, seed: int) -> tuple[Arrays, Arrays]:
    """Draw the parameters and the batch, all representable in float32."""
    rng = np.random.default_rng([zlib.crc32(case.stem.encode()), seed])
    drawn = (parameters(case.model, HaltingVT(case.model.config), rng), inputs(case.model, rng))
    start, batch = ({name: as_float32(value) for name, value in arrays.items()} for arrays in drawn)
    return start, batch


def _descend(
    case: TrainingCase,
    start: Arrays,
    batch: Arrays,
    dtype: torch.dtype,
    sdpa: bool = False,
    rounding_seed: int | None = None,
) -> tuple[Arrays, Arrays, dict[str, float]] | None:
    """Train for all steps. Returns the results, the decisions of every step and the smallest margins.

    The results are the loss before every step and the parameters after the last. In float64, None is returned if the
    start does not have the wanted property.
    """
    model = HaltingVT(case.model.config, sdpa=sdpa).to(dtype)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in start.items()})
    optimiser = _optimiser(case, model)
    clips, labels, moving = (as_tensor(batch[name], dtype) for name in ("clips", "labels", "motion_labels"))
    losses, outputs = [], list[Output]()
    margins: dict[str, float] = {}
    for _ in range(case.steps):
        output = model(clips, record=Record(rounding_seed is not None, rounding_seed))
        if dtype == torch.float64 and not is_safe(case.model, output):
            return None
        loss = total_loss(output, labels, moving, **case.model.loss_weights)["total"]
        optimiser.zero_grad(set_to_none=False)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        outputs.append(output)
        margins = {name: min(margins.get(name, np.inf), near) for name, near in output.margins.items()}
    if dtype == torch.float64:
        moved = (outputs[0].halting_layer != outputs[-1].halting_layer).any()
        if not moved or losses[-1] > 0.8 * losses[0]:
            return None
    results = {"losses": np.array(losses)}
    results |= {f"final/{name}": value.detach().numpy().copy() for name, value in model.named_parameters()}
    decisions = {"decisions/halting_layer": torch.stack([o.halting_layer for o in outputs]).numpy()}
    for g in range(case.model.config.glimpser_depth):
        decisions[f"decisions/kept.{g}"] = torch.stack([o.kept[g] for o in outputs]).numpy()
    return results, decisions, margins


def _optimiser(case: TrainingCase, model: HaltingVT) -> torch.optim.Optimizer:
    if case.optimiser == "sgd":
        return torch.optim.SGD(model.parameters(), lr=case.rate)
    named = list(model.named_parameters())
    groups = [
        {"params": [x for name, x in named if name not in UNDECAYED], "weight_decay": case.weight_decay},
        {"params": [x for name, x in named if name in UNDECAYED], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=case.rate, eps=case.adam_epsilon)
