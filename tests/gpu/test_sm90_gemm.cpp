// The prefill kernels of Hopper (more tokens than the decode kernels take): every operand kind,
// activation and shape class against the double reference and against the generic kernels, and the
// same bits from every tile.

#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <string>
#include <tuple>

#include "core/expert_sort.h"
#include "cuda/quantize.h"
#include "cuda/sm90/experts.h"
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

/// Every pair that has a prefill kernel.
const Operands kOperands[] = {
    {Format::kBf16, {}, ActivationFormat::kNone},
    {Format::kFp8E4m3, {128, 128}, ActivationFormat::kFp8Block128},
    {Format::kFp8E4m3, {128, 128}, ActivationFormat::kFp8PerToken},
    {Format::kFp8E4m3, {128, 128}, ActivationFormat::kFp8PerTensor},
    {Format::kFp8E4m3, {1, 0}, ActivationFormat::kFp8Block128},
    {Format::kFp8E4m3, {1, 0}, ActivationFormat::kFp8PerToken},
    {Format::kFp8E4m3, {0, 0}, ActivationFormat::kFp8PerTensor},
    {Format::kInt8, {1, 0}, ActivationFormat::kInt8PerToken},
    {Format::kInt8, {1, 0}, ActivationFormat::kInt8PerSlot},
};

using Experts = test::PrefillExperts;
void expect_agreement(const Experts& experts, const test::Batch& batch) {
  test::expect_agreement(experts, batch, "sm90_grouped_gemm");
}

TEST(GpuSm90Gemm, EveryOperandKind) {
  for (const Operands& operands : kOperands) {
    const Experts plain(spec_of(operands, 6, 3, 256, 128), operands, false);
    for (const int64_t t : {129, 150}) expect_agreement(plain, {.tokens = t});
    const Experts biased(spec_of(operands, 6, 3, 336, 208), operands, true);
    expect_agreement(biased, {.tokens = 260});
  }
}

TEST(GpuSm90Gemm, LopsidedBatches) {
  for (const Operands& operands : {kOperands[0], kOperands[1], kOperands[5], kOperands[8]}) {
    const Experts experts(spec_of(operands, 16, 2, 272, 112), operands, false);
    for (const int64_t t : {190, 191, 193, 257, 400}) {
      expect_agreement(experts, {.tokens = t, .only_expert = 9, .addend = t % 2 == 0});
    }
    for (const int64_t n : {0, 1, 65, 299}) {
      expect_agreement(experts, {.tokens = 300, .num_routed = n, .output = DataType::kF32});
    }
  }
}

TEST(GpuSm90Gemm, EveryActivationAndWeightPosition) {
  for (const Operands& operands : {kOperands[0], kOperands[1], kOperands[7]}) {
    for (int kind = 0; kind <= static_cast<int>(Activation::kRelu2); ++kind) {
      for (const auto position : {WeightPosition::kOutput, WeightPosition::kInput}) {
        LayerSpec spec = spec_of(operands, 5, 2, 144, 144);
        spec.activation.kind = static_cast<Activation>(kind);
        spec.weight_position = position;
        const Experts experts(spec, operands, true);
        expect_agreement(experts, {.tokens = 130});
      }
    }
  }
}

TEST(GpuSm90Gemm, LongSumsStayAccurate) {
  // K = 16384: 128 scale blocks, 32 promotions of 512 columns.
  for (const Operands& operands : {kOperands[0], kOperands[1], kOperands[5], kOperands[7]}) {
    const Experts experts(spec_of(operands, 2, 1, 16384, 64), operands, false);
    expect_agreement(experts, {.tokens = 300});
  }
}

/// One GEMM of random operands, to be run under any tile.
class OneGemm {
 public:
  static constexpr int64_t kExperts = 7, kTopK = 3, kTokens = 500;

