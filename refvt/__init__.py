"""refvt: the reference implementation of HaltingVT (arXiv 2401.04975).

``import refvt`` gives the model (``HaltingVT``, ``HaltingVTConfig``, ``load``), its results (``Output``, ``Loss``,
``Trace``, ``Decisions``) and ``static_twins``. The operations are in ``refvt.ops``, one folder per
operation family. ``refvt demo`` on the command line shows tokens halting on a real clip.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOME = {
    "static_twins": "refvt.data",
    "HaltingVTConfig": "refvt.model.config",
    "Decisions": "refvt.model.decisions",
    **dict.fromkeys(("HaltingVT", "Loss", "Output", "Trace", "load"), "refvt.model.haltingvt"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: pytest imports refvt for its plugin, in suites that never use it."""
    if name in _HOME:
        found = getattr(import_module(_HOME[name]), name)
    elif not name.startswith("_") and find_spec(f"refvt.{name}") is not None:
        found = import_module(f"refvt.{name}")
    else:
        raise AttributeError(f"module 'refvt' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
