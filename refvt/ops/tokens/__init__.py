"""Copying, dropping and averaging rows: the only way tokens are reordered, repeated, merged or removed.

::

    gather(x, index)[i]        = x[index[i]],  or a zero row where index[i] = −1
    segment_mean(x, offsets)[i] = mean of the rows offsets[i] : offsets[i+1]

With gather, one array of indices expresses frame order, CLS copies, selection, compaction or an added zero row (the
ghost). The zero row is also how a halted token of the `zero` variant is set to zero: its later states do not matter, so
no gradient may come back through it, and none does.

Adjoint: a row gets the *sum* of the gradients of all its copies, always added in the order of the index (so the result
is the same on every run); a mean spreads its gradient evenly.
"""

import numpy as np

from refvt.array import Array
from refvt.ops import Operation

OPERATIONS = (
    Operation(
        "gather",
        arguments={"x": "n ...", "index": "m"},
        gradients=("x",),
        results={"y": "m ..."},
    ),
    Operation(
        "segment_mean",
        arguments={"x": "n D", "offsets": "segments+1"},
        gradients=("x",),
        results={"y": "segments D"},
    ),
)


def segment_lengths(offsets: Array) -> Array:
    """Number of rows of each segment [segments]. ValueError if one is empty: the mean of nothing is not a number."""
    lengths = np.diff(offsets)
    if (lengths < 1).any():
        raise ValueError(f"offsets: segment {int(np.argmin(lengths))} is empty, a mean needs at least one row")
    return lengths
