// x @ weight.T over panels of 16 output columns, [ceil(N/16)][K][16], in bf16, fp16 or fp32; small integers: grouped.h.
//
// Each output element is one chain of fused multiply-adds over k = 0, 1, ..., K-1, then the bias: the same bits
// whatever T, the thread count, the block sizes below and the instruction set are.
#pragma once

#include <algorithm>

#include "csrc/parallel.h"
#include "csrc/tile.h"
#include "ops/linear/grouped.h"

namespace quire {

enum class WeightFormat : int32_t {
  kBf16 = 0,
  kFp16 = 1,
  kFp32 = 2,
  kInt8 = 3,
  kInt4 = 4,
  kQ4 = 5,
  kQ8 = 6,
  kQ4K = 7,
  kQ6K = 8,
};

// The weights that come next, asked for bit by bit while tiles compute: memory works all the time then, not only while
// a panel's first tile waits for it.
struct Ahead {
  const char* next;
  int64_t step;  // bytes for each k of a tile

  QUIRE_INLINE void fetch() {
    _mm_prefetch(next, _MM_HINT_T1);
    next += step;
  }
};

// Panels of one value for each k and column; Format says how a value is stored.
template <class Format>
struct PlainPanels {
  // of Stored in a panel
  static constexpr int64_t size(int64_t depth) { return depth * kLanes; }

  // acc += x[., begin:end] (rows ldx apart) times the panels at `first` and beside it, panel_size apart
  template <int ROWS, int VECTORS, bool FETCH, class Stored>
  static QUIRE_INLINE void accumulate(Tile<ROWS, VECTORS>& acc, const float* x, int64_t ldx, const Stored* first,
                                      int64_t panel_size, int64_t begin, int64_t end, Ahead ahead) {
    multiply_add<ROWS, VECTORS>(acc, x, ldx, begin, end, [&](int64_t k, int v) {
      if (FETCH && v == 0) ahead.fetch();
      return Format::widen(first + v * panel_size + k * kLanes);
    });
  }

  // out[k] = the weight at k of a panel's column
  template <class Stored>
  static void read_column(const Stored* panel, int column, int64_t depth, float* out) {
    const Stored* place = panel + Format::position(column);
    for (int64_t k = 0; k < depth; ++k) out[k] = Format::value(place[k * kLanes]);
  }
};

struct Bf16Panels : PlainPanels<Bf16Panels> {
  using Stored = uint16_t;
  static QUIRE_INLINE F32x16 widen(const uint16_t* p) { return widen_bf16(p); }
  // where column c of a panel is stored
  static constexpr int position(int c) { return c < 8 ? 2 * c : 2 * (c - 8) + 1; }
  static float value(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float result;
    std::memcpy(&result, &wide, sizeof(result));
    return result;
  }
};

struct Fp16Panels : PlainPanels<Fp16Panels> {
  using Stored = uint16_t;
  static QUIRE_INLINE F32x16 widen(const uint16_t* p) { return widen_fp16(p); }
  static constexpr int position(int c) { return c; }
  static float value(uint16_t bits) { return _cvtsh_ss(bits); }
};

struct Fp32Panels : PlainPanels<Fp32Panels> {
  using Stored = float;
  static QUIRE_INLINE F32x16 widen(const float* p) { return load(p); }
  static constexpr int position(int c) { return c; }
  static float value(float f) { return f; }
};

// f(panels) with the traits of `format`, one of the plain ones.
template <class F>
void with_plain_format(WeightFormat format, const F& f) {
  switch (format) {
    case WeightFormat::kBf16: return f(Bf16Panels{});
    case WeightFormat::kFp16: return f(Fp16Panels{});
    case WeightFormat::kFp32: return f(Fp32Panels{});
    default: return;
  }
}

// f(panels) with the traits of `format`.
template <class F>
void with_format(WeightFormat format, const F& f) {
  switch (format) {
    case WeightFormat::kInt8: return f(Int8Panels{});
    case WeightFormat::kInt4: return f(Int4Panels{});
    case WeightFormat::kQ4: return f(Q4Panels{});
    case WeightFormat::kQ8: return f(Q8Panels{});
    case WeightFormat::kQ4K: return f(Q4KPanels{});
    case WeightFormat::kQ6K: return f(Q6KPanels{});
    default: return with_plain_format(format, f);
  }
}

template <class Panels>
struct Linear {
  using Stored = typename Panels::Stored;

