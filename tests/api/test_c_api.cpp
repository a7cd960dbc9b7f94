// The C interface against the C++ one: every layer of the shared table and every stored format give
// the same bits whichever way they come in.

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "support/layer_cases.h"
#include "support/run_layer.h"
#include "switchyard/c_api.h"
#include "switchyard/switchyard.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::GuardedMemory;
using test::LayerCase;
using test::Random;
using test::RandomWeights;

sy_tensor to_c(const TensorView& view) {
  sy_tensor out{};
  out.data = view.data;
  out.type = static_cast<sy_data_type>(view.type);
  out.rank = view.rank;
  for (size_t d = 0; d < static_cast<size_t>(view.rank); ++d) {
    out.shape[d] = view.shape[d];
    out.strides[d] = view.strides[d];
  }
  return out;
}

sy_matrix to_c(const WeightMatrix& matrix) {
  sy_matrix out{};
  out.struct_size = sizeof(out);
  out.format = static_cast<sy_format>(matrix.format);
  out.rows = matrix.rows;
  out.cols = matrix.cols;
  out.values = to_c(matrix.values);
  out.scales = to_c(matrix.scales);
  out.scale_block_rows = matrix.scale_block.rows;
  out.scale_block_cols = matrix.scale_block.cols;
  out.scale_row_begin = matrix.scale_row_begin;
  out.scale_row_step = matrix.scale_row_step;
  out.global_scale = matrix.global_scale;
  out.zero_points = to_c(matrix.zero_points);
  out.group_index = to_c(matrix.group_index);
  out.smooth_scales = to_c(matrix.smooth_scales);
  return out;
}

/// One expert and the structs it points to.
struct CExpert {
  explicit CExpert(const ExpertWeights& weights)
      : gate(to_c(weights.gate)), up(to_c(weights.up)), down(to_c(weights.down)) {
    expert.struct_size = sizeof(expert);
    expert.gate = weights.gate.empty() ? nullptr : &gate;
    expert.up = weights.up.empty() ? nullptr : &up;
    expert.down = weights.down.empty() ? nullptr : &down;
    expert.gate_bias = to_c(weights.gate_bias);
    expert.up_bias = to_c(weights.up_bias);
    expert.down_bias = to_c(weights.down_bias);
  }
  CExpert(const CExpert&) = delete;
  CExpert& operator=(const CExpert&) = delete;
  sy_matrix gate, up, down;
  sy_expert expert{};
};

/// A spec with the structs it points to.
struct CSpec {
  explicit CSpec(const LayerSpec& s) {
    EXPECT_EQ(sy_routing_init(&routing, sizeof(routing)), SY_OK);
    routing.scoring = static_cast<int32_t>(s.routing.scoring);
    routing.renormalize = s.routing.renormalize;
    routing.renormalize_epsilon = s.routing.renormalize_epsilon;
    routing.num_groups = s.routing.num_groups;
    routing.topk_groups = s.routing.topk_groups;
    routing.group_score = static_cast<int32_t>(s.routing.group_score);
    routing.routed_scaling_factor = s.routing.routed_scaling_factor;
    routing.hash = s.routing.hash;
    EXPECT_EQ(sy_activation_init(&activation, sizeof(activation)), SY_OK);
    activation.kind = static_cast<int32_t>(s.activation.kind);
    activation.alpha = s.activation.alpha;
    activation.limit = s.activation.limit;
    activation.beta = s.activation.beta;
    activation.linear_beta = s.activation.linear_beta;
    EXPECT_EQ(sy_layer_spec_init(&spec, sizeof(spec)), SY_OK);
    spec.num_experts = s.num_experts;
    spec.top_k = s.top_k;
    spec.hidden_size = s.hidden_size;
    spec.intermediate_size = s.intermediate_size;
    spec.latent_size = s.latent_size;
    spec.routing = &routing;
    spec.activation = &activation;
    spec.shared_intermediate_size = s.shared.intermediate_size;
    spec.shared_sigmoid_gate = s.shared.sigmoid_gate;
    spec.weight_position = static_cast<int32_t>(s.weight_position);
    spec.num_fused_shared = s.num_fused_shared;
    spec.fused_shared_weight = s.fused_shared_weight;
    spec.weight_format = static_cast<sy_format>(s.weight_format);
    spec.weight_scale_block_rows = s.weight_scale_block.rows;
    spec.weight_scale_block_cols = s.weight_scale_block.cols;
    spec.activation_format = static_cast<sy_activation_format>(s.activation_format);
    spec.latent_norm_epsilon = s.latent_norm_epsilon;
  }
  CSpec(const CSpec&) = delete;
  CSpec& operator=(const CSpec&) = delete;
  sy_routing routing;
  sy_activation activation;
  sy_layer_spec spec;
};

