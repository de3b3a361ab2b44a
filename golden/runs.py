"""Runs of operation and model cases: the float64 truth by autograd, PyTorch's float32 error, and the manifest entry.

The float32 error is the largest relative L2 error of several float32 runs against the truth. These runs have the same
arguments, and the decisions of the truth are imposed on them. They take sums in plain order, in reversed order, rolled
by half, and shuffled in five ways (``torch_ops.summation``; for models, the five shuffled runs also round every named
tensor once more at random). Models have one more run, with PyTorch's fused attention. A tensor whose truth is zero, up
to rounding, has an absolute error instead, and its entry says so. The peak of a tensor is the largest error of one
element in these runs, relative to the root mean square of the truth.

The float16 and bfloat16 errors and peaks come from the same runs in these dtypes; there, arguments and parameters are
rounded first.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden import torch_ops as ops
from golden.model_cases import ModelCase
from golden.op_cases import OpCase
from golden.seeds import HALTING_MARGIN, as_float32, draw, drop_path
from golden.torch_model import HaltingVT, Output, Record, total_loss

Arrays = dict[str, np.ndarray]
NO_MARGINS: dict[str, float | None] = {"halting": None, "selection": None, "order": None}
LOW_PRECISION = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# A gradient that is zero by cancellation is a few ulp of its terms: smaller than this share of its group.
ROUNDING = 1e-13


def run_op(case: OpCase) -> tuple[Arrays, dict[str, Any]]:
    """Run an operation case. Returns its arrays and its manifest entry."""
    operation = ops.OPERATIONS[case.operation]
    drawn, margins = draw_arguments(case)
    cotangents: Arrays = {}
    truth = _call_op(case, drawn, cotangents, torch.float64)
    decisions = _imposed_decisions(case, drawn, truth)

    def runs(dtype: torch.dtype) -> list[Arrays]:
        found = []
        for order in ops.SUMMATIONS:
            with ops.summation(order):
                found.append(_call_op(case, drawn, cotangents, dtype, decisions))
        return found

    terms: Arrays = {}
    if operation.multilinear or case.operation == "attention":
        # |terms| of a multilinear operation come from |arguments|, those of attention's y from |v| alone.
        touched = drawn if operation.multilinear else {"v": drawn["v"]}
        magnitudes = {**drawn, **{name: _magnitude(value) for name, value in touched.items()}}
        terms = _call_op(case, magnitudes, {name: np.abs(value) for name, value in cotangents.items()}, torch.float64)
        if not operation.multilinear:
            terms = {"result/y": terms["result/y"]}
    if case.operation == "halt_tokens":
        assert tuple(np.unique(truth["result/halting_layer"])) == case.halts_in, f"{case.stem} halts in other layers"
        _check_halting_formula(case, drawn, cotangents, truth)

    arrays = {f"argument/{name}": value for name, value in drawn.items()}
    arrays |= {f"cotangent/{name}": value for name, value in cotangents.items()} | truth
    entry = {
        "kind": "op",
        "operation": case.operation,
        "settings": case.settings,
        "margins": margins,
        "tiny": case.tiny,
        "describes": case.describes,
        "tensors": describe(arrays, set(truth), runs(torch.float32), terms, _low_precision(runs)),
    }
    return arrays, entry


def _low_precision(runs: Callable[[torch.dtype], list[Arrays]]) -> dict[str, list[Arrays]]:
    return {name: runs(dtype) for name, dtype in LOW_PRECISION.items()}


def _magnitude(value: np.ndarray) -> np.ndarray:
    return np.abs(value) if value.dtype == np.float64 else value


def draw_arguments(case: OpCase) -> tuple[Arrays, dict[str, float | None]]:
    """Draw arguments; if tokens halt by comparison, repeat until no comparison is near its threshold."""
    name = zlib.crc32(case.stem.encode())  # the numbers of a case depend only on its name
    for attempt in range(1000):
        drawn = {key: as_float32(value) for key, value in case.make(np.random.default_rng([name, attempt])).items()}
        margin = _halting_margin(case, drawn)
        if margin is None or margin >= HALTING_MARGIN:
            return drawn, {**NO_MARGINS, "halting": margin}
    raise RuntimeError(
        f"{case.stem}: expected arguments with a halting margin of {HALTING_MARGIN}, got none in 1000 attempts"
    )


def _halting_margin(case: OpCase, drawn: Arrays) -> float | None:
    """Smallest |c - (1 - ε)| of all comparisons in this case; None if it has none."""
    settings = case.settings
    if case.operation == "halt" and not settings["last"] and "forced" not in drawn:
        sums = drawn["used"] + _sigmoid(settings["scale"] * drawn["logit"] - settings["center"])
    elif case.operation == "halt_tokens" and len(drawn["states"]) > 1:
        scores = _sigmoid(settings["scale"] * drawn["states"][:-1, :, 0] - settings["center"])
        running = np.cumsum(scores, axis=0)
        before = np.concatenate([np.zeros_like(running[:1]), running[:-1]])
        sums = running[before <= 1 - settings["epsilon"]]
    else:
        return None
    distances = np.abs(sums - (1 - settings["epsilon"]))
    return float(distances[distances > 0].min() if case.exact_ties else distances.min())


def _sigmoid(x: np.ndarray) -> np.ndarray:
    score: np.ndarray = 1 / (1 + np.exp(-x))
    return score


def _imposed_decisions(case: OpCase, drawn: Arrays, truth: Arrays) -> dict[str, Tensor]:
    """The halting decisions of the truth, as arguments of the float32 runs."""
    if case.operation == "halt" and "forced" not in drawn:
        return {"forced": torch.from_numpy(truth["result/halted"])}
    if case.operation == "halt_tokens":
        return {"forced_layer": torch.from_numpy(truth["result/halting_layer"])}
    return {}


def _call_op(
    case: OpCase,
    drawn: Arrays,
    cotangents: Arrays,
    dtype: torch.dtype,
    decisions: dict[str, Tensor] | None = None,
) -> Arrays:
    """Run forward and backward of one operation; the first call draws the cotangents."""
    operation = ops.OPERATIONS[case.operation]
    arguments = {name: as_tensor(value, dtype) for name, value in drawn.items()}
    inputs = {name: x for name, x in arguments.items() if name not in operation.fixed}
    for x in inputs.values():
        x.requires_grad_()
    returned = operation.function(**arguments, **case.settings, **(decisions or {}))
    values = returned if isinstance(returned, tuple) else (returned,)
    results = dict(zip(operation.results, values, strict=True))
    smooth = {name: x for name, x in results.items() if x.is_floating_point()}
    rng = np.random.default_rng(zlib.crc32(case.stem.encode()) + 1)
    for name, x in smooth.items():
        assert x.dtype == dtype, f"{case.stem}: {name} is {x.dtype}"
        if name not in cotangents:
            cotangents[name] = as_float32(np.asarray(rng.standard_normal(tuple(x.shape))))
    arrays = {f"result/{name}": _as_array(x) for name, x in results.items()}
    if smooth:
        reached = {name: x for name, x in smooth.items() if x.requires_grad}  # a single layer's ponder is constant
        given = [as_tensor(cotangents[name], dtype) for name in reached]
        gradients = torch.autograd.grad(list(reached.values()), list(inputs.values()), given, allow_unused=True)
        for (name, x), gradient in zip(inputs.items(), gradients, strict=True):
            arrays[f"gradient/{name}"] = _as_array(torch.zeros_like(x) if gradient is None else gradient)
    return arrays


def _as_array(x: Tensor) -> np.ndarray:
    """NumPy has no bfloat16; its values are exact in float32."""
    x = x.detach()
    array: np.ndarray = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return array


def as_tensor(value: np.ndarray, dtype: torch.dtype) -> Tensor:
    tensor = torch.tensor(value)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _check_halting_formula(case: OpCase, drawn: Arrays, cotangents: Arrays, truth: Arrays) -> None:
    """Compare autograd's gradient of halt_tokens with the closed formula.

    ∂x^l = w^l g_y, and for l < N: ∂x^l[0] += γ h (1 - h) (g_y · (x^l - x^N) - g_ρ).
    """
    states, gamma, beta = drawn["states"], case.settings["scale"], case.settings["center"]
    expected = np.zeros_like(states)
    for token, last in enumerate(truth["result/halting_layer"] - 1):
        g_y, g_ponder = cotangents["y"][token], cotangents["ponder"][token]
        x = states[:, token]
        h = _sigmoid(gamma * x[:last, 0] - beta)
        expected[:last, token] = h[:, None] * g_y
        expected[last, token] = (1 - h.sum()) * g_y
        expected[:last, token, 0] += gamma * h * (1 - h) * ((x[:last] - x[last]) @ g_y - g_ponder)
    error = np.linalg.norm(truth["gradient/states"] - expected) / np.linalg.norm(expected)
    assert error < 1e-13, f"{case.stem}: autograd and the closed formula differ by {error:.1e}"


def run_model(case: ModelCase, known_seed: int | None = None) -> tuple[Arrays, dict[str, Any]]:
    """Run a model case. Returns its arrays and its manifest entry."""
    seed, model, inputs = draw(case, known_seed)
    truth, output = _step(case, model, inputs, None)

    def runs(dtype: torch.dtype) -> list[Arrays]:
        found = []
        for order in (*ops.SUMMATIONS, "sdpa"):
            with ops.summation("plain" if order == "sdpa" else order):
                rounded = HaltingVT(case.config, sdpa=order == "sdpa").to(dtype)
                rounded.load_state_dict(model.state_dict())
                seed_of_rounding = int(order[-1]) if order.startswith("shuffled") else None
                found.append(_step(case, rounded, inputs, output, seed_of_rounding)[0])
        return found

    arrays = dict(inputs)
    arrays |= {f"parameters/{name}": value.numpy() for name, value in model.state_dict().items()}
    arrays |= {f"decisions/kept.{g}": kept.numpy() for g, kept in enumerate(output.kept)}
    arrays |= {
        "decisions/halting_layer": output.halting_layer.numpy(),
        "output/alive": output.alive.numpy(),
        "output/tokens_per_layer": output.alive.sum(-1).numpy(),
    }
    arrays |= truth
    settings = {**case.loss_weights, "drop_path": 0.0, "drop_path_seed": None, **case.settings, "seed": seed}
    entry = {
        "kind": "model",
        "config": asdict(case.config),
        "settings": settings,
        "margins": NO_MARGINS | output.margins,
        "tiny": case.tiny,
        "describes": case.describes,
        "tensors": describe(arrays, set(truth), runs(torch.float32), {}, _low_precision(runs)),
    }
    return arrays, entry


def _step(
    case: ModelCase, model: HaltingVT, inputs: Arrays, decisions: Output | None, rounding_seed: int | None = None
) -> tuple[Arrays, Output]:
    """Run one forward and backward in the dtype of the model; decisions of another run are imposed if given."""
    dtype = next(model.parameters()).dtype
    record = Record(True, rounding_seed)
    clips, labels = as_tensor(inputs["clips"], dtype), as_tensor(inputs["labels"], dtype)
    imposed = {} if decisions is None else {"kept": decisions.kept, "halting_layer": decisions.halting_layer}
    output = model(clips, **imposed, **drop_path(case), record=record)
    losses = total_loss(output, labels, torch.from_numpy(inputs["motion_labels"]), **case.loss_weights)
    assert losses["total"].dtype == dtype

    named = record.tensors if case.named else {}
    wanted = {f"backward/{name}": x for name, x in named.items()}
    wanted |= {f"gradients/{name}": x for name, x in model.named_parameters()}
    reached = {name: x for name, x in wanted.items() if x.requires_grad}
    gradients = torch.autograd.grad(losses["total"], list(reached.values()), allow_unused=True)
    found = dict(zip(reached, gradients, strict=True))
    smooth = {f"forward/{name}": x for name, x in named.items()}
    smooth |= {name: torch.zeros_like(x) if found.get(name) is None else found[name] for name, x in wanted.items()}
    smooth |= {
        "output/logits": output.logits,
        "output/motion_logits": output.motion_logits,
        "output/features": output.features,
        "output/ponder": output.ponder,
    }
    smooth |= {f"loss/{name}": loss for name, loss in losses.items()}
    assert all(x.dtype == dtype for x in smooth.values())
    return {name: _as_array(_flat(name, x)) for name, x in smooth.items()}, output


def _flat(name: str, x: Tensor) -> Tensor:
    """Named tensors as flat rows: all axes but the last are merged; halting logits and weights have one axis."""
    if not name.startswith(("forward/", "backward/")):
        return x
    return x.flatten() if ".logit" in name or ".weight" in name else x.flatten(0, -2)


def describe(
    arrays: Arrays,
    computed: set[str],
    runs: list[Arrays],
    terms: Arrays,
    low_precision: dict[str, list[Arrays]] | None = None,
) -> dict[str, Any]:
    """Manifest entries of all tensors: shape and dtype, and for computed ones the errors and the condition."""
    scales: dict[str, float] = {}
    for name in computed:
        group = name.split("/")[0]
        scales[group] = max(scales.get(group, 0.0), _norm(arrays[name]))
    described = {}
    for name, value in arrays.items():
        entry: dict[str, Any] = {"shape": list(value.shape), "dtype": str(value.dtype)}
        entry |= {"float32_error": None, "condition": None}
        if name in computed and value.dtype.kind == "f":
            assert np.isfinite(value).all(), f"{name} is not finite"
            norm = _norm(value)
            absolute = norm <= ROUNDING * scales[name.split("/")[0]]
            for dtype, found in {"float32": runs, **(low_precision or {})}.items():
                entry |= _errors(dtype, value, [run[name] for run in found], absolute)
            if absolute:
                entry["absolute"] = True
            elif name in terms:
                entry["condition"] = _rounded(_norm(terms[name]) / norm)
        described[name] = entry
    return described


def _errors(dtype: str, truth: np.ndarray, found: list[np.ndarray], absolute: bool) -> dict[str, float]:
    """The largest relative (or absolute) L2 error of these runs and their peak; nothing if a run is not finite."""
    differences = [run.astype(np.float64) - truth for run in found]
    if not all(np.isfinite(difference).all() for difference in differences):
        return {}  # beyond the range of float16
    norm = 1.0 if absolute else _norm(truth)
    error = max(_norm(difference) for difference in differences) / norm
    peak = max(float(np.abs(difference).max()) for difference in differences) / norm
    return {f"{dtype}_error": _rounded(error), f"{dtype}_peak": _rounded(peak * (1 if absolute else truth.size**0.5))}


def _norm(value: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(value, dtype=np.float64).ravel())) if value.dtype.kind == "f" else 0.0


def _rounded(number: float) -> float:
    """Rounded to three digits, which is enough for a tolerance."""
    return float(f"{number:.3g}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread inside the block: results are reproducible only with a fixed number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
