"""The MLP of a block, and its activation.

::

    gelu(x) = x · Φ(x),   Φ(x) = ½ erfc(−x/√2)         (exact, not the tanh approximation)
    mlp(x)  = residual + gain · ( gelu(x W₁ᵀ + b₁) W₂ᵀ + b₂ )

Φ is written with erfc, not ½(1 + erf(x/√2)): far left of zero 1 + erf cancels to nothing and every digit of the tail
would be lost.

Adjoint: gelu'(x) = Φ(x) + x · φ(x) with φ the normal density; the two linear layers as in ``ops/linear``.

Source: Hendrycks, Gimpel 2016 (arXiv 1606.08415).
"""

from refvt.ops import Operation

OPERATIONS = (
    Operation("gelu", arguments={"x": "n F"}, gradients=("x",), results={"y": "n F"}),
    Operation(
        "mlp",
        arguments={
            "x": "n D",
            "fc1_weight": "F D",
            "fc1_bias": "F",
            "fc2_weight": "D F",
            "fc2_bias": "D",
            "residual": "n D",
            "gain": "n",
        },
        gradients=("x", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "residual"),
        optional=("residual", "gain"),
        results={"y": "n D"},
    ),
)
