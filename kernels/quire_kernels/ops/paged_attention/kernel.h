// Causal attention over a paged cache: prefill chunks and decodes in one call.
//
// A row is one query head of one token. It walks the keys 0..position in blocks of kKeyBlock that begin at multiples of
// kKeyBlock, with an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867) over them. Scores are chains of
// fused multiply-adds over the head's features, outputs over the keys, and nothing else enters: the row's bits depend
// on its own query and on the keys and values up to its position, not on its batch, its chunk, the cache's blocks, the
// number of threads or the instruction set.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "csrc/parallel.h"
#include "csrc/tile.h"

namespace quire {

// Every member takes 8 bytes: csrc/variant.cpp says why.
struct AttentionArgs {
  const float* query;  // [T, Hq, D], tokens query_stride floats apart
  int64_t query_stride;
  const float* key_cache;  // [num_blocks, block_size, Hkv, D]
  const float* value_cache;
  int64_t num_blocks, block_size;
  int64_t num_heads, num_kv_heads, head_dim;
  const int32_t* query_start_loc;  // [B+1]
  const int32_t* seq_lens;         // [B]
  const int32_t* block_tables;     // [B, max_blocks], rows table_stride apart
  int64_t table_stride, max_blocks;
  int64_t num_seqs, num_tokens;
  double scale;
  float* out;  // [T, Hq, D]
};
static_assert(sizeof(AttentionArgs) == 18 * 8);

// What may be wrong with the metadata; the sequence concerned goes with it.
enum class AttentionFault : int64_t { kNone = 0, kQueryStart = 1, kSeqLen = 2, kBlock = 3 };

inline AttentionFault check_sequence(const AttentionArgs& args, int64_t seq) {
  const int64_t begin = args.query_start_loc[seq], end = args.query_start_loc[seq + 1];
  const int64_t seq_len = args.seq_lens[seq];
  if (begin < 0 || end < begin || end > args.num_tokens) return AttentionFault::kQueryStart;
  if (end == begin) return AttentionFault::kNone;
  if (seq_len < end - begin || seq_len > args.max_blocks * args.block_size) return AttentionFault::kSeqLen;
  const int32_t* table = args.block_tables + seq * args.table_stride;
  for (int64_t i = 0; i * args.block_size < seq_len; ++i) {
    if (table[i] < 0 || table[i] >= args.num_blocks) return AttentionFault::kBlock;
  }
  return AttentionFault::kNone;
}

class AttentionTask {
 public:
  static constexpr int64_t kKeyBlock = 64;
  static constexpr int64_t kRows = 48;  // rows that share a pass over the keys, unless one token has more

  // tokens [first, first + count) of sequence `seq`, the query heads of `kv_head`
  AttentionTask(const AttentionArgs& args, int64_t seq, int64_t kv_head, int64_t first, int64_t count)
      : args_(args),
        kv_head_(kv_head),
        group_(args.num_heads / args.num_kv_heads),
        num_rows_(count * group_),
        dim_(args.head_dim),
        padded_((dim_ + kLanes - 1) / kLanes * kLanes),
        token_(args.query_start_loc[seq] + first),
        table_(args.block_tables + seq * args.table_stride) {
    const int64_t num_queries = args.query_start_loc[seq + 1] - args.query_start_loc[seq];
    position_ = args.seq_lens[seq] - num_queries + first;
    float* memory =
        scratch(static_cast<size_t>(num_rows_ * (dim_ + padded_ + kKeyBlock + 3) + 2 * kKeyBlock * padded_));
    const auto take = [&memory](int64_t n) { return memory += n, memory - n; };
    keys_ = take(kKeyBlock * padded_);
    value_copies_ = take(kKeyBlock * padded_);
    query_ = take(num_rows_ * dim_);
    sums_ = take(num_rows_ * padded_);
    weights_ = take(num_rows_ * kKeyBlock);
    peaks_ = take(num_rows_);
    totals_ = take(num_rows_);
    rescales_ = take(num_rows_);
  }

  void run() {
    begin();
    const int64_t end = visible(num_rows_ - 1);
    for (int64_t key = 0; key < end; key += kKeyBlock) {
      const int64_t count = std::min(kKeyBlock, end - key);
      locate(key, count);
      load_keys(count);
      load_values(count);
      prefetch_keys(key + count, std::min(kKeyBlock, end - key - count));
      // rows see ever more keys: those before `row` see none of this block
      int64_t row = 0;
      while (visible(row) <= key) row += group_;
      for (; row < num_rows_; row += kTileRows) {
        const int rows = static_cast<int>(std::min<int64_t>(kTileRows, num_rows_ - row));
        with_rows(rows, [&](auto constant) { step<decltype(constant)::value>(row, key, count); });
      }
    }
    finish();
  }

