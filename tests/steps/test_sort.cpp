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
#include "support/buffer.h"
#include "support/random.h"
#include "switchyard/ops.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::Random;

constexpr uint8_t kPoisonByte = 0x5a;  // neither -1 nor 0, which are valid contents

enum class Ids { kDistinct, kWithInvalid, kOneExpert, kAllInvalid, kRepeated };

struct Case {
  int64_t num_tokens, num_experts, top_k;
  int64_t unit_size = 32;
  double mask_ratio = -1;  // share of local experts; < 0: no mask
  int64_t num_local = -1;  // num_local_tokens; < 0: not given
  Ids ids = Ids::kDistinct;
  bool optional_outputs = true;
  int64_t extra_rows = 0;  // outputs longer than needed
};

std::string describe(const Case& c) {
  return "T " + std::to_string(c.num_tokens) + " E " + std::to_string(c.num_experts) + " K " +
         std::to_string(c.top_k) + " unit " + std::to_string(c.unit_size) + " mask " +
         std::to_string(c.mask_ratio) + " n " + std::to_string(c.num_local) + " ids " +
         std::to_string(static_cast<int>(c.ids));
}

Buffer poisoned(DataType type, const Buffer::Shape& shape) {
  Buffer buffer(type, shape);
  std::memset(buffer.view().data, kPoisonByte, static_cast<size_t>(buffer.bytes()));
  return buffer;
}

/// Distinct experts per token by a partial shuffle, then what `kind` asks for.
Buffer random_ids(Random& random, const Case& c) {
  Buffer ids(DataType::kI32, {c.num_tokens, c.top_k});
  std::vector<int32_t> experts(static_cast<size_t>(c.num_experts));
  std::iota(experts.begin(), experts.end(), 0);
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    for (int64_t k = 0; k < c.top_k; ++k) {
      const int64_t other = k + random.below(c.num_experts - k);
      std::swap(experts[static_cast<size_t>(k)], experts[static_cast<size_t>(other)]);
      int32_t id = experts[static_cast<size_t>(k)];
      const int32_t bad[] = {-1, static_cast<int32_t>(c.num_experts), INT32_MIN, INT32_MAX};
      if (c.ids == Ids::kWithInvalid && random.below(3) == 0) id = bad[random.below(4)];
      if (c.ids == Ids::kAllInvalid) id = bad[random.below(4)];
      if (c.ids == Ids::kOneExpert && k == 0) id = static_cast<int32_t>(c.num_experts - 1);
      if (c.ids == Ids::kOneExpert && k > 0) id = -1;
      if (c.ids == Ids::kRepeated)
        id = static_cast<int32_t>(random.below(std::min<int64_t>(3, c.num_experts)));
      ids.as<int32_t>()[t * c.top_k + k] = id;
    }
  }
  return ids;
}

