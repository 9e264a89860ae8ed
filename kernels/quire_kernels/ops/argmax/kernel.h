// Index of each row's largest value.
#pragma once

#include <limits>

#include "csrc/parallel.h"
#include "csrc/simd.h"

namespace quire {

// The lowest index of the maximum, NaNs passed over, 0 where all are. A first pass finds the value, a second one where.
inline int64_t argmax_row(const float* x, int64_t width) {
  const float lowest = -std::numeric_limits<float>::infinity();
  F32x16 peaks = splat(lowest);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) peaks = max(load(x + i), peaks);
  float peak = max_lanes(peaks);
  for (; i < width; ++i) peak = x[i] > peak ? x[i] : peak;
  const F32x16 wanted = splat(peak);
  for (i = 0; i + kLanes <= width && !any_equal(load(x + i), wanted); i += kLanes) {
  }
  for (; i < width; ++i) {
    if (x[i] == peak) return i;
  }
  return 0;
}

inline void argmax(const float* x, int64_t ldx, int64_t num_rows, int64_t width, int64_t* out) {
  parallel_rows(num_rows, width / 4, [&](int64_t t) { out[t] = argmax_row(x + t * ldx, width); });
}

}  // namespace quire
