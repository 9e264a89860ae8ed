// Rotary position embedding in place, halves paired.
#pragma once

#include "csrc/parallel.h"
#include "csrc/simd.h"

namespace quire {

// One head: (a, b) -> (a cos - b sin, b cos + a sin), each product rounded as torch rounds it.
inline void rope_head(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t count = half - i;
    const F32x16 c = load_some(cos + i, count), s = load_some(sin + i, count);
    const F32x16 a = load_some(head + i, count), b = load_some(head + half + i, count);
    store_some(head + i, sub(mul(a, c), mul(b, s)), count);
    store_some(head + half + i, add(mul(b, c), mul(a, s)), count);
  }
}

struct Heads {
  float* data;
  int64_t stride;  // between tokens, in floats
  int64_t num_heads;
};

// Returns the first token whose position is no row of cos_sin, or -1.
inline int64_t rope(Heads query, Heads key, int64_t num_tokens, int64_t head_dim, const int64_t* positions,
                    const float* cos_sin, int64_t num_positions) {
  for (int64_t t = 0; t < num_tokens; ++t) {
    if (positions[t] < 0 || positions[t] >= num_positions) return t;
  }
  parallel_rows(num_tokens, (query.num_heads + key.num_heads) * head_dim, [&](int64_t t) {
    const float* cos = cos_sin + positions[t] * head_dim;
    for (const Heads& heads : {query, key}) {
      for (int64_t h = 0; h < heads.num_heads; ++h) {
        rope_head(heads.data + t * heads.stride + h * head_dim, cos, cos + head_dim / 2, head_dim / 2);
      }
    }
  });
  return -1;
}

}  // namespace quire