/// Weights with the structs they point to; the experts arrive by callback.
struct CWeights {
  explicit CWeights(const Weights& w)
      : router(to_c(w.router.projection)),
        shared_gate(to_c(w.shared_gate)),
        latent_down(to_c(w.latent_down)),
        latent_up(to_c(w.latent_up)),
        shared(w.shared) {
    for (int64_t e = 0; e < w.experts.num_experts; ++e) {
      experts.push_back(std::make_unique<CExpert>(w.experts.load(e)));
    }
    source.struct_size = sizeof(source);
    source.num_experts = w.experts.num_experts;
    source.context = this;
    source.load = [](void* context, int64_t expert, sy_expert* out) -> sy_status {
      *out = static_cast<CWeights*>(context)->experts[static_cast<size_t>(expert)]->expert;
      return SY_OK;
    };
    weights.struct_size = sizeof(weights);
    weights.experts = &source;
    weights.router = w.router.projection.empty() ? nullptr : &router;
    weights.logit_bias = to_c(w.router.logit_bias);
    weights.selection_bias = to_c(w.router.selection_bias);
    weights.per_expert_scale = to_c(w.router.per_expert_scale);
    weights.tid2eid = to_c(w.router.tid2eid);
    weights.input_norm_scale = to_c(w.router.input_norm_scale);
    weights.input_norm_epsilon = w.router.input_norm_epsilon;
    weights.shared = w.shared.up.empty() ? nullptr : &shared.expert;
    weights.shared_gate = w.shared_gate.empty() ? nullptr : &shared_gate;
    weights.latent_down = w.latent_down.empty() ? nullptr : &latent_down;
    weights.latent_norm = to_c(w.latent_norm);
    weights.latent_up = w.latent_up.empty() ? nullptr : &latent_up;
  }
  CWeights(const CWeights&) = delete;
  CWeights& operator=(const CWeights&) = delete;
  sy_matrix router, shared_gate, latent_down, latent_up;
  CExpert shared;
  std::vector<std::unique_ptr<CExpert>> experts{};
  sy_expert_source source{};
  sy_weights weights{};
};

struct Destroy {
  void operator()(sy_layer* layer) const { sy_layer_destroy(layer); }
};
using CLayer = std::unique_ptr<sy_layer, Destroy>;

CLayer create(const LayerSpec& spec, const sy_weights& weights) {
  const CSpec c_spec(spec);
  sy_layer_options options{};
  options.struct_size = sizeof(options);
  options.backend = SY_BACKEND_CPU;
  sy_layer* layer = nullptr;
  EXPECT_EQ(sy_layer_create(&c_spec.spec, &weights, &options, &layer), SY_OK)
      << sy_last_error_message();
  return CLayer(layer);
}

/// forward through C over poisoned memory; the output.
Buffer run(const sy_layer* layer, const TensorView& hidden, const TensorView& input_ids) {
  Buffer output(hidden.type, {hidden.extent(0), hidden.extent(1)});
  sy_forward_args args{};
  args.struct_size = sizeof(args);
  args.hidden_states = to_c(hidden);
  args.output = to_c(output.view());
  args.input_ids = to_c(input_ids);
  int64_t bytes = 0;
  EXPECT_EQ(sy_layer_workspace_bytes(layer, hidden.extent(0), &bytes), SY_OK);
  const GuardedMemory workspace(bytes);
  EXPECT_EQ(sy_layer_forward(layer, &args, workspace.data(), bytes, nullptr), SY_OK)
      << sy_last_error_message();
  EXPECT_TRUE(workspace.canaries_intact());
  EXPECT_TRUE(output.canaries_intact());
  return output;
}

class CApi : public testing::TestWithParam<LayerCase> {};

TEST_P(CApi, GivesTheBitsOfTheCppInterface) {
  const LayerCase& c = GetParam();
  const std::string reason = why_unsupported(c.spec, BackendKind::kCpu);
  if (!reason.empty()) GTEST_SKIP() << reason;
  const RandomWeights weights(c.spec, c.weights);
  const Layer cpp = Layer::create(c.spec, weights.weights(), {.backend = BackendKind::kCpu});
  const CWeights c_weights(weights.weights());
  const CLayer layer = create(c.spec, c_weights.weights);
  ASSERT_NE(layer, nullptr);

  Random random(5);
  const Buffer hidden = Buffer::normal(random, DataType::kBf16, {9, c.spec.hidden_size});
  Buffer input_ids;
  ForwardArgs args;
  if (c.spec.routing.hash) {
    input_ids = test::random_input_ids(random, 9, c.weights.vocabulary);
    args.input_ids = input_ids;
  }
  const Buffer output = run(layer.get(), hidden, args.input_ids);
  EXPECT_TRUE(same_bits(output, test::run_layer(cpp, hidden, args).output));
}

