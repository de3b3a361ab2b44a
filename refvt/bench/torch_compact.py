"""The fastest PyTorch that one would write by hand, as a contestant of ``refvt bench``: halted tokens are removed.

What refvt's compact execution saves is saved here too, with the means of PyTorch: rows of halted tokens are left out,
one ghost key stands for them (``halted_keys="zero"``), in a block that selects only CLS and the kept patches are
queries, in the last block only CLS is one, a clip ends when CLS halts, and attention is PyTorch's fused one. Forward
only; one clip after another, because clips of a batch have different numbers of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions

__all__ = ["TorchCompact"]


class TorchCompact:
    """The model with given parameters and clips [B, C, T, height, width]. ``run`` returns each clip's logits, kept
    patches and halting layers, as PyTorch's tensors.
    """

    can_be_forced = True

    def __init__(self, config: HaltingVTConfig, parameters: Mapping[str, Array], clips: Array, dtype: str) -> None:
        import torch

        if config.fuse_dropped:
            raise ValueError("fuse_dropped: expected False, this model drops patches")
        self._torch, self._F, self._config = torch, torch.nn.functional, config
        kind = getattr(torch, dtype)
        self._p: dict[str, Any] = {name: torch.tensor(np.asarray(x)).to(kind) for name, x in parameters.items()}
        self._clips = torch.tensor(clips).to(kind)

    def run(self, train: bool, decisions: Decisions) -> Any:
        """(logits [K], kept of every Glimpser block [T, k], halting layer [N']) of each clip; a layer 0 is unknown."""
        if train:
            raise ValueError("train: expected False, there is no backward here")
        results = []
        with self._torch.no_grad():
            for b, clip in enumerate(self._clips):
                kept = None if decisions.kept is None else [self._torch.tensor(k[b]) for k in decisions.kept]
                layers = decisions.halting_layer
                results.append(self._clip(clip, kept, None if layers is None else self._torch.tensor(layers[b])))
        return results

    def logits(self, result: Any) -> Array:
        """Logits [B, K] as a NumPy array."""
        return np.stack([logits.numpy() for logits, _, _ in result])

    def decisions(self, result: Any) -> Decisions:
        """Decisions of the run."""
        blocks = zip(*(kept for _, kept, _ in result), strict=True)
        kept = tuple(np.stack([k.numpy() for k in block]) for block in blocks)
        return Decisions(kept, np.stack([layers.numpy() for _, _, layers in result]))

    # ---- one clip

    def _clip(self, clip: Any, kept: list[Any] | None, layers: Any) -> tuple[Any, list[Any], Any]:
        config, p, torch = self._config, self._p, self._torch
        weight, bias = p["patch_embed.proj.weight"], p["patch_embed.proj.bias"]
        patches = self._F.conv2d(clip.transpose(0, 1), weight, bias, stride=config.patch_size)  # [T, D, rows, columns]
        x = patches.flatten(2).transpose(1, 2) + p["pos_embed"][0, 1:] + p["time_embed"][0, :, None]  # [T, S, D]
        cls = p["cls_token"][0] + p["pos_embed"][0, :1]  # [1, D]
        place = torch.arange(x.shape[1]).expand(len(x), -1)  # [T, S]: which patch of its frame a row is
        chosen = []
        for i in range(config.glimpser_depth):
            cls, x, place = self._glimpser(i, cls, x, place, None if kept is None else kept[i])
            chosen.append(place)
        tokens = torch.cat([cls, x.transpose(0, 1).flatten(0, 1)])  # [N', D], frame by frame inside each patch
        logits, found = self._joint(tokens, layers)
        return logits, chosen, found

    def _glimpser(self, i: int, cls: Any, x: Any, place: Any, imposed: Any) -> tuple[Any, Any, Any]:
        """A block of divided attention: cls [1, D], x [T, S, D], place [T, S] → the same with S'."""
        torch, name, config = self._torch, f"blocks.{i}.", self._config
        normed = self._norm(x.transpose(0, 1), f"{name}temporal_norm1")  # [S, T, D]
        y = self._project(self._attend(*self._qkv(normed, f"{name}temporal_attn.")), f"{name}temporal_attn.")
        x = x + self._linear(y, f"{name}temporal_fc").transpose(0, 1)
        rows = torch.cat([cls.expand(len(x), 1, -1), x], dim=1)  # [T, 1+S, D]
        selects, normed, skip = config.keep_rates[i] < 1, self._norm(rows, f"{name}norm1"), rows
        q, k, v = self._qkv(normed, f"{name}attn.", queries=not selects)
        if selects:
            number = math.ceil(config.keep_rates[i] * x.shape[1])
            first = self._queries(normed[:, :1], f"{name}attn.")  # CLS alone: its weights are the scores
            weights = ((first * first.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)  # [T, A, 1, 1+S]
            ranks = weights[:, :, 0, 1:].mean(1).topk(number, dim=1).indices  # [T, k]
            if imposed is not None:
                ranks = (place[:, None, :] == imposed[:, :, None]).int().argmax(-1)
            place = place.gather(1, ranks)
            asked = torch.cat([ranks.new_zeros(len(ranks), 1), 1 + ranks], dim=1)[..., None].expand(
                -1, -1, rows.shape[2]
            )
            q, skip = self._queries(normed.gather(1, asked), f"{name}attn."), rows.gather(1, asked)
        y = self._project(self._attend(q, k, v), f"{name}attn.")
        result = y[:, 0].mean(0, keepdim=True)
        cls, x = result if selects and not config.cls_skip else cls + result, (skip + y)[:, 1:]
        state = self._mlp(torch.cat([cls, x.flatten(0, 1)]), name)
        return state[:1], state[1:].view_as(x), place

    def _joint(self, x: Any, layers: Any) -> tuple[Any, Any]:
        """The joint blocks and the head: x [N', D] → logits [K], halting layers [N'], 0 where CLS halted before."""
        config, torch = self._config, self._torch
        number, depth = len(x), config.joint_depth
        found = torch.zeros(number, dtype=torch.int64)
        rows, used, y = torch.arange(number), x.new_zeros(number), x.new_zeros(x.shape[1])
        for layer in range(1, depth + 1):
            last = layer == depth
            x = self._joint_block(config.glimpser_depth + layer - 1, x, number - len(x), last)
            score = torch.sigmoid(config.halting_scale * x[:, 0] - config.halting_center)
            living = rows[: len(x)]  # in the last block CLS alone
            halts = used[: len(x)] + score > 1 - config.epsilon if layers is None else layers[living] == layer
            found[rows if last else rows[halts]] = layer
            if last or bool(halts[0]):  # CLS: its remainder ends the sum, and nothing later can change the answer
                y = y + (1 - used[0]) * x[0]
                break
            y = y + score[0] * x[0]
            x, rows, used = x[~halts], rows[~halts], (used + score)[~halts]
        return self._linear(self._norm(y[None], "norm"), "head")[0], found

    def _joint_block(self, i: int, x: Any, halted: int, last: bool) -> Any:
        """Joint attention and MLP over living tokens x [n, D]; one ghost key for the ``halted``; CLS alone if last."""
        torch, p, name = self._torch, self._p, f"blocks.{i}."
        normed = self._norm(x, f"{name}norm1")
        q, k, v = self._qkv(normed, f"{name}attn.", queries=not last)
        if last:
            q, x = self._queries(normed[:1], f"{name}attn."), x[:1]
        bias = None
        if halted and self._config.halted_keys == "zero":
            _, ghost_k, ghost_v = self._qkv(p[f"{name}norm1.bias"][None], f"{name}attn.", queries=False)
            k, v = torch.cat([k, ghost_k], dim=-2), torch.cat([v, ghost_v], dim=-2)
            bias = x.new_zeros(k.shape[-2])
            bias[-1] = math.log(halted)
            bias = bias.expand(1, q.shape[-2], -1)
        x = x + self._project(self._attend(q, k, v, bias), f"{name}attn.")
        return self._mlp(x, name)

    # ---- layers

    def _linear(self, x: Any, name: str) -> Any:
        return self._F.linear(x, self._p[f"{name}.weight"], self._p[f"{name}.bias"])

    def _norm(self, x: Any, name: str) -> Any:
        return self._F.layer_norm(x, x.shape[-1:], self._p[f"{name}.weight"], self._p[f"{name}.bias"], 1e-6)

    def _mlp(self, x: Any, name: str) -> Any:
        hidden = self._F.gelu(self._linear(self._norm(x, f"{name}norm2"), f"{name}mlp.fc1"))
        return x + self._linear(hidden, f"{name}mlp.fc2")

    def _heads(self, x: Any) -> Any:
        return x.unflatten(-1, (self._config.num_heads, -1)).transpose(-3, -2)  # [..., A, n, d]

    def _qkv(self, x: Any, name: str, queries: bool = True) -> tuple[Any, Any, Any]:
        """x [..., n, D] → q, k, v [..., A, n, d]; q is None without ``queries``."""
        weight, bias, D = self._p[f"{name}qkv.weight"], self._p[f"{name}qkv.bias"], x.shape[-1]
        if queries:
            q, k, v = self._F.linear(x, weight, bias).split(D, dim=-1)
            return self._heads(q), self._heads(k), self._heads(v)
        k, v = self._F.linear(x, weight[D:], bias[D:]).split(D, dim=-1)
        return None, self._heads(k), self._heads(v)

    def _queries(self, x: Any, name: str) -> Any:
        D = x.shape[-1]
        return self._heads(self._F.linear(x, self._p[f"{name}qkv.weight"][:D], self._p[f"{name}qkv.bias"][:D]))

    def _attend(self, q: Any, k: Any, v: Any, bias: Any = None) -> Any:
        if q.dim() == 3:  # one clip: PyTorch's fused kernel wants an axis for the batch, and without it is not chosen
            q, k, v = q[None], k[None], v[None]
            return self._attend(q, k, v, None if bias is None else bias[None])[0]
        return self._F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(-3, -2).flatten(-2)

    def _project(self, y: Any, name: str) -> Any:
        return self._linear(y, f"{name}proj")
