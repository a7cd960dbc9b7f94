// The sorting contract, checked property by property against topk_ids alone: every promise of
// SortArgs, on poisoned outputs with canaries, for the cases of the field's own test suites and for
// production models.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "core/expert_sort.h"
#include "cpu/steps.h"
#include "reference/steps.h"
#include "support/sort_cases.h"
#include "switchyard/ops.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::SortCase;
using test::SortIds;
using test::SortProblem;

/// One row that a correct sort holds.
struct Row {
  int32_t packed, token, expert;
  uint32_t weight_bits;
};

/// The contract by its definition: scan the experts, for each the tokens and slots.
std::vector<Row> expected_rows(const SortProblem& p) {
  const SortCase& c = p.c;
  struct Entry {
    int32_t expert;
    int64_t pair;
  };
  std::vector<Entry> entries;
  for (int64_t pair = 0; pair < p.num_routed() * c.top_k; ++pair) {
    const int32_t id = p.ids.as<int32_t>()[pair];
    if (id >= 0 && id < c.num_experts && p.is_local(id)) entries.push_back({id, pair});
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.expert < b.expert; });
  std::vector<int32_t> local(static_cast<size_t>(c.num_experts), 0);
  for (int64_t e = 1; e < c.num_experts; ++e) {
    local[static_cast<size_t>(e)] = local[static_cast<size_t>(e - 1)] + (p.is_local(e - 1) ? 1 : 0);
  }
  const Row padding{static_cast<int32_t>(c.top_k * (1 << 24) + c.num_tokens),
                    static_cast<int32_t>(c.num_tokens), 0, 0};
  std::vector<Row> rows;
  for (size_t i = 0; i < entries.size(); ++i) {
    const auto [expert, pair] = entries[i];
    const int32_t local_id = local[static_cast<size_t>(expert)];
    rows.push_back({static_cast<int32_t>(pair % c.top_k * (1 << 24) + pair / c.top_k),
                    static_cast<int32_t>(pair / c.top_k), local_id,
                    p.weights.as<uint32_t>()[pair]});
    const bool last = i + 1 == entries.size() || entries[i + 1].expert != expert;
    while (last && rows.size() % static_cast<size_t>(c.unit_size) != 0) {
      rows.push_back(padding);
      rows.back().expert = local_id;
    }
  }
  return rows;
}

void check_optional_outputs(const SortProblem& p, const std::vector<Row>& rows) {
  const SortCase& c = p.c;
  std::vector<int32_t> row_of(static_cast<size_t>(c.num_tokens * c.top_k), -1);
  for (size_t row = 0; row < rows.size(); ++row) {
    if (rows[row].token == c.num_tokens) continue;
    const int64_t slot = rows[row].packed >> 24;
    row_of[static_cast<size_t>(rows[row].token * c.top_k + slot)] = static_cast<int32_t>(row);
  }
  for (size_t pair = 0; pair < row_of.size(); ++pair) {
    const int32_t row = row_of[pair];
    ASSERT_EQ(p.reverse_sorted.as<int32_t>()[pair], row) << "pair " << pair;
    ASSERT_EQ(p.local_topk_ids.as<int32_t>()[pair],
              row < 0 ? -1 : rows[static_cast<size_t>(row)].expert)
        << "pair " << pair;
  }
  for (int64_t row = 0; row < p.m_indices.size(); ++row) {
    const bool used = static_cast<size_t>(row) < rows.size();
    ASSERT_EQ(p.m_indices.as<int32_t>()[row],
              used ? rows[static_cast<size_t>(row)].token : c.num_tokens)
        << "row " << row;
  }
  for (int64_t i = 0; i < p.moe_buf.size(); ++i) ASSERT_EQ(p.moe_buf.as<uint16_t>()[i], 0);
}

