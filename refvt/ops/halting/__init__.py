"""Token halting: when a token has been thought about enough.

Channel 0 of a token *is* its halting logit; there is no other parameter. Leaving layer l with state x^l the token earns

::

    h^l = σ(γ · x^l[0] − β)   for l < L,      h^L = 1

and token k halts at the first layer N_k where its scores add up to more than 1 − ε (strictly). The last score would
overshoot 1, so it is replaced by the *remainder* r = 1 − (sum of the scores before layer N_k). Then h^1, …, h^(N_k−1),
r are the weights of a probability distribution over layers, and the token's output is the mean of its own states
under it::

    y = Σ_{l<N_k} h^l x^l + r x^N_k,       ρ = N_k + r     (the ponder: how long the token was thought about)

A worked token, β = γ = 10, ε = 0.01: scores 0.3, 0.5, 0.4. After layer 2 the sum is 0.8 ≤ 0.99: go on. After layer 3 it
is 1.2 > 0.99: halt, N_k = 3, r = 1 − 0.8 = 0.2, weights 0.3, 0.5, 0.2, ponder 3.2.

**The local form** needs no memory of the past but one number u, the weight used so far::

    alive after this layer:  weight = h,       u' = u + h
    halts in this layer:     weight = 1 − u,   u' = 1

``halt`` is this step, for all tokens that entered a layer; ``accumulate`` adds weight · x to y; ``halt_tokens`` is the
textbook loop over the two. A token that has halted takes part in neither, whatever its state does later.

Adjoint: the comparison "halted or not" carries no gradient, the remainder does. With W = dweight + du' ::

    alive:  dh = W,  du = du',   dlogit = γ h (1 − h) · W
    halts:  du = −dweight        (u' = 1 is constant, r = 1 − u),   dlogit = 0

Run backward through the layers this gives the closed form dx^l[0] += γ h (1−h) · ( g_y · (x^l − x^N_k) − g_ρ ): a token
is moved to halt earlier where its later state is worse than the earlier one, and by the ponder loss always.

``forced`` replaces the comparison by a given decision, so that another implementation's choices can be followed.

Source: HaltingVT section 3.3, equations 4–8; A-ViT (CVPR 2022); the remainder goes back to ACT (arXiv 1603.08983).
"""

import numpy as np

from refvt.array import Array
from refvt.ops import Operation

OPERATIONS = (
    Operation(
        "halt",
        arguments={"logit": "n", "used": "n", "forced": "n"},
        gradients=("logit", "used"),
        settings=("scale", "center", "epsilon", "last"),
        optional=("forced",),
        results={"weight": "n", "used_next": "n", "halted": "n"},
        differentiable=("weight", "used_next"),
    ),
    Operation(
        "accumulate",
        arguments={"y": "n D", "x": "n D", "weight": "n"},
        gradients=("y", "x", "weight"),
        results={"y_next": "n D"},
    ),
    Operation(
        "halt_tokens",
        arguments={"states": "L N D", "forced": "N"},
        gradients=("states",),
        settings=("scale", "center", "epsilon"),
        optional=("forced",),
        results={"y": "N D", "ponder": "N", "halting_layer": "N"},
        differentiable=("y", "ponder"),
    ),
)


def check_states(states: Array, epsilon: float, forced: Array | None) -> None:
    """ValueError unless ``halt_tokens`` can take these: states [L, N, D], L ≥ 1; 0 < ε < 1; forced [N] of 1 … L."""
    if states.ndim != 3 or states.shape[0] < 1:
        raise ValueError(f"states: expected [L, N, D] with L ≥ 1, got shape {states.shape}")
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon: expected a number between 0 and 1, got {epsilon}")
    if forced is None:
        return
    L, N, _ = states.shape
    layers = np.asarray(forced)
    if layers.shape != (N,) or layers.dtype.kind not in "iu":
        raise ValueError(f"forced: expected halting layers, integers [{N}], got {layers.dtype} {list(layers.shape)}")
    if N > 0 and not (layers.min() >= 1 and layers.max() <= L):
        raise ValueError(f"forced: expected halting layers from 1 to {L}, got {layers.min()} to {layers.max()}")
