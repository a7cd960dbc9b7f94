// config.json -> ModelConfig: every spelling of every key in one place.

#include "checkpoint/model_config.h"

#include <fmt/format.h>

#include <algorithm>

#include "checkpoint/config_reader.h"
#include "checkpoint/json.h"
#include "checkpoint/layer_placement.h"
#include "switchyard/error.h"

namespace switchyard {

namespace {

constexpr int64_t kMaxSize = int64_t{1} << 31;

/// Python writes Infinity and NaN (Mamba's time_step_limit); they are no JSON and mean nothing to
/// us.
std::string without_python_constants(std::string_view text) {
  std::string out;
  bool in_string = false;
  for (size_t i = 0; i < text.size();) {
    const std::string_view rest = text.substr(i);
    std::string_view constant;
    for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
      if (!in_string && rest.starts_with(word)) constant = word;
    }
    if (!constant.empty()) {
      out += "null";
      i += constant.size();
      continue;
    }
    if (in_string && text[i] == '\\' && i + 1 < text.size()) {
      out += text[i++];
    } else if (text[i] == '"') {
      in_string = !in_string;
    }
    out += text[i++];
  }
  return out;
}

/// The part of the config that describes the language model.
const nlohmann::json& text_config(const nlohmann::json& root, const std::string& source) {
  const ConfigReader reader(root, source);
  for (const char* key : {"text_config", "llm_config", "language_config", "thinker_config"}) {
    if (const nlohmann::json* nested = reader.object(key)) return text_config(*nested, source);
  }
  return root;
}

void read_sizes(const ConfigReader& reader, ModelConfig& config) {
  config.hidden_size = reader.integer({"hidden_size"}, 1, kMaxSize);
  config.latent_size =
      reader.integer({"moe_latent_size", "routed_expert_hidden_size"}, 1, kMaxSize);
  config.num_experts = reader.per_layer(
      {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}, 0, kMaxExperts);
  config.top_k = reader.per_layer({"num_experts_per_tok", "num_experts_per_token",
                                   "experts_per_token", "moe_topk", "moe_k", "top_k_experts"},
                                  1, kMaxTopK);
  config.intermediate_size = reader.per_layer({"moe_intermediate_size"}, 1, kMaxSize);
  if (config.intermediate_size.values.empty() && config.traits != nullptr &&
      config.traits->plain_intermediate_size) {
    config.intermediate_size = reader.per_layer({"intermediate_size"}, 1, kMaxSize);
  }
  config.num_shared_experts = reader.per_layer(
      {"n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"}, 0,
      kMaxExperts);
  config.shared_intermediate_size =
      reader.integer({"shared_expert_intermediate_size", "moe_shared_expert_intermediate_size",
                      "shared_intermediate_size"},
                     0, kMaxSize);
  config.latent_norm = reader.boolean({"has_routed_norm"}).value_or(false);
  config.zero_experts = reader.integer({"zero_expert_num"}, 0, kMaxExperts).value_or(0);
}

std::optional<Scoring> read_scoring(const ConfigReader& reader) {
  const char* key = reader.find("scoring_func") ? "scoring_func" : "moe_router_activation_func";
  const std::optional<std::string> name = reader.text({key});
  if (!name) return std::nullopt;
  // dots.llm1 writes the selection method here.
  if (*name == "sigmoid" || *name == "noaux_tc") return Scoring::kSigmoid;
  if (*name == "softmax") return Scoring::kSoftmax;
  if (*name == "sqrtsoftplus") return Scoring::kSqrtSoftplus;
  reader.fail(key, *name, "must be softmax, sigmoid or sqrtsoftplus");
}

void read_routing(const ConfigReader& reader, ModelConfig& config) {
  config.scoring = read_scoring(reader);
  config.renormalize = reader.boolean({"norm_topk_prob", "moe_renormalize", "route_norm"});
  config.selection_bias = reader.boolean({"use_routing_bias", "use_expert_bias"});
  if (const auto factor =
          reader.number({"routed_scaling_factor", "router_scaling_factor", "route_scale"})) {
    config.routed_scaling_factor = static_cast<float>(*factor);
  }
  const std::string method = reader.text({"topk_method"}).value_or("");
  if (method != "greedy") {
    config.num_groups = static_cast<int32_t>(
        reader.integer({"n_group", "num_expert_group"}, 1, kMaxExperts).value_or(1));
    config.topk_groups =
        static_cast<int32_t>(reader.integer({"topk_group"}, 1, kMaxExperts).value_or(1));
  }
  config.group_score = method == "group_limited_greedy" ? GroupScore::kMax : GroupScore::kTop2Sum;
}

void read_activation(const ConfigReader& reader, ModelConfig& config) {
  std::optional<std::string> name =
      reader.text({"hidden_act", "hidden_activation", "mlp_hidden_act"});
  if (!name && config.traits != nullptr) name = config.traits->hidden_act;
  config.activation_name = name.value_or("");
  const std::optional<double> limit = reader.number({"swiglu_limit"});
  if (config.traits != nullptr && config.traits->clamped && limit.value_or(0.0) <= 0.0) {
    throw Error(
        ErrorCode::kInvalidFile,
        fmt::format("{}: swiglu_limit is {}; model_type '{}' needs a positive one", config.source,
                    limit ? fmt::format("{}", *limit) : "absent", config.text_type));
  }
  const std::optional<double> beta = reader.number({"situ_beta", "activation_situ_beta"});
  const GluStyle glu = config.traits == nullptr ? GluStyle::kPlain : config.traits->glu;
  ActivationSpec spec;
  if (glu != GluStyle::kPlain || name == "swigluoai") {
    spec.kind = Activation::kSwiGluOai;
    spec.alpha = static_cast<float>(reader.number({"swiglu_alpha"}).value_or(1.702));
    spec.limit = static_cast<float>(limit.value_or(7.0));
  } else if (beta || (name && name->starts_with("situ"))) {
    spec.kind = Activation::kSiTu;
    spec.beta = static_cast<float>(beta.value_or(4.0));
    spec.linear_beta = static_cast<float>(
        reader.number({"situ_linear_beta", "activation_situ_linear_beta"}).value_or(0.0));
  } else if (name == "silu" || name == "swish") {
    spec.kind = limit.value_or(0.0) > 0 ? Activation::kSwiGluClamp : Activation::kSwiGlu;
    if (spec.kind == Activation::kSwiGluClamp) spec.limit = static_cast<float>(*limit);
  } else if (name == "gelu_pytorch_tanh" || name == "gelu_new" || name == "gelu_tanh") {
    spec.kind = Activation::kGeGluTanh;
  } else if (name == "gelu") {
    spec.kind = Activation::kGeGlu;
  } else if (name == "relu2" || name == "relu_squared") {
    spec.kind = Activation::kRelu2;
  } else {
    return;  // absent or unknown: an error only for a layer that needs it
  }
  config.activation = spec;
}

void check_method(const std::string& method, const std::string& source) {
  for (const char* known : {"fp8", "fbgemm_fp8", "mxfp4", "mxfp8", "compressed-tensors", "quark",
                            "gptq", "awq", "modelopt", "modelopt_fp4", "modelopt_mixed"}) {
    if (method == known) return;
  }
  throw Error(ErrorCode::kUnsupported,
              fmt::format("{}: quant_method is '{}'; known are fp8, fbgemm_fp8, mxfp4, mxfp8, "
                          "compressed-tensors, quark, gptq, awq and modelopt",
                          source, printable(method)));
}

/// compressed-tensors: facts of the weights when all groups of layers share one scheme.
void read_config_groups(const nlohmann::json& groups, const std::string& source,
                        QuantizationConfig& out) {
  if (groups.size() != 1 || !groups.begin()->is_object()) return;
  const ConfigReader group(*groups.begin(), source);
  const nlohmann::json* weights = group.object("weights");
  if (weights == nullptr) return;
  const ConfigReader reader(*weights, source);
  const std::string strategy = reader.text({"strategy"}).value_or("");
  if (reader.text({"type"}) == "int") out.bits = reader.integer({"num_bits"}, 1, 64).value_or(0);
  if (strategy == "group" || strategy == "tensor_group") {
    out.block_cols = reader.integer({"group_size"}, -1, kMaxSize).value_or(0);
  }
  if (const auto block = reader.integers("block_structure", 1, kMaxSize);
      block && block->size() == 2) {
    out.block_rows = (*block)[0];
    out.block_cols = (*block)[1];
  }
}

QuantizationConfig read_quantization(const nlohmann::json& object, const std::string& source) {
  const ConfigReader reader(object, source);
  QuantizationConfig out;
  out.method = reader.text({"quant_method"}).value_or("");
  std::transform(out.method.begin(), out.method.end(), out.method.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  check_method(out.method, source);
  if (const auto block = reader.integers("weight_block_size", 1, kMaxSize)) {
    if (block->size() != 2) {
      reader.fail("weight_block_size", *reader.find("weight_block_size"), "must be [rows, cols]");
    }
    out.block_rows = (*block)[0];
    out.block_cols = (*block)[1];
  }
  if (const nlohmann::json* groups = reader.object("config_groups")) {
    read_config_groups(*groups, source, out);
  }
  if (out.method == "gptq" || out.method == "awq") {
    out.bits = reader.integer({"bits", "w_bit"}, 1, 64).value_or(4);
    out.block_cols = reader.integer({"group_size", "q_group_size"}, -1, kMaxSize).value_or(0);
    if (out.bits != 4) {
      throw Error(ErrorCode::kUnsupported, fmt::format("{}: {} bits is {}; only 4 can be read",
                                                       source, out.method, out.bits));
    }
    const std::string version = reader.text({"version"}).value_or("gemm");
    if (out.method == "awq" && version != "gemm" && version != "GEMM") {
      throw Error(ErrorCode::kUnsupported, fmt::format("{}: awq version is '{}'; only gemm can be "
                                                       "read",
                                                       source, printable(version)));
    }
    out.zero_points_minus_one = reader.text({"checkpoint_format"}).value_or("gptq") != "gptq_v2";
  }
  out.block_cols = std::max(out.block_cols, int64_t{0});  // -1: the whole row
  return out;
}

}  // namespace

const char* to_string(LayerKind kind) {
  switch (kind) {
    case LayerKind::kUnknown: return "not said";
    case LayerKind::kDense: return "dense";
    case LayerKind::kMoe: return "MoE";
    case LayerKind::kHashMoe: return "MoE with hash routing";
  }
  return "?";
}

std::optional<int64_t> PerLayer::at(int64_t layer) const {
  if (values.size() == 1) return values.front();
  if (layer < 0 || layer >= static_cast<int64_t>(values.size())) return std::nullopt;
  return values[static_cast<size_t>(layer)];
}

LayerKind ModelConfig::layer_kind(int64_t layer) const {
  if (layer < 0 || layer >= static_cast<int64_t>(layer_kinds.size())) return LayerKind::kUnknown;
  return layer_kinds[static_cast<size_t>(layer)];
}

ModelConfig parse_model_config(std::string_view text, const std::string& source) {
  const nlohmann::json root = parse_json(without_python_constants(text), source);
  if (!root.is_object()) throw Error(ErrorCode::kInvalidFile, source + ": is no JSON object");
  const nlohmann::json& nested = text_config(root, source);
  const ConfigReader whole(root, source);
  const ConfigReader reader(nested, source);

  ModelConfig config{.source = source};
  config.text_type = reader.text({"model_type"}).value_or("");
  config.model_type = whole.text({"model_type"}).value_or(config.text_type);
  config.traits = find_traits(config.text_type);
  if (config.traits == nullptr) config.traits = find_traits(config.model_type);
  read_sizes(reader, config);
  read_routing(reader, config);
  read_activation(reader, config);
  read_placement(reader, config);
  config.rms_norm_epsilon = static_cast<float>(
      reader.number({"rms_norm_eps", "layer_norm_epsilon", "norm_eps"}).value_or(1e-6));
  for (const ConfigReader* level : {&whole, &reader}) {
    if (const nlohmann::json* object = level->object("quantization_config")) {
      config.quantization = read_quantization(*object, source);
      break;
    }
  }
  return config;
}

void merge_hf_quant_config(ModelConfig& config, std::string_view text, const std::string& source) {
  const nlohmann::json root = parse_json(without_python_constants(text), source);
  if (!root.is_object()) throw Error(ErrorCode::kInvalidFile, source + ": is no JSON object");
  const nlohmann::json* object = ConfigReader(root, source).object("quantization");
  if (object == nullptr || !config.quantization.method.empty()) return;
  const ConfigReader reader(*object, source);
  config.quantization.method = "modelopt";
  config.quantization.block_cols =
      std::max(reader.integer({"group_size"}, -1, kMaxSize).value_or(0), int64_t{0});
}

}  // namespace switchyard