  const float* x;  // [T, K], rows ldx apart
  int64_t ldx;
  int64_t num_rows;  // T
  const Stored* panels;
  int64_t num_columns;  // N
  int64_t depth;        // K
  const float* bias;    // [N] or null
  float* out;           // [T, N], rows ldo apart
  int64_t ldo;

  static constexpr int64_t kGroup = 4;            // panels of one task
  static constexpr int64_t kDepthBlock = 1024;    // of k: x's tile and a panel stay near the core
  static constexpr int64_t kBlockFloats = 49152;  // of x: 192 KiB of the 512 KiB or more of an L2 cache

  static constexpr int kFetchRows = 4;       // of a tile: with fewer, memory is busy all the time anyway
  static constexpr int64_t kFetchTiles = 6;  // over a panel: beside more, waiting for it once is nothing

  // What one task computes of out, over a part of k.
  struct Block {
    int64_t row, row_end, panel, panel_end, begin, end;
  };

  int64_t num_panels() const { return (num_columns + kLanes - 1) / kLanes; }

  void run() const {
    const int64_t num_depth_blocks = std::max<int64_t>(1, (depth + kDepthBlock - 1) / kDepthBlock);
    const int64_t depth_step = std::max<int64_t>(1, (depth + num_depth_blocks - 1) / num_depth_blocks);
    const int64_t fit = kBlockFloats / depth_step / kTileRows * kTileRows;
    const int64_t row_step = std::max<int64_t>(fit, kTileRows);
    const int64_t num_row_blocks = (num_rows + row_step - 1) / row_step;
    const int64_t num_groups = (num_panels() + kGroup - 1) / kGroup;
    parallel_for(num_row_blocks * num_groups, num_rows * num_columns * depth, [&](int64_t task) {
      const int64_t row = task / num_groups * row_step;
      const int64_t panel = task % num_groups * kGroup;
      const int64_t row_end = std::min(row + row_step, num_rows);
      const int64_t panel_end = std::min(panel + kGroup, num_panels());
      for (int64_t k = 0; k < std::max<int64_t>(depth, 1); k += depth_step) {
        block({row, row_end, panel, panel_end, k, std::min(k + depth_step, depth)});
      }
    });
  }

  // A panel, or some where tiles are low and wide, is used by all rows while it is near.
  void block(const Block& b) const {
    const int64_t num_rows_here = b.row_end - b.row, num_tiles = (num_rows_here + kTileRows - 1) / kTileRows;
    const int64_t width = tile_vectors(static_cast<int>(num_rows_here / num_tiles));  // of the lowest tile
    for (int64_t panel = b.panel; panel < b.panel_end; panel += width) {
      const int64_t panel_end = std::min(panel + width, b.panel_end);
      const int64_t step = width * kLanes * static_cast<int64_t>(sizeof(Stored)) / num_tiles;
      const Block part{b.row, b.row_end, panel, panel_end, b.begin, b.end};
      if (num_tiles <= kFetchTiles) {
        tiles<true>(part, num_tiles, {following(b, panel_end), step});
      } else {
        tiles<false>(part, num_tiles, {nullptr, 0});
      }
    }
  }

  // Where the weights lie that come after those of `b` up to `panel_end`, as far as this thread can tell.
  const char* following(const Block& b, int64_t panel_end) const {
    int64_t panel = panel_end, k = b.begin;
    if (panel_end == b.panel_end && b.end < depth) {
      panel = b.panel, k = b.end;
    } else if (panel_end == b.panel_end) {
      // the groups between are the other threads'; after the last one the next rows begin with the first
      panel += (state().num_threads.load(std::memory_order_relaxed) - 1) * kGroup, k = 0;
      if (panel >= num_panels()) panel = 0;
    }
    return reinterpret_cast<const char*>(panels + panel * Panels::size(depth) + k * kLanes);
  }

  // All rows of a block, in as few tiles as can be and as even: a low one does not hide the latency of its additions.
  template <bool FETCH>
  void tiles(const Block& b, int64_t num_tiles, Ahead ahead) const {
    const int64_t height = (b.row_end - b.row) / num_tiles, num_taller = (b.row_end - b.row) % num_tiles;
    const int64_t middle = b.row + num_taller * (height + 1);
    if (num_taller > 0) {
      with_rows(static_cast<int>(height + 1),
                [&](auto rows) { columns<decltype(rows)::value, FETCH>(b, b.row, middle, ahead); });
    }
    if (FETCH) ahead.next += num_taller * (b.end - b.begin) * ahead.step;
    with_rows(static_cast<int>(height),
              [&](auto rows) { columns<decltype(rows)::value, FETCH>(b, middle, b.row_end, ahead); });
  }

