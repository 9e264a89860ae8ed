"""`rope` in C++."""

import struct

import torch

from quire_kernels.checks import bad_input
from quire_kernels.errors import KernelInputError
from quire_kernels.library import Library

# the call's arguments as csrc/variant.cpp lays them out
_CALL = struct.Struct("11q").pack


class CppRope:
    """The rotation of one compiled variant."""

    def __init__(self, library: Library) -> None:
        self._rope = library.function("quire_rope")

    def rope(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
    ) -> None:
        """See quire_kernels.rope."""
        (num_tokens, num_heads, dim), key_shape = query.shape, key.shape
        query_stride, key_stride = query.stride(), key.stride()
        if (
            query.dtype is not torch.float32
            or key.dtype is not torch.float32
            or query_stride[1:] != (dim, 1)
            or key_stride[1:] != (dim, 1)
            or key_shape[0] != num_tokens
            or key_shape[2] != dim
            or dim % 2
        ):
            raise bad_input(
                "query and key must be float32 [T, heads, D], D even, heads next to each other",
                query=query,
                key=key,
            )
        if positions.dtype is not torch.int64 or positions.shape != (num_tokens,):
            raise bad_input(f"positions must be int64 [{num_tokens}]", positions=positions)
        if (
            cos_sin.dtype is not torch.float32
            or cos_sin.shape[1] != dim
            or not cos_sin.is_contiguous()
            or not positions.is_contiguous()
        ):
            raise bad_input(
                f"cos_sin must be a contiguous float32 [P, {dim}]",
                cos_sin=cos_sin,
                positions=positions,
            )
        bad = self._rope(
            _CALL(
                *(query.data_ptr(), query_stride[0], num_heads),
                *(key.data_ptr(), key_stride[0], key_shape[1], num_tokens, dim),
                *(positions.data_ptr(), cos_sin.data_ptr(), cos_sin.shape[0]),
            )
        )
        if bad >= 0:
            raise KernelInputError(
                f"positions must lie in [0, {cos_sin.shape[0]}) as cos_sin has that many rows, "
                f"got {int(positions[bad])} for token {bad}"
            )
