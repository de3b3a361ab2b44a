"""Numba on the CPU: one thread pool, one matrix micro-kernel, the workspace that operations borrow from."""
