"""LayerNorm over the D channels of every token.

::

    μ = mean(x),  s = 1 / √(mean((x − μ)²) + 10⁻⁶),  x̂ = (x − μ) · s,  y = x̂ · weight + bias

The variance is the biased one. Note LayerNorm(0) = bias: a token whose state was set to zero still enters
attention, as the bias alone. So a halted token of the `zero` variant is not the same as a removed one; the attention
page says what replaces it.

Adjoint, with g = dy · weight: subtract from g whatever would change the mean or the variance::

    dx = s · (g − mean(g) − x̂ · mean(g · x̂)),   dweight = Σ dy · x̂,   dbias = Σ dy

Source: Ba, Kiros, Hinton 2016 (arXiv 1607.06450).
"""

from refvt.ops import Operation

EPS = 1e-6  # added to the variance

OPERATIONS = (
    Operation(
        "layernorm",
        arguments={"x": "n D", "weight": "D", "bias": "D"},
        gradients=("x", "weight", "bias"),
        results={"y": "n D"},
    ),
)