INSTANTIATE_TEST_SUITE_P(Layers, CApi, testing::ValuesIn(test::layer_cases()),
                         [](const testing::TestParamInfo<LayerCase>& c) { return c.param.name; });

// ---- stacked experts

/// The same view of every expert, copied behind one another: [E, ...].
Buffer stack(const std::vector<TensorView>& parts) {
  const TensorView& first = parts[0];
  Buffer::Shape shape{static_cast<int64_t>(parts.size())};
  for (int d = 0; d < first.rank; ++d) shape.push_back(first.extent(d));
  Buffer stacked(first.type, shape);
  const auto bytes = static_cast<size_t>(first.num_elements() * element_bytes(first.type));
  for (size_t e = 0; e < parts.size(); ++e) {
    EXPECT_TRUE(parts[e].is_contiguous());
    std::memcpy(stacked.as<char>() + e * bytes, parts[e].data, bytes);
  }
  return stacked;
}

/// Rows of gate, then of up.
TensorView join(const TensorView& gate, const TensorView& up, Buffer& storage) {
  storage = stack({gate, up});
  TensorView joined = storage.view();
  joined.rank = gate.rank;
  joined.shape = gate.shape;
  joined.shape[0] *= 2;
  joined.strides = gate.strides;
  return joined;
}

struct StackedCase {
  const char* name;
  test::MatrixOptions matrix;
};

class CApiStacked : public testing::TestWithParam<StackedCase> {};

TEST_P(CApiStacked, GivesTheBitsOfExpertsOneByOne) {
  test::WeightsOptions options{.matrix = GetParam().matrix, .biases = true};
  const LayerSpec spec{.num_experts = 4,
                       .top_k = 2,
                       .hidden_size = 192,
                       .intermediate_size = 128,
                       .weight_format = options.matrix.format,
                       .weight_scale_block = options.matrix.scale_block};
  const RandomWeights random_weights(spec, options);
  Weights weights = random_weights.weights();

  // One tensor per kind of part, in the order of the C struct.
  std::vector<Buffer> joined(64);
  size_t used = 0;
  using Part = TensorView WeightMatrix::*;
  const auto rows_of_both = [&](Part part) {
    std::vector<TensorView> parts;
    for (int64_t e = 0; e < spec.num_experts; ++e) {
      const ExpertWeights& expert = random_weights.expert(e);
      if ((expert.gate.*part).empty()) return Buffer();
      parts.push_back(join(expert.gate.*part, expert.up.*part, joined.at(used++)));
    }
    return stack(parts);
  };
  const auto of_each = [&](auto view_of) {
    std::vector<TensorView> parts;
    for (int64_t e = 0; e < spec.num_experts; ++e) {
      parts.push_back(view_of(random_weights.expert(e)));
      if (parts.back().empty()) return Buffer();
    }
    return stack(parts);
  };
  const auto of_down = [&](Part part) {
    return of_each([part](const ExpertWeights& expert) { return expert.down.*part; });
  };
  std::vector<double> gate_up_global, down_global;
  std::vector<TensorView> biases;
  for (int64_t e = 0; e < spec.num_experts; ++e) {
    const ExpertWeights& expert = random_weights.expert(e);
    gate_up_global.push_back(static_cast<double>(expert.gate.global_scale));
    gate_up_global.push_back(static_cast<double>(expert.up.global_scale));
    down_global.push_back(static_cast<double>(expert.down.global_scale));
    biases.push_back(join(expert.gate_bias, expert.up_bias, joined.at(used++)));
  }
  const Buffer gate_up = rows_of_both(&WeightMatrix::values),
               gate_up_scales = rows_of_both(&WeightMatrix::scales),
               gate_up_zeros = rows_of_both(&WeightMatrix::zero_points),
               gate_up_bias = stack(biases), down = of_down(&WeightMatrix::values),
               down_scales = of_down(&WeightMatrix::scales),
               down_zeros = of_down(&WeightMatrix::zero_points),
               down_bias = of_each([](const ExpertWeights&e) { return e.down_bias; }),
               gate_up_globals = Buffer::of(DataType::kF32, {spec.num_experts, 2}, gate_up_global),
               down_globals = Buffer::of(DataType::kF32, {spec.num_experts}, down_global),
               gate_up_smooth = of_each([](const ExpertWeights&e) { return e.gate.smooth_scales; }),
               down_smooth = of_down(&WeightMatrix::smooth_scales);
  sy_stacked_experts stacked{};
  stacked.struct_size = sizeof(stacked);
  stacked.format = static_cast<sy_format>(spec.weight_format);
  stacked.scale_block_rows = spec.weight_scale_block.rows;
  stacked.scale_block_cols = spec.weight_scale_block.cols;
  stacked.gate_up = to_c(gate_up.view());
  stacked.gate_up_scales = to_c(gate_up_scales.view());
  stacked.gate_up_bias = to_c(gate_up_bias.view());
  stacked.down = to_c(down.view());
  stacked.down_scales = to_c(down_scales.view());
  stacked.down_bias = to_c(down_bias.view());
  stacked.gate_up_global_scales = to_c(gate_up_globals.view());
  stacked.down_global_scales = to_c(down_globals.view());
  stacked.gate_up_zero_points = to_c(gate_up_zeros.view());
  stacked.down_zero_points = to_c(down_zeros.view());
  stacked.gate_up_smooth_scales = to_c(gate_up_smooth.view());
  stacked.down_smooth_scales = to_c(down_smooth.view());

  CWeights c_weights(weights);
  c_weights.weights.experts = nullptr;
  c_weights.weights.stacked = &stacked;
  const CLayer layer = create(spec, c_weights.weights);
  ASSERT_NE(layer, nullptr);
  const Layer cpp = Layer::create(spec, weights, {.backend = BackendKind::kCpu});
  Random random(6);
  const Buffer hidden = Buffer::normal(random, DataType::kF32, {7, spec.hidden_size});
  EXPECT_TRUE(same_bits(run(layer.get(), hidden, {}), test::run_layer(cpp, hidden).output));
}

