// Down summed slab by slab: every row and token has one owner, no wait is for something later, the
// ring never holds two slabs in one place, and a row's parts cover its columns.

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "core/down_sum_schedule.h"
#include "core/expert_sort.h"

namespace switchyard {
namespace {

TEST(DownSumSchedule, SharesAreEqualAndCoverAll) {
  for (const int32_t parts : {1, 2, 5, 132}) {
    for (const int32_t count : {0, 1, 4, 131, 132, 133, 1152, 8192, 65537}) {
      int32_t next = 0, most = 0, least = count;
      for (int32_t i = 0; i < parts; ++i) {
        const DownSumShare share = down_sum_share(count, parts, i);
        EXPECT_EQ(share.begin, next);
        next = share.end;
        most = std::max(most, share.size());
        least = std::min(least, share.size());
      }
      EXPECT_EQ(next, count);
      EXPECT_LE(most - least, 1);
      EXPECT_EQ(most, ceil_div(count, parts));  // what shared memory is planned for
    }
  }
}

TEST(DownSumSchedule, NoBatchHasMoreWaves) {
  std::mt19937 random(7);
  const auto below = [&](int64_t limit) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(limit));
  };
  for (int repeat = 0; repeat < 2000; ++repeat) {
    const int64_t experts = 1 + below(40), pairs = below(3000);
    std::vector<int64_t> rows(static_cast<size_t>(experts));
    const int64_t used = 1 + below(experts);  // lopsided
    for (int64_t i = 0; i < pairs; ++i) ++rows[static_cast<size_t>(below(used))];
    int64_t waves = 0;
    for (const int64_t n : rows) waves += ceil_div<int64_t>(n, kDownSumWaveRows);
    EXPECT_LE(waves, down_sum_max_waves(pairs, experts));
  }
  EXPECT_EQ(down_sum_max_waves(3 * 65, 3), 6);  // and some have as many
  EXPECT_EQ(down_sum_max_waves(0, 8), 0);
}

/// How many experts' weights CTAs read, counting an expert once for each of them.
int64_t reads(const std::vector<int32_t>& experts, const std::vector<DownSumShare>& shares) {
  int64_t count = 0;
  for (const DownSumShare& share : shares) {
    for (int32_t w = share.begin; w < share.end; ++w) {
      const auto at = static_cast<size_t>(w);
      count += w == share.begin || experts[at] != experts[at - 1];
    }
  }
  return count;
}

TEST(DownSumSchedule, WavesAreDealtOnceAndExpertsSeldomSplit) {
  std::mt19937 random(5);
  for (int repeat = 0; repeat < 500; ++repeat) {
    const auto parts = static_cast<int32_t>(1 + random() % 40);
    const auto num_experts = static_cast<int32_t>(random() % 80);
    const auto longest = static_cast<uint32_t>(1 + random() % (repeat % 5 == 0 ? 30u : 6u));
    std::vector<int32_t> experts;  // of waves
    for (int32_t e = 0; e < num_experts; ++e)
      experts.resize(experts.size() + random() % longest, e);
    const auto count = static_cast<int32_t>(experts.size());
    const int32_t fit = std::max(ceil_div(count, parts) + static_cast<int32_t>(random() % 3), 1);
    if (fit > 32) continue;
    std::vector<uint32_t> first(static_cast<size_t>(count / 32 + 2), 0);
    for (size_t w = 0; w < experts.size(); ++w) {
      if (w == 0 || experts[w] != experts[w - 1]) first[w / 32] |= 1u << w % 32;
    }
    const DownSumWaves waves{first.data(), count, DownSumWaves::most_of(count, parts, fit)};
    std::vector<DownSumShare> shares, equal;
    int32_t next = 0;
    for (int32_t i = 0; i < parts; ++i) {
      shares.push_back(waves.share(parts, i));
      equal.push_back(down_sum_share(count, parts, i));
      EXPECT_EQ(shares.back().begin, next);
      EXPECT_LE(shares.back().size(), fit);
      next = shares.back().end;
    }
    EXPECT_EQ(next, count);
    EXPECT_LE(reads(experts, shares), reads(experts, equal));
  }
  // 256 experts of four or five waves for 132 CTAs.
  std::vector<int32_t> experts;
  for (int32_t e = 0; e < 256; ++e)
    experts.resize(experts.size() + 4 + static_cast<size_t>(e * 7 % 2), e);
  const auto count = static_cast<int32_t>(experts.size());
  std::vector<uint32_t> first(static_cast<size_t>(count / 32 + 2), 0);
  for (size_t w = 0; w < experts.size(); ++w) {
    if (w == 0 || experts[w] != experts[w - 1]) first[w / 32] |= 1u << w % 32;
  }
  std::vector<DownSumShare> shares;
  for (int32_t i = 0; i < 132; ++i) {
    shares.push_back(
        DownSumWaves{first.data(), count, DownSumWaves::most_of(count, 132, 11)}.share(132, i));
  }
  EXPECT_EQ(reads(experts, shares), 256);
}

