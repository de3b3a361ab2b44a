"""Multi-head attention inside segments of packed rows.

The rows of a batch lie one after another; ``offsets`` (the ``cu_seqlens`` of other attention kernels) cut them into
segments (a clip, a frame, one patch over time), and attention never crosses a cut. Segment i holds the queries
``query_offsets[i] : query_offsets[i+1]`` and the keys and values ``key_offsets[i] : key_offsets[i+1]``. Every row is
split into ``num_heads`` heads of width d::

    logits  = q kᵀ / √d + key_bias           one bias per key, the same for every head and query
    weights = softmax(logits)                over the keys of the segment
    y       = weights · v

The key bias does two jobs. −∞ means "this is no key" (halted tokens of the `masked` variant). log m means "this key
stands for m identical ones": e^(logit + log m) = m · e^logit, so one ghost token can replace all m halted tokens of the
`zero` variant, exactly. Backward likewise: the ghost's dk and dv are the sums of those of the m copies. A segment
without any key answers y = 0 and gets no gradient.

Adjoint, with w the weights: ``dv = wᵀ dy``, ``dw = dy vᵀ``, and through the softmax
``dlogits = w · (dw − Σ_keys w · dw)``, then ``dq = dlogits k / √d``, ``dk = dlogitsᵀ q / √d``. The key bias is data
(a mask, a count) and has no gradient. Where q, k and v have the same number of rows, a backend may return dq, dk and dv
as columns of one array [n, 3D], the gradient of qkv: ``join_columns`` then joins them without a copy.

Source: Vaswani et al. 2017 (arXiv 1706.03762); packed segments as in variable-length attention kernels.
"""

import math

from refvt.ops import Operation

LOG2_E = 1 / math.log(2)  # fast backends keep logits in powers of two: 2^(x · log₂ e) = e^x

OPERATIONS = (
    Operation(
        "attention",
        arguments={
            "q": "n D",
            "k": "m D",
            "v": "m D",
            "query_offsets": "segments+1",
            "key_offsets": "segments+1",
            "key_bias": "m",
        },
        gradients=("q", "k", "v"),
        settings=("num_heads",),
        optional=("key_bias",),
        results={"y": "n D"},
    ),
)
