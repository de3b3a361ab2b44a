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

from refvt.backends.cuda.device_array import DeviceArray
from refvt.backends.cuda.driver import driver
from refvt.backends.cuda.kernel import WATCHERS, copies_used, empty
from refvt.backends.cuda.memory import DriverError, Recording

__all__ = ["GraphCache"]

MOST = 8  # recordings of a model: each holds the memory of a forward pass
TRIES = 3  # of a recording that does not come about


class _Way:
    """One kind of pass: how often it could not be recorded, and the recording, once there is one."""

    def __init__(self) -> None:
        self.failures = 0
        self.held: Any = None  # where the recording reads its clips
        self.recording: Recording | None = None
        self.copies: list[Any] = []  # arrays of others that it reads


class GraphCache:
    """Of one model. The first call of a kind is made as it stands: kernels are loaded. The second is recorded."""

    def __init__(self) -> None:
        self._known: OrderedDict[Any, _Way] = OrderedDict()
        self._busy: Any = None  # the kind that is just being recorded or played
        self._lock = threading.RLock()

    def __call__(self, way: Any, parameters: Mapping[str, Any], function: Callable[[Any], Any], clips: Any) -> Any:
        """function(clips): arrays, in tuples and lists.

        way: all that decides what the function launches, but clips' shape and where the parameters lie.
        """
        if WATCHERS or not driver().records:
            return function(clips)
        key = way, clips.shape, str(clips.dtype), tuple(value.address for value in parameters.values())
        with self._lock:
            found = self._known.get(key)
            if found is not None and found.failures < TRIES:
                self._busy = key
                try:
                    self._known.move_to_end(key)
                    if found.recording is not None or self._record(found, function, clips):
                        return self._play(found, clips)
                finally:
                    self._busy = None
        result = function(clips)
        with self._lock:
            if key not in self._known:
                self._known[key] = _Way()
                while len(self._known) > MOST:
                    self._known.popitem(last=False)
        return result

    def clear(self) -> None:
        """Give up all recordings but one that is just being made or played, if no other thread is at it."""
        if self._lock.acquire(blocking=False):
            try:
                for key in [key for key in self._known if key != self._busy]:
                    del self._known[key]
            finally:
                self._lock.release()

    def _record(self, way: _Way, function: Callable[[Any], Any], clips: Any) -> bool:
        with driver().lock:
            driver().hoards.add(self)  # whoever needs memory may ask for ours
        try:
            held: Any = empty(clips.shape, clips.dtype)
            with copies_used() as copies:
                recording = driver().record(lambda: function(held))
        except DriverError as error:
            way.failures += 1
            if way.failures == TRIES:
                warnings.warn(f"cuda: this forward pass cannot be recorded ({error}): it runs as before", stacklevel=5)
            return False
        way.held, way.recording, way.copies = held, recording, copies
        return True

    @staticmethod
    def _play(way: _Way, clips: Any) -> Any:
        assert way.recording is not None
        way.held.write(clips)
        way.recording.play()
        return _copied(way.recording.result)


def _copied(found: Any) -> Any:
    """Arrays of their own, with what stands in these."""
    if isinstance(found, DeviceArray):
        fresh: Any = empty(found.shape, found.dtype)
        fresh.write(found)
        return fresh
    if isinstance(found, (tuple, list)):
        parts = map(_copied, found)
        return type(found)(*parts) if hasattr(found, "_fields") else type(found)(parts)
    return found
