// Fail closed: a tensor of the block fills a slot, is known to be ignorable, or is reported.

#include "checkpoint/layer_tensors.h"

#include <fmt/format.h>

#include <algorithm>

#include "checkpoint/json.h"
#include "switchyard/error.h"

namespace switchyard {

namespace {

constexpr Part kValueParts[] = {Part::kValues, Part::kPacked, Part::kBlocks, Part::kQweight};

bool is_expert_slot(Slot slot) {
  return static_cast<size_t>(slot) < kNumExpertSlots || slot == Slot::kFusedGateUp ||
         slot == Slot::kFusedUp || slot == Slot::kFusedDown;
}

/// A tensor of the layer with its name taken apart.
struct Candidate {
  const CheckpointTensor* tensor = nullptr;
  std::string_view prefix;  ///< "model.layers.3."
  BlockName block;
  std::optional<TensorName> name;
};

std::optional<Candidate> parse(const CheckpointTensor& tensor) {
  const std::optional<LayerName> layer = parse_layer_name(tensor.name);
  if (!layer) return std::nullopt;
  const std::optional<BlockName> block = parse_block_name(layer->rest);
  if (!block) return std::nullopt;
  const std::string_view name = tensor.name;
  return Candidate{.tensor = &tensor,
                   .prefix = name.substr(0, name.size() - layer->rest.size()),
                   .block = *block,
                   .name = parse_tensor_name(*block)};
}

bool is_expert(const Candidate& candidate) {
  return candidate.name && is_expert_slot(candidate.name->slot);
}

/// The block most of the layer's experts are in; without any, that of the first candidate.
std::string block_with_experts(const std::vector<Candidate>& candidates) {
  std::map<std::string_view, int64_t> counts;
  for (const Candidate& candidate : candidates) {
    counts[candidate.block.block] += is_expert(candidate) ? 1 : 0;
  }
  if (candidates.empty()) return "mlp.";
  std::string_view most = candidates.front().block.block;
  for (const auto& [block, count] : counts) {
    if (count > counts[most]) most = block;
  }
  return std::string(most);
}

/// The router has a row for every expert; when it is missing config.json counts, then the names.
int64_t count_experts(const std::vector<Candidate>& candidates, const std::string& block,
                      int64_t configured) {
  int64_t named = 0;
  for (const Candidate& candidate : candidates) {
    if (candidate.block.block != block || !candidate.name) continue;
    named = std::max(named, candidate.name->expert + 1);
    const CheckpointTensor& tensor = *candidate.tensor;
    if (candidate.name->slot != Slot::kRouter || candidate.name->part != Part::kValues) continue;
    if (tensor.view.rank == 0) continue;
    if (tensor.view.extent(0) > kMaxExperts) {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("{} has {} rows; at most {} experts", printable(tensor.name),
                              tensor.view.extent(0), kMaxExperts));
    }
    return tensor.view.extent(0);
  }
  return configured > 0 ? configured : std::min(named, kMaxExperts);
}

/// Where the tensor goes, or null when its expert lies beyond `num_experts`.
StoredMatrix* find_slot(LayerTensors& layer, const TensorName& name, int64_t num_experts) {
  if (name.expert < 0) return &layer.slots[static_cast<size_t>(name.slot)];
  if (name.expert >= num_experts) return nullptr;
  const auto expert = static_cast<size_t>(name.expert);
  if (layer.experts.size() <= expert) layer.experts.resize(expert + 1);
  return &layer.experts[expert][static_cast<size_t>(name.slot)];
}

void place(LayerTensors& layer, const Candidate& candidate, int64_t num_experts) {
  const CheckpointTensor& tensor = *candidate.tensor;
  Coverage& coverage = layer.coverage;
  if (!candidate.name) return coverage.unknown.push_back(tensor.name);
  if (candidate.name->part == Part::kIgnored) {
    ++coverage.ignored;
    return coverage.ignored_names.push_back(tensor.name);
  }
  StoredMatrix* matrix = find_slot(layer, *candidate.name, num_experts);
  if (matrix == nullptr) {
    return coverage.unknown.push_back(
        fmt::format("{} (the layer has {} experts)", tensor.name, num_experts));
  }
  const CheckpointTensor*& part = matrix->parts[static_cast<size_t>(candidate.name->part)];
  const bool second_values = part == nullptr && !matrix->empty() &&
                             std::find(std::begin(kValueParts), std::end(kValueParts),
                                       candidate.name->part) != std::end(kValueParts);
  if (part != nullptr || second_values) {
    return coverage.unknown.push_back(fmt::format("{} (its place is taken by {})", tensor.name,
                                                  (part ? part : matrix->values())->name));
  }
  part = &tensor;
  ++coverage.used;
}

/// The name of a part that expert `expert` lacks, spelled like the one another expert has.
std::string sibling_name(const std::string& name, std::string_view prefix, int64_t expert) {
  const size_t begin = prefix.size() + std::string_view("experts.").size();
  const size_t end = name.find('.', begin);
  return name.substr(0, begin) + std::to_string(expert) + name.substr(end);
}

/// A part that one expert has, every expert must have.
void check_experts_alike(LayerTensors& layer) {
  const std::string prefix = layer.prefix();
  for (size_t slot = 0; slot < kNumExpertSlots; ++slot) {
    for (size_t part = 0; part < kNumParts; ++part) {
      const CheckpointTensor* example = nullptr;
      for (const StoredExpert& expert : layer.experts) {
        if (expert[slot].parts[part] != nullptr) example = expert[slot].parts[part];
      }
      if (example == nullptr) continue;
      for (size_t e = 0; e < layer.experts.size(); ++e) {
        if (layer.experts[e][slot].parts[part] != nullptr) continue;
        layer.coverage.missing.push_back(
            sibling_name(example->name, prefix, static_cast<int64_t>(e)));
      }
    }
  }
}

}  // namespace

