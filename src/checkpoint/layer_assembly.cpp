// config.json + tensors -> ResolvedLayer. Tensors first, config second.

#include "checkpoint/layer_assembly.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "checkpoint/json.h"
#include "checkpoint/layer_expectations.h"
#include "switchyard/error.h"

namespace switchyard {

namespace {

class Resolver {
 public:
  Resolver(const ModelConfig& config, LayerTensors tensors) : config_(config) {
    out_.tensors = std::move(tensors);
  }

  ResolvedLayer resolve() {
    check_placement();
    count_bytes();
    expect_tensors(config_, out_.tensors);
    set_config_sizes();
    if (out_.tensors.coverage.complete()) {
      set_router_sizes();
      set_expert_formats();
      set_shared_formats();
      check_vectors();
      set_routing();
      set_activation();
      check_routing_sizes();
    }
    set_names();
    return std::move(out_);
  }

 private:
  const LayerTensors& tensors() const { return out_.tensors; }
  int64_t layer() const { return tensors().index; }
  MatrixFormat& format(Slot slot) { return out_.formats[static_cast<size_t>(slot)]; }
  std::string where() const { return fmt::format("layer {}", layer()); }
  bool hashed() const { return tensors().has(Slot::kTid2eid); }

  [[noreturn]] void conflict(const std::string& key, const std::string& value,
                             const std::string& stored) const {
    throw Error(ErrorCode::kInvalidFile, fmt::format("{}: {} is {}; {} says {}", config_.source,
                                                     key, value, where(), stored));
  }
  /// A size that config.json may give and the tensors always do.
  void agree(const std::string& key, std::optional<int64_t> configured, int64_t stored,
             const CheckpointTensor& tensor) const {
    if (configured && *configured != stored) {
      conflict(key, std::to_string(*configured),
               fmt::format("{}, by {} {}", stored, printable(tensor.name), describe(tensor)));
    }
  }
  [[noreturn]] void undecided(const std::string& key, const char* choices) const {
    throw Error(ErrorCode::kInvalidFile,
                fmt::format("{}: {} is absent and model_type '{}' is not a known one; must be {}",
                            config_.source, key, printable(config_.text_type), choices));
  }

  void check_placement();
  void count_bytes();
  void set_config_sizes();
  void set_router_sizes();
  void set_expert_formats();
  void set_separate_formats(int64_t width);
  void set_fused_formats(int64_t width);
  bool is_k_major(Slot up, int64_t width) const;
  void set_shared_formats();
  void check_vector(Slot slot, int64_t count, bool floats_only);
  void check_vectors();
  void set_routing();
  void set_activation();
  void check_routing_sizes();
  void set_names();

  const ModelConfig& config_;
  ResolvedLayer out_{};
};

void Resolver::check_placement() {
  const LayerKind kind = config_.layer_kind(layer());
  const bool stored = tensors().coverage.used > 0;
  if (kind == LayerKind::kDense && stored) {
    conflict(config_.placement, fmt::format("such that layer {} is dense", layer()),
             fmt::format("MoE, by the experts under {}", tensors().prefix()));
  }
  if (kind == LayerKind::kMoe && hashed()) {
    conflict(config_.placement, fmt::format("such that layer {} has no hash routing", layer()),
             tensors()[Slot::kTid2eid].values()->name);
  }
}

void Resolver::count_bytes() {
  const auto bytes = [](const StoredMatrix& stored) {
    int64_t sum = 0;
    for (const CheckpointTensor* tensor : stored.parts) sum += tensor ? tensor->bytes : 0;
    return sum;
  };
  int64_t experts = 0;
  for (const StoredExpert& expert : tensors().experts) {
    for (const StoredMatrix& stored : expert) experts += bytes(stored);
  }
  auto num_experts = static_cast<int64_t>(tensors().experts.size());
  for (size_t slot = 0; slot < kNumSlots; ++slot) {
    const StoredMatrix& stored = tensors().slots[slot];
    const auto fused = static_cast<Slot>(slot);
    if (fused == Slot::kFusedGateUp || fused == Slot::kFusedUp || fused == Slot::kFusedDown) {
      experts += bytes(stored);
      if (!stored.empty() && stored.values()->view.rank > 0) {
        num_experts = stored.values()->view.extent(0);
      }
    } else {
      out_.other_bytes += bytes(stored);
    }
  }
  out_.expert_bytes = num_experts > 0 ? experts / num_experts : 0;
}

/// What inspect can still show when tensors are missing.
void Resolver::set_config_sizes() {
  LayerSpec& spec = out_.spec;
  spec.num_experts = config_.num_experts.at(layer()).value_or(0);
  spec.top_k = config_.top_k.at(layer()).value_or(0);
  spec.hidden_size = config_.hidden_size.value_or(0);
  spec.intermediate_size = config_.intermediate_size.at(layer()).value_or(0);
  spec.latent_size = config_.latent_size.value_or(0);
}

void Resolver::set_router_sizes() {
  const StoredMatrix& router = tensors()[Slot::kRouter];
  format(Slot::kRouter) = detect_format(router, {}, config_.quantization);
  LayerSpec& spec = out_.spec;
  spec.num_experts = format(Slot::kRouter).rows;
  spec.hidden_size = format(Slot::kRouter).cols;
  const CheckpointTensor& values = *router.values();
  if (config_.zero_experts > 0) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("{}: zero_expert_num is {}; experts without weights are not supported",
                            config_.source, config_.zero_experts));
  }
  agree(config_.num_experts.key, config_.num_experts.at(layer()), spec.num_experts, values);
  agree("hidden_size", config_.hidden_size, spec.hidden_size, values);
  if (!tensors().has(Slot::kLatentDown)) return;
  const StoredMatrix& down = tensors()[Slot::kLatentDown];
  format(Slot::kLatentDown) = detect_format(down, {.cols = spec.hidden_size}, config_.quantization);
  spec.latent_size = format(Slot::kLatentDown).rows;
  agree("latent size", config_.latent_size, spec.latent_size, *down.values());
  format(Slot::kLatentUp) =
      detect_format(tensors()[Slot::kLatentUp],
                    {.rows = spec.hidden_size, .cols = spec.latent_size}, config_.quantization);
}

