// Threads that share a step's items: every item once, in runs of neighbours.

#include <gtest/gtest.h>

#include <vector>

#include "cpu/numa.h"

namespace switchyard::cpu {
namespace {

TEST(ItemClaim, EveryItemOnceWhateverTheThreadsTakeAtATime) {
  const std::vector<int64_t> counts{0, 1, 37, 200};
  for (const int threads : {1, 2, 5, 64}) {
    for (const int64_t most : {1, 3, 1000}) {
      SCOPED_TRACE(testing::Message() << threads << " threads, " << most << " at a time");
      ShardedItems items(static_cast<int>(counts.size()), threads,
                         [&](int64_t shard) { return counts[static_cast<size_t>(shard)]; });
      std::vector<std::vector<int>> taken;
      for (const int64_t count : counts) taken.emplace_back(count, 0);
      std::vector<ItemClaim> claims;
      for (int thread = 0; thread < threads; ++thread) claims.emplace_back(items, thread);
      for (bool any = true; any;) {
        any = false;
        for (ItemClaim& claim : claims) {
          const ItemClaim::Item expected = claim.peek();
          const ItemClaim::Item item = claim.take(most);
          EXPECT_EQ(item.index, expected.index);
          if (!item) continue;
          any = true;
          EXPECT_EQ(item.shard, expected.shard);
          EXPECT_GE(item.count, 1);
          EXPECT_LE(item.count, most);
          for (int64_t i = 0; i < item.count; ++i) {
            ++taken.at(static_cast<size_t>(item.shard)).at(static_cast<size_t>(item.index + i));
          }
        }
      }
      for (const std::vector<int>& shard : taken) {
        for (const int times : shard) EXPECT_EQ(times, 1);
      }
    }
  }
}

TEST(ItemClaim, RunsAreLongAtFirstAndEndWithOneItem) {
  ShardedItems items(1, 2, [](int64_t) { return 200; });
  ItemClaim claim(items, 0);
  EXPECT_EQ(claim.take(1000).count, 50);  // a quarter: two threads, two runs each
  EXPECT_EQ(claim.take(1000).count, 37);
  ItemClaim::Item last;
  while (const auto item = claim.take(1000)) last = item;
  EXPECT_EQ(last.count, 1);
  EXPECT_EQ(last.index, 199);
}

}  // namespace
}  // namespace switchyard::cpu
