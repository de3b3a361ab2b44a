"""Checks of the PyTorch model: identities, other formulations of the same function, finite differences.

python -m golden.verify
"""

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from golden import torch_ops as ops
from golden.model_cases import MODEL_CASES, ModelCase
from golden.op_cases import OP_CASES, OpCase
from golden.runs import draw_arguments, one_thread
from golden.seeds import draw, drop_path, known_seeds
from golden.torch_model import Block, DropPath, HaltingVT, Output, Record, total_loss

SEEDS = known_seeds()
DRAWN: dict[str, tuple[HaltingVT, dict[str, np.ndarray]]] = {}  # the model and arrays of each case, drawn once


class Run:
    """A forward run of one case, by default with the model of the case; ``gradients`` differentiates its loss."""

    def __init__(self, case: ModelCase, model: HaltingVT | None = None, decided: Output | None = None) -> None:
        if case.stem not in DRAWN:
            DRAWN[case.stem] = draw(case, SEEDS.get(case.stem))[1:]
        drawn, arrays = DRAWN[case.stem]
        self.case, self.model = case, drawn if model is None else model
        self.clips, self.labels, self.moving = (torch.tensor(x) for x in arrays.values())
        self.record = Record(True)
        imposed = {} if decided is None else {"kept": decided.kept, "halting_layer": decided.halting_layer}
        self.output = self.model(self.clips, **imposed, **drop_path(case), record=self.record)
        self.loss = total_loss(self.output, self.labels, self.moving, **case.loss_weights)["total"]

    def gradients(self, at: list[Tensor] | None = None) -> Tensor:
        """All gradients in one vector, by default those of all parameters."""
        return _gradients(self.loss, list(self.model.parameters()) if at is None else at)


def _gradients(loss: Tensor, at: list[Tensor]) -> Tensor:
    if not all(x.requires_grad for x in at):  # with a single layer ρ is constant
        return torch.zeros(sum(x.numel() for x in at), dtype=loss.dtype)
    found = torch.autograd.grad(loss, at, allow_unused=True, retain_graph=True)
    pairs = zip(found, at, strict=True)
    return torch.cat([(torch.zeros_like(x) if g is None else g).flatten() for g, x in pairs])


def _close(ours: Tensor, other: Tensor, tolerance: float = 1e-11) -> None:
    difference, norm = float((ours - other).detach().norm()), float(other.detach().norm())
    assert difference <= tolerance * norm, f"difference {difference:.1e} of {norm:.1e}"


def differences_of_operation(case: OpCase) -> None:
    """Autograd agrees with finite differences, so that no detach or comparison cuts a path of the gradient."""
    operation = ops.OPERATIONS[case.operation]
    arguments = {name: torch.tensor(value) for name, value in draw_arguments(case)[0].items()}
    smooth = [name for name in arguments if name not in operation.fixed]

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(smooth, inputs, strict=True))
        returned = operation.function(**(arguments | named), **case.settings)
        results = returned if isinstance(returned, tuple) else (returned,)
        return tuple(x for x in results if x.requires_grad)

    inputs = [arguments[name].clone().requires_grad_() for name in smooth]
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


def differences_of_model(case: ModelCase) -> None:
    """With fixed decisions, the slope of the loss in a random direction agrees with a central difference."""
    run, rng = Run(case), np.random.default_rng(0)
    along = [torch.from_numpy(rng.standard_normal(tuple(x.shape))) for x in run.model.parameters()]
    slope = float(run.gradients() @ torch.cat([x.flatten() for x in along]))

    def loss_at(step: float) -> float:
        shifted = HaltingVT(case.config).double()
        pairs = zip(run.model.named_parameters(), along, strict=True)
        shifted.load_state_dict({name: x.detach() + step * direction for (name, x), direction in pairs})
        return float(Run(case, shifted, run.output).loss.detach())

    near, far = ((loss_at(step) - loss_at(-step)) / (2 * step) for step in (1e-5, 2e-5))
    difference = (4 * near - far) / 3
    assert abs(difference - slope) < 1e-6 * max(1, abs(slope)), f"slope {slope}, difference {difference}"


