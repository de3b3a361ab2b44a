"""HaltingVT in PyTorch in another style than the example: frame-major tokens, q, k and v apart, own names, functions.

Nothing is called as in the specification, so that discovery has only values and parameters to go by.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Layer(nn.Module):  # type: ignore[misc,unused-ignore]
    """One attention with its norm: five weights and their biases."""

    def __init__(self, take, norm: str, attn: str) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        weights, biases = take(f"{attn}.qkv.weight").chunk(3), take(f"{attn}.qkv.bias").chunk(3)
        self.to_q, self.to_k, self.to_v = (nn.Parameter(w.clone().T.contiguous()) for w in weights)
        self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(b.clone()) for b in biases)
        self.out, self.out_bias = nn.Parameter(take(f"{attn}.proj.weight")), nn.Parameter(take(f"{attn}.proj.bias"))
        self.scale, self.shift = nn.Parameter(take(f"{norm}.weight")), nn.Parameter(take(f"{norm}.bias"))


class Blocks(nn.Module):  # type: ignore[misc,unused-ignore]
    """The whole model; ``wrong`` plants one mistake."""

    def __init__(self, config, parameters, wrong: str = "") -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.config, self.wrong = config, wrong
        self.p = nn.ParameterDict()

        def take(name: str) -> Tensor:
            return torch.as_tensor(parameters[name]).clone()

        self.attention, self.through_time = nn.ModuleList(), nn.ModuleList()
        for i in range(config.depth):
            self.attention.append(Layer(take, f"blocks.{i}.norm1", f"blocks.{i}.attn"))
            if i < config.glimpser_depth:
                name = f"blocks.{i}.temporal_"
                self.through_time.append(Layer(take, f"{name}norm1", f"{name}attn"))
        done = ("attn.", "norm1.")
        for name in parameters:
            if not any(part in name for part in done):
                self.p[name.replace(".", "_")] = nn.Parameter(take(name))

    def get(self, name: str) -> Tensor:
        return self.p[name.replace(".", "_")]

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        eps = 1e-3 if self.wrong == "norm" else 1e-6
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias

    def attend(self, layer: Layer, x: Tensor, dead: Tensor | None) -> tuple[Tensor, Tensor]:
        A = self.config.num_heads
        x = self.norm(x, layer.scale, layer.shift)
        q, k, v = x @ layer.to_q + layer.q_bias, x @ layer.to_k + layer.k_bias, x @ layer.to_v + layer.v_bias
        q, k, v = (y.unflatten(-1, (A, -1)).transpose(-3, -2) for y in (q, k, v))
        logits = q @ k.mT * (1.0 if self.wrong == "no scale" else q.shape[-1] ** -0.5)
        if dead is not None:
            logits = logits.masked_fill(dead[:, None, None], -math.inf)
        weights = logits.softmax(-1).nan_to_num(0.0)
        y = (weights @ v).transpose(-3, -2).flatten(-2)
        return y @ layer.out.mT + layer.out_bias, weights[..., 0, :].mean(-2)

    def mlp(self, i: int, x: Tensor) -> Tensor:
        name = f"blocks.{i}."
        y = self.norm(x, self.get(f"{name}norm2.weight"), self.get(f"{name}norm2.bias"))
        y = functional.gelu(y @ self.get(f"{name}mlp.fc1.weight").mT + self.get(f"{name}mlp.fc1.bias"))
        return x + (y @ self.get(f"{name}mlp.fc2.weight").mT + self.get(f"{name}mlp.fc2.bias"))

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        config, B = self.config, len(clips)
        P, T = config.patch_size, config.num_frames
        # patches [B, T, S, D] throughout: frame-major
        rows, columns = config.grid
        x = clips.reshape(B, -1, T, rows, P, columns, P).permute(0, 2, 3, 5, 1, 4, 6).reshape(B, T, rows * columns, -1)
        x = x @ self.get("patch_embed.proj.weight").flatten(1).mT + self.get("patch_embed.proj.bias")
        x = x + self.get("pos_embed")[:, None, 1:] + self.get("time_embed")[:, :, None]
        cls = (self.get("cls_token") + self.get("pos_embed")[:, :1]).expand(B, 1, -1)
        for i in range(config.glimpser_depth):
            cls, x = self.glimpse(i, cls, x)
        return self.halting(torch.cat([cls, x.flatten(1, 2)], 1))

    def glimpse(self, i: int, cls: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        config, (B, T, S, D) = self.config, x.shape
        y, _ = self.attend(self.through_time[i], x.transpose(1, 2).flatten(0, 1), None)
        y = y @ self.get(f"blocks.{i}.temporal_fc.weight").mT + self.get(f"blocks.{i}.temporal_fc.bias")
        x = x + y.unflatten(0, (B, S)).transpose(1, 2)
        joined = torch.cat([cls[:, None].expand(B, T, 1, D), x], 2).flatten(0, 1)
        y, weights = self.attend(self.attention[i], joined, None)
        y = y.unflatten(0, (B, T))
        x, mean = x + y[:, :, 1:], y[:, :, 0].mean(1, keepdim=True)
        rate = config.keep_rates[i]
        cls = cls + mean if rate >= 1 or config.cls_skip or self.wrong == "skip" else mean
        if rate < 1:
            scores = weights.unflatten(0, (B, T))[..., 1:]
            k = math.ceil(rate * S)
            index = scores.sort(dim=-1, descending=True, stable=True).indices
            ordered = x.take_along_dim(index[..., None], 2)
            if config.fuse_dropped:
                weight = scores.take_along_dim(index, 2)[..., k:, None]
                ordered = torch.cat([ordered[:, :, :k], (weight * ordered[:, :, k:]).sum(2, keepdim=True)], 2)
            x = ordered[:, :, : k + config.fuse_dropped]
        both = self.mlp(i, torch.cat([cls, x.flatten(1, 2)], 1))
        return both[:, :1], both[:, 1:].unflatten(1, (T, -1))

    def halting(self, x: Tensor) -> dict[str, Tensor]:
        config = self.config
        alive = torch.ones_like(x[..., 0], dtype=torch.bool)
        used, ponder, y = torch.zeros_like(x[..., 0]), torch.zeros_like(x[..., 0]), torch.zeros_like(x)
        layers = torch.zeros_like(alive, dtype=torch.int64)
        for layer in range(1, config.joint_depth + 1):
            i = config.glimpser_depth + layer - 1
            x = x * alive[..., None]
            dead = ~alive if config.halted_keys == "masked" else None
            x = self.mlp(i, x + self.attend(self.attention[i], x, dead)[0])
            logit = x[..., 0]
            h = torch.sigmoid(config.halting_scale * logit - config.halting_center)
            if layer == config.joint_depth:
                h = torch.ones_like(h)
            over = used + h > 1 - config.epsilon
            stops = alive & over
            weight = torch.where(over, h if self.wrong == "remainder" else 1 - used, h) * alive
            y = y + weight[..., None] * x
            ponder = ponder + stops * (layer + weight)
            layers = torch.where(stops, layer, layers)
            used, alive = used + h * alive, alive & ~stops
        cls = self.norm(y[:, 0], self.get("norm.weight"), self.get("norm.bias"))
        logits = cls @ self.get("head.weight").mT + self.get("head.bias")
        motion = cls @ self.get("motion_head.weight").mT + self.get("motion_head.bias")
        # ponder in the order of the specification: patch-major
        order = torch.arange(ponder.shape[1] - 1).reshape(config.num_frames, -1).T.flatten() + 1
        order = torch.cat([torch.zeros(1, dtype=torch.int64), order])
        return {
            "logits": logits,
            "motion_logits": motion,
            "ponder": ponder[:, order],
            "decisions.halting_layer": layers[:, order],
        }
