// config.json of production models, at full size, against headers of their shapes: the LayerSpec.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <deque>

#include "checkpoint/expect_error.h"
#include "checkpoint/layer_assembly.h"
#include "switchyard/error.h"

namespace switchyard {
namespace {

using ::switchyard::testing::expect_error;

/// Tensors that exist only as headers; nothing may read their bytes.
class Headers {
 public:
  explicit Headers(std::string prefix) : prefix_(std::move(prefix)) {}

  Headers& add(const std::string& name, std::initializer_list<int64_t> shape,
               DataType type = DataType::kBf16, const char* dtype = "BF16") {
    void* const nowhere = reinterpret_cast<void*>(uintptr_t{64});
    const TensorView view = TensorView::contiguous(nowhere, type, shape);
    tensors_.push_back({.name = prefix_ + name,
                        .file = "headers",
                        .dtype = dtype,
                        .view = view,
                        .bytes = view.num_elements() * element_bytes(type)});
    return *this;
  }
  /// gate/up/down per expert; an empty gate is left out.
  Headers& experts(int64_t count, int64_t width, int64_t inner, const std::string& gate,
                   const std::string& up, const std::string& down) {
    for (int64_t e = 0; e < count; ++e) {
      const std::string base = fmt::format("experts.{}.", e);
      if (!gate.empty()) add(base + gate + ".weight", {inner, width});
      add(base + up + ".weight", {inner, width});
      add(base + down + ".weight", {width, inner});
    }
    return *this;
  }
  Headers& shared(const std::string& prefix, int64_t hidden, int64_t inner, bool gated = true) {
    if (gated) add(prefix + "gate_proj.weight", {inner, hidden});
    add(prefix + "up_proj.weight", {inner, hidden});
    return add(prefix + "down_proj.weight", {hidden, inner});
  }
  Headers& bias(const std::string& name, int64_t count) {
    return add(name, {count}, DataType::kF32, "F32");
  }

  LayerSpec resolve(const ModelConfig& config, int64_t layer) const {
    std::vector<const CheckpointTensor*> pointers;
    for (const CheckpointTensor& tensor : tensors_) pointers.push_back(&tensor);
    const ResolvedLayer resolved = resolve_layer(
        config, collect_layer(layer, pointers, config.num_experts.at(layer).value_or(0)));
    if (!resolved.tensors.coverage.complete()) {
      throw Error(ErrorCode::kInvalidFile, describe(resolved.tensors.coverage));
    }
    return resolved.spec;
  }