std::vector<StackedCase> stacked_cases() {
  std::vector<StackedCase> cases;
  for (Format format :
       {Format::kF32, Format::kF16, Format::kBf16, Format::kFp8E4m3, Format::kFp8E5m2,
        Format::kInt8, Format::kInt4, Format::kMxfp4, Format::kMxfp8, Format::kNvfp4}) {
    cases.push_back({to_string(format), test::usual_matrix(format)});
  }
  test::MatrixOptions zero_points = test::usual_matrix(Format::kInt4);
  zero_points.zero_points = true;
  cases.push_back({"int4_zero_points", zero_points});
  test::MatrixOptions words = test::usual_matrix(Format::kInt4);
  words.int32_words = true;
  cases.push_back({"int4_words", words});
  test::MatrixOptions smooth = test::usual_matrix(Format::kInt8);
  smooth.smooth_scales = true;
  cases.push_back({"int8_smooth", smooth});
  test::MatrixOptions fp8_rows{.format = Format::kFp8E4m3, .scale_block = {1, 0}};
  cases.push_back({"fp8_per_channel", fp8_rows});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Formats, CApiStacked, testing::ValuesIn(stacked_cases()),
                         [](const auto& one) { return std::string(one.param.name); });

TEST(CApiCheckpoint, GivesTheBitsOfTheCppInterface) {
  for (const char* name : {"gpt_oss_mxfp4", "deepseek_v3_fp8", "llama4"}) {
    const std::string directory = std::string(SWITCHYARD_SOURCE_DIR "/fixtures/") + name;
    const Checkpoint checkpoint = Checkpoint::open(directory);
    const int64_t index = checkpoint.moe_layers().front();
    const LayerSpec spec = checkpoint.layer(index).spec;
    const Layer cpp =
        Layer::create(spec, checkpoint.weights(index), {.backend = BackendKind::kCpu});
    sy_layer_options options{};
    options.struct_size = sizeof(options);
    options.backend = SY_BACKEND_CPU;
    sy_layer* raw = nullptr;
    ASSERT_EQ(sy_layer_create_from_checkpoint(directory.c_str(), index, &options, &raw), SY_OK)
        << sy_last_error_message();
    const CLayer layer(raw);
    Random random(8);
    const Buffer hidden = Buffer::normal(random, DataType::kBf16, {6, spec.hidden_size});
    EXPECT_TRUE(same_bits(run(layer.get(), hidden, {}), test::run_layer(cpp, hidden).output))
        << name;
  }
}

}  // namespace
}  // namespace switchyard
