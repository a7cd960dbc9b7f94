// The prefill kernels for 4-bit weights: every operand kind, activation and shape class against the
// double reference and against the generic kernels, and the same bits from every tile.

#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "core/expert_sort.h"
#include "core/fragment_convert.h"
#include "cuda/check.h"
#include "cuda/pack_weights.h"
#include "cuda/sm90/fp4_prefill.h"
#include "cuda/sort.h"
#include "gpu/device_tensor.h"
#include "gpu/operands.h"
#include "gpu/prefill_agreement.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/random_weights.h"
#include "switchyard/models.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::DeviceTensor;
using test::Operands;
using test::Random;

const Operands kOperands[] = {
    {Format::kMxfp4, {1, 32}, ActivationFormat::kNone},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kFp8PerToken},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kFp8PerTensor},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kMxfp8},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kMxfp4},
    {Format::kNvfp4, {1, 16}, ActivationFormat::kNone},
    {Format::kInt4, {1, 32}, ActivationFormat::kNone},
    {Format::kInt4, {1, 128}, ActivationFormat::kNone},
    {Format::kMxfp8, {1, 32}, ActivationFormat::kNone},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kFp8Block128},
    {Format::kMxfp8, {1, 32}, ActivationFormat::kMxfp8},
    {Format::kInt4, {1, 32}, ActivationFormat::kNone, true},
    {Format::kInt4, {1, 128}, ActivationFormat::kNone, true, DataType::kF16},
    {Format::kInt4, {1, 32}, ActivationFormat::kFp8PerToken},
    {Format::kInt4, {1, 128}, ActivationFormat::kFp8PerToken},
    {Format::kInt4, {1, 128}, ActivationFormat::kFp8PerToken, true, DataType::kF16},
    {Format::kInt4, {1, 32}, ActivationFormat::kInt8PerToken},
    {Format::kInt4, {1, 128}, ActivationFormat::kInt8PerToken},
    {Format::kInt4, {1, 128}, ActivationFormat::kInt8PerToken, true, DataType::kF16},
    {Format::kNvfp4, {1, 16}, ActivationFormat::kFp8PerToken},
};

using Experts = test::PrefillExperts;
void expect_agreement(const Experts& experts, const test::Batch& batch) {
  test::expect_agreement(experts, batch, "sm90_fp4_prefill");
}

/// A test of its own per operand kind: they run side by side.
class GpuSm90Fp4PrefillOf : public ::testing::TestWithParam<Operands> {
 protected:
  const Operands& operands = GetParam();
};
INSTANTIATE_TEST_SUITE_P(All, GpuSm90Fp4PrefillOf, ::testing::ValuesIn(kOperands),
                         [](const auto& test) { return name_of(test.param); });

TEST_P(GpuSm90Fp4PrefillOf, EveryOperandKind) {
  // 1120 columns: an odd number of blocks, three promotions, a tail of 32 columns.
  for (const auto& [hidden, inner] : {std::pair{256, 128}, {1120, 224}}) {
    for (const bool biases : {false, true}) {
      const Experts experts(spec_of(operands, 6, 3, hidden, inner), operands, biases);
      for (const int64_t t : {270, 330}) expect_agreement(experts, {.tokens = t});
    }
  }
}

/// Neither a whole block of columns nor of rows anywhere, nor a whole group of 32.
TEST(GpuSm90Fp4Prefill, MultiplesOf16) {
  for (const Operands& operands : kOperands) {
    if (operands.weights == Format::kMxfp4) continue;  // of 32
    for (const auto& [hidden, inner] : {std::pair{176, 80}, {464, 16}}) {
      const Experts experts(spec_of(operands, 4, 2, hidden, inner), operands, true);
      expect_agreement(experts, {.tokens = 300});
    }
  }
}

TEST(GpuSm90Fp4Prefill, LopsidedBatches) {
  for (const Operands& operands : kOperands) {
    const Experts experts(spec_of(operands, 3, 2, 160, 96), operands, true);
    for (const int64_t t : {49, 96, 97, 128, 129, 300}) {
      expect_agreement(experts, {.tokens = t, .only_expert = 2, .addend = t % 2 == 0});
    }
    for (const int64_t n : {0, 1, 70}) {
      expect_agreement(experts, {.tokens = 300, .num_routed = n, .output = DataType::kF32});
    }
  }
}

/// Quantised activations leave no trace of the type they come from.
TEST_P(GpuSm90Fp4PrefillOf, F16HiddenStatesWhereTheyAreQuantised) {
  if (operands.activations == ActivationFormat::kNone) GTEST_SKIP() << "the generic kernels' work";
  const Experts experts(spec_of(operands, 5, 2, 192, 96), operands, true);
  expect_agreement(experts, {.tokens = 300, .output = DataType::kF16, .hidden = DataType::kF16});
}

