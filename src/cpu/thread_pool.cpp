#include "cpu/thread_pool.h"

#include <sched.h>

#include <chrono>
#include <map>
#include <mutex>
#include <system_error>

namespace switchyard::cpu {
namespace {

// Longer than the gap between two steps of a forward, shorter than a scheduling quantum: unbounded
// spinning collapses when cores are shared.
constexpr auto kSpinTime = std::chrono::microseconds(50);

/// Spins until done() or the spin time is over. Returns done().
template <class Done>
bool spin_until(Done&& done) {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return done();
}

}  // namespace

int num_usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads > 0 ? num_threads : num_usable_cores()) {
  workers_.reserve(static_cast<size_t>(num_threads_) - 1);
  try {
    for (int i = 1; i < num_threads_; ++i) {
      workers_.emplace_back([this](const std::stop_token& stop) { work(stop); });
    }
  } catch (const std::system_error&) {
    // The system has no more threads to give: those we have, and the caller, claim all indices.
  }
}

ThreadPool::~ThreadPool() {
  for (std::jthread& worker : workers_) worker.request_stop();
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
}

void ThreadPool::run(void (*fn)(void* context, int thread), void* context) {
  if (num_threads_ == 1 || busy_.exchange(true, std::memory_order_acquire)) {
    for (int i = 0; i < num_threads_; ++i) fn(context, i);
    return;
  }
  fn_ = fn;
  context_ = context;
  unfinished_.store(num_threads_, std::memory_order_relaxed);
  const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
  ticket_.store(uint64_t{generation} << 32, std::memory_order_release);
  generation_.store(generation, std::memory_order_release);
  generation_.notify_all();
  while (claim_and_run(generation)) {
  }
  const auto all_done = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
  if (!spin_until(all_done)) {
    for (int32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;) {
      unfinished_.wait(left, std::memory_order_acquire);
    }
  }
  busy_.store(false, std::memory_order_release);
}

/// Claims the next index of job `generation` and runs it. False when none is left or the job is
/// over.
bool ThreadPool::claim_and_run(uint32_t generation) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  int index = 0;
  do {
    index = static_cast<int>(ticket & 0xffffffffu);
    if (ticket >> 32 != generation || index >= num_threads_) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                          std::memory_order_acquire));
  fn_(context_, index);
  if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
  return true;
}

void ThreadPool::work(const std::stop_token& stop) {
  uint32_t seen = 0;
  while (!stop.stop_requested()) {
    const auto changed = [&] { return generation_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(changed)) generation_.wait(seen, std::memory_order_acquire);
    seen = generation_.load(std::memory_order_acquire);
    while (claim_and_run(seen)) {
    }
  }
}

ThreadPool& default_pool() {
  static ThreadPool pool;
  return pool;
}

std::shared_ptr<Executor> shared_pool(int num_threads) {
  if (num_threads == 0) return {std::shared_ptr<void>{}, &default_pool()};
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<ThreadPool>> pools;
  const std::scoped_lock lock(mutex);
  std::shared_ptr<ThreadPool> pool = pools[num_threads].lock();
  if (!pool) pools[num_threads] = pool = std::make_shared<ThreadPool>(num_threads);
  return pool;
}

}  // namespace switchyard::cpu