void Resolver::set_expert_formats() {
  LayerSpec& spec = out_.spec;
  const int64_t width = spec.expert_width();
  if (tensors().fused()) {
    set_fused_formats(width);
  } else {
    set_separate_formats(width);
  }
  const bool fused = tensors().fused();
  const CheckpointTensor& down =
      fused ? *tensors()[Slot::kFusedDown].values() : *tensors().experts.front()[2].values();
  agree(config_.intermediate_size.key, config_.intermediate_size.at(layer()),
        spec.intermediate_size, down);
  const MatrixFormat& stored = format(fused ? Slot::kFusedDown : Slot::kExpertDown);
  spec.weight_format = stored.format;
  spec.weight_scale_block = stored.block;
  out_.weight_format = stored.description;
}

void Resolver::set_separate_formats(int64_t width) {
  const std::vector<StoredExpert>& experts = tensors().experts;
  if (static_cast<int64_t>(experts.size()) != out_.spec.num_experts) {
    throw Error(ErrorCode::kInvalidFile,
                fmt::format("{} has {} experts; its router has {} rows", tensors().prefix(),
                            experts.size(), out_.spec.num_experts));
  }
  int64_t size = 0;  // of expert 0's up; every other one must have it too
  std::vector<MatrixFormat*> present;
  for (const Slot slot : {Slot::kExpertUp, Slot::kExpertGate, Slot::kExpertDown}) {
    const auto index = static_cast<size_t>(slot);
    if (experts.front()[index].empty()) continue;
    const bool down = slot == Slot::kExpertDown;
    for (size_t e = 0; e < experts.size(); ++e) {
      const MatrixFormat found = detect_format(
          experts[e][index], {.rows = down ? width : size, .cols = down ? size : width},
          config_.quantization);
      if (e == 0) {
        format(slot) = found;
        if (!down) size = found.rows;
      } else if (found.description != format(slot).description) {
        throw Error(
            ErrorCode::kUnsupported,
            fmt::format("{}: expert 0 is '{}', {} is '{}'; all experts must be stored alike",
                        where(), format(slot).description,
                        printable(experts[e][index].values()->name), found.description));
      }
    }
    present.push_back(&format(slot));
  }
  unify_formats(present, where());
  out_.spec.intermediate_size = size;
}

/// Decided by gate_up, whose two extents differ unless 2I == H; then by down.
bool Resolver::is_k_major(Slot up, int64_t width) const {
  for (const Slot slot : {up, Slot::kFusedDown}) {
    const CheckpointTensor& values = *tensors()[slot].values();
    const TensorView& view = values.view;
    if (view.rank != 3) continue;
    const bool packed = view.type == DataType::kU8 || view.type == DataType::kI8;
    if (packed || view.extent(1) == view.extent(2)) continue;
    const bool down = slot == Slot::kFusedDown;
    return view.extent(down ? 2 : 1) == width && view.extent(down ? 1 : 2) != width;
  }
  return false;
}

