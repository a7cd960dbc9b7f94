// The error bound holds for every activation format on friendly and hostile data, is not much
// larger than what is measured, and is crossed by each of the mistakes it must catch.

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "core/matrix_slice.h"
#include "support/compare.h"
#include "support/layer_cases.h"
#include "support/run_layer.h"
#include "switchyard/models.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::LayerRun;
using test::Random;
using test::RandomWeights;

constexpr ActivationFormat kQuantised[] = {
    ActivationFormat::kInt8Block32, ActivationFormat::kInt8PerToken,
    ActivationFormat::kInt8PerSlot, ActivationFormat::kFp8PerTensor,
    ActivationFormat::kFp8PerToken, ActivationFormat::kFp8Block128,
    ActivationFormat::kMxfp8,       ActivationFormat::kMxfp4};

Layer reference_layer(const LayerSpec& spec, const Weights& weights) {
  return Layer::create(spec, weights, {.backend = BackendKind::kReference});
}

/// Distance between a layer with exact activations and the same with `format`.
Comparison cost_of(ActivationFormat format, LayerSpec spec, const Weights& weights,
                   const Buffer& hidden) {
  const Layer exact = reference_layer(spec, weights);
  spec.activation_format = format;
  const Layer rounded = reference_layer(spec, weights);
  const LayerRun truth = test::run_layer(exact, hidden);
  const LayerRun run = test::run_layer(
      rounded, hidden, {.topk_ids = truth.topk_ids, .topk_weights = truth.topk_weights});
  return compare(run.output, truth.output);
}

/// Normal values; a tenth of the channels 20 times larger; or values with heavy tails.
enum class Data { kNormal, kOutlierChannels, kHeavyTails };
Buffer hidden_states(Data data, int64_t num_tokens, int64_t hidden_size) {
  Random random(3);
  Buffer hidden = Buffer::normal(random, DataType::kF32, {num_tokens, hidden_size});
  for (int64_t i = 0; i < hidden.size(); ++i) {
    if (data == Data::kOutlierChannels && i % hidden_size % 10 == 0)
      hidden.set(i, 20 * hidden.at(i));
    if (data == Data::kHeavyTails) hidden.set(i, hidden.at(i) * std::abs(hidden.at(i)));
  }
  return hidden;
}

TEST(ErrorBound, HoldsForEveryActivationFormatAndIsNotLoose) {
  for (Activation kind : {Activation::kSwiGlu, Activation::kSwiGluOai, Activation::kGeGlu,
                          Activation::kSiTu, Activation::kRelu2}) {
    LayerSpec spec{.num_experts = 4, .top_k = 2, .hidden_size = 320, .intermediate_size = 224};
    spec.activation.kind = kind;
    const RandomWeights weights(spec);
    for (ActivationFormat format : kQuantised) {
      spec.activation_format = format;
      const ErrorBound bound = error_bound(spec, BackendKind::kReference, DataType::kF32);
      for (Data data : {Data::kNormal, Data::kOutlierChannels, Data::kHeavyTails}) {
        const Comparison c = cost_of(format,
                                     {.num_experts = 4,
                                      .top_k = 2,
                                      .hidden_size = 320,
                                      .intermediate_size = 224,
                                      .activation = spec.activation},
                                     weights.weights(), hidden_states(data, 12, 320));
        EXPECT_TRUE(c.within(bound))
            << to_string(kind) << ", " << to_string(format) << ", data " << static_cast<int>(data)
            << ": rms " << c.rms_error << " of " << bound.rms << ", worst " << c.worst_error
            << " of " << bound.worst;
        EXPECT_GT(c.rms_error, bound.rms / 8)
            << to_string(kind) << ", " << to_string(format) << ", data " << static_cast<int>(data);
      }
    }
  }
}

