"""The three losses.

::

    cross_entropy = mean over clips of −Σ_c target[c] · log softmax(logits)[c]
    ponder_loss   = mean of w · ρ over all tokens that entered the joint blocks (CLS included) and all clips
    motion_loss   = two-class cross-entropy: is the clip moving (1) or a static twin (0)?

Targets are class numbers or soft rows; smoothing s turns target p into (1 − s) · p + s/K. The weights w of the ponder
loss are 1 in the paper, and if none are given. Other weights are the variant *changing_ponder* (docs/training.md).

Adjoint: dlogits = (softmax(logits) · Σ target − target) / B;  dρ = w / (number of tokens).

Source: HaltingVT section 3.4, equations 9–11.
"""

from refvt.ops import Operation

OPERATIONS = (
    Operation(
        "cross_entropy",
        arguments={"logits": "B K", "targets": "B"},
        gradients=("logits",),
        settings=("label_smoothing",),
        results={"loss": ""},
    ),
    Operation(
        "ponder_loss",
        arguments={"ponder": "B N", "weights": "B N"},
        gradients=("ponder",),
        optional=("weights",),
        results={"loss": ""},
    ),
    Operation(
        "motion_loss",
        arguments={"logits": "B 2", "moving": "B"},
        gradients=("logits",),
        results={"loss": ""},
    ),
)
