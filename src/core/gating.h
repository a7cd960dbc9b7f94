#pragma once
// The definition of routing: router logits of one token -> experts in order of choice, and weights.
//
// The choice is made in f32, by one rule for every backend:
//  - ties go to the lower index; a key that is not a number comes last;
//  - without selection bias and sums over groups the logits themselves are compared: every scoring
//    is increasing, and rounding a score would make ties that the logits do not have;
//  - an expert outside the kept groups is never chosen, whatever the sign of the biased scores.

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/gating_score.h"
#include "core/host_device.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard {

/// Everything the choice depends on besides the logits. Counts without fused shared experts.
struct Gating {
  const RoutingSpec& spec;
  int64_t num_experts = 0;
  int64_t top_k = 0;
  const float* selection_bias = nullptr;    // [E] or null
  const float* per_expert_scale = nullptr;  // [E] or null
};

/// Working memory of one token's choice.
struct GatingScratch {
  float scores[kMaxExperts];
  float keys[kMaxExperts];
  float best_keys[kMaxExperts];  // of the experts or groups kept so far
  int32_t groups[kMaxExperts];
};

/// Divisor of renormalised weights at least: when every chosen score has underflowed, weights go to
/// 0 instead of NaN. Far above exp_nonpositive's cut at 1.6e-38, so that cut never shows.
inline constexpr float kSmallestDivisor = 1e-30f;

/// What the choice compares: NaN is lowest, and a subnormal is 0 in every flush-to-zero mode.
SWITCHYARD_HOST_DEVICE inline float selection_key(float value) {
  const float ordered = value == value ? value : -INFINITY;
  return std::abs(ordered) < FLT_MIN ? 0.0f : ordered;
}

/// Whether expert (or group) a is chosen before b.
SWITCHYARD_HOST_DEVICE inline bool precedes(float key_a, int32_t a, float key_b, int32_t b) {
  return key_a > key_b || (key_a == key_b && a < b);
}

/// The best `capacity` of what was offered, in order of choice, in the caller's arrays.
class TopK {
 public:
  SWITCHYARD_HOST_DEVICE TopK(float* keys, int32_t* ids, int64_t capacity)
      : keys_(keys), ids_(ids), capacity_(capacity) {}

  SWITCHYARD_HOST_DEVICE void offer(float key, int32_t id) {
    if (size_ == capacity_ && !precedes(key, id, keys_[size_ - 1], ids_[size_ - 1])) return;
    int64_t at = size_ < capacity_ ? size_++ : size_ - 1;
    for (; at > 0 && precedes(key, id, keys_[at - 1], ids_[at - 1]); --at) {
      keys_[at] = keys_[at - 1];
      ids_[at] = ids_[at - 1];
    }
    keys_[at] = key;
    ids_[at] = id;
  }

  /// Offers n keys of consecutive ids. Most blocks hold nothing good enough, and are passed over.
  SWITCHYARD_HOST_DEVICE void offer_range(const float* keys, int64_t n, int64_t first_id) {
    constexpr int64_t kBlock = 32;
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t end = begin + kBlock < n ? begin + kBlock : n;
      if (size_ == capacity_ && max_of(keys + begin, end - begin) < keys_[size_ - 1]) continue;
      for (int64_t i = begin; i < end; ++i) offer(keys[i], static_cast<int32_t>(first_id + i));
    }
  }

 private:
  float* keys_;
  int32_t* ids_;
  int64_t capacity_;
  int64_t size_ = 0;
};

/// keys[e] = what the choice compares: the logit, or score + selection_bias.
SWITCHYARD_HOST_DEVICE inline void selection_keys(const Gating& gating, const float* logits,
                                                  GatingScratch& scratch) {
  const RoutingSpec& spec = gating.spec;
  const int64_t n = gating.num_experts;
  const bool sums_groups = spec.num_groups > 1 && spec.group_score == GroupScore::kTop2Sum;
  if (gating.selection_bias == nullptr && !sums_groups) {
    for (int64_t e = 0; e < n; ++e) scratch.keys[e] = selection_key(logits[e]);
    return;
  }
  gating_scores(spec.scoring, logits, n, max_of(logits, n), scratch.scores);
  const float denominator = spec.scoring == Scoring::kSoftmax ? lane_sum(scratch.scores, n) : 1.0f;
  for (int64_t e = 0; e < n; ++e) {
    const float bias = gating.selection_bias == nullptr ? 0.0f : gating.selection_bias[e];
    scratch.keys[e] = selection_key(scratch.scores[e] / denominator + bias);
  }
}

