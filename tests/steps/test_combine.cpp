// The weighted sum over a token's slots against a sum in long double: masks, skipped ids, addends.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "cpu/steps.h"
#include "reference/steps.h"
#include "support/buffer.h"
#include "support/random.h"
#include "switchyard/ops.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::Random;
using Real = long double;

struct Case {
  int64_t num_tokens, top_k, hidden;
  DataType expert_type = DataType::kF32, addend_type = DataType::kF32, output_type = DataType::kF32;
  bool ids = true, weights = true, addend = true, mask = false, residual = false;
  int64_t num_computed = -1;  // num_tokens argument; < 0: not given
};
constexpr int64_t kNumExperts = 12;

struct Problem {
  Problem(const Case& shape, uint64_t seed) : c(shape) {
    Random random(seed);
    expert_output = Buffer::normal(random, c.expert_type, {c.num_tokens, c.top_k, c.hidden});
    ids = Buffer(DataType::kI32, {c.num_tokens, c.top_k});
    weights = Buffer::normal(random, DataType::kF32, {c.num_tokens, c.top_k});
    addend = Buffer::normal(random, c.addend_type, {c.num_tokens, c.hidden});
    residual = Buffer::normal(random, c.output_type, {c.num_tokens, c.hidden});
    mask = Buffer(DataType::kI32, {kNumExperts});
    for (int64_t e = 0; e < kNumExperts; ++e)
      mask.as<int32_t>()[e] = static_cast<int32_t>(e % 3 == 0);
    for (int64_t pair = 0; pair < ids.size(); ++pair) {
      ids.as<int32_t>()[pair] = static_cast<int32_t>(random.below(kNumExperts + 4)) - 2;
      // What must not be read would poison the sum.
      for (int64_t i = 0; i < c.hidden && !counts(pair); ++i)
        expert_output.set(pair * c.hidden + i, NAN);
    }
    output = Buffer(c.output_type, {c.num_tokens, c.hidden});
    args = {.expert_output = expert_output, .num_experts = kNumExperts, .output = output};
    if (c.ids) args.topk_ids = ids;
    if (c.mask) args.expert_mask = mask;
    if (c.weights) args.topk_weights = weights;
    if (c.addend) args.addend = addend;
    if (c.residual) args.residual = residual;
    if (c.num_computed >= 0) {
      num_tokens = Buffer::of(DataType::kI32, {1}, {static_cast<double>(c.num_computed)});
      args.num_tokens = num_tokens;
    }
  }

  bool counts(int64_t pair) const {
    const int32_t id = ids.as<int32_t>()[pair];
    return !c.ids || (id >= 0 && id < kNumExperts && (!c.mask || id % 3 == 0));
  }

  Case c;
  Buffer expert_output, ids, weights, addend, residual, mask, num_tokens, output;
  ops::CombineArgs args;
};

/// Half a unit in the last place of the type, relative.
Real half_unit(DataType type) {
  return type == DataType::kBf16 ? 0x1p-8L : type == DataType::kF16 ? 0x1p-11L : 0x1p-24L;
}

void check(const Problem& p) {
  const Case& c = p.c;
  const int64_t computed =
      c.num_computed < 0 ? c.num_tokens : std::min(c.num_computed, c.num_tokens);
  for (int64_t i = 0; i < computed * c.hidden; ++i) {
    const int64_t token = i / c.hidden;
    Real sum = c.addend ? Real(p.addend.at(i)) : 0;
    Real magnitude = std::fabs(sum);
    if (c.residual) {
      sum += Real(p.residual.at(i));
      magnitude += std::fabs(Real(p.residual.at(i)));
    }
    for (int64_t slot = 0; slot < c.top_k; ++slot) {
      const int64_t pair = token * c.top_k + slot;
      if (!p.counts(pair)) continue;
      const Real term = Real(p.expert_output.at(pair * c.hidden + i % c.hidden)) *
                        (c.weights ? Real(p.weights.at(pair)) : 1);
      sum += term;
      magnitude += std::fabs(term);
    }
    // A product and a sum per slot, each half a unit of what has been summed so far.
    const Real bound = 0x1p-24L * Real(2 * c.top_k + 1) * magnitude +
                       half_unit(c.output_type) * std::fabs(sum) +
                       (c.output_type == DataType::kF16 ? 0x1p-25L : 0);
    ASSERT_NEAR(p.output.at(i), double(sum), double(bound))
        << "token " << token << " column " << i % c.hidden;
  }
  EXPECT_TRUE(p.output.untouched(computed * c.hidden, p.output.size()));
  EXPECT_TRUE(p.output.canaries_intact());
}

