"""HaltingVT in PyTorch, as somebody would write it who has read the paper: the port that the examples check.

``bug`` plants one mistake, so that the examples can show how ``refvt check`` names it.
"""

import math

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, mask=None, want_weights=False):
        """x [batch, n, D]; mask [batch, n], true for keys that may be seen."""
        batch, n, D = x.shape
        q, k, v = self.qkv(x).reshape(batch, n, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-1, -2) / math.sqrt(D // self.heads)
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, :], -math.inf)
        weights = logits.softmax(dim=-1)
        if mask is not None:
            weights = torch.where(mask.any(1)[:, None, None, None], weights, 0.0)  # a clip without any key
        y = self.proj((weights @ v).transpose(1, 2).reshape(batch, n, D))
        return (y, weights[:, :, 0].mean(dim=1)) if want_weights else y  # what CLS attends to, mean over heads


class Mlp(nn.Module):
    def __init__(self, width, hidden, bug=None):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.approximate = "tanh" if bug == "tanh" else "none"

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x), approximate=self.approximate))


class Block(nn.Module):
    """A joint space-time block."""

    def __init__(self, config, bug=None):
        super().__init__()
        eps = 1e-5 if bug == "eps" else 1e-6
        self.norm1, self.norm2 = nn.LayerNorm(config.width, eps), nn.LayerNorm(config.width, eps)
        self.attn = Attention(config.width, config.num_heads)
        self.mlp = Mlp(config.width, config.hidden_width, bug)

    def forward(self, x, mask=None):
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class GlimpserBlock(Block):
    """Attention through time, attention inside each frame, selection of the patches that CLS looks at."""

    def __init__(self, config, keep_rate, bug=None):
        super().__init__(config, bug)
        self.temporal_norm1 = nn.LayerNorm(config.width, self.norm1.eps)
        self.temporal_attn = Attention(config.width, config.num_heads)
        self.temporal_fc = nn.Linear(config.width, config.width)
        self.config, self.keep_rate, self.bug = config, keep_rate, bug

    def forward(self, x):
        """x [B, 1 + S·T, D], CLS first, then the T frames of each patch."""
        B, N, D = x.shape
        T = self.config.num_frames
        S = (N - 1) // T
        cls, patches = x[:, :1], x[:, 1:]

        # 1. time: the T tokens of one patch
        path = patches.reshape(B * S, T, D)
        path = self.temporal_fc(self.temporal_attn(self.temporal_norm1(path)))
        patches = patches + path.reshape(B, S * T, D)

        # 2. space: CLS and the S patches of one frame
        frames = patches.reshape(B, S, T, D).transpose(1, 2)  # [B, T, S, D]
        copies = cls[:, None].expand(B, T, 1, D)
        y, weights = self.attn(self.norm1(torch.cat([copies, frames], dim=2).flatten(0, 1)), want_weights=True)
        y = y.reshape(B, T, 1 + S, D)
        frames, mean = frames + y[:, :, 1:], y[:, :, 0].mean(dim=1, keepdim=True)

        # 3. selection
        if self.keep_rate < 1:
            scores = weights[:, 1:].reshape(B, T, S)
            k = math.ceil(self.keep_rate * S)
            if self.bug == "floor":
                k = max(1, math.floor(self.keep_rate * S))
            chosen = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
            if self.bug == "index order":
                chosen = chosen.sort(dim=-1).values
            kept = frames.gather(2, chosen[..., None].expand(B, T, k, D))
            if self.config.fuse_dropped:
                dropped = torch.ones_like(scores).scatter(2, chosen, 0.0)
                fused = ((scores * dropped)[..., None] * frames).sum(dim=2, keepdim=True)
                kept = torch.cat([kept, fused], dim=2)
            frames = kept
        keeps_skip = self.keep_rate >= 1 or self.config.cls_skip
        cls = cls + mean if keeps_skip else mean
        x = torch.cat([cls, frames.transpose(1, 2).flatten(1, 2)], dim=1)

        # 4. MLP on what is left
        return x + self.mlp(self.norm2(x))


class HaltingVT(nn.Module):
    def __init__(self, config, bug=None):
        super().__init__()
        self.config, self.bug = config, bug
        width, P = config.width, config.patch_size
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(config.channels, width, P, stride=P)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches_per_frame, width))
        self.time_embed = nn.Parameter(torch.zeros(1, config.num_frames, width))
        glimpser = [GlimpserBlock(config, rate, bug) for rate in config.keep_rates]
        self.blocks = nn.ModuleList([*glimpser, *(Block(config, bug) for _ in range(config.joint_depth))])
        self.norm = nn.LayerNorm(width, self.blocks[0].norm1.eps)
        self.head, self.motion_head = nn.Linear(width, config.num_classes), nn.Linear(width, 2)

    def forward(self, clips):
        """clips [B, C, T, height, width] → logits [B, K], motion logits [B, 2], ponder [B, N]."""
        x = self.embed(clips)
        for block in self.blocks[: self.config.glimpser_depth]:
            x = block(x)
        y, ponder = self.halting(x)
        cls = self.norm(y[:, 0])
        return self.head(cls), self.motion_head(cls), ponder

    def embed(self, clips):
        B, _, T, _, _ = clips.shape
        x = self.patch_embed.proj(clips.transpose(1, 2).flatten(0, 1))  # [B·T, D, rows, columns]
        x = x.flatten(2).transpose(1, 2).reshape(B, T, -1, x.shape[1])  # [B, T, S, D]
        x = x + self.pos_embed[:, None, 1:] + self.time_embed[:, :, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(B, 1, -1)
        return torch.cat([cls, x.transpose(1, 2).flatten(1, 2)], dim=1)

    def halting(self, x):
        config, L = self.config, self.config.joint_depth
        total = torch.zeros_like(x[..., 0])
        y, ponder, alive = torch.zeros_like(x), torch.zeros_like(total), torch.ones_like(total, dtype=torch.bool)
        for layer, block in enumerate(self.blocks[config.glimpser_depth :], 1):
            x = torch.where(alive[..., None], x, 0.0)
            x = block(x, alive if config.halted_keys == "masked" else None)
            h = torch.sigmoid(config.halting_scale * x[..., 0] - config.halting_center)
            if layer == L:
                h = torch.ones_like(h)
            halts = alive & (total + h > 1 - config.epsilon)
            remainder = 1 - total
            if self.bug == "remainder detached":
                remainder = remainder.detach()
            weight = torch.where(halts, remainder, torch.where(alive, h, 0.0))
            y = y + weight[..., None] * x
            ponder = ponder + torch.where(halts, layer + remainder, 0.0)
            total = torch.where(alive, total + h, total)
            alive = alive & ~halts
        return y, ponder
