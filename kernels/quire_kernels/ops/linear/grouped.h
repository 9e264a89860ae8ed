// Weights as small integers in groups along k: weight = scale * value, or scale * value + minimum.
//
// A Layout says where a group of a panel's 16 columns lies, and how its scales, minimums and values are widened to
// fp32. Scales lie before their values, so that a panel is one stream of memory.
#pragma once

#include <algorithm>

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

// Sixteen values at one k: bytes, or two in a byte (columns 0 to 7 in the low halves).
struct Bytes {
  static constexpr int64_t kRow = kLanes;
  static QUIRE_INLINE F32x16 widen(const uint8_t* p) { return widen_int8(reinterpret_cast<const int8_t*>(p)); }
  static void put(uint8_t* row, int column, int value) { row[column] = static_cast<uint8_t>(value); }
};

struct Nibbles {
  static constexpr int64_t kRow = kLanes / 2;
  static QUIRE_INLINE F32x16 widen(const uint8_t* p) { return widen_nibbles(p); }
  // columns in ascending order: a low half clears the high one
  static void put(uint8_t* row, int column, int value) {
    if (column < 8) {
      row[column] = static_cast<uint8_t>(value);
    } else {
      row[column - 8] = static_cast<uint8_t>(row[column - 8] | value << 4);
    }
  }
};

// One 16-bit scale a group and column, and one minimum where the format has them.
template <class Scales, class Values, int64_t GROUP, bool MINIMUM>
struct FlatGroups {
  using Value = Values;
  using Place = const uint8_t*;

  static constexpr int64_t kGroup = GROUP;
  static constexpr bool kHasMinimum = MINIMUM;
  static constexpr int64_t kHeader = kScaleRow * (MINIMUM ? 2 : 1);
  static constexpr int64_t kStride = kHeader + GROUP * Values::kRow;  // from a group to the next

  // bytes of a panel; the last group is as long as what is left of K
  static constexpr int64_t size(int64_t depth) { return (depth + GROUP - 1) / GROUP * kHeader + depth * Values::kRow; }
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
  static constexpr int64_t kStride = kHeader + GROUP * Values::kRow;
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

// sums[i] = x[begin + i * GROUP] + ... of each group in [begin, end), always in the same order
template <int64_t GROUP>
void sum_groups(const float* x, int64_t begin, int64_t end, float* sums) {
  for (int64_t k = begin; k < end; k += GROUP) {
    F32x16 sum = zero();
    for (int64_t i = k; i < std::min(k + GROUP, end); i += kLanes) sum = add(sum, load_some(x + i, end - i));
    *sums++ = sum_lanes(sum);
  }
}

template <class Layout>
struct GroupedPanels {
  using Stored = uint8_t;

  static constexpr int64_t kDepthUnit = Layout::kGroup;
  static constexpr bool kHasMinimum = Layout::kHasMinimum;
  static constexpr bool kWidensOnce = true;

  static constexpr int64_t size(int64_t depth) { return Layout::size(depth); }

  // acc += rows[., begin:end] times the panels at `first` and beside it, panel_size apart; begin is a group's. A
  // group's sum is multiplied by its scale once, so that the loop over k widens and adds and nothing else; the minimum
  // times the group's sum of x follows.
  template <int ROWS, int VECTORS>
  static QUIRE_INLINE void accumulate(Tile<ROWS, VECTORS>& acc, const Rows& rows, const uint8_t* first,
                                      int64_t panel_size, int64_t begin, int64_t end) {
    multiply_groups<ROWS, VECTORS>(
        acc, rows, first, panel_size, begin, end, [](const uint8_t* values, int64_t, int64_t i) {
          const uint8_t* place = values + i * Layout::Value::kRow;
          // few rows wait for memory: a group ahead, 6 % at one row; it may lie beyond the panels, which does no harm
          if constexpr (ROWS <= 2) _mm_prefetch(reinterpret_cast<const char*>(place) + Layout::kStride, _MM_HINT_T0);
          return Layout::Value::widen(place);
        });
  }

  // The same for one panel whose values [begin, end) were widened before.
  template <int ROWS>
  static QUIRE_INLINE void accumulate_widened(Tile<ROWS, 1>& acc, const Rows& rows, const uint8_t* panel,
                                              const float* widened, int64_t begin, int64_t end) {
    multiply_groups<ROWS, 1>(acc, rows, panel, 0, begin, end, [&](const uint8_t*, int64_t k, int64_t i) {
      return load(widened + (k - begin + i) * kLanes);
    });
  }

  // out[k - begin] = the panel's sixteen values at k
  static void widen(const uint8_t* panel, int64_t begin, int64_t end, float* out) {
    for (int64_t k = begin; k < end; k += Layout::kGroup) {
      const uint8_t* values = Layout::values(Layout::place(panel, k));
      const int64_t count = std::min(Layout::kGroup, end - k);
      for (int64_t i = 0; i < count; ++i) {
        store(out + (k - begin + i) * kLanes, Layout::Value::widen(values + i * Layout::Value::kRow));
      }
    }
  }

  // out[k] = the weight at k of a panel's column
  static void read_column(const uint8_t* panel, int column, int64_t depth, float* out) {
    for (int64_t k = 0; k < depth; k += Layout::kGroup) {
      const auto group = Layout::place(panel, k);
      const int64_t count = std::min(Layout::kGroup, depth - k);
      for (int64_t i = 0; i < count; ++i) {
        F32x16 weights =
            mul(Layout::scale(group), Layout::Value::widen(Layout::values(group) + i * Layout::Value::kRow));
        if constexpr (kHasMinimum) weights = add(weights, Layout::minimum(group));
        float lanes[kLanes];
        store(lanes, weights);
        out[k + i] = lanes[column];
      }
    }
  }

 private:
  template <int ROWS, int VECTORS, class Widen>
  static QUIRE_INLINE void multiply_groups(Tile<ROWS, VECTORS>& acc, const Rows& rows, const uint8_t* first,
                                           int64_t panel_size, int64_t begin, int64_t end, const Widen& widened) {
    for (int64_t k = begin; k < end; k += Layout::kGroup) {
      Tile<ROWS, VECTORS> sum;
      clear<ROWS, VECTORS>(sum);
      multiply_add<ROWS, VECTORS>(
          sum, rows.x + k, rows.ldx, 0, std::min(Layout::kGroup, end - k),
          [&](int64_t i, int v) { return widened(Layout::values(Layout::place(first + v * panel_size, k)), k, i); });
      each<ROWS, VECTORS>([&](int r, int v) {
        const auto group = Layout::place(first + v * panel_size, k);
        acc[r][v] = fma(sum[r][v], Layout::scale(group), acc[r][v]);
        if constexpr (kHasMinimum) {
          const F32x16 x = splat(rows.sums[r * rows.num_sums + (k - begin) / Layout::kGroup]);
          acc[r][v] = fma(x, Layout::minimum(group), acc[r][v]);
        }
      });
    }
  }
};

using Int8Panels = GroupedPanels<Int8Groups>;
using Int4Panels = GroupedPanels<Int4Groups>;
using Q4Panels = GroupedPanels<Q4Groups>;
using Q8Panels = GroupedPanels<Q8Groups>;
using Q4KPanels = GroupedPanels<Q4KGroups>;
using Q6KPanels = GroupedPanels<Q6KGroups>;

}  // namespace quire
