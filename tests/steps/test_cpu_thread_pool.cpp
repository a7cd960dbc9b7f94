// Every index runs exactly once, whatever the number of threads, callers and nested calls.
#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "cpu/thread_pool.h"

namespace switchyard::cpu {
namespace {

unsigned control_word() { return _mm_getcsr() & 0x8040u; }

TEST(ThreadPool, RunsEveryIndexOnce) {
  for (const int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(num_threads));
      run_on_all(pool, [&](int thread) { ++calls[static_cast<size_t>(thread)]; });
      for (const auto& count : calls) ASSERT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, ParallelForCoversTheRangeOnce) {
  ThreadPool pool(3);
  for (const int64_t count : {0, 1, 2, 7, 64, 1000}) {
    for (const int64_t grain : {1, 3, 64, 5000}) {
      std::vector<int> hits(static_cast<size_t>(count), 0);
      parallel_for(pool, count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
      });
      for (const int hit : hits) ASSERT_EQ(hit, 1);
    }
  }
}

TEST(ThreadPool, ServesSeveralCallersAndNestedCallsAtOnce) {
  ThreadPool pool(4);
  constexpr int kCallers = 4;
  std::vector<int64_t> sums(kCallers, 0);
  {
    std::vector<std::jthread> callers;
    for (int caller = 0; caller < kCallers; ++caller) {
      callers.emplace_back([&, caller] {
        for (int round = 0; round < 100; ++round) {
          std::atomic<int64_t> sum{0};
          parallel_for(pool, 50, 4, [&](int64_t begin, int64_t end) {
            parallel_for(pool, end - begin, 1, [&](int64_t first, int64_t last) {
              for (int64_t i = first; i < last; ++i) sum += begin + i;
            });
          });
          sums[static_cast<size_t>(caller)] += sum.load();
        }
      });
    }
  }
  for (const int64_t sum : sums) EXPECT_EQ(sum, 100 * (50 * 49 / 2));
}

TEST(ThreadPool, WakesAfterALongSleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> calls{0};
    run_on_all(pool, [&](int) { ++calls; });
    EXPECT_EQ(calls.load(), 2);
  }
}

TEST(ThreadPool, FlushesSubnormalsInsideAndRestoresThemOutside) {
  const unsigned before = control_word();
  ThreadPool pool(4);
  std::atomic<int> flushing{0};
  run_on_all(pool, [&](int) { flushing += control_word() == 0x8040u; });
  EXPECT_EQ(flushing.load(), 4);
  EXPECT_EQ(control_word(), before);
}

TEST(ThreadPool, SharedPoolsAreSharedByThreadCount) {
  EXPECT_EQ(shared_pool(0).get(), &default_pool());
  const auto three = shared_pool(3);
  EXPECT_EQ(three, shared_pool(3));
  EXPECT_NE(three, shared_pool(2));
  EXPECT_EQ(three->num_threads(), 3);
}

}  // namespace
}  // namespace switchyard::cpu
