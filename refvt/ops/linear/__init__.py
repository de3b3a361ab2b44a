"""A linear layer with the residual addition that almost always follows it.

::

    y = residual + gain · (x Wᵀ + b)

W is [out, in], as PyTorch stores it. ``residual`` and ``gain`` (one number per row) are optional. The gain is the
DropPath scale: 0 where a path is dropped, 1/(keep probability) where it survives. Both are one pass over the tile a
matrix multiply has just written, which is why they belong to this operation.

Adjoint, with g = gain · dy::

    dx = g W,   dW = gᵀ x,   db = Σ g,   dresidual = dy
"""

from refvt.ops import Operation

OPERATIONS = (
    Operation(
        "linear",
        arguments={"x": "n E", "weight": "D E", "bias": "D", "residual": "n D", "gain": "n"},
        gradients=("x", "weight", "bias", "residual"),
        optional=("residual", "gain"),
        results={"y": "n D"},
    ),
)
