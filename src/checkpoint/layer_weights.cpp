// ResolvedLayer -> Weights.

#include "checkpoint/layer_weights.h"

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <mutex>

#include "checkpoint/json.h"
#include "checkpoint/matrix_loader.h"
#include "core/number_formats.h"
#include "switchyard/error.h"

namespace switchyard {

namespace {

/// Loads experts; remembers what it allocated for each until that expert is released.
class ExpertLoader {
 public:
  ExpertLoader(std::shared_ptr<const ResolvedLayer> layer, const Safetensors& files)
      : layer_(std::move(layer)), files_(files) {}

  ExpertWeights load(int64_t expert) {
    check_index(expert);
    prefetch(expert + 1);
    Arena arena;
    ExpertWeights out =
        layer_->tensors.fused() ? load_fused(expert, arena) : load_separate(expert, arena);
    const std::lock_guard lock(mutex_);
    arenas_[expert] = std::move(arena);
    return out;
  }

  void release(int64_t expert) {
    check_index(expert);
    for_each_tensor(expert, [this](const TensorView& view) { files_.release(view); });
    const std::lock_guard lock(mutex_);
    arenas_.erase(expert);
  }

 private:
  void check_index(int64_t expert) const {
    if (expert < 0 || expert >= layer_->spec.num_experts) {
      throw Error(ErrorCode::kInvalidArgument, fmt::format("expert is {}; must be in [0, {})",
                                                           expert, layer_->spec.num_experts));
    }
  }

  template <class Visit>
  void for_each_tensor(int64_t expert, Visit visit) const {
    const auto visit_parts = [&](const StoredMatrix& stored, const MatrixFormat& format) {
      for (const CheckpointTensor* tensor : stored.parts) {
        if (tensor != nullptr) visit(expert_slice(*tensor, format, expert));
      }
    };
    const LayerTensors& tensors = layer_->tensors;
    if (tensors.fused()) {
      for (const Slot slot : {Slot::kFusedGateUp, Slot::kFusedUp, Slot::kFusedDown}) {
        visit_parts(tensors[slot], layer_->format(slot));
      }
    } else {
      const StoredExpert& stored = tensors.experts[static_cast<size_t>(expert)];
      for (size_t slot = 0; slot < kNumExpertSlots; ++slot) {
        visit_parts(stored[slot], layer_->formats[slot]);
      }
    }
  }

  /// Experts are packed in order: the disk may read the next one meanwhile.
  void prefetch(int64_t expert) const {
    if (expert >= layer_->spec.num_experts) return;
    for_each_tensor(expert, [this](const TensorView& view) { files_.prefetch(view); });
  }

  ExpertWeights load_separate(int64_t expert, Arena& arena) const {
    const StoredExpert& stored = layer_->tensors.experts[static_cast<size_t>(expert)];
    ExpertWeights out;
    WeightMatrix* const matrices[] = {&out.gate, &out.up, &out.down};
    TensorView* const biases[] = {&out.gate_bias, &out.up_bias, &out.down_bias};
    for (size_t slot = 0; slot < kNumExpertSlots; ++slot) {
      if (stored[slot].empty()) continue;
      *matrices[slot] = load_matrix(stored[slot], layer_->formats[slot], expert, arena);
      *biases[slot] = load_bias(stored[slot], layer_->formats[slot], expert);
    }
    return out;
  }

  ExpertWeights load_fused(int64_t expert, Arena& arena) const {
    const LayerTensors& tensors = layer_->tensors;
    const StoredMatrix& down = tensors[Slot::kFusedDown];
    const MatrixFormat& down_format = layer_->format(Slot::kFusedDown);
    ExpertWeights out;
    out.down = load_matrix(down, down_format, expert, arena);
    out.down_bias = load_bias(down, down_format, expert);
    if (!tensors.has(Slot::kFusedGateUp)) {
      const StoredMatrix& up = tensors[Slot::kFusedUp];
      out.up = load_matrix(up, layer_->format(Slot::kFusedUp), expert, arena);
      out.up_bias = load_bias(up, layer_->format(Slot::kFusedUp), expert);
      return out;
    }
    const StoredMatrix& stored = tensors[Slot::kFusedGateUp];
    const MatrixFormat& format = layer_->format(Slot::kFusedGateUp);
    const WeightMatrix both = load_matrix(stored, format, expert, arena);
    const TensorView bias = load_bias(stored, format, expert);
    out.gate = take_half(both, stored, format, expert, Half::kGate, layer_->order);
    out.up = take_half(both, stored, format, expert, Half::kUp, layer_->order);
    out.gate_bias = take_half(bias, Half::kGate, layer_->order);
    out.up_bias = take_half(bias, Half::kUp, layer_->order);
    return out;
  }