def embedding_is_a_convolution(case: ModelCase) -> None:
    """The patch projection agrees with conv2d with a stride."""
    run = Run(case)
    project, (batch, channels, frames, *size) = run.model.patch_embed.proj, run.clips.shape
    images = run.clips.transpose(1, 2).reshape(batch * frames, channels, *size)
    patches = functional.conv2d(images, project.weight, project.bias, stride=case.config.patch_size).flatten(2)
    patches = patches.unflatten(0, (batch, frames)).permute(0, 3, 1, 2)  # [B, S, T, D]
    patches = patches + run.model.pos_embed[:, 1:, None] + run.model.time_embed[:, None]
    _close(run.record.tensors["embed"][:, 1:], patches.flatten(1, 2))


def attention_is_sdpa(case: ModelCase) -> None:
    """Explicit attention agrees with PyTorch's fused attention, including gradients."""
    run, fused = Run(case), HaltingVT(case.config, sdpa=True).double()
    fused.load_state_dict(run.model.state_dict())
    other = Run(case, fused)
    _close(run.output.logits, other.output.logits)
    _close(run.gradients(), other.gradients(), 1e-10)


def joint_block_is_an_encoder_layer(case: ModelCase) -> None:
    """A joint block in which all tokens live agrees with torch.nn.TransformerEncoderLayer, pre-norm with GELU."""
    model, config = Run(case).model, case.config
    hidden = int(config.width * config.mlp_ratio)
    layer = torch.nn.TransformerEncoderLayer(
        config.width, config.num_heads, hidden, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
    ).double()
    names = {"attn.proj": "self_attn.out_proj", "mlp.fc1": "linear1", "mlp.fc2": "linear2"}
    values = {}
    for name, value in model.blocks[-1].state_dict().items():
        place, kind = name.rsplit(".", 1)
        joined = f"self_attn.in_proj_{kind}" if place == "attn.qkv" else f"{names.get(place, place)}.{kind}"
        values[joined] = value
    layer.load_state_dict(values)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 7, config.width)))
    alive = torch.ones(2, 7, dtype=torch.bool)
    drop = DropPath(0.0, config.depth, None)
    _close(model._joint_block(config.depth - 1, x, alive, drop, Record(False)), layer(x))


def _live_block(block: Block, x: Tensor, halted: int, run: Run) -> Tensor:
    """A joint block on the live tokens [n, D] of one clip; with ``zero`` one ghost is the key of all halted tokens."""
    keys, config = x, run.case.config
    bias = torch.zeros(len(x), dtype=x.dtype)
    if config.halted_keys == "zero" and halted:
        keys, bias = (
            torch.cat([x, torch.zeros_like(x[:1])]),
            torch.cat([bias, bias.new_tensor([math.log(halted)])]),
        )
    normed = functional.layer_norm(keys, keys.shape[1:], block.norm1.weight, block.norm1.bias, 1e-6)
    q, k, v = (normed @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, dim=1)
    x = block.attn.project(ops.attend(q[: len(x)], k, v, config.num_heads, bias), x, None)
    normed = functional.layer_norm(x, x.shape[1:], block.norm2.weight, block.norm2.bias, 1e-6)
    return x + block.mlp.fc2(functional.gelu(block.mlp.fc1(normed)))