TEST(ErrorBound, StatesWhatEachBackendMayCost) {
  LayerSpec spec = model_shape("gpt-oss-120b").spec;
  // bf16 output alone: half a step of 2^-8 at the worst mantissa.
  EXPECT_LT(error_bound(spec, BackendKind::kReference, DataType::kBf16).rms, 2.3e-3);
  EXPECT_LT(error_bound(spec, BackendKind::kReference, DataType::kF32).rms, 2e-7);
  // The CPU meets MXFP4 with INT8 activations unless told otherwise.
  EXPECT_NEAR(error_bound(spec, BackendKind::kCpu, DataType::kBf16).rms, 2.4e-2, 2e-3);
  spec.activation_format = ActivationFormat::kNone;
  EXPECT_LT(error_bound(spec, BackendKind::kCpu, DataType::kBf16).rms, 4e-3);
  EXPECT_LT(error_bound(spec, BackendKind::kCpu, DataType::kF32).rms, 1e-5);
  EXPECT_LT(error_bound(spec, BackendKind::kCuda, DataType::kBf16).rms, 4e-3);
  EXPECT_NE(error_bound(spec, BackendKind::kCuda, DataType::kBf16).derivation.find("bf16 storage"),
            std::string::npos);
  // A GPU meets 8-bit weights with 8-bit activations unless told otherwise, 4-bit ones with none.
  spec.activation_format = ActivationFormat::kAuto;
  const auto named = [&spec](const char* activations) {
    const ErrorBound bound = error_bound(spec, BackendKind::kCuda, DataType::kBf16);
    return bound.derivation.find(activations) != std::string::npos;
  };
  EXPECT_TRUE(named("input none"));
  spec.weight_format = Format::kFp8E4m3;
  spec.weight_scale_block = {128, 128};
  EXPECT_TRUE(named("input fp8_block128"));
  spec.weight_scale_block = {0, 0};
  EXPECT_TRUE(named("input fp8_per_token"));
  spec.weight_scale_block = {1, 32};
  EXPECT_TRUE(named("input none"));
  spec.weight_format = Format::kInt8;
  EXPECT_TRUE(named("input none"));
  spec.weight_scale_block = {1, 0};
  EXPECT_TRUE(named("input int8_per_token"));
}

/// A mistake a packer or a kernel could make, applied to one expert's weights. New bytes live in
/// `storage`.
using Storage = std::vector<std::unique_ptr<Buffer>>;
struct Mistake {
  const char* name;
  const char* layer;  ///< of the table
  std::function<void(ExpertWeights&, Storage&)> make;
};

TensorView edited(const TensorView& view, Storage& storage,
                  const std::function<void(uint8_t*, int64_t rows, int64_t row_bytes)>& edit) {
  const int64_t row_bytes = view.extent(1) * element_bytes(view.type);
  storage.push_back(
      std::make_unique<Buffer>(view.type, Buffer::Shape{view.extent(0), view.extent(1)}));
  auto* copy = storage.back()->as<uint8_t>();
  for (int64_t r = 0; r < view.extent(0); ++r)
    std::memcpy(copy + r * row_bytes,
                view.as<uint8_t>() + r * view.stride(0) * element_bytes(view.type),
                static_cast<size_t>(row_bytes));
  edit(copy, view.extent(0), row_bytes);
  return storage.back()->view();
}

/// Moves every scale one place to the right or one row down.
TensorView shifted(const TensorView& scales, Storage& storage, bool down) {
  return edited(scales, storage, [&](uint8_t* data, int64_t rows, int64_t row_bytes) {
    const int64_t bytes = down ? row_bytes : element_bytes(scales.type);
    const int64_t length = down ? rows * row_bytes : row_bytes;
    for (int64_t begin = 0; begin < rows * row_bytes; begin += length)
      std::memmove(data + begin + bytes, data + begin, static_cast<size_t>(length - bytes));
  });
}

TensorView swapped_nibbles(const TensorView& values, Storage& storage) {
  return edited(values, storage, [](uint8_t* data, int64_t rows, int64_t row_bytes) {
    for (int64_t i = 0; i < rows * row_bytes; ++i)
      data[i] = static_cast<uint8_t>(data[i] << 4 | data[i] >> 4);
  });
}

/// Forgets the columns past the last full block of 32.
TensorView without_tail(const TensorView& values, int64_t row_bytes_kept, Storage& storage) {
  return edited(values, storage, [&](uint8_t* data, int64_t rows, int64_t row_bytes) {
    for (int64_t r = 0; r < rows; ++r)
      std::memset(data + r * row_bytes + row_bytes_kept, 0,
                  static_cast<size_t>(row_bytes - row_bytes_kept));
  });
}

