"""`write_kv` in C++."""

import struct

import torch

from quire_kernels.checks import bad_input
from quire_kernels.errors import KernelInputError
from quire_kernels.library import Library

# the call's arguments as csrc/variant.cpp lays them out
_CALL = struct.Struct("10q").pack


class CppWriteKv:
    """The cache write of one compiled variant."""

    def __init__(self, library: Library) -> None:
        self._write_kv = library.function("quire_write_kv")

    def write_kv(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """See quire_kernels.write_kv."""
        num_tokens, num_heads, dim = key.shape
        key_stride, value_stride = key.stride(), value.stride()
        if (
            key.dtype is not torch.float32
            or value.dtype is not torch.float32
            or value.shape != key.shape
            or key_stride[1:] != (dim, 1)
            or value_stride[1:] != (dim, 1)
        ):
            raise bad_input(
                "key and value must be float32 [T, Hkv, D], heads next to each other",
                key=key,
                value=value,
            )
        cache_shape = key_cache.shape
        if (
            key_cache.dtype is not torch.float32
            or value_cache.dtype is not torch.float32
            or cache_shape[2:] != (num_heads, dim)
            or value_cache.shape != cache_shape
            or not key_cache.is_contiguous()
            or not value_cache.is_contiguous()
        ):
            raise bad_input(
                f"caches must be contiguous float32 [blocks, block_size, {num_heads}, {dim}]",
                key_cache=key_cache,
                value_cache=value_cache,
            )
        if (
            slot_mapping.dtype is not torch.int64
            or slot_mapping.shape != (num_tokens,)
            or not slot_mapping.is_contiguous()
        ):
            raise bad_input(
                f"slot_mapping must be a contiguous int64 [{num_tokens}]", slot_mapping=slot_mapping
            )
        num_slots = cache_shape[0] * cache_shape[1]
        bad = self._write_kv(
            _CALL(
                *(key.data_ptr(), key_stride[0], value.data_ptr(), value_stride[0]),
                *(num_tokens, num_heads * dim, key_cache.data_ptr(), value_cache.data_ptr()),
                *(num_slots, slot_mapping.data_ptr()),
            )
        )
        if bad >= 0:
            raise KernelInputError(
                f"slots must be -1 or lie in [0, {num_slots}), "
                f"got {int(slot_mapping[bad])} for token {bad}"
            )