TEST(GpuSm90Fp4Prefill, EveryActivationAndWeightPosition) {
  for (const Operands& operands : {kOperands[0], kOperands[1], kOperands[6]}) {
    for (int kind = 0; kind <= static_cast<int>(Activation::kRelu2); ++kind) {
      for (const auto position : {WeightPosition::kOutput, WeightPosition::kInput}) {
        LayerSpec spec = spec_of(operands, 5, 2, 128, 96);
        spec.activation.kind = static_cast<Activation>(kind);
        spec.weight_position = position;
        const Experts experts(spec, operands, true);
        expect_agreement(experts, {.tokens = 130});
      }
    }
  }
}

TEST_P(GpuSm90Fp4PrefillOf, LongSumsStayAccurate) {
  const Experts experts(spec_of(operands, 2, 1, 16384, 64), operands, false);
  expect_agreement(experts, {.tokens = 300});
}

/// A token's output does not depend on how many others there are, which decides the tiles.
TEST(GpuSm90Fp4Prefill, BatchesDoNotChangeBits) {
  for (const Operands& operands :
       {kOperands[5], kOperands[6], kOperands[7], kOperands[8], kOperands[9], kOperands[12],
        kOperands[13], kOperands[18], kOperands[19]}) {
    const Experts experts(spec_of(operands, 8, 2, 448, 192), operands, true);
    const LayerSpec& spec = experts.spec;
    constexpr int64_t kTokens = 1100;
    Random random(5);
    const Buffer hidden = Buffer::normal(random, DataType::kBf16, {kTokens, spec.hidden_size});
    const Buffer ids = test::random_topk_ids(random, kTokens, spec.top_k, spec.num_experts);
    const Buffer weights = test::random_topk_weights(random, kTokens, spec.top_k);
    const auto run = [&](int64_t tokens) {
      const auto head = [&](const Buffer& b) {
        TensorView view = b.view();
        view.shape[0] = tokens;
        return view;
      };
      const Buffer output(DataType::kBf16, {tokens, spec.hidden_size});
      return test::run_on_gpu(*experts.tuned,
                              {.hidden_states = head(hidden),
                               .topk_ids = head(ids),
                               .topk_weights = head(weights),
                               .output = output},
                              spec.top_k);
    };
    const Buffer all = run(kTokens);
    for (const int64_t tokens : {257, 500}) {
      const Buffer some = run(tokens);
      EXPECT_EQ(std::memcmp(some.as<char>(), all.as<char>(),
                            static_cast<size_t>(tokens * spec.hidden_size * 2)),
                0)
          << test::describe(spec, tokens);
    }
  }
}

/// One GEMM: rows by token, activated or not, or rows as they were sorted.
struct GemmKind {
  const char* name;
  cuda::sm90::RowSource source;
  bool gated;
};
constexpr GemmKind kGemmKinds[] = {{"up", cuda::sm90::RowSource::kToken, false},
                                   {"gate and up", cuda::sm90::RowSource::kToken, true},
                                   {"down", cuda::sm90::RowSource::kSorted, false}};

/// Of [tokens][...], the rows of sorted pairs; zeros where there is no pair.
Buffer in_sorted_order(const Buffer& rows, const cuda::DeviceBuffer& sorted, int64_t count,
                       int64_t top_k) {
  const int64_t cols = rows.size() / rows.view().shape[0];
  const auto row_bytes = static_cast<size_t>(cols * element_bytes(rows.view().type));
  std::vector<int32_t> ids(static_cast<size_t>(count));
  cuda::check(cudaMemcpy(ids.data(), sorted.data(), ids.size() * 4, cudaMemcpyDeviceToHost),
              "cudaMemcpy");
  Buffer out = Buffer::zeros(rows.view().type, {count, cols});
  for (int64_t r = 0; r < count; ++r) {
    const int32_t packed = ids[static_cast<size_t>(r)];
    if (packed_slot(packed) >= top_k || packed_token(packed) >= rows.view().shape[0]) continue;
    std::memcpy(out.as<char>() + static_cast<size_t>(r) * row_bytes,
                rows.as<char>() + static_cast<size_t>(packed_token(packed)) * row_bytes, row_bytes);
  }
  return out;
}

