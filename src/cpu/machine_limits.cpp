// What this machine can do at most, measured with the instructions that the kernels use.

#include "cpu/machine_limits.h"

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>

#include "cpu/huge_buffer.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace switchyard {
namespace cpu {
namespace {

constexpr int64_t kFootprint = int64_t{512} << 20;  // beyond any cache that a few cores may fill
constexpr int kRepeats = 3;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Fastest of a few runs of body(thread) on all threads.
template <class Body>
double best_seconds(ThreadPool& pool, const Body& body) {
  double best = 1e30;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run_on_all(pool, body);
    best = std::min(best, seconds_since(start));
  }
  return best;
}

class Measurement {
 public:
  explicit Measurement(int num_threads)
      : kernels_(select_kernels("")), pool_(num_threads), memory_(kFootprint) {
    run_on_all(pool_, [&](int thread) {
      std::memset(part(thread), 1, static_cast<size_t>(part_bytes()));
    });
  }

  MachineLimits measure() {
    MachineLimits limits{.backend = BackendKind::kCpu};
    limits.num_threads = pool_.num_threads();
    limits.device = fmt::format("x86-64 {}, {} threads", isa_label(kernels_), limits.num_threads);
    const double footprint = static_cast<double>(part_bytes() * pool_.num_threads());
    limits.read_gbps = footprint / 1e9 / best_seconds(pool_, [&](int thread) {
                         keep(kernels_.stream_read(part(thread), part_bytes()));
                       });
    // Reads one half of each part and writes the other.
    limits.copy_gbps =
        footprint / 1e9 / best_seconds(pool_, [&](int thread) {
          kernels_.stream_copy(part(thread), part_bytes() / 2, part(thread) + part_bytes() / 2);
        });
    limits.f32_gflops = peak(kPeakChains * 2 * 16,
                             [&](int64_t n) { keep(static_cast<uint64_t>(kernels_.f32_fma(n))); });
    limits.int8_gops = peak(kPeakChains * 2 * 64,
                            [&](int64_t n) { keep(static_cast<uint64_t>(kernels_.int8_dot(n))); });
    if (kernels_.bf16_dot != nullptr) {
      limits.bf16_gflops = peak(kPeakChains * 2 * 32, [&](int64_t n) {
        keep(static_cast<uint64_t>(kernels_.bf16_dot(n)));
      });
    }
    return limits;
  }

 private:
  int64_t part_bytes() const { return kFootprint / pool_.num_threads() / 4096 * 4096; }
  uint8_t* part(int thread) const { return memory_.data() + thread * part_bytes(); }
  void keep(uint64_t value) { sink_.fetch_add(value, std::memory_order_relaxed); }

  /// Billions per second, of a loop that does `per_iteration` on every thread.
  template <class Loop>
  double peak(double per_iteration, const Loop& loop) {
    constexpr int64_t kIterations = 1000000;  // a few milliseconds
    const double seconds = best_seconds(pool_, [&](int) { loop(kIterations); });
    return per_iteration * kIterations * pool_.num_threads() / seconds / 1e9;
  }

  const Kernels& kernels_;
  ThreadPool pool_;
  HugeBuffer memory_;
  std::atomic<uint64_t> sink_{0};
};

/// Reads its memory part by part, so that each part has long left the caches.
class ReadLoop {
 public:
  explicit ReadLoop(int num_threads)
      : kernels_(select_kernels("")), pool_(shared_pool(num_threads)), memory_(kFootprint) {
    std::memset(memory_.data(), 1, static_cast<size_t>(kFootprint));
  }
  double gbps() {
    constexpr int64_t kBytes = int64_t{32} << 20;
    const int num_threads = pool_->num_threads();
    const int64_t share = kBytes / num_threads / 4096 * 4096;
    const uint8_t* from = memory_.data() + next_;
    next_ = (next_ + kBytes) % kFootprint;
    const auto start = std::chrono::steady_clock::now();
    run_on_all(*pool_, [&](int thread) {
      sink_.fetch_add(kernels_.stream_read(from + thread * share, share));
    });
    return static_cast<double>(share * num_threads) / 1e9 / seconds_since(start);
  }

 private:
  const Kernels& kernels_;
  std::shared_ptr<Executor> pool_;  // of the layers: their threads are awake
  HugeBuffer memory_;
  int64_t next_ = 0;
  std::atomic<uint64_t> sink_{0};
};

}  // namespace

ReadMeter make_read_meter(int num_threads) {
  return [loop = std::make_shared<ReadLoop>(num_threads)] { return loop->gbps(); };
}

MachineLimits measure_machine(int num_threads) { return Measurement(num_threads).measure(); }

}  // namespace cpu
}  // namespace switchyard