/// Best key of a group, or the sum of its two best.
SWITCHYARD_HOST_DEVICE inline float group_key(GroupScore kind, const float* keys, int64_t n) {
  float best = -INFINITY;
  float second = -INFINITY;
  for (int64_t i = 0; i < n; ++i) {
    second = keys[i] > best ? best : (keys[i] > second ? keys[i] : second);
    best = keys[i] > best ? keys[i] : best;
  }
  return kind == GroupScore::kMax || n == 1 ? best : selection_key(best + second);
}

/// Writes ids[top_k], distinct and in order of choice. `logits` are finite (finite_logit).
SWITCHYARD_HOST_DEVICE inline void select_experts(const Gating& gating, const float* logits,
                                                  GatingScratch& scratch, int32_t* ids) {
  selection_keys(gating, logits, scratch);
  const RoutingSpec& spec = gating.spec;
  const int64_t group_size = gating.num_experts / spec.num_groups;
  const int32_t num_kept = spec.num_groups > 1 ? spec.topk_groups : 1;
  scratch.groups[0] = 0;
  if (spec.num_groups > 1) {
    TopK best_groups(scratch.best_keys, scratch.groups, num_kept);
    for (int32_t g = 0; g < spec.num_groups; ++g) {
      best_groups.offer(group_key(spec.group_score, scratch.keys + g * group_size, group_size), g);
    }
  }
  TopK best(scratch.best_keys, ids, gating.top_k);
  for (int32_t kept = 0; kept < num_kept; ++kept) {
    const int64_t first = scratch.groups[kept] * group_size;
    best.offer_range(scratch.keys + first, group_size, first);
  }
}

/// Writes the f32 weights of the chosen experts. A softmax's denominator cancels when weights are
/// renormalised without epsilon, and is then not computed.
SWITCHYARD_HOST_DEVICE inline void gating_weights(const Gating& gating, const float* logits,
                                                  const int32_t* ids, GatingScratch& scratch,
                                                  float* weights) {
  const RoutingSpec& spec = gating.spec;
  const int64_t n = gating.num_experts;
  const bool softmax = spec.scoring == Scoring::kSoftmax;
  const float max_logit = softmax ? max_of(logits, n) : 0.0f;
  float divisor = 1.0f;
  if (softmax && (!spec.renormalize || spec.renormalize_epsilon > 0)) {
    gating_scores(spec.scoring, logits, n, max_logit, scratch.scores);
    divisor = lane_sum(scratch.scores, n);
  }
  float sum = 0.0f;
  for (int64_t k = 0; k < gating.top_k; ++k) {
    weights[k] = gating_score(spec.scoring, logits[ids[k]], max_logit);
    sum += weights[k];
  }
  if (spec.renormalize) {
    divisor = mul_add(spec.renormalize_epsilon, divisor, sum);
    divisor = divisor < kSmallestDivisor ? kSmallestDivisor : divisor;
  }
  for (int64_t k = 0; k < gating.top_k; ++k) {
    const float scale = gating.per_expert_scale == nullptr ? 1.0f : gating.per_expert_scale[ids[k]];
    weights[k] = weights[k] / divisor * spec.routed_scaling_factor * scale;
  }
}

/// Element `index` of a contiguous kI32 or kI64 tensor.
SWITCHYARD_HOST_DEVICE inline int64_t index_at(const TensorView& ids, int64_t index) {
  return ids.type == DataType::kI64 ? static_cast<const int64_t*>(ids.data)[index]
                                    : static_cast<const int32_t*>(ids.data)[index];
}

/// Hash layers: writes the experts that tid2eid [vocab, K] lists for an input id. False, with
/// nothing usable written, for an id outside the vocabulary or an entry outside the experts: a GPU
/// cannot refuse those before the launch.
SWITCHYARD_HOST_DEVICE inline bool look_up_experts(const Gating& gating, const TensorView& tid2eid,
                                                   int64_t input_id, int32_t* ids) {
  if (input_id < 0 || input_id >= tid2eid.extent(0)) return false;
  for (int64_t k = 0; k < gating.top_k; ++k) {
    const int64_t expert = index_at(tid2eid, input_id * tid2eid.extent(1) + k);
    if (expert < 0 || expert >= gating.num_experts) return false;
    ids[k] = static_cast<int32_t>(expert);
  }
  return true;
}

/// Position of the first of `count` ids outside [0, limit), or -1: how validation finds a bad input
/// id (limit = vocabulary) or tid2eid entry (limit = experts).
inline int64_t first_id_outside(const TensorView& ids, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t id = index_at(ids, i);
    if (id < 0 || id >= limit) return i;
  }
  return -1;
}

}  // namespace switchyard