TEST(DownSumSchedule, PartsOfARowCoverItsColumnsAndRowsDoNotOverlap) {
  std::set<int32_t> places;
  for (int32_t row = 0; row < 64; ++row) {
    for (int32_t part = 0; part < 8; ++part) {
      const int32_t place = down_sum_place(row, part);
      EXPECT_EQ(place % 16, 0);
      EXPECT_LT(place, 64 * kDownSumRowBytes);
      places.insert(place);
    }
  }
  EXPECT_EQ(places.size(), 64u * 8);
  // A warp's store: lane 4 g + q writes part `half` of row g, 16 bytes after the lane before.
  for (int32_t half = 0; half < 2; ++half) {
    for (int32_t lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(down_sum_place(lane / 4, 4 * half + lane % 4),
                down_sum_place(0, 4 * half) + 16 * lane);
    }
  }
  // The sum of a row beside that of another: rows differ by an offset of its own.
  for (int32_t row = 0; row < 200; ++row) {
    for (int32_t part = 0; part < 8; ++part) {
      EXPECT_EQ(down_sum_place(row, part), down_sum_place(row, 0) + down_sum_place(0, part));
    }
  }
}

/// The waits of src/cuda/sm90/down_sum.cuh, with CTAs of any number of waves and runs of experts:
/// every step happens as soon as what it waits for has, in any order. All finish, no slab is
/// overwritten before all have summed it, and no barrier is so far ahead of its waiters that they
/// would miss a phase.
class Waits {
 public:
  struct Cta {
    int waves = 0, runs = 0;
    int loaded = 0;  ///< buffers of weights
    int summed = 0;
    std::vector<int> items, released, told;  ///< of every group: done, buffers, slabs
  };
  Waits(int slabs, int slots, int buffers, const std::vector<int>& waves)
      : slabs_(slabs), slots_(slots), buffers_(buffers) {
    for (const int w : waves) {
      const std::vector<int> none(kDownSumProductGroups, 0);
      ctas_.push_back({w, (w + 1) / 2, 0, 0, none, none, none});
      for (int g = 0; g < kDownSumProductGroups; ++g) tell(ctas_.back(), g, first_slab(w, g));
    }
  }
  void finish_in_any_order(std::mt19937& random) {
    for (;;) {
      std::vector<int> possible;
      for (int i = 0; i < steps(); ++i) {
        if (step(i, false)) possible.push_back(i);
      }
      if (possible.empty()) break;
      step(possible[random() % possible.size()], true);
    }
    for (const Cta& cta : ctas_) {
      EXPECT_EQ(cta.summed, slabs_);
      EXPECT_EQ(computed(cta), slabs_);
    }
  }

 private:
  static constexpr int kSteps = kDownSumProductGroups + 2;
  int steps() const { return static_cast<int>(ctas_.size()) * kSteps; }
  int first_slab(int waves, int group) const {
    return waves == 0 ? 0 : std::min(group / waves, slabs_);
  }
  static int buffer_of(const Cta& cta, int item) {  // waves 2 r and 2 r + 1 make run r
    return item / cta.waves * cta.runs + item % cta.waves / 2;
  }
  int all_summed() const {
    int least = slabs_;
    for (const Cta& cta : ctas_) least = std::min(least, cta.summed);
    return least;
  }
  bool writable(int slab) const { return slab - slots_ < all_summed(); }
  /// One without waves follows the slots.
  int computed(const Cta& cta) const {
    if (cta.waves == 0) return std::min(slabs_, all_summed() + slots_);
    return *std::min_element(cta.told.begin(), cta.told.end());
  }
  int all_computed() const {
    int least = slabs_;
    for (const Cta& cta : ctas_) least = std::min(least, computed(cta));
    return least;
  }
  void tell(Cta& cta, int group, int slabs) {
    cta.told[static_cast<size_t>(group)] = slabs;
    EXPECT_LE(slabs - all_computed(), kDownSumPlaces) << "a phase would be missed";
  }
  bool step(int i, bool act) {
    Cta& cta = ctas_[static_cast<size_t>(i / kSteps)];
    const int kind = i % kSteps;
    if (kind == kDownSumProductGroups) {  // load
      const int released = *std::min_element(cta.released.begin(), cta.released.end());
      if (cta.loaded == cta.runs * slabs_ || cta.loaded - released >= buffers_) return false;
      cta.loaded += act;
      return true;
    }
    if (kind == kDownSumProductGroups + 1) {
      if (cta.summed >= all_computed()) return false;
      cta.summed += act;
      return true;
    }
    return multiply(cta, kind, act);
  }
  /// Gives back weights one after the other until the next item's are there, then waits for the
  /// slot.
  bool multiply(Cta& cta, int group, bool act) {
    const auto g = static_cast<size_t>(group);
    const int item = cta.items[g] * kDownSumProductGroups + group,
              next = item + kDownSumProductGroups;
    const int items = cta.waves * slabs_;
    if (item >= items) return false;
    const bool last = next >= items;
    for (const int waits : {item, next}) {
      if (waits >= items) continue;
      if (cta.released[g] >= buffer_of(cta, waits) && cta.loaded > buffer_of(cta, waits)) continue;
      if (cta.loaded <= cta.released[g]) return false;
      cta.released[g] += act;
      return true;
    }
    const int slab = item / cta.waves;
    if (!writable(slab)) return false;
    if (act) {
      EXPECT_LE(slab - all_summed(), slots_ - 1) << "a slab is overwritten";
      ++cta.items[g];
      tell(cta, group, last ? slabs_ : next / cta.waves);
    }
    return true;
  }