/// Every GEMM through every tile: the same bits.
TEST(GpuSm90Fp4Prefill, TilesDoNotChangeBits) {
  constexpr int64_t kExperts = 7, kTopK = 3, kTokens = 500, kColumns = 1056, kRows = 400;
  namespace sm90 = cuda::sm90;
  for (size_t at = 0; at < std::size(kOperands); ++at) {
    if ((at >= 2 && at <= 4) || at == 10) continue;  // rows like those of another
    const Operands& operands = kOperands[at];
    SCOPED_TRACE(name_of(operands));
    const bool row_scales = operands.activations == ActivationFormat::kFp8Block128;
    Random random(3);
    cuda::PackedMatrices packed;
    for (int64_t e = 0; e < kExperts; ++e) {
      const test::OwnedMatrix owned =
          test::random_matrix(random, kRows, kColumns, matrix_of(operands));
      if (e == 0) {
        packed = cuda::PackedMatrices(
            owned.matrix, 1, false, kExperts,
            cuda::fragment_order(operands.activations, owned.matrix, owned.matrix, 0));
      }
      packed.pack(e, {owned.matrix}, {TensorView{}});
    }
    packed.finish("down");
    const FragmentOrder order = packed.rows().fragments.order;
    const Format row_format = order == FragmentOrder::kBf16  ? Format::kBf16
                              : order == FragmentOrder::kFp8 ? Format::kFp8E4m3
                                                             : Format::kInt8;
    const DataType row_type = order == FragmentOrder::kBf16  ? DataType::kBf16
                              : order == FragmentOrder::kFp8 ? DataType::kF8E4m3
                                                             : DataType::kI8;
    const Buffer rows =
        Buffer::normal(random, row_type, {kTokens, kColumns}, row_type == DataType::kI8 ? 40 : 1);
    const int32_t groups = row_scales ? 9 : 1;
    const Buffer scales = Buffer::normal(random, DataType::kF32, {kTokens, groups});
    const Buffer ids = test::random_topk_ids(random, kTokens, kTopK, kExperts);
    const DeviceTensor device_rows(rows), device_scales(scales), device_ids(ids);
    ActivationSpec swiglu;
    swiglu.kind = Activation::kSwiGlu;
    std::optional<Buffer> first[std::size(kGemmKinds)];
    const bool deep = packed.spread().deeper_than(kMaxAddedSteps);
    for (const GroupedGemmConfig& config :
         sm90::fp4_prefill_configs(packed.rows().fragments, row_scales)) {
      for (const auto& [num_sms, deep_scales] :
           {std::pair{132, deep}, std::pair{132, true}, std::pair{3, deep}}) {
        const int64_t capacity = sort_capacity(kTokens, kTopK, kExperts, config.block_m);
        const cuda::DeviceBuffer sorted(capacity * 4), blocks_of(capacity * 4), valid(8);
        const SortPlan plan = plan_sort(kTokens, kTopK, kExperts, config.block_m);
        const cuda::DeviceBuffer scratch(plan.workspace_bytes), tile_counter(16);
        const auto num_blocks = static_cast<int32_t>(capacity / config.block_m);
        cuda::sort({.topk_ids = device_ids.view().as<const int32_t>(),
                    .tokens = {.limit = kTokens},
                    .top_k = kTopK,
                    .num_experts = kExperts,
                    .unit_size = config.block_m,
                    .capacity = static_cast<int32_t>(capacity),
                    .num_blocks = num_blocks,
                    .num_valid = 1,
                    .sorted_ids = sorted.as<int32_t>(),
                    .sorted_expert_ids = blocks_of.as<int32_t>(),
                    .num_valid_ids = valid.as<int32_t>()},
                   plan, scratch.data(), 0, {});
        for (size_t kind = 0; kind < std::size(kGemmKinds); ++kind) {
          const auto& [name, source, gated] = kGemmKinds[kind];
          std::optional<DeviceTensor> sorted_rows, sorted_scales;
          if (source == sm90::RowSource::kSorted) {
            sorted_rows.emplace(in_sorted_order(rows, sorted, capacity, kTopK));
            sorted_scales.emplace(in_sorted_order(scales, sorted, capacity, kTopK));
          }
          const int64_t columns = gated ? kRows / 2 : kRows;
          const DeviceTensor output(Buffer(DataType::kBf16, {kTokens, kTopK, columns}));
          cuda::check(cudaMemset(tile_counter.data(), 0, 16), "cudaMemset");
          sm90::fp4_prefill(
              {.sorted = {.ids = sorted.as<int32_t>(),
                          .experts = blocks_of.as<int32_t>(),
                          .num_valid = valid.as<int32_t>(),
                          .num_blocks = num_blocks,
                          .top_k = kTopK},
               .tile_counter = tile_counter.as<uint32_t>(),
               .source = source,
               .input = {.format = row_format,
                         .values = (sorted_rows ? *sorted_rows : device_rows).view().data,
                         .row_bytes = kColumns * element_bytes(row_type),
                         .scale_kind = cuda::ScaleKind::kF32,
                         .scales = (sorted_scales ? *sorted_scales : device_scales).view().data,
                         .num_groups = groups,
                         .group_size = row_scales ? 128 : 0},
               .num_input_rows = sorted_rows ? capacity : kTokens,
               .weights = packed.rows(),
               .num_experts = kExperts,
               .deep_scales = deep_scales,
               .activation = gated ? &swiglu : nullptr,
               .output_per_pair = true,
               .output = output.view().data,
               .output_stride = columns},
              config, num_sms, {});
          Buffer got = output.fetch();
          if (!first[kind]) {
            first[kind] = std::move(got);
          } else {
            EXPECT_TRUE(same_bits(*first[kind], got))
                << name << ", " << config.block_m << " rows on " << num_sms << " SMs"
                << (deep_scales ? ", tables from memory" : "");
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
