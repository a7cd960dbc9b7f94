// The division of a decode batch: every unit to exactly one lane, cuts that all their owners see
// alike, partial sums that no two runs share, rings that fit.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/decode_schedule.h"
#include "core/expert_sort.h"

namespace switchyard {
namespace {

/// Chunks whose sums fit a CTA's shared memory.
constexpr int32_t kSharedSums = 96;

const std::vector<DecodeSchedule>& schedules() {
  static const auto all = [] {
    std::vector<DecodeSchedule> list;
    for (const int32_t blocks : {0, 1, 2, 7, 8, 57, 256}) {
      for (const int32_t num_strips : {1, 3, 8, 112}) {
        for (const int32_t chunks : {1, 2, 5, 14, 28}) {
          for (const int32_t lanes : {1, 2, 3, 132, 263, 264, 528}) {
            for (const int32_t ctas : {lanes, lanes / (lanes % 2 == 0 ? 2 : 3)}) {
              if (ctas > 0 && lanes % ctas == 0) {
                list.push_back({blocks, num_strips, chunks, lanes, ctas, chunks % 3 + 1});
                if (ctas % kDecodeClusterCtas != 0) continue;
                const DecodeSchedule clusters{blocks, num_strips, chunks,     lanes,
                                              ctas,   1,          kSharedSums};
                if (clusters.cluster_lanes > 0) list.push_back(clusters);
              }
            }
          }
        }
      }
    }
    return list;
  }();
  return all;
}

std::string name(const DecodeSchedule& s) {
  return std::to_string(s.num_blocks) + " blocks, " + std::to_string(s.num_strips) + " strips, " +
         std::to_string(s.num_chunks) + " chunks, " + std::to_string(s.num_lanes) + " lanes of " +
         std::to_string(s.num_ctas) + " CTAs" + (s.cluster_lanes > 0 ? " in clusters" : "");
}

/// The runs of one lane, as a kernel walks them (a step per chunk).
std::vector<DecodeRun> runs_of(const DecodeSchedule& s, int32_t lane) {
  std::vector<DecodeRun> runs;
  for (DecodeWalk walk(s.start(lane), {s.num_chunks, 1}, s.num_strips, s.num_chunks, 1);
       !walk.done();) {
    runs.push_back(walk.run());
    for (int32_t c = runs.back().chunk_begin; c < runs.back().chunk_end; ++c) walk.advance();
  }
  return runs;
}

/// Where a single token's rows are summed: every strip of every choice once, whole, by lanes of
/// the CTAs that share it.
TEST(DecodeSchedule, SumsHaveEveryStripOfEveryChoiceOnce) {
  constexpr int32_t kLanes = decode_lanes(1), kCtas = 132;
  for (const int32_t num_rows : {16, 64, 2880, 4224, 7168, 8448, 8512}) {
    const int32_t sum_ctas = decode_sum_ctas(num_rows, kCtas);
    const int32_t strips = ceil_div(num_rows, kDecodeRows);
    ASSERT_EQ(sum_ctas, strips <= kCtas / 2 ? 2 : strips <= kCtas ? 1 : 0);
    for (const int32_t choices : {1, 4, 5, 8, 9, 32}) {
      for (const int32_t chunks : {1, 6}) {
        std::set<std::pair<int32_t, int32_t>> seen;  // strip, choice
        for (int32_t cta = 0; cta < strips * sum_ctas; ++cta) {
          for (int32_t lane = 0; lane < kLanes; ++lane) {
            const DecodeStart start = decode_sum_start(cta, lane, sum_ctas, choices, chunks);
            ASSERT_LE(start.left, ceil_div(choices, sum_ctas * kLanes) * chunks);
            const int32_t strip = decode_sum_strip(cta, sum_ctas);
            ASSERT_LT(strip, strips);
            for (DecodeWalk walk(start, {chunks, 1}, 1, chunks, 1); !walk.done();) {
              const DecodeRun run = walk.run();
              ASSERT_TRUE(run.whole);
              ASSERT_EQ(run.strip, 0);
              ASSERT_LT(run.block, choices);
              ASSERT_TRUE(seen.emplace(strip, run.block).second);
              for (int32_t c = 0; c < chunks; ++c) walk.advance();
            }
          }
        }
        ASSERT_EQ(std::ssize(seen), strips * sum_ctas > 0 ? strips * choices : 0);
      }
    }
  }
}

TEST(DecodeSchedule, EveryUnitOnceInEqualShares) {
  for (const DecodeSchedule& s : schedules()) {
    SCOPED_TRACE(name(s));
    int64_t next = 0;
    for (int32_t lane = 0; lane < s.num_lanes; ++lane) {
      ASSERT_EQ(s.begin(lane), next);
      const int64_t count = s.begin(lane + 1) - next;
      if (s.cluster_lanes > 0) {
        const int32_t first = lane / s.cluster_lanes * s.cluster_lanes;
        const int32_t units = s.begin(first + s.cluster_lanes) - s.begin(first);
        ASSERT_EQ(units % s.num_chunks, 0) << "clusters have whole strips";
        ASSERT_LE(units, kSharedSums);
        ASSERT_GE(count, units / s.cluster_lanes);
        ASSERT_LE(count, ceil_div(units, s.cluster_lanes));
        for (int64_t unit = next; unit < next + count; ++unit) {
          ASSERT_EQ(s.lane_of(static_cast<int32_t>(unit)), lane);
        }
      } else if (lane < s.used_lanes()) {
        ASSERT_EQ(count % s.grain, 0);
        ASSERT_GE(count / s.grain, s.num_grains() / s.used_lanes());
        ASSERT_LE(count / s.grain, ceil_div(s.num_grains(), s.used_lanes()));
        ASSERT_GT(count, 0);
        ASSERT_EQ(s.lane_of(static_cast<int32_t>(next)), lane);
        ASSERT_EQ(s.lane_of(static_cast<int32_t>(next + count - 1)), lane);
      } else {
        ASSERT_EQ(count, 0);
      }
      for (const DecodeRun& run : runs_of(s, lane)) {
        const int64_t unit =
            (int64_t{run.block} * s.num_strips + run.strip) * s.num_chunks + run.chunk_begin;
        ASSERT_EQ(unit, next);
        ASSERT_LT(run.chunk_begin, run.chunk_end);
        ASSERT_LE(run.chunk_end, s.num_chunks);
        ASSERT_LT(run.strip, s.num_strips);
        next += run.chunk_end - run.chunk_begin;
      }
    }
    ASSERT_EQ(next, s.num_units());
  }
}

TEST(DecodeSchedule, WholeRowBlocksWhereACutsEndCostsMore) {
  // gpt-oss-120b, one token: 90 and 45 row blocks of 4 experts, 6 chunks.
  EXPECT_EQ((DecodeSchedule{4, 90, 6, 528, 132}.grain), 6);
  EXPECT_EQ((DecodeSchedule{4, 45, 6, 528, 132}.grain), 6);
  // DeepSeek-R1 TP8, one token: 8 row blocks of 8 experts would keep half of the CTAs busy.
  EXPECT_EQ((DecodeSchedule{8, 8, 14, 528, 132}.grain), 1);
  // DeepSeek-R1 EP8, 64 tokens in blocks of 32: 16 strips of 4 row blocks.
  EXPECT_EQ((DecodeSchedule{32, 16, 14, 132, 132, 4}.grain), 14);
  EXPECT_EQ((DecodeSchedule{29, 16, 14, 132, 132, 4}.grain), 1);
  // DeepSeek-R1 TP8, 8, 16 and 64 tokens: 56 units where 50 are even, 98 for 84, 196 for 188.
  EXPECT_EQ((DecodeSchedule{59, 8, 14, 528, 132}.grain), 14);
  EXPECT_EQ((DecodeSchedule{100, 8, 14, 528, 132}.grain), 14);
  EXPECT_EQ((DecodeSchedule{222, 8, 14, 528, 132}.grain), 14);
  // Three tokens: 28 for 20.
  EXPECT_EQ((DecodeSchedule{24, 8, 14, 528, 132}.grain), 1);
  // Every CTA has a row block before one has two.
  const DecodeSchedule s{4, 45, 6, 528, 132};
  int32_t most = 0;
  for (int32_t cta = 0; cta < 132; ++cta) {
    int32_t units = 0;
    for (int32_t lane = 0; lane < 4; ++lane) {
      const int32_t at = s.lane_at(cta, lane);
      units += s.begin(at + 1) - s.begin(at);
    }
    EXPECT_GE(units, 6);
    most = std::max(most, units);
  }
  EXPECT_EQ(most, 12);
}

TEST(DecodeSchedule, ClustersCutFewStripsAmongTheirLanes) {
  // DeepSeek-R1 TP8, one token and two: units of the longest lane, and without clusters.
  const auto longest = [](const DecodeSchedule& s) {
    int32_t most = 0;
    for (int32_t l = 0; l < s.num_lanes; ++l) most = std::max(most, s.begin(l + 1) - s.begin(l));
    return most;
  };
  EXPECT_EQ(longest({8, 8, 14, 528, 132, 1, kSharedSums}), 2);
  EXPECT_EQ(longest({8, 8, 14, 528, 132}), 2);
  EXPECT_EQ(longest({16, 8, 14, 528, 132, 1, kSharedSums}), 4);
  EXPECT_EQ(longest({16, 8, 14, 528, 132}), 14);
  // Not much shorter than whole strips.
  EXPECT_EQ((DecodeSchedule{4, 90, 6, 528, 132, 1, kSharedSums}.cluster_lanes), 0);
  EXPECT_EQ((DecodeSchedule{4, 45, 6, 528, 132, 1, kSharedSums}.cluster_lanes), 0);
  // Too many for their shared memory, or nothing to cut.
  EXPECT_EQ((DecodeSchedule{57, 8, 14, 528, 132, 1, kSharedSums}.cluster_lanes), 0);
  EXPECT_EQ((DecodeSchedule{8, 112, 1, 528, 132, 1, kSharedSums}.cluster_lanes), 0);
}

TEST(DecodeSchedule, EveryLaneOfEveryCtaOnce) {
  for (const DecodeSchedule& s : schedules()) {
    std::set<int32_t> lanes;
    for (int32_t cta = 0; cta < s.num_ctas; ++cta) {
      for (int32_t lane = 0; lane < s.num_lanes / s.num_ctas; ++lane) {
        ASSERT_TRUE(lanes.insert(s.lane_at(cta, lane)).second) << name(s);
      }
    }
    ASSERT_EQ(*lanes.rbegin(), s.num_lanes - 1);
  }
}

TEST(DecodeSchedule, OwnersOfACutAgreeAndCoverIt) {
  for (const DecodeSchedule& s : schedules()) {
    SCOPED_TRACE(name(s));
    std::map<std::pair<int32_t, int32_t>, std::vector<std::pair<int32_t, DecodeRun>>> by_rows;
    for (int32_t lane = 0; lane < s.num_lanes; ++lane) {
      for (const DecodeRun& run : runs_of(s, lane)) {
        by_rows[{run.block, run.strip}].emplace_back(lane, run);
      }
    }
    std::set<int64_t> slots;     // partial sums in use
    std::set<int32_t> counters;  // first owners of cut row blocks
    for (const auto& [rows, parts] : by_rows) {
      const DecodeOwners owners = s.owners(parts[0].second);
      if (s.cluster_lanes == 0) {
        ASSERT_EQ(owners.count(), static_cast<int32_t>(parts.size()));
      } else {
        ASSERT_EQ(owners.first / s.cluster_lanes, owners.last / s.cluster_lanes) << "one cluster";
      }
      int32_t chunk = 0;
      for (size_t i = 0; i < parts.size(); ++i) {
        const auto& [lane, run] = parts[i];
        if (s.cluster_lanes == 0) {
          ASSERT_EQ(lane, owners.first + static_cast<int64_t>(i)) << "owners are neighbours";
        } else if (i == 0) {
          ASSERT_EQ(lane, owners.first);
        }
        ASSERT_EQ(run.chunk_begin, chunk);
        ASSERT_EQ(s.owners(run).first, owners.first);
        ASSERT_EQ(s.owners(run).last, owners.last);
        chunk = run.chunk_end;
        ASSERT_EQ(run.whole, parts.size() == 1);
        if (parts.size() == 1) continue;
        if (s.cluster_lanes > 0) {
          const int32_t place = decode_shared_place(s, owners, run);
          ASSERT_GE(place, 0);
          ASSERT_LE(place + s.num_chunks, kSharedSums);
          const int64_t cta = owners.first / (s.num_lanes / s.num_ctas);
          for (int32_t c = run.chunk_begin; c < run.chunk_end; ++c) {
            ASSERT_TRUE(slots.insert(cta * kSharedSums + place + c).second)
                << "two sums in one place";
          }
          continue;
        }
        const int32_t end = i == 0 ? 1 : run.chunk_end;  // the first owner leaves one sum
        for (int32_t c = run.chunk_begin; c < end; ++c) {
          const int64_t slot = decode_partial_slot(s.num_chunks, owners, c);
          ASSERT_TRUE(slots.insert(slot).second) << "two sums in one place";
          ASSERT_LT((slot + 1) * kDecodeRows * 8 * 4,
                    decode_partial_bytes(s.num_lanes, s.num_chunks, 8) + 1);
        }
      }
      ASSERT_EQ(chunk, s.num_chunks);
      if (parts.size() > 1 && s.cluster_lanes == 0) {
        ASSERT_TRUE(counters.insert(owners.first).second) << "a lane opens at most one cut";
      }
    }
  }
}

TEST(DecodeWalk, TakesTheStepsOfTheRunsInOrder) {
  for (const DecodeSchedule& s : schedules()) {
    if (s.num_units() > 5000) continue;
    for (const int32_t last_chunk_steps : {1, 2}) {
      const DecodeSteps steps{(s.num_chunks - 1) * 2 + last_chunk_steps, 2};
      ASSERT_EQ(steps.num_chunks(), s.num_chunks);
      for (const int32_t slots : {1, 3}) {
        for (int32_t lane = 0; lane < s.num_lanes; ++lane) {
          DecodeWalk walk(s.start(lane), steps, s.num_strips, s.num_chunks, slots);
          int64_t count = 0;
          for (const DecodeRun& run : runs_of(s, lane)) {
            for (int32_t chunk = run.chunk_begin; chunk < run.chunk_end; ++chunk) {
              for (int32_t step = 0; step < steps.steps_of(chunk); ++step) {
                ASSERT_FALSE(walk.done());
                ASSERT_EQ(walk.block, run.block);
                ASSERT_EQ(walk.strip, run.strip);
                ASSERT_EQ(walk.k_step(), chunk * 2 + step);
                ASSERT_EQ(walk.slot, count % slots);
                ASSERT_EQ(walk.phase, static_cast<uint32_t>(count / slots % 2));
                walk.advance();
                ++count;
              }
            }
          }
          ASSERT_TRUE(walk.done());
        }
      }
    }
  }
}

TEST(DecodeUnitSize, HoldsNearlyEveryExpertOfUniformRouting) {
  EXPECT_EQ(decode_unit_size(1, 8, 256), 8);
  EXPECT_EQ(decode_unit_size(8, 8, 8), 8) << "an expert has at most T rows";
  EXPECT_EQ(decode_unit_size(64, 8, 256), 8);
  EXPECT_EQ(decode_unit_size(64, 8, 128), 16);
  EXPECT_EQ(decode_unit_size(64, 8, 32), 32);
  EXPECT_EQ(decode_unit_size(128, 8, 32), 64);
  EXPECT_EQ(decode_unit_size(4096, 8, 8), 64);
  for (const int64_t tokens : {1, 2, 8, 9, 33, 128}) {
    for (const int64_t experts : {1, 8, 128, 1024}) {
      const int32_t unit = decode_unit_size(tokens, 4, experts);
      EXPECT_TRUE(unit == 8 || unit == 16 || unit == 32 || unit == 64);
    }
  }
}

TEST(DecodeShared, FitsAndKeepsEnoughInFlight) {
  for (const auto& [lanes, team] : {std::pair{1, 1}, {2, 1}, {4, 1}, {1, 3}, {1, 4}}) {
    for (const auto& [step, blocks] : {std::pair{16384, 2}, {8704, 4}, {18432, 8}}) {
      for (const int32_t unit : {8, 16, 32, 64}) {
        for (const int32_t capacity : {113 * 1024, 227 * 1024}) {
          const DecodeShared s =
              decode_shared(lanes, team, step, blocks, 2 * (unit + 2 * team), unit, capacity);
          EXPECT_LE(s.bytes, capacity);
          EXPECT_EQ(s.slot_bytes % 1024, 0) << "swizzle atoms";
          EXPECT_EQ(s.barriers % 8, 0);
          EXPECT_GE(s.slot_bytes, team * s.step_bytes + s.token_bytes);
          EXPECT_LE(lanes * s.slots * s.slot_bytes, s.scales);
          EXPECT_EQ(s.factors % 16, 0);
          EXPECT_LE(s.scales + lanes * s.slots * s.scale_bytes, s.factors);
          EXPECT_GT(s.factor_strips, s.slots);
          EXPECT_LE(s.factors + lanes * s.factor_strips * team * kDecodeFactorBytes, s.tables);
          EXPECT_EQ(s.tables % 16, 0);
          EXPECT_LE(s.tables + lanes * team * (unit * kDecodeRowBytes + kDecodeNoteBytes),
                    s.barriers);
        }
      }
    }
  }
  // 96 KB of weights in slots, of which 64 KB in flight give all the bandwidth (measured on an
  // H200).
  for (const int32_t unit : {8, 16, 32, 64}) {
    const int32_t lanes = decode_lanes(unit), team = decode_team(unit);
    const DecodeShared s =
        decode_shared(lanes, team, 16384, 2, 2 * (unit + 2 * team), unit, 227 * 1024);
    EXPECT_GE(lanes * team * s.slots, 6);
  }
}

}  // namespace
}  // namespace switchyard
