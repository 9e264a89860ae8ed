// Scatter of new keys and values into the paged cache.
#pragma once

#include <cstring>

#include "csrc/parallel.h"

namespace quire {

struct NewRows {
  const float* data;
  int64_t stride;  // between tokens, in floats
};

// Row t goes to slot slots[t] of the caches [num_slots, row_size]; -1 skips it. Returns the first token whose slot is
// neither, having written nothing, or -1.
inline int64_t write_kv(NewRows key, NewRows value, int64_t num_tokens, int64_t row_size, float* key_cache,
                        float* value_cache, int64_t num_slots, const int64_t* slots) {
  for (int64_t t = 0; t < num_tokens; ++t) {
    if (slots[t] < -1 || slots[t] >= num_slots) return t;
  }
  const size_t row_bytes = sizeof(float) * static_cast<size_t>(row_size);
  parallel_rows(num_tokens, row_size, [&](int64_t t) {
    if (slots[t] < 0) return;
    std::memcpy(key_cache + slots[t] * row_size, key.data + t * key.stride, row_bytes);
    std::memcpy(value_cache + slots[t] * row_size, value.data + t * value.stride, row_bytes);
  });
  return -1;
}

}  // namespace quire
