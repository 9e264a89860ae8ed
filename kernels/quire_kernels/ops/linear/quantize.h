// From plain weights to int8 and int4 groups (grouped.h): what ops/linear/int8.py and int4.py mean, bit for bit.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "csrc/parallel.h"
#include "ops/linear/grouped.h"

namespace quire {

inline float widen_bits(uint16_t bf16) {
  const uint32_t wide = static_cast<uint32_t>(bf16) << 16;
  float result;
  std::memcpy(&result, &wide, sizeof(result));
  return result;
}

// The smallest bf16 that is no less than a finite number >= 0.
inline uint16_t round_up(float positive) {
  uint32_t bits;
  std::memcpy(&bits, &positive, sizeof(bits));
  return static_cast<uint16_t>((bits + 0xffffu) >> 16);
}

// The largest finite bf16 that is no more than a finite number; the smallest of all where none is.
inline uint16_t round_down(float number) {
  constexpr uint32_t kLowest = 0xff7f;
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof(bits));
  return static_cast<uint16_t>(bits >> 31 ? std::min((bits + 0xffffu) >> 16, kLowest) : bits >> 16);
}

// The steps of whole words, zero behind the last weight.
template <class Layout>
void put_values(const float* steps, int64_t count, uint8_t* group, int column) {
  for (int64_t i = 0; i < num_words<typename Layout::Value>(count) * Layout::Value::kDepth; ++i) {
    Layout::Value::put(group + Layout::kHeader, i, column, i < count ? static_cast<int>(steps[i]) : 0);
  }
}

// Each fills one column of a group, at `group`, with `count` weights; those behind them are zero. False where one is
// not finite.
struct ToInt8 {
  using Layout = Int8Groups;
  static constexpr float kMaxValue = 127.0f;  // -128 is left out: the grid is symmetric

  static bool quantize(const float* weights, int64_t count, uint8_t* group, int column) {
    float largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float magnitude = std::abs(weights[i]);
      if (!(magnitude <= std::numeric_limits<float>::max())) return false;
      largest = std::max(largest, magnitude);
    }
    const uint16_t bits = round_up(largest / kMaxValue);  // nothing lies beyond the grid's end
    Layout::put_scale(group, column, bits);
    const float scale = bits == 0 ? 1.0f : widen_bits(bits);  // 0: then all weights are 0 or near
    float steps[Layout::kGroup];
    for (int64_t i = 0; i < Layout::kGroup; ++i) steps[i] = std::nearbyint(weights[i] / scale);
    put_values<Layout>(steps, count, group, column);
    return true;
  }
};

struct ToInt4 {
  using Layout = Int4Groups;
  static constexpr float kMaxValue = 15.0f;

  static bool quantize(const float* weights, int64_t count, uint8_t* group, int column) {
    float least = weights[0], most = weights[0];
    for (int64_t i = 0; i < count; ++i) {
      if (!(std::abs(weights[i]) <= std::numeric_limits<float>::max())) return false;
      least = std::min(least, weights[i]);
      most = std::max(most, weights[i]);
    }
    const uint16_t minimum_bits = round_down(least);
    const float minimum = widen_bits(minimum_bits);
    // divided first, as the difference of the largest weights is infinite
    const uint16_t bits = round_up(most / kMaxValue - minimum / kMaxValue);
    Layout::put_scale(group, column, bits);
    Layout::put_minimum(group, column, minimum_bits);
    const float scale = bits == 0 ? 1.0f : widen_bits(bits);
    float steps[Layout::kGroup];
    for (int64_t i = 0; i < Layout::kGroup; ++i) {
      steps[i] = std::min(kMaxValue, std::nearbyint((weights[i] - minimum) / scale));
    }
    put_values<Layout>(steps, count, group, column);
    return true;
  }
};

// Panels from a weight [N, K] in the plain format Source, missing columns zero. The first row with a value that is not
// finite, or -1; the panels are no use then.
template <class To, class Source>
int64_t pack_quantized(const typename Source::Stored* weight, int64_t num_columns, int64_t depth, uint8_t* panels) {
  using Layout = typename To::Layout;
  const int64_t num_panels = (num_columns + kLanes - 1) / kLanes;
  std::atomic<int64_t> bad{num_columns};
  parallel_rows(num_panels, depth * kLanes * 4, [&](int64_t panel) {
    for (int64_t begin = 0; begin < depth; begin += Layout::kGroup) {
      const int64_t count = std::min(Layout::kGroup, depth - begin);
      uint8_t* group = panels + panel * Layout::size(depth) + begin / Layout::kGroup * Layout::kStride;
      for (int c = 0; c < kLanes; ++c) {
        const int64_t column = panel * kLanes + c;
        float weights[Layout::kGroup] = {};
        if (column < num_columns) {
          const auto* source = weight + column * depth + begin;
          for (int64_t k = 0; k < count; ++k) weights[k] = Source::value(source[k]);
        }
        if (To::quantize(weights, count, group, c)) continue;
        for (int64_t seen = bad; column < seen && !bad.compare_exchange_weak(seen, column);) {
        }
      }
    }
  });
  return bad == num_columns ? -1 : bad.load();
}

}  // namespace quire
