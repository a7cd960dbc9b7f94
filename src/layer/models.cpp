// The built-in table of production layer shapes: facts of published configs, one row per model, and
// the shards that are served (tensor parallel divides I, expert parallel divides E).

#include "switchyard/models.h"

#include <fmt/format.h>

#include <algorithm>

#include "switchyard/error.h"

namespace switchyard {
namespace {

constexpr float kDeepSeekEpsilon = 1e-20f;

/// Softmax over all experts, top-k, weights divided by their sum.
constexpr RoutingSpec kSoftmaxTopK{};

/// Sigmoid scores; one group unless said otherwise.
constexpr RoutingSpec sigmoid_routing(float scaling, int32_t num_groups = 1,
                                      int32_t topk_groups = 1) {
  return {.scoring = Scoring::kSigmoid,
          .renormalize_epsilon = kDeepSeekEpsilon,
          .num_groups = num_groups,
          .topk_groups = topk_groups,
          .routed_scaling_factor = scaling};
}

constexpr RoutingSpec sqrt_softplus_routing(float scaling) {
  return {.scoring = Scoring::kSqrtSoftplus,
          .renormalize_epsilon = kDeepSeekEpsilon,
          .routed_scaling_factor = scaling};
}

/// Llama-4: the score of the single choice is used as it is.
constexpr RoutingSpec kSigmoidTop1{.scoring = Scoring::kSigmoid, .renormalize = false};

constexpr ActivationSpec kSwiGlu{};
constexpr ActivationSpec kSwiGluClamp10{.kind = Activation::kSwiGluClamp, .limit = 10.0f};
constexpr ActivationSpec kSwiGluOai{.kind = Activation::kSwiGluOai};
constexpr ActivationSpec kSiTu{.kind = Activation::kSiTu};
constexpr ActivationSpec kRelu2{.kind = Activation::kRelu2};
constexpr ActivationSpec kGeGluTanh{.kind = Activation::kGeGluTanh};

/// Scores compared one by one come with a bias that balances the experts; Llama-4's do not.
constexpr bool has_selection_bias(const RoutingSpec& routing) {
  return routing.scoring != Scoring::kSoftmax && routing.renormalize;
}

ScaleBlock usual_scale_block(Format format) {
  switch (format) {
    case Format::kFp8E4m3:
    case Format::kFp8E5m2: return {128, 128};
    case Format::kInt8: return {1, 0};
    case Format::kInt4:
    case Format::kMxfp4:
    case Format::kMxfp8: return {1, 32};
    case Format::kNvfp4: return {1, 16};
    default: return {};
  }
}

std::vector<ModelShape> full_models() {
  const auto spec = [](int64_t hidden, int64_t intermediate, int64_t num_experts, int64_t top_k,
                       const RoutingSpec& routing, const ActivationSpec& activation,
                       Format format) {
    return with_format({.num_experts = num_experts,
                        .top_k = top_k,
                        .hidden_size = hidden,
                        .intermediate_size = intermediate,
                        .routing = routing,
                        .activation = activation},
                       format);
  };
  const auto shared = [](LayerSpec s, int64_t intermediate, bool sigmoid_gate = false) {
    s.shared = {.intermediate_size = intermediate, .sigmoid_gate = sigmoid_gate};
    return s;
  };
  const auto latent = [](LayerSpec s, int64_t size, float norm_epsilon) {
    s.latent_size = size;
    s.latent_norm_epsilon = norm_epsilon;
    return s;
  };
  const auto weight_on_input = [](LayerSpec s) {
    s.weight_position = WeightPosition::kInput;
    return s;
  };
  const RoutingSpec deepseek_v3 = sigmoid_routing(2.5f, 8, 4);
  const RoutingSpec kimi_k2 = sigmoid_routing(2.827f);
  constexpr Format kBf16 = Format::kBf16;
  constexpr Format kFp8 = Format::kFp8E4m3;
  constexpr Format kInt4 = Format::kInt4;
  constexpr Format kMxfp4 = Format::kMxfp4;
  constexpr Format kMxfp8 = Format::kMxfp8;

  return {
      {"mixtral-8x7b", "Mixtral 8x7B", "", spec(4096, 14336, 8, 2, kSoftmaxTopK, kSwiGlu, kBf16)},
      {"mixtral-8x22b", "Mixtral 8x22B", "", spec(6144, 16384, 8, 2, kSoftmaxTopK, kSwiGlu, kBf16)},
      {"qwen3-30b-a3b", "Qwen3-30B-A3B", "", spec(2048, 768, 128, 8, kSoftmaxTopK, kSwiGlu, kBf16)},
      {"qwen3-235b-a22b", "Qwen3-235B-A22B", "",
       spec(4096, 1536, 128, 8, kSoftmaxTopK, kSwiGlu, kFp8)},
      {"qwen3-next-80b", "Qwen3-Next-80B-A3B", "",
       shared(spec(2048, 512, 512, 10, kSoftmaxTopK, kSwiGlu, kBf16), 512, true)},
      {"qwen3.5-35b-a3b", "Qwen3.5-35B-A3B", "",
       shared(spec(2048, 512, 256, 8, kSoftmaxTopK, kSwiGlu, kBf16), 512, true)},
      {"qwen3.5-397b", "Qwen3.5-397B-A17B", "",
       shared(spec(4096, 1024, 512, 10, kSoftmaxTopK, kSwiGlu, kFp8), 1024, true)},
      {"deepseek-r1", "DeepSeek-V3 / R1", "",
       shared(spec(7168, 2048, 256, 8, deepseek_v3, kSwiGlu, kFp8), 2048)},
      {"deepseek-v4-flash", "DeepSeek-V4-Flash", "",
       shared(spec(4096, 2048, 256, 6, sqrt_softplus_routing(1.5f), kSwiGluClamp10, kMxfp4), 2048)},
      {"deepseek-v4-pro", "DeepSeek-V4-Pro", "",
       shared(spec(7168, 3072, 384, 6, sqrt_softplus_routing(2.5f), kSwiGluClamp10, kMxfp4), 3072)},
      {"kimi-k2", "Kimi-K2-Instruct", "",
       shared(spec(7168, 2048, 384, 8, kimi_k2, kSwiGlu, kFp8), 2048)},
      {"kimi-k2-thinking", "Kimi-K2-Thinking / K2.5", "INT4 routed experts, bf16 shared expert",
       shared(spec(7168, 2048, 384, 8, kimi_k2, kSwiGlu, kInt4), 2048)},
      {"kimi-k3", "Kimi-K3", "latent experts",
       latent(shared(spec(7168, 3072, 896, 16, sigmoid_routing(1.0f), kSiTu, kMxfp4), 6144), 3584,
              1e-5f)},
      {"gpt-oss-20b", "gpt-oss-20b", "", spec(2880, 2880, 32, 4, kSoftmaxTopK, kSwiGluOai, kMxfp4),
       true},
      {"gpt-oss-120b", "gpt-oss-120b", "",
       spec(2880, 2880, 128, 4, kSoftmaxTopK, kSwiGluOai, kMxfp4), true},
      {"glm-4.5", "GLM-4.5 / 4.6 / 4.7", "",
       shared(spec(5120, 1536, 160, 8, sigmoid_routing(2.5f), kSwiGlu, kBf16), 1536)},
      {"glm-4.5-air", "GLM-4.5-Air", "",
       shared(spec(4096, 1408, 128, 8, sigmoid_routing(1.0f), kSwiGlu, kBf16), 1408)},
      {"glm-5", "GLM-5", "",
       shared(spec(6144, 2048, 256, 8, sigmoid_routing(2.5f), kSwiGlu, kFp8), 2048)},
      {"minimax-m2", "MiniMax-M2 / M2.5", "",
       spec(3072, 1536, 256, 8, sigmoid_routing(1.0f), kSwiGlu, kFp8)},
      {"minimax-m3", "MiniMax-M3", "",
       shared(spec(6144, 3072, 128, 4, sigmoid_routing(2.0f), kSwiGluOai, kMxfp8), 3072)},
      {"llama-4-scout", "Llama-4 Scout", "weight on the input",
       weight_on_input(shared(spec(5120, 8192, 16, 1, kSigmoidTop1, kSwiGlu, kBf16), 8192))},
      {"llama-4-maverick", "Llama-4 Maverick", "weight on the input",
       weight_on_input(shared(spec(5120, 8192, 128, 1, kSigmoidTop1, kSwiGlu, kBf16), 8192))},
      {"hunyuan-a13b", "Hunyuan-A13B", "",
       shared(spec(4096, 3072, 64, 8, kSoftmaxTopK, kSwiGlu, kBf16), 3072)},
      {"hy3", "Tencent Hy3", "",
       shared(spec(4096, 1536, 192, 8, sigmoid_routing(2.826f), kSwiGlu, kBf16), 1536)},
      {"nemotron-3-super", "Nemotron-3 Super 120B", "latent experts, no gate matrix",
       latent(shared(spec(4096, 2688, 512, 22, sigmoid_routing(5.0f), kRelu2, kBf16), 5376), 1024,
              0.0f)},
      {"nemotron-3-nano", "Nemotron-3 Nano 30B", "no gate matrix",
       shared(spec(2688, 1856, 128, 6, sigmoid_routing(2.5f), kRelu2, kBf16), 3712)},
      {"gemma-4-26b-a4b", "Gemma-4 26B-A4B", "normed router input, per-expert scale",
       spec(2816, 704, 128, 8, kSoftmaxTopK, kGeGluTanh, kBf16)},
      {"mimo-v2.5-pro", "MiMo-V2.5-Pro", "",
       spec(6144, 2048, 384, 8, sigmoid_routing(1.0f), kSwiGlu, kFp8)},
  };
}

/// One of `ways` equal parts. Tensor parallel splits every expert, expert parallel the experts; the
/// shared expert is split like I, and stays whole where experts are spread.
struct Shard {
  const char* model;
  enum Kind { kTensor, kExpert } kind;
  int64_t ways;
};
constexpr Shard kShards[] = {
    {"qwen3-235b-a22b", Shard::kTensor, 4},
    {"qwen3-235b-a22b", Shard::kTensor, 8},
    {"qwen3-235b-a22b", Shard::kExpert, 4},
    {"qwen3-235b-a22b", Shard::kExpert, 8},
    {"qwen3-next-80b", Shard::kTensor, 4},
    {"qwen3.5-397b", Shard::kTensor, 4},
    {"qwen3.5-397b", Shard::kExpert, 8},
    {"deepseek-r1", Shard::kTensor, 8},
    {"deepseek-r1", Shard::kExpert, 8},
    {"deepseek-v4-flash", Shard::kExpert, 8},
    {"deepseek-v4-pro", Shard::kTensor, 8},
    {"deepseek-v4-pro", Shard::kExpert, 8},
    {"kimi-k2", Shard::kTensor, 8},
    {"kimi-k2", Shard::kExpert, 8},
    {"kimi-k2-thinking", Shard::kTensor, 8},
    {"kimi-k3", Shard::kTensor, 8},
    {"kimi-k3", Shard::kExpert, 8},
    {"gpt-oss-120b", Shard::kExpert, 8},
    {"glm-4.5", Shard::kTensor, 8},
    {"glm-4.5", Shard::kExpert, 4},
    {"glm-5", Shard::kTensor, 8},
    {"glm-5", Shard::kExpert, 8},
    {"minimax-m2", Shard::kTensor, 4},
    {"minimax-m3", Shard::kTensor, 8},
};

/// A rank of expert parallelism sees the tokens routed to it: a plain top-k over its own experts.
ModelShape expert_shard(ModelShape shape, int64_t ways) {
  shape.spec.num_experts /= ways;
  shape.spec.routing.num_groups = 1;
  shape.spec.routing.topk_groups = 1;
  shape.spec.shared = {};
  return shape;
}

ModelShape tensor_shard(ModelShape shape, int64_t ways) {
  shape.spec.intermediate_size /= ways;
  shape.spec.shared.intermediate_size /= ways;
  return shape;
}

ModelShape shard(const ModelShape& model, const Shard& s) {
  const bool tensor = s.kind == Shard::kTensor;
  ModelShape shape = tensor ? tensor_shard(model, s.ways) : expert_shard(model, s.ways);
  shape.name += fmt::format("-{}{}", tensor ? "tp" : "ep", s.ways);
  shape.title += fmt::format(" {}{}", tensor ? "TP" : "EP", s.ways);
  const std::string part = tensor ? fmt::format("1/{} of every expert", s.ways)
                                  : fmt::format("1/{} of the routed experts", s.ways);
  shape.note = shape.note.empty() ? part : part + "; " + shape.note;
  return shape;
}

std::vector<ModelShape> make_shapes() {
  std::vector<ModelShape> shapes;
  for (ModelShape model : full_models()) {
    model.selection_bias = has_selection_bias(model.spec.routing);
    shapes.push_back(model);
    for (const Shard& s : kShards)
      if (model.name == s.model) shapes.push_back(shard(model, s));
  }
  return shapes;
}

}  // namespace

const std::vector<ModelShape>& model_shapes() {
  static const std::vector<ModelShape> shapes = make_shapes();
  return shapes;
}

const ModelShape& model_shape(const std::string& name) {
  const std::vector<ModelShape>& shapes = model_shapes();
  const auto found = std::ranges::find(shapes, name, &ModelShape::name);
  if (found != shapes.end()) return *found;
  std::string names;
  for (const ModelShape& shape : shapes) names += (names.empty() ? "" : ", ") + shape.name;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("model is '{}'; it must be one of {}", name, names));
}

LayerSpec with_format(LayerSpec spec, Format format) {
  spec.weight_format = format;
  spec.weight_scale_block = usual_scale_block(format);
  return spec;
}

}  // namespace switchyard