 private:
  std::string prefix_;
  std::deque<CheckpointTensor> tensors_;
};

struct ModelRow {
  std::string name;
  std::string config;
  Headers headers;
  int64_t layer;
  int64_t num_moe_layers;  ///< by config; 0: config does not say
  LayerSpec expected;
};

RoutingSpec softmax_routing(bool renormalize = true) { return {.renormalize = renormalize}; }
RoutingSpec sigmoid_routing(float scale, float epsilon = 1e-20f, int32_t groups = 1,
                            int32_t topk_groups = 1) {
  return {.scoring = Scoring::kSigmoid,
          .renormalize_epsilon = epsilon,
          .num_groups = groups,
          .topk_groups = topk_groups,
          .routed_scaling_factor = scale};
}

Headers w123(const std::string& prefix, int64_t e, int64_t h, int64_t i) {
  Headers headers(prefix);
  headers.add("gate.weight", {e, h}).experts(e, h, i, "w1", "w3", "w2");
  return headers;
}
Headers named(const std::string& prefix, int64_t e, int64_t h, int64_t i,
              const std::string& router = "gate") {
  Headers headers(prefix);
  headers.add(router + ".weight", {e, h}).experts(e, h, i, "gate_proj", "up_proj", "down_proj");
  return headers;
}
Headers fused(const std::string& prefix, int64_t e, int64_t h, int64_t i, bool k_major,
              const std::string& router = "gate") {
  Headers headers(prefix);
  headers.add(router + ".weight", {e, h});
  if (k_major) {
    headers.add("experts.gate_up_proj", {e, h, 2 * i}).add("experts.down_proj", {e, i, h});
  } else {
    headers.add("experts.gate_up_proj", {e, 2 * i, h}).add("experts.down_proj", {e, h, i});
  }
  return headers;
}

LayerSpec sizes(int64_t e, int64_t k, int64_t h, int64_t i, RoutingSpec routing,
                int64_t shared = 0) {
  return {.num_experts = e,
          .top_k = k,
          .hidden_size = h,
          .intermediate_size = i,
          .routing = routing,
          .shared = {.intermediate_size = shared}};
}

LayerSpec changed(LayerSpec spec, void (*change)(LayerSpec&)) {
  change(spec);
  return spec;
}

std::vector<ModelRow> softmax_models() {
  return {
      {"mixtral_8x7b",
       R"({"model_type":"mixtral","hidden_size":4096,"intermediate_size":14336,"hidden_act":"silu",
           "num_local_experts":8,"num_experts_per_tok":2,"num_hidden_layers":32})",
       w123("model.layers.5.block_sparse_moe.", 8, 4096, 14336), 5, 0,
       sizes(8, 2, 4096, 14336, softmax_routing())},
      {"qwen3_30b",
       R"({"model_type":"qwen3_moe","hidden_size":2048,"intermediate_size":6144,"hidden_act":"silu",
           "moe_intermediate_size":768,"num_experts":128,"num_experts_per_tok":8,
           "norm_topk_prob":true,"decoder_sparse_step":1,"mlp_only_layers":[],
           "num_hidden_layers":48})",
       named("model.layers.0.mlp.", 128, 2048, 768), 0, 48,
       sizes(128, 8, 2048, 768, softmax_routing())},
      {"qwen3_sparse_step",
       R"({"model_type":"qwen3_moe","hidden_size":64,"hidden_act":"silu","num_experts":4,
           "moe_intermediate_size":16,"num_experts_per_tok":2,"norm_topk_prob":false,
           "decoder_sparse_step":2,"mlp_only_layers":[3],"num_hidden_layers":8})",
       named("model.layers.5.mlp.", 4, 64, 16), 5, 3, sizes(4, 2, 64, 16, softmax_routing(false))},
      {"qwen3_next",
       R"({"model_type":"qwen3_next","hidden_size":2048,"intermediate_size":5120,
           "moe_intermediate_size":512,"num_experts":512,"num_experts_per_tok":10,
           "norm_topk_prob":true,"shared_expert_intermediate_size":512,"hidden_act":"silu",
           "decoder_sparse_step":1,"num_hidden_layers":48})",
       named("model.layers.47.mlp.", 512, 2048, 512)
           .shared("shared_expert.", 2048, 512)
           .add("shared_expert_gate.weight", {1, 2048}),
       47, 48,
       changed(sizes(512, 10, 2048, 512, softmax_routing(), 512),
               [](LayerSpec& spec) { spec.shared.sigmoid_gate = true; })},
      {"qwen35_397b",
       R"({"model_type":"qwen3_5_moe","text_config":{"model_type":"qwen3_5_moe_text",
           "hidden_size":4096,"moe_intermediate_size":1024,"num_experts":512,
           "num_experts_per_tok":10,"shared_expert_intermediate_size":1024,"hidden_act":"silu",
           "num_hidden_layers":60},"vision_config":{"hidden_size":1152,"model_type":"qwen3_5_moe",
           "hidden_act":"gelu_pytorch_tanh"}})",
       fused("model.language_model.layers.9.mlp.", 512, 4096, 1024, false)
           .shared("shared_expert.", 4096, 1024)
           .add("shared_expert_gate.weight", {1, 4096}),
       9, 0,
       changed(sizes(512, 10, 4096, 1024, softmax_routing(), 1024),
               [](LayerSpec& spec) { spec.shared.sigmoid_gate = true; })},
      {"qwen3_vl_235b",
       R"({"model_type":"qwen3_vl_moe","text_config":{"model_type":"qwen3_vl_moe_text",
           "hidden_size":4096,"moe_intermediate_size":1536,"num_experts":128,"hidden_act":"silu",
           "num_experts_per_tok":8,"decoder_sparse_step":1,"num_hidden_layers":94}})",
       fused("model.language_model.layers.0.mlp.", 128, 4096, 1536, true), 0, 94,
       sizes(128, 8, 4096, 1536, softmax_routing())},
      {"olmoe",
       R"({"model_type":"olmoe","hidden_size":2048,"intermediate_size":1024,"hidden_act":"silu",
           "num_experts":64,"num_experts_per_tok":8,"norm_topk_prob":false,
           "num_hidden_layers":16})",
       named("model.layers.0.mlp.", 64, 2048, 1024), 0, 0,
       sizes(64, 8, 2048, 1024, softmax_routing(false))},
      {"hunyuan_a13b",
       R"({"model_type":"hunyuan_v1_moe","hidden_size":4096,"intermediate_size":3072,
           "hidden_act":"silu","num_experts":64,"moe_topk":[8,8],"num_shared_expert":[1,1],
           "moe_intermediate_size":[3072,3072],"num_hidden_layers":2})",
       named("model.layers.1.mlp.", 64, 4096, 3072, "gate.wg").shared("shared_mlp.", 4096, 3072), 1,
       0, sizes(64, 8, 4096, 3072, softmax_routing(), 3072)},
      {"ernie45",
       R"({"model_type":"ernie4_5_moe","hidden_size":2560,"moe_intermediate_size":1536,
           "hidden_act":"silu","moe_num_experts":64,"moe_k":6,"moe_num_shared_experts":2,
           "moe_layer_start_index":1,"moe_layer_end_index":26,"moe_layer_interval":1,
           "num_hidden_layers":28})",
       named("model.layers.3.mlp.", 64, 2560, 1536)
           .shared("shared_experts.", 2560, 3072)
           .add("moe_statics.e_score_correction_bias", {1, 64}, DataType::kF32, "F32"),
       3, 26, sizes(64, 6, 2560, 1536, softmax_routing(), 3072)},
      {"deepseek_v2",
       R"({"model_type":"deepseek_v2","hidden_size":5120,"moe_intermediate_size":1536,
           "hidden_act":"silu","n_routed_experts":160,"num_experts_per_tok":6,"n_shared_experts":2,
           "topk_method":"group_limited_greedy","n_group":8,"topk_group":3,"norm_topk_prob":false,
           "scoring_func":"softmax","routed_scaling_factor":16.0,"first_k_dense_replace":1,
           "moe_layer_freq":1,"num_hidden_layers":60})",
       named("model.layers.1.mlp.", 160, 5120, 1536).shared("shared_experts.", 5120, 3072), 1, 59,
       sizes(160, 6, 5120, 1536,
             {.renormalize = false,
              .renormalize_epsilon = 1e-20f,
              .num_groups = 8,
              .topk_groups = 3,
              .group_score = GroupScore::kMax,
              .routed_scaling_factor = 16.0f},
             3072)},
      {"gpt_oss_120b",
       R"({"model_type":"gpt_oss","hidden_size":2880,"intermediate_size":2880,"hidden_act":"silu",
           "num_local_experts":128,"num_experts_per_tok":4,"experts_per_token":4,
           "swiglu_limit":7.0,"num_hidden_layers":36})",
       fused("model.layers.35.mlp.", 128, 2880, 2880, true, "router")
           .add("router.bias", {128})
           .add("experts.gate_up_proj_bias", {128, 5760})
           .add("experts.down_proj_bias", {128, 2880}),
       35, 0,
       changed(sizes(128, 4, 2880, 2880, softmax_routing()),
               [](LayerSpec& spec) { spec.activation.kind = Activation::kSwiGluOai; })},
      {"granite",
       R"({"model_type":"granitemoe","hidden_size":1536,"intermediate_size":512,"hidden_act":"silu",
           "num_local_experts":40,"num_experts_per_tok":8,"num_hidden_layers":32})",
       Headers("model.layers.0.block_sparse_moe.")
           .add("router.layer.weight", {40, 1536})
           .add("input_linear.weight", {40, 1024, 1536})
           .add("output_linear.weight", {40, 1536, 512}),
       0, 0, sizes(40, 8, 1536, 512, softmax_routing())},
      {"gemma4_26b",
       R"({"model_type":"gemma4","text_config":{"model_type":"gemma4_text","hidden_size":2816,
           "hidden_activation":"gelu_pytorch_tanh","num_experts":128,"top_k_experts":8,
           "moe_intermediate_size":704,"intermediate_size":2112,"enable_moe_block":true,
           "num_hidden_layers":30}})",
       fused("model.language_model.layers.0.", 128, 2816, 704, false, "router.proj")
           .add("router.scale", {2816})
           .add("router.per_expert_scale", {128}),
       0, 0,
       changed(sizes(128, 8, 2816, 704, softmax_routing()),
               [](LayerSpec& spec) { spec.activation.kind = Activation::kGeGluTanh; })},
  };
}