void Resolver::set_fused_formats(int64_t width) {
  const bool gated = tensors().has(Slot::kFusedGateUp);
  const Slot up = gated ? Slot::kFusedGateUp : Slot::kFusedUp;
  MatrixExpectation expected{.cols = width,
                             .stack = out_.spec.num_experts,
                             .halves = gated ? 2 : 1,
                             .k_major = is_k_major(up, width)};
  format(up) = detect_format(tensors()[up], expected, config_.quantization);
  out_.spec.intermediate_size = format(up).rows / expected.halves;
  expected.rows = width;
  expected.cols = out_.spec.intermediate_size;
  expected.halves = 1;
  format(Slot::kFusedDown) =
      detect_format(tensors()[Slot::kFusedDown], expected, config_.quantization);
  MatrixFormat* both[] = {&format(up), &format(Slot::kFusedDown)};
  unify_formats(both, where());
  const bool interleaved_model =
      config_.traits != nullptr && config_.traits->glu == GluStyle::kOaiInterleaved;
  const bool blocks = tensors()[up][Part::kBlocks] != nullptr;
  if (interleaved_model || blocks) out_.order = GateUpOrder::kInterleaved;
}

void Resolver::set_shared_formats() {
  LayerSpec& spec = out_.spec;
  const int64_t hidden = spec.hidden_size;
  if (tensors().has(Slot::kSharedSigmoid)) {
    spec.shared.sigmoid_gate = true;
    format(Slot::kSharedSigmoid) = detect_format(tensors()[Slot::kSharedSigmoid],
                                                 {.rows = 1, .cols = hidden}, config_.quantization);
  }
  if (!tensors().has(Slot::kSharedDown)) return;
  int64_t& size = spec.shared.intermediate_size;
  for (const Slot slot : {Slot::kSharedGateUp, Slot::kSharedUp, Slot::kSharedGate}) {
    if (!tensors().has(slot)) continue;
    const int64_t halves = slot == Slot::kSharedGateUp ? 2 : 1;
    format(slot) =
        detect_format(tensors()[slot], {.rows = size * halves, .cols = hidden, .halves = halves},
                      config_.quantization);
    size = format(slot).rows / halves;
  }
  format(Slot::kSharedDown) = detect_format(tensors()[Slot::kSharedDown],
                                            {.rows = hidden, .cols = size}, config_.quantization);
  const CheckpointTensor& down = *tensors()[Slot::kSharedDown].values();
  agree("size of the shared experts", config_.shared_intermediate_size, size, down);
  const auto count = config_.num_shared_experts.at(layer());
  if (count && !config_.shared_intermediate_size) {
    agree(fmt::format("{} * {}", config_.num_shared_experts.key, "moe_intermediate_size"),
          *count * spec.intermediate_size, size, down);
  }
}

void Resolver::check_vector(Slot slot, int64_t count, bool floats_only) {
  if (!tensors().has(slot)) return;
  const CheckpointTensor& tensor = *tensors()[slot].values();
  const DataType type = tensor.view.type;
  const bool floats = type == DataType::kF32 || type == DataType::kF16 || type == DataType::kBf16;
  const bool aligned =
      reinterpret_cast<uintptr_t>(tensor.view.data) % static_cast<uintptr_t>(element_bytes(type)) ==
      0;
  if ((floats_only && !floats) || tensor.view.num_elements() != count || !aligned) {
    throw Error(ErrorCode::kInvalidFile,
                fmt::format("{} is {}; must hold {} aligned {} values", printable(tensor.name),
                            describe(tensor), count, floats_only ? "F32, F16 or BF16" : "integer"));
  }
}

void Resolver::check_vectors() {
  const LayerSpec& spec = out_.spec;
  for (const Slot slot : {Slot::kLogitBias, Slot::kSelectionBias, Slot::kPerExpertScale}) {
    check_vector(slot, spec.num_experts, true);
  }
  check_vector(Slot::kRouterNormScale, spec.hidden_size, true);
  check_vector(Slot::kLatentNorm, spec.latent_size, true);
  if (tensors().has(Slot::kLatentNorm)) out_.spec.latent_norm_epsilon = config_.rms_norm_epsilon;
  if (tensors().has(Slot::kRouterNormScale)) out_.router_norm_epsilon = config_.rms_norm_epsilon;
  if (!tensors().has(Slot::kTid2eid)) return;
  const CheckpointTensor& table = *tensors()[Slot::kTid2eid].values();
  const DataType type = table.view.type;
  if ((type != DataType::kI64 && type != DataType::kI32) || table.view.rank != 2) {
    throw Error(ErrorCode::kInvalidFile, fmt::format("{} is {}; must be I64 or I32 [vocab, top_k]",
                                                     printable(table.name), describe(table)));
  }
  check_vector(Slot::kTid2eid, table.view.num_elements(), false);
}

