"""Adapters: what somebody has written becomes something that refvt can check.

- ``torch_model`` makes a candidate of a PyTorch module: parameters, outputs, intermediate tensors, gradients.
- ``torch_operation`` and ``jax_operation`` make an operation with its backward of a differentiable function.
- ``on_host`` gives the operations of a GPU backend NumPy arguments and results.

PyTorch and JAX are imported when an adapter is used, never before.
"""

from refvt.conformance.adapters.host import on_host
from refvt.conformance.adapters.operations import jax_operation, torch_operation
from refvt.conformance.adapters.torch_candidate import torch_model

__all__ = ["jax_operation", "on_host", "torch_model", "torch_operation"]
