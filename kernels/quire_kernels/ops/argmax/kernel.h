// Index of each row's largest value, where the row is one that has one.
#pragma once

#include <cmath>
#include <limits>

#include "csrc/parallel.h"
#include "csrc/simd.h"

namespace quire {

// The lowest index of the maximum; -1 where a value is NaN or the maximum is infinite, -infinity included. A first pass
// finds the value, a second one where.
inline int64_t argmax_row(const float* x, int64_t width) {
  const float lowest = -std::numeric_limits<float>::infinity();
  F32x16 peaks = splat(lowest), sums = zero();
  int64_t i = 0;
  // NaN stays in a sum, which is too small to overflow; beside a -infinity, only +infinity gives another NaN
  for (const F32x16 small = splat(1e-9f); i + kLanes <= width; i += kLanes) {
    const F32x16 values = load(x + i);
    peaks = max(values, peaks);
    sums = fma(values, small, sums);
  }
  float peak = max_lanes(peaks), sum = sum_lanes(sums);
  for (; i < width; ++i) {
    peak = x[i] > peak ? x[i] : peak;
    sum += x[i] * 1e-9f;
  }
  if (std::isnan(sum) || std::isinf(peak)) return -1;
  const F32x16 wanted = splat(peak);
  for (i = 0; i + kLanes <= width && !any_equal(load(x + i), wanted); i += kLanes) {
  }
  for (; i < width; ++i) {
    if (x[i] == peak) return i;
  }
  return -1;
}

inline void argmax(const float* x, int64_t ldx, int64_t num_rows, int64_t width, int64_t* out) {
  parallel_rows(num_rows, width / 4, [&](int64_t t) { out[t] = argmax_row(x + t * ldx, width); });
}

}  // namespace quire