std::vector<ModelRow> sigmoid_models() {
  return {
      {"deepseek_v3",
       R"({"model_type":"deepseek_v3","hidden_size":7168,"moe_intermediate_size":2048,
           "intermediate_size":18432,"hidden_act":"silu","n_routed_experts":256,
           "num_experts_per_tok":8,"n_shared_experts":1,"n_group":8,"topk_group":4,
           "norm_topk_prob":true,"scoring_func":"sigmoid","topk_method":"noaux_tc",
           "routed_scaling_factor":2.5,"first_k_dense_replace":3,"moe_layer_freq":1,
           "num_hidden_layers":61})",
       named("model.layers.60.mlp.", 256, 7168, 2048)
           .shared("shared_experts.", 7168, 2048)
           .bias("gate.e_score_correction_bias", 256),
       60, 58, sizes(256, 8, 7168, 2048, sigmoid_routing(2.5f, 1e-20f, 8, 4), 2048)},
      {"kimi_k25",
       R"({"model_type":"kimi_k25","text_config":{"model_type":"kimi_k2","hidden_size":7168,
           "moe_intermediate_size":2048,"hidden_act":"silu","n_routed_experts":384,
           "num_experts_per_tok":8,"n_shared_experts":1,"n_group":1,"topk_group":1,
           "norm_topk_prob":true,"scoring_func":"sigmoid","topk_method":"noaux_tc",
           "routed_scaling_factor":2.827,"first_k_dense_replace":1,"moe_layer_freq":1,
           "num_hidden_layers":61}})",
       named("language_model.model.layers.1.mlp.", 384, 7168, 2048)
           .shared("shared_experts.", 7168, 2048)
           .bias("gate.e_score_correction_bias", 384),
       1, 60, sizes(384, 8, 7168, 2048, sigmoid_routing(2.827f), 2048)},
      {"kimi_k3",
       R"({"model_type":"kimi_k3","text_config":{"model_type":"kimi_k3","hidden_size":7168,
           "routed_expert_hidden_size":3584,"moe_intermediate_size":3072,"hidden_act":"situ",
           "situ_beta":4.0,"situ_linear_beta":25.0,"num_experts":896,"num_experts_per_token":16,
           "num_shared_experts":2,"moe_renormalize":true,"moe_router_activation_func":"sigmoid",
           "num_expert_group":1,"topk_group":1,"routed_scaling_factor":1.0,
           "first_k_dense_replace":1,"moe_layer_freq":1,"rms_norm_eps":1e-5,
           "num_hidden_layers":93}})",
       Headers("language_model.model.layers.2.block_sparse_moe.")
           .add("gate.weight", {896, 7168})
           .experts(896, 3584, 3072, "w1", "w3", "w2")
           .shared("shared_experts.", 7168, 6144)
           .bias("gate.e_score_correction_bias", 896)
           .add("routed_expert_down_proj.weight", {3584, 7168})
           .add("routed_expert_norm.weight", {3584})
           .add("routed_expert_up_proj.weight", {7168, 3584}),
       2, 92,
       changed(sizes(896, 16, 7168, 3072, sigmoid_routing(1.0f), 6144),
               [](LayerSpec& spec) {
                 spec.latent_size = 3584;
                 spec.latent_norm_epsilon = 1e-5f;
                 spec.activation.kind = Activation::kSiTu;
               })},
      {"glm_46",
       R"({"model_type":"glm4_moe","hidden_size":5120,"moe_intermediate_size":1536,
           "hidden_act":"silu","n_routed_experts":160,"num_experts_per_tok":8,"n_shared_experts":1,
           "n_group":1,"topk_group":1,"norm_topk_prob":true,"routed_scaling_factor":2.5,
           "first_k_dense_replace":3,"num_hidden_layers":92})",
       named("model.layers.3.mlp.", 160, 5120, 1536)
           .shared("shared_experts.", 5120, 1536)
           .bias("gate.e_score_correction_bias", 160),
       3, 89, sizes(160, 8, 5120, 1536, sigmoid_routing(2.5f), 1536)},
      {"glm_5",
       R"({"model_type":"glm_moe_dsa","hidden_size":6144,"moe_intermediate_size":2048,
           "hidden_act":"silu","n_routed_experts":256,"num_experts_per_tok":8,"n_shared_experts":1,
           "n_group":1,"topk_group":1,"norm_topk_prob":true,"scoring_func":"sigmoid",
           "routed_scaling_factor":2.5,"first_k_dense_replace":3,"moe_layer_freq":1,
           "num_hidden_layers":78})",
       named("model.layers.77.mlp.", 256, 6144, 2048)
           .shared("shared_experts.", 6144, 2048)
           .bias("gate.e_score_correction_bias", 256),
       77, 75, sizes(256, 8, 6144, 2048, sigmoid_routing(2.5f), 2048)},
      {"minimax_m2",
       R"({"model_type":"minimax_m2","hidden_size":3072,"intermediate_size":1536,"hidden_act":"silu",
           "num_local_experts":256,"num_experts_per_tok":8,"scoring_func":"sigmoid",
           "use_routing_bias":true,"shared_intermediate_size":0,"num_hidden_layers":62})",
       w123("model.layers.0.block_sparse_moe.", 256, 3072, 1536)
           .bias("e_score_correction_bias", 256),
       0, 0, sizes(256, 8, 3072, 1536, sigmoid_routing(1.0f, 0.0f))},
      {"minimax_m3",
       R"({"model_type":"minimax_m3_vl","text_config":{"model_type":"minimax_m3_vl_text",
           "hidden_size":6144,"intermediate_size":3072,"dense_intermediate_size":12288,
           "shared_intermediate_size":3072,"hidden_act":"silu","swiglu_alpha":1.702,
           "swiglu_limit":7.0,"num_local_experts":128,"num_experts_per_tok":4,
           "routed_scaling_factor":2.0,"scoring_func":"sigmoid","num_hidden_layers":4,
           "mlp_layer_types":["dense","sparse","sparse","sparse"]}})",
       w123("language_model.model.layers.1.block_sparse_moe.", 128, 6144, 3072)
           .bias("e_score_correction_bias", 128)
           .shared("shared_experts.", 6144, 3072),
       1, 3,
       changed(sizes(128, 4, 6144, 3072, sigmoid_routing(2.0f, 0.0f), 3072),
               [](LayerSpec& spec) { spec.activation.kind = Activation::kSwiGluOai; })},
      {"llama4_maverick",
       R"({"model_type":"llama4","text_config":{"model_type":"llama4_text","hidden_size":5120,
           "intermediate_size":8192,"intermediate_size_mlp":16384,"hidden_act":"silu",
           "num_local_experts":128,"num_experts_per_tok":1,"interleave_moe_layer_step":2,
           "num_hidden_layers":48}})",
       fused("language_model.model.layers.1.feed_forward.", 128, 5120, 8192, true, "router")
           .shared("shared_expert.", 5120, 8192),
       1, 24,
       changed(
           sizes(128, 1, 5120, 8192, {.scoring = Scoring::kSigmoid, .renormalize = false}, 8192),
           [](LayerSpec& spec) { spec.weight_position = WeightPosition::kInput; })},
      {"hy3",
       R"({"model_type":"hy_v3","hidden_size":4096,"intermediate_size":13312,
           "moe_intermediate_size":1536,"hidden_act":"silu","num_experts":192,
           "num_experts_per_tok":8,"num_shared_experts":1,"router_scaling_factor":2.826,
           "first_k_dense_replace":1,"num_hidden_layers":80})",
       named("model.layers.79.mlp.", 192, 4096, 1536, "router.gate")
           .bias("expert_bias", 192)
           .shared("shared_mlp.", 4096, 1536),
       79, 79, sizes(192, 8, 4096, 1536, sigmoid_routing(2.826f), 1536)},
      {"nemotron3_super",
       R"({"model_type":"nemotron_h","hidden_size":4096,"moe_latent_size":1024,
           "moe_intermediate_size":2688,"moe_shared_expert_intermediate_size":5376,
           "mlp_hidden_act":"relu2","n_routed_experts":512,"num_experts_per_tok":22,
           "n_shared_experts":1,"n_group":1,"topk_group":1,"norm_topk_prob":true,
           "routed_scaling_factor":5.0,"hybrid_override_pattern":"MEM*EME-",
           "time_step_limit":[0.0,Infinity],"num_hidden_layers":8})",
       Headers("backbone.layers.4.mixer.")
           .add("gate.weight", {512, 4096})
           .experts(512, 1024, 2688, "", "up_proj", "down_proj")
           .shared("shared_experts.", 4096, 5376, false)
           .bias("gate.e_score_correction_bias", 512)
           .add("fc1_latent_proj.weight", {1024, 4096})
           .add("fc2_latent_proj.weight", {4096, 1024}),
       4, 3,
       changed(sizes(512, 22, 4096, 2688, sigmoid_routing(5.0f), 5376),
               [](LayerSpec& spec) {
                 spec.latent_size = 1024;
                 spec.activation.kind = Activation::kRelu2;
               })},
      {"nemotron3_nano",
       R"({"model_type":"nemotron_h","hidden_size":2688,"moe_intermediate_size":1856,
           "moe_shared_expert_intermediate_size":3712,"mlp_hidden_act":"relu2",
           "n_routed_experts":128,"num_experts_per_tok":6,"n_shared_experts":1,
           "norm_topk_prob":true,"routed_scaling_factor":2.5,
           "layers_block_type":["linear_attention","moe","full_attention","moe"]})",
       Headers("backbone.layers.3.mixer.")
           .add("gate.weight", {128, 2688})
           .experts(128, 2688, 1856, "", "up_proj", "down_proj")
           .shared("shared_experts.", 2688, 3712, false)
           .bias("gate.e_score_correction_bias", 128),
       3, 2,
       changed(sizes(128, 6, 2688, 1856, sigmoid_routing(2.5f), 3712),
               [](LayerSpec& spec) { spec.activation.kind = Activation::kRelu2; })},
      {"mimo_v2",
       R"({"model_type":"mimo_v2_flash","hidden_size":4096,"moe_intermediate_size":2048,
           "hidden_act":"silu","n_routed_experts":256,"num_experts_per_tok":8,
           "n_shared_experts":null,"n_group":1,"topk_group":1,"norm_topk_prob":true,
           "scoring_func":"sigmoid","routed_scaling_factor":null,"moe_layer_freq":[0,1,1,1],
           "num_hidden_layers":4})",
       named("model.layers.1.mlp.", 256, 4096, 2048).bias("gate.e_score_correction_bias", 256), 1,
       3, sizes(256, 8, 4096, 2048, sigmoid_routing(1.0f))},
      {"lfm2_8b",
       R"({"model_type":"lfm2_moe","hidden_size":2048,"moe_intermediate_size":1792,"num_experts":32,
           "num_experts_per_tok":4,"norm_topk_prob":true,"use_expert_bias":true,
           "routed_scaling_factor":1.0,"num_dense_layers":2,"num_hidden_layers":24})",
       w123("model.layers.2.feed_forward.", 32, 2048, 1792).bias("expert_bias", 32), 2, 22,
       sizes(32, 4, 2048, 1792, sigmoid_routing(1.0f, 1e-6f))},
  };
}

