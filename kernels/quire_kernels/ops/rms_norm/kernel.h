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

// Rows that lie `group` beside each other, the groups `stride` floats apart.
template <class Float>
struct HeadRows {
  Float* data;
  int64_t stride, group;

  Float* row(int64_t i, int64_t width) const { return data + i / group * stride + i % group * width; }
};

inline void rms_norm(HeadRows<const float> x, const float* residual, const float* weight, float eps, int64_t num_rows,
                     int64_t width, float* total, HeadRows<float> out) {
  parallel_rows(num_rows, width, [&](int64_t i) {
    const int64_t at = i * width;
    rms_norm_row(x.row(i, width), residual == nullptr ? nullptr : residual + at, weight, eps, width,
                 total == nullptr ? nullptr : total + at, out.row(i, width));
  });
}

}  // namespace quire
