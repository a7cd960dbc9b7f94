// Decode kernels of Hopper against the reference and against themselves: formats, activations,
// tails of K and rows, lopsided routing; the same bits whatever the grid, the batch and the call.

#include <gtest/gtest.h>

#include <string>

#include "core/activation_format.h"
#include "core/block_quantize.h"
#include "core/math.h"
#include "cuda/sm90/decode_experts.h"
#include "cuda/sm90/decode_launchers.h"
#include "gpu/device_tensor.h"
#include "gpu/operands.h"
#include "gpu/packed_layer.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/random_weights.h"
#include "switchyard/models.h"

namespace switchyard {
namespace {

using cuda::sm90::DecodeExperts;
using test::Buffer;
using test::DeviceTensor;
using test::Operands;
using test::PackedLayer;
using test::Random;

const Operands kOperands[] = {
    {Format::kBf16, {}, ActivationFormat::kNone},
    {Format::kFp8E4m3, {128, 128}, ActivationFormat::kFp8Block128},
    {Format::kFp8E4m3, {128, 128}, ActivationFormat::kFp8PerToken},
    {Format::kFp8E4m3, {1, 0}, ActivationFormat::kFp8PerToken},
    {Format::kFp8E4m3, {0, 0}, ActivationFormat::kFp8PerTensor},
    {Format::kInt8, {1, 0}, ActivationFormat::kInt8PerToken},
    {Format::kInt8, {1, 0}, ActivationFormat::kInt8PerSlot},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kNone},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kFp8PerToken},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kFp8Block128},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kMxfp8},
    {Format::kMxfp4, {1, 32}, ActivationFormat::kMxfp4},
    {Format::kMxfp8, {1, 32}, ActivationFormat::kNone},
    {Format::kMxfp8, {1, 32}, ActivationFormat::kMxfp8},
    {Format::kNvfp4, {1, 16}, ActivationFormat::kNone},
    {Format::kInt4, {1, 32}, ActivationFormat::kNone},
    {Format::kInt4, {1, 128}, ActivationFormat::kNone},
    {Format::kInt4, {1, 32}, ActivationFormat::kNone, true},
    {Format::kInt4, {1, 128}, ActivationFormat::kNone, true, DataType::kF16},
    {Format::kInt4, {1, 64}, ActivationFormat::kNone, false, DataType::kF16},
    {Format::kInt4, {1, 32}, ActivationFormat::kFp8PerToken},
    {Format::kInt4, {1, 128}, ActivationFormat::kFp8PerToken},
    {Format::kInt4, {1, 64}, ActivationFormat::kFp8PerTensor, true},
    {Format::kInt4, {1, 128}, ActivationFormat::kFp8PerToken, true, DataType::kF16},
    {Format::kInt4, {1, 32}, ActivationFormat::kInt8PerToken},
    {Format::kInt4, {1, 128}, ActivationFormat::kInt8PerToken},
    {Format::kInt4, {1, 128}, ActivationFormat::kInt8PerToken, true, DataType::kF16},
    {Format::kNvfp4, {1, 16}, ActivationFormat::kFp8PerToken},
};
test::WeightsOptions options_of(const Operands& operands, bool biases = false) {
  return {.matrix = matrix_of(operands), .biases = biases};
}

bool in_fragments(const Operands& r) {
  return element_bits(r.weights) == 4 || r.weights == Format::kMxfp8;
}

/// How the tokens choose.
enum class Routing { kUniform, kAllTheSame, kTwice, kOneHot, kSomeSkipped, kAllSkipped, kNone };

