"""numba.cuda on a GPU: how kernels are declared and launched, device memory, matrix products, CUDA graphs."""
