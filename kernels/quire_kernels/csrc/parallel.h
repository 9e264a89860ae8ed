// Work shared over threads, and the state of the library: thread count and progress counter.
//
// A pool of our own rather than OpenMP: an OpenMP region ends when every thread of the team has passed its barrier,
// also those that had nothing to do, so that on a busy machine each call waits for the scheduler to run a thread that
// came too late. Here the caller does what nobody has taken yet and waits only for tasks that a helper has begun.
#pragma once

#include <immintrin.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
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

class Pool {
 public:
  using Function = void (*)(const void* context, int64_t task);

  // Never destroyed: helpers may sleep in it while the process ends.
  static Pool& instance() {
    static Pool* const pool = new Pool;
    return *pool;
  }

  // function(context, i) for i in [0, num_tasks), on up to num_threads threads, this one included. False with nothing
  // done where another thread of the process is using the pool.
  bool run(int num_threads, uint32_t num_tasks, Function function, const void* context) {
    const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock.owns_lock()) return false;
    for (; num_helpers_ < num_threads - 1; ++num_helpers_) {
      std::thread([this, id = num_helpers_] { help(id); }).detach();
    }
    const uint32_t job = job_.load(std::memory_order_relaxed) + 1;
    // closed while the job is written: a helper that is late for the last one finds nothing to take
    ticket_.store(ticket(job, kClosed));
    function_.store(function);
    context_.store(context);
    num_tasks_.store(num_tasks);
    num_welcome_.store(num_threads - 1);
    num_done_.store(0);
    ticket_.store(ticket(job, 0));
    job_.store(job);
    if (num_asleep_.load() > 0) futex(FUTEX_WAKE_PRIVATE, INT32_MAX);
    take(job, num_tasks, function, context);
    for (int i = 0; num_done_.load(std::memory_order_acquire) < num_tasks; ++i) {
      // whoever holds the last tasks may be waiting for this very core
      if (i < kPatience) {
        _mm_pause();
      } else {
        sched_yield();
      }
    }
    return true;
  }

 private:
  static constexpr uint32_t kClosed = UINT32_MAX;
  // Pauses of some 20 to 50 ns: helpers stay awake between a step's calls, which follow within 10 us, and sleep between
  // steps.
  static constexpr int kPatience = 3000;

  static uint64_t ticket(uint32_t job, uint32_t task) { return static_cast<uint64_t>(job) << 32 | task; }

  // Takes tasks of `job` until there are none, or until it is over.
  void take(uint32_t job, uint32_t num_tasks, Function function, const void* context) {
    uint64_t next = ticket_.load();
    while (next >> 32 == job && static_cast<uint32_t>(next) < num_tasks) {
      if (!ticket_.compare_exchange_weak(next, next + 1)) continue;
      function(context, static_cast<uint32_t>(next));
      num_done_.fetch_add(1, std::memory_order_release);
      next = ticket_.load();
    }
  }

  void help(int id) {
    for (uint32_t last = 0;;) {
      for (int i = 0; i < kPatience && job_.load(std::memory_order_acquire) == last; ++i) _mm_pause();
      if (job_.load() == last) {
        num_asleep_.fetch_add(1);
        futex(FUTEX_WAIT_PRIVATE, last);
        num_asleep_.fetch_sub(1);
        continue;
      }
      last = job_.load();
      // read in this order, and all sequentially consistent: whoever reads a later job's members also sees its ticket
      const Function function = function_.load();
      const void* const context = context_.load();
      const uint32_t num_tasks = num_tasks_.load();
      if (id < num_welcome_.load()) take(last, num_tasks, function, context);
    }
  }

  void futex(int operation, uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&job_), operation, value, nullptr, nullptr, 0);
  }

  std::mutex busy_;
  int num_helpers_ = 0;
  std::atomic<uint32_t> job_{0};     // the newest job's number, what helpers wait for
  std::atomic<uint64_t> ticket_{0};  // job | task that is next
  std::atomic<Function> function_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<uint32_t> num_tasks_{0}, num_done_{0};
  std::atomic<int> num_welcome_{0}, num_asleep_{0};
};

// Runs task(i) for i in [0, num_tasks), in any order and on any thread. `work` is in multiply-adds or so: below
// kSerialWork waking a helper costs more than it saves.
template <class Task>
void parallel_for(int64_t num_tasks, int64_t work, const Task& task) {
  constexpr int64_t kSerialWork = 32768;
  const int num_threads = state().num_threads.load(std::memory_order_relaxed);
  if (num_threads > 1 && num_tasks > 1 && work >= kSerialWork && num_tasks < INT32_MAX) {
    const auto call = [](const void* context, int64_t i) { (*static_cast<const Task*>(context))(i); };
    if (Pool::instance().run(num_threads, static_cast<uint32_t>(num_tasks), call, &task)) return;
  }
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
