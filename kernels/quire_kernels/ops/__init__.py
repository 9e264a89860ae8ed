"""One folder an op: its torch reference beside its C++ kernel, and its Triton kernel where a GPU needs one."""
