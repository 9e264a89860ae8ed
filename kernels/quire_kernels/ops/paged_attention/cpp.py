"""`paged_attention` in C++."""

import struct

import torch

from quire_kernels.checks import bad_input
from quire_kernels.errors import KernelInputError
from quire_kernels.library import Library

# AttentionArgs in kernel.h
_CALL = struct.Struct("16qdq").pack

# AttentionFault in kernel.h
_FAULTS = {
    1: "query_start_loc must rise from 0 to at most the number of query tokens",
    2: "seq_lens must count this sequence's queries and fit into its block table",
    3: "block_tables must name blocks of the cache for every key up to seq_lens",
}


class CppPagedAttention:
    """Attention of one compiled variant."""

    def __init__(self, library: Library) -> None:
        self._attention = library.function("quire_paged_attention")

    def paged_attention(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        query_start_loc: torch.Tensor,
        seq_lens: torch.Tensor,
        block_tables: torch.Tensor,
        scale: float,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See quire_kernels.paged_attention."""
        num_tokens, num_heads, dim = query.shape
        num_blocks, block_size, num_kv_heads, _ = key_cache.shape
        query_stride = query.stride()
        if (
            query.dtype is not torch.float32
            or query_stride[1:] != (dim, 1)
            or num_heads % num_kv_heads
        ):
            raise bad_input(
                f"query must be float32 [T, Hq, D], heads next to each other, Hq a multiple of "
                f"Hkv = {num_kv_heads}",
                query=query,
            )
        _check_caches(key_cache, value_cache, dim)
        num_seqs = seq_lens.shape[0]
        _check_metadata(query_start_loc, seq_lens, block_tables)
        if out is None:
            out = torch.empty(num_tokens, num_heads, dim, dtype=torch.float32)
        elif out.shape != query.shape or out.dtype is not torch.float32 or not out.is_contiguous():
            raise bad_input("out must be a contiguous float32 of query's shape", out=out)
        fault = self._attention(
            _CALL(
                *(query.data_ptr(), query_stride[0], key_cache.data_ptr(), value_cache.data_ptr()),
                *(num_blocks, block_size, num_heads, num_kv_heads, dim),
                *(query_start_loc.data_ptr(), seq_lens.data_ptr(), block_tables.data_ptr()),
                *(block_tables.stride()[0], block_tables.shape[1], num_seqs, num_tokens),
                *(scale, out.data_ptr()),
            )
        )
        if fault:
            raise _metadata_error(fault, query_start_loc, seq_lens, block_tables)
        return out


def _check_caches(key_cache: torch.Tensor, value_cache: torch.Tensor, dim: int) -> None:
    if (
        key_cache.dtype is not torch.float32
        or value_cache.dtype is not torch.float32
        or key_cache.shape != value_cache.shape
        or key_cache.shape[3] != dim
        or not key_cache.is_contiguous()
        or not value_cache.is_contiguous()
    ):
        raise bad_input(
            f"caches must be contiguous float32 [blocks, block_size, Hkv, {dim}]",
            key_cache=key_cache,
            value_cache=value_cache,
        )


def _check_metadata(
    query_start_loc: torch.Tensor, seq_lens: torch.Tensor, block_tables: torch.Tensor
) -> None:
    num_seqs = seq_lens.shape[0]
    if (
        query_start_loc.dtype is not torch.int32
        or seq_lens.dtype is not torch.int32
        or block_tables.dtype is not torch.int32
        or query_start_loc.shape != (num_seqs + 1,)
        or block_tables.dim() != 2
        or block_tables.shape[0] != num_seqs
        or not query_start_loc.is_contiguous()
        or not seq_lens.is_contiguous()
        or (block_tables.shape[1] > 1 and block_tables.stride()[1] != 1)
    ):
        raise bad_input(
            "query_start_loc [B+1], seq_lens [B] and block_tables [B, max_blocks] must be int32",
            query_start_loc=query_start_loc,
            seq_lens=seq_lens,
            block_tables=block_tables,
        )


def _metadata_error(
    fault: int, query_start_loc: torch.Tensor, seq_lens: torch.Tensor, block_tables: torch.Tensor
) -> KernelInputError:
    seq = fault // 4
    return KernelInputError(
        f"{_FAULTS[fault % 4]}; sequence {seq} has queries "
        f"{query_start_loc[seq : seq + 2].tolist()}, length {int(seq_lens[seq])} and blocks "
        f"{block_tables[seq].tolist()[:32]}"
    )