const Mistake kMistakes[] = {
    {"nibbles swapped", "mxfp4",
     [](ExpertWeights& e, Storage& s) { e.up.values = swapped_nibbles(e.up.values, s); }},
    {"nibbles of down swapped", "int4",
     [](ExpertWeights& e, Storage& s) { e.down.values = swapped_nibbles(e.down.values, s); }},
    {"gate and up swapped", "mxfp4", [](ExpertWeights& e, Storage&) { std::swap(e.gate, e.up); }},
    {"interleaved read as concatenated", "gpt_oss_like",
     [](ExpertWeights& e, Storage&) {
       const int64_t inner = e.gate.rows;
       e.gate.values.strides[0] /= 2;
       e.up.values.strides[0] /= 2;
       e.up.values.data = e.gate.values.as<uint8_t>() + inner * e.gate.values.stride(0);
     }},
    {"scale of the block to the left", "mxfp4",
     [](ExpertWeights& e, Storage& s) { e.gate.scales = shifted(e.gate.scales, s, false); }},
    {"scale of the row above", "nvfp4",
     [](ExpertWeights& e, Storage& s) { e.down.scales = shifted(e.down.scales, s, true); }},
    {"scale of the block above", "fp8_wide",
     [](ExpertWeights& e, Storage& s) { e.up.scales = shifted(e.up.scales, s, true); }},
    {"scale rows of up from the start of a fused tensor", "fp8_cut_inside_a_block",
     [](ExpertWeights& e, Storage&) { e.up.scale_row_begin = 0; }},
    {"global scale forgotten in up", "nvfp4",
     [](ExpertWeights& e, Storage&) { e.up.global_scale = 1.0f; }},
    {"zero points forgotten", "int4_group128_zero_points",
     [](ExpertWeights& e, Storage&) { e.up.zero_points = {}; }},
    {"group index forgotten", "int4_actorder",
     [](ExpertWeights& e, Storage&) { e.up.group_index = {}; }},
    {"smooth scales forgotten", "int8_smooth",
     [](ExpertWeights& e, Storage&) { e.gate.smooth_scales = e.up.smooth_scales = {}; }},
    {"tail of the row forgotten", "mxfp4",
     [](ExpertWeights& e, Storage& s) { e.up.values = without_tail(e.up.values, 64, s); }},
    {"gate bias forgotten", "gpt_oss_like", [](ExpertWeights& e, Storage&) { e.gate_bias = {}; }},
    {"up bias forgotten", "gpt_oss_like", [](ExpertWeights& e, Storage&) { e.up_bias = {}; }},
    {"down bias forgotten", "gpt_oss_like", [](ExpertWeights& e, Storage&) { e.down_bias = {}; }},
};

TEST(ErrorBound, CatchesEveryMistakeInTheWeights) {
  for (const Mistake& mistake : kMistakes) {
    test::LayerCase c = test::layer_case(mistake.layer);
    c.weights.bias_deviation = 0.1;
    const RandomWeights weights(c.spec, c.weights);
    Storage storage;
    Weights wrong = weights.weights();
    wrong.experts.load = [&](int64_t e) {
      ExpertWeights expert = weights.expert(e);
      mistake.make(expert, storage);
      return expert;
    };
    Random random(8);
    const Buffer hidden = Buffer::normal(random, DataType::kBf16, {32, c.spec.hidden_size});
    const LayerRun truth = test::run_layer(reference_layer(c.spec, weights.weights()), hidden);
    const LayerRun run =
        test::run_layer(reference_layer(c.spec, wrong), hidden,
                        {.topk_ids = truth.topk_ids, .topk_weights = truth.topk_weights});
    const Comparison found = compare(run.output, truth.output);
    // The loosest bound there is for this layer: INT8 activations and a bf16 output.
    c.spec.activation_format = ActivationFormat::kInt8Block32;
    const ErrorBound bound = error_bound(c.spec, BackendKind::kCpu, DataType::kBf16);
    EXPECT_GT(found.rms_error, 1.5 * bound.rms) << mistake.name;
  }
}

/// Mistakes in what is computed rather than in what is stored.
TEST(ErrorBound, CatchesAWrongActivationAndAWrongWeightPosition) {
  const auto differs = [](const char* name, const std::function<void(LayerSpec&)>& change) {
    const test::LayerCase& c = test::layer_case(name);
    const RandomWeights weights(c.spec, c.weights);
    LayerSpec spec = c.spec;
    change(spec);
    Random random(8);
    const Buffer hidden = Buffer::normal(random, DataType::kBf16, {32, c.spec.hidden_size});
    const LayerRun truth = test::run_layer(reference_layer(c.spec, weights.weights()), hidden);
    const LayerRun run =
        test::run_layer(reference_layer(spec, weights.weights()), hidden,
                        {.topk_ids = truth.topk_ids, .topk_weights = truth.topk_weights});
    spec.activation_format = ActivationFormat::kInt8Block32;
    EXPECT_GT(compare(run.output, truth.output).rms_error,
              1.5 * error_bound(spec, BackendKind::kCpu, DataType::kBf16).rms)
        << name;
  };
  differs("swiglu_oai", [](LayerSpec& s) { s.activation.alpha = 1.0f; });
  differs("swiglu_oai", [](LayerSpec& s) { s.activation.limit = 7.0f; });
  differs("swiglu_clamp", [](LayerSpec& s) { s.activation.kind = Activation::kSwiGlu; });
  differs("bf16", [](LayerSpec& s) { s.activation.kind = Activation::kGeGlu; });
  differs("weight_on_input", [](LayerSpec& s) { s.weight_position = WeightPosition::kOutput; });
  differs("situ", [](LayerSpec& s) { s.activation.beta = 2.0f; });
}

}  // namespace
}  // namespace switchyard
