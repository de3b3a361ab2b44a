"""Plain NumPy: the arrays of the reference backend, which the jit backend shares."""
