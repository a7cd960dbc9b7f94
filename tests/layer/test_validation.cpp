// Every argument rule: what breaks it, and the message that names argument, value and rule. Nothing
// may be written before a message comes.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "support/layer_cases.h"
#include "support/run_layer.h"
#include "switchyard/models.h"
#include "switchyard/ops.h"
#include "switchyard/verify.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::GuardedMemory;
using test::LayerCase;
using test::Random;
using test::RandomWeights;

/// Runs `call` and expects an invalid-argument error whose text begins with `message`.
void expect_rejected(const char* message, const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "no error; expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
    EXPECT_EQ(std::string(error.what()).substr(0, std::string(message).size()), message);
  }
}

// ---- LayerSpec

TEST(Validation, Specs) {
  struct Rule {
    const char* message;
    std::function<void(LayerSpec&)> break_it;
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Rule rules[] = {
      {"num_experts is 0; it must be between 1 and 4096", [](auto& s) { s.num_experts = 0; }},
      {"num_experts is 5000; it must be between 1 and 4096", [](auto& s) { s.num_experts = 5000; }},
      {"top_k is 9; it must be between 1 and 8", [](auto& s) { s.top_k = 9; }},
      {"top_k is -1; it must be between 1 and 8", [](auto& s) { s.top_k = -1; }},
      {"top_k is 128; it must be between 1 and 127",
       [](auto& s) {
         s.num_experts = 256;
         s.top_k = 128;
       }},
      {"hidden_size is 0; it must be between 1 and 1048576", [](auto& s) { s.hidden_size = 0; }},
      {"hidden_size is 4611686018427387904; it must be between",
       [](auto& s) { s.hidden_size = int64_t{1} << 62; }},
      {"intermediate_size is -8; it must be between", [](auto& s) { s.intermediate_size = -8; }},
      {"latent_size is -1; it must be between 0 and", [](auto& s) { s.latent_size = -1; }},
      {"latent_norm_epsilon is -1; it must be finite and at least 0",
       [](auto& s) { s.latent_norm_epsilon = -1.0f; }},
      {"num_fused_shared is 2; it must be between 0 and 1",
       [](auto& s) { s.num_fused_shared = 2; }},
      {"num_fused_shared is 1; it must be 0 when shared.intermediate_size is given",
       [](auto& s) {
         s.num_fused_shared = 1;
         s.shared.intermediate_size = 8;
       }},
      {"fused_shared_weight is inf; it must be finite",
       [](auto& s) { s.fused_shared_weight = INFINITY; }},
      {"shared.intermediate_size is -1; it must be between",
       [](auto& s) { s.shared.intermediate_size = -1; }},
      {"shared.sigmoid_gate is true; it must be false without shared experts",
       [](auto& s) { s.shared.sigmoid_gate = true; }},
      {"routing.num_groups is 3; it must divide the 8 routed experts",
       [](auto& s) { s.routing.num_groups = 3; }},
      {"routing.num_groups is 0; it must be between 1 and 8",
       [](auto& s) { s.routing.num_groups = 0; }},
      {"routing.topk_groups is 5; it must be between 1 and 4",
       [](auto& s) {
         s.routing.num_groups = 4;
         s.routing.topk_groups = 5;
       }},
      {"top_k is 3; the 1 kept groups hold only 2 routed experts",
       [](auto& s) {
         s.top_k = 3;
         s.routing.num_groups = 4;
       }},
      {"routing.renormalize_epsilon is nan; it must be finite and at least 0",
       [=](auto& s) { s.routing.renormalize_epsilon = nan; }},
      {"routing.routed_scaling_factor is nan; it must be finite",
       [=](auto& s) { s.routing.routed_scaling_factor = nan; }},
      {"routing.scoring is 7; it must be between 0 and 2",
       [](auto& s) { s.routing.scoring = static_cast<Scoring>(7); }},
      {"routing.group_score is -1; it must be between 0 and 1",
       [](auto& s) { s.routing.group_score = static_cast<GroupScore>(-1); }},
      {"activation.kind is 7; it must be between 0 and 6",
       [](auto& s) { s.activation.kind = static_cast<Activation>(7); }},
      {"activation.limit is 0; it must be positive",
       [](auto& s) { s.activation = {.kind = Activation::kSwiGluClamp, .limit = 0.0f}; }},
      {"activation.alpha is nan; it must be finite",
       [=](auto& s) { s.activation = {.kind = Activation::kSwiGluOai, .alpha = nan}; }},
      {"activation.beta is 0; it must be positive",
       [](auto& s) { s.activation = {.kind = Activation::kSiTu, .beta = 0.0f}; }},
      {"weight_position is 2; it must be between 0 and 1",
       [](auto& s) { s.weight_position = static_cast<WeightPosition>(2); }},
      {"activation_format is 10; it must be between 0 and 9",
       [](auto& s) { s.activation_format = static_cast<ActivationFormat>(10); }},
      {"weight_format is 10; it must be between 0 and 9",
       [](auto& s) { s.weight_format = static_cast<Format>(10); }},
      {"scale block of bf16 is 1x32; it must be 0x0",
       [](auto& s) {
         s.weight_scale_block = {1, 32};
       }},
      {"scale block of mxfp4 is 1x16; it must be 1x32",
       [](auto& s) {
         s.weight_format = Format::kMxfp4;
         s.weight_scale_block = {1, 16};
       }},
      {"scale block of nvfp4 is 1x32; it must be 1x16",
       [](auto& s) {
         s.weight_format = Format::kNvfp4;
         s.weight_scale_block = {1, 32};
       }},
      {"scale block of int4 is 2x32; it must be 1 x its group",
       [](auto& s) {
         s.weight_format = Format::kInt4;
         s.weight_scale_block = {2, 32};
       }},
      {"scale block of fp8_e4m3 is -1x128; it must be rows x cols",
       [](auto& s) {
         s.weight_format = Format::kFp8E4m3;
         s.weight_scale_block = {-1, 128};
       }},
  };
  for (const Rule& rule : rules) {
    LayerSpec spec{.num_experts = 8, .top_k = 2, .hidden_size = 64, .intermediate_size = 32};
    rule.break_it(spec);
    expect_rejected(rule.message, [&] { Layer::create(spec, {}); });
    expect_rejected(rule.message, [&] { why_unsupported(spec, BackendKind::kReference); });
    expect_rejected(rule.message, [&] { ops::Experts::create(spec, {}); });
  }
}

TEST(Validation, Options) {
  const LayerCase& c = test::layer_case("bf16");
  const RandomWeights weights(c.spec, c.weights);
  const auto create = [&](const LayerOptions& options) {
    Layer::create(c.spec, weights.weights(), options);
  };
  expect_rejected("num_threads is -1; it must be between 0 and",
                  [&] { create({.num_threads = -1}); });
  expect_rejected("device is -1; it must be between 0 and", [&] { create({.device = -1}); });
  expect_rejected("backend is 9; it must be between 0 and 3",
                  [&] { create({.backend = static_cast<BackendKind>(9)}); });
}

// ---- Weights

struct WeightRule {
  const char* layer;
  const char* message;
  std::function<void(Weights&)> break_it;
};

/// Changes expert 1 as it is loaded.
std::function<void(Weights&)> expert(const std::function<void(ExpertWeights&)>& change) {
  return [change](Weights& w) {
    w.experts.load = [load = w.experts.load, change](int64_t e) {
      ExpertWeights loaded = load(e);
      if (e == 1) change(loaded);
      return loaded;
    };
  };
}

void check_weight_rules(const std::vector<WeightRule>& rules) {
  for (const WeightRule& rule : rules) {
    const LayerCase& c = test::layer_case(rule.layer);
    const RandomWeights weights(c.spec, c.weights);
    Weights broken = weights.weights();
    rule.break_it(broken);
    expect_rejected(rule.message,
                    [&] { Layer::create(c.spec, broken, {.backend = BackendKind::kReference}); });
  }
}

TEST(Validation, ExpertMatrices) {
  check_weight_rules({
      {"bf16", "experts[1].gate.values is", expert([](auto& e) { e.gate.values.rank = 3; })},
      {"bf16", "experts[1].gate is empty; it must be [72, 136]",
       expert([](auto& e) { e.gate.values = {}; })},
      {"bf16", "experts[1].up is [71, 136]; it must be [72, 136]",
       expert([](auto& e) { e.up.rows = 71; })},
      {"bf16", "experts[1].down.values is [136, 71]; its shape must be [136, 72]",
       expert([](auto& e) { e.down.values.shape[1] = 71; })},
      {"bf16", "experts[1].up.values is f32; its type must be bf16",
       expert([](auto& e) { e.up.values.type = DataType::kF32; })},
      {"bf16", "experts[1].up is f16; the format of this layer is bf16",
       expert([](auto& e) { e.up.format = Format::kF16; })},
      {"mxfp4", "experts[1].up.values is bf16; its type must be u8, i8 or i32",
       expert([](auto& e) { e.up.values.type = DataType::kBf16; })},
      {"relu2", "experts[1].gate is given; activation relu2 has no gate matrix",
       expert([](auto& e) { e.gate = e.up; })},
      {"relu2", "experts[1].gate_bias is given; activation relu2 has no gate matrix",
       expert([](auto& e) { e.gate_bias = e.up_bias; })},
      {"gpt_oss_like", "experts[1].up_bias is [71]; its shape must be [72]",
       expert([](auto& e) { e.up_bias.shape[0] = 71; })},
      {"gpt_oss_like", "experts[1].down_bias is i32; its type must be f32, bf16 or f16",
       expert([](auto& e) { e.down_bias.type = DataType::kI32; })},
  });
}

TEST(Validation, Scales) {
  static const float nan_f32[] = {std::numeric_limits<float>::quiet_NaN()};
  static const float infinite_f32[] = {INFINITY};
  static uint8_t bytes[256 * 16];
  std::fill(std::begin(bytes), std::end(bytes), uint8_t{0x80});
  bytes[255] = 0xff;  // NaN as E8M0 and as E4M3
  const auto as = [](DataType type, int64_t rows, int64_t cols) {
    return TensorView::contiguous(static_cast<const void*>(bytes), type, {rows, cols});
  };
  check_weight_rules({
      {"mxfp4", "experts[1].up.scales is empty; format mxfp4 needs one per block",
       expert([](auto& e) { e.up.scales = {}; })},
      {"mxfp4", "experts[1].up.scales is [72, 4]; 72 rows of 136 columns in blocks of 1x32 need",
       expert([](auto& e) { e.up.scales.shape[1] = 4; })},
      {"fp8_wide", "experts[1].down.scales is [2, 3]; 300 rows of 260 columns",
       expert([](auto& e) { e.down.scales.shape[0] = 2; })},
      {"fp8_wide", "experts[1].down.scales is [3]; its shape must be [any, any]",
       expert([](auto& e) { e.down.scales.rank = 1; })},
      {"fp8_wide", "experts[1].up has scale blocks 64x128; this layer has 128x128",
       expert([](auto& e) {
         e.up.scale_block = {64, 128};
       })},
      {"fp8_wide", "experts[1].up has scale rows from -1 in steps of 1",
       expert([](auto& e) { e.up.scale_row_begin = -1; })},
      {"fp8_wide", "experts[1].up has scale rows from 0 in steps of 4611686018427387904",
       expert([](auto& e) { e.up.scale_row_step = int64_t{1} << 62; })},
      {"nvfp4", "experts[1].up.scales is f32; its type must be f8_e4m3",
       expert([](auto& e) { e.up.scales.type = DataType::kF32; })},
      {"bf16", "experts[1].up.scales is [1, 1]; format bf16 has none",
       expert([&](auto& e) { e.up.scales = as(DataType::kF32, 1, 1); })},
      {"fp8_per_tensor", "experts[1].up.scales holds a NaN or infinity", expert([](auto& e) {
         e.up.scales =
             TensorView::contiguous(static_cast<const void*>(nan_f32), DataType::kF32, {1, 1});
       })},
      {"fp8_per_tensor", "experts[1].down.scales holds a NaN or infinity", expert([](auto& e) {
         e.down.scales =
             TensorView::contiguous(static_cast<const void*>(infinite_f32), DataType::kF32, {1, 1});
       })},
      {"mxfp4", "experts[1].up.scales holds a NaN or infinity",
       expert([&](auto& e) { e.up.scales = as(DataType::kF8E8m0, 72, 5); })},
      {"nvfp4", "experts[1].up.scales holds a NaN or infinity",
       expert([&](auto& e) { e.up.scales = as(DataType::kF8E4m3, 72, 9); })},
      {"nvfp4", "experts[1].gate.global_scale is nan; it must be finite",
       expert([](auto& e) { e.gate.global_scale = nan_f32[0]; })},
      {"int4_actorder", "experts[1].up.group_index[0] is 5; there are 5 groups",
       expert([](auto& e) {
         static std::vector<int32_t> groups(136, 5);
         e.up.group_index =
             TensorView::contiguous(static_cast<const void*>(groups.data()), DataType::kI32, {136});
       })},
      {"int8", "experts[1].up.group_index is given; format int8 has none",
       expert([&](auto& e) { e.up.group_index = as(DataType::kI32, 1, 1); })},
      {"int8", "experts[1].up.zero_points is given; format int8 has none",
       expert([&](auto& e) { e.up.zero_points = as(DataType::kU8, 1, 1); })},
      {"int8_smooth", "experts[1].gate.smooth_scales differs from that of up",
       expert([](auto& e) { e.gate.smooth_scales = {}; })},
  });
}

TEST(Validation, EverythingBesideTheExperts) {
  check_weight_rules({
      {"bf16", "experts.num_experts is 5; the spec says 6",
       [](Weights& w) { w.experts.num_experts = 5; }},
      {"bf16", "experts.load is empty; it must give expert e",
       [](Weights& w) { w.experts.load = nullptr; }},
      {"bf16", "router.projection is [5, 136]; it must be [6, 136]",
       [](Weights& w) { w.router.projection.rows = 5; }},
      {"gpt_oss_like", "router.logit_bias is [5]; its shape must be [6]",
       [](Weights& w) { w.router.logit_bias.shape[0] = 5; }},
      {"deepseek_v3_like", "router.selection_bias is f64; its type must be f32, bf16 or f16",
       [](Weights& w) { w.router.selection_bias.type = DataType::kF64; }},
      {"gemma_4_like", "router.input_norm_epsilon is -1; it must be finite and at least 0",
       [](Weights& w) { w.router.input_norm_epsilon = -1.0f; }},
      {"gemma_4_like", "router.per_expert_scale is [7]; its shape must be [6]",
       [](Weights& w) { w.router.per_expert_scale.shape[0] = 7; }},
      {"hash_routing", "router.tid2eid is empty; it must be given exactly when routing.hash",
       [](Weights& w) { w.router.tid2eid = {}; }},
      {"hash_routing", "router.tid2eid[0, 1] is 6; it must be below the 6 routed experts",
       [](Weights& w) { w.router.tid2eid.as<int64_t>()[1] = 6; }},
      {"bf16", "router.tid2eid is [6, 136]; it must be given exactly when routing.hash is true",
       [](Weights& w) { w.router.tid2eid = w.router.projection.values; }},
      {"shared_gated", "shared.up is empty; it must be [88, 136]",
       [](Weights& w) { w.shared.up.values = {}; }},
      {"shared_gated", "shared_gate is empty; it must be [1, 136]",
       [](Weights& w) { w.shared_gate = {}; }},
      {"bf16", "shared.up is given; it must be empty because shared.intermediate_size is 0",
       [](Weights& w) { w.shared = w.experts.load(0); }},
      {"bf16", "shared_gate is given; it must be empty because shared.sigmoid_gate is false",
       [](Weights& w) { w.shared_gate = w.router.projection; }},
      {"kimi_k3_like", "latent_down is empty; it must be [56, 136]",
       [](Weights& w) { w.latent_down = {}; }},
      {"kimi_k3_like", "latent_up is [136, 55]; it must be [136, 56]",
       [](Weights& w) { w.latent_up.cols = 55; }},
      {"kimi_k3_like", "latent_norm is [57]; its shape must be [56]",
       [](Weights& w) { w.latent_norm.shape[0] = 57; }},
      {"bf16", "latent_up is given; it must be empty because latent_size is 0",
       [](Weights& w) { w.latent_up = w.router.projection; }},
  });
}

TEST(Validation, StackedTensors) {
  const Buffer gate_up(DataType::kBf16, {4, 6, 8});
  const Buffer down(DataType::kBf16, {4, 8, 3});
  const StackedExperts good{.gate_up = gate_up, .down = down};
  EXPECT_EQ(expert_source(good).num_experts, 4);
  const auto rejects = [&](const char* message,
                           const std::function<void(StackedExperts&)>& change) {
    StackedExperts stacked = good;
    change(stacked);
    expect_rejected(message, [&] { expert_source(stacked); });
  };
  rejects("gate_up is of rank 5; its shape", [](auto& s) { s.gate_up.rank = 5; });
  rejects("gate_up is [4, 6]; its shape must be [any, any, any]",
          [](auto& s) { s.gate_up.rank = 2; });
  rejects("gate_up is [4, 5, 8]; a gated activation needs an even number of rows",
          [](auto& s) { s.gate_up.shape[1] = 5; });
  rejects("down is [3, 8, 3]; its shape must be [4, any, any]",
          [](auto& s) { s.down.shape[0] = 3; });
  rejects("down is null; it must point to 96 elements", [](auto& s) { s.down.data = nullptr; });
  rejects("gate_up_bias is [4, 6, 8]; its shape must be [4, 6]",
          [](auto& s) { s.gate_up_bias = s.gate_up; });
  rejects("down_scales is [4, 6]; its shape must be [4, any, any]", [](auto& s) {
    s.down_scales = s.gate_up;
    s.down_scales.rank = 2;
  });
}

// ---- forward

/// A valid call, every optional argument in reach, and the memory behind it.
struct Call {
  explicit Call(const Layer& layer)
      : spec(layer.spec()),
        hidden(DataType::kBf16, {kTokens, spec.hidden_size}),
        output(DataType::kBf16, {kTokens, spec.hidden_size}),
        ids(DataType::kI32, {kTokens, spec.top_k}),
        weights(DataType::kF32, {kTokens, spec.top_k}),
        logits(DataType::kF32, {kTokens, spec.num_routed()}),
        input_ids(Buffer::zeros(DataType::kI64, {kTokens})),
        count(Buffer::of(DataType::kI32, {1}, {3})),
        memory(layer.workspace_bytes(kTokens) + kWorkspaceAlignment),
        workspace{memory.data(), layer.workspace_bytes(kTokens)} {
    args = {.hidden_states = hidden, .output = output};
  }
  static constexpr int64_t kTokens = 4;
  LayerSpec spec;
  Buffer hidden, output, ids, weights, logits, input_ids, count;
  GuardedMemory memory;
  Workspace workspace;
  ForwardArgs args;
};

struct ForwardRule {
  const char* layer;
  const char* message;
  std::function<void(Call&)> break_it;
};

TEST(Validation, Forward) {
  const ForwardRule rules[] = {
      {"bf16", "hidden_states is empty; its shape must be [any, 136]",
       [](Call& c) { c.args.hidden_states = {}; }},
      {"bf16", "hidden_states is [4, 135]; its shape must be [any, 136]",
       [](Call& c) { c.args.hidden_states.shape[1] = 135; }},
      {"bf16", "hidden_states is [-1, 136]; its shape must be",
       [](Call& c) { c.args.hidden_states.shape[0] = -1; }},
      {"bf16", "hidden_states is [4611686018427387904, 136]; its shape must be",
       [](Call& c) { c.args.hidden_states.shape[0] = int64_t{1} << 62; }},
      {"bf16", "tokens of hidden_states is 16777216; it must be between 0 and 16777215",
       [](Call& c) { c.args.hidden_states.shape[0] = int64_t{1} << 24; }},
      {"bf16", "hidden_states is i32; its type must be f32, bf16 or f16",
       [](Call& c) { c.args.hidden_states.type = DataType::kI32; }},
      {"bf16", "hidden_states is null; it must point to 544 elements",
       [](Call& c) { c.args.hidden_states.data = nullptr; }},
      {"bf16", "hidden_states has strides [140, 1]; it must be contiguous",
       [](Call& c) { c.args.hidden_states.strides[0] = 140; }},
      {"bf16", "hidden_states is at 0x",
       [](Call& c) { c.args.hidden_states.data = c.args.hidden_states.as<char>() + 1; }},
      {"bf16", "output is [3, 136]; its shape must be [4, 136]",
       [](Call& c) { c.args.output.shape[0] = 3; }},
      {"bf16", "output is f32; its type must be bf16",
       [](Call& c) { c.args.output.type = DataType::kF32; }},
      {"bf16", "output is null; it must point to 544 elements",
       [](Call& c) { c.args.output.data = nullptr; }},
      {"bf16", "topk_ids is [4, 1]; its shape must be [4, 2]",
       [](Call& c) {
         c.args.topk_ids = c.ids;
         c.args.topk_ids.shape[1] = 1;
       }},
      {"bf16", "topk_ids is i64; its type must be i32",
       [](Call& c) {
         c.args.topk_ids = c.ids;
         c.args.topk_ids.type = DataType::kI64;
       }},
      {"bf16", "topk_weights is empty; it must be given with topk_ids",
       [](Call& c) { c.args.topk_ids = c.ids; }},
      {"bf16", "topk_weights is given; it needs topk_ids beside it",
       [](Call& c) { c.args.topk_weights = c.weights; }},
      {"bf16", "topk_ids_out is given together with topk_ids",
       [](Call& c) {
         c.args.topk_ids = c.args.topk_ids_out = c.ids;
         c.args.topk_weights = c.weights;
       }},
      {"bf16", "router_logits is [4, 5]; its shape must be [4, 6]",
       [](Call& c) {
         c.args.router_logits = c.logits;
         c.args.router_logits.shape[1] = 5;
       }},
      {"shared_fused", "router_logits is [4, 7]; its shape must be [4, 6]",
       [](Call& c) {
         c.args.router_logits = c.logits;
         c.args.router_logits.shape[1] = 7;
       }},
      {"hash_routing", "input_ids is empty; its shape must be [4]", [](Call&) {}},
      {"hash_routing", "input_ids[2] is 64; it must be between 0 and 63",
       [](Call& c) {
         c.input_ids.as<int64_t>()[2] = 64;
         c.args.input_ids = c.input_ids;
       }},
      {"hash_routing", "input_ids[0] is -1; it must be between 0 and 63",
       [](Call& c) {
         c.input_ids.as<int64_t>()[0] = -1;
         c.args.input_ids = c.input_ids;
       }},
      {"bf16", "topk_weights_out is [4, 1]; its shape must be [4, 2]",
       [](Call& c) {
         c.args.topk_weights_out = c.weights;
         c.args.topk_weights_out.shape[1] = 1;
       }},
      {"bf16", "num_tokens is 5; it must be between 0 and 4",
       [](Call& c) {
         c.count.set(0, 5);
         c.args.num_tokens = c.count;
       }},
      {"bf16", "num_tokens is -1; it must be between 0 and 4",
       [](Call& c) {
         c.count.set(0, -1);
         c.args.num_tokens = c.count;
       }},
      {"bf16", "num_tokens is [4, 2]; its shape must be [1]",
       [](Call& c) { c.args.num_tokens = c.ids; }},
      {"bf16", "num_tokens is f32; its type must be i32",
       [](Call& c) {
         c.args.num_tokens = c.count;
         c.args.num_tokens.type = DataType::kF32;
       }},
      {"bf16", "workspace is null; this call needs", [](Call& c) { c.workspace.data = nullptr; }},
      {"bf16", "workspace has 0 bytes; this call needs", [](Call& c) { c.workspace.bytes = 0; }},
      {"bf16", "workspace has -1 bytes; this call needs", [](Call& c) { c.workspace.bytes = -1; }},
      {"bf16", "workspace is at 0x",
       [](Call& c) { c.workspace.data = static_cast<char*>(c.workspace.data) + 64; }},
  };
  for (const ForwardRule& rule : rules) {
    const LayerCase& c = test::layer_case(rule.layer);
    const RandomWeights weights(c.spec, c.weights);
    const Layer layer =
        Layer::create(c.spec, weights.weights(), {.backend = BackendKind::kReference});
    Call call(layer);
    rule.break_it(call);
    expect_rejected(rule.message, [&] { layer.forward(call.args, call.workspace); });
    EXPECT_TRUE(call.output.untouched()) << rule.message;
  }
}

TEST(Validation, ForwardOneByteShortOfTheWorkspace) {
  const LayerCase& c = test::layer_case("bf16");
  const RandomWeights weights(c.spec, c.weights);
  const Layer layer =
      Layer::create(c.spec, weights.weights(), {.backend = BackendKind::kReference});
  Call call(layer);
  const int64_t needed = call.workspace.bytes--;
  expect_rejected(
      fmt::format("workspace has {} bytes; this call needs {}", needed - 1, needed).c_str(),
      [&] { layer.forward(call.args, call.workspace); });
  expect_rejected("max_tokens is -1; it must be between 0 and 16777215",
                  [&] { layer.workspace_bytes(-1); });
  expect_rejected("max_tokens is 16777216; it must be", [&] { layer.plan(int64_t{1} << 24); });
}

TEST(Validation, LayerWithoutRouterNeedsLogits) {
  const LayerCase& c = test::layer_case("bf16");
  const RandomWeights weights(c.spec, c.weights);
  Weights without = weights.weights();
  without.router.projection = {};
  const Layer layer = Layer::create(c.spec, without, {.backend = BackendKind::kReference});
  Call call(layer);
  expect_rejected("router_logits is empty; it must be given because the layer has no router",
                  [&] { layer.forward(call.args, call.workspace); });
}

TEST(Validation, ForwardAliasing) {
  struct Alias {
    const char* message;
    std::function<void(Call&)> make;
  };
  const Alias aliases[] = {
      {"it must not overlap hidden_states", [](Call& c) { c.args.output = c.args.hidden_states; }},
      {"it must not overlap hidden_states",
       [](Call& c) {  // the last two bytes of one are the first two of the other
         c.args.output.data = c.hidden.as<char>() + c.hidden.bytes() - 2;
       }},
      {"it must not overlap router_logits",
       [](Call& c) {
         c.args.router_logits = c.logits;
         c.args.output.data = c.logits.view().data;
       }},
      {"it must not overlap topk_weights",
       [](Call& c) {
         c.args.topk_ids = c.ids;
         c.args.topk_weights = c.weights;
         c.args.output.data = c.weights.view().data;
       }},
      {"it must not overlap num_tokens",
       [](Call& c) {
         c.args.num_tokens = TensorView::contiguous(c.ids.view().data, DataType::kI32, {1});
         c.ids.set(0, 2);
         c.args.topk_ids_out = c.ids;
       }},
      {"it must not overlap output",
       [](Call& c) {
         c.args.topk_weights_out = c.weights;
         c.args.topk_weights_out.data = c.output.view().data;
       }},
      {"it must not overlap topk_ids_out",
       [](Call& c) {
         c.args.topk_ids_out = c.ids;
         c.args.topk_weights_out = c.weights;
         c.args.topk_weights_out.data = c.ids.view().data;
       }},
      {"it must not overlap output", [](Call& c) { c.args.output.data = c.workspace.data; }},
      {"it must not overlap hidden_states",
       [](Call& c) {
         c.args.hidden_states.data = static_cast<char*>(c.workspace.data) + c.workspace.bytes - 2;
       }},
  };
  const LayerCase& c = test::layer_case("bf16");
  const RandomWeights weights(c.spec, c.weights);
  const Layer layer =
      Layer::create(c.spec, weights.weights(), {.backend = BackendKind::kReference});
  for (const Alias& alias : aliases) {
    Call call(layer);
    alias.make(call);
    try {
      layer.forward(call.args, call.workspace);
      ADD_FAILURE() << "no error; expected: " << alias.message;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(std::string(error.what()).find(alias.message), std::string::npos) << error.what();
    }
  }
}

// ---- ops

TEST(Validation, Ops) {
  Buffer f32(DataType::kF32, {4, 8});
  Buffer ids(DataType::kI32, {4, 2});
  Buffer weights(DataType::kF32, {4, 2});
  Buffer ints(DataType::kI32, {64});
  Buffer floats(DataType::kF32, {64});
  Buffer blocks(DataType::kI32, {64});
  Buffer valid(DataType::kI32, {2});

  // route
  ops::RouteArgs route{.router_logits = f32, .topk_ids = ids, .topk_weights = weights};
  const auto reject_route = [&](const char* message, const RoutingSpec& spec,
                                const std::function<void(ops::RouteArgs&)>& change) {
    ops::RouteArgs broken = route;
    change(broken);
    expect_rejected(message, [&] { ops::route(spec, broken); });
  };
  expect_rejected("execution.backend is auto; an op needs cpu, cuda or reference",
                  [&] { ops::route({}, route, {.backend = BackendKind::kAuto}); });
  reject_route("router_logits is [4]; its shape must be [any, any]", {},
               [](auto& a) { a.router_logits.rank = 1; });
  reject_route("topk_weights is [4, 1]; its shape must be [4, 2]", {},
               [](auto& a) { a.topk_weights.shape[1] = 1; });
  reject_route("top_k is 9; it must be between 1 and 8", {}, [&](auto& a) {
    a.topk_ids.shape[1] = 9;
    a.topk_ids.strides[0] = 9;
  });
  reject_route("routing.num_groups is 3; it must divide the 8 routed experts", {.num_groups = 3},
               [](auto&) {});
  reject_route("tid2eid is empty; its shape must be [any, 2]", {.hash = true}, [](auto&) {});
  reject_route("selection_bias is bf16; its type must be f32", {}, [&](auto& a) {
    a.selection_bias = TensorView::contiguous(floats.view().data, DataType::kBf16, {8});
  });
  reject_route("num_fused_shared is 2; it must be between 0 and 1", {},
               [](auto& a) { a.num_fused_shared = 2; });
  reject_route("topk_ids is at 0x", {}, [&](auto& a) { a.topk_ids.data = a.router_logits.data; });

  // sort: 8 pairs over at most 8 experts in blocks of 4 need 32 rows
  ops::SortArgs sort{.topk_ids = ids,
                     .topk_weights = weights,
                     .num_experts = 8,
                     .unit_size = 4,
                     .sorted_ids = ints,
                     .sorted_weights = floats,
                     .sorted_expert_ids = blocks,
                     .num_valid_ids = valid};
  const auto reject_sort = [&](const char* message,
                               const std::function<void(ops::SortArgs&)>& change) {
    ops::SortArgs broken = sort;
    change(broken);
    expect_rejected(message, [&] { ops::sort(broken); });
  };
  reject_sort("num_experts is 0; it must be between 1 and 4096",
              [](auto& a) { a.num_experts = 0; });
  reject_sort("unit_size is 0; it must be between 1 and 4096", [](auto& a) { a.unit_size = 0; });
  reject_sort("sorted_ids has 31 elements; it must hold at least 32",
              [](auto& a) { a.sorted_ids.shape[0] = 31; });
  reject_sort("sorted_expert_ids has 7 elements; it must hold at least 8",
              [](auto& a) { a.sorted_expert_ids.shape[0] = 7; });
  reject_sort("moe_buf has 8 bytes; it must be a multiple of 16", [&](auto& a) {
    a.moe_buf = TensorView::contiguous(f32.view().data, DataType::kF32, {2});
  });
  reject_sort("num_local_tokens is 9; it must be between 0 and 4", [&](auto& a) {
    static int32_t nine = 9;
    a.num_local_tokens = TensorView::contiguous(static_cast<void*>(&nine), DataType::kI32, {1});
  });
  reject_sort("expert_mask is [64]; its shape must be [8]", [&](auto& a) { a.expert_mask = ints; });
  expect_rejected("top_k is 0; it must be between 1 and 127",
                  [] { ops::sort_capacity(1, 0, 8, 32); });
  expect_rejected("tokens is -1; it must be between 0 and 16777215",
                  [] { ops::sort_workspace_bytes(-1, 1, 8, 32); });

  // quantize, activate, combine
  Buffer codes(DataType::kF8E4m3, {4, 8});
  Buffer scales(DataType::kF32, {4, 1});
  ops::QuantizeArgs quantize{.input = f32, .values = codes, .scales = scales};
  const auto reject_quantize = [&](const char* message,
                                   const std::function<void(ops::QuantizeArgs&)>& change) {
    ops::QuantizeArgs broken = quantize;
    change(broken);
    expect_rejected(message, [&] { ops::quantize(broken); });
  };
  reject_quantize("format is bf16; quantize writes", [](auto& a) { a.format = Format::kBf16; });
  reject_quantize("values is f8_e4m3; its type must be i8",
                  [](auto& a) { a.format = Format::kInt8; });
  reject_quantize("scale block of mxfp8 is 1x128; it must be 1x32",
                  [](auto& a) { a.format = Format::kMxfp8; });
  reject_quantize("scales is [4, 1]; its shape must be [2, 1]",
                  [](auto& a) { a.scale_block.rows = 2; });
  reject_quantize("power_of_two_scales is true for int8", [](auto& a) {
    a.format = Format::kInt8;
    a.values.type = DataType::kI8;
    a.power_of_two_scales = true;
  });
  reject_quantize("scales is [4, 1]; its shape must be [4, 4]",
                  [](auto& a) { a.scale_block.cols = 2; });
  reject_quantize("global_scale is 0; it must be positive and finite",
                  [](auto& a) { a.global_scale = 0; });

  Buffer half(DataType::kF32, {4, 4});
  ops::ActivateArgs activate{.input = f32, .output = half};
  activate.bias = TensorView::contiguous(floats.view().data, DataType::kF32, {4});
  expect_rejected("bias is [4]; its shape must be [8]", [&] { ops::activate(activate); });
  activate.bias = {};
  activate.activation.kind = Activation::kRelu2;
  expect_rejected("input is [4, 8]; its shape must be [4, 4]", [&] { ops::activate(activate); });

  Buffer rows(DataType::kF32, {4, 2, 4});
  ops::CombineArgs combine{.expert_output = rows, .output = half};
  combine.topk_ids = ids;
  expect_rejected("num_experts is 0; it must be between 1 and 4096",
                  [&] { ops::combine(combine); });
  combine.topk_ids = {};
  combine.expert_mask = ints;
  expect_rejected("expert_mask is given; it needs topk_ids beside it",
                  [&] { ops::combine(combine); });
  combine.expert_mask = {};
  ops::CombineArgs huge = combine;
  huge.expert_output.shape = {int64_t{1} << 23, 127, int64_t{1} << 31, 0};
  expect_rejected("expert_output is [8388608, 127, 2147483648]; it must have at most 2^48 elements",
                  [&] { ops::combine(huge); });
  huge.expert_output.shape = {int64_t{1} << 31, int64_t{1} << 31, int64_t{1} << 31, 0};
  expect_rejected("expert_output is [2147483648, 2147483648, 2147483648]; it must have at most",
                  [&] { ops::combine(huge); });
  combine.output.data = rows.view().data;
  expect_rejected("output is at 0x", [&] { ops::combine(combine); });
}

TEST(Validation, SortedStages) {
  const LayerCase& c = test::layer_case("bf16");
  const RandomWeights weights(c.spec, c.weights);
  const ops::Experts experts =
      ops::Experts::create(c.spec, weights.weights().experts, {.backend = BackendKind::kReference});
  Buffer hidden(DataType::kF32, {4, 136});
  Buffer inner(DataType::kF32, {4, 2, 72});
  Buffer sorted_ids = Buffer::zeros(DataType::kI32, {32});
  Buffer expert_ids = Buffer::zeros(DataType::kI32, {8});
  Buffer valid = Buffer::of(DataType::kI32, {2}, {8, 4});
  GuardedMemory workspace(experts.workspace_bytes(4, 2));
  const ops::GateUpArgs good{.hidden_states = hidden,
                             .sorted_ids = sorted_ids,
                             .sorted_expert_ids = expert_ids,
                             .num_valid_ids = valid,
                             .unit_size = 4,
                             .top_k = 2,
                             .output = inner};
  const auto rejects = [&](const char* message,
                           const std::function<void(ops::GateUpArgs&)>& change) {
    ops::GateUpArgs broken = good;
    change(broken);
    expect_rejected(message, [&] { experts.gate_up(broken, workspace.workspace()); });
  };
  rejects("top_k is 0; it must be between 1 and 127", [](auto& a) { a.top_k = 0; });
  rejects("output is [4, 2, 72]; its shape must be [4, 3, 72]", [](auto& a) { a.top_k = 3; });
  rejects("sorted_expert_ids has 8 elements; it must hold at least 16",
          [](auto& a) { a.unit_size = 2; });
  valid.set(0, 33);
  rejects("num_valid_ids[0] is 33; it must be between 0 and 32", [](auto&) {});
  valid.set(0, 6);
  rejects("num_valid_ids[0] is 6; it must be whole blocks of 4", [](auto&) {});
  valid.set(0, 8);
  expert_ids.set(1, 6);
  rejects("sorted_expert_ids[1] is 6; it must be below the 6 experts", [](auto&) {});
  expert_ids.set(1, 0);
  expect_rejected("workspace has 0 bytes; this call needs", [&] { experts.gate_up(good, {}); });

  ops::DenseArgs dense{.hidden_states = hidden, .alpha = hidden, .output = hidden};
  expect_rejected("alpha is [4, 136]; its shape must be [4, 6]",
                  [&] { experts.dense(dense, workspace.workspace()); });
}

TEST(Validation, CompareAndNames) {
  const Buffer a(DataType::kF32, {2, 3});
  const Buffer b(DataType::kF32, {2, 4});
  expect_rejected("output is [2, 3]; its shape must be [2, 4]", [&] { compare(a, b); });
  expect_rejected("format is 'fp7'; it must be one of f32, f16, bf16, fp8_e4m3",
                  [] { format_from_string("fp7"); });
  expect_rejected("activation format is ''; it must be one of auto, none",
                  [] { activation_format_from_string(""); });
  expect_rejected("model is 'gpt-5'; it must be one of mixtral-8x7b", [] { model_shape("gpt-5"); });
  EXPECT_EQ(format_from_string("fp8"), Format::kFp8E4m3);
}

}  // namespace
}  // namespace switchyard
