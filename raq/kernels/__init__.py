"""int8 kernels for GPUs, in Triton, with the integer arithmetic that they must reproduce, as operators of torch."""
