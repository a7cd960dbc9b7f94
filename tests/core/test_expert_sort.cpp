// Pair grouping and the sizes of the sort contract, against brute force.

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "core/expert_sort.h"

namespace switchyard {
namespace {

struct Sorted {
  std::vector<int32_t> expert_offsets, row_to_pair, pair_to_row;
};

Sorted sort_with_poison(const std::vector<int32_t>& ids, int64_t t, int64_t k, int64_t e) {
  constexpr int32_t kPoison = -12345;
  Sorted s{std::vector<int32_t>(static_cast<size_t>(e) + 2, kPoison),
           std::vector<int32_t>(ids.size() + 1, kPoison),
           std::vector<int32_t>(ids.size() + 1, kPoison)};
  sort_pairs(ids.data(), t, k, e, s.expert_offsets.data(), s.row_to_pair.data(),
             s.pair_to_row.data());
  EXPECT_EQ(s.expert_offsets.back(), kPoison);
  EXPECT_EQ(s.row_to_pair.back(), kPoison);
  EXPECT_EQ(s.pair_to_row.back(), kPoison);
  s.expert_offsets.pop_back();
  s.pair_to_row.pop_back();
  return s;
}

/// The definition: a stable sort of the valid pairs by expert.
void expect_stable_sort(const std::vector<int32_t>& ids, int64_t t, int64_t k, int64_t e) {
  std::vector<int32_t> pairs;
  for (size_t p = 0; p < ids.size(); ++p) {
    if (ids[p] >= 0 && ids[p] < e) pairs.push_back(static_cast<int32_t>(p));
  }
  const auto expert = [&](int32_t pair) { return ids[static_cast<size_t>(pair)]; };
  std::stable_sort(pairs.begin(), pairs.end(),
                   [&](int32_t a, int32_t b) { return expert(a) < expert(b); });

  const Sorted got = sort_with_poison(ids, t, k, e);
  ASSERT_EQ(got.expert_offsets.front(), 0);
  ASSERT_EQ(got.expert_offsets.back(), static_cast<int32_t>(pairs.size()));
  for (size_t i = 0; i < static_cast<size_t>(e); ++i) {
    const auto count = std::count(ids.begin(), ids.end(), static_cast<int32_t>(i));
    ASSERT_EQ(got.expert_offsets[i + 1] - got.expert_offsets[i], count) << "expert " << i;
  }
  std::vector<int32_t> pair_to_row(ids.size(), -1);
  for (size_t row = 0; row < pairs.size(); ++row) {
    ASSERT_EQ(got.row_to_pair[row], pairs[row]) << "row " << row;
    pair_to_row[static_cast<size_t>(pairs[row])] = static_cast<int32_t>(row);
  }
  ASSERT_EQ(got.pair_to_row, pair_to_row);
}

TEST(SortPairs, IsAStableSortByExpert) {
  std::mt19937 random(7);
  for (const int64_t e : {1, 2, 8, 33, 513}) {
    for (const int64_t k : {1, 2, 9}) {
      for (const int64_t t : {0, 1, 2, 31, 300}) {
        // From two below the range to two above: invalid ids and repeats come along.
        std::uniform_int_distribution<int32_t> id(-2, static_cast<int32_t>(e) + 1);
        std::vector<int32_t> ids(static_cast<size_t>(t * k));
        for (auto& x : ids) x = id(random);
        expect_stable_sort(ids, t, k, e);
        std::fill(ids.begin(), ids.end(), static_cast<int32_t>(e) - 1);  // all to one expert
        expect_stable_sort(ids, t, k, e);
        std::fill(ids.begin(), ids.end(), -1);
        expect_stable_sort(ids, t, k, e);
      }
    }
  }
}

TEST(SortPairs, MapsMayBeNull) {
  const std::vector<int32_t> ids{2, 0, 1, 2};
  std::vector<int32_t> offsets(4, -9), map(4, -9);
  sort_pairs(ids.data(), 2, 2, 3, offsets.data(), nullptr, nullptr);
  EXPECT_EQ(offsets, (std::vector<int32_t>{0, 1, 2, 4}));
  sort_pairs(ids.data(), 2, 2, 3, offsets.data(), map.data(), nullptr);
  EXPECT_EQ(map, (std::vector<int32_t>{1, 2, 0, 3}));
  sort_pairs(ids.data(), 2, 2, 3, offsets.data(), nullptr, map.data());
  EXPECT_EQ(map, (std::vector<int32_t>{2, 0, 1, 3}));
}

TEST(PackPair, RoundTripsAtTheLimits) {
  for (const int64_t slot : {0, 1, 31, 126, 127}) {
    for (const int64_t token : {0, 1, 65536, (1 << 24) - 1}) {
      const int32_t packed = pack_pair(token, slot);
      EXPECT_GE(packed, 0);
      EXPECT_EQ(packed_token(packed), token);
      EXPECT_EQ(packed_slot(packed), slot);
    }
  }
  EXPECT_EQ(pack_pair(5, 2), 0x02000005);
}

/// The most padded rows over every way to give t * k pairs to experts, k distinct ones per token.
int64_t brute_force_rows(int64_t t, int64_t k, int64_t e, int64_t unit) {
  // Counts that distinct choices can reach: each at most t, t * k in all.
  std::vector<std::vector<int64_t>> best(static_cast<size_t>(e) + 1,
                                         std::vector<int64_t>(static_cast<size_t>(t * k) + 1, -1));
  best[0][0] = 0;
  for (size_t i = 0; i < static_cast<size_t>(e); ++i) {
    for (size_t used = 0; used <= static_cast<size_t>(t * k); ++used) {
      if (best[i][used] < 0) continue;
      for (size_t c = 0; c <= static_cast<size_t>(t) && used + c <= static_cast<size_t>(t * k);
           ++c) {
        const int64_t rows = (static_cast<int64_t>(c) + unit - 1) / unit * unit;
        best[i + 1][used + c] = std::max(best[i + 1][used + c], best[i][used] + rows);
      }
    }
  }
  return best[static_cast<size_t>(e)][static_cast<size_t>(t * k)];
}

TEST(SortCapacity, HoldsEveryRoutingAndAcceptsTheClassicAllocation) {
  for (const int64_t unit : {1, 2, 3, 4, 16}) {
    for (const int64_t e : {1, 2, 3, 5, 8}) {
      for (int64_t k = 1; k <= std::min<int64_t>(e, 4); ++k) {
        for (int64_t t = 0; t <= 9; ++t) {
          const int64_t most = brute_force_rows(t, k, e, unit);
          const int64_t bound = max_padded_rows(t, k, e, unit);
          const int64_t capacity = sort_capacity(t, k, e, unit);
          SCOPED_TRACE(testing::Message()
                       << "T " << t << " K " << k << " E " << e << " unit " << unit);
          EXPECT_LE(most, bound);
          EXPECT_LE(bound, capacity);
          EXPECT_EQ(bound % unit, 0);
          EXPECT_EQ(capacity % unit, 0);
          EXPECT_LE(bound, t * k + e * unit - k);
          // Tight when one token decides all, and when every expert can have a remainder of one.
          if (t <= 1) {
            EXPECT_EQ(bound, most);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
