"""Forward passes that are launched as a whole.

A pass that asks the host for nothing launches the same kernels on the same places every time, whoever halts. So it is
written down once, as a graph of the driver's, and from then on is one launch: the host's time for some two hundred of
them, longer than the GPU's for a clip or two, is gone. The clips are copied to where the recording reads them, and what
it writes is copied out.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from refvt.backends.cuda import WATCHERS, empty
from refvt.backends.cuda_array import DeviceArray
from refvt.backends.cuda_driver import driver
from refvt.backends.cuda_memory import DriverError, Recording

__all__ = ["Replays"]

MOST = 8  # recordings of a model: each holds the memory of a forward pass


class Replays:
    """Of one model. The first call of a kind is made as it stands: kernels are loaded. The second is recorded."""

    def __init__(self) -> None:
        # None: called once; else where the recording reads its clips, and the recording if there could be one
        self._known: OrderedDict[Any, tuple[Any, Recording | None] | None] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, way: Any, parameters: Mapping[str, Any], function: Callable[[Any], Any], clips: Any) -> Any:
        """function(clips): arrays, in tuples and lists.

        way: all that decides what the function launches, but clips' shape and where the parameters lie.
        """
        if WATCHERS or not driver().records:
            return function(clips)
        driver().hoards.add(self)
        key = way, clips.shape, str(clips.dtype), tuple(value.address for value in parameters.values())
        with self._lock:
            if key not in self._known:
                self._known[key] = None
                while len(self._known) > MOST:
                    self._known.popitem(last=False)
                return function(clips)
            self._known.move_to_end(key)
            found = self._known[key]
            if found is None:
                found = self._known[key] = self._recorded(function, clips)
            held, recording = found
            if recording is None:
                return function(clips)
            held.write(clips)
            recording.play()
            return _copied(recording.result)

    def clear(self) -> None:
        """Give up all recordings, unless one is just being made or played."""
        if self._lock.acquire(blocking=False):
            try:
                self._known.clear()
            finally:
                self._lock.release()

    @staticmethod
    def _recorded(function: Callable[[Any], Any], clips: Any) -> tuple[Any, Recording | None]:
        held: Any = empty(clips.shape, clips.dtype)
        try:
            return held, driver().record(lambda: function(held))
        except DriverError as error:
            warnings.warn(f"cuda: this forward pass cannot be recorded ({error}): it runs as before", stacklevel=5)
            return None, None


def _copied(found: Any) -> Any:
    """Arrays of their own, with what stands in these."""
    if isinstance(found, DeviceArray):
        fresh: Any = empty(found.shape, found.dtype)
        fresh.write(found)
        return fresh
    if isinstance(found, tuple) and hasattr(found, "_fields"):
        return type(found)(*map(_copied, found))
    return [_copied(part) for part in found] if isinstance(found, list) else found
