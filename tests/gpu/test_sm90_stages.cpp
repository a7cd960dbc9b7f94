// gate_up and down alone (ops::Experts) on Hopper's kernels: lists that the caller sorted in blocks
// of any height that has a kernel, against the reference.

#include <gtest/gtest.h>

#include "cuda/sm90/experts.h"
#include "gpu/device_tensor.h"
#include "gpu/operands.h"
#include "gpu/packed_layer.h"
#include "gpu/sorted_batch.h"
#include "support/compare.h"

namespace switchyard {
namespace {

using cuda::sm90::Sm90Experts;
using test::Buffer;
using test::DeviceTensor;
using test::Operands;
using test::Random;
using test::SortedBatch;

const Operands kOperands[] = {
    {Format::kBf16, {}, ActivationFormat::kNone},
    {Format::kFp8E4m3, {128, 128}, ActivationFormat::kFp8Block128},
    {Format::kFp8E4m3, {1, 0}, ActivationFormat::kFp8PerToken},
    {Format::kFp8E4m3, {0, 0}, ActivationFormat::kFp8PerTensor},
    {Format::kInt8, {1, 0}, ActivationFormat::kInt8PerSlot},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kNone},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kFp8PerToken},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kMxfp4},
    {Format::kMxfp8, {1, 32}, ActivationFormat::kMxfp8},
    {Format::kNvfp4, {1, 16}, ActivationFormat::kNone},
    {Format::kInt4, {1, 32}, ActivationFormat::kNone},
};

/// One layer's stages by the tuned kernels and by the reference.
class GpuSm90StagesOf : public ::testing::TestWithParam<Operands> {
 protected:
  static constexpr int64_t kExperts = 6, kTopK = 2, kHidden = 352, kInner = 160;

  /// Whether a tuned kernel took the stage; then its output is held against the reference's.
  bool agrees(bool is_down, const SortedBatch& s, int64_t tokens, int64_t unit, DataType type) {
    SCOPED_TRACE(test::describe(spec, tokens) + (is_down ? " down" : " gate_up") + ", unit " +
                 std::to_string(unit) + ", to " + to_string(type));
    const int64_t in = is_down ? kInner : kHidden, out = is_down ? kHidden : kInner;
    Random random(5);
    const Buffer input = is_down ? Buffer::normal(random, DataType::kBf16, {tokens, kTopK, in})
                                 : Buffer::normal(random, DataType::kBf16, {tokens, in});
    Buffer want(type, {tokens, kTopK, out});
    const DeviceTensor x(input), ids(s.ids), experts(s.expert_ids), valid(s.num_valid),
        row_weights(s.weights), got(want);
    const bool taken =
        tuned.run_stage({.is_down = is_down,
                         .map = {.sorted_ids = ids.view().as<const int32_t>(),
                                 .sorted_expert_ids = experts.view().as<const int32_t>(),
                                 .num_valid_ids = valid.view().as<const int32_t>(),
                                 .sorted_weights = row_weights.view().as<const float>(),
                                 .unit_size = static_cast<int32_t>(unit),
                                 .num_blocks = static_cast<int32_t>(s.expert_ids.size()),
                                 .top_k = kTopK,
                                 .tokens = {.limit = tokens}},
                         .input = x,
                         .output = got},
                        test::workspace_of(workspace), {});
    if (!taken) return false;
    const test::GuardedMemory host(reference->workspace_bytes(tokens, kTopK));
    if (is_down) {
      reference->down({input, s.ids, s.expert_ids, s.num_valid, s.weights, unit, kTopK, want},
                      host.workspace(), {});
    } else {
      reference->gate_up({input, s.ids, s.expert_ids, s.num_valid, s.weights, unit, kTopK, want},
                         host.workspace(), {});
    }
    EXPECT_TRUE(
        test::within(got.fetch(), want, error_bound(spec, BackendKind::kCuda, type), s.ids_in));
    return true;
  }

  static constexpr int64_t kMostTokens = 300;
  LayerSpec spec = spec_of(GetParam(), kExperts, kTopK, kHidden, kInner);
  test::RandomWeights weights{spec, {.matrix = matrix_of(GetParam()), .biases = true}};
  test::PackedLayer packed = test::pack(spec, weights);
  Sm90Experts tuned{spec, packed.gate_up, packed.down, 0};
  std::unique_ptr<PackedExperts> reference =
      reference_backend().pack_experts(spec, weights.weights().experts, {});
  cuda::DeviceBuffer workspace = test::device_workspace(tuned.workspace_bytes(kMostTokens, kTopK));
};
INSTANTIATE_TEST_SUITE_P(All, GpuSm90StagesOf, ::testing::ValuesIn(kOperands),
                         [](const auto& test) { return name_of(test.param); });

TEST_P(GpuSm90StagesOf, AnyBlockHeight) {
  const bool decodes =
      cuda::sm90::DecodeExperts::why_unsupported(spec, packed.gate_up, packed.down).empty();
  for (const int64_t unit : {8, 16, 24, 32, 64, 128, 192, 256}) {
    for (const int64_t tokens : {1, 30, 300}) {
      Random random(static_cast<uint64_t>(unit + tokens));
      const SortedBatch s(random, tokens, kTopK, kExperts, unit);
      const bool power_of_two = (unit & (unit - 1)) == 0;
      for (const bool is_down : {false, true}) {
        const bool has_tile = decodes && unit <= 64 && power_of_two;
        const bool to_bf16 = agrees(is_down, s, tokens, unit, DataType::kBf16);
        EXPECT_TRUE(to_bf16 || (!has_tile && unit != 128)) << unit;
        EXPECT_EQ(agrees(is_down, s, tokens, unit, DataType::kF32), has_tile) << unit;
      }
    }
  }
}

/// Nothing is sorted, so nothing is written: lists that end before their first block.
TEST_P(GpuSm90StagesOf, NoRows) {
  Random random(3);
  SortedBatch s(random, 30, kTopK, kExperts, 64);
  s.num_valid.as<int32_t>()[0] = 0;
  for (int64_t i = 0; i < s.ids_in.size(); ++i) s.ids_in.as<int32_t>()[i] = -1;
  for (const bool is_down : {false, true}) {
    EXPECT_TRUE(agrees(is_down, s, 30, 64, DataType::kBf16));
  }
}

TEST(GpuSm90Stages, AddressesThatKernelsCannotTakeAreLeft) {
  const Operands bf16{Format::kBf16, {}, ActivationFormat::kNone};
  const LayerSpec spec = test::spec_of(bf16, 2, 1, 64, 64);
  const test::RandomWeights weights(spec, {});
  const test::PackedLayer packed = test::pack(spec, weights);
  const Sm90Experts tuned(spec, packed.gate_up, packed.down, 0);
  const cuda::DeviceBuffer memory(1 << 16);
  const cuda::GemmRowMap map{.unit_size = 64, .num_blocks = 1, .tokens = {.limit = 4}};
  const auto at = [&](int64_t byte, DataType type) {
    return TensorView::contiguous(memory.as<char>() + byte, type, {4, 64});
  };
  EXPECT_FALSE(tuned.run_stage(
      {.map = map, .input = at(2, DataType::kBf16), .output = at(1024, DataType::kBf16)}, {}, {}));
  EXPECT_FALSE(tuned.run_stage(
      {.map = map, .input = at(0, DataType::kBf16), .output = at(1026, DataType::kBf16)}, {}, {}));
  EXPECT_FALSE(tuned.run_stage(
      {.map = map, .input = at(0, DataType::kF32), .output = at(4096, DataType::kBf16)}, {}, {}));
}

}  // namespace
}  // namespace switchyard