void Resolver::set_routing() {
  const ModelTraits* traits = config_.traits;
  RoutingSpec& routing = out_.spec.routing;
  if (traits == nullptr && !config_.scoring) {
    undecided("scoring_func", "softmax, sigmoid or sqrtsoftplus");
  }
  if (traits == nullptr && !config_.renormalize) undecided("norm_topk_prob", "true or false");
  if (!config_.top_k.at(layer())) {
    throw Error(ErrorCode::kInvalidFile,
                config_.source + ": num_experts_per_tok is absent; must be the experts per token");
  }
  routing.scoring = config_.scoring.value_or(traits ? traits->scoring : Scoring::kSoftmax);
  routing.renormalize = config_.renormalize.value_or(traits ? traits->renormalize : true);
  const float unknown_epsilon = routing.scoring == Scoring::kSoftmax ? 0.0f : 1e-20f;
  routing.renormalize_epsilon = traits ? traits->renormalize_epsilon : unknown_epsilon;
  if (traits != nullptr && traits->scaled && !config_.routed_scaling_factor) {
    throw Error(ErrorCode::kInvalidFile,
                fmt::format("{}: routed_scaling_factor is absent; model_type '{}' needs it",
                            config_.source, config_.text_type));
  }
  routing.routed_scaling_factor = config_.routed_scaling_factor.value_or(1.0f);
  routing.num_groups = config_.num_groups;
  routing.topk_groups = config_.topk_groups;
  routing.group_score = config_.group_score;
  routing.hash = hashed();
  if (traits != nullptr) out_.spec.weight_position = traits->weight_position;
}

void Resolver::set_activation() {
  if (!config_.activation) {
    throw Error(
        config_.activation_name.empty() ? ErrorCode::kInvalidFile : ErrorCode::kUnsupported,
        fmt::format("{}: hidden_act is '{}'; known are silu, gelu, gelu_pytorch_tanh, relu2, "
                    "situ and swigluoai",
                    config_.source, printable(config_.activation_name)));
  }
  out_.spec.activation = *config_.activation;
  if (config_.activation->gated() != tensors().gated()) {
    conflict("hidden_act", config_.activation_name,
             tensors().gated() ? "a gate matrix exists" : "no gate matrix exists");
  }
}

void Resolver::check_routing_sizes() {
  const LayerSpec& spec = out_.spec;
  const RoutingSpec& routing = spec.routing;
  const auto fail = [&](const std::string& message) {
    throw Error(ErrorCode::kInvalidFile, fmt::format("{}: {}", config_.source, message));
  };
  if (spec.num_experts > kMaxExperts) {
    fail(fmt::format("num_experts is {}; at most {}", spec.num_experts, kMaxExperts));
  }
  if (spec.top_k > spec.num_experts) {
    fail(fmt::format("{} is {}; the layer has {} experts", config_.top_k.key, spec.top_k,
                     spec.num_experts));
  }
  if (spec.num_experts % routing.num_groups != 0 || routing.topk_groups > routing.num_groups) {
    fail(fmt::format("n_group is {} and topk_group {}; groups must divide {} experts",
                     routing.num_groups, routing.topk_groups, spec.num_experts));
  }
  const int64_t selectable = spec.num_experts / routing.num_groups * routing.topk_groups;
  if (spec.top_k > selectable) {
    fail(fmt::format("{} is {}; {} groups of {} hold only {} experts", config_.top_k.key,
                     spec.top_k, routing.topk_groups, spec.num_experts / routing.num_groups,
                     selectable));
  }
  if (hashed() && tensors()[Slot::kTid2eid].values()->view.extent(1) != spec.top_k) {
    agree(config_.top_k.key, spec.top_k, tensors()[Slot::kTid2eid].values()->view.extent(1),
          *tensors()[Slot::kTid2eid].values());
  }
}

void Resolver::set_names() {
  const Slot up = tensors().has(Slot::kFusedGateUp) ? Slot::kFusedGateUp : Slot::kFusedUp;
  const bool blocks = tensors()[up][Part::kBlocks] != nullptr;
  out_.family = family_name(tensors().block, tensors().fused(), format(up).k_major, blocks);
}

}  // namespace

ResolvedLayer resolve_layer(const ModelConfig& config, LayerTensors tensors) {
  return Resolver(config, std::move(tensors)).resolve();
}

}  // namespace switchyard