  int slabs_, slots_, buffers_;
  std::vector<Cta> ctas_;
};

TEST(DownSumSchedule, EverybodyFinishesInAnyOrder) {
  std::mt19937 random(3);
  const std::vector<std::vector<int>> batches{{0, 0}, {1},       {1, 0}, {1, 1, 2},
                                              {2, 1}, {3, 2, 3}, {9, 8}};
  for (const auto& waves : batches) {
    for (const int slots : {2, 3, 4, kDownSumMostSlots}) {
      for (const int buffers : {kDownSumLeastBuffers, kDownSumMostBuffers}) {
        for (const int slabs : {1, 2, 16, 45}) {
          SCOPED_TRACE(testing::Message()
                       << waves.size() << " CTAs, the first with " << waves[0] << " waves; "
                       << slots << " slots, " << buffers << " buffers, " << slabs << " slabs");
          Waits(slabs, slots, buffers, waves).finish_in_any_order(random);
        }
      }
    }
  }
}

TEST(DownSumSchedule, TeamsDivideTheWarpsAndGrowWithTokens) {
  int before = 1;
  for (int tokens = 0; tokens < 200; ++tokens) {
    const int warps = down_sum_team_warps(tokens);
    EXPECT_EQ(kDownSumTeamWarps % warps, 0);
    EXPECT_GE(warps, before);
    before = warps;
  }
  EXPECT_EQ(down_sum_team_warps(0), 1);
  EXPECT_EQ(down_sum_team_warps(8), 1);
  EXPECT_EQ(down_sum_team_warps(9), 2);
  EXPECT_EQ(before, kDownSumTeamWarps);
}

TEST(DownSumSchedule, ExpectsTheRecordedTimes) {
  const std::vector<std::pair<int64_t, double>> record{{2048, 247}, {4096, 334}, {8192, 557}};
  for (const auto& [tokens, us] : record) {
    const DownSumBatch batch{.tokens = tokens, .top_k = 8, .experts = 256, .columns = 7168};
    EXPECT_NEAR(down_sum_us(batch, 132), us, 0.08 * us) << tokens;
  }
}

TEST(DownSumSchedule, SharedMemoryIsDisjointAndPlansFit) {
  const DownSumShared s = down_sum_shared({.waves = 10, .sources = 504});
  const std::vector<int> begins{s.rows,  s.weights, s.margins, s.row_facts,
                                s.waves, s.sources, s.barriers};
  EXPECT_TRUE(std::is_sorted(begins.begin(), begins.end()));
  EXPECT_EQ(s.weights % 1024, 0);
  EXPECT_EQ(s.margins % 16, 0);
  EXPECT_EQ(s.sources % 16, 0);
  EXPECT_EQ(s.barriers % 8, 0);
  EXPECT_LE(s.bytes, kSm90SharedBytes);

  for (const int64_t tokens : {1, 1000, 2048, 4096, 8192, 9000, 16384}) {
    for (const int64_t unit : {64, 128, 192}) {
      const DownSumBatch batch{.tokens = tokens,
                               .top_k = 8,
                               .experts = 256,
                               .sorted_rows = sort_capacity(tokens, 8, 256, unit),
                               .row_bytes = 256,
                               .columns = 7168};
      const DownSumPlan plan = plan_down_sum(batch, 132);
      EXPECT_EQ(plan.fits, tokens <= 9000) << tokens;
      EXPECT_EQ(plan.num_slabs, 112);
      EXPECT_GE(plan.num_slots, kDownSumLeastSlots);
      EXPECT_LE(plan.num_slots, kDownSumMostSlots);
      for (const int64_t more : {0, 3000}) {
        EXPECT_TRUE(!plan.fits ||
                    plan.ring_bytes() <= down_sum_most_ring_bytes((tokens + more) * 8, 256));
      }
    }
  }
  EXPECT_FALSE(plan_down_sum({.tokens = 64,
                              .top_k = 8,
                              .experts = 8,
                              .sorted_rows = 1024,
                              .row_bytes = 257,
                              .columns = 128},
                             132)
                   .fits);
  EXPECT_FALSE(plan_down_sum({.tokens = 64,
                              .top_k = 8,
                              .experts = 8,
                              .sorted_rows = 1024,
                              .row_bytes = 256,
                              .columns = 96},
                             132)
                   .fits);
}

}  // namespace
}  // namespace switchyard
