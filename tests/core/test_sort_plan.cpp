// The GPU sort's plan, without a GPU: every size gets chunks that cover its tokens once, counts
// that fit their type, and shared memory that an SM has.

#include <gtest/gtest.h>

#include <string>

#include "core/expert_sort.h"
#include "core/sort_plan.h"
#include "switchyard/layer_spec.h"

namespace switchyard {
namespace {

constexpr int64_t kSharedOfAnSm = 227 * 1024;

TEST(SortPlan, CoversEveryTokenWithinTheLimits) {
  for (const int64_t tokens :
       {int64_t{0}, int64_t{1}, int64_t{31}, int64_t{32}, int64_t{33}, int64_t{64}, int64_t{455},
        int64_t{4096}, int64_t{16384}, int64_t{131072}, int64_t{9000000}, kMaxTokens}) {
    for (const auto& [experts, top_k] :
         {std::pair{1, 1}, {8, 2}, {257, 9}, {513, 11}, {1024, 1}, {1024, 32}, {4096, 127}}) {
      for (const int64_t unit : {1, 16, 128}) {
        SCOPED_TRACE(std::to_string(tokens) + " " + std::to_string(experts));
        const SortPlan plan = plan_sort(tokens, top_k, experts, unit);
        EXPECT_GE(plan.bitmap_words * 32, plan.tokens_per_pass);
        EXPECT_EQ(plan.bitmap_words % 2, 1) << "experts must not share a bank";
        EXPECT_LE(plan.shared_bytes, kSharedOfAnSm);
        if (plan.path != SortPath::kChunked) {
          EXPECT_GE(plan.num_blocks * plan.threads, tokens * top_k) << "one pair per thread";
          EXPECT_GE(plan.tokens_per_pass, tokens);
          EXPECT_EQ(plan.workspace_bytes, 0);
        } else {
          EXPECT_GE(plan.num_blocks * plan.tokens_per_chunk, tokens);
          EXPECT_LT((plan.num_blocks - 1) * plan.tokens_per_chunk, tokens) << "no empty chunk";
          EXPECT_LE(plan.tokens_per_chunk, 65535) << "a count is 16 bits wide";
          EXPECT_LE(plan.tokens_per_pass * top_k, kSortPairsPerPass);
        }
      }
    }
  }
}

TEST(SortPlan, ScratchOfABatchServesEverySmallerOne) {
  for (const int64_t most : {1, 100, 2000, 20000, 300000}) {
    const int64_t bytes = sort_scratch_bytes(most, 9, 257);
    for (int64_t tokens = 0; tokens <= most; tokens += 1 + most / 97) {
      ASSERT_LE(plan_sort(tokens, 9, 257, 32).workspace_bytes, bytes) << tokens << " of " << most;
    }
  }
}

TEST(SortPlan, DecodeRanksEverythingEverywhereAndPrefillIsChunked) {
  static_assert(plan_sort(64, 9, 257, 32).path == SortPath::kFewTokens);
  static_assert(plan_sort(64, 16, 1024, 32).path == SortPath::kFewTokens);
  static_assert(plan_sort(65, 9, 257, 32).path == SortPath::kOneShot);
  static_assert(plan_sort(64, 17, 1024, 32).path == SortPath::kOneShot);
  static_assert(plan_sort(64, 9, 1025, 32).path == SortPath::kOneShot);
  static_assert(plan_sort(16384, 9, 257, 32).path == SortPath::kChunked);
  static_assert(plan_sort(16384, 9, 257, 32).num_blocks == kSortMaxChunks);
}

/// Quotients by the inverse that the kernels use.
TEST(SortPlan, QuotientsByTheInverseAreExact) {
  for (uint64_t top_k = 2; top_k <= 127; ++top_k) {
    const uint64_t inverse = ceil_div(uint64_t{1} << 32, top_k);
    for (uint64_t pair = 0; pair < 70000; ++pair) {
      ASSERT_EQ(pair * inverse >> 32, pair / top_k) << pair << " / " << top_k;
    }
  }
  // Rows by the unit, where tokens are few.
  for (const uint64_t unit : {2, 3, 31, 96, 127, 128, 1000, 1023, 1024}) {
    const uint64_t inverse = ceil_div(uint64_t{1} << 32, unit);
    const auto most = static_cast<uint64_t>(kSortFewPairs * kSortFewUnit + kSortFewPairs);
    for (uint64_t row = 0; row < most; ++row) {
      ASSERT_EQ(row * inverse >> 32, row / unit) << row << " / " << unit;
    }
  }
}

}  // namespace
}  // namespace switchyard
