// Which layers are MoE: one small rule per key; the first rule whose key is there decides.

#include "checkpoint/layer_placement.h"

#include <algorithm>

namespace switchyard {

namespace {

constexpr int64_t kMaxLayers = 65536;

using Kinds = std::optional<std::vector<LayerKind>>;

/// `is_moe` for each layer.
template <class IsMoe>
std::vector<LayerKind> by_rule(int64_t num_layers, IsMoe is_moe) {
  std::vector<LayerKind> kinds;
  for (int64_t i = 0; i < num_layers; ++i) {
    kinds.push_back(is_moe(i) ? LayerKind::kMoe : LayerKind::kDense);
  }
  return kinds;
}

bool contains(const std::vector<int64_t>& list, int64_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

/// mlp_layer_types: ["dense", "sparse" | "moe" | "hash_moe", ...]
Kinds mlp_layer_types(const ConfigReader& reader, int64_t) {
  const auto types = reader.texts("mlp_layer_types");
  if (!types) return std::nullopt;
  std::vector<LayerKind> kinds;
  for (const std::string& type : *types) {
    if (type == "dense") {
      kinds.push_back(LayerKind::kDense);
    } else if (type == "sparse" || type == "moe") {
      kinds.push_back(LayerKind::kMoe);
    } else if (type == "hash_moe") {
      kinds.push_back(LayerKind::kHashMoe);
    } else {
      reader.fail("mlp_layer_types", type, "must be dense, sparse, moe or hash_moe");
    }
  }
  return kinds;
}

/// Nemotron: "M-*E...", one letter per layer.
Kinds hybrid_override_pattern(const ConfigReader& reader, int64_t) {
  const auto pattern = reader.text({"hybrid_override_pattern"});
  if (!pattern) return std::nullopt;
  if (pattern->find_first_not_of("ME*-") != std::string::npos ||
      static_cast<int64_t>(pattern->size()) > kMaxLayers) {
    reader.fail("hybrid_override_pattern", *pattern, "must consist of M, E, * and -");
  }
  return by_rule(static_cast<int64_t>(pattern->size()),
                 [&](int64_t i) { return (*pattern)[static_cast<size_t>(i)] == 'E'; });
}

/// Nemotron, newer: ["linear_attention", "moe", ...]. Other hybrids use the key without "moe" and
/// have experts in every layer, so it says nothing there.
Kinds layers_block_type(const ConfigReader& reader, int64_t) {
  const auto types = reader.texts("layers_block_type");
  if (!types || std::find(types->begin(), types->end(), "moe") == types->end()) return std::nullopt;
  return by_rule(static_cast<int64_t>(types->size()),
                 [&](int64_t i) { return (*types)[static_cast<size_t>(i)] == "moe"; });
}

/// MiMo: a list of 0 and 1.
Kinds moe_layer_freq_list(const ConfigReader& reader, int64_t) {
  const nlohmann::json* list = reader.find("moe_layer_freq");
  if (list == nullptr || !list->is_array()) return std::nullopt;
  const auto flags = reader.integers("moe_layer_freq", 0, 1);
  return by_rule(static_cast<int64_t>(flags->size()),
                 [&](int64_t i) { return (*flags)[static_cast<size_t>(i)] != 0; });
}

/// DeepSeek, GLM, Kimi: the first k layers are dense, then every moe_layer_freq-th is MoE.
Kinds first_k_dense_replace(const ConfigReader& reader, int64_t num_layers) {
  const auto dense = reader.integer({"first_k_dense_replace"}, 0, kMaxLayers);
  const auto step = reader.integer({"moe_layer_freq"}, 1, kMaxLayers);
  if (!dense && !step) return std::nullopt;
  return by_rule(num_layers,
                 [&](int64_t i) { return i >= dense.value_or(0) && i % step.value_or(1) == 0; });
}

/// Qwen.
Kinds decoder_sparse_step(const ConfigReader& reader, int64_t num_layers) {
  const auto step = reader.integer({"decoder_sparse_step"}, 0, kMaxLayers);
  const auto dense = reader.integers("mlp_only_layers", 0, kMaxLayers);
  if (!step && !dense) return std::nullopt;
  const int64_t every = step.value_or(1);
  return by_rule(num_layers, [&](int64_t i) {
    return every > 0 && (i + 1) % every == 0 && !(dense && contains(*dense, i));
  });
}

/// Llama-4.
Kinds interleave_moe_layer_step(const ConfigReader& reader, int64_t num_layers) {
  const auto listed = reader.integers("moe_layers", 0, kMaxLayers);
  const auto step = reader.integer({"interleave_moe_layer_step"}, 0, kMaxLayers);
  if (listed) return by_rule(num_layers, [&](int64_t i) { return contains(*listed, i); });
  if (!step) return std::nullopt;
  return by_rule(num_layers, [&](int64_t i) { return *step > 0 && (i + 1) % *step == 0; });
}

/// Ernie.
Kinds moe_layer_start_index(const ConfigReader& reader, int64_t num_layers) {
  const auto start = reader.integer({"moe_layer_start_index"}, 0, kMaxLayers);
  if (!start) return std::nullopt;
  const int64_t end = reader.integer({"moe_layer_end_index"}, -1, kMaxLayers).value_or(-1);
  const int64_t step = reader.integer({"moe_layer_interval"}, 1, kMaxLayers).value_or(1);
  const int64_t last = end < 0 ? num_layers - 1 : end;
  return by_rule(num_layers,
                 [&](int64_t i) { return i >= *start && i <= last && (i + 1) % step == 0; });
}

/// LFM2.
Kinds num_dense_layers(const ConfigReader& reader, int64_t num_layers) {
  const auto dense = reader.integer({"num_dense_layers"}, 0, kMaxLayers);
  if (!dense) return std::nullopt;
  return by_rule(num_layers, [&](int64_t i) { return i >= *dense; });
}

struct Rule {
  const char* key;
  Kinds (*read)(const ConfigReader& reader, int64_t num_layers);
};
constexpr Rule kRules[] = {
    {"mlp_layer_types", mlp_layer_types},
    {"hybrid_override_pattern", hybrid_override_pattern},
    {"layers_block_type", layers_block_type},
    {"moe_layer_freq", moe_layer_freq_list},
    {"first_k_dense_replace and moe_layer_freq", first_k_dense_replace},
    {"decoder_sparse_step and mlp_only_layers", decoder_sparse_step},
    {"moe_layers and interleave_moe_layer_step", interleave_moe_layer_step},
    {"moe_layer_start_index", moe_layer_start_index},
    {"num_dense_layers", num_dense_layers},
};

}  // namespace

void read_placement(const ConfigReader& reader, ModelConfig& config) {
  config.num_hidden_layers =
      reader.integer({"num_hidden_layers", "num_layers"}, 1, kMaxLayers).value_or(0);
  for (const Rule& rule : kRules) {
    Kinds kinds = rule.read(reader, config.num_hidden_layers);
    if (!kinds) continue;
    config.layer_kinds = std::move(*kinds);
    config.placement = rule.key;
    break;
  }
  if (config.num_hidden_layers == 0) {
    config.num_hidden_layers = static_cast<int64_t>(config.layer_kinds.size());
  }
  if (const auto hashed = reader.integer({"num_hash_layers"}, 0, kMaxLayers)) {
    // DeepSeek-V4: every layer is MoE, the first ones without a learned selection.
    if (config.layer_kinds.empty()) {
      config.layer_kinds.assign(static_cast<size_t>(config.num_hidden_layers), LayerKind::kMoe);
      config.placement = "num_hash_layers";
    }
    for (size_t i = 0; i < config.layer_kinds.size() && i < static_cast<size_t>(*hashed); ++i) {
      if (config.layer_kinds[i] == LayerKind::kMoe) config.layer_kinds[i] = LayerKind::kHashMoe;
    }
  }
}

}  // namespace switchyard
