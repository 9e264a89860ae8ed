// x @ weight.T where weights are small integers in groups along k: weight = scale * value, or scale * value + minimum.
//
// x is rounded to integers with one scale for each row and group, so that a group's sum is made of integers: several
// products of a column in one instruction, and the same sum in any order. Each output element is one chain of fused
// multiply-adds over the groups, then the bias: the same bits whatever T, the thread count and the instruction set are.
//
// A Layout says where a group of a panel's 16 columns lies, and how its scales, minimums and values are widened to
// fp32. Scales lie before their values, so that a panel is one stream of memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "csrc/parallel.h"
#include "csrc/tile.h"

namespace quire {

// Sixteen scales in bf16, columns interleaved as bf16 panels are (0 8 1 9 ...).
struct Bf16Scales {
  static QUIRE_INLINE F32x16 widen(const uint8_t* p) { return widen_bf16(reinterpret_cast<const uint16_t*>(p)); }
  static constexpr int position(int c) { return c < 8 ? 2 * c : 2 * (c - 8) + 1; }
};

struct Fp16Scales {
  static QUIRE_INLINE F32x16 widen(const uint8_t* p) { return widen_fp16(reinterpret_cast<const uint16_t*>(p)); }
  static constexpr int position(int c) { return c; }
};

constexpr int64_t kScaleRow = 2 * kLanes;  // bytes of sixteen scales of 16 bits

constexpr int64_t kWord = 2 * kLanes;  // bytes of values that one load takes

// Signed bytes: sixteen columns at two k. x is rounded to 16 bits, which loses next to nothing beside the weights.
struct Bytes {
  using Rounded = int16_t;
  using Sum = I32x16;

  static constexpr int64_t kDepth = 2;       // of k in a word
  static constexpr int64_t kMaxWords = 256;  // 256 * 2 * 128 * 32767 < 2^31

  static QUIRE_INLINE I16x32 load(const uint8_t* word) { return load_bytes(word); }
  static QUIRE_INLINE I32x16 total(I32x16 sum) { return sum; }
  static void put(uint8_t* values, int64_t k, int column, int value) {
    values[place(k, column)] = static_cast<uint8_t>(value);
  }
  static int get(const uint8_t* values, int64_t k, int column) { return static_cast<int8_t>(values[place(k, column)]); }

 private:
  static int64_t place(int64_t k, int column) { return k / kDepth * kWord + column * kDepth + k % kDepth; }
};

// Two in a byte, never negative: sixteen columns at four k, columns 0 to 7 in the low halves. x is rounded to 8 bits.
struct Nibbles {
  using Rounded = int8_t;
  using Sum = I16x32;

  static constexpr int64_t kDepth = 4;
  static constexpr int64_t kMaxWords = 8;  // 8 * 2 * 15 * 127 < 2^15

  static QUIRE_INLINE I8x64 load(const uint8_t* word) { return load_nibbles(word); }
  static QUIRE_INLINE I32x16 total(I16x32 sum) { return sum_pairs(sum); }
  // columns in ascending order: a low half clears the high one
  static void put(uint8_t* values, int64_t k, int column, int value) {
    uint8_t& both = values[place(k, column)];
    both = static_cast<uint8_t>(column < 8 ? value : both | value << 4);
  }
  static int get(const uint8_t* values, int64_t k, int column) {
    const int both = values[place(k, column)];
    return column < 8 ? both & 15 : both >> 4;
  }

 private:
  static int64_t place(int64_t k, int column) { return k / kDepth * kWord + column % 8 * kDepth + k % kDepth; }
};

template <class Value>
constexpr int64_t num_words(int64_t depth) {
  return (depth + Value::kDepth - 1) / Value::kDepth;
}

// One 16-bit scale a group and column, and one minimum where the format has them.
template <class Scales, class Values, int64_t GROUP, bool MINIMUM>
struct FlatGroups {
  using Value = Values;
  using Place = const uint8_t*;

  static constexpr int64_t kGroup = GROUP;
  static constexpr bool kHasMinimum = MINIMUM;
  static constexpr int64_t kHeader = kScaleRow * (MINIMUM ? 2 : 1);
  static constexpr int64_t kStride = kHeader + num_words<Values>(GROUP) * kWord;  // from a group to the next