void check(const SortProblem& p) {
  const SortCase& c = p.c;
  const std::vector<Row> rows = expected_rows(p);
  ASSERT_EQ(p.num_valid_ids.as<int32_t>()[0], static_cast<int32_t>(rows.size()));
  ASSERT_EQ(p.num_valid_ids.as<int32_t>()[1], p.num_routed());
  const auto sentinel = static_cast<int32_t>(c.top_k * (1 << 24) + c.num_tokens);
  for (int64_t row = 0; row < p.sorted_ids.size(); ++row) {
    const bool used = static_cast<size_t>(row) < rows.size();
    const Row want = used ? rows[static_cast<size_t>(row)] : Row{sentinel, 0, -1, 0};
    ASSERT_EQ(p.sorted_ids.as<int32_t>()[row], want.packed) << "row " << row;
    ASSERT_EQ(p.sorted_weights.as<uint32_t>()[row], want.weight_bits) << "row " << row;
    ASSERT_EQ(p.sorted_expert_ids.as<int32_t>()[row / c.unit_size], want.expert) << "row " << row;
  }
  if (c.optional_outputs) {
    check_optional_outputs(p, rows);
  }
  for (const Buffer* b : {&p.sorted_ids, &p.sorted_weights, &p.sorted_expert_ids, &p.num_valid_ids,
                          &p.moe_buf, &p.local_topk_ids, &p.m_indices, &p.reverse_sorted}) {
    ASSERT_TRUE(b->canaries_intact());
  }
}

struct Implementation {
  const char* name;
  void (*sort)(const ops::SortArgs&);
};

class Sort : public testing::TestWithParam<Implementation> {
 protected:
  void run(const std::vector<SortCase>& cases) {
    for (const SortCase& c : cases) {
      SCOPED_TRACE(describe(c));
      SortProblem problem(c);
      GetParam().sort(problem.args);
      check(problem);
    }
  }
};
INSTANTIATE_TEST_SUITE_P(All, Sort,
                         testing::Values(Implementation{"reference", reference::sort},
                                         Implementation{"cpu", cpu::sort}),
                         [](const auto& suite) { return suite.param.name; });

TEST_P(Sort, OneShotCases) { run(test::one_shot_sort_cases()); }
TEST_P(Sort, MultiPhaseCases) { run(test::multi_phase_sort_cases()); }
TEST_P(Sort, ExpertParallelMasks) { run(test::masked_sort_cases()); }
TEST_P(Sort, ProductionModels) { run(test::model_sort_cases()); }
TEST_P(Sort, DeviceSideTokenCount) { run(test::counted_sort_cases()); }
TEST_P(Sort, LopsidedInvalidAndRepeatedIds) { run(test::unusual_sort_cases()); }
TEST_P(Sort, OutputsMayBeMissingOrLonger) { run(test::output_sort_cases()); }

TEST_P(Sort, NumValidIdsMayBeOne) {
  SortProblem p({.num_tokens = 5, .num_experts = 32, .top_k = 5});
  Buffer one(DataType::kI32, {1});
  p.args.num_valid_ids = one;
  GetParam().sort(p.args);
  EXPECT_EQ(one.as<int32_t>()[0], static_cast<int32_t>(expected_rows(p).size()));
  EXPECT_TRUE(one.canaries_intact());
}

TEST_P(Sort, PackedIdAndSentinelBits) {
  SortProblem p({.num_tokens = 3, .num_experts = 4, .top_k = 2, .unit_size = 4});
  const int32_t ids[] = {2, 0, 3, 2, -1, 2};
  std::copy_n(ids, 6, p.ids.as<int32_t>());
  GetParam().sort(p.args);
  const std::vector<int32_t> sorted(p.sorted_ids.as<int32_t>(), p.sorted_ids.as<int32_t>() + 12);
  constexpr int32_t kPad = 0x02000003;
  EXPECT_EQ(sorted, (std::vector<int32_t>{0x01000000, kPad, kPad, kPad,              //
                                          0x00000000, 0x01000001, 0x01000002, kPad,  //
                                          0x00000001, kPad, kPad, kPad}));
  EXPECT_EQ(p.sorted_expert_ids.as<int32_t>()[0], 0);
  EXPECT_EQ(p.sorted_expert_ids.as<int32_t>()[1], 2);
  EXPECT_EQ(p.sorted_expert_ids.as<int32_t>()[2], 3);
  EXPECT_EQ(p.num_valid_ids.as<int32_t>()[0], 12);
  EXPECT_EQ(p.num_valid_ids.as<int32_t>()[1], 3);
}

}  // namespace
}  // namespace switchyard
