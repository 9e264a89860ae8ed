"""`paged_attention` in Triton: prefill chunks and decodes in one launch.

The query heads that share a kv head are packed into the rows of one tile, so that `tl.dot` is
filled even by a decode's single token. Where the tiles are too few for the multiprocessors (short
queries, few heads) each one's keys are split, and a second kernel joins the parts.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import functools

import torch
import triton
import triton.language as tl

_LOG2_E = 1.4426950408889634
_MAX_SPLITS = 64


@triton.jit
def _find_sequence(query_start_loc, num_seqs, target, BLOCK_Q: tl.constexpr):
    """The sequence that owns tile `target`, its first tile being start // BLOCK_Q + its index."""
    left = 0
    right = num_seqs
    while left < right:
        middle = (left + right) // 2
        if tl.load(query_start_loc + middle) // BLOCK_Q + middle <= target:
            left = middle + 1
        else:
            right = middle
    return left - 1


@triton.jit
def _attention_kernel(
    query,
    key_cache,
    value_cache,
    query_start_loc,
    seq_lens,
    block_tables,
    out,
    part_sums,
    part_peaks,
    part_totals,
    scale,
    num_seqs,
    query_stride,
    table_stride,
    split_len,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    target = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    group: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    seq = _find_sequence(query_start_loc, num_seqs, target, BLOCK_Q)
    start = tl.load(query_start_loc + seq)
    num_queries = tl.load(query_start_loc + seq + 1) - start
    first = (target - (start // BLOCK_Q + seq)) * BLOCK_Q
    if first >= num_queries:
        return
    seq_len = tl.load(seq_lens + seq)

    row = tl.arange(0, BLOCK_M)
    token = first + row // group
    head = kv_head * group + row % group
    live = (row < BLOCK_Q * group) & (token < num_queries)
    position = seq_len - num_queries + token
    feature = tl.arange(0, DIM_PADDED)
    inside = feature < DIM
    row_offset = (start + token).to(tl.int64) * query_stride + head * DIM
    q = tl.load(
        query + row_offset[:, None] + feature[None, :], live[:, None] & inside[None, :], 0.0
    )

    last = tl.minimum(first + BLOCK_Q, num_queries) - 1
    end = tl.minimum(seq_len - num_queries + last + 1, (split + 1) * split_len)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, DIM_PADDED], tl.float32)
    for base in range(split * split_len, end, TILE):
        key_position = base + tl.arange(0, TILE)
        there = key_position < end
        block = tl.load(block_tables + seq * table_stride + key_position // BLOCK_SIZE, there, 0)
        slot = block.to(tl.int64) * BLOCK_SIZE + key_position % BLOCK_SIZE
        cache_row = (slot * NUM_KV_HEADS + kv_head) * DIM
        both = there[:, None] & inside[None, :]
        k = tl.load(key_cache + cache_row[:, None] + feature[None, :], both, 0.0)
        v = tl.load(value_cache + cache_row[:, None] + feature[None, :], both, 0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        visible = there[None, :] & (key_position[None, :] <= position[:, None]) & live[:, None]
        scores = tl.where(visible, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        # rows that have seen no key yet: -inf minus -inf must not be taken
        safe_peak = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - safe_peak[:, None])
        rescale = tl.exp2(peak - safe_peak)
        total = total * rescale + tl.sum(weights, 1)
        sums = sums * rescale[:, None]
        sums += tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        peak = new_peak

    out_row = (start + token).to(tl.int64) * NUM_HEADS + head
    if NUM_SPLITS == 1:
        result = sums / tl.where(total == 0.0, 1.0, total)[:, None]
        place = out + out_row[:, None] * DIM + feature[None, :]
        tl.store(place, result.to(out.dtype.element_ty), live[:, None] & inside[None, :])
    else:
        part = out_row * NUM_SPLITS + split
        place = part_sums + part[:, None] * DIM + feature[None, :]
        tl.store(place, sums, live[:, None] & inside[None, :])
        tl.store(part_peaks + part, peak, live)
        tl.store(part_totals + part, total, live)


@triton.jit
def _join_kernel(
    part_sums,
    part_peaks,
    part_totals,
    out,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS_PADDED)
    there = split < NUM_SPLITS
    part = row * NUM_SPLITS + split
    peaks = tl.load(part_peaks + part, there, float("-inf"))
    weights = tl.exp2(peaks - tl.max(peaks, 0))
    totals = tl.load(part_totals + part, there, 0.0)
    feature = tl.arange(0, DIM_PADDED)
    inside = feature < DIM
    both = there[:, None] & inside[None, :]
    sums = tl.load(part_sums + part[:, None] * DIM + feature[None, :], both, 0.0)
    result = tl.sum(sums * weights[:, None], 0) / tl.sum(totals * weights, 0)
    tl.store(out + row * DIM + feature, result.to(out.dtype.element_ty), inside)


def choose_num_splits(num_tiles: int, num_multiprocessors: int, max_len: int, tile: int) -> int:
    """Parts to split the keys into, so that every multiprocessor has about two programs.

    A part is never shorter than four tiles: below that, joining costs more than waiting saves.
    """
    wanted = 2 * num_multiprocessors // max(1, num_tiles)
    useful = max_len // (4 * tile)
    return max(1, min(wanted, useful, _MAX_SPLITS))


@functools.cache
def _num_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    block_tables: torch.Tensor,
    scale: float,
    out: torch.Tensor | None = None,
    *,
    num_splits: int | None = None,
) -> torch.Tensor:
    """See quire_kernels.paged_attention. Metadata is trusted: checking would wait for the GPU.

    num_splits overrides the choice, which takes sequences to be as long as block tables allow.
    """
    num_tokens, num_heads, dim = query.shape
    _, block_size, num_kv_heads, _ = key_cache.shape
    if out is None:
        out = torch.empty(num_tokens, num_heads, dim, dtype=query.dtype, device=query.device)
    num_seqs = seq_lens.shape[0]
    if num_tokens == 0:
        return out
    group = num_heads // num_kv_heads
    # 16 rows are the least that tl.dot takes; prefills fill 64
    rows = 16 if num_tokens <= num_seqs else 64
    block_m = max(rows, triton.next_power_of_2(group))
    block_q = block_m // group
    tile = 32 if query.dtype == torch.float32 else 64
    num_tiles = num_tokens // block_q + num_seqs
    max_len = block_tables.shape[1] * block_size
    if num_splits is None:
        multiprocessors = _num_multiprocessors(query.device)
        num_splits = choose_num_splits(num_tiles * num_kv_heads, multiprocessors, max_len, tile)
    split_len = triton.cdiv(triton.cdiv(max_len, num_splits), tile) * tile
    parts = (num_tokens * num_heads * num_splits) if num_splits > 1 else 1
    part_sums = torch.empty(parts, dim, dtype=torch.float32, device=query.device)
    part_peaks, part_totals = torch.empty(2, parts, dtype=torch.float32, device=query.device)
    _attention_kernel[(num_tiles, num_kv_heads, num_splits)](
        *(query, key_cache, value_cache, query_start_loc, seq_lens, block_tables),
        *(out, part_sums, part_peaks, part_totals, scale * _LOG2_E, num_seqs),
        *(query.stride(0), block_tables.stride(0), split_len),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        BLOCK_SIZE=block_size,
        DIM=dim,
        DIM_PADDED=max(16, triton.next_power_of_2(dim)),
        BLOCK_M=block_m,
        BLOCK_Q=block_q,
        TILE=tile,
        NUM_SPLITS=num_splits,
        # fp32 means fp32: TF32 would drop 13 bits of it
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
    )
    if num_splits > 1:
        _join_kernel[(num_tokens * num_heads,)](
            *(part_sums, part_peaks, part_totals, out),
            DIM=dim,
            DIM_PADDED=triton.next_power_of_2(dim),
            NUM_SPLITS=num_splits,
            SPLITS_PADDED=triton.next_power_of_2(num_splits),
        )
    return out