struct Implementation {
  const char* name;
  void (*combine)(const ops::CombineArgs&);
};

class Combine : public testing::TestWithParam<Implementation> {
 protected:
  void run(const Case& c) {
    SCOPED_TRACE(testing::Message()
                 << "T " << c.num_tokens << " K " << c.top_k << " H " << c.hidden);
    Problem p(c, static_cast<uint64_t>(c.num_tokens + c.hidden));
    GetParam().combine(p.args);
    check(p);
  }
};
INSTANTIATE_TEST_SUITE_P(All, Combine,
                         testing::Values(Implementation{"reference", reference::combine},
                                         Implementation{"cpu", cpu::combine}),
                         [](const auto& suite) { return suite.param.name; });

TEST_P(Combine, EveryTypeAndOption) {
  constexpr DataType kTypes[] = {DataType::kF32, DataType::kBf16, DataType::kF16};
  for (const auto expert : kTypes) {
    for (const auto addend : kTypes) {
      for (const auto output : kTypes) {
        for (int options = 0; options < 32; ++options) {
          const bool ids = (options & 1) != 0;
          run({.num_tokens = 3,
               .top_k = 5,
               .hidden = 40,
               .expert_type = expert,
               .addend_type = addend,
               .output_type = output,
               .ids = ids,
               .weights = (options & 2) != 0,
               .addend = (options & 4) != 0,
               .mask = ids && (options & 8) != 0,
               .residual = (options & 16) != 0});
        }
      }
    }
  }
}

TEST_P(Combine, RaggedShapes) {
  for (const int64_t t : {0, 1, 2, 19}) {
    for (const int64_t k : {1, 8, 32}) {
      for (const int64_t h : {1, 704, 1023, 1024, 1025, 2880}) {
        run({.num_tokens = t, .top_k = k, .hidden = h, .output_type = DataType::kBf16});
      }
    }
  }
}

TEST_P(Combine, LeavesTokensPastTheCountAlone) {
  for (const int64_t n : {0, 1, 4, 5, 9})
    run({.num_tokens = 5, .top_k = 3, .hidden = 33, .num_computed = n});
}

TEST_P(Combine, AddendMayBeTheOutput) {
  Problem separate({.num_tokens = 7, .top_k = 4, .hidden = 1500}, 1);
  GetParam().combine(separate.args);
  Problem in_place({.num_tokens = 7, .top_k = 4, .hidden = 1500}, 1);
  in_place.args.output = in_place.addend;
  GetParam().combine(in_place.args);
  EXPECT_TRUE(test::same_bits(in_place.addend, separate.output));
}

TEST(CombineCpu, ATokenDoesNotDependOnItsBatch) {
  const Case batch{.num_tokens = 64, .top_k = 8, .hidden = 1100, .expert_type = DataType::kBf16};
  Problem all(batch, 2);
  cpu::combine(all.args);
  for (const int64_t token : {0, 17, 63}) {
    Problem one(batch, 2);
    const auto row = [&](const Buffer& b) {
      const int64_t size = b.size() / batch.num_tokens;
      TensorView view = b.view();
      view.data = static_cast<char*>(view.data) + token * size * element_bytes(view.type);
      view.shape[0] = 1;
      return view;
    };
    one.args.expert_output = row(one.expert_output);
    one.args.topk_ids = row(one.ids);
    one.args.topk_weights = row(one.weights);
    one.args.addend = row(one.addend);
    one.args.output = row(one.output);
    cpu::combine(one.args);
    for (int64_t i = token * batch.hidden; i < (token + 1) * batch.hidden; ++i) {
      ASSERT_EQ(one.output.as<uint32_t>()[i], all.output.as<uint32_t>()[i]);
    }
  }
}

}  // namespace
}  // namespace switchyard
