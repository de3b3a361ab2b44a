"""refvt: the reference implementation of HaltingVT (arXiv 2401.04975).

``import refvt`` gives the model (``HaltingVT``, ``HaltingVTConfig``, ``load``), its results (``Output``, ``Loss``,
``Trace``, ``Decisions``) and ``static_twins``. The operations are in ``refvt.ops``, one folder per
operation family. ``refvt demo`` on the command line shows tokens halting on a real clip.
"""

from refvt.data import static_twins
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions
from refvt.model.haltingvt import HaltingVT, Loss, Output, Trace, load

__version__ = "0.1.0"

__all__ = [
    "Decisions",
    "HaltingVT",
    "HaltingVTConfig",
    "Loss",
    "Output",
    "Trace",
    "__version__",
    "load",
    "static_twins",
]