struct Call {
  Buffer hidden, ids, weights;
  bool routed = true;  ///< else every token takes expert 0
};
Call make_call(const LayerSpec& spec, int64_t num_tokens, Routing routing,
               DataType hidden = DataType::kBf16) {
  Random random(static_cast<uint64_t>(num_tokens * 37 + spec.hidden_size));
  Call call{Buffer::normal(random, hidden, {num_tokens, spec.hidden_size}),
            test::random_topk_ids(random, num_tokens, spec.top_k, spec.num_experts),
            test::random_topk_weights(random, num_tokens, spec.top_k), routing != Routing::kNone};
  auto* ids = call.ids.as<int32_t>();
  for (int64_t i = 0; i < call.ids.size(); ++i) {
    const int64_t slot = i % spec.top_k;
    if (routing == Routing::kAllTheSame) ids[i] = static_cast<int32_t>(spec.num_experts - 1 - slot);
    if (routing == Routing::kTwice) ids[i] = static_cast<int32_t>(slot / 2);
    if (routing == Routing::kOneHot && slot == 0) ids[i] = 0;
    if (routing == Routing::kOneHot && slot > 0 && ids[i] == 0) ids[i] = -1;
    if (routing == Routing::kAllSkipped) ids[i] = -1;
    if (routing == Routing::kSomeSkipped && i % 5 == 0) ids[i] = i % 2 == 0 ? -1 : 9999;
  }
  return call;
}

/// Tokens [begin, begin + count) of a call, on a poisoned output.
template <class Experts>
Buffer run(const Experts& experts, const LayerSpec& spec, const Call& call, int64_t begin,
           int64_t count, DataType type, const Buffer* addend = nullptr,
           const Buffer* routed = nullptr) {
  const auto rows = [&](const Buffer& all) {
    TensorView view = all.view();
    view.data = view.as<char>() + begin * view.stride(0) * element_bytes(view.type);
    view.shape[0] = count;
    return DeviceTensor(view);
  };
  const DeviceTensor hidden = rows(call.hidden), ids = rows(call.ids), weights = rows(call.weights);
  const DeviceTensor output(Buffer(type, {count, spec.hidden_size}));
  const DeviceTensor extra = addend == nullptr ? DeviceTensor() : rows(*addend);
  const DeviceTensor number = routed == nullptr ? DeviceTensor() : DeviceTensor(*routed);
  const cuda::DeviceBuffer workspace =
      test::device_workspace(experts.workspace_bytes(count, spec.top_k));
  experts.run({.hidden_states = hidden,
               .topk_ids = call.routed ? ids.view() : TensorView{},
               .topk_weights = weights,
               .addend = extra,
               .num_tokens = number,
               .output = output},
              test::workspace_of(workspace), {});
  return output.fetch();
}

void expect_reference(const DecodeExperts& experts, const PackedExperts& reference,
                      const LayerSpec& spec, int64_t num_tokens, Routing routing,
                      DataType type = DataType::kF32, bool with_addend = false,
                      int64_t num_routed = -1) {
  SCOPED_TRACE(test::describe(spec, num_tokens) + ", " + std::to_string(num_routed) +
               " of them exist, routing " + std::to_string(static_cast<int>(routing)));
  // f16 comes from engines that hand in f16.
  const Call call =
      make_call(spec, num_tokens, routing, type == DataType::kF16 ? type : DataType::kBf16);
  Random random(3);
  const Buffer addend = Buffer::normal(random, DataType::kF32, {num_tokens, spec.hidden_size});
  const Buffer routed = Buffer::of(DataType::kI32, {1}, {static_cast<double>(num_routed)});
  Buffer want(type, {num_tokens, spec.hidden_size});
  RunExpertsArgs args{.hidden_states = call.hidden, .topk_weights = call.weights, .output = want};
  if (call.routed) args.topk_ids = call.ids;
  if (with_addend) args.addend = addend;
  if (num_routed >= 0) args.num_tokens = routed;
  const test::GuardedMemory workspace(reference.workspace_bytes(num_tokens, spec.top_k));
  reference.run(args, workspace.workspace(), {});
  const Buffer got = run(experts, spec, call, 0, num_tokens, type, with_addend ? &addend : nullptr,
                         num_routed >= 0 ? &routed : nullptr);
  const int64_t rows = num_routed < 0 ? num_tokens : num_routed;
  EXPECT_TRUE(got.untouched(rows * spec.hidden_size, got.size()));
  if (rows == 0) return;
  const auto head = [&](const Buffer& b) {
    return TensorView::contiguous(b.view().data, type, {rows, spec.hidden_size});
  };
  EXPECT_TRUE(
      test::within(head(got), head(want), error_bound(spec, BackendKind::kCuda, type), call.ids));
}

