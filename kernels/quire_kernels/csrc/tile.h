// The register tile that linear and attention share: ROWS x VECTORS accumulators of 16 lanes, summed over k in order.
#pragma once

#include <type_traits>

#include "csrc/simd.h"

namespace quire {

template <int ROWS, int VECTORS>
using Tile = F32x16[ROWS][VECTORS];

// f(r, v) for each register of a tile
template <int ROWS, int VECTORS, class F>
QUIRE_INLINE void each(const F& f) {
#pragma GCC unroll 32
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < VECTORS; ++v) f(r, v);
  }
}

template <int ROWS, int VECTORS>
QUIRE_INLINE void clear(Tile<ROWS, VECTORS>& acc) {
  each<ROWS, VECTORS>([&](int r, int v) { acc[r][v] = zero(); });
}

// acc[r][v] += a[r * lda + k] * b(k, v) for k in [begin, end): one fused multiply-add a step, in order of k, so that an
// element's sum does not depend on the tile that computes it.
template <int ROWS, int VECTORS, class B>
QUIRE_INLINE void multiply_add(Tile<ROWS, VECTORS>& acc, const float* a, int64_t lda, int64_t begin, int64_t end,
                               const B& b) {
  for (int64_t k = begin; k < end; ++k) {
#pragma GCC unroll 32
    for (int v = 0; v < VECTORS; ++v) {
      const F32x16 row_b = b(k, v);
#pragma GCC unroll 32
      for (int r = 0; r < ROWS; ++r) acc[r][v] = fma(splat(a[r * lda + k]), row_b, acc[r][v]);
    }
  }
}

// Rows of the tallest tile.
constexpr int kTileRows = kTileVectors >= 24 ? 12 : 6;

// Vectors beside each other in a tile of so many rows: the power of two up to 4 that still fits the registers. Few rows
// need several, for a fused multiply-add takes 4 cycles and two start in each.
constexpr int tile_vectors(int rows) {
  const int fit = kTileVectors / rows;
  return fit >= 4 ? 4 : (fit >= 2 ? 2 : 1);
}

// f(std::integral_constant<int, rows>) for rows in [1, MAX].
template <int MAX = kTileRows, class F>
QUIRE_INLINE void with_rows(int rows, const F& f) {
  if constexpr (MAX > 1) {
    if (rows < MAX) return with_rows<MAX - 1>(rows, f);
  }
  f(std::integral_constant<int, MAX>{});
}

}  // namespace quire
