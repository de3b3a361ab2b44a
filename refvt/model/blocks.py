"""The two sublayers of every block, pre-norm attention and pre-norm MLP, forward and backward.

    x ← x + proj(attention(q, k, v)),   q, k, v = qkv(norm1(x))
    x ← x + mlp(norm2(x))

The passes of the attention sublayer: 1. norm, 2. q, k, v, 3. attention, 4. projection and skip connection; of the MLP
sublayer: 1. norm, 2. MLP and skip connection.

These are the only places where a block's parameters meet the table of operations. A Glimpser block uses the attention
sublayer twice (through time, then inside each frame), a joint block once. All that differs between them, and between
dense and compact execution, is index arrays.

``Context`` carries what every function of the model needs: the table of operations, the parameters, a place for their
gradients, and a function that records named tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from refvt.array import Array
from refvt.backends import Backend

__all__ = [
    "AttentionCache",
    "Context",
    "MlpCache",
    "Projected",
    "Segments",
    "attend",
    "attention_cache_of",
    "attention_sublayer_backward",
    "attention_sublayer_forward",
    "mlp_sublayer_backward",
    "mlp_sublayer_forward",
    "project_keys_values",
    "project_output",
    "project_queries",
    "project_queries_keys_values",
]


def _ignore(name: str, tensor: Array) -> None:
    pass


@dataclass
class Context:
    """What every function of the model needs.

    ops: the table of operations. parameters: by name. record: called with the name and value of every named tensor.
    gradients: of the parameters, by name; filled by a backward pass. keep: whether a backward pass will follow.
    """

    ops: Backend
    parameters: dict[str, Array]
    record: Callable[[str, Array], None] = _ignore
    gradients: dict[str, Array] = field(default_factory=dict)
    keep: bool = False

    @property
    def tracing(self) -> bool:
        return self.record is not _ignore

    def take_rows(self, x: Array, index: Array | slice) -> tuple[Array, Any]:
        """Rows of x and the cache of their gather. A slice gives a view, which has no cache."""
        if isinstance(index, slice):
            return x[index], None
        rows, cache = self.ops.gather.forward(x, index, keep=self.keep)
        return rows, cache

    def weight_and_bias(self, name: str) -> tuple[Array, Array]:
        """The weight and bias of a layer."""
        return self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]

    def set_gradient(self, name: str, dweight: Array, dbias: Array) -> None:
        """Store the gradients of a layer's weight and bias."""
        self.gradients[f"{name}.weight"], self.gradients[f"{name}.bias"] = dweight, dbias


# ---- attention


class Segments(NamedTuple):
    """Which rows attend to which: each segment's queries attend to its keys."""

    key_offsets: Array  # [segments+1]
    query_offsets: Array  # [segments+1]; the key offsets themselves if every row is a query
    key_bias: Array | None = None  # [n] added to the logits of a key


class Projected(NamedTuple):
    """Normed rows and their queries, keys and values; the caches are None without a backward pass."""

    normed: Array  # [n, D]
    q: Array | None  # [m, D]; None until the query rows are known
    k: Array  # [n, D]
    v: Array  # [n, D]
    norm_cache: Any
    gather_cache: Any  # of the gather of the query rows; None if every row is a query
    qkv_cache: Any  # of one linear layer, or of two: (q, kv)


class AttentionCache(NamedTuple):
    """What the backward of an attention sublayer needs."""

    norm_name: str
    attn_name: str
    norm: Any
    gather: Any
    qkv: Any
    attention: Any
    proj: Any


def project_queries_keys_values(context: Context, norm_name: str, attn_name: str, x: Array) -> Projected:
    """Norm, then q, k and v of every row in one matrix product; x [n, D]."""
    ops, D = context.ops, x.shape[1]
    # 1. norm
    normed, norm_cache = ops.layernorm.forward(x, *context.weight_and_bias(norm_name), keep=context.keep)  # [n, D]
    context.record(norm_name, normed)
    # 2. q, k, v
    qkv, cache = ops.linear.forward(normed, *context.weight_and_bias(f"{attn_name}.qkv"), keep=context.keep)  # [n, 3D]
    q, k, v = (ops.arrays.columns(qkv, i * D, (i + 1) * D) for i in range(3))
    return Projected(normed, q, k, v, norm_cache, None, cache)


