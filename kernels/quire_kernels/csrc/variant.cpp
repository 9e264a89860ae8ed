// The C interface of one instruction set's variant: this file compiled with that set's flags is the whole variant.
//
// A call passes one pointer to its arguments, each of 8 bytes, in the order below: Python packs them with one
// struct.pack, a third of the cost of ten ctypes arguments. Sizes are in elements.

#include "ops/argmax/kernel.h"
#include "ops/linear/gguf.h"
#include "ops/linear/kernel.h"
#include "ops/linear/quantize.h"
#include "ops/paged_attention/kernel.h"
#include "ops/rms_norm/kernel.h"
#include "ops/rope/kernel.h"
#include "ops/silu_mul/kernel.h"
#include "ops/write_kv/kernel.h"

#define QUIRE_API extern "C" __attribute__((visibility("default")))

QUIRE_API void quire_set_num_threads(int32_t num_threads) { quire::state().num_threads = num_threads; }

QUIRE_API void quire_set_progress(int64_t* cell) { quire::state().progress = cell; }

struct PackCall {
  const void* weight;  // [N, K] in `format`, one of the plain ones
  int64_t format, num_columns, depth;
  void* panels;
};

QUIRE_API void quire_pack(const PackCall* call) {
  quire::with_plain_format(static_cast<quire::WeightFormat>(call->format), [&](auto traits) {
    using Stored = typename decltype(traits)::Stored;
    quire::pack<decltype(traits)>(static_cast<const Stored*>(call->weight), call->num_columns, call->depth,
                                  static_cast<Stored*>(call->panels));
  });
}

template <class To>
int64_t pack_quantized(const PackCall& call) {
  int64_t bad = -1;
  quire::with_plain_format(static_cast<quire::WeightFormat>(call.format), [&](auto traits) {
    using Stored = typename decltype(traits)::Stored;
    bad = quire::pack_quantized<To, decltype(traits)>(static_cast<const Stored*>(call.weight), call.num_columns,
                                                      call.depth, static_cast<uint8_t*>(call.panels));
  });
  return bad;
}

// Quantizes a weight of the plain format `format`. The first row with a value that is not finite, or -1.
QUIRE_API int64_t quire_pack_int8(const PackCall* call) { return pack_quantized<quire::ToInt8>(*call); }
QUIRE_API int64_t quire_pack_int4(const PackCall* call) { return pack_quantized<quire::ToInt4>(*call); }

// Panels from GGUF blocks; `format` is GGUF's number of their type.
QUIRE_API void quire_pack_gguf(const PackCall* call) {
  quire::with_gguf_type(static_cast<quire::GgufType>(call->format), [&](auto from) {
    quire::pack_gguf<decltype(from)>(static_cast<const uint8_t*>(call->weight), call->num_columns, call->depth,
                                     static_cast<uint8_t*>(call->panels));
  });
}

struct LinearCall {
  const float* x;  // [T, K], rows ldx apart
  int64_t ldx, num_rows;
  const void* panels;
  int64_t format, num_columns, depth;
  const float* bias;  // [N] or null
  float* out;         // [T, N], rows ldo apart
  int64_t ldo;
};

QUIRE_API void quire_linear(const LinearCall* call) {
  quire::bump_progress();
  quire::with_format(static_cast<quire::WeightFormat>(call->format), [&](auto traits) {
    using Panels = decltype(traits);
    const auto* panels = static_cast<const typename Panels::Stored*>(call->panels);
    typename quire::LinearOver<Panels>::Type{call->x,     call->ldx,  call->num_rows, panels,   call->num_columns,
                                             call->depth, call->bias, call->out,      call->ldo}
        .run();
  });
}

struct EmbeddingCall {
  const int64_t* ids;  // [T]
  int64_t num_ids;
  const void* panels;
  int64_t format, num_columns, depth;
  float* out;  // [T, K]
};

