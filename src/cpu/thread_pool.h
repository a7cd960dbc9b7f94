#pragma once
// Threads of the CPU backend. Work is split by claiming, so a thread that the system does not
// schedule delays nobody, and no result depends on who ran what.

#include <xmmintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "switchyard/layer.h"

namespace switchyard::cpu {

/// Flushes subnormal floats to zero on this thread while it lives. Subnormal scale products cost a
/// microcode assist per FMA otherwise (13 times slower when measured).
class FlushSubnormals {
 public:
  FlushSubnormals() : saved_(_mm_getcsr()) {
    _mm_setcsr(saved_ | kFlushToZero | kSubnormalsAreZero);
  }
  ~FlushSubnormals() { _mm_setcsr(saved_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  static constexpr unsigned kFlushToZero = 1u << 15;
  static constexpr unsigned kSubnormalsAreZero = 1u << 6;
  unsigned saved_;
};

/// An Executor over own threads; the caller takes part. A second concurrent run() finds the pool
/// busy and does all of its own work itself, so several forwards may share a pool without locks.
class ThreadPool final : public Executor {
 public:
  /// 0 = all cores this process may use.
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool() override;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const noexcept override { return num_threads_; }
  void run(void (*fn)(void* context, int thread), void* context) override;

 private:
  void work(const std::stop_token& stop);
  bool claim_and_run(uint32_t generation);

  int num_threads_;
  std::atomic<bool> busy_{false};
  // The job. Written by the caller before `ticket_`, read only by holders of a claimed index.
  void (*fn_)(void*, int) = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint64_t> ticket_{0};      // generation << 32 | next index to claim
  alignas(64) std::atomic<int32_t> unfinished_{0};   // indices whose fn has not returned
  alignas(64) std::atomic<uint32_t> generation_{0};  // what idle workers wait on
  std::vector<std::jthread> workers_;
};

/// Cores that this process may use.
int num_usable_cores();
/// The pool that all layers and steps without a wish of their own share.
ThreadPool& default_pool();
/// A pool of `num_threads`, shared by everybody who asks for that many at a time; 0 =
/// default_pool().
std::shared_ptr<Executor> shared_pool(int num_threads);

/// Calls body(thread) once per thread of `executor`, subnormals flushed.
template <class Body>
void run_on_all(Executor& executor, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  executor.run(
      [](void* context, int thread) {
        const FlushSubnormals flush;
        (*static_cast<Plain*>(context))(thread);
      },
      const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

/// Calls body(begin, end) over disjoint pieces of [0, count) of about `grain` items, claimed one by
/// one. Runs on the caller alone when there is one piece.
template <class Body>
void parallel_for(Executor& executor, int64_t count, int64_t grain, Body&& body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (count <= grain || executor.num_threads() == 1) {
    const FlushSubnormals flush;
    body(int64_t{0}, count);
    return;
  }
  std::atomic<int64_t> next{0};
  run_on_all(executor, [&](int) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      body(begin, std::min(begin + grain, count));
    }
  });
}

}  // namespace switchyard::cpu
