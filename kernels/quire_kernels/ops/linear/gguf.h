// GGUF's blocks of small integers into panels: every value, scale and minimum as it is stored, in another order.
//
// Formats: ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml. A row of a weight is K / kBlock blocks.
#pragma once

#include "csrc/parallel.h"
#include "ops/linear/grouped.h"

namespace quire {

inline uint16_t read_half(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return bits;
}

inline void put_half(uint8_t* row, int column, uint16_t bits) { std::memcpy(row + 2 * column, &bits, sizeof(bits)); }

// value i of 32 in 16 bytes: all low halves, then all high ones
inline int nibble(const uint8_t* bytes, int i) { return i < 16 ? bytes[i] & 15 : bytes[i - 16] >> 4; }

// Each puts one block of one column at `group`, where the panel has that block.

struct FromQ4_1 {  // scale, minimum, 32 nibbles
  using Layout = Q4Groups;
  static constexpr int64_t kBlock = 32, kBytes = 20;

  static void put(const uint8_t* block, uint8_t* group, int column) {
    Layout::put_scale(group, column, read_half(block));
    Layout::put_minimum(group, column, read_half(block + 2));
    for (int i = 0; i < 32; ++i) Layout::Value::put(group + Layout::kHeader, i, column, nibble(block + 4, i));
  }
};

struct FromQ4_0 {  // scale, 32 nibbles: scale * (q - 8), so the minimum is -8 * scale
  using Layout = Q4Groups;
  static constexpr int64_t kBlock = 32, kBytes = 18;

  static void put(const uint8_t* block, uint8_t* group, int column) {
    const uint16_t scale = read_half(block);
    Layout::put_scale(group, column, scale);
    Layout::put_minimum(group, column, _cvtss_sh(-8.0f * _cvtsh_ss(scale), _MM_FROUND_TO_NEAREST_INT));
    for (int i = 0; i < 32; ++i) Layout::Value::put(group + Layout::kHeader, i, column, nibble(block + 2, i));
  }
};

struct FromQ8_0 {  // scale, 32 bytes
  using Layout = Q8Groups;
  static constexpr int64_t kBlock = 32, kBytes = 34;

  static void put(const uint8_t* block, uint8_t* group, int column) {
    Layout::put_scale(group, column, read_half(block));
    for (int i = 0; i < 32; ++i) Layout::Value::put(group + Layout::kHeader, i, column, block[2 + i]);
  }
};

struct FromQ4_K {  // two factors, 8 scales and 8 minimums of 6 bits in 12 bytes, 256 nibbles in 4 runs of 64
  using Layout = Q4KGroups;
  static constexpr int64_t kBlock = 256, kBytes = 144;

  static void put(const uint8_t* block, uint8_t* target, int column) {
    put_half(target, column, read_half(block));
    put_half(target + kScaleRow, column, read_half(block + 2));
    const uint8_t* packed = block + 4;
    for (int g = 0; g < 8; ++g) {
      uint8_t* group = target + Layout::kBlockHeader + g * Layout::kStride;
      const int scale = g < 4 ? packed[g] & 63 : (packed[g + 4] & 15) | packed[g - 4] >> 6 << 4;
      const int minimum = g < 4 ? packed[g + 4] & 63 : packed[g + 4] >> 4 | packed[g] >> 6 << 4;
      group[column] = static_cast<uint8_t>(scale);
      group[kLanes + column] = static_cast<uint8_t>(minimum);
      const uint8_t* run = block + 16 + g / 2 * 32;
      for (int i = 0; i < 32; ++i) {
        Layout::Value::put(group + Layout::kHeader, i, column, g % 2 == 0 ? run[i] & 15 : run[i] >> 4);
      }
    }
  }
};

struct FromQ6_K {  // 256 values less 32: 128 bytes of low halves, 64 of two high bits; 16 signed scales, a factor
  using Layout = Q6KGroups;
  static constexpr int64_t kBlock = 256, kBytes = 210;

  static void put(const uint8_t* block, uint8_t* target, int column) {
    put_half(target, column, read_half(block + 208));
    for (int g = 0; g < 16; ++g) {
      uint8_t* group = target + Layout::kBlockHeader + g * Layout::kStride;
      group[column] = block[192 + g];
      for (int i = 0; i < 16; ++i) {
        Layout::Value::put(group + Layout::kHeader, i, column, value(block, g * 16 + i));
      }
    }
  }

  // of each half of 128: the low halves of 64 bytes, then their high halves; two bits of 32 bytes four times
  static int value(const uint8_t* block, int i) {
    const int half = i / 128, at = i % 128;
    const uint8_t low = block[half * 64 + at % 64];
    const uint8_t high = block[128 + half * 32 + at % 32];
    return ((at < 64 ? low & 15 : low >> 4) | (high >> at / 32 * 2 & 3) << 4) - 32;
  }
};

enum class GgufType : int64_t { kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kQ4_K = 12, kQ6_K = 14 };

// f(from) with what reads blocks of `type`.
template <class F>
void with_gguf_type(GgufType type, const F& f) {
  switch (type) {
    case GgufType::kQ4_0: return f(FromQ4_0{});
    case GgufType::kQ4_1: return f(FromQ4_1{});
    case GgufType::kQ8_0: return f(FromQ8_0{});
    case GgufType::kQ4_K: return f(FromQ4_K{});
    case GgufType::kQ6_K: return f(FromQ6_K{});
  }
}

// Panels from the blocks of a weight [N, K], missing columns zero. K is whole blocks.
template <class From>
void pack_gguf(const uint8_t* blocks, int64_t num_columns, int64_t depth, uint8_t* panels) {
  using Layout = typename From::Layout;
  const int64_t num_panels = (num_columns + kLanes - 1) / kLanes, num_blocks = depth / From::kBlock;
  const int64_t panel_size = Layout::size(depth), step = Layout::size(From::kBlock);
  parallel_rows(num_panels, panel_size, [&](int64_t panel) {
    uint8_t* target = panels + panel * panel_size;
    const int64_t num_here = std::min<int64_t>(kLanes, num_columns - panel * kLanes);
    if (num_here < kLanes) std::memset(target, 0, static_cast<size_t>(panel_size));
    for (int64_t b = 0; b < num_blocks; ++b) {
      for (int c = 0; c < num_here; ++c) {
        From::put(blocks + ((panel * kLanes + c) * num_blocks + b) * From::kBytes, target + b * step, c);
      }
    }
  });
}

}  // namespace quire