/// Inputs and poisoned outputs of one sort.
struct Problem {
  Problem(const Case& shape, uint64_t seed) : c(shape) {
    Random random(seed);
    const int64_t num_pairs = c.num_tokens * c.top_k;
    ids = random_ids(random, c);
    weights = Buffer(DataType::kF32, {c.num_tokens, c.top_k});
    for (int64_t i = 0; i < num_pairs; ++i) {  // any bits, NaNs included
      weights.as<uint32_t>()[i] = static_cast<uint32_t>(random.bits());
    }
    const int64_t rows =
        max_padded_rows(c.num_tokens, c.top_k, c.num_experts, c.unit_size) + c.extra_rows;
    sorted_ids = poisoned(DataType::kI32, {rows});
    sorted_weights = poisoned(DataType::kF32, {rows});
    sorted_expert_ids = poisoned(DataType::kI32, {ceil_div(rows, c.unit_size)});
    num_valid_ids = poisoned(DataType::kI32, {2});
    moe_buf = poisoned(DataType::kBf16, {c.num_tokens, 72});
    local_topk_ids = poisoned(DataType::kI32, {c.num_tokens, c.top_k});
    m_indices = poisoned(DataType::kI32, {rows});
    reverse_sorted = poisoned(DataType::kI32, {num_pairs});
    args = {.topk_ids = ids,
            .topk_weights = weights,
            .num_experts = c.num_experts,
            .unit_size = c.unit_size,
            .sorted_ids = sorted_ids,
            .sorted_weights = sorted_weights,
            .sorted_expert_ids = sorted_expert_ids,
            .num_valid_ids = num_valid_ids};
    if (c.mask_ratio >= 0) {
      mask = Buffer(DataType::kI32, {c.num_experts});
      for (int64_t e = 0; e < c.num_experts; ++e) {
        mask.as<int32_t>()[e] = random.uniform() < c.mask_ratio ? 1 : 0;
      }
      args.expert_mask = mask;
    }
    if (c.num_local >= 0) {
      num_local = Buffer::of(DataType::kI32, {1}, {static_cast<double>(c.num_local)});
      args.num_local_tokens = num_local;
    }
    if (c.optional_outputs) {
      args.moe_buf = moe_buf;
      args.local_topk_ids = local_topk_ids;
      args.m_indices = m_indices;
      args.reverse_sorted = reverse_sorted;
    }
  }

  bool is_local(int64_t e) const { return c.mask_ratio < 0 || mask.as<int32_t>()[e] != 0; }
  int64_t num_routed() const {
    return c.num_local < 0 ? c.num_tokens : std::min(c.num_local, c.num_tokens);
  }

  Case c;
  Buffer ids, weights, mask, num_local;
  Buffer sorted_ids, sorted_weights, sorted_expert_ids, num_valid_ids, moe_buf, local_topk_ids,
      m_indices, reverse_sorted;
  ops::SortArgs args;
};

/// One row that a correct sort holds.
struct Row {
  int32_t packed, token, expert;
  uint32_t weight_bits;
};

