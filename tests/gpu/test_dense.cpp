// ops::Experts::dense on the tuned kernels: alphas as lists of experts, and the tokens that have
// too many of them.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "gpu/prefill_agreement.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::DeviceTensor;
using test::Operands;
using test::Random;
using Experts = test::PrefillExperts;

const Operands kOperands[] = {
    {Format::kBf16, {}, ActivationFormat::kNone},
    {Format::kFp8E4m3, {128, 128}, ActivationFormat::kFp8Block128},
    {Format::kInt8, {1, 0}, ActivationFormat::kInt8PerToken},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kNone},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kFp8PerToken},
    {Format::kInt4, {1, 32}, ActivationFormat::kFp8PerToken},
    {Format::kNvfp4, {1, 16}, ActivationFormat::kNone},
    {Format::kInt8, {1, 0}, ActivationFormat::kInt8PerSlot},
};

/// How many experts a token uses.
enum class Alphas { kNone, kOneForAll, kTopK, kOneMore, kMixed, kAll };
constexpr Alphas kEveryKind[] = {Alphas::kNone,    Alphas::kOneForAll, Alphas::kTopK,
                                 Alphas::kOneMore, Alphas::kMixed,     Alphas::kAll};

Buffer make_alpha(Random& random, Alphas kind, int64_t tokens, const LayerSpec& spec) {
  const int64_t experts = spec.num_experts;
  Buffer alpha = Buffer::zeros(DataType::kF32, {tokens, experts});
  for (int64_t t = 0; t < tokens; ++t) {
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random.below(n)); };
    const int64_t used = kind == Alphas::kNone        ? 0
                         : kind == Alphas::kOneForAll ? 1
                         : kind == Alphas::kTopK      ? spec.top_k
                         : kind == Alphas::kOneMore   ? spec.top_k + 1
                         : kind == Alphas::kMixed     ? below(experts + 1)
                                                      : experts;
    std::vector<int64_t> order(static_cast<size_t>(experts));
    for (int64_t e = 0; e < experts; ++e) order[static_cast<size_t>(e)] = e;
    for (int64_t i = 0; i < used && kind != Alphas::kOneForAll; ++i) {
      std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(i + below(experts - i))]);
    }
    for (int64_t i = 0; i < used; ++i) {
      alpha.set(t * experts + order[static_cast<size_t>(i)], 0.1 + 0.5 * random.uniform());
    }
  }
  return alpha;
}

Buffer dense_on_gpu(const PackedExperts& experts, const LayerSpec& spec, const Buffer& hidden,
                    const Buffer& alpha, DataType output) {
  const int64_t tokens = hidden.view().extent(0);
  const DeviceTensor x(hidden), a(alpha), y(Buffer(output, {tokens, spec.hidden_size}));
  const cuda::DeviceBuffer workspace =
      test::device_workspace(experts.workspace_bytes(tokens, spec.top_k));
  experts.dense({x, a, y}, test::workspace_of(workspace), {});
  return y.fetch();
}

void expect_reference(const Experts& experts, int64_t tokens, Alphas kind, DataType type) {
  const LayerSpec& spec = experts.spec;
  SCOPED_TRACE(test::describe(spec, tokens) + ", alphas " + std::to_string(static_cast<int>(kind)) +
               ", " + to_string(type));
  Random random(static_cast<uint64_t>(tokens * 7 + static_cast<int>(kind)));
  const Buffer hidden = Buffer::normal(random, type, {tokens, spec.hidden_size});
  const Buffer alpha = make_alpha(random, kind, tokens, spec);
  const Buffer want(type, {tokens, spec.hidden_size});
  const test::GuardedMemory workspace(experts.reference->workspace_bytes(tokens, spec.top_k));
  experts.reference->dense({hidden, alpha, want}, workspace.workspace(), {});
  const Buffer got = dense_on_gpu(*experts.tuned, spec, hidden, alpha, type);
  EXPECT_TRUE(test::within(got, want, error_bound(spec, BackendKind::kCuda, type)));
  EXPECT_TRUE(test::same_bits(got, dense_on_gpu(*experts.tuned, spec, hidden, alpha, type)));
}