struct Subject {
  LayerSpec spec;
  test::RandomWeights weights;
  PackedLayer packed;
  std::unique_ptr<PackedExperts> reference;

  Subject(const LayerSpec& s, const test::WeightsOptions& options)
      : spec(s),
        weights(s, options),
        packed(pack(s, weights)),
        reference(reference_backend().pack_experts(s, weights.weights().experts, {})) {
    EXPECT_EQ(DecodeExperts::why_unsupported(spec, packed.gate_up, packed.down), "");
  }
  DecodeExperts experts(int num_ctas = 0) const {
    return DecodeExperts(spec, packed.gate_up, packed.down, 0, num_ctas);
  }
};

/// A test of its own per operands: they run side by side.
class Sm90DecodeFormat : public ::testing::TestWithParam<Operands> {
 protected:
  const Operands& operands = GetParam();
};
INSTANTIATE_TEST_SUITE_P(All, Sm90DecodeFormat, ::testing::ValuesIn(kOperands),
                         [](const auto& test) { return name_of(test.param); });

TEST_P(Sm90DecodeFormat, AgainstTheReference) {
  // Short, one whole step of K with rows for part of a team, and with tails of K (in steps and
  // chunks) and of rows.
  for (const auto& [hidden, inner, most] :
       {std::tuple{256, 128, 64}, {320, 256, 17}, {720, 336, 64}, {1408, 704, 17}}) {
    const Subject subject(spec_of(operands, 7, 2, hidden, inner), options_of(operands));
    const DecodeExperts experts = subject.experts();
    for (const int64_t tokens : {1, 8, most}) {
      expect_reference(experts, *subject.reference, subject.spec, tokens, Routing::kUniform);
    }
  }
}

TEST_P(Sm90DecodeFormat, F16WhereActivationsAreQuantised) {
  if (operands.activations == ActivationFormat::kNone) GTEST_SKIP() << "bf16 kernels";
  const Subject subject(spec_of(operands, 7, 2, 256, 192), options_of(operands));
  for (const int64_t tokens : {1, 8, 40}) {
    expect_reference(subject.experts(), *subject.reference, subject.spec, tokens, Routing::kUniform,
                     DataType::kF16);
  }
}

/// More tokens than one pass takes.
TEST(Sm90Decode, PassesOverManyTokens) {
  for (const Operands& r : kOperands) {
    if (r.weights != Format::kMxfp8) continue;
    const LayerSpec spec = spec_of(r, 6, 3, 256, 128);
    const test::RandomWeights weights(spec, options_of(r));
    const auto reference = reference_backend().pack_experts(spec, weights.weights().experts, {});
    const PackedLayer packed = pack(spec, weights);
    const DecodeExperts experts(spec, packed.gate_up, packed.down, 0);
    for (const int64_t t : {129, 300}) {
      expect_reference(experts, *reference, spec, t, Routing::kSomeSkipped);
    }
  }
}

TEST_P(Sm90DecodeFormat, LopsidedRouting) {
  const Subject subject(spec_of(operands, 40, 4, 448, 192), options_of(operands, true));
  const DecodeExperts experts = subject.experts();
  for (const auto routing : {Routing::kAllTheSame, Routing::kOneHot, Routing::kSomeSkipped}) {
    for (const int64_t tokens : {1, 7, 9, 17, 64, 65, 128}) {
      expect_reference(experts, *subject.reference, subject.spec, tokens, routing);
    }
  }
}

TEST(Sm90Decode, OneExpertForAll) {
  for (const Operands& operands : {kOperands[0], kOperands[1], kOperands[6]}) {
    const Subject subject(spec_of(operands, 1, 1, 384, 272), options_of(operands, true));
    const DecodeExperts experts = subject.experts();
    for (const int64_t tokens : {1, 8, 30, 64, 128}) {
      for (const bool addend : {false, true}) {
        for (const int64_t routed : {int64_t{-1}, tokens / 2}) {
          expect_reference(experts, *subject.reference, subject.spec, tokens, Routing::kNone,
                           addend ? DataType::kBf16 : DataType::kF32, addend, routed);
        }
      }
    }
  }
}

