// Weights as int8 with one bf16 scale for every 64 of k and column: w = scale * value, both exact in fp32.
//
// A panel is [ceil(K/64)] groups of 16 scales (columns interleaved as bf16 panels are) and 64 x 16 values, the last
// group being as long as what is left of K. Scales lie beside their values, so that a panel is one stream of memory.
#pragma once

#include <algorithm>
#include <atomic>

#include "csrc/parallel.h"
#include "csrc/tile.h"

namespace quire {

struct Int8Panels {
  using Stored = uint8_t;

  static constexpr int64_t kDepthUnit = 64;  // k of a group
  static constexpr int64_t kScaleBytes = 2 * kLanes;
  static constexpr int64_t kGroupBytes = kScaleBytes + kDepthUnit * kLanes;
  static constexpr float kMaxValue = 127.0f;  // -128 is left out: the grid is symmetric

  static constexpr int64_t num_groups(int64_t depth) { return (depth + kDepthUnit - 1) / kDepthUnit; }
  static constexpr int64_t size(int64_t depth) { return num_groups(depth) * kScaleBytes + depth * kLanes; }

  static const int8_t* values(const uint8_t* group) { return reinterpret_cast<const int8_t*>(group) + kScaleBytes; }
  static const uint16_t* scales(const uint8_t* group) { return reinterpret_cast<const uint16_t*>(group); }
  // where column c's scale is stored: widen_bf16's order
  static constexpr int scale_position(int c) { return c < 8 ? 2 * c : 2 * (c - 8) + 1; }

  // acc += x[., begin:end] times the panels at `first`; begin is a group's. A group's sum is multiplied by its scale
  // once, so that the loop over k widens and adds and nothing else.
  template <int ROWS, int VECTORS>
  static QUIRE_INLINE void accumulate(Tile<ROWS, VECTORS>& acc, const float* x, int64_t ldx, const uint8_t* first,
                                      int64_t panel_size, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k += kDepthUnit) {
      const uint8_t* group = first + k / kDepthUnit * kGroupBytes;
      Tile<ROWS, VECTORS> sum;
      clear<ROWS, VECTORS>(sum);
      multiply_add<ROWS, VECTORS>(sum, x + k, ldx, 0, std::min(kDepthUnit, end - k), [&](int64_t i, int v) {
        const int8_t* place = values(group + v * panel_size) + i * kLanes;
        // few rows wait for memory: a group ahead, 6 % at one row; it may lie beyond the panels, which does no harm
        if constexpr (ROWS <= 2) _mm_prefetch(reinterpret_cast<const char*>(place) + kGroupBytes, _MM_HINT_T0);
        return widen_int8(place);
      });
      each<ROWS, VECTORS>(
          [&](int r, int v) { acc[r][v] = fma(sum[r][v], widen_bf16(scales(group + v * panel_size)), acc[r][v]); });
    }
  }

  // out[k] = the weight at k of a panel's column
  static void read_column(const uint8_t* panel, int column, int64_t depth, float* out) {
    for (int64_t k = 0; k < depth; ++k) {
      const uint8_t* group = panel + k / kDepthUnit * kGroupBytes;
      out[k] = widen_scale(scales(group)[scale_position(column)]) * values(group)[k % kDepthUnit * kLanes + column];
    }
  }

  static float widen_scale(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float result;
    std::memcpy(&result, &wide, sizeof(result));
    return result;
  }

  // The smallest bf16 that is no less than largest / 127: rounded up, no value lies beyond the grid's end. `largest` is
  // finite and not negative.
  static uint16_t scale_bits(float largest) {
    const float exact = largest / kMaxValue;
    uint32_t bits;
    std::memcpy(&bits, &exact, sizeof(bits));
    return static_cast<uint16_t>((bits + 0xffffu) >> 16);
  }
};

// Quantizes `count` weights (64 at most, zero in the others) to values kLanes apart. The scale's bits, or -1 where a
// weight is not finite.
inline int32_t quantize_int8(const float* weights, int64_t count, int8_t* values) {
  constexpr uint32_t kInfinity = 0x7f800000u;
  uint32_t largest_bits = 0;  // magnitudes are in the order of their bits
  for (int64_t k = 0; k < Int8Panels::kDepthUnit; ++k) {
    uint32_t bits;
    std::memcpy(&bits, weights + k, sizeof(bits));
    largest_bits = std::max(largest_bits, bits & 0x7fffffffu);
  }
  if (largest_bits >= kInfinity) return -1;
  float largest;
  std::memcpy(&largest, &largest_bits, sizeof(largest));
  const uint16_t bits = Int8Panels::scale_bits(largest);
  const F32x16 scale = splat(bits == 0 ? 1.0f : Int8Panels::widen_scale(bits));  // 0: then all weights are 0 or near
  for (int64_t k = 0; k < count; k += kLanes) {
    float rounded[kLanes];
    store(rounded, round_even(div(load(weights + k), scale)));
    const int64_t lanes = std::min<int64_t>(kLanes, count - k);
    for (int64_t i = 0; i < lanes; ++i) values[(k + i) * kLanes] = static_cast<int8_t>(rounded[i]);
  }
  return bits;
}

// Int8 panels from a weight [N, K] in the plain format Source, missing columns zero. The first row with a value that is
// not finite, or -1; the panels are no use then.
template <class Source>
int64_t pack_int8(const typename Source::Stored* weight, int64_t num_columns, int64_t depth, uint8_t* panels) {
  const int64_t num_panels = (num_columns + kLanes - 1) / kLanes;
  std::atomic<int64_t> bad{num_columns};
  parallel_rows(num_panels, depth * kLanes * 4, [&](int64_t panel) {
    uint8_t* group = panels + panel * Int8Panels::size(depth);
    for (int64_t begin = 0; begin < depth; begin += Int8Panels::kDepthUnit) {
      const int64_t count = std::min(Int8Panels::kDepthUnit, depth - begin);
      auto* scales = reinterpret_cast<uint16_t*>(group);
      auto* values = reinterpret_cast<int8_t*>(group) + Int8Panels::kScaleBytes;
      for (int c = 0; c < kLanes; ++c) {
        const int64_t column = panel * kLanes + c;
        float weights[Int8Panels::kDepthUnit] = {};
        if (column < num_columns) {
          const auto* source = weight + column * depth + begin;
          for (int64_t k = 0; k < count; ++k) weights[k] = Source::value(source[k]);
        }
        const int32_t bits = quantize_int8(weights, count, values + c);
        scales[Int8Panels::scale_position(c)] = static_cast<uint16_t>(bits);
        for (int64_t seen = bad; bits < 0 && column < seen && !bad.compare_exchange_weak(seen, column);) {
        }
      }
      group += Int8Panels::kScaleBytes + count * kLanes;
    }
  });
  return bad == num_columns ? -1 : bad.load();
}

}  // namespace quire
