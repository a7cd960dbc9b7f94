// Fail closed, second half: every slot that should be filled is, and every part has a reader.

#include "checkpoint/layer_expectations.h"

#include <algorithm>

#include "checkpoint/matrix_format.h"

namespace switchyard {

namespace {

constexpr uint32_t kVectorSlots = slot_bit(Slot::kLogitBias) | slot_bit(Slot::kSelectionBias) |
                                  slot_bit(Slot::kTid2eid) | slot_bit(Slot::kPerExpertScale) |
                                  slot_bit(Slot::kRouterNormScale) | slot_bit(Slot::kLatentNorm);
/// Matrices whose bias nothing adds. (A router's bias has a slot of its own where it is known what
/// it means.)
constexpr uint32_t kUnbiasedSlots = slot_bit(Slot::kRouter) | slot_bit(Slot::kSharedSigmoid) |
                                    slot_bit(Slot::kLatentDown) | slot_bit(Slot::kLatentUp);

class Expectations {
 public:
  Expectations(const ModelConfig& config, LayerTensors& layer)
      : config_(config),
        layer_(layer),
        required_(config.traits == nullptr ? 0 : config.traits->required_slots),
        gate_expected_(config.activation ? config.activation->gated() : layer.gated()) {}

  void check() {
    for (size_t slot = 0; slot < kNumSlots; ++slot) {
      expect(static_cast<Slot>(slot), (required_ >> slot & 1u) != 0);
    }
    expect(Slot::kRouter, true);
    expect_experts();
    expect_shared();
    expect_latent();
    expect_selection();
    if (config_.traits != nullptr && config_.traits->biases) expect_biases();
    for (size_t slot = 0; slot < kNumSlots; ++slot) {
      const uint32_t bit = 1u << slot;
      if ((kVectorSlots & bit) == 0) check_matrix(layer_.slots[slot], (kUnbiasedSlots & bit) == 0);
    }
    for (const StoredExpert& expert : layer_.experts) {
      for (const StoredMatrix& stored : expert) check_matrix(stored, true);
    }
    // A slot may be expected for two reasons.
    std::vector<std::string>& missing = layer_.coverage.missing;
    std::sort(missing.begin(), missing.end());
    missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
  }

 private:
  void expect(Slot slot, bool needed) {
    if (needed && !layer_.has(slot)) layer_.add_missing(slot);
  }

  void expect_experts() {
    if (layer_.fused() || layer_.has(Slot::kFusedDown)) {
      expect(Slot::kFusedDown, true);
      if (!layer_.fused()) expect(gate_expected_ ? Slot::kFusedGateUp : Slot::kFusedUp, true);
      return;
    }
    if (layer_.experts.empty()) layer_.coverage.missing.push_back(layer_.prefix() + "experts.*");
    for (const Slot slot : {Slot::kExpertGate, Slot::kExpertUp, Slot::kExpertDown}) {
      const auto index = static_cast<size_t>(slot);
      const bool any =
          std::any_of(layer_.experts.begin(), layer_.experts.end(),
                      [index](const StoredExpert& expert) { return !expert[index].empty(); });
      if (any || (slot == Slot::kExpertGate && !gate_expected_)) continue;
      for (size_t e = 0; e < layer_.experts.size(); ++e) {
        layer_.add_missing(slot, static_cast<int64_t>(e));
      }
    }
  }

  void expect_shared() {
    const int64_t configured = config_.shared_intermediate_size.value_or(
        config_.num_shared_experts.at(layer_.index).value_or(0));
    bool shared = configured > 0 || (required_ & slot_bit(Slot::kSharedDown)) != 0;
    for (const Slot slot :
         {Slot::kSharedGate, Slot::kSharedUp, Slot::kSharedDown, Slot::kSharedGateUp}) {
      shared |= layer_.has(slot);
    }
    const bool separate = shared && !layer_.has(Slot::kSharedGateUp);
    expect(Slot::kSharedDown, shared);
    expect(Slot::kSharedUp, separate);
    expect(Slot::kSharedGate, separate && gate_expected_);
  }

  void expect_latent() {
    const bool latent = config_.latent_size.has_value() || layer_.has(Slot::kLatentDown) ||
                        layer_.has(Slot::kLatentUp) || layer_.has(Slot::kLatentNorm);
    expect(Slot::kLatentDown, latent);
    expect(Slot::kLatentUp, latent);
    expect(Slot::kLatentNorm, config_.latent_norm);
  }

  void expect_selection() {
    const bool hash = config_.layer_kind(layer_.index) == LayerKind::kHashMoe;
    const bool by_model =
        config_.traits != nullptr && config_.traits->selection_bias == BiasRule::kRequired;
    expect(Slot::kTid2eid, hash);
    expect(Slot::kSelectionBias,
           config_.selection_bias.value_or(by_model) && !hash && !layer_.has(Slot::kTid2eid));
  }

  /// Without its bias a matrix of gpt-oss would silently count as one that has none.
  void expect_biases() {
    const auto expect_bias = [this](const StoredMatrix& stored) {
      if (stored.empty() || stored[Part::kBias] != nullptr) return;
      layer_.coverage.missing.push_back("the bias of " + stored.values()->name);
    };
    for (const Slot slot : {Slot::kFusedGateUp, Slot::kFusedUp, Slot::kFusedDown}) {
      expect_bias(layer_[slot]);
    }
    for (const StoredExpert& expert : layer_.experts) {
      for (const StoredMatrix& stored : expert) expect_bias(stored);
    }
  }

  void check_matrix(const StoredMatrix& stored, bool biased) {
    Coverage& coverage = layer_.coverage;
    const auto unused = [&coverage](const std::string& name) {
      coverage.unknown.push_back(name);
      --coverage.used;
    };
    if (stored.empty()) {
      // A scale without its weight: nothing will read it.
      for (const CheckpointTensor* tensor : stored.parts) {
        if (tensor != nullptr) unused(tensor->name);
      }
      return;
    }
    const PartReport report = check_parts(stored);
    coverage.missing.insert(coverage.missing.end(), report.missing.begin(), report.missing.end());
    for (const std::string& name : report.unused) unused(name);
    if (!biased && stored[Part::kBias] != nullptr) unused(stored[Part::kBias]->name);
  }

  const ModelConfig& config_;
  LayerTensors& layer_;
  const uint32_t required_;
  const bool gate_expected_;
};

}  // namespace

void expect_tensors(const ModelConfig& config, LayerTensors& layer) {
  Expectations(config, layer).check();
}

}  // namespace switchyard