/// The contract by its definition: scan the experts, for each the tokens and slots.
std::vector<Row> expected_rows(const Problem& p) {
  const Case& c = p.c;
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

void check_optional_outputs(const Problem& p, const std::vector<Row>& rows) {
  const Case& c = p.c;
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

void check(const Problem& p) {
  const Case& c = p.c;
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
  } else {
    for (const Buffer* b : {&p.moe_buf, &p.local_topk_ids, &p.m_indices, &p.reverse_sorted}) {
      const auto* bytes = static_cast<const uint8_t*>(b->view().data);
      ASSERT_TRUE(
          std::all_of(bytes, bytes + b->bytes(), [](uint8_t x) { return x == kPoisonByte; }));
    }
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
  void run(const Case& c) {
    SCOPED_TRACE(describe(c));
    Problem problem(c, static_cast<uint64_t>(c.num_tokens * 131 + c.num_experts));
    GetParam().sort(problem.args);
    check(problem);
  }
};
INSTANTIATE_TEST_SUITE_P(All, Sort,
                         testing::Values(Implementation{"reference", reference::sort},
                                         Implementation{"cpu", cpu::sort}),
                         [](const auto& suite) { return suite.param.name; });

TEST_P(Sort, OneShotCases) {
  for (const int64_t t : {1, 4, 8, 16, 32, 64}) run({t, 256, 8});
  for (const Case& c : std::vector<Case>{{1, 32, 5},
                                         {7, 32, 5},
                                         {31, 64, 6},
                                         {1, 8, 2},
                                         {1, 257, 9},
                                         {16, 257, 9},
                                         {16, 513, 9},
                                         {8, 257, 9},
                                         {1, 385, 7},
                                         {16, 385, 7},
                                         {1, 513, 9},
                                         {1, 128, 4},
                                         {16, 129, 7},
                                         {16, 161, 7}}) {
    run(c);
  }
}

TEST_P(Sort, MultiPhaseCases) {
  for (const int64_t t : {128, 512, 1024, 2048, 4096, 8192, 16384}) run({t, 256, 8});
  for (const Case& c : std::vector<Case>{{1024, 257, 9},
                                         {1024, 513, 9},
                                         {16384, 257, 9},
                                         {1024, 385, 7},
                                         {16384, 385, 7},
                                         {16384, 513, 9}}) {
    run(c);
  }
}

TEST_P(Sort, ExpertParallelMasks) {
  for (const double ratio : {0.0, 0.3, 0.5, 0.7, 1.0}) {
    for (const auto& [e, k] : {std::pair{256, 8}, {257, 9}, {513, 9}}) {
      for (const int64_t t : {16, 1024})
        run({.num_tokens = t, .num_experts = e, .top_k = k, .mask_ratio = ratio});
    }
  }
}

TEST_P(Sort, ProductionModels) {
  const std::pair<int, int> models[] = {
      {256, 8},  {257, 9}, {384, 6}, {385, 7},  {384, 8}, {385, 9}, {896, 16}, {128, 8}, {512, 10},
      {513, 11}, {160, 8}, {161, 9}, {161, 10}, {128, 4}, {129, 5}, {256, 6},  {16, 1},  {8, 2}};
  for (const auto& [e, k] : models) {
    for (const int64_t t : {0, 1, 2, 33, 300}) {
      for (const int64_t unit : {16, 32, 64, 128}) run({t, e, k, unit});
    }
  }
  run({16384, 896, 16, 128});
  run({16384, 896, 16, 16});
  run({16384, 8, 2, 128});
}

TEST_P(Sort, DeviceSideTokenCount) {
  for (const int64_t t : {1, 40, 2000}) {
    for (const int64_t n : {int64_t{0}, int64_t{1}, t / 2, t - 1, t}) {
      run({.num_tokens = t, .num_experts = 64, .top_k = 6, .num_local = n});
      run({.num_tokens = t,
           .num_experts = 64,
           .top_k = 6,
           .mask_ratio = 0.5,
           .num_local = n,
           .ids = Ids::kWithInvalid});
    }
  }
}

TEST_P(Sort, LopsidedInvalidAndRepeatedIds) {
  for (const Ids ids : {Ids::kWithInvalid, Ids::kOneExpert, Ids::kAllInvalid, Ids::kRepeated}) {
    for (const int64_t t : {1, 31, 32, 33, 64, 1500}) {
      for (const auto& [e, k] : {std::pair{1, 1}, {4, 4}, {257, 9}, {4096, 127}}) {
        run({.num_tokens = t, .num_experts = e, .top_k = k, .ids = ids});
        run({.num_tokens = t,
             .num_experts = e,
             .top_k = k,
             .unit_size = 1,
             .mask_ratio = 0.5,
             .ids = ids});
      }
    }
  }
}

TEST_P(Sort, OptionalOutputsMayBeMissing) {
  for (const int64_t t : {0, 5, 3000}) {
    run({.num_tokens = t, .num_experts = 32, .top_k = 5, .optional_outputs = false});
  }
  Problem p({.num_tokens = 5, .num_experts = 32, .top_k = 5}, 1);
  Buffer one = poisoned(DataType::kI32, {1});
  p.args.num_valid_ids = one;
  GetParam().sort(p.args);
  EXPECT_EQ(one.as<int32_t>()[0], static_cast<int32_t>(expected_rows(p).size()));
  EXPECT_TRUE(one.canaries_intact());
}

TEST_P(Sort, LongerOutputsArePaddedToTheirEnd) {
  for (const int64_t extra : {1, 31, 32, 5000}) {  // the classic capacity is no multiple of a block
    run({.num_tokens = 17, .num_experts = 32, .top_k = 5, .extra_rows = extra});
  }
}

TEST_P(Sort, PackedIdAndSentinelBits) {
  Problem p({.num_tokens = 3, .num_experts = 4, .top_k = 2, .unit_size = 4}, 1);
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