  // bytes of a panel; the last group has as many words as what is left of K needs
  static constexpr int64_t size(int64_t depth) {
    return (depth + GROUP - 1) / GROUP * kHeader + num_words<Values>(depth) * kWord;
  }
  static QUIRE_INLINE Place place(const uint8_t* panel, int64_t k) { return panel + k / GROUP * kStride; }
  static QUIRE_INLINE F32x16 scale(Place group) { return Scales::widen(group); }
  static QUIRE_INLINE F32x16 minimum(Place group) { return Scales::widen(group + kScaleRow); }
  static QUIRE_INLINE const uint8_t* values(Place group) { return group + kHeader; }

  static void put_scale(uint8_t* group, int column, uint16_t bits) { put(group, column, bits); }
  static void put_minimum(uint8_t* group, int column, uint16_t bits) { put(group + kScaleRow, column, bits); }

 private:
  static void put(uint8_t* row, int column, uint16_t bits) {
    std::memcpy(row + 2 * Scales::position(column), &bits, sizeof(bits));
  }
};

using Int8Groups = FlatGroups<Bf16Scales, Bytes, 64, false>;
using Int4Groups = FlatGroups<Bf16Scales, Nibbles, 32, true>;
using Q4Groups = FlatGroups<Fp16Scales, Nibbles, 32, true>;  // GGUF's Q4_1, and Q4_0: scale * (q - 8)
using Q8Groups = FlatGroups<Fp16Scales, Bytes, 32, false>;   // GGUF's Q8_0

// GGUF's K formats: 256 of k share fp16 factors, by which each group's own small scale and minimum are multiplied. Both
// products are exact in fp32.
template <class Values, int64_t GROUP, bool MINIMUM>
struct NestedGroups {
  using Value = Values;
  struct Place {
    const uint8_t* block;
    const uint8_t* group;
  };

  static constexpr int64_t kBlock = 256;
  static constexpr int64_t kGroup = GROUP;
  static constexpr bool kHasMinimum = MINIMUM;
  static constexpr int64_t kBlockHeader = kScaleRow * (MINIMUM ? 2 : 1);
  static constexpr int64_t kHeader = kLanes * (MINIMUM ? 2 : 1);
  static constexpr int64_t kStride = kHeader + num_words<Values>(GROUP) * kWord;
  static constexpr int64_t kBlockSize = kBlockHeader + kBlock / GROUP * kStride;

  // bytes of a panel; the format asks for whole blocks
  static constexpr int64_t size(int64_t depth) { return depth / kBlock * kBlockSize; }
  static QUIRE_INLINE Place place(const uint8_t* panel, int64_t k) {
    const uint8_t* block = panel + k / kBlock * kBlockSize;
    return {block, block + kBlockHeader + k % kBlock / GROUP * kStride};
  }
  static QUIRE_INLINE F32x16 scale(Place p) {
    const F32x16 own = MINIMUM ? widen_uint8(p.group) : widen_int8(reinterpret_cast<const int8_t*>(p.group));
    return mul(Fp16Scales::widen(p.block), own);
  }
  static QUIRE_INLINE F32x16 minimum(Place p) {
    return sub(zero(), mul(Fp16Scales::widen(p.block + kScaleRow), widen_uint8(p.group + kLanes)));
  }
  static QUIRE_INLINE const uint8_t* values(Place p) { return p.group + kHeader; }
};

using Q4KGroups = NestedGroups<Nibbles, 32, true>;  // scales and minimums of 6 bits
using Q6KGroups = NestedGroups<Bytes, 16, false>;   // values of 6 bits, kept in 8; signed scales

// x [T, K] as integers with one scale for each row and group of k: x = scale * value, the largest of a group the
// type's largest.
template <class T>
struct RoundedRows {
  T* values;  // [T, stride]
  int64_t stride;
  float* scales;  // [T, num_groups]
  float* sums;    // of a group's scale * value, [T, num_groups]; null where the format has no minimums
  int64_t num_groups;
};

// Row r of x, at `x`, group after group. A group with a value that is not finite gets a scale that is not.
template <int64_t GROUP, class T>
void round_row(const float* x, int64_t depth, const RoundedRows<T>& rows, int64_t r) {
  static_assert(GROUP % kLanes == 0);
  constexpr float kMost = std::numeric_limits<T>::max(), kLeast = 1e-30f;  // below kLeast x is taken as 0
  T* values = rows.values + r * rows.stride;
  for (int64_t g = 0; g < rows.num_groups; ++g) {
    const int64_t begin = g * GROUP, end = std::min(begin + GROUP, depth);
    F32x16 largest = zero(), probe = zero();  // 0 * x: NaN for what is not finite
    for (int64_t k = begin; k < end; k += kLanes) {
      const F32x16 part = load_some(x + k, end - k);
      largest = max(largest, max(part, sub(zero(), part)));
      probe = fma(part, zero(), probe);
    }
    const float most = max_lanes(largest);
    const F32x16 inverse = splat(most > kLeast ? kMost / most : 0.0f);
    F32x16 sum = zero();  // of bytes: exact
    for (int64_t k = begin; k < end; k += kLanes) {
      const F32x16 value = round_even(mul(load_some(x + k, end - k), inverse));
      store(values + k, value);
      sum = add(sum, value);
    }
    const float scale = most / kMost + sum_lanes(probe);
    rows.scales[r * rows.num_groups + g] = scale;
    if (rows.sums != nullptr) rows.sums[r * rows.num_groups + g] = scale * sum_lanes(sum);
  }
}

template <class Layout>
struct GroupedPanels {
  using Stored = uint8_t;
  using Value = typename Layout::Value;
  using Rows = RoundedRows<typename Value::Rounded>;