std::vector<ModelRow> deepseek_v4_models() {
  const char* config = R"({"model_type":"deepseek_v4","hidden_size":4096,
      "moe_intermediate_size":2048,"hidden_act":"silu","n_routed_experts":256,
      "num_experts_per_tok":6,"n_shared_experts":1,"scoring_func":"sqrtsoftplus",
      "topk_method":"noaux_tc","norm_topk_prob":true,"routed_scaling_factor":1.5,
      "swiglu_limit":10.0,"num_hash_layers":3,"num_hidden_layers":43,"expert_dtype":"fp4",
      "quantization_config":{"quant_method":"fp8","weight_block_size":[128,128],
      "scale_fmt":"ue8m0"}})";
  const auto headers = [](int64_t layer) {
    return w123(fmt::format("layers.{}.ffn.", layer), 256, 4096, 2048)
        .add("shared_experts.w1.weight", {2048, 4096})
        .add("shared_experts.w3.weight", {2048, 4096})
        .add("shared_experts.w2.weight", {4096, 2048});
  };
  RoutingSpec routing = sigmoid_routing(1.5f);
  routing.scoring = Scoring::kSqrtSoftplus;
  LayerSpec spec = sizes(256, 6, 4096, 2048, routing, 2048);
  spec.activation.kind = Activation::kSwiGluClamp;
  spec.activation.limit = 10.0f;
  LayerSpec hashed = spec;
  hashed.routing.hash = true;
  return {
      {"deepseek_v4_flash", config, headers(3).bias("gate.bias", 256), 3, 43, spec},
      {"deepseek_v4_flash_hash", config,
       headers(2).add("gate.tid2eid", {129280, 6}, DataType::kI64, "I64"), 2, 43, hashed},
  };
}