TEST(Sm90Decode, ActivationsWeightPositionsBiasesAndOutputs) {
  for (const Operands& operands : {kOperands[0], kOperands[1]}) {
    for (int kind = 0; kind <= static_cast<int>(Activation::kRelu2); ++kind) {
      for (const auto position : {WeightPosition::kOutput, WeightPosition::kInput}) {
        LayerSpec spec = spec_of(operands, 6, 2, 384, 176);
        spec.activation.kind = static_cast<Activation>(kind);
        spec.weight_position = position;
        const Subject subject(spec, options_of(operands, true));
        const DecodeExperts experts = subject.experts();
        for (const DataType type : {DataType::kF32, DataType::kBf16}) {
          expect_reference(experts, *subject.reference, spec, 12, Routing::kUniform, type, true);
        }
        for (const int64_t routed : {0, 1, 11}) {
          expect_reference(experts, *subject.reference, spec, 12, Routing::kUniform, DataType::kF32,
                           false, routed);
        }
      }
    }
  }
}

TEST(Sm90Decode, EveryFewTokens) {
  for (const Operands& operands : {kOperands[1], kOperands[3], kOperands[8]}) {
    const Subject subject(spec_of(operands, 12, 3, 400, 208), options_of(operands, true));
    const DecodeExperts experts = subject.experts();
    for (int64_t tokens = 1; tokens <= 17; ++tokens) {
      expect_reference(experts, *subject.reference, subject.spec, tokens, Routing::kUniform,
                       DataType::kBf16, tokens % 2 == 0);
    }
    for (const auto routing : {Routing::kSomeSkipped, Routing::kAllSkipped}) {
      for (const int64_t tokens : {1, 6, 16}) {
        for (const int64_t routed : {int64_t{-1}, tokens / 2}) {
          expect_reference(experts, *subject.reference, subject.spec, tokens, routing,
                           DataType::kF32, true, routed);
        }
      }
    }
  }
}

/// One to four tokens, eight chunks of K: clusters cut the strips and their sums meet in shared
/// memory, whose room is for rows that tokens can give an expert; an odd grid has no clusters.
TEST_P(Sm90DecodeFormat, ClustersCutStripsOfFewTokens) {
  const int64_t hidden = operands.weights == Format::kBf16 ? 2048 : 4096;
  const Subject subject(spec_of(operands, 6, 4, hidden, 192), options_of(operands, true));
  for (const auto routing : {Routing::kUniform, Routing::kTwice, Routing::kSomeSkipped}) {
    for (const int64_t tokens : {1, 2, 4}) {
      expect_reference(subject.experts(), *subject.reference, subject.spec, tokens, routing);
      const Call call = make_call(subject.spec, tokens, routing);
      const auto with_ctas = [&](int ctas) {
        return run(subject.experts(ctas), subject.spec, call, 0, tokens, DataType::kF32);
      };
      const Buffer all = with_ctas(0);
      for (const int ctas : {131, 64, 16}) EXPECT_TRUE(same_bits(all, with_ctas(ctas))) << ctas;
    }
  }
}