def project_keys_values(context: Context, norm_name: str, attn_name: str, x: Array) -> Projected:
    """Norm, then k and v of every row: where only some rows are queries (``project_queries``); x [n, D]."""
    ops, D = context.ops, x.shape[1]
    # 1. norm
    normed, norm_cache = ops.layernorm.forward(x, *context.weight_and_bias(norm_name), keep=context.keep)  # [n, D]
    context.record(norm_name, normed)
    # 2. k, v
    weight, bias = context.weight_and_bias(f"{attn_name}.qkv")
    kv, cache = ops.linear.forward(normed, weight[D:], bias[D:], keep=context.keep)  # [n, 2D]
    k, v = ops.arrays.columns(kv, 0, D), ops.arrays.columns(kv, D, 2 * D)
    return Projected(normed, None, k, v, norm_cache, None, (None, cache))


def project_queries(context: Context, attn_name: str, projected: Projected, rows: Array | slice) -> Projected:
    """``projected`` with q filled in for the given rows [m]."""
    D = projected.k.shape[1]
    weight, bias = context.weight_and_bias(f"{attn_name}.qkv")
    normed, gather_cache = context.take_rows(projected.normed, rows)  # [m, D]
    q, q_cache = context.ops.linear.forward(normed, weight[:D], bias[:D], keep=context.keep)  # [m, D]
    return projected._replace(q=q, gather_cache=gather_cache, qkv_cache=(q_cache, projected.qkv_cache[1]))


def attend(
    context: Context, attn_name: str, projected: Projected, segments: Segments, num_heads: int
) -> tuple[Array, Any]:
    """y [m, D], the attention of every query inside its segment, and its cache."""
    q, k, v = projected.q, projected.k, projected.v
    assert q is not None
    for name, tensor in zip("qkv", (q, k, v), strict=True):
        context.record(f"{attn_name}.{name}", tensor)
    # 3. attention
    key_offsets, query_offsets, key_bias = segments
    y, cache = context.ops.attention.forward(
        q, k, v, query_offsets, key_offsets, num_heads, key_bias, keep=context.keep
    )  # [m, D]
    context.record(f"{attn_name}.y", y)
    return y, cache


def project_output(
    context: Context, attn_name: str, y: Array, residual: Array | None, row_scales: Array | None
) -> tuple[Array, Any]:
    """residual + row_scales · proj(y) [m, D], and the cache; row_scales [m] are DropPath's, or None."""
    # 4. projection and skip connection
    proj = context.weight_and_bias(f"{attn_name}.proj")
    out, cache = context.ops.linear.forward(y, *proj, residual, row_scales, keep=context.keep)
    context.record(f"{attn_name}.proj", out)
    return out, cache


def attention_sublayer_forward(
    context: Context,
    norm_name: str,
    attn_name: str,
    x: Array,
    residual: Array | None,
    segments: Segments,
    num_heads: int,
    query_rows: Array | slice | None = None,
    row_scales: Array | None = None,
) -> tuple[Array, AttentionCache | None]:
    """residual + row_scales · proj(attention(qkv(norm(x)))) for the m query rows of x [n, D]: [m, D].

    query_rows [m] names them (None: all n; a slice where no backward pass follows); residual [m, D] and row_scales [m]
    (DropPath's) belong to them.
    """
    if query_rows is None:
        projected = project_queries_keys_values(context, norm_name, attn_name, x)
    else:
        projected = project_keys_values(context, norm_name, attn_name, x)
        projected = project_queries(context, attn_name, projected, query_rows)
    y, attention_cache = attend(context, attn_name, projected, segments, num_heads)
    out, proj_cache = project_output(context, attn_name, y, residual, row_scales)
    return out, attention_cache_of(context, norm_name, attn_name, projected, attention_cache, proj_cache)


def attention_cache_of(
    context: Context, norm_name: str, attn_name: str, projected: Projected, attention_cache: Any, proj_cache: Any
) -> AttentionCache | None:
    """The cache of a sublayer from those of its passes; None without a backward pass."""
    if not context.keep:
        return None
    return AttentionCache(
        norm_name=norm_name,
        attn_name=attn_name,
        norm=projected.norm_cache,
        gather=projected.gather_cache,
        qkv=projected.qkv_cache,
        attention=attention_cache,
        proj=proj_cache,
    )