  OneGemm(const Operands& operands, cuda::sm90::RowSource source, bool gated, int64_t columns,
          int64_t rows = 400)
      : operands_(operands), source_(source), gated_(gated), columns_(columns), num_rows_(rows) {
    Random random(3);
    std::vector<test::OwnedMatrix> owned;
    for (int64_t e = 0; e < kExperts; ++e) {
      owned.push_back(test::random_matrix(random, rows, columns, matrix_of(operands)));
      if (e == 0) packed_ = cuda::PackedMatrices(owned[0].matrix, 1, false, kExperts);
      packed_.pack(e, {owned.back().matrix}, {TensorView{}});
    }
    // Token rows as the operands' codes: any bytes that are numbers.
    const bool bf16 = operands.weights == Format::kBf16;
    rows_ = Buffer::normal(random, bf16 ? DataType::kBf16 : DataType::kF8E4m3, {kTokens, columns});
    groups_ = operands.activations == ActivationFormat::kFp8Block128
                  ? ceil_div<int64_t>(columns, 128)
                  : 1;
    scales_ = Buffer::normal(random, DataType::kF32, {kTokens, groups_});
    ids_ = test::random_topk_ids(random, kTokens, kTopK, kExperts);
    scaling_ = cuda::sm90::scaling_of(stored(nullptr, nullptr), packed_.rows());
    if (packed_.rows().rows.num_groups > 1) {
      table_ = cuda::DeviceBuffer(cuda::sm90::block_scale_count(packed_.rows(), kExperts) * 4);
      const DeviceTensor mixed(Buffer::zeros(DataType::kI32, {1}));
      cuda::sm90::block_scale_table(packed_.rows(), kExperts, table_.as<float>(),
                                    mixed.view().as<int32_t>(), {});
      EXPECT_EQ(mixed.fetch().at(0), 0);
    }
  }
  std::vector<GroupedGemmConfig> configs() const {
    return cuda::sm90::configs_of(operands_.weights, scaling_);
  }
  cuda::sm90::Scaling scaling() const { return scaling_; }
  /// [T][K][columns]; rows sorted in blocks of `unit`. bf16, or E4M3 with `scales` per 128 columns.
  Buffer run(const GroupedGemmConfig& config, int32_t unit, int num_sms,
             Buffer* scales_of_output = nullptr) const {
    const int64_t capacity = sort_capacity(kTokens, kTopK, kExperts, unit);
    const DeviceTensor ids(ids_), sorted(Buffer(DataType::kI32, {capacity}));
    const cuda::DeviceBuffer blocks(capacity * 4), valid(8);
    const SortPlan plan = plan_sort(kTokens, kTopK, kExperts, unit);
    const cuda::DeviceBuffer scratch(plan.workspace_bytes);
    cuda::sort({.topk_ids = ids.view().as<const int32_t>(),
                .tokens = {.limit = kTokens},
                .top_k = kTopK,
                .num_experts = kExperts,
                .unit_size = unit,
                .capacity = static_cast<int32_t>(capacity),
                .num_blocks = static_cast<int32_t>(capacity / unit),
                .num_valid = 1,
                .sorted_ids = sorted.view().as<int32_t>(),
                .sorted_expert_ids = blocks.as<int32_t>(),
                .num_valid_ids = valid.as<int32_t>()},
               plan, scratch.data(), 0, {});
    const bool gathers = source_ != cuda::sm90::RowSource::kSorted;
    const Buffer order = sorted.fetch();
    const DeviceTensor rows = gathers ? DeviceTensor(rows_) : DeviceTensor(in_order(rows_, order));
    const DeviceTensor scales =
        gathers ? DeviceTensor(scales_) : DeviceTensor(in_order(scales_, order));
    const DeviceTensor counter(Buffer::zeros(DataType::kI32, {1}));
    const int64_t out_columns = gated_ ? num_rows_ / 2 : num_rows_;
    const bool rounds = scales_of_output != nullptr;
    const DeviceTensor output(
        Buffer(rounds ? DataType::kF8E4m3 : DataType::kBf16, {kTokens, kTopK, out_columns}));
    const DeviceTensor output_scales(
        Buffer(DataType::kF32, {kTokens, kTopK, ceil_div<int64_t>(out_columns, 128)}));
    const ActivationSpec activation;
    cuda::sm90::grouped_gemm({.sorted = {.ids = sorted.view().as<int32_t>(),
                                         .experts = blocks.as<int32_t>(),
                                         .num_valid = valid.as<int32_t>(),
                                         .num_blocks = static_cast<int32_t>(capacity / unit),
                                         .block_rows = unit,
                                         .top_k = kTopK},
                              .tile_counter = counter.view().as<uint32_t>(),
                              .source = source_,
                              .input = stored(rows.view().data, scales.view().data),
                              .num_input_rows = rows.view().extent(0),
                              .weights = packed_.rows(),
                              .num_experts = kExperts,
                              .block_scales = table_.as<const float>(),
                              .activation = gated_ ? &activation : nullptr,
                              .output_per_pair = true,
                              .output = output.view().data,
                              .output_stride = out_columns,
                              .output_scales = rounds ? output_scales.view().as<float>() : nullptr},
                             config, cuda::sm90::weight_map(packed_.rows(), kExperts, config),
                             num_sms, {});
    if (rounds) *scales_of_output = output_scales.fetch();
    return output.fetch();
  }

