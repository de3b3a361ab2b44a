"""HaltingVT in PyTorch: dense, batched, eager, differentiated by autograd. It is the truth for all implementations.

States are tokens [B, N, D], CLS first, then patch-major (patch s of frame t at 1 + s*T + t). The ``state_dict`` has
exactly the published parameter names. Nothing is skipped and nothing is packed: halted tokens are computed too, and
their results are not used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from golden import torch_ops as ops


@dataclass(frozen=True)
class Config:
    """The fields of a HaltingVT configuration; image_size is (height, width) in pixels."""

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    channels: int = 3
    num_frames: int = 8
    width: int = 384
    num_heads: int = 6
    mlp_ratio: float = 4.0
    glimpser_depth: int = 2
    depth: int = 12
    keep_rates: tuple[float, ...] = (1.0, 0.3)
    fuse_dropped: bool = False
    cls_skip: bool = False
    halting_scale: float = 10.0
    halting_center: float = 10.0
    epsilon: float = 0.01
    halted_keys: str = "zero"
    num_classes: int = 200

    @property
    def patches(self) -> int:
        """S, the number of patches of one frame."""
        return (self.image_size[0] // self.patch_size) * (self.image_size[1] // self.patch_size)

    @property
    def joint_depth(self) -> int:
        """L, the number of joint halting blocks."""
        return self.depth - self.glimpser_depth


@dataclass
class Output:
    """The results of a run; kept and halting_layer are its decisions, margins their distances from the thresholds."""

    logits: Tensor  # [B, K]
    motion_logits: Tensor  # [B, 2]
    features: Tensor  # [B, D]
    ponder: Tensor  # [B, N']
    alive: Tensor  # [B, L, N'], true if the token enters the layer
    halting_layer: Tensor  # [B, N'], counted from 1
    kept: list[Tensor]  # [B, T, S after] for each Glimpser block: original patch indices, -1 for a fused token
    margins: dict[str, float] = field(default_factory=dict)


class Record:
    """A record of named tensors that are part of the graph, so that autograd can give the gradient at each.

    With a seed, every named tensor is rounded once more at random: x · (1 + u), u uniform in ±eps/2. Runs that differ
    only in the order of sums have equal rounding errors where nothing is summed; runs with other seeds do not.
    """

    def __init__(self, enabled: bool, rounding_seed: int | None = None) -> None:
        self.enabled = enabled
        self.tensors: dict[str, Tensor] = {}
        self.rng = None if rounding_seed is None else np.random.default_rng(rounding_seed)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        if self.enabled:
            if self.rng is not None:
                noise = (self.rng.random(tuple(tensor.shape)) - 0.5) * torch.finfo(tensor.dtype).eps
                tensor = tensor + tensor.detach() * torch.from_numpy(noise).to(tensor)
            if torch.is_grad_enabled() and not tensor.requires_grad:
                tensor.requires_grad_()  # a constant, such as the ponder of a single layer, has a gradient too
            self.tensors[name] = tensor
        return tensor


class Attention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Parameters of one multi-head attention; rows of qkv come in the order q, k, v."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def mix(
        self, x: Tensor, heads: int, bias: Tensor | None, sdpa: bool, record: Record, name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normed rows [..., n, D] → (q, k, y before proj); q, k, v and y are recorded under ``name``."""
        qkv = ops.linear(x, self.qkv.weight, self.qkv.bias)
        q, k, v = (record(f"{name}.{part}", x) for part, x in zip("qkv", qkv.chunk(3, dim=-1), strict=True))
        return q, k, record(f"{name}.y", ops.attend(q, k, v, heads, bias, sdpa))

    def project(self, y: Tensor, residual: Tensor | None, gain: Tensor | None) -> Tensor:
        """residual + gain · proj(y)."""
        return ops.linear(y, self.proj.weight, self.proj.bias, residual, gain)