/// A single token that its layer routes has a block per choice, known before the choice is, and
/// `down` sums its rows: in strips of two CTAs, of one, or, on a grid too small for that, not.
TEST_P(Sm90DecodeFormat, SingleRoutedTokenHasTheBitsOfItsChoice) {
  for (const auto& [hidden, inner] : {std::pair{2128, 192}, {1296, 528}, {336, 256}}) {
    constexpr int64_t kExperts = 9, kTopK = 5;
    const LayerSpec spec = spec_of(operands, kExperts, kTopK, hidden, inner);
    const Subject subject(spec, options_of(operands, true));
    Random random(5);
    const DeviceTensor logits(Buffer::normal(random, DataType::kF32, {1, kExperts}));
    const Buffer addend = Buffer::normal(random, DataType::kF32, {1, hidden});
    const DeviceTensor extra(addend);
    Call call = make_call(spec, 1, Routing::kUniform);
    const DeviceTensor token(call.hidden);
    const auto strips = static_cast<int>(ceil_div<int64_t>(hidden, kDecodeRows));
    for (const int ctas : {0, 2 * strips, 2 * strips - 1, strips, strips - 1}) {
      const DecodeExperts experts = subject.experts(ctas);
      const cuda::DeviceBuffer workspace =
          test::device_workspace(experts.workspace_bytes(1, kTopK));
      for (const bool adds : {false, true}) {
        const DataType type = adds ? DataType::kBf16 : DataType::kF32;
        SCOPED_TRACE(test::describe(spec, 1) + ", CTAs " + std::to_string(ctas));
        const DeviceTensor ids(Buffer(DataType::kI32, {1, kTopK}));
        const DeviceTensor weights(Buffer(DataType::kF32, {1, kTopK}));
        const DeviceTensor output(Buffer(type, {1, hidden}));
        const RouteRequest request{.spec = spec.routing,
                                   .args = {.router_logits = logits.view(),
                                            .topk_ids = ids.view(),
                                            .topk_weights = weights.view()}};
        experts.run({.hidden_states = token,
                     .topk_ids = ids,
                     .topk_weights = weights,
                     .addend = adds ? extra.view() : TensorView{},
                     .output = output,
                     .route = &request},
                    test::workspace_of(workspace), {});
        call.ids = ids.fetch();
        call.weights = weights.fetch();
        EXPECT_TRUE(same_bits(output.fetch(),
                              run(experts, spec, call, 0, 1, type, adds ? &addend : nullptr)));
      }
    }
  }
}

TEST(Sm90Decode, RoundedRowsHaveTheBitsOfTheDefinition) {
  struct Case {
    Format format;
    int64_t group, columns;
  };
  for (const Case& c : {Case{Format::kFp8E4m3, 0, 7168},
                        {Format::kFp8E4m3, 0, 16},
                        {Format::kFp8E4m3, 128, 720},
                        {Format::kInt8, 0, 2880},
                        {Format::kInt8, 0, 20480}}) {
    for (const DataType type : {DataType::kBf16, DataType::kF16, DataType::kF32}) {
      constexpr int64_t kRows = 5, kUsed = 4;
      Random random(static_cast<uint64_t>(c.columns));
      const Buffer input = Buffer::normal(random, type, {kRows, c.columns});
      const int64_t groups = c.group == 0 ? 1 : ceil_div(c.columns, c.group);
      const DeviceTensor from(input), used(Buffer::of(DataType::kI32, {1}, {kUsed}));
      const DeviceTensor codes(Buffer(DataType::kU8, {kRows, c.columns}));
      const DeviceTensor scales(Buffer(DataType::kF32, {kRows, groups}));
      cuda::sm90::decode_quantize(
          {.to = {.codes = codes.view().as<uint8_t>(),
                  .row_bytes = c.columns,
                  .scales = scales.view().as<float>(),
                  .num_columns = static_cast<int32_t>(c.columns),
                  .group_columns = static_cast<int32_t>(c.group),
                  .format = c.format},
           .from = from.view().data,
           .type = type,
           .rows = {.limit = kRows, .on_device = used.view().as<const int32_t>()}},
          {});
      const Buffer got = codes.fetch(), got_scales = scales.fetch();
      EXPECT_TRUE(got.untouched(kUsed * c.columns, got.size()));
      for (int64_t row = 0; row < kUsed; ++row) {
        for (int64_t group = 0; group < groups; ++group) {
          const int64_t begin = row * c.columns + group * c.group;
          const int64_t end =
              c.group == 0 ? begin + c.columns : std::min(begin + c.group, (row + 1) * c.columns);
          uint32_t largest = 0;
          for (int64_t i = begin; i < end; ++i) {
            largest = std::max(largest, f32_bits(static_cast<float>(input.at(i))) & 0x7fffffffu);
          }
          const BlockScale scale = block_scale({.format = c.format}, largest);
          ASSERT_EQ(got_scales.at(row * groups + group), static_cast<double>(scale.stored));
          for (int64_t i = begin; i < end; ++i) {
            const float value = quantizer_input(static_cast<float>(input.at(i)), 1.0f);
            ASSERT_EQ(got.as<uint8_t>()[i], quantize_value(c.format, value, scale)) << i;
          }
        }
      }
    }
  }
}