// The first t whose id is no row, or -1.
QUIRE_API int64_t quire_embedding(const EmbeddingCall* call) {
  quire::bump_progress();
  int64_t bad = -1;
  quire::with_format(static_cast<quire::WeightFormat>(call->format), [&](auto traits) {
    using Stored = typename decltype(traits)::Stored;
    bad = quire::embedding<decltype(traits)>(call->ids, call->num_ids, static_cast<const Stored*>(call->panels),
                                             call->num_columns, call->depth, call->out);
  });
  return bad;
}

struct RmsNormCall {
  const float* x;  // [T, heads, D], tokens ldx apart; heads is 1 for whole hidden states
  int64_t ldx;
  const float* residual;  // [T, D], or null and then no total
  const float* weight;    // [D]
  double eps;
  int64_t num_tokens, num_heads, width;
  float* total;  // [T, D]
  float* out;    // [T, heads, D], tokens ldo apart
  int64_t ldo;
};

QUIRE_API void quire_rms_norm(const RmsNormCall* call) {
  quire::bump_progress();
  const int64_t heads = call->num_heads;
  quire::rms_norm({call->x, call->ldx, heads}, call->residual, call->weight, static_cast<float>(call->eps),
                  call->num_tokens * heads, call->width, call->total, {call->out, call->ldo, heads});
}

struct RopeCall {
  float* query;
  int64_t query_stride, num_heads;
  float* key;
  int64_t key_stride, num_kv_heads, num_tokens, head_dim;
  const int64_t* positions;  // [T]
  const float* cos_sin;      // [P, D]
  int64_t num_positions;
};

// The first token whose position is no row of cos_sin, or -1.
QUIRE_API int64_t quire_rope(const RopeCall* call) {
  quire::bump_progress();
  return quire::rope({call->query, call->query_stride, call->num_heads},
                     {call->key, call->key_stride, call->num_kv_heads}, call->num_tokens, call->head_dim,
                     call->positions, call->cos_sin, call->num_positions);
}

struct SiluMulCall {
  const float* gate_up;  // [T, 2*I]
  int64_t num_rows, width;
  float* out;  // [T, I]
};

QUIRE_API void quire_silu_mul(const SiluMulCall* call) {
  quire::bump_progress();
  quire::silu_mul(call->gate_up, call->num_rows, call->width, call->out);
}

struct WriteKvCall {
  const float* key;
  int64_t key_stride;
  const float* value;
  int64_t value_stride, num_tokens, row_size;
  float *key_cache, *value_cache;
  int64_t num_slots;
  const int64_t* slots;  // [T]
};

// The first token whose slot is out of range, or -1.
QUIRE_API int64_t quire_write_kv(const WriteKvCall* call) {
  quire::bump_progress();
  return quire::write_kv({call->key, call->key_stride}, {call->value, call->value_stride}, call->num_tokens,
                         call->row_size, call->key_cache, call->value_cache, call->num_slots, call->slots);
}

// 0, or fault + 4 * sequence: see AttentionFault.
QUIRE_API int64_t quire_paged_attention(const quire::AttentionArgs* args) {
  quire::bump_progress();
  return quire::paged_attention(*args);
}

struct ArgmaxCall {
  const float* x;  // [T, N], rows ldx apart
  int64_t ldx, num_rows, width;
  int64_t* out;  // [T]
};

QUIRE_API void quire_argmax(const ArgmaxCall* call) {
  quire::bump_progress();
  quire::argmax(call->x, call->ldx, call->num_rows, call->width, call->out);
}

struct RecordedCall {
  const void* function;  // one of the above
  const void* arguments;
  int64_t is_checked;  // whether it returns something
  int64_t good;        // and what when all is well
};
static_assert(sizeof(RecordedCall) == 4 * 8);

// Makes the calls in their order, up to the first that fails: its number, or -1.
QUIRE_API int64_t quire_replay(const RecordedCall* calls, int64_t num_calls) {
  for (int64_t i = 0; i < num_calls; ++i) {
    const RecordedCall& call = calls[i];
    if (!call.is_checked) {
      reinterpret_cast<void (*)(const void*)>(const_cast<void*>(call.function))(call.arguments);
    } else if (reinterpret_cast<int64_t (*)(const void*)>(const_cast<void*>(call.function))(call.arguments) !=
               call.good) {
      return i;
    }
  }
  return -1;
}
