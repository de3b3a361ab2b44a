"""The two halves every block is made of: pre-norm attention and pre-norm MLP, forward and backward.

They are the only places where a block's parameters meet the table of operations; the Glimpser uses the attention half
twice (through time, then through space) and the joint block once. What differs between them, and between dense and
compact execution, is index arrays alone.

``Scope`` carries what every function of the model needs: the table, the parameters, a place to put gradients, and the
observer to whom named tensors are shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from refvt.array import Array
from refvt.backends import Backend

__all__ = [
    "Scope",
    "attention_half_backward",
    "attention_half_forward",
    "mlp_half_backward",
    "mlp_half_forward",
]


def _nobody(name: str, tensor: Array) -> None:
    pass


@dataclass
class Scope:
    """The table ``ops``, the parameters by name, the gradients by name, and ``see(name, tensor)`` for traces."""

    ops: Backend
    parameters: dict[str, Array]
    see: Callable[[str, Array], None] = _nobody
    gradients: dict[str, Array] = field(default_factory=dict)
    keep: bool = False

    @property
    def tracing(self) -> bool:
        return self.see is not _nobody

    def rows(self, x: Array, index: Array | slice) -> tuple[Array, Any]:
        """Rows of x, and the cache of their gather; a slice of them is a view, and has none."""
        if isinstance(index, slice):
            return x[index], None
        rows, cache = self.ops.gather.forward(x, index, keep=self.keep)
        return rows, cache

    def pair(self, name: str) -> tuple[Array, Array]:
        """The weight and bias of a layer."""
        return self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]

    def put(self, name: str, dweight: Array, dbias: Array) -> None:
        self.gradients[f"{name}.weight"], self.gradients[f"{name}.bias"] = dweight, dbias


class AttentionHalfCache(NamedTuple):
    norm_name: str
    attn_name: str
    norm: Any
    queries: Any  # of the gather that picks the query rows, None if every row asks
    qkv: Any  # one linear cache, or two: (q, kv)
    attention: Any
    proj: Any


def attention_half_forward(
    scope: Scope,
    norm_name: str,
    attn_name: str,
    x: Array,
    residual: Array | None,
    num_heads: int,
    key_offsets: Array,
    query_offsets: Array | None = None,
    queries: Array | slice | Callable[[Array, Array], tuple[Array, Array]] | None = None,
    key_bias: Array | None = None,
    gain: Array | None = None,
    project: bool = True,
) -> tuple[Array, tuple[Array, Array], AttentionHalfCache | None]:
    """out = residual + gain · proj(attention(qkv(norm(x)))), and the q and k that were used.

    Without ``project`` (and without a cache) the attention comes out as it is, for a layer that projects it.

    x [n, D], key_offsets [segments+1]. ``queries`` [m] names the rows of x that ask (all, if None; a slice where nobody
    keeps a cache); query_offsets cuts *them* into segments. residual and gain belong to the m rows that come out. Who
    asks may depend on the keys: then ``queries`` is a function of norm(x) and k that returns the rows and the residual.
    """
    ops, D = scope.ops, x.shape[1]
    columns = ops.arrays.columns
    # 1. norm
    normed, norm_cache = ops.layernorm.forward(x, *scope.pair(norm_name), keep=scope.keep)  # [n, D]
    scope.see(norm_name, normed)
    # 2. q, k, v: one multiply if every row asks; else q for those that do, k and v for all
    weight, bias = scope.pair(f"{attn_name}.qkv")
    gather_cache = qkv_cache = None
    if queries is None:
        query_offsets = key_offsets
        qkv, qkv_cache = ops.linear.forward(normed, weight, bias, keep=scope.keep)  # [n, 3D]
        q, k, v = (columns(qkv, i * D, (i + 1) * D) for i in range(3))
    else:
        kv, kv_cache = ops.linear.forward(normed, weight[D:], bias[D:], keep=scope.keep)  # [n, 2D]
        k, v = columns(kv, 0, D), columns(kv, D, 2 * D)
        if callable(queries):
            queries, residual = queries(normed, k)
        asking, gather_cache = scope.rows(normed, queries)  # [m, D]
        q, q_cache = ops.linear.forward(asking, weight[:D], bias[:D], keep=scope.keep)  # [m, D]
        qkv_cache = (q_cache, kv_cache)
    for name, tensor in zip("qkv", (q, k, v), strict=True):
        scope.see(f"{attn_name}.{name}", tensor)
    # 3. attention
    y, attention_cache = ops.attention.forward(
        q, k, v, query_offsets, key_offsets, num_heads, key_bias, keep=scope.keep
    )
    scope.see(f"{attn_name}.y", y)
    if not project:
        return y, (q, k), None
    # 4. projection, gain, skip connection
    out, proj_cache = ops.linear.forward(y, *scope.pair(f"{attn_name}.proj"), residual, gain, keep=scope.keep)
    scope.see(f"{attn_name}.proj", out)
    if not scope.keep:
        return out, (q, k), None
    cache = AttentionHalfCache(norm_name, attn_name, norm_cache, gather_cache, qkv_cache, attention_cache, proj_cache)
    return out, (q, k), cache


def attention_half_backward(
    scope: Scope,
    dout: Array,
    cache: AttentionHalfCache,
    extra: tuple[Array, Array] | None = None,
) -> tuple[Array, Array | None]:
    """Returns dx and dresidual. ``extra`` is a gradient that reached q and k by another way (the Glimpser's scores)."""
    ops, arrays = scope.ops, scope.ops.arrays
    attn = cache.attn_name
    scope.see(f"d({attn}.proj)", dout)
    # 4. projection
    dy, dweight, dbias, dresidual = ops.linear.backward(dout, cache.proj)
    scope.put(f"{attn}.proj", dweight, dbias)
    scope.see(f"d({attn}.y)", dy)
    # 3. attention
    dq, dk, dv = ops.attention.backward(dy, cache.attention)
    if extra is not None:
        dq, dk = arrays.add(dq, extra[0]), arrays.add(dk, extra[1])
    for name, tensor in zip("qkv", (dq, dk, dv), strict=True):
        scope.see(f"d({attn}.{name})", tensor)
    # 2. q, k, v
    if cache.queries is None:
        dnormed, dweight, dbias, _ = ops.linear.backward(arrays.join_columns([dq, dk, dv]), cache.qkv)
    else:
        q_cache, kv_cache = cache.qkv
        dasking, dweight_q, dbias_q, _ = ops.linear.backward(dq, q_cache)
        dnormed, dweight_kv, dbias_kv, _ = ops.linear.backward(arrays.join_columns([dk, dv]), kv_cache)
        dnormed = arrays.add(dnormed, ops.gather.backward(dasking, cache.queries))
        dweight, dbias = arrays.join_rows([dweight_q, dweight_kv]), arrays.join_rows([dbias_q, dbias_kv])
    scope.put(f"{attn}.qkv", dweight, dbias)
    scope.see(f"d({cache.norm_name})", dnormed)
    # 1. norm
    dx, dweight, dbias = ops.layernorm.backward(dnormed, cache.norm)
    scope.put(cache.norm_name, dweight, dbias)
    return dx, dresidual


class MlpHalfCache(NamedTuple):
    block: str
    norm: Any
    mlp: Any


def mlp_half_forward(
    scope: Scope, block: str, x: Array, gain: Array | None = None
) -> tuple[Array, MlpHalfCache | None]:
    """x + gain · mlp(norm2(x)), x [n, D]."""
    ops = scope.ops
    # 1. norm
    normed, norm_cache = ops.layernorm.forward(x, *scope.pair(f"{block}.norm2"), keep=scope.keep)
    scope.see(f"{block}.norm2", normed)
    # 2. mlp, gain, skip connection
    out, mlp_cache = ops.mlp.forward(
        normed, *scope.pair(f"{block}.mlp.fc1"), *scope.pair(f"{block}.mlp.fc2"), x, gain, keep=scope.keep
    )
    scope.see(f"{block}.mlp", out)
    return out, MlpHalfCache(block, norm_cache, mlp_cache) if scope.keep else None


def mlp_half_backward(scope: Scope, dout: Array, cache: MlpHalfCache) -> Array:
    """Returns dx."""
    ops, block = scope.ops, cache.block
    scope.see(f"d({block}.mlp)", dout)
    # 2. mlp
    dnormed, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual = ops.mlp.backward(dout, cache.mlp)
    scope.put(f"{block}.mlp.fc1", dfc1_weight, dfc1_bias)
    scope.put(f"{block}.mlp.fc2", dfc2_weight, dfc2_bias)
    scope.see(f"d({block}.norm2)", dnormed)
    # 1. norm
    dx, dweight, dbias = ops.layernorm.backward(dnormed, cache.norm)
    scope.put(f"{block}.norm2", dweight, dbias)
    dstate: Array = scope.ops.arrays.add(dx, dresidual)
    return dstate