class Mlp(nn.Module):  # type: ignore[misc,unused-ignore]
    """Parameters of one MLP."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, residual: Tensor, gain: Tensor | None) -> Tensor:
        """residual + gain · fc2(GELU(fc1(x)))."""
        return ops.mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, residual, gain)


class Block(nn.Module):  # type: ignore[misc,unused-ignore]
    """Parameters of one block; a Glimpser block also has temporal ones."""

    def __init__(self, config: Config, temporal: bool) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width), Mlp(width, int(width * config.mlp_ratio))
        if temporal:
            self.temporal_norm1, self.temporal_attn = nn.LayerNorm(width), Attention(width)
            self.temporal_fc = nn.Linear(width, width)


class DropPath:
    """Random scales of stochastic depth: block i drops with probability rate · i / (depth - 1), nothing without rng."""

    def __init__(self, rate: float, depth: int, rng: np.random.Generator | None) -> None:
        self.rate, self.depth, self.rng = rate, depth, rng

    def scale(self, block: int, units: Sequence[int], like: Tensor) -> Tensor | None:
        """Scales keep / (1 - rate), one per unit; they are drawn even if the rate is zero."""
        if self.rng is None:
            return None
        rate = self.rate * block / (self.depth - 1) if self.depth > 1 else 0.0
        keep = self.rng.random(tuple(units)) >= rate
        return torch.from_numpy(keep / (1 - rate)).to(like)


def _norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return ops.layernorm(x, norm.weight, norm.bias)


def _spread(scale: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """Expand scales per unit to all rows of each unit."""
    return None if scale is None else scale.reshape(scale.shape + (1,) * (len(shape) - scale.ndim)).expand(shape)


def _ranks(kept: Tensor, original: Tensor) -> Tensor:
    """Positions in original [B, T, S] of the indices in kept [B, T, k]; the j-th -1 is the j-th fused token."""
    ranks = torch.zeros_like(kept)
    for b, t in np.ndindex(*kept.shape[:2]):
        candidates = original[b, t].tolist()
        for rank, index in enumerate(kept[b, t].tolist()):
            ranks[b, t, rank] = candidates.index(index)
            candidates[int(ranks[b, t, rank])] = None  # taken
    return ranks


class HaltingVT(nn.Module):  # type: ignore[misc,unused-ignore]
    """The model; with ``sdpa`` it uses PyTorch's fused attention instead of the explicit one."""

    def __init__(self, config: Config, sdpa: bool = False) -> None:
        super().__init__()
        self.config, self.sdpa = config, sdpa
        self.measures_margins = True  # how close every decision is, which the golden files state
        width, side = config.width, config.patch_size
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(config.channels, width, side, stride=side)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, width))
        self.time_embed = nn.Parameter(torch.zeros(1, config.num_frames, width))
        self.blocks = nn.ModuleList(Block(config, i < config.glimpser_depth) for i in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.head, self.motion_head = nn.Linear(width, config.num_classes), nn.Linear(width, 2)

    def forward(
        self,
        clips: Tensor,
        kept: Sequence[Tensor] | None = None,
        halting_layer: Tensor | None = None,
        drop_path: float = 0.0,
        rng: np.random.Generator | None = None,
        record: Record | None = None,
    ) -> Output:
        """Clips [B, C, T, height, width] → Output. ``kept`` and ``halting_layer`` impose decisions."""
        config, record = self.config, record or Record(False)
        drop = DropPath(drop_path, config.depth, rng)
        margins: dict[str, float] = {}
        project = self.patch_embed.proj
        state = ops.embed_tokens(clips, project.weight, project.bias, self.cls_token, self.pos_embed, self.time_embed)
        state = record("embed", state)
        original = torch.arange(config.patches, device=clips.device).expand(len(clips), config.num_frames, -1)
        chosen = []
        for i in range(config.glimpser_depth):
            imposed = None if kept is None else kept[i]
            state, original = self._glimpser_block(i, state, original, imposed, drop, record, margins)
            chosen.append(original)
        return self._joint_blocks(state, chosen, halting_layer, drop, record, margins)

    def _glimpser_block(
        self,
        i: int,
        state: Tensor,
        original: Tensor,
        imposed: Tensor | None,
        drop: DropPath,
        record: Record,
        margins: dict[str, float],
    ) -> tuple[Tensor, Tensor]:
        """Divided attention and selection: state [B, 1 + S*T, D], original [B, T, S] → the same with S'."""
        config, block, name = self.config, self.blocks[i], f"blocks.{i}"
        batch, frames, patches = original.shape
        selects = config.keep_rates[i] < 1

        # 1. Temporal attention along each patch index, without CLS.
        cls, tokens = state[:, :1], state[:, 1:].unflatten(1, (patches, frames))  # [B, 1, D], [B, S, T, D]
        normed = record(f"{name}.temporal_norm1", _norm(tokens, block.temporal_norm1))
        *_, y = block.temporal_attn.mix(normed, config.num_heads, None, self.sdpa, record, f"{name}.temporal_attn")
        scale = _spread(drop.scale(i, (batch, patches), state), (batch, patches, frames))
        y = record(f"{name}.temporal_attn.proj", block.temporal_attn.project(y, None, scale))
        tokens = ops.linear(y, block.temporal_fc.weight, block.temporal_fc.bias, residual=tokens)
        state = record(f"{name}.temporal_fc", torch.cat([cls, tokens.flatten(1, 2)], dim=1))

        # 2. Spatial attention in each frame, with a copy of CLS; the mean of the copies is the new CLS.
        tokens = state[:, 1:].unflatten(1, (patches, frames)).transpose(1, 2)  # [B, T, S, D]
        copies = state[:, None, :1].expand(-1, frames, -1, -1)  # [B, T, 1, D]
        normed = record(f"{name}.norm1", _norm(torch.cat([copies, tokens], dim=2), block.norm1))
        q, k, y = block.attn.mix(normed, config.num_heads, None, self.sdpa, record, f"{name}.attn")
        if selects and not config.cls_skip:
            copies = torch.zeros_like(copies)  # the released model loses CLS's skip input where it selects
        scale = _spread(drop.scale(i, (batch, frames), state), (batch, frames, 1 + patches))
        y = record(f"{name}.attn.proj", block.attn.project(y, torch.cat([copies, tokens], dim=2), scale))
        cls, tokens = y[:, :, 0].sum(1, keepdim=True) / frames, y[:, :, 1:]

        # 3. Selection: the patches with the largest attention weights of CLS, in descending order.
        if selects:
            scores = record(f"{name}.scores", ops.cls_weights(q, k, config.num_heads))  # [B, T, S]
            number = math.ceil(config.keep_rates[i] * patches)
            ranks = ops.top_k(scores.detach(), number)
            if imposed is not None:
                ranks = _ranks(imposed[..., :number], original)
            if self.measures_margins:
                _selection_margins(scores.detach(), number, margins)
            kept = torch.take_along_dim(tokens, ranks[..., None], dim=2)
            original = original.gather(-1, ranks)
            if config.fuse_dropped:
                fused = record(f"{name}.fused", ops.weighted_sum_of_dropped(tokens, scores, ranks))
                kept = torch.cat([kept, fused[:, :, None]], dim=2)
                original = torch.cat([original, torch.full_like(original[..., :1], -1)], dim=-1)
            tokens = kept
        state = record(f"{name}.selected", torch.cat([cls, tokens.transpose(1, 2).flatten(1, 2)], dim=1))

        # 4. MLP over CLS and the kept patches.
        normed = record(f"{name}.norm2", _norm(state, block.norm2))
        scale = _spread(drop.scale(i, (batch,), state), tuple(state.shape[:2]))
        return record(f"{name}.mlp", block.mlp(normed, state, scale)), original

    def _joint_block(self, i: int, state: Tensor, alive: Tensor, drop: DropPath, record: Record) -> Tensor:
        """Joint space-time attention and MLP over all tokens [B, N, D]; halted tokens enter as zero."""
        block, name = self.blocks[i], f"blocks.{i}"
        state = record(f"{name}.entering", torch.where(alive[..., None], state, 0.0))
        bias = None
        if self.config.halted_keys == "masked":
            bias = torch.zeros_like(state[..., 0]).masked_fill(~alive, -math.inf)
        normed = record(f"{name}.norm1", _norm(state, block.norm1))
        *_, y = block.attn.mix(normed, self.config.num_heads, bias, self.sdpa, record, f"{name}.attn")
        scale = _spread(drop.scale(i, alive.shape[:1], state), tuple(alive.shape))
        state = record(f"{name}.attn.proj", block.attn.project(y, state, scale))
        normed = record(f"{name}.norm2", _norm(state, block.norm2))
        scale = _spread(drop.scale(i, alive.shape[:1], state), tuple(alive.shape))
        return record(f"{name}.mlp", block.mlp(normed, state, scale))

    def _joint_blocks(
        self,
        state: Tensor,
        kept: list[Tensor],
        imposed: Tensor | None,
        drop: DropPath,
        record: Record,
        margins: dict[str, float],
    ) -> Output:
        """Joint blocks with halting, then the heads on CLS: state [B, N, D] → Output."""
        config = self.config
        y, used = torch.zeros_like(state), torch.zeros_like(state[..., 0])
        ponder, halting_layer = torch.zeros_like(used), torch.zeros_like(used, dtype=torch.int64)
        alive, entered = torch.ones_like(used, dtype=torch.bool), []
        for layer in range(1, config.joint_depth + 1):
            entered.append(alive)
            last = layer == config.joint_depth
            state = self._joint_block(config.glimpser_depth + layer - 1, state, alive, drop, record)
            logit = torch.zeros_like(used) if last else torch.where(alive, state[..., 0], 0.0)
            logit = record(f"joint.{layer}.logit", logit)
            weight, used_next, halted = ops.halt(
                logit,
                used,
                config.halting_scale,
                config.halting_center,
                config.epsilon,
                last,
                None if imposed is None else imposed == layer,
            )
            weight, halted = record(f"joint.{layer}.weight", torch.where(alive, weight, 0.0)), halted & alive
            if not last and self.measures_margins:
                # the sum that is compared with 1 - ε: used + h, before the remainder replaces h
                score = torch.sigmoid(config.halting_scale * logit - config.halting_center)
                distance = (used + score - (1 - config.epsilon)).detach().abs()
                _note(margins, "halting", torch.where(alive, distance, math.inf))
            y = y + torch.where(alive[..., None], weight[..., None] * state, 0.0)
            ponder = ponder + torch.where(halted, layer + weight, 0.0)
            halting_layer = torch.where(halted, layer, halting_layer)
            used, alive = torch.where(alive, used_next, used), alive & ~halted
        y, ponder = record("y", y), record("ponder", ponder)
        features = record("norm", _norm(y[:, 0], self.norm))
        logits = record("logits", ops.linear(features, self.head.weight, self.head.bias))
        motion = ops.linear(features, self.motion_head.weight, self.motion_head.bias)
        motion = record("motion_logits", motion)
        return Output(logits, motion, features, ponder, torch.stack(entered, dim=1), halting_layer, kept, margins)


def _note(margins: dict[str, float], name: str, distances: Tensor) -> None:
    """Lower a margin to the smallest of these distances if that is less."""
    if distances.numel():
        margins[name] = min(margins.get(name, math.inf), float(distances.min()))


def _selection_margins(scores: Tensor, number: int, margins: dict[str, float]) -> None:
    """Relative gaps of the sorted scores [B, T, S]: at the cut (selection) and between kept patches (order)."""
    ordered = scores.sort(dim=-1, descending=True).values
    gaps = (ordered[..., :-1] - ordered[..., 1:]) / ordered[..., :-1]
    _note(margins, "selection", gaps[..., number - 1 : number])
    _note(margins, "order", gaps[..., : number - 1])


def total_loss(
    output: Output,
    labels: Tensor,
    motion_labels: Tensor,
    ponder_weight: float = 5e-4,
    motion_weight: float = 1.0,
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """The three losses and total = recognition + ponder_weight · ponder + motion_weight · motion."""
    recognition = ops.cross_entropy(output.logits, labels, label_smoothing)
    ponder, motion = ops.ponder_loss(output.ponder), ops.motion_loss(output.motion_logits, motion_labels)
    total = recognition + ponder_weight * ponder + motion_weight * motion
    return {"total": total, "recognition": recognition, "ponder": ponder, "motion": motion}
