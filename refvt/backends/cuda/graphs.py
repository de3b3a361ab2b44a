"""Forward passes that are launched as one CUDA graph.

A pass that needs no answer from the device launches the same kernels on the same memory every time, whichever tokens
halt. So it is captured once as a CUDA graph and is one launch from then on. This saves the host's time for some two
hundred launches, which takes longer than the GPU's for one or two clips. The clips are copied to the graph's static
input, and its results are copied out.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from refvt.backends.cuda.device_array import DeviceArray, empty
from refvt.backends.cuda.driver import driver
from refvt.backends.cuda.kernel import WATCHERS
from refvt.backends.cuda.memory import DriverError, Graph
from refvt.backends.cuda.upload import copies_used

__all__ = ["GraphCache"]

MOST_GRAPHS = 8  # per model: each holds the memory of a forward pass
MAX_FAILURES = 3  # of a capture, before it is given up


class _CapturedPass:
    """One kind of pass: its graph once it is captured, and the number of failed captures."""

    def __init__(self) -> None:
        self.failures = 0
        self.static_input: Any = None  # the clips that the graph reads
        self.graph: Graph | None = None
        self.copies: list[Any] = []  # uploaded arrays that the graph reads


class GraphCache:
    """CUDA graphs of one model's forward passes.

    The first pass of a kind is launched kernel by kernel, which loads the kernels; the second is captured.
    """

    def __init__(self) -> None:
        self._passes: OrderedDict[Any, _CapturedPass] = OrderedDict()
        self._busy: Any = None  # the kind that is being captured or replayed
        self._lock = threading.RLock()

    def __call__(self, way: Any, parameters: Mapping[str, Any], function: Callable[[Any], Any], clips: Any) -> Any:
        """function(clips): arrays, in tuples and lists.

        way: all that decides which kernels the function launches, except the clips' shape and the parameters'
        addresses.
        """
        if WATCHERS or not driver().can_capture:
            return function(clips)
        key = way, clips.shape, str(clips.dtype), tuple(value.address for value in parameters.values())
        with self._lock:
            found = self._passes.get(key)
            if found is not None and found.failures < MAX_FAILURES:
                self._busy = key
                try:
                    self._passes.move_to_end(key)
                    if found.graph is not None or self._capture(found, function, clips):
                        return self._replay(found, clips)
                finally:
                    self._busy = None
        result = function(clips)
        with self._lock:
            if key not in self._passes:
                self._passes[key] = _CapturedPass()
                while len(self._passes) > MOST_GRAPHS:
                    self._passes.popitem(last=False)
        return result

    def clear(self) -> None:
        """Drop all graphs except one in use; does nothing while another thread uses them."""
        if self._lock.acquire(blocking=False):
            try:
                for key in [key for key in self._passes if key != self._busy]:
                    del self._passes[key]
            finally:
                self._lock.release()

    def _capture(self, captured: _CapturedPass, function: Callable[[Any], Any], clips: Any) -> bool:
        with driver().lock:
            driver().cache_owners.add(self)  # asked to ``clear`` when memory is short
        try:
            static_input: Any = empty(clips.shape, clips.dtype)
            with copies_used() as copies:
                graph = driver().capture(lambda: function(static_input))
        except DriverError as error:
            captured.failures += 1
            if captured.failures == MAX_FAILURES:
                warnings.warn(
                    f"cuda: this forward pass cannot be captured as a graph ({error}): it runs kernel by kernel",
                    stacklevel=5,
                )
            return False
        captured.static_input, captured.graph, captured.copies = static_input, graph, copies
        return True

    @staticmethod
    def _replay(captured: _CapturedPass, clips: Any) -> Any:
        assert captured.graph is not None
        captured.static_input.write(clips)
        captured.graph.replay()
        return _copy(captured.graph.result)


def _copy(found: Any) -> Any:
    """Fresh copies of the arrays in ``found``, in the same tuples and lists."""
    if isinstance(found, DeviceArray):
        fresh: Any = empty(found.shape, found.dtype)
        fresh.write(found)
        return fresh
    if isinstance(found, (tuple, list)):
        parts = map(_copy, found)
        return type(found)(*parts) if hasattr(found, "_fields") else type(found)(parts)
    return found
