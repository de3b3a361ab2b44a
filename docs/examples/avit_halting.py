"""A-ViT's halting told from HaltingVT's: ``refvt check avit_halting:avit``.

A-ViT (CVPR 2022) is the parent of HaltingVT. Its released code has a scale of 10 and a centre of 30 of its own, and a
halted token is no key any more: its attention logits are −∞. A port of A-ViT's rule is no broken HaltingVT, and
``refvt check`` says so.
"""

from dataclasses import replace

from torch_port import HaltingVT

from refvt.conformance import adapters

GATE_SCALE, GATE_CENTER, EPSILON = 10.0, 30.0, 0.01


def build_with_avit_halting(config, parameters):
    """Everything as in the case's configuration, but for halting."""
    rule = {"halting_scale": GATE_SCALE, "halting_center": GATE_CENTER, "epsilon": EPSILON, "halted_keys": "masked"}
    return HaltingVT(replace(config, **rule))


candidate = adapters.torch_model(lambda config, parameters: HaltingVT(config))
avit = adapters.torch_model(build_with_avit_halting)
