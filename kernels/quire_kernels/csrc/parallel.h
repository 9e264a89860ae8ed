// Work shared over OpenMP threads, and the state of the library: thread count and progress counter.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace quire {

struct State {
  std::atomic<int> num_threads{1};
  std::atomic<int64_t*> progress{nullptr};
};

inline State& state() {
  static State instance;
  return instance;
}

// One step of the progress counter, which lies in memory shared with another process.
inline void bump_progress() {
  if (int64_t* cell = state().progress.load(std::memory_order_relaxed)) {
    __atomic_fetch_add(cell, 1, __ATOMIC_RELAXED);
  }
}

// Runs task(i) for i in [0, num_tasks). Tasks are handed out as threads come free: cores differ in what else they do.
// `work` is in multiply-adds or so; below kSerialWork a parallel region costs more than it saves.
template <class Task>
void parallel_for(int64_t num_tasks, int64_t work, const Task& task) {
  constexpr int64_t kSerialWork = 32768;
  const int num_threads = state().num_threads.load(std::memory_order_relaxed);
  if (num_threads <= 1 || num_tasks <= 1 || work < kSerialWork) {
    for (int64_t i = 0; i < num_tasks; ++i) task(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
  for (int64_t i = 0; i < num_tasks; ++i) task(i);
}

// The same for rows that cost alike: one task takes several rows.
template <class Row>
void parallel_rows(int64_t num_rows, int64_t work_per_row, const Row& row) {
  constexpr int64_t kTaskWork = 8192;
  const int64_t step = work_per_row >= kTaskWork ? 1 : kTaskWork / (work_per_row > 0 ? work_per_row : 1);
  const int64_t num_tasks = (num_rows + step - 1) / step;
  parallel_for(num_tasks, num_rows * work_per_row, [&](int64_t task) {
    const int64_t end = (task + 1) * step < num_rows ? (task + 1) * step : num_rows;
    for (int64_t r = task * step; r < end; ++r) row(r);
  });
}

// This thread's scratch memory, grown to the largest request so far and kept.
inline float* scratch(size_t num_floats) {
  constexpr size_t kAlignment = 16;
  thread_local std::vector<float> buffer;
  if (buffer.size() < num_floats + kAlignment) buffer.resize(num_floats + kAlignment);
  const auto address = reinterpret_cast<uintptr_t>(buffer.data());
  return buffer.data() + (64 - address % 64) % 64 / sizeof(float);
}

}  // namespace quire