void expect_models(const std::vector<ModelRow>& rows) {
  for (const ModelRow& row : rows) {
    SCOPED_TRACE(row.name);
    const ModelConfig config = parse_model_config(row.config, "config.json");
    const auto num_moe = std::count_if(
        config.layer_kinds.begin(), config.layer_kinds.end(),
        [](LayerKind kind) { return kind == LayerKind::kMoe || kind == LayerKind::kHashMoe; });
    EXPECT_EQ(num_moe, row.num_moe_layers);
    const LayerSpec spec = row.headers.resolve(config, row.layer);
    EXPECT_EQ(spec.num_experts, row.expected.num_experts);
    EXPECT_EQ(spec.top_k, row.expected.top_k);
    EXPECT_EQ(spec.hidden_size, row.expected.hidden_size);
    EXPECT_EQ(spec.intermediate_size, row.expected.intermediate_size);
    EXPECT_EQ(spec.latent_size, row.expected.latent_size);
    EXPECT_EQ(spec.routing.scoring, row.expected.routing.scoring);
    EXPECT_EQ(spec.routing.renormalize, row.expected.routing.renormalize);
    EXPECT_EQ(spec.routing.renormalize_epsilon, row.expected.routing.renormalize_epsilon);
    EXPECT_EQ(spec.activation.kind, row.expected.activation.kind);
    EXPECT_EQ(spec, row.expected);
  }
}

