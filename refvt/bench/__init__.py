"""The stopwatch: refvt against PyTorch and against what the machine can do, interleaved."""