  static constexpr int64_t kWords = num_words<Value>(Layout::kGroup);  // of a group
  static_assert(kWords <= Value::kMaxWords && Layout::kGroup % Value::kDepth == 0);

  static constexpr int64_t size(int64_t depth) { return Layout::size(depth); }

  // acc = rows [row, row + ROWS) times a panel. A group's sum is an integer, exact in any order; it is scaled once.
  template <int ROWS>
  static QUIRE_INLINE void multiply(Tile<ROWS, 1>& acc, const Rows& rows, int64_t row, const uint8_t* panel,
                                    int64_t depth) {
    const auto* x = rows.values + row * rows.stride;
    for (int64_t g = 0; g < rows.num_groups; ++g, x += Layout::kGroup) {
      const int64_t k = g * Layout::kGroup;
      const auto place = Layout::place(panel, k);
      I32x16 sum[ROWS];
      if (depth - k >= Layout::kGroup) {
        sum_group<ROWS>(sum, Layout::values(place), x, rows.stride, kWords);
      } else {
        sum_group<ROWS>(sum, Layout::values(place), x, rows.stride, num_words<Value>(depth - k));
      }
      const F32x16 scale = Layout::scale(place);
      each<ROWS, 1>([&](int r, int) {
        const int64_t at = (row + r) * rows.num_groups + g;
        acc[r][0] = fma(to_float(sum[r]), mul(scale, splat(rows.scales[at])), acc[r][0]);
        if constexpr (Layout::kHasMinimum) acc[r][0] = fma(splat(rows.sums[at]), Layout::minimum(place), acc[r][0]);
      });
    }
  }

  // out[k] = the weight at k of a panel's column
  static void read_column(const uint8_t* panel, int column, int64_t depth, float* out) {
    for (int64_t k = 0; k < depth; k += Layout::kGroup) {
      const auto group = Layout::place(panel, k);
      float scale[kLanes], minimum[kLanes] = {};
      store(scale, Layout::scale(group));
      if constexpr (Layout::kHasMinimum) store(minimum, Layout::minimum(group));
      const int64_t count = std::min(Layout::kGroup, depth - k);
      for (int64_t i = 0; i < count; ++i) {
        const int value = Value::get(Layout::values(group), i, column);
        out[k + i] = scale[column] * static_cast<float>(value) + minimum[column];
      }
    }
  }

