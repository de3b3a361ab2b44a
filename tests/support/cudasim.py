"""Preparation of numba-cuda's simulator for the tests: a fix, and more speed.

The simulator makes a block's shared arrays on first use, by looking up the call stack, without a lock: two threads can
each make their own. Here the look-up is one dictionary access under a lock.
"""

import sys
import threading

import numpy as np


def prepare():
    """Call once before a kernel runs; does nothing outside the simulator."""
    from numba.cuda.core import config

    if not config.ENABLE_CUDASIM:
        return
    from numba.cuda.np import numpy_support
    from numba.cuda.simulator import kernelapi

    lock = threading.Lock()

    def array(self, shape, dtype, alignment=None):
        frame = sys._getframe(1)
        place = frame.f_code.co_filename, frame.f_lineno
        if not isinstance(dtype, np.dtype | type):
            dtype = numpy_support.as_dtype(dtype)
        with lock:
            if place not in self._allocations:
                self._allocations[place] = np.empty(shape, dtype)
            return self._allocations[place]

    kernelapi.FakeCUDAShared.array = array
    sys.setswitchinterval(1e-4)
