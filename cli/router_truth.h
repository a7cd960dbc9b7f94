#pragma once
// Routing computed apart from the backend under test: logits in double, choice by the reference.

#include <cstdint>
#include <string>
#include <vector>

#include "cli/host_tensor.h"
#include "switchyard/layer_spec.h"
#include "switchyard/weights.h"

namespace switchyard::cli {

class RouterTruth {
 public:
  /// Decodes the router's matrix; `router` must outlive this object.
  RouterTruth(const LayerSpec& spec, const RouterWeights& router);

  int64_t num_experts() const { return num_experts_; }
  int64_t vocab_size() const;  ///< hash layers; otherwise 0

  /// [T, E] in double, and what float arithmetic may differ from it by.
  struct Logits {
    std::vector<double> values;
    std::vector<double> tolerance;
    std::vector<double> factors;  ///< [T] what the norm before the router multiplied by; else 1
  };
  Logits logits(const TensorView& hidden_states_f32) const;

  /// What the reference chooses for these logits; `extra` more experts than the layer's own top_k.
  struct Choice {
    HostTensor ids;      ///< [T, K + extra] i32
    HostTensor weights;  ///< [T, K + extra] f32
  };
  Choice choose(const std::vector<double>& logits, const TensorView& input_ids,
                int64_t extra = 0) const {
    return choose(logits, input_ids, extra, selection_bias_.view());
  }

  /// Why a backend's choice cannot be explained by float rounding of the logits, or empty.
  std::string why_wrong(const TensorView& hidden_states_f32, const TensorView& input_ids,
                        const TensorView& topk_ids, const TensorView& topk_weights) const;

  /// Whether there is an expert left out that could be tied with the last one chosen.
  bool can_tie() const;
  /// Puts the rows of `hidden_states` [T, H] f32 on the edge where the two change places.
  void make_near_ties(const TensorView& hidden_states_f32) const;

 private:
  /// The last expert that is chosen and the first that is not.
  struct Rivals {
    int32_t in = 0;
    int32_t out = 0;
  };
  std::vector<Rivals> rivals_of(const std::vector<double>& logits) const;
  std::vector<double> dot_products(const TensorView& rows_f32) const;
  Choice choose(const std::vector<double>& logits, const TensorView& input_ids, int64_t extra,
                const TensorView& selection_bias) const;
  Choice favourable_choice(const Logits& logits, const TensorView& input_ids,
                           const TensorView& topk_ids, int64_t token) const;
  const float* row(int64_t expert) const { return matrix_.as<float>() + expert * hidden_size_; }

  LayerSpec spec_;
  const RouterWeights* router_;
  int64_t num_experts_;  ///< that the router scores
  int64_t hidden_size_;
  HostTensor matrix_;  ///< [E, H] f32, times input_norm_scale
  HostTensor logit_bias_;
  HostTensor selection_bias_;
  HostTensor per_expert_scale_;
};

}  // namespace switchyard::cli
