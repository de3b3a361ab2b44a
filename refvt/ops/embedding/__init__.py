"""From clip to tokens.

Each frame is cut into P×P patches, patch (row i, column j) of frame t flattened in the order (channel, row, column)
and projected to D channels. With s = i · (width/P) + j::

    y[b, 0]           = cls_token + pos_embed[0]
    y[b, 1 + s·T + t] = W · patch(b, s, t) + bias + pos_embed[1 + s] + time_embed[t]

Tokens are patch-major: the T tokens of one patch are adjacent, which is the order that temporal attention needs.
CLS gets no time embedding.

Adjoint: every sum above passes dy on unchanged, so the gradient of an embedding is dy summed over all the tokens it was
added to; dW = Σ dy ⊗ patch. Clips get no gradient.

Source: HaltingVT section 3.1; joint space-time tokens as in TimeSformer (ICML 2021).
"""

from refvt.array import Array
from refvt.ops import Operation

OPERATIONS = (
    Operation(
        "embed",
        arguments={
            "clips": "B C T H W",
            "weight": "D C P P",
            "bias": "D",
            "cls_token": "1 1 D",
            "pos_embed": "1 1+S D",
            "time_embed": "1 T D",
        },
        gradients=("weight", "bias", "cls_token", "pos_embed", "time_embed"),
        results={"y": "B*(1+S*T) D"},
    ),
)


def check_frames(clips: Array, P: int) -> None:
    """ValueError unless height and width of clips [B, C, T, H, W] are multiples of the patch side P."""
    H, W = clips.shape[3:]
    if H % P or W % P:
        raise ValueError(f"clips: expected height and width to be multiples of {P}, got {H}×{W}")
