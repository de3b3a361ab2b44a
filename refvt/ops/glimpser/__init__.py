"""The Glimpser's choice: which patches of each frame are kept.

After spatial attention inside a frame (CLS and S patches), the CLS row of the attention weights says how much each
patch contributed to the answer of CLS. Averaged over heads it is the patch's score::

    scores[f, s] = mean over heads of softmax(q_CLS kᵀ / √d)[s]      the softmax runs over all 1 + S keys, CLS included
    kept[f]      = the k patches of highest score, in descending order; equal scores: the lower index first
    fused[f]     = Σ over the dropped patches of scores[f, s] · x[f, s]          (option "fuse"; not normalised)

The order matters only if another Glimpser block follows: its temporal attention runs along ranks.

Adjoint: ``top_k`` is a decision, it has none. The scores get a gradient only through ``fuse_dropped``
(dscores = ⟨dfused, x⟩ on dropped patches, 0 on kept ones), and hand it to q_CLS and the keys through the softmax.

Source: HaltingVT section 3.2; attentive token selection and fusion as in EViT (ICLR 2022).
"""

import numpy as np

from refvt.array import Array
from refvt.ops import Operation

OPERATIONS = (
    Operation(
        "cls_scores",
        arguments={"q": "segments*(1+S) D", "k": "segments*(1+S) D", "offsets": "segments+1"},
        gradients=("q", "k"),
        settings=("num_heads",),
        results={"scores": "segments S"},
    ),
    Operation(
        "top_k",
        arguments={"scores": "segments S"},
        settings=("k",),
        results={"kept": "segments k"},
        differentiable=(),
    ),
    Operation(
        "fuse_dropped",
        arguments={"x": "segments*S D", "scores": "segments S", "kept": "segments k"},
        gradients=("x", "scores"),
        results={"fused": "segments D"},
    ),
)


def equal_lengths(offsets: Array) -> Array:
    """Number of rows of each segment [segments], all 1 + S. ValueError if they differ."""
    lengths = np.diff(offsets)
    if (lengths != lengths[0]).any():
        raise ValueError(f"offsets: expected segments of one length, 1 + S, got lengths {np.unique(lengths)}")
    return lengths


def check_k(scores: Array, k: int) -> None:
    """ValueError unless 1 ≤ k ≤ S."""
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k: expected 1 to {scores.shape[1]} (the number of scores in a row), got {k}")