def attention_sublayer_backward(
    context: Context, dout: Array, cache: AttentionCache, dq_dk: tuple[Array, Array] | None = None
) -> tuple[Array, Array | None]:
    """dx [n, D] and dresidual [m, D] from dout [m, D].

    dq_dk: gradients that reached q and k by another way (the scores of the Glimpser).
    """
    ops, arrays, attn = context.ops, context.ops.arrays, cache.attn_name
    context.record(f"d({attn}.proj)", dout)
    # 4. projection and skip connection
    dy, dweight, dbias, dresidual = ops.linear.backward(dout, cache.proj)
    context.set_gradient(f"{attn}.proj", dweight, dbias)
    context.record(f"d({attn}.y)", dy)
    # 3. attention
    dq, dk, dv = ops.attention.backward(dy, cache.attention)
    if dq_dk is not None:
        dq, dk = arrays.add(dq, dq_dk[0]), arrays.add(dk, dq_dk[1])
    for name, tensor in zip("qkv", (dq, dk, dv), strict=True):
        context.record(f"d({attn}.{name})", tensor)
    # 2. q, k, v
    dnormed, dweight, dbias = _qkv_backward(context, dq, dk, dv, cache)
    context.set_gradient(f"{attn}.qkv", dweight, dbias)
    context.record(f"d({cache.norm_name})", dnormed)
    # 1. norm
    dx, dweight, dbias = ops.layernorm.backward(dnormed, cache.norm)
    context.set_gradient(cache.norm_name, dweight, dbias)
    return dx, dresidual


def _qkv_backward(context: Context, dq: Array, dk: Array, dv: Array, cache: AttentionCache) -> tuple[Array, ...]:
    """dnormed [n, D], dweight [3D, D] and dbias [3D] from dq [m, D], dk and dv [n, D]."""
    ops, arrays = context.ops, context.ops.arrays
    if cache.gather is None:  # every row is a query
        dnormed, dweight, dbias, _ = ops.linear.backward(arrays.join_columns([dq, dk, dv]), cache.qkv)
        return dnormed, dweight, dbias
    q_cache, kv_cache = cache.qkv
    dnormed_q, dweight_q, dbias_q, _ = ops.linear.backward(dq, q_cache)
    dnormed_kv, dweight_kv, dbias_kv, _ = ops.linear.backward(arrays.join_columns([dk, dv]), kv_cache)
    dnormed = arrays.add(dnormed_kv, ops.gather.backward(dnormed_q, cache.gather))
    return dnormed, arrays.join_rows([dweight_q, dweight_kv]), arrays.join_rows([dbias_q, dbias_kv])


# ---- MLP


class MlpCache(NamedTuple):
    """What the backward of an MLP sublayer needs."""

    block: str
    norm: Any
    mlp: Any


def mlp_sublayer_forward(
    context: Context, block: str, x: Array, row_scales: Array | None = None
) -> tuple[Array, MlpCache | None]:
    """x + row_scales · mlp(norm2(x)) for x [n, D]; row_scales [n] are DropPath's, or None."""
    ops = context.ops
    # 1. norm
    normed, norm_cache = ops.layernorm.forward(x, *context.weight_and_bias(f"{block}.norm2"), keep=context.keep)
    context.record(f"{block}.norm2", normed)
    # 2. MLP and skip connection
    fc1, fc2 = context.weight_and_bias(f"{block}.mlp.fc1"), context.weight_and_bias(f"{block}.mlp.fc2")
    out, mlp_cache = ops.mlp.forward(normed, *fc1, *fc2, x, row_scales, keep=context.keep)  # [n, D]
    context.record(f"{block}.mlp", out)
    return out, MlpCache(block, norm_cache, mlp_cache) if context.keep else None


def mlp_sublayer_backward(context: Context, dout: Array, cache: MlpCache) -> Array:
    """dx [n, D] from dout [n, D]."""
    ops, block = context.ops, cache.block
    context.record(f"d({block}.mlp)", dout)
    # 2. MLP and skip connection
    dnormed, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual = ops.mlp.backward(dout, cache.mlp)
    context.set_gradient(f"{block}.mlp.fc1", dfc1_weight, dfc1_bias)
    context.set_gradient(f"{block}.mlp.fc2", dfc2_weight, dfc2_bias)
    context.record(f"d({block}.norm2)", dnormed)
    # 1. norm
    dx, dweight, dbias = ops.layernorm.backward(dnormed, cache.norm)
    context.set_gradient(f"{block}.norm2", dweight, dbias)
    return ops.arrays.add(dx, dresidual)
