// silu(gate) * up over rows of gate | up.
#pragma once

#include "csrc/parallel.h"
#include "csrc/simd.h"

namespace quire {

inline void silu_mul(const float* gate_up, int64_t num_rows, int64_t width, float* out) {
  parallel_rows(num_rows, width * 8, [&](int64_t t) {
    const float* gate = gate_up + t * 2 * width;
    const float* up = gate + width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const F32x16 g = load_some(gate + i, width - i);
      const F32x16 denominator = add(splat(1.0f), exp(sub(zero(), g)));
      store_some(out + t * width + i, mul(div(g, denominator), load_some(up + i, width - i)), width - i);
    }
  });
}

}  // namespace quire