 private:
  cuda::StoredRows stored(const void* values, const void* scales) const {
    return {.format = operands_.weights,
            .values = values,
            .row_bytes = columns_ * element_bits(operands_.weights) / 8,
            .scale_kind = cuda::ScaleKind::kF32,
            .scales = scales,
            .num_groups = static_cast<int32_t>(groups_),
            .group_size = operands_.activations == ActivationFormat::kFp8Block128 ? 128 : 0};
  }
  /// Row r of the result: the token of sorted id r; nothing where there is none.
  static Buffer in_order(const Buffer& tokens, const Buffer& order) {
    const int64_t width = tokens.view().extent(1);
    Buffer rows(tokens.view().type, {order.size(), width});
    const auto bytes = static_cast<size_t>(width * element_bytes(tokens.view().type));
    for (int64_t r = 0; r < order.size(); ++r) {
      const int32_t packed = order.as<int32_t>()[r];
      if (packed_slot(packed) >= kTopK) continue;
      std::memcpy(rows.as<char>() + static_cast<size_t>(r) * bytes,
                  tokens.as<char>() + static_cast<size_t>(packed_token(packed)) * bytes, bytes);
    }
    return rows;
  }

  Operands operands_;
  cuda::sm90::RowSource source_;
  bool gated_;
  int64_t columns_, num_rows_, groups_ = 1;
  cuda::PackedMatrices packed_;
  Buffer rows_, scales_, ids_;
  cuda::sm90::Scaling scaling_{};
  cuda::DeviceBuffer table_;
};

/// A token's output does not depend on how many others there are, which decides the tiles.
TEST(GpuSm90Gemm, BatchesDoNotChangeBits) {
  const Operands& operands = kOperands[1];
  LayerSpec spec = spec_of(operands, 16, 8, 7168, 128);
  const Experts experts(spec, operands, false);
  constexpr int64_t kTokens = 1024, kCount = 1000;
  Random random(5);
  const Buffer hidden = Buffer::normal(random, DataType::kBf16, {kTokens, spec.hidden_size});
  const Buffer ids = test::random_topk_ids(random, kTokens, spec.top_k, spec.num_experts);
  const Buffer weights = test::random_topk_weights(random, kTokens, spec.top_k);
  const Buffer addend = Buffer::normal(random, DataType::kF32, {kTokens, spec.hidden_size});
  const Buffer count = Buffer::of(DataType::kI32, {1}, {kCount});
  const auto run = [&](int64_t begin, int64_t end, Buffer& output, const Buffer* num_tokens) {
    const auto part = [&](const Buffer& b) {
      TensorView view = b.view();
      view.data = view.as<char>() + begin * view.stride(0) * element_bytes(view.type);
      view.shape[0] = end - begin;
      return view;
    };
    RunExpertsArgs args{.hidden_states = part(hidden),
                        .topk_ids = part(ids),
                        .topk_weights = part(weights),
                        .output = output};
    args.addend = part(addend);
    if (num_tokens != nullptr) args.num_tokens = *num_tokens;
    return test::run_on_gpu(*experts.tuned, args, spec.top_k);
  };
  Buffer whole(DataType::kBf16, {kTokens, spec.hidden_size});
  const Buffer got = run(0, kTokens, whole, &count);
  EXPECT_TRUE(got.untouched(kCount * spec.hidden_size, got.size()));
  constexpr int64_t kPart = 250;
  for (int64_t begin = 0; begin < kCount; begin += kPart) {
    Buffer output(DataType::kBf16, {kPart, spec.hidden_size});
    const Buffer want = run(begin, begin + kPart, output, nullptr);
    EXPECT_EQ(std::memcmp(want.as<char>(), got.as<char>() + begin * spec.hidden_size * 2,
                          static_cast<size_t>(kPart * spec.hidden_size * 2)),
              0)
        << "tokens from " << begin;
  }
}

