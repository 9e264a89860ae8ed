"""`write_kv` in Triton: one program a token."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl


@triton.jit
def _write_kv_kernel(
    key,
    value,
    key_cache,
    value_cache,
    slot_mapping,
    key_stride,
    value_stride,
    ROW_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    column = tl.arange(0, BLOCK)
    inside = column < ROW_SIZE
    place = slot.to(tl.int64) * ROW_SIZE + column
    # 64 bits: token * stride and slot * row pass 2**31 in large caches
    source = token.to(tl.int64)
    tl.store(key_cache + place, tl.load(key + source * key_stride + column, inside), inside)
    tl.store(value_cache + place, tl.load(value + source * value_stride + column, inside), inside)


def write_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """See quire_kernels.write_kv. Slots are trusted: a check would wait for the GPU."""
    num_tokens, num_heads, dim = key.shape
    if num_tokens == 0:
        return
    row_size = num_heads * dim
    _write_kv_kernel[(num_tokens,)](
        *(key, value, key_cache, value_cache, slot_mapping, key.stride(0), value.stride(0)),
        ROW_SIZE=row_size,
        BLOCK=triton.next_power_of_2(row_size),
    )