 private:
  template <int ROWS>
  static QUIRE_INLINE void sum_group(I32x16 (&total)[ROWS], const uint8_t* word, const typename Value::Rounded* x,
                                     int64_t ldx, int64_t count) {
    typename Value::Sum sum[ROWS] = {};
#pragma GCC unroll 1  // unrolled, g++ 12 makes all products first, spills them, and sums them then
    for (int64_t i = 0; i < count; ++i, word += kWord, x += Value::kDepth) {
      const auto values = Value::load(word);
      each<ROWS, 1>([&](int r, int) { sum[r] = add(sum[r], multiply_pairs(values, splat(x + r * ldx))); });
    }
    each<ROWS, 1>([&](int r, int) { total[r] = Value::total(sum[r]); });
  }
};

template <class Layout>
struct GroupedLinear {
  using Panels = GroupedPanels<Layout>;
  using Rows = typename Panels::Rows;

  const float* x;  // [T, K], rows ldx apart
  int64_t ldx;
  int64_t num_rows;  // T
  const uint8_t* panels;
  int64_t num_columns;  // N
  int64_t depth;        // K
  const float* bias;    // [N] or null
  float* out;           // [T, N], rows ldo apart
  int64_t ldo;

  static constexpr int64_t kBytes = sizeof(typename Panels::Value::Rounded);
  static constexpr int64_t kPanels = 4;                     // of one task
  static constexpr int64_t kBlockBytes = 192 * 1024;        // of x: part of an L2 cache
  static constexpr int kRows = kTileVectors >= 24 ? 8 : 4;  // of a tile: sums of two widths take registers

  void run() const {
    const Rows rows = rounded();
    const int64_t num_panels = (num_columns + kLanes - 1) / kLanes;
    const int64_t num_groups = (num_panels + kPanels - 1) / kPanels;
    const int64_t fit = kBlockBytes / std::max<int64_t>(rows.stride * kBytes, 1) / kRows * kRows;
    const int64_t row_step = std::max<int64_t>(fit, kRows);
    const int64_t num_row_blocks = (num_rows + row_step - 1) / row_step;
    parallel_for(num_row_blocks * num_groups, num_rows * num_columns * depth, [&](int64_t task) {
      const int64_t row = task / num_groups * row_step, row_end = std::min(row + row_step, num_rows);
      const int64_t first = task % num_groups * kPanels;
      for (int64_t panel = first; panel < std::min(first + kPanels, num_panels); ++panel) {
        int64_t r = row;
        for (; r + kRows <= row_end; r += kRows) tile<kRows>(rows, r, panel);
        if (r < row_end) {
          with_rows<kRows>(static_cast<int>(row_end - r), [&](auto n) { tile<decltype(n)::value>(rows, r, panel); });
        }
      }
    });
  }

 private:
  Rows rounded() const {
    Rows rows{};
    rows.stride = (depth + kLanes - 1) / kLanes * kLanes;
    rows.num_groups = (depth + Layout::kGroup - 1) / Layout::kGroup;
    const int64_t num_scales = num_rows * rows.num_groups * (Layout::kHasMinimum ? 2 : 1);
    rows.scales = scratch(static_cast<size_t>(num_scales) + num_rows * rows.stride * kBytes / sizeof(float));
    if constexpr (Layout::kHasMinimum) rows.sums = rows.scales + num_scales / 2;
    rows.values = reinterpret_cast<typename Panels::Value::Rounded*>(rows.scales + num_scales);
    parallel_rows(num_rows, depth, [&](int64_t r) { round_row<Layout::kGroup>(x + r * ldx, depth, rows, r); });
    return rows;
  }

  template <int ROWS>
  void tile(const Rows& rows, int64_t row, int64_t panel) const {
    const int64_t column = panel * kLanes, width = num_columns - column;
    Tile<ROWS, 1> acc;
    clear<ROWS, 1>(acc);
    Panels::template multiply<ROWS>(acc, rows, row, panels + panel * Panels::size(depth), depth);
    each<ROWS, 1>([&](int r, int) {
      if (bias != nullptr) acc[r][0] = add(acc[r][0], load_some(bias + column, width));
      store_some(out + (row + r) * ldo + column, acc[r][0], width);
    });
  }
};

using Int8Panels = GroupedPanels<Int8Groups>;
using Int4Panels = GroupedPanels<Int4Groups>;
using Q4Panels = GroupedPanels<Q4Groups>;
using Q8Panels = GroupedPanels<Q8Groups>;
using Q4KPanels = GroupedPanels<Q4KGroups>;
using Q6KPanels = GroupedPanels<Q6KGroups>;

}  // namespace quire