 private:
  // keys that a row may look at
  int64_t visible(int64_t row) const { return position_ + row / group_ + 1; }

  void begin() {
    const float scale = static_cast<float>(args_.scale);
    for (int64_t row = 0; row < num_rows_; ++row) {
      const int64_t head = kv_head_ * group_ + row % group_;
      const float* source = args_.query + (token_ + row / group_) * args_.query_stride + head * dim_;
      for (int64_t d = 0; d < dim_; ++d) query_[row * dim_ + d] = source[d] * scale;
      peaks_[row] = -std::numeric_limits<float>::infinity();
      totals_[row] = 0.0f;
    }
    std::fill(sums_, sums_ + num_rows_ * padded_, 0.0f);
  }

  // offsets_[i]: where the cache holds key and value of key + i. Asks for the values at once, they are used last.
  void locate(int64_t key, int64_t count) {
    int64_t block = key / args_.block_size, in_block = key % args_.block_size;
    const int64_t stride = args_.num_kv_heads * dim_;
    for (int64_t i = 0; i < count; ++block, in_block = 0) {
      const int64_t run = std::min(args_.block_size - in_block, count - i);
      int64_t offset = (table_[block] * args_.block_size + in_block) * stride + kv_head_ * dim_;
      for (const int64_t end = i + run; i < end; ++i, offset += stride) {
        offsets_[i] = offset;
        prefetch(args_.value_cache + offset);
      }
    }
  }

  // the keys that the next block begins with are on their way while this block's values are summed
  void prefetch_keys(int64_t key, int64_t count) const {
    const int64_t stride = args_.num_kv_heads * dim_;
    int64_t block = key / args_.block_size, in_block = key % args_.block_size;
    for (int64_t i = 0; i < count; ++block, in_block = 0) {
      const int64_t run = std::min(args_.block_size - in_block, count - i);
      int64_t offset = (table_[block] * args_.block_size + in_block) * stride + kv_head_ * dim_;
      for (const int64_t end = i + run; i < end; ++i, offset += stride) prefetch(args_.key_cache + offset);
    }
  }

  void prefetch(const float* row) const {
    for (int64_t d = 0; d < dim_; d += kLanes) __builtin_prefetch(row + d, 0, 2);
  }

  // keys_[chunk][d][16]: 16 keys beside each other, so that one vector holds one feature of each. What lies beyond
  // `count` is of no interest.
  void load_keys(int64_t count) {
    for (int64_t i = 0; i < count; i += 8) {
      const float* rows[8];
      for (int64_t j = 0; j < 8; ++j) rows[j] = args_.key_cache + offsets_[std::min(i + j, count - 1)];
      transpose(rows, keys_ + i / kLanes * dim_ * kLanes + i % kLanes);
    }
  }

  void transpose(const float* const* rows, float* target) const {
    int64_t d = 0;
    for (; d + 8 <= dim_; d += 8) {
      __m256 r[8], t[8];
#pragma GCC unroll 8
      for (int j = 0; j < 4; ++j) {
        const __m256 a = _mm256_castps128_ps256(_mm_loadu_ps(rows[j] + d));
        const __m256 b = _mm256_castps128_ps256(_mm_loadu_ps(rows[j] + d + 4));
        r[j] = _mm256_insertf128_ps(a, _mm_loadu_ps(rows[j + 4] + d), 1);
        r[j + 4] = _mm256_insertf128_ps(b, _mm_loadu_ps(rows[j + 4] + d + 4), 1);
      }
#pragma GCC unroll 8
      for (int j = 0; j < 8; j += 4) {
        t[j] = _mm256_unpacklo_ps(r[j], r[j + 1]);
        t[j + 1] = _mm256_unpackhi_ps(r[j], r[j + 1]);
        t[j + 2] = _mm256_unpacklo_ps(r[j + 2], r[j + 3]);
        t[j + 3] = _mm256_unpackhi_ps(r[j + 2], r[j + 3]);
      }
#pragma GCC unroll 8
      for (int j = 0; j < 8; j += 4) {
        float* place = target + (d + j) * kLanes;
        _mm256_storeu_ps(place, _mm256_shuffle_ps(t[j], t[j + 2], 0x44));
        _mm256_storeu_ps(place + kLanes, _mm256_shuffle_ps(t[j], t[j + 2], 0xee));
        _mm256_storeu_ps(place + 2 * kLanes, _mm256_shuffle_ps(t[j + 1], t[j + 3], 0x44));
        _mm256_storeu_ps(place + 3 * kLanes, _mm256_shuffle_ps(t[j + 1], t[j + 3], 0xee));
      }
    }
    for (; d < dim_; ++d) {
      for (int j = 0; j < 8; ++j) target[d * kLanes + j] = rows[j][d];
    }
  }