/// The kernel that rounds its output writes what quantising its bf16 output would.
TEST(GpuSm90Gemm, RoundedOutputsEqualQuantisedOnes) {
  using cuda::sm90::RowSource;
  for (const Operands& operands : {kOperands[1], kOperands[4]}) {
    for (const int64_t rows : {256, 768, 1280}) {
      const OneGemm gemm(operands, RowSource::kToken, true, 400, rows);
      const int64_t pairs = OneGemm::kTokens * OneGemm::kTopK, columns = rows / 2;
      int rounding = 0;
      for (const GroupedGemmConfig& config : gemm.configs()) {
        ASSERT_TRUE(cuda::sm90::rounds_output(gemm.scaling(), {}, columns));
        if (!holds_gated_scale(config)) continue;
        ++rounding;
        Buffer scales;
        const Buffer codes = gemm.run(config, config.block_m, 132, &scales);
        const DeviceTensor plain(gemm.run(config, config.block_m, 132));
        const DeviceTensor want_codes(
            Buffer(DataType::kF8E4m3, {OneGemm::kTokens, OneGemm::kTopK, columns}));
        const DeviceTensor want_scales(
            Buffer(DataType::kF32, {OneGemm::kTokens, OneGemm::kTopK, columns / 128}));
        cuda::quantize({.input = plain.view().data,
                        .input_type = DataType::kBf16,
                        .num_input_rows = pairs,
                        .cols = columns,
                        .rows = {.limit = pairs},
                        .format = Format::kFp8E4m3,
                        .scale_block = {1, 128},
                        .values = want_codes.view().data,
                        .value_row_bytes = columns,
                        .scales = want_scales.view().data,
                        .scale_type = DataType::kF32},
                       {});
        EXPECT_TRUE(same_bits(want_codes.fetch(), codes)) << columns << " columns";
        EXPECT_TRUE(same_bits(want_scales.fetch(), scales)) << columns << " columns";
      }
      EXPECT_GT(rounding, 0);
    }
  }
}

TEST(GpuSm90Gemm, TilesDoNotChangeBits) {
  using cuda::sm90::RowSource;
  for (const Operands& operands : kOperands) {
    if (operands.activations == ActivationFormat::kInt8PerSlot)
      continue;  // the same kernels as without
    // The last two have row blocks whose later tiles find their rows in the ring.
    for (const auto& [source, gated, columns, rows] :
         {std::tuple{RowSource::kToken, false, 1040, 400},
          {RowSource::kToken, true, 400, 400},
          {RowSource::kSorted, false, 272, 400},
          {RowSource::kSorted, false, 128, 1040}}) {
      const OneGemm gemm(operands, source, gated, columns, rows);
      std::optional<Buffer> first;
      for (const GroupedGemmConfig& config : gemm.configs()) {
        for (const int32_t unit : {64, 128, 192, 384}) {
          if (unit % config.block_m != 0) continue;
          for (const int num_sms : {132, 3, 1}) {
            Buffer got = gemm.run(config, unit, num_sms);
            if (!first) {
              first = std::move(got);
              continue;
            }
            EXPECT_TRUE(same_bits(*first, got))
                << to_string(operands.weights) << " x " << to_string(operands.activations)
                << ", columns " << columns << ", gated " << gated << ": " << config.block_m << " x "
                << config.block_n << " in units of " << unit << " on " << num_sms << " SMs";
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