  std::shared_ptr<const ResolvedLayer> layer_;
  const Safetensors& files_;
  std::mutex mutex_;
  std::map<int64_t, Arena> arenas_;
};

/// The vector of a slot as rank 1; empty when absent.
TensorView vector_of(const LayerTensors& tensors, Slot slot) {
  if (!tensors.has(slot)) return {};
  const TensorView& view = tensors[slot].values()->view;
  return TensorView::contiguous(view.data, view.type, {view.num_elements()});
}

/// Expert ids come from a file and index memory later.
void check_table(const CheckpointTensor& table, int64_t num_experts) {
  const TensorView& view = table.view;
  for (int64_t i = 0; i < view.num_elements(); ++i) {
    const int64_t id =
        view.type == DataType::kI64 ? view.as<const int64_t>()[i] : view.as<const int32_t>()[i];
    if (id >= 0 && id < num_experts) continue;
    throw Error(ErrorCode::kInvalidFile,
                fmt::format("{}: entry [{}, {}] is {}; must be in [0, {})", printable(table.name),
                            i / view.extent(1), i % view.extent(1), id, num_experts));
  }
}

RouterWeights build_router(const ResolvedLayer& layer, Arena& arena) {
  const LayerTensors& tensors = layer.tensors;
  RouterWeights out;
  out.projection = load_matrix(tensors[Slot::kRouter], layer.format(Slot::kRouter), -1, arena);
  out.logit_bias = vector_of(tensors, Slot::kLogitBias);
  out.selection_bias = vector_of(tensors, Slot::kSelectionBias);
  out.per_expert_scale = vector_of(tensors, Slot::kPerExpertScale);
  if (tensors.has(Slot::kTid2eid)) {
    check_table(*tensors[Slot::kTid2eid].values(), layer.spec.num_experts);
    out.tid2eid = tensors[Slot::kTid2eid].values()->view;
  }
  if (tensors.has(Slot::kRouterNormScale)) {
    // Gemma-4 multiplies by scale / sqrt(H) after the norm.
    const TensorView& scale = tensors[Slot::kRouterNormScale].values()->view;
    const int64_t hidden = scale.num_elements();
    auto* folded = arena.allocate<float>(hidden);
    const double root = 1.0 / std::sqrt(static_cast<double>(hidden));
    for (int64_t i = 0; i < hidden; ++i) {
      folded[i] = static_cast<float>(load_as_f32(scale.data, scale.type, i) * root);
    }
    out.input_norm_scale = TensorView::contiguous(folded, DataType::kF32, {hidden});
    out.input_norm_epsilon = layer.router_norm_epsilon;
  }
  return out;
}

ExpertWeights build_shared(const ResolvedLayer& layer, Arena& arena) {
  const LayerTensors& tensors = layer.tensors;
  ExpertWeights out;
  const auto load = [&](Slot slot, WeightMatrix& matrix, TensorView& bias) {
    if (!tensors.has(slot)) return;
    matrix = load_matrix(tensors[slot], layer.format(slot), -1, arena);
    bias = load_bias(tensors[slot], layer.format(slot), -1);
  };
  load(Slot::kSharedGate, out.gate, out.gate_bias);
  load(Slot::kSharedUp, out.up, out.up_bias);
  load(Slot::kSharedDown, out.down, out.down_bias);
  if (tensors.has(Slot::kSharedGateUp)) {
    const StoredMatrix& stored = tensors[Slot::kSharedGateUp];
    const MatrixFormat& format = layer.format(Slot::kSharedGateUp);
    const GateUpOrder order = GateUpOrder::kConcatenated;
    const WeightMatrix both = load_matrix(stored, format, -1, arena);
    const TensorView bias = load_bias(stored, format, -1);
    out.gate = take_half(both, stored, format, -1, Half::kGate, order);
    out.up = take_half(both, stored, format, -1, Half::kUp, order);
    out.gate_bias = take_half(bias, Half::kGate, order);
    out.up_bias = take_half(bias, Half::kUp, order);
  }
  return out;
}

}  // namespace

Weights build_weights(std::shared_ptr<const ResolvedLayer> layer, const Safetensors& files,
                      Arena& arena) {
  const LayerTensors& tensors = layer->tensors;
  const auto load = [&](Slot slot) {
    return tensors.has(slot) ? load_matrix(tensors[slot], layer->format(slot), -1, arena)
                             : WeightMatrix{};
  };
  Weights out;
  out.router = build_router(*layer, arena);
  out.shared = build_shared(*layer, arena);
  out.shared_gate = load(Slot::kSharedSigmoid);
  out.latent_down = load(Slot::kLatentDown);
  out.latent_norm = vector_of(tensors, Slot::kLatentNorm);
  out.latent_up = load(Slot::kLatentUp);
  auto loader = std::make_shared<ExpertLoader>(layer, files);
  out.experts.num_experts = layer->spec.num_experts;
  out.experts.load = [loader](int64_t expert) { return loader->load(expert); };
  out.experts.release = [loader](int64_t expert) { loader->release(expert); };
  return out;
}

}  // namespace switchyard