  // values_[i] points at the value of key + i, padded_ floats of it readable
  void load_values(int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const float* source = args_.value_cache + offsets_[i];
      if (dim_ != padded_) {
        float* copy = value_copies_ + i * padded_;
        std::copy(source, source + dim_, copy);
        std::fill(copy + dim_, copy + padded_, 0.0f);
        source = copy;
      }
      values_[i] = source;
    }
  }

  // one tile of rows against one block of keys
  template <int ROWS>
  void step(int64_t row, int64_t key, int64_t count) {
    int64_t counts[ROWS];
    for (int r = 0; r < ROWS; ++r) counts[r] = std::min(count, visible(row + r) - key);
    constexpr int kVectors = tile_vectors(ROWS);
    const int64_t num_chunks = (counts[ROWS - 1] + kLanes - 1) / kLanes;
    int64_t chunk = 0;
    for (; chunk + kVectors <= num_chunks; chunk += kVectors) score<ROWS, kVectors>(row, chunk);
    for (; chunk < num_chunks; ++chunk) score<ROWS, 1>(row, chunk);
    soften<ROWS>(row, counts);
    // one register less than the scores' tile: the values' pointers make g++ 12 spill an accumulator otherwise
    constexpr int kWidth = kVectors > 1 && ROWS * kVectors == kTileVectors ? kVectors / 2 : kVectors;
    const int64_t num_vectors = padded_ / kLanes;
    int64_t vector = 0;
    for (; vector + kWidth <= num_vectors; vector += kWidth) gather<ROWS, kWidth>(row, vector, counts);
    for (; vector < num_vectors; ++vector) gather<ROWS, 1>(row, vector, counts);
    for (int r = 1; r < ROWS; ++r) gather_rest(row + r, counts[0], counts[r]);
  }

  template <int ROWS, int VECTORS>
  QUIRE_INLINE void score(int64_t row, int64_t chunk) {
    Tile<ROWS, VECTORS> acc;
    clear<ROWS, VECTORS>(acc);
    const float* first = keys_ + chunk * dim_ * kLanes;
    multiply_add<ROWS, VECTORS>(acc, query_ + row * dim_, dim_, 0, dim_,
                                [&](int64_t d, int v) { return load(first + (v * dim_ + d) * kLanes); });
    for (int r = 0; r < ROWS; ++r) {
      for (int v = 0; v < VECTORS; ++v) store(weights_ + (row + r) * kKeyBlock + (chunk + v) * kLanes, acc[r][v]);
    }
  }

  // scores to weights exp(score - peak), the rows' peaks and totals moved on
  template <int ROWS>
  QUIRE_INLINE void soften(int64_t row, const int64_t* counts) {
    constexpr float kLowest = -std::numeric_limits<float>::infinity();
    float before[kLanes] = {}, peaks[kLanes] = {};
    for (int r = 0; r < ROWS; ++r) {
      before[r] = peaks_[row + r];
      peaks[r] = std::max(before[r], max_lanes(fold(row + r, counts[r], splat(kLowest),
                                                    [](F32x16 peak, F32x16 score) { return max(peak, score); })));
      peaks_[row + r] = peaks[r];
    }
    float rescales[kLanes];
    store(rescales, exp(sub(load(before), load(peaks))));
    for (int r = 0; r < ROWS; ++r) {
      float* place = weights_ + (row + r) * kKeyBlock;
      const F32x16 peak = splat(peaks[r]);
      for (int64_t i = 0; i < counts[r]; i += kLanes) store(place + i, exp(sub(load(place + i), peak)));
      const F32x16 total = fold(row + r, counts[r], zero(), [](F32x16 sum, F32x16 weight) { return add(sum, weight); });
      rescales_[row + r] = rescales[r];
      totals_[row + r] = totals_[row + r] * rescales[r] + sum_lanes(total);
    }
  }

