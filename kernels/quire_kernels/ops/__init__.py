"""One folder an op: torch reference, C++ kernel, Triton kernel where a GPU needs one."""
