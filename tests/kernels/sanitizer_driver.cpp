// Runs every C++ kernel over odd shapes under AddressSanitizer and
// UndefinedBehaviorSanitizer.
//
// Each buffer is a heap block of exactly the size that the kernel may touch, so
// that one element too far is an error. Results are checked in the Python
// tests; here a linear against double sums stands for "it did run".

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>

#include "csrc/variant.cpp"

namespace {

template <class T>
struct Buffer {
  std::unique_ptr<T[]> data;
  int64_t size;

  explicit Buffer(int64_t n) : data(new T[static_cast<size_t>(n)]()), size(n) {}
  T* get() const { return data.get(); }
};

std::mt19937 generator(7);

Buffer<float> random_floats(int64_t n) {
  std::normal_distribution<float> normal;
  Buffer<float> buffer(n);
  for (int64_t i = 0; i < n; ++i) buffer.data[i] = normal(generator);
  return buffer;
}

void fail(const char* what) {
  std::fprintf(stderr, "wrong result: %s\n", what);
  std::exit(1);
}

// Whether `result` is the product of two vectors, x rounded to 127 steps of its largest where weights are grouped.
bool is_product(double result, double bias, const Buffer<float>& x, const Buffer<float>& weight, bool is_grouped) {
  double expected = bias, size = 0, largest = 0;
  for (int64_t k = 0; k < weight.size; ++k) {
    expected += static_cast<double>(x.data[k]) * weight.data[k];
    size += std::abs(weight.data[k]);
    largest = std::max(largest, static_cast<double>(std::abs(x.data[k])));
  }
  const double step = is_grouped ? largest / 127 : 0;
  return std::abs(expected - result) <= 1e-3 * (1 + std::abs(expected)) + size * step / 2;
}

void run_linear(int64_t format, int64_t rows, int64_t columns, int64_t depth) {
  const int64_t num_panels = (columns + 15) / 16, num_values = num_panels * 16 * depth;
  const auto x = random_floats(rows * depth), bias = random_floats(columns);
  const Buffer<float> out(rows * columns), row_of_weight(depth);
  Buffer<int64_t> ids(1);
  ids.data[0] = columns - 1;
  const bool quantized = format == 3 || format == 4;
  const auto quantize = format == 3 ? quire_pack_int8 : quire_pack_int4;
  const auto run = [&](const void* weight, void* panels) {
    const PackCall pack{weight, quantized ? 2 : format, columns, depth, panels};
    if (!quantized) {
      quire_pack(&pack);
    } else if (quantize(&pack) != -1) {
      fail("finite weights were refused");
    }
    const LinearCall call{x.get(), depth, rows, panels, format, columns, depth, bias.get(), out.get(), columns};
    quire_linear(&call);
    const EmbeddingCall embedding{ids.get(), 1, panels, format, columns, depth, row_of_weight.get()};
    if (quire_embedding(&embedding) != -1) fail("embedding refused a row that is there");
  };
  if (format == 2) {
    const auto weight = random_floats(columns * depth);
    Buffer<float> panels(num_values);
    run(weight.get(), panels.get());
  } else if (quantized) {
    const auto weight = random_floats(columns * depth);
    Buffer<uint8_t> panels(num_panels *
                           (format == 3 ? quire::Int8Panels::size(depth) : quire::Int4Panels::size(depth)));
    run(weight.get(), panels.get());
    weight.data[columns * depth - 1] = std::numeric_limits<float>::infinity();
    const PackCall bad{weight.get(), 2, columns, depth, panels.get()};
    if (quantize(&bad) != columns - 1) fail("a weight that is not finite was taken");
  } else {
    Buffer<uint16_t> weight(columns * depth), panels(num_values);
    for (int64_t i = 0; i < weight.size; ++i) weight.data[i] = static_cast<uint16_t>(0x3c00 + i % 97);
    run(weight.get(), panels.get());
  }
  if (!is_product(out.data[columns - 1], bias.data[columns - 1], x, row_of_weight, quantized)) fail("linear");
  ids.data[0] = columns;
  const EmbeddingCall beyond{ids.get(), 1, nullptr, format, columns, depth, nullptr};
  if (quire_embedding(&beyond) != 0) fail("embedding took a row that is not there");
}

// `type` is GGUF's number of what From reads, `format` what it becomes.
template <class From, class Panels>
void run_gguf(int64_t type, int64_t format, int64_t rows, int64_t columns) {
  const int64_t depth = 2 * From::kBlock, num_panels = (columns + 15) / 16;
  Buffer<uint8_t> blocks(columns * 2 * From::kBytes), panels(num_panels * Panels::size(depth));
  for (int64_t i = 0; i < blocks.size; ++i) blocks.data[i] = static_cast<uint8_t>(i * 7 % 61);  // small fp16 numbers
  const PackCall pack{blocks.get(), type, columns, depth, panels.get()};
  quire_pack_gguf(&pack);
  const auto x = random_floats(rows * depth);
  const Buffer<float> out(rows * columns), row_of_weight(depth);
  const LinearCall call{x.get(), depth, rows, panels.get(), format, columns, depth, nullptr, out.get(), columns};
  quire_linear(&call);
  Buffer<int64_t> ids(1);
  ids.data[0] = columns - 1;
  const EmbeddingCall embedding{ids.get(), 1, panels.get(), format, columns, depth, row_of_weight.get()};
  if (quire_embedding(&embedding) != -1) fail("embedding refused a row that is there");
  if (!is_product(out.data[columns - 1], 0, x, row_of_weight, true)) fail("gguf linear");
}

void run_rows(int64_t rows, int64_t width) {
  const auto x = random_floats(rows * width), residual = random_floats(rows * width), weight = random_floats(width);
  const Buffer<float> total(rows * width), out(rows * width);
  const RmsNormCall plain{x.get(), width, nullptr, weight.get(), 1e-5, rows, 1, width, nullptr, out.get(), width};
  quire_rms_norm(&plain);
  const RmsNormCall both{x.get(), width, residual.get(), weight.get(), 1e-5, rows,
                         1,       width, total.get(),    out.get(),    width};
  quire_rms_norm(&both);
  const auto heads = random_floats((2 * 4 + 3) * width);  // 3 of 4 heads of three tokens, in place
  const RmsNormCall in_place{heads.get(), 4 * width, nullptr, weight.get(), 1e-5,     3,
                             3,           width,     nullptr, heads.get(),  4 * width};
  quire_rms_norm(&in_place);
  const auto gate_up = random_floats(rows * 2 * width);
  const SiluMulCall silu{gate_up.get(), rows, width, out.get()};
  quire_silu_mul(&silu);
  const Buffer<int64_t> best(rows);
  const ArgmaxCall argmax{x.get(), width, rows, width, best.get()};
  quire_argmax(&argmax);
}

void run_cache(int64_t heads, int64_t kv_heads, int64_t dim, int64_t block_size) {
  const int32_t lengths[] = {1, 65, 70, 130}, queries[] = {1, 1, 70, 5};
  const int64_t num_blocks = 300 / block_size + 8, max_blocks = (130 + block_size - 1) / block_size;
  const int64_t num_tokens = 77, row = kv_heads * dim;
  Buffer<float> keys(num_blocks * block_size * row), values(num_blocks * block_size * row);
  Buffer<int32_t> starts(5), seq_lens(4), tables(4 * max_blocks);
  int32_t next = 0;
  for (int b = 0; b < 4; ++b) {
    starts.data[b + 1] = starts.data[b] + queries[b];
    seq_lens.data[b] = lengths[b];
    for (int64_t i = 0; i * block_size < lengths[b]; ++i) tables.data[b * max_blocks + i] = next++ % num_blocks;
  }
  const auto query = random_floats(num_tokens * heads * dim), key = random_floats(num_tokens * row);
  const Buffer<float> out(num_tokens * heads * dim);
  Buffer<int64_t> slots(num_tokens);
  for (int64_t t = 0; t < num_tokens; ++t) slots.data[t] = t % 5 == 0 ? -1 : t;
  WriteKvCall write{key.get(),  row, key.get(), row, num_tokens, row, keys.get(), values.get(), num_blocks * block_size,
                    slots.get()};
  if (quire_write_kv(&write) != -1) fail("write_kv refused good slots");
  slots.data[3] = num_blocks * block_size;
  if (quire_write_kv(&write) != 3) fail("write_kv took a slot that is not there");
  quire::AttentionArgs attention{query.get(), heads * dim, keys.get(), values.get(), num_blocks,     block_size,
                                 heads,       kv_heads,    dim,        starts.get(), seq_lens.get(), tables.get(),
                                 max_blocks,  max_blocks,  4,          num_tokens,   0.125,          out.get()};
  if (quire_paged_attention(&attention) != 0) fail("attention refused good metadata");
  tables.data[max_blocks] = static_cast<int32_t>(num_blocks);
  if (quire_paged_attention(&attention) != 3 + 4 * 1) fail("attention took a block that is not there");
  if (dim % 2 == 0) {
    const auto cos_sin = random_floats(9 * dim);
    Buffer<int64_t> positions(num_tokens);
    for (int64_t t = 0; t < num_tokens; ++t) positions.data[t] = t % 9;
    const RopeCall rope{query.get(), heads * dim, heads,           key.get(),     row, kv_heads,
                        num_tokens,  dim,         positions.get(), cos_sin.get(), 9};
    if (quire_rope(&rope) != -1) fail("rope refused good positions");
  }
}

template <class Call>
RecordedCall recorded(void (*function)(const Call*), const Call& call) {
  return {reinterpret_cast<const void*>(function), &call, 0, 0};
}

template <class Call>
RecordedCall recorded(int64_t (*function)(const Call*), const Call& call, int64_t good) {
  return {reinterpret_cast<const void*>(function), &call, 1, good};
}

void run_replay() {
  const auto weight = random_floats(16 * 8);
  const Buffer<float> panels(16 * 8), row(8), product(4);
  const PackCall pack{weight.get(), 2, 16, 8, panels.get()};
  Buffer<int64_t> ids(1);
  const EmbeddingCall embedding{ids.get(), 1, panels.get(), 2, 16, 8, row.get()};
  const SiluMulCall silu{row.get(), 1, 4, product.get()};
  const RecordedCall calls[] = {recorded(quire_pack, pack), recorded(quire_embedding, embedding, -1),
                                recorded(quire_silu_mul, silu)};
  if (quire_replay(calls, 3) != -1) fail("a replay refused what is there");
  if (row.data[7] != weight.data[7]) fail("replay");
  ids.data[0] = 16;
  if (quire_replay(calls, 3) != 1) fail("a replay went past a refusal");
  if (quire_replay(calls, 0) != -1) fail("an empty replay");
}

}  // namespace