  // combine(...combine(start, first 16 of the row's weights)...) over `count` of them, start for the lanes missing
  template <class Combine>
  QUIRE_INLINE F32x16 fold(int64_t row, int64_t count, F32x16 start, const Combine& combine) const {
    const float* place = weights_ + row * kKeyBlock;
    F32x16 result = start;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) result = combine(result, load(place + i));
    if (i < count) result = combine(result, first_lanes(load(place + i), start, static_cast<int>(count - i)));
    return result;
  }

  // sums_ = sums_ * rescale + weights @ values for so many vectors of features
  template <int ROWS, int VECTORS>
  QUIRE_INLINE void gather(int64_t row, int64_t vector, const int64_t* counts) {
    Tile<ROWS, VECTORS> acc;
    float* place = sums_ + row * padded_ + vector * kLanes;
    for (int r = 0; r < ROWS; ++r) {
      const F32x16 rescale = splat(rescales_[row + r]);
      for (int v = 0; v < VECTORS; ++v) acc[r][v] = mul(load(place + r * padded_ + v * kLanes), rescale);
    }
    const float* weights = weights_ + row * kKeyBlock;
    multiply_add<ROWS, VECTORS>(acc, weights, kKeyBlock, 0, counts[0],
                                [&](int64_t i, int v) { return load(values_[i] + (vector + v) * kLanes); });
    for (int r = 0; r < ROWS; ++r) {
      for (int v = 0; v < VECTORS; ++v) store(place + r * padded_ + v * kLanes, acc[r][v]);
    }
  }

  // The last few keys are seen by a tile's later rows only, and the earlier ones must not even add a zero: each row
  // goes on alone from where the tile stopped.
  void gather_rest(int64_t row, int64_t begin, int64_t end) {
    for (int64_t d = 0; d < padded_; d += kLanes) {
      float* place = sums_ + row * padded_ + d;
      F32x16 sum = load(place);
      for (int64_t i = begin; i < end; ++i) sum = fma(splat(weights_[row * kKeyBlock + i]), load(values_[i] + d), sum);
      store(place, sum);
    }
  }

  void finish() {
    for (int64_t row = 0; row < num_rows_; ++row) {
      const int64_t head = kv_head_ * group_ + row % group_;
      float* target = args_.out + ((token_ + row / group_) * args_.num_heads + head) * dim_;
      const F32x16 total = splat(totals_[row]);
      for (int64_t d = 0; d < dim_; d += kLanes) {
        store_some(target + d, div(load(sums_ + row * padded_ + d), total), dim_ - d);
      }
    }
  }

  const AttentionArgs& args_;
  int64_t kv_head_, group_, num_rows_, dim_, padded_;
  int64_t token_;     // of the first row, in the query tensor
  int64_t position_;  // of the first row, in the sequence
  const int32_t* table_;
  float *keys_, *value_copies_, *query_, *sums_, *weights_, *peaks_, *totals_, *rescales_;
  int64_t offsets_[kKeyBlock];
  const float* values_[kKeyBlock];
};

// Returns 0, or fault + 4 * sequence with nothing written.
inline int64_t paged_attention(const AttentionArgs& args) {
  const int64_t step = std::max<int64_t>(1, AttentionTask::kRows * args.num_kv_heads / args.num_heads);
  thread_local std::vector<int64_t> sequences, task_starts;
  sequences.clear();
  int64_t work = 0;
  for (int64_t seq = 0; seq < args.num_seqs; ++seq) {
    const AttentionFault fault = check_sequence(args, seq);
    if (fault != AttentionFault::kNone) return static_cast<int64_t>(fault) + 4 * seq;
    const int64_t num_queries = args.query_start_loc[seq + 1] - args.query_start_loc[seq];
    sequences.push_back(seq);
    work += num_queries * args.seq_lens[seq] * args.num_heads * args.head_dim;
  }
  // Long ones first: begun last, the few tasks of a chunk deep in its prompt would leave threads without work.
  std::sort(sequences.begin(), sequences.end(),
            [&](int64_t one, int64_t other) { return args.seq_lens[one] > args.seq_lens[other]; });
  task_starts.assign(1, 0);
  for (const int64_t seq : sequences) {
    const int64_t num_queries = args.query_start_loc[seq + 1] - args.query_start_loc[seq];
    task_starts.push_back(task_starts.back() + (num_queries + step - 1) / step);
  }
  const std::vector<int64_t>&order = sequences, &starts = task_starts;  // this thread's, for all
  parallel_for(starts.back() * args.num_kv_heads, work, [&](int64_t task) {
    const int64_t tile = task / args.num_kv_heads;
    const int64_t place = std::upper_bound(starts.begin(), starts.end(), tile) - starts.begin() - 1;
    const int64_t seq = order[static_cast<size_t>(place)];
    const int64_t first = (tile - starts[static_cast<size_t>(place)]) * step;
    const int64_t num_queries = args.query_start_loc[seq + 1] - args.query_start_loc[seq];
    AttentionTask(args, seq, task % args.num_kv_heads, first, std::min(step, num_queries - first)).run();
  });
  return 0;
}

}  // namespace quire
