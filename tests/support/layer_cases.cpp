#include "support/layer_cases.h"

#include <stdexcept>

#include "switchyard/models.h"

namespace switchyard::test {
namespace {

/// Sizes that are no multiple of a panel, a block of 128 or a group of 32.
LayerSpec base(Format format = Format::kBf16) {
  return with_format({.num_experts = 6, .top_k = 2, .hidden_size = 136, .intermediate_size = 72},
                     format);
}

class Table {
 public:
  std::vector<LayerCase> take() { return std::move(cases_); }

  LayerCase& add(const std::string& name, const LayerSpec& spec) {
    cases_.push_back({name, spec, {.seed = 100 + cases_.size()}});
    return cases_.back();
  }

  void formats() {
    for (Format format :
         {Format::kF32, Format::kF16, Format::kBf16, Format::kFp8E4m3, Format::kFp8E5m2,
          Format::kInt8, Format::kInt4, Format::kMxfp4, Format::kMxfp8, Format::kNvfp4})
      add(to_string(format), base(format));
    add("fp8_per_tensor", base(Format::kFp8E4m3)).spec.weight_scale_block = {0, 0};
    LayerCase& channel = add("fp8_per_channel_bf16_scales", base(Format::kFp8E4m3));
    channel.spec.weight_scale_block = {1, 0};
    channel.weights.matrix.scale_type = DataType::kBf16;
    LayerCase& ue8m0 = add("fp8_ue8m0_scales", base(Format::kFp8E4m3));
    ue8m0.weights.matrix.scale_type = DataType::kF8E8m0;
    LayerCase& block32 = add("fp8_blocks_32x32", base(Format::kFp8E4m3));
    block32.spec.weight_scale_block = {32, 32};
    add("int8_group32", base(Format::kInt8)).spec.weight_scale_block = {1, 32};
    add("int8_smooth", base(Format::kInt8)).weights.matrix.smooth_scales = true;
    LayerCase& words = add("int4_bf16_scales_int32_words", base(Format::kInt4));
    words.weights.matrix.scale_type = DataType::kBf16;
    words.weights.matrix.int32_words = true;
    LayerCase& zeros = add("int4_group128_zero_points", base(Format::kInt4));
    zeros.spec.weight_scale_block = {1, 128};
    zeros.weights.matrix.zero_points = true;
    LayerCase& actorder = add("int4_actorder", base(Format::kInt4));
    actorder.weights.matrix.group_index = true;
  }

  void orientations() {
    add("bf16_transposed", base()).weights.matrix.transposed = true;
    LayerCase& oss = add("bf16_transposed_interleaved", base());
    oss.weights.matrix.transposed = true;
    oss.weights.gate_up = GateUpStorage::kInterleaved;
    add("mxfp4_interleaved", base(Format::kMxfp4)).weights.gate_up = GateUpStorage::kInterleaved;
    add("fp8_cut_inside_a_block", base(Format::kFp8E4m3)).weights.gate_up =
        GateUpStorage::kConcatenated;
    LayerCase& awq = add("int4_concatenated_zero_points", base(Format::kInt4));
    awq.weights.gate_up = GateUpStorage::kConcatenated;
    awq.weights.matrix.zero_points = true;
  }

  void activations() {
    for (Activation kind :
         {Activation::kSwiGluClamp, Activation::kSwiGluOai, Activation::kGeGluTanh,
          Activation::kGeGlu, Activation::kSiTu, Activation::kRelu2}) {
      LayerCase& c = add(to_string(kind), base());
      c.spec.activation.kind = kind;
      c.spec.activation.limit = 1.5f;  // low enough to matter
      c.weights.biases = true;
    }
    LayerCase& linear = add("situ_plain_up", base());
    linear.spec.activation = {.kind = Activation::kSiTu, .linear_beta = 0.0f};
    LayerCase& oss = add("gpt_oss_like", base(Format::kMxfp4));
    oss.spec.activation.kind = Activation::kSwiGluOai;
    oss.weights.biases = true;
    oss.weights.logit_bias = true;
    oss.weights.gate_up = GateUpStorage::kInterleaved;
    LayerCase& biases = add("f32_biases_int8", base(Format::kInt8));
    biases.weights.biases = true;
    biases.weights.bias_type = DataType::kF32;
  }

  void sizes() {
    const auto sized = [&](const char* name, Format format, int64_t hidden, int64_t inner,
                           int64_t num_experts, int64_t top_k) {
      LayerSpec spec = base(format);
      spec.hidden_size = hidden;
      spec.intermediate_size = inner;
      spec.num_experts = num_experts;
      spec.top_k = top_k;
      add(name, spec);
    };
    sized("one_expert", Format::kBf16, 40, 24, 1, 1);
    sized("every_expert", Format::kMxfp4, 64, 64, 5, 5);
    sized("panel_minus_one", Format::kBf16, 63, 31, 4, 2);
    sized("panel_plus_one", Format::kInt8, 65, 33, 4, 2);
    sized("panel_exact", Format::kMxfp4, 128, 64, 4, 2);
    sized("tiny", Format::kBf16, 2, 1, 3, 2);
    sized("many_experts", Format::kBf16, 24, 16, 130, 8);
    sized("fp8_wide", Format::kFp8E4m3, 300, 260, 3, 2);
  }

