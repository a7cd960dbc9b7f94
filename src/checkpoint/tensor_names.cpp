// Tables of the names that Hugging Face checkpoints use.

#include "checkpoint/tensor_names.h"

#include <fmt/format.h>

#include <charconv>

namespace switchyard {

namespace {

constexpr std::string_view kStacks[] = {
    "model.layers.",
    "layers.",
    "model.language_model.layers.",
    "language_model.model.layers.",
    "language_model.layers.",
    "backbone.layers.",
    "model.backbone.layers.",
    "thinker.model.layers.",
};

constexpr std::string_view kBlocks[] = {
    "mlp.", "block_sparse_moe.", "feed_forward.", "ffn.", "mixer.", "moe."};
/// Parts of a block that has no prefix of its own: Gemma-4's, and Granite's shared expert.
constexpr std::string_view kLayerLevel[] = {"router.", "experts.", "shared_mlp."};

struct MatrixRule {
  std::string_view path;
  Slot slot;
};
constexpr std::string_view kExpertPrefix = "experts.";

constexpr MatrixRule kExpertMatrices[] = {
    {"gate_proj", Slot::kExpertGate}, {"up_proj", Slot::kExpertUp},
    {"down_proj", Slot::kExpertDown}, {"w1", Slot::kExpertGate},
    {"w3", Slot::kExpertUp},          {"w2", Slot::kExpertDown},
};

/// For a path that ends in one of these, what stands before it names the shared expert.
constexpr std::string_view kSharedPrefixes[] = {"shared_experts.", "shared_expert.", "shared_mlp."};
constexpr MatrixRule kSharedMatrices[] = {
    {"gate_proj", Slot::kSharedGate},
    {"up_proj", Slot::kSharedUp},
    {"down_proj", Slot::kSharedDown},
    {"w1", Slot::kSharedGate},
    {"w3", Slot::kSharedUp},
    {"w2", Slot::kSharedDown},
    {"gate_up_proj", Slot::kSharedGateUp},
    {"input_linear", Slot::kSharedGateUp},
    {"output_linear", Slot::kSharedDown},
};

constexpr MatrixRule kMatrices[] = {
    {"gate", Slot::kRouter},
    {"gate.wg", Slot::kRouter},
    {"router", Slot::kRouter},
    {"router.gate", Slot::kRouter},
    {"router.layer", Slot::kRouter},
    {"router.proj", Slot::kRouter},
    {"experts.gate_up_proj", Slot::kFusedGateUp},
    {"input_linear", Slot::kFusedGateUp},
    {"experts.up_proj", Slot::kFusedUp},
    {"experts.down_proj", Slot::kFusedDown},
    {"output_linear", Slot::kFusedDown},
    {"shared_expert_gate", Slot::kSharedSigmoid},
    {"fc1_latent_proj", Slot::kLatentDown},
    {"fc2_latent_proj", Slot::kLatentUp},
    {"routed_expert_down_proj", Slot::kLatentDown},
    {"routed_expert_up_proj", Slot::kLatentUp},
};

struct VectorRule {
  std::string_view block;  ///< empty: every block
  std::string_view name;
  Slot slot;
};
constexpr VectorRule kVectors[] = {
    {"", "e_score_correction_bias", Slot::kSelectionBias},
    {"", "gate.e_score_correction_bias", Slot::kSelectionBias},
    {"", "moe_statics.e_score_correction_bias", Slot::kSelectionBias},
    {"", "expert_bias", Slot::kSelectionBias},
    {"", "gate.expert_bias", Slot::kSelectionBias},
    {"ffn.", "gate.bias", Slot::kSelectionBias},
    {"", "gate.tid2eid", Slot::kTid2eid},
    {"", "router.bias", Slot::kLogitBias},
    {"", "router.per_expert_scale", Slot::kPerExpertScale},
    {"", "router.scale", Slot::kRouterNormScale},
    {"", "routed_expert_norm.weight", Slot::kLatentNorm},
};

struct PartRule {
  std::string_view suffix;
  Part part;
};
constexpr PartRule kParts[] = {
    {"", Part::kValues},
    {".weight", Part::kValues},
    {".weight_packed", Part::kPacked},
    {"_blocks", Part::kBlocks},
    {".qweight", Part::kQweight},
    {".weight_scale", Part::kScale},
    {".weight_scale_inv", Part::kScale},
    {".scale", Part::kScale},
    {".scales", Part::kScale},
    {"_scale", Part::kScale},
    {"_scales", Part::kScale},
    {"_scale_inv", Part::kScale},
    {"_weight_scale", Part::kScale},
    {"_weight_scale_inv", Part::kScale},
    {".weight_scale_2", Part::kGlobalScale},
    {"_scale_2", Part::kGlobalScale},
    {"_weight_scale_2", Part::kGlobalScale},
    {".weight_global_scale", Part::kGlobalDivisor},
    {".weight_zero_point", Part::kZeroPoint},
    {".qzeros", Part::kZeroPoint},
    {".weight_g_idx", Part::kGroupIndex},
    {".g_idx", Part::kGroupIndex},
    {".bias", Part::kBias},
    {"_bias", Part::kBias},
    {".weight_shape", Part::kIgnored},
    {".input_scale", Part::kIgnored},
    {".input_global_scale", Part::kIgnored},
    {".input_zero_point", Part::kIgnored},
    {"_input_scale", Part::kIgnored},
    {".k_scale", Part::kIgnored},
    {".v_scale", Part::kIgnored},
};

std::optional<Part> find_part(std::string_view suffix) {
  for (const PartRule& rule : kParts) {
    if (rule.suffix == suffix) return rule.part;
  }
  return std::nullopt;
}

/// Takes decimal digits and the dot behind them from the front of `text`.
std::optional<int64_t> take_index(std::string_view& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const auto digits = static_cast<size_t>(end - text.data());
  const bool plain = error == std::errc{} && text.front() != '-' &&
                     (digits == 1 || text.front() != '0');  // "07" would fill slot 7 twice
  if (!plain || digits == text.size() || text[digits] != '.') return std::nullopt;
  text.remove_prefix(digits + 1);
  return value;
}

template <size_t kCount>
std::optional<TensorName> match(const MatrixRule (&rules)[kCount], std::string_view text) {
  for (const MatrixRule& rule : rules) {
    if (!text.starts_with(rule.path)) continue;
    const std::optional<Part> part = find_part(text.substr(rule.path.size()));
    if (part) return TensorName{.slot = rule.slot, .part = *part};
  }
  return std::nullopt;
}

}  // namespace

std::optional<LayerName> parse_layer_name(std::string_view name) {
  for (const std::string_view stack : kStacks) {
    if (!name.starts_with(stack)) continue;
    std::string_view rest = name.substr(stack.size());
    const std::optional<int64_t> layer = take_index(rest);
    if (layer) return LayerName{.stack = stack, .layer = *layer, .rest = rest};
  }
  return std::nullopt;
}

std::optional<BlockName> parse_block_name(std::string_view rest) {
  for (const std::string_view block : kBlocks) {
    if (rest.starts_with(block)) return BlockName{block, rest.substr(block.size())};
  }
  for (const std::string_view part : kLayerLevel) {
    if (rest.starts_with(part)) return BlockName{"", rest};
  }
  return std::nullopt;
}

std::optional<TensorName> parse_tensor_name(const BlockName& name) {
  for (const VectorRule& rule : kVectors) {
    if (rule.name == name.rest && (rule.block.empty() || rule.block == name.block)) {
      return TensorName{.slot = rule.slot};
    }
  }
  if (name.rest.starts_with(kExpertPrefix)) {
    std::string_view rest = name.rest.substr(kExpertPrefix.size());
    if (const std::optional<int64_t> expert = take_index(rest)) {
      std::optional<TensorName> found = match(kExpertMatrices, rest);
      if (found) found->expert = *expert;
      return found;
    }
  }
  for (const std::string_view prefix : kSharedPrefixes) {
    if (name.rest.starts_with(prefix))
      return match(kSharedMatrices, name.rest.substr(prefix.size()));
  }
  return match(kMatrices, name.rest);
}

std::string family_name(std::string_view block, bool fused, bool k_major, bool blocks) {
  if (block == "mixer." || block.empty() || (fused && block == "block_sparse_moe.")) {
    return fmt::format("G: {}", block == "mixer." ? "mixer per expert"
                                : block.empty()   ? "router and experts in the layer"
                                                  : "block_sparse_moe fused");
  }
  if (blocks) return "E: fused blocks and scales";
  if (fused) return k_major ? "D: fused 3-D, K-major" : "C: fused 3-D, N-major";
  if (block == "block_sparse_moe.") return "A: block_sparse_moe w123";
  if (block == "ffn.") return "F: ffn w123";
  return fmt::format("B: {} per expert", block.substr(0, block.size() - 1));
}

std::string usual_name(std::string_view block, Slot slot, int64_t expert) {
  const bool w123 = block == "block_sparse_moe." || block == "ffn.";
  const auto projection = [w123](const char* letter, const char* word) {
    return w123 ? letter : word;
  };
  switch (slot) {
    case Slot::kExpertGate:
      return fmt::format("experts.{}.{}.weight", expert, projection("w1", "gate_proj"));
    case Slot::kExpertUp:
      return fmt::format("experts.{}.{}.weight", expert, projection("w3", "up_proj"));
    case Slot::kExpertDown:
      return fmt::format("experts.{}.{}.weight", expert, projection("w2", "down_proj"));
    case Slot::kSharedGate: return "shared_experts.gate_proj.weight";
    case Slot::kSharedUp: return "shared_experts.up_proj.weight";
    case Slot::kSharedDown: return "shared_experts.down_proj.weight";
    case Slot::kSharedSigmoid: return "shared_expert_gate.weight";
    case Slot::kRouter:
      return block.empty()              ? "router.proj.weight"
             : block == "feed_forward." ? "router.weight"
                                        : "gate.weight (the router)";
    case Slot::kSelectionBias:
      return block == "ffn." ? "gate.bias" : "gate.e_score_correction_bias";
    default: break;
  }
  for (const VectorRule& rule : kVectors) {
    if (rule.slot == slot) return std::string(rule.name);
  }
  for (const MatrixRule& rule : kMatrices) {
    if (rule.slot == slot) return fmt::format("{}.weight", rule.path);
  }
  return "?";
}

}  // namespace switchyard