TEST(ModelConfig, SoftmaxModelsAtFullSize) { expect_models(softmax_models()); }
TEST(ModelConfig, SigmoidModelsAtFullSize) { expect_models(sigmoid_models()); }
TEST(ModelConfig, DeepSeekV4AtFullSize) { expect_models(deepseek_v4_models()); }

TEST(ModelConfig, AnUnknownModelThatSaysEverythingIsRead) {
  const ModelConfig config = parse_model_config(
      R"({"model_type":"new_moe","hidden_act":"silu","num_experts_per_tok":2,
          "scoring_func":"sigmoid","norm_topk_prob":false})",
      "config.json");
  const LayerSpec spec = named("model.layers.0.mlp.", 4, 64, 16).resolve(config, 0);
  EXPECT_EQ(
      spec,
      sizes(4, 2, 64, 16,
            {.scoring = Scoring::kSigmoid, .renormalize = false, .renormalize_epsilon = 1e-20f}));
}

struct BadConfig {
  const char* config;
  ErrorCode code;
  const char* message;
};

/// Each is read against the headers of one small Mixtral-like layer.
const BadConfig kBadConfigs[] = {
    {"", ErrorCode::kInvalidFile, "not valid JSON"},
    {"[]", ErrorCode::kInvalidFile, "no JSON object"},
    {R"({"model_type":"new","num_experts_per_tok":2,"hidden_act":"silu"})", ErrorCode::kInvalidFile,
     "scoring_func is absent and model_type 'new'"},
    {R"({"model_type":"new","num_experts_per_tok":2,"hidden_act":"silu","scoring_func":"sigmoid"})",
     ErrorCode::kInvalidFile, "norm_topk_prob is absent"},
    {R"({"model_type":"mixtral","hidden_act":"silu"})", ErrorCode::kInvalidFile,
     "num_experts_per_tok is absent"},
    {R"({"model_type":"mixtral","num_experts_per_tok":2,"hidden_act":"mish"})",
     ErrorCode::kUnsupported, "hidden_act is 'mish'"},
    {R"({"model_type":"mixtral","num_experts_per_tok":2})", ErrorCode::kInvalidFile,
     "hidden_act is ''"},
    {R"({"model_type":"new","num_experts_per_tok":2,"scoring_func":"softmax",
         "norm_topk_prob":true})",
     ErrorCode::kInvalidFile, "hidden_act is ''"},
    {R"({"model_type":"mixtral","num_experts_per_tok":2,"hidden_act":"relu2"})",
     ErrorCode::kInvalidFile, "hidden_act is relu2; layer 0 says a gate matrix exists"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"num_local_experts":8})",
     ErrorCode::kInvalidFile, "num_local_experts is 8; layer 0 says 4"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"hidden_size":65})",
     ErrorCode::kInvalidFile, "hidden_size is 65; layer 0 says 64"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"intermediate_size":17})",
     ErrorCode::kInvalidFile, "intermediate_size is 17; layer 0 says 16"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":5})",
     ErrorCode::kInvalidFile, "num_experts_per_tok is 5; the layer has 4"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"experts_per_token":3})",
     ErrorCode::kInvalidFile, "experts_per_token is 3; must agree with 'num_experts_per_tok'"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":"2"})",
     ErrorCode::kInvalidFile, R"(num_experts_per_tok is "2"; must be an integer in [1, 127])"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":-1})",
     ErrorCode::kInvalidFile, "must be an integer in [1, 127]"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":1e300})",
     ErrorCode::kInvalidFile, "must be an integer"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":18446744073709551615})",
     ErrorCode::kInvalidFile, "must be an integer"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"hidden_size":99999999999})",
     ErrorCode::kInvalidFile, "hidden_size is 99999999999"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"routed_scaling_factor":1e300})",
     ErrorCode::kInvalidFile, "routed_scaling_factor is 1e+300"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"norm_topk_prob":1})",
     ErrorCode::kInvalidFile, "norm_topk_prob is 1; must be true or false"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"scoring_func":"relu"})",
     ErrorCode::kInvalidFile, R"(scoring_func is "relu"; must be softmax)"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"n_group":3,"topk_group":1})",
     ErrorCode::kInvalidFile, "n_group is 3 and topk_group 1; groups must divide 4"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"n_group":2,"topk_group":3})",
     ErrorCode::kInvalidFile, "n_group is 2 and topk_group 3"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"n_group":4,"topk_group":1})",
     ErrorCode::kInvalidFile, "hold only 1"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"zero_expert_num":2})",
     ErrorCode::kUnsupported, "zero_expert_num is 2"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"num_hidden_layers":2,
         "first_k_dense_replace":1})",
     ErrorCode::kInvalidFile, "such that layer 0 is dense; layer 0 says MoE"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"mlp_layer_types":["moe","odd"]})",
     ErrorCode::kInvalidFile, R"(mlp_layer_types is "odd")"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"hybrid_override_pattern":"MX"})",
     ErrorCode::kInvalidFile, "must consist of M, E, * and -"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"text_config":[]})",
     ErrorCode::kInvalidFile, "text_config is []; must be an object"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,
         "quantization_config":{"quant_method":"bitsandbytes"}})",
     ErrorCode::kUnsupported, "quant_method is 'bitsandbytes'"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,"quantization_config":{}})",
     ErrorCode::kUnsupported, "quant_method is ''"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,
         "quantization_config":{"quant_method":"gptq","bits":8}})",
     ErrorCode::kUnsupported, "gptq bits is 8"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,
         "quantization_config":{"quant_method":"awq","bits":4,"version":"gemv"}})",
     ErrorCode::kUnsupported, "awq version is 'gemv'"},
    {R"({"model_type":"mixtral","hidden_act":"silu","num_experts_per_tok":2,
         "quantization_config":{"quant_method":"fp8","weight_block_size":[128]}})",
     ErrorCode::kInvalidFile, "weight_block_size is [128]; must be [rows, cols]"},
    {R"({"model_type":"deepseek_v3","num_experts_per_tok":2,"hidden_act":"silu"})",
     ErrorCode::kInvalidFile, "e_score_correction_bias"},
};

TEST(ModelConfig, BadConfigsAreNamedErrors) {
  const Headers headers = named("model.layers.0.mlp.", 4, 64, 16);
  for (const BadConfig& row : kBadConfigs) {
    SCOPED_TRACE(row.config);
    expect_error(row.code, row.message,
                 [&] { headers.resolve(parse_model_config(row.config, "config.json"), 0); });
  }
}

TEST(ModelConfig, ModelOptSaysItInAFileOfItsOwn) {
  ModelConfig config = parse_model_config(R"({"model_type":"mixtral"})", "config.json");
  merge_hf_quant_config(config, R"({"producer":{"name":"modelopt"},
      "quantization":{"quant_algo":"NVFP4","group_size":16}})",
                        "hf_quant_config.json");
  EXPECT_EQ(config.quantization.method, "modelopt");
  EXPECT_EQ(config.quantization.block_cols, 16);
}

}  // namespace
}  // namespace switchyard