int main() {
  Buffer<int64_t> progress(1);
  quire_set_progress(progress.get());
  for (const int num_threads : {1, 3}) {
    quire_set_num_threads(num_threads);
    for (const int64_t rows : {1, 30}) {
      run_gguf<quire::FromQ4_0, quire::Q4Panels>(2, 5, rows, 33);
      run_gguf<quire::FromQ4_1, quire::Q4Panels>(3, 5, rows, 33);
      run_gguf<quire::FromQ8_0, quire::Q8Panels>(8, 6, rows, 33);
      run_gguf<quire::FromQ4_K, quire::Q4KPanels>(12, 7, rows, 33);
      run_gguf<quire::FromQ6_K, quire::Q6KPanels>(14, 8, rows, 33);
    }
    for (const int64_t format : {0, 1, 2, 3, 4}) {
      for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 13, 31}) run_linear(format, rows, 33, 7);
      run_linear(format, 9, 100, 1030);
      run_linear(format, 1, 1, 1);
      run_linear(format, 2, 17, 65);
    }
    for (const int64_t width : {1, 15, 16, 17, 100}) run_rows(5, width);
    run_rows(3, 20000);
    run_replay();
    run_cache(9, 3, 64, 16);
    run_cache(4, 4, 5, 3);
    run_cache(50, 1, 24, 1);
    run_cache(6, 2, 40, 128);
  }
  std::printf("%lld kernel calls\n", static_cast<long long>(progress.data[0]));
  return progress.data[0] > 0 ? 0 : 1;
}
