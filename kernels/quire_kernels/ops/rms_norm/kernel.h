// RMS normalization of rows, with or without a residual add before it.
#pragma once

#include <cmath>

#include "csrc/parallel.h"
#include "csrc/simd.h"

namespace quire {

// One row: total = x + residual (if there is one), out = total / sqrt(mean(total²) + eps) * weight.
inline void rms_norm_row(const float* x, const float* residual, const float* weight, float eps, int64_t width,
                         float* total, float* out) {
  F32x16 squares = zero();
  for (int64_t i = 0; i < width; i += kLanes) {
    F32x16 v = load_some(x + i, width - i);
    if (residual != nullptr) {
      v = add(v, load_some(residual + i, width - i));
      store_some(total + i, v, width - i);
    }
    squares = fma(v, v, squares);
  }
  const float* source = residual != nullptr ? total : x;
  const F32x16 scale = splat(1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(width) + eps));
  for (int64_t i = 0; i < width; i += kLanes) {
    const F32x16 v = mul(mul(load_some(source + i, width - i), scale), load_some(weight + i, width - i));
    store_some(out + i, v, width - i);
  }
}

inline void rms_norm(const float* x, int64_t ldx, const float* residual, const float* weight, float eps,
                     int64_t num_rows, int64_t width, float* total, float* out) {
  parallel_rows(num_rows, width, [&](int64_t t) {
    const int64_t at = t * width;
    rms_norm_row(x + t * ldx, residual == nullptr ? nullptr : residual + at, weight, eps, width,
                 total == nullptr ? nullptr : total + at, out + at);
  });
}

}  // namespace quire