TEST(Sm90Decode, ModelSizes) {
  struct Shape {
    int64_t experts, top_k, hidden, inner;
  };
  for (const Operands& operands : {kOperands[0], kOperands[1], kOperands[5]}) {
    for (const Shape& s : {Shape{2, 2, 2880, 1440}, {3, 2, 7168, 256}, {4, 2, 2048, 768}}) {
      const Subject subject(spec_of(operands, s.experts, s.top_k, s.hidden, s.inner),
                            options_of(operands));
      const DecodeExperts experts = subject.experts();
      for (const int64_t tokens : {1, 9}) {
        expect_reference(experts, *subject.reference, subject.spec, tokens, Routing::kUniform);
      }
    }
  }
}

TEST(Sm90Decode, ExpertOutputsThatTheSumThrewAwayAreWrittenAgain) {
  // Large enough to be thrown away (cuda/combine.cu).
  const LayerSpec spec = spec_of(kOperands[1], 4, 4, 7168, 256);
  const Subject subject(spec, options_of(kOperands[1]));
  const DecodeExperts experts = subject.experts();
  constexpr int64_t kTokens = 100;
  const cuda::DeviceBuffer workspace =
      test::device_workspace(experts.workspace_bytes(kTokens, spec.top_k));
  for (const Routing routing : {Routing::kUniform, Routing::kSomeSkipped, Routing::kAllTheSame}) {
    const Call call = make_call(spec, kTokens, routing);
    const Buffer want = run(experts, spec, call, 0, kTokens, DataType::kF32);
    const DeviceTensor hidden(call.hidden), ids(call.ids), weights(call.weights);
    const DeviceTensor output(Buffer(DataType::kF32, {kTokens, spec.hidden_size}));
    for (int i = 0; i < 3; ++i) {
      experts.run(
          {.hidden_states = hidden, .topk_ids = ids, .topk_weights = weights, .output = output},
          test::workspace_of(workspace), {});
    }
    EXPECT_TRUE(same_bits(output.fetch(), want)) << static_cast<int>(routing);
  }
}

TEST(Sm90Decode, FragmentsAtModelSizesAgainstTheGenericKernels) {
  struct Shape {
    int64_t experts, top_k, hidden, inner;
  };
  for (const Operands& operands : kOperands) {
    if (!in_fragments(operands)) continue;
    for (const Shape& s : {Shape{2, 2, 2880, 1440}, {3, 2, 7168, 256}, {4, 2, 2048, 768}}) {
      LayerSpec spec = spec_of(operands, s.experts, s.top_k, s.hidden, s.inner);
      spec.activation.kind = Activation::kSwiGluOai;
      const test::RandomWeights weights(spec, options_of(operands, true));
      const PackedLayer packed = pack(spec, weights);
      const DecodeExperts experts(spec, packed.gate_up, packed.down, 0);
      const auto generic =
          test::gpu().pack_experts(spec, weights.weights().experts, {.generic_kernels = true});
      for (const int64_t tokens : {1, 6, 20, 60, 128}) {
        SCOPED_TRACE(std::string(to_string(operands.activations)) + " T " + std::to_string(tokens) +
                     " H " + std::to_string(s.hidden));
        const Call call = make_call(spec, tokens, Routing::kUniform);
        EXPECT_TRUE(test::within(run(experts, spec, call, 0, tokens, DataType::kF32),
                                 run(*generic, spec, call, 0, tokens, DataType::kF32),
                                 error_bound(spec, BackendKind::kCuda, DataType::kF32), call.ids));
      }
    }
  }
}

/// Lowers the scales of random blocks by at most `steps` powers of two.
void spread_scales(const test::RandomWeights& weights, int64_t num_experts, int steps) {
  Random random(5);
  for (int64_t e = 0; e < num_experts; ++e) {
    for (const WeightMatrix* m :
         {&weights.expert(e).gate, &weights.expert(e).up, &weights.expert(e).down}) {
      auto* scales = static_cast<uint8_t*>(m->scales.data);
      for (int64_t i = 0; i < m->scales.num_elements(); i += 3) {
        scales[i] = static_cast<uint8_t>(std::max<int64_t>(scales[i] - random.below(steps + 1), 0));
      }
    }
  }
}

