"""Patch embedding in NumPy. The maths is in ``__init__.py``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.array import Array
from refvt.ops.embedding import check_frames


class EmbedCache(NamedTuple):
    """What the backward of the embedding reads."""

    patches: Array  # [B*S*T, C*P*P]
    weight: Array  # [D, C, P, P]
    B: int
    S: int
    T: int


def embed_forward(
    clips: Array,
    weight: Array,
    bias: Array,
    cls_token: Array,
    pos_embed: Array,
    time_embed: Array,
    keep: bool = True,
) -> tuple[Array, EmbedCache | None]:
    """Patch embedding: W · patch + bias + pos_embed + time_embed, with CLS in front.

    clips [B, C, T, H, W], weight [D, C, P, P], bias [D], cls_token [1, 1, D], pos_embed [1, 1+S, D],
    time_embed [1, T, D] → y [B·(1+S·T), D]. H and W must be multiples of P (ValueError if not).
    Source: HaltingVT section 3.1.
    """
    B, C, T, H, W = clips.shape
    D, _, P, _ = weight.shape
    check_frames(clips, P)
    rows, columns = H // P, W // P
    S = rows * columns
    # 1. cut: bring (patch row, patch column, frame) to the front and (channel, row, column) to the back
    grid = clips.reshape(B, C, T, rows, P, columns, P)
    patches = grid.transpose(0, 3, 5, 2, 1, 4, 6).reshape(B * S * T, C * P * P)  # [B*S*T, C*P*P]
    # 2. project
    projected = patches @ weight.reshape(D, -1).T + bias  # [B*S*T, D]
    # 3. add the embeddings, put CLS in front
    y = np.empty((B, 1 + S * T, D), dtype=projected.dtype)  # [B, N, D]
    y[:, 0] = cls_token[0, 0] + pos_embed[0, 0]
    position = pos_embed[0, 1:, None] + time_embed[0]  # [S, T, D]
    y[:, 1:] = projected.reshape(B, S * T, D) + position.reshape(S * T, D)
    return y.reshape(-1, D), EmbedCache(patches, weight, B, S, T) if keep else None


def embed_backward(dy: Array, cache: EmbedCache) -> tuple[Array, Array, Array, Array, Array]:
    """Returns dweight, dbias, dcls_token, dpos_embed, dtime_embed."""
    patches, weight, B, S, T = cache
    D = weight.shape[0]
    dtokens = dy.reshape(B, 1 + S * T, D)
    dcls = dtokens[:, 0].sum(axis=0)  # [D]
    dprojected = dtokens[:, 1:].reshape(B, S, T, D)
    # 3. each embedding was added to many tokens: it gets the sum of their gradients
    dtime_embed = dprojected.sum(axis=(0, 1))  # [T, D]
    dpos_embed = np.concatenate([dcls[None], dprojected.sum(axis=(0, 2))])  # [1+S, D]
    # 2. the projection
    flat = dprojected.reshape(-1, D)  # [B*S*T, D]
    dweight = (flat.T @ patches).reshape(weight.shape)
    dbias = flat.sum(axis=0)
    # 1. clips have no gradient
    return dweight, dbias, dcls.reshape(1, 1, D).copy(), dpos_embed[None], dtime_embed[None]
