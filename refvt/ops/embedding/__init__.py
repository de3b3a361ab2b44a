"""From clip to tokens.

Each frame is cut into P×P patches, patch (row i, column j) of frame t flattened in the order (channel, row, column)
and projected to D channels. With s = i · (width/P) + j::

    y[b, 0]           = cls_token + pos_embed[0]
    y[b, 1 + s·T + t] = W · patch(b, s, t) + bias + pos_embed[1 + s] + time_embed[t]

Tokens are patch-major: the T tokens of one patch lie next to each other, which is what temporal attention walks along.
CLS gets no time embedding.

Adjoint: every sum above hands dy on unchanged, so the gradient of an embedding is dy summed over all the tokens it was
added to; dW = Σ dy ⊗ patch. Clips get no gradient.

Source: HaltingVT section 3.1; joint space-time tokens as in TimeSformer (ICML 2021).
"""

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
