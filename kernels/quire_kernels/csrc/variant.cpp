// The C interface of one instruction set's variant: this file compiled with that set's flags is the whole variant.
//
// Pointers and sizes only. Sizes are in elements. Functions that can meet bad indices return which, see each.

#include "ops/argmax/kernel.h"
#include "ops/linear/kernel.h"
#include "ops/paged_attention/kernel.h"
#include "ops/rms_norm/kernel.h"
#include "ops/rope/kernel.h"
#include "ops/silu_mul/kernel.h"
#include "ops/write_kv/kernel.h"

#define QUIRE_API extern "C" __attribute__((visibility("default")))

QUIRE_API void quire_set_num_threads(int32_t num_threads) { quire::state().num_threads = num_threads; }

QUIRE_API void quire_set_progress(int64_t* cell) { quire::state().progress = cell; }

QUIRE_API void quire_pack(const void* weight, int32_t format, int64_t num_columns, int64_t depth, void* panels) {
  quire::with_format(static_cast<quire::WeightFormat>(format), [&](auto traits) {
    using Stored = typename decltype(traits)::Stored;
    quire::pack<decltype(traits)>(static_cast<const Stored*>(weight), num_columns, depth, static_cast<Stored*>(panels));
  });
}

QUIRE_API void quire_linear(const float* x, int64_t ldx, int64_t num_rows, const void* panels, int32_t format,
                            int64_t num_columns, int64_t depth, const float* bias, float* out, int64_t ldo) {
  quire::bump_progress();
  quire::with_format(static_cast<quire::WeightFormat>(format), [&](auto traits) {
    using Panels = decltype(traits);
    const auto* data = static_cast<const typename Panels::Stored*>(panels);
    quire::Linear<Panels>{x, ldx, num_rows, data, num_columns, depth, bias, out, ldo}.run();
  });
}

// The first t whose id is no row, or -1.
QUIRE_API int64_t quire_embedding(const int64_t* ids, int64_t num_ids, const void* panels, int32_t format,
                                  int64_t num_columns, int64_t depth, float* out) {
  quire::bump_progress();
  int64_t bad = -1;
  quire::with_format(static_cast<quire::WeightFormat>(format), [&](auto traits) {
    using Stored = typename decltype(traits)::Stored;
    bad = quire::embedding<decltype(traits)>(ids, num_ids, static_cast<const Stored*>(panels), num_columns, depth, out);
  });
  return bad;
}

// residual and total are null, or both given.
QUIRE_API void quire_rms_norm(const float* x, int64_t ldx, const float* residual, const float* weight, float eps,
                              int64_t num_rows, int64_t width, float* total, float* out) {
  quire::bump_progress();
  quire::rms_norm(x, ldx, residual, weight, eps, num_rows, width, total, out);
}

// The first token whose position is no row of cos_sin, or -1.
QUIRE_API int64_t quire_rope(float* query, int64_t query_stride, int64_t num_heads, float* key, int64_t key_stride,
                             int64_t num_kv_heads, int64_t num_tokens, int64_t head_dim, const int64_t* positions,
                             const float* cos_sin, int64_t num_positions) {
  quire::bump_progress();
  return quire::rope({query, query_stride, num_heads}, {key, key_stride, num_kv_heads}, num_tokens, head_dim, positions,
                     cos_sin, num_positions);
}

QUIRE_API void quire_silu_mul(const float* gate_up, int64_t num_rows, int64_t width, float* out) {
  quire::bump_progress();
  quire::silu_mul(gate_up, num_rows, width, out);
}

// The first token whose slot is out of range, or -1.
QUIRE_API int64_t quire_write_kv(const float* key, int64_t key_stride, const float* value, int64_t value_stride,
                                 int64_t num_tokens, int64_t row_size, float* key_cache, float* value_cache,
                                 int64_t num_slots, const int64_t* slots) {
  quire::bump_progress();
  return quire::write_kv({key, key_stride}, {value, value_stride}, num_tokens, row_size, key_cache, value_cache,
                         num_slots, slots);
}

// 0, or fault + 4 * sequence: see AttentionFault.
QUIRE_API int64_t quire_paged_attention(const float* query, int64_t query_stride, const float* key_cache,
                                        const float* value_cache, int64_t num_blocks, int64_t block_size,
                                        int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                                        const int32_t* query_start_loc, const int32_t* seq_lens,
                                        const int32_t* block_tables, int64_t table_stride, int64_t max_blocks,
                                        int64_t num_seqs, int64_t num_tokens, float scale, float* out) {
  quire::bump_progress();
  return quire::paged_attention({query, query_stride, key_cache, value_cache, num_blocks, block_size, num_heads,
                                 num_kv_heads, head_dim, query_start_loc, seq_lens, block_tables, table_stride,
                                 max_blocks, num_seqs, num_tokens, scale, out});
}

QUIRE_API void quire_argmax(const float* x, int64_t ldx, int64_t num_rows, int64_t width, int64_t* out) {
  quire::bump_progress();
  quire::argmax(x, ldx, num_rows, width, out);
}
