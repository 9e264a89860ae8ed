"""Messages for arguments that break an op's contract, put together only once something is wrong."""

import torch

from quire_kernels.errors import KernelInputError


def describe(tensor: torch.Tensor) -> str:
    """Shape, dtype, device and strides in a few words."""
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    return f"{tensor.dtype} {list(shape)} strides {list(stride)} on {tensor.device}"


def bad_input(rule: str, **tensors: torch.Tensor) -> KernelInputError:
    """The error for a broken rule, with what was given."""
    given = "; ".join(f"{name} is {describe(tensor)}" for name, tensor in tensors.items())
    return KernelInputError(f"{rule}; {given}")