const CheckpointTensor* StoredMatrix::values() const {
  for (const Part part : kValueParts) {
    if ((*this)[part] != nullptr) return (*this)[part];
  }
  return nullptr;
}

bool LayerTensors::gated() const {
  if (has(Slot::kFusedGateUp)) return true;
  return std::any_of(experts.begin(), experts.end(), [](const StoredExpert& expert) {
    return !expert[static_cast<size_t>(Slot::kExpertGate)].empty();
  });
}

void LayerTensors::add_missing(Slot slot, int64_t expert) {
  coverage.missing.push_back(prefix() + usual_name(block, slot, expert));
}

TensorsByLayer group_by_layer(const std::vector<CheckpointTensor>& all) {
  TensorsByLayer layers;
  std::string_view moe_stack;
  for (const CheckpointTensor& tensor : all) {
    const std::optional<LayerName> name = parse_layer_name(tensor.name);
    if (!name) continue;
    const std::optional<Candidate> candidate = parse(tensor);
    if (candidate && is_expert(*candidate)) {
      if (!moe_stack.empty() && moe_stack != name->stack) {
        throw Error(ErrorCode::kUnsupported,
                    fmt::format("experts are stored under '{}' and under '{}'; only one text model "
                                "per checkpoint can be read",
                                moe_stack, name->stack));
      }
      moe_stack = name->stack;
    }
    layers[name->layer].push_back(&tensor);
  }
  for (auto& [index, tensors] : layers) {
    std::erase_if(tensors, [&](const CheckpointTensor* tensor) {
      return !moe_stack.empty() && parse_layer_name(tensor->name)->stack != moe_stack;
    });
  }
  return layers;
}

bool has_experts(const std::vector<const CheckpointTensor*>& tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const CheckpointTensor* tensor) {
    const std::optional<Candidate> candidate = parse(*tensor);
    return candidate && is_expert(*candidate);
  });
}

LayerTensors collect_layer(int64_t index, const std::vector<const CheckpointTensor*>& tensors,
                           int64_t configured_experts) {
  std::vector<Candidate> candidates;
  for (const CheckpointTensor* tensor : tensors) {
    if (std::optional<Candidate> candidate = parse(*tensor)) candidates.push_back(*candidate);
  }
  LayerTensors layer{.index = index};
  if (!tensors.empty()) {
    const std::string& name = tensors.front()->name;
    layer.layer_prefix = name.substr(0, name.size() - parse_layer_name(name)->rest.size());
  }
  layer.block = block_with_experts(candidates);
  const int64_t num_experts = count_experts(candidates, layer.block, configured_experts);
  for (const Candidate& candidate : candidates) {
    // Beside the block's own prefix, only parts that never have one (Granite's shared expert); the
    // dense MLP that runs in parallel in Gemma-4 is another block.
    const bool ours = candidate.block.block == layer.block || candidate.block.block.empty();
    if (ours) {
      place(layer, candidate, num_experts);
    } else if (is_expert(candidate)) {
      layer.coverage.unknown.push_back(candidate.tensor->name);
    }
  }
  if (!layer.fused() && !layer.has(Slot::kFusedDown)) {
    layer.experts.resize(static_cast<size_t>(num_experts));
  }
  check_experts_alike(layer);
  return layer;
}

std::string describe(const Coverage& coverage) {
  static constexpr size_t kMaxNames = 12;
  const auto list = [](const std::vector<std::string>& names, const char* what) {
    std::string text = fmt::format("{} {}:", names.size(), what);
    for (size_t i = 0; i < std::min(names.size(), kMaxNames); ++i) {
      text += (i == 0 ? " " : ", ") + printable(names[i]);
    }
    if (names.size() > kMaxNames) text += fmt::format(", and {} more", names.size() - kMaxNames);
    return text;
  };
  std::string text;
  if (!coverage.missing.empty()) text = list(coverage.missing, "missing");
  if (!coverage.unknown.empty()) {
    text += (text.empty() ? "" : "; ") + list(coverage.unknown, "not understood");
  }
  return text;
}

}  // namespace switchyard