TEST(Sm90Decode, ScalesFarApart) {
  for (const Operands& operands : kOperands) {
    if (operands.weights != Format::kMxfp4 && operands.weights != Format::kMxfp8) continue;
    const bool bf16 = operands.activations == ActivationFormat::kNone;
    const LayerSpec spec = spec_of(operands, 5, 2, 448, 192);
    test::RandomWeights weights(spec, options_of(operands));
    spread_scales(weights, spec.num_experts, bf16 ? 80 : 11);  // 1 to 3 apart already
    const PackedLayer packed = pack(spec, weights);
    ASSERT_EQ(DecodeExperts::why_unsupported(spec, packed.gate_up, packed.down), "");
    ASSERT_TRUE(cuda::sm90::decode_fragment_args(packed.gate_up).deep) << "needs the table";
    const DecodeExperts experts(spec, packed.gate_up, packed.down, 0);
    const auto reference = reference_backend().pack_experts(spec, weights.weights().experts, {});
    for (const int64_t tokens : {1, 30}) {
      expect_reference(experts, *reference, spec, tokens, Routing::kUniform);
    }
    auto* scales = static_cast<uint8_t*>(weights.expert(0).up.scales.data);
    scales[0] = 254, scales[1] = 0;
    const PackedLayer wide = pack(spec, weights);
    EXPECT_GT(wide.gate_up.spread().wide, 0u);
    EXPECT_NE(DecodeExperts::why_unsupported(spec, wide.gate_up, wide.down), "");
  }
}

void expect_same_bits(const Operands& operands, int64_t hidden, int64_t inner) {
  const LayerSpec spec = spec_of(operands, 8, 4, hidden, inner);
  const Subject subject(spec, options_of(operands));
  SCOPED_TRACE(std::string(to_string(spec.weight_format)) + " x " +
               to_string(spec.activation_format));
  constexpr int64_t kTokens = 100;
  const Call call = make_call(spec, kTokens, Routing::kUniform);
  const DecodeExperts all_sms = subject.experts();
  const Buffer all = run(all_sms, spec, call, 0, kTokens, DataType::kF32);
  EXPECT_TRUE(same_bits(all, run(all_sms, spec, call, 0, kTokens, DataType::kF32)))
      << "the same call twice";
  for (const int ctas : {1, 2, 37, 131}) {
    EXPECT_TRUE(same_bits(all, run(subject.experts(ctas), spec, call, 0, kTokens, DataType::kF32)))
        << ctas << " CTAs";
  }
  for (const auto& [begin, count] :
       {std::pair{0, 1}, {7, 1}, {3, 8}, {40, 16}, {60, 33}, {36, 64}}) {
    const Buffer part = run(all_sms, spec, call, begin, count, DataType::kF32);
    for (int64_t at = 0; at < part.size(); ++at) {
      ASSERT_EQ(part.as<uint32_t>()[at], all.as<uint32_t>()[begin * spec.hidden_size + at])
          << "token " << begin + at / spec.hidden_size << " in a batch of " << count;
    }
  }
}

TEST_P(Sm90DecodeFormat, BitsDoNotDependOnGridBatchOrCall) {
  if (operands.activations == ActivationFormat::kFp8PerTensor) {
    GTEST_SKIP() << "one scale per batch";
  }
  expect_same_bits(operands, 1296, 528);
  expect_same_bits(operands, 336, 256);  // down: one step of K
}

TEST(Sm90Decode, SaysWhatItCannotDo) {
  for (const auto& [format, activations, hidden] :
       {std::tuple{Format::kBf16, ActivationFormat::kFp8PerToken, 256},
        {Format::kF32, ActivationFormat::kNone, 256},
        {Format::kBf16, ActivationFormat::kNone, 264},
        {Format::kMxfp8, ActivationFormat::kInt8PerToken, 256}}) {
    LayerSpec spec = with_format(
        {.num_experts = 2, .top_k = 1, .hidden_size = hidden, .intermediate_size = 64}, format);
    spec.activation_format = activations;
    const test::RandomWeights weights(spec);
    const PackedLayer packed = pack(spec, weights);
    EXPECT_NE(DecodeExperts::why_unsupported(spec, packed.gate_up, packed.down), "");
  }
}

}  // namespace
}  // namespace switchyard