class GpuDenseOf : public testing::TestWithParam<Operands> {};

TEST_P(GpuDenseOf, AgreesWithTheReference) {
  const Experts experts(test::spec_of(GetParam(), 9, 3, 256, 128), GetParam(), true);
  for (const Alphas kind : kEveryKind) {
    for (const int64_t tokens : {1, 8, 65}) {
      expect_reference(experts, tokens, kind, DataType::kBf16);
    }
  }
  expect_reference(experts, 700, Alphas::kTopK, DataType::kBf16);  // many rows per expert
  expect_reference(experts, 5, Alphas::kMixed, DataType::kF32);
}

/// Where no token has more than top_k experts, dense is the layer on lists of them: same bits.
TEST_P(GpuDenseOf, IsTheLayerOnTheChosenExperts) {
  const Experts experts(test::spec_of(GetParam(), 40, 4, 256, 128), GetParam(), false);
  const LayerSpec& spec = experts.spec;
  for (const int64_t tokens : {1, 33}) {
    Random random(5);
    const Buffer hidden = Buffer::normal(random, DataType::kBf16, {tokens, spec.hidden_size});
    const Buffer alpha = make_alpha(random, Alphas::kTopK, tokens, spec);
    Buffer ids = Buffer::zeros(DataType::kI32, {tokens, spec.top_k});
    Buffer weights = Buffer::zeros(DataType::kF32, {tokens, spec.top_k});
    int64_t pair = 0;
    for (int64_t i = 0; i < alpha.size(); ++i) {
      if (alpha.at(i) == 0.0) continue;
      ids.set(pair, static_cast<double>(i % spec.num_experts));
      weights.set(pair++, alpha.at(i));
    }
    const Buffer output(DataType::kBf16, {tokens, spec.hidden_size});
    const Buffer want = test::run_on_gpu(
        *experts.tuned,
        {.hidden_states = hidden, .topk_ids = ids, .topk_weights = weights, .output = output},
        spec.top_k);
    EXPECT_TRUE(
        test::same_bits(dense_on_gpu(*experts.tuned, spec, hidden, alpha, DataType::kBf16), want));
  }
}

/// A token's bits do not depend on whether others have more experts than fit.
TEST_P(GpuDenseOf, OtherTokensDoNotChangeBits) {
  const Experts experts(test::spec_of(GetParam(), 9, 3, 256, 128), GetParam(), false);
  const LayerSpec& spec = experts.spec;
  constexpr int64_t kTokens = 24;
  Random random(9);
  const Buffer hidden = Buffer::normal(random, DataType::kBf16, {kTokens, spec.hidden_size});
  const Buffer few = make_alpha(random, Alphas::kTopK, kTokens, spec);
  const Buffer all = make_alpha(random, Alphas::kAll, kTokens, spec);
  Buffer mixed = few.clone();
  for (int64_t i = 0; i < mixed.size(); ++i) {
    if (i / spec.num_experts % 2 == 1) mixed.set(i, all.at(i));
  }
  const auto run = [&](const Buffer& alpha) {
    return dense_on_gpu(*experts.tuned, spec, hidden, alpha, DataType::kBf16);
  };
  const Buffer of_few = run(few), of_all = run(all), got = run(mixed);
  for (int64_t i = 0; i < got.size(); ++i) {
    const bool crowded = i / spec.hidden_size % 2 == 1;
    ASSERT_EQ(got.at(i), (crowded ? of_all : of_few).at(i)) << "element " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(All, GpuDenseOf, testing::ValuesIn(kOperands),
                         [](const auto& of) { return test::name_of(of.param); });

TEST(GpuDense, WeightsOnTheInput) {
  for (const bool generic : {false, true}) {
    LayerSpec spec = test::spec_of(kOperands[0], 9, 3, 256, 128);
    spec.weight_position = WeightPosition::kInput;
    Experts experts(spec, kOperands[0], true);
    if (generic) experts.tuned = std::move(experts.generic);
    for (const Alphas kind : {Alphas::kTopK, Alphas::kMixed}) {
      expect_reference(experts, 21, kind, DataType::kBf16);
    }
  }
}

}  // namespace
}  // namespace switchyard
