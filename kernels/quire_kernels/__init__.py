"""Attention, cache and linear kernels: a torch reference, C++ for CPUs, Triton for GPUs."""