  // Rows [row, row_end), a multiple of ROWS. A function of its own: where it is inlined into its callers, g++ 12 keeps
  // some of a tile's sums in memory.
  template <int ROWS, bool FETCH>
  __attribute__((noinline)) void columns(const Block& b, int64_t row, int64_t row_end, Ahead ahead) const {
    constexpr int kVectors = tile_vectors(ROWS);
    const int64_t panel_size = Panels::size(depth);
    const auto run_tile = [&](int64_t r, int64_t panel, auto vectors) {
      constexpr int kWidth = decltype(vectors)::value;
      tile<ROWS, kWidth>(b, r, panel, [&](auto& acc) {
        Panels::template accumulate<ROWS, kWidth, FETCH && ROWS >= kFetchRows>(
            acc, x + r * ldx, ldx, panels + panel * panel_size, panel_size, b.begin, b.end, ahead);
      });
    };
    for (int64_t r = row; r < row_end; r += ROWS, ahead.next += (b.end - b.begin) * ahead.step) {
      int64_t panel = b.panel;
      for (; panel + kVectors <= b.panel_end; panel += kVectors) {
        run_tile(r, panel, std::integral_constant<int, kVectors>{});
      }
      for (; panel < b.panel_end; ++panel) run_tile(r, panel, std::integral_constant<int, 1>{});
    }
  }

  template <int ROWS, int VECTORS, class Accumulate>
  QUIRE_INLINE void tile(const Block& b, int64_t row, int64_t panel, const Accumulate& accumulate) const {
    Tile<ROWS, VECTORS> acc;
    if (b.begin == 0) {
      clear<ROWS, VECTORS>(acc);
    } else {
      each<ROWS, VECTORS>([&](int r, int v) { acc[r][v] = load_some(place(row + r, panel + v), width(panel + v)); });
    }
    accumulate(acc);
    if (bias != nullptr && b.end == depth) {
      each<ROWS, VECTORS>(
          [&](int r, int v) { acc[r][v] = add(acc[r][v], load_some(bias + (panel + v) * kLanes, width(panel + v))); });
    }
    each<ROWS, VECTORS>([&](int r, int v) { store_some(place(row + r, panel + v), acc[r][v], width(panel + v)); });
  }

  float* place(int64_t row, int64_t panel) const { return out + row * ldo + panel * kLanes; }
  int64_t width(int64_t panel) const { return num_columns - panel * kLanes; }
};

template <class Panels>
struct LinearOver {
  using Type = Linear<Panels>;
};

template <class Layout>
struct LinearOver<GroupedPanels<Layout>> {
  using Type = GroupedLinear<Layout>;
};

// panels[ceil(N/16)][K][16] from weight [N, K] of one of the plain formats, missing columns zero
template <class Panels>
void pack(const typename Panels::Stored* weight, int64_t num_columns, int64_t depth, typename Panels::Stored* panels) {
  const int64_t num_panels = (num_columns + kLanes - 1) / kLanes;
  parallel_rows(num_panels, depth * kLanes, [&](int64_t panel) {
    auto* target = panels + panel * depth * kLanes;
    for (int c = 0; c < kLanes; ++c) {
      const int64_t column = panel * kLanes + c;
      auto* place = target + Panels::position(c);
      for (int64_t k = 0; k < depth; ++k) place[k * kLanes] = column < num_columns ? weight[column * depth + k] : 0;
    }
  });
}

// out[t] = weight row ids[t], in fp32. Returns the first id that is no row, or -1.
template <class Panels>
int64_t embedding(const int64_t* ids, int64_t num_ids, const typename Panels::Stored* panels, int64_t num_columns,
                  int64_t depth, float* out) {
  for (int64_t t = 0; t < num_ids; ++t) {
    if (ids[t] < 0 || ids[t] >= num_columns) return t;
  }
  parallel_rows(num_ids, depth * 4, [&](int64_t t) {
    const auto* panel = panels + ids[t] / kLanes * Panels::size(depth);
    Panels::read_column(panel, static_cast<int>(ids[t] % kLanes), depth, out + t * depth);
  });
  return -1;
}

}  // namespace quire
