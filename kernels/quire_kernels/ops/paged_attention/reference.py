"""The torch reference of `paged_attention`: one sequence after the other, in fp32."""

import torch


def paged_attention(
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
    result = (
        torch.empty(query.shape, dtype=query.dtype, device=query.device) if out is None else out
    )
    starts = query_start_loc.tolist()
    for index, seq_len in enumerate(seq_lens.tolist()):
        rows = slice(starts[index], starts[index + 1])
        num_blocks = -(-seq_len // key_cache.shape[1])
        blocks = block_tables[index, :num_blocks].long()
        keys = key_cache[blocks].flatten(0, 1)[:seq_len]
        values = value_cache[blocks].flatten(0, 1)[:seq_len]
        result[rows] = _attend(query[rows], keys, values, scale).to(result.dtype)
    return result


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> torch.Tensor:
    """Queries [Q, Hq, D], the last Q positions of keys and values [L, Hkv, D]."""
    num_queries, num_heads, _ = query.shape
    seq_len, num_kv_heads, _ = keys.shape
    group = num_heads // num_kv_heads
    wide_keys = keys.float().repeat_interleave(group, dim=1)
    wide_values = values.float().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query.float() * scale, wide_keys)
    positions = torch.arange(seq_len, device=query.device)
    visible = positions <= positions[seq_len - num_queries :, None]
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, wide_values)