def removing_halted_tokens_changes_nothing(case: ModelCase) -> None:
    """Without the halted tokens (with ``zero``, one ghost instead) the loss and all gradients are the same."""
    run, config = Run(case), case.config
    start = run.record.tensors[f"blocks.{config.glimpser_depth}.entering"]
    features, ponder = [], []
    for clip, layers in zip(start, run.output.halting_layer, strict=True):
        x, y, used = clip, torch.zeros_like(clip), torch.zeros_like(clip[:, 0])
        pondered = torch.zeros_like(used)
        live = torch.arange(len(clip))
        for layer in range(1, config.joint_depth + 1):
            if not len(live):
                break
            block = run.model.blocks[config.glimpser_depth + layer - 1]
            x = _live_block(block, x, len(clip) - len(live), run)
            score = torch.sigmoid(config.halting_scale * x[:, 0] - config.halting_center)
            halts = layers[live] == layer
            weight = torch.where(halts, 1 - used[live], score)
            y = y.index_add(0, live, weight[:, None] * x)
            used = used.index_add(0, live, weight)
            pondered = pondered.index_add(0, live, torch.where(halts, layer + weight, 0.0))
            x, live = x[~halts], live[~halts]
        _close(used, torch.ones_like(used))
        features.append(y[0])
        ponder.append(pondered)
    normed = ops.layernorm(torch.stack(features), run.model.norm.weight, run.model.norm.bias)
    output = Output(
        run.model.head(normed),
        run.model.motion_head(normed),
        normed,
        torch.stack(ponder),
        run.output.alive,
        run.output.halting_layer,
        run.output.kept,
    )
    loss = total_loss(output, run.labels, run.moving, **case.loss_weights)["total"]
    _close(loss, run.loss)
    _close(run.gradients(), _gradients(loss, list(run.model.parameters())), 1e-10)


def halting_gradient_is_the_formula(case: ModelCase) -> None:
    """∂L/∂logit is γ h (1 - h) (g_y · (x^l - x^N) - g_ρ) for l < N and zero at N, for every token of the model."""
    run, config = Run(case), case.config
    named, depth = run.record.tensors, config.joint_depth
    states = torch.stack([named[f"blocks.{config.glimpser_depth + layer}.mlp"] for layer in range(depth)])
    g_y = run.gradients([named["y"]]).reshape(named["y"].shape)
    g_ponder = run.gradients([named["ponder"]]).reshape(named["ponder"].shape)
    layers = run.output.halting_layer
    final = torch.take_along_dim(states, (layers - 1)[None, ..., None], dim=0)[0]
    for layer in range(1, depth):
        x = states[layer - 1]
        h = torch.sigmoid(config.halting_scale * x[..., 0] - config.halting_center)
        slope = config.halting_scale * h * (1 - h) * ((g_y * (x - final)).sum(-1) - g_ponder)
        expected = torch.where(layer < layers, slope, 0.0).flatten()
        _close(run.gradients([named[f"joint.{layer}.logit"]]), expected, 1e-10)


def clips_do_not_see_each_other(case: ModelCase) -> None:
    """Each clip alone has the same results as in the batch."""
    run = Run(case)
    for clip in range(len(run.clips)):
        alone = run.model(run.clips[clip : clip + 1])
        _close(alone.logits[0], run.output.logits[clip])
        _close(alone.ponder[0], run.output.ponder[clip])


def main() -> int:
    """Run every check on all its cases. Returns the exit code, 1 if a check fails."""
    steady = [case for case in MODEL_CASES if not case.settings.get("drop_path")]
    # halting jumps at an exact tie, so there is no slope to compare
    smooth = [case for case in OP_CASES if case.tiny and case.operation != "top_k" and not case.exact_ties]
    every: list[tuple[Callable[..., None], Sequence[OpCase | ModelCase]]] = [
        (differences_of_operation, smooth),
        (differences_of_model, MODEL_CASES),
        (embedding_is_a_convolution, MODEL_CASES),
        (attention_is_sdpa, MODEL_CASES),
        (joint_block_is_an_encoder_layer, MODEL_CASES),
        (removing_halted_tokens_changes_nothing, steady),
        (halting_gradient_is_the_formula, MODEL_CASES),
        (clips_do_not_see_each_other, steady),
    ]
    failures = 0
    with one_thread():
        for check, cases in every:
            failed = 0
            for case in cases:
                try:
                    check(case)
                except AssertionError as error:
                    failed += 1
                    print(f"  {case.stem}: {error}")
            failures += failed
            print(f"{check.__name__}: {len(cases) - failed} of {len(cases)} cases")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
