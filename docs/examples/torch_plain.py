"""A PyTorch module without a names map: ``refvt check torch_plain:candidate``.

Every tensor that the module computes is compared with the case's named tensors; the parameters are loaded by name.
"""

from torch_port import HaltingVT

from refvt.conformance import adapters

candidate = adapters.torch_model(lambda config, parameters: HaltingVT(config))
broken = adapters.torch_model(lambda config, parameters: HaltingVT(config, bug="tanh"))