  void blocks() {
    const auto shared = [](LayerCase& c, bool gated) {
      c.spec.shared = {.intermediate_size = 88, .sigmoid_gate = gated};
    };
    shared(add("shared_plain", base(Format::kInt4)), false);
    shared(add("shared_gated", base()), true);
    LayerCase& same = add("shared_mxfp4_relu2", base(Format::kMxfp4));
    shared(same, false);
    same.spec.activation.kind = Activation::kRelu2;
    same.weights.shared_format = Format::kMxfp4;
    LayerCase& fused = add("shared_fused", base(Format::kFp8E4m3));
    fused.spec.num_experts = 7;
    fused.spec.top_k = 3;
    fused.spec.num_fused_shared = 1;
    fused.spec.fused_shared_weight = 0.4f;
    add("weight_on_input", base()).spec.weight_position = WeightPosition::kInput;
    LayerCase& llama = add("llama_4_like", base());
    llama.spec.top_k = 1;
    llama.spec.weight_position = WeightPosition::kInput;
    llama.spec.routing = {.scoring = Scoring::kSigmoid, .renormalize = false};
    shared(llama, false);
    llama.weights.gate_up = GateUpStorage::kConcatenated;
    llama.weights.matrix.transposed = true;
    LayerCase& latent = add("latent", base());
    latent.spec.latent_size = 56;
    LayerCase& k3 = add("kimi_k3_like", base(Format::kMxfp4));
    k3.spec.latent_size = 56;
    k3.spec.latent_norm_epsilon = 1e-5f;
    k3.spec.activation.kind = Activation::kSiTu;
    k3.spec.routing = {.scoring = Scoring::kSigmoid, .renormalize_epsilon = 1e-20f};
    k3.weights.selection_bias = true;
    shared(k3, false);
  }

  void routings() {
    LayerCase& v3 = add("deepseek_v3_like", base(Format::kFp8E4m3));
    v3.spec.num_experts = 16;
    v3.spec.top_k = 4;
    v3.spec.routing = {.scoring = Scoring::kSigmoid,
                       .renormalize_epsilon = 1e-20f,
                       .num_groups = 4,
                       .topk_groups = 2,
                       .routed_scaling_factor = 2.5f};
    v3.spec.shared.intermediate_size = 72;
    v3.weights.selection_bias = true;
    v3.weights.shared_format = Format::kFp8E4m3;
    LayerCase& hash = add("hash_routing", base());
    hash.spec.routing = {
        .scoring = Scoring::kSqrtSoftplus, .routed_scaling_factor = 1.5f, .hash = true};
    LayerCase& gemma = add("gemma_4_like", base());
    gemma.spec.activation.kind = Activation::kGeGluTanh;
    gemma.weights.input_norm = true;
    gemma.weights.per_expert_scale = true;
  }

  /// Shared experts stored like the routed ones: one backend or another makes them routed ones.
  void shared_alike() {
    const auto alike = [&](const char* name, Format format, int64_t inner, int64_t count) {
      LayerCase& c = add(name, base(format));
      c.spec.intermediate_size = inner;
      c.spec.shared.intermediate_size = count * inner;
      c.weights.shared_format = format;
      return &c;
    };
    LayerCase* bf16 = alike("shared_alike_bf16", Format::kBf16, 72, 1);
    bf16->spec.activation.kind = Activation::kSwiGluOai;
    bf16->weights.biases = true;
    alike("shared_alike_gated", Format::kBf16, 72, 1)->spec.shared.sigmoid_gate = true;
    alike("shared_alike_fp8", Format::kFp8E4m3, 128, 1);
    alike("shared_twice_bf16", Format::kBf16, 40, 2)->weights.biases = true;
    alike("shared_twice_fp8", Format::kFp8E4m3, 128, 2);
    LayerCase* mxfp4 = alike("shared_twice_mxfp4", Format::kMxfp4, 64, 2);
    mxfp4->spec.activation.kind = Activation::kRelu2;
    mxfp4->spec.weight_position = WeightPosition::kInput;
    alike("shared_thrice_int8", Format::kInt8, 48, 3);
  }

 private:
  std::vector<LayerCase> cases_;
};

}  // namespace

const std::vector<LayerCase>& layer_cases() {
  static const std::vector<LayerCase> cases = [] {
    Table table;
    table.formats();
    table.orientations();
    table.activations();
    table.sizes();
    table.blocks();
    table.routings();
    table.shared_alike();
    return table.take();
  }();
  return cases;
}

const LayerCase& layer_case(const std::string& name) {
  for (const LayerCase& c : layer_cases())
    if (c.name == name) return c;
  throw std::out_of_range("no layer case " + name);
}

}  // namespace switchyard::test
