#pragma once
// One token routed by one warp: core/gating.h in the arithmetic and the order of that file, so the
// choice and the weights have the CPU's bits.
//
// Lane l holds experts l * kSlots ... (l + 1) * kSlots - 1: a group is a run of lanes, and lanes in
// order are experts in order. The top k are found in two steps: the k-th largest of the lanes'
// maxima is a threshold that few experts reach, and those few are ranked against each other. Steps
// compare all with all through shared memory: rounds of warp reductions (46 clocks each) are a
// longer chain, which is what a single token waits for.

#include "core/gating.h"
#include "core/math.h"
#include "cuda/route.h"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda {

inline constexpr int kLanes = 32;
inline constexpr uint32_t kAllLanes = ~0u;

/// What a kernel may know of the method: most of a token's time went to code for the others.
enum class RouteKind {
  kAny,
  kLogits,  ///< renormalised softmax of whole lanes: logits are compared, few of them weighed
  /// Score and selection bias of whole lanes, with groups of whole lanes or none.
  kBiasedSigmoid,
  kBiasedSqrtSoftplus,
};
/// Whether there is a kernel of this kind for so many slots; else kAny takes its place. Nobody's
/// softmax has more than 512 experts, nobody's sqrt-softplus less than 129 or more than 512.
constexpr bool has_route_kernel(int slots, RouteKind kind) {
  switch (kind) {
    case RouteKind::kLogits: return slots <= 16;
    case RouteKind::kBiasedSigmoid: return slots <= 32;
    case RouteKind::kBiasedSqrtSoftplus: return slots == 8 || slots == 16;
    case RouteKind::kAny: break;
  }
  return true;
}

/// Kernels::get<kSlots, kind>() of the kind that there is.
template <class Kernels, int kSlots>
auto route_kernel_of(RouteKind kind) {
  switch (kind) {
    case RouteKind::kLogits:
      if constexpr (has_route_kernel(kSlots, RouteKind::kLogits)) {
        return Kernels::template get<kSlots, RouteKind::kLogits>();
      }
      break;
    case RouteKind::kBiasedSigmoid:
      if constexpr (has_route_kernel(kSlots, RouteKind::kBiasedSigmoid)) {
        return Kernels::template get<kSlots, RouteKind::kBiasedSigmoid>();
      }
      break;
    case RouteKind::kBiasedSqrtSoftplus:
      if constexpr (has_route_kernel(kSlots, RouteKind::kBiasedSqrtSoftplus)) {
        return Kernels::template get<kSlots, RouteKind::kBiasedSqrtSoftplus>();
      }
      break;
    case RouteKind::kAny: break;
  }
  return Kernels::template get<kSlots, RouteKind::kAny>();
}

struct RouteParams {
  RouteJob job;
  RouteKind kind;
  bool throughput;   ///< many tokens: fewer instructions; else a shorter chain
  bool whole_lanes;  ///< a lane's logits and biases are all there and aligned, or none is
  int group_shift;   ///< a group is 2^group_shift whole lanes; or -1
};

RouteParams route_params(const RouteJob& job);
/// The kSlots of a TokenRouter for so many experts.
int route_slots(int32_t num_experts);

/// Shared memory of one warp. A key that is NaN takes no part: no comparison finds it larger.
struct alignas(16) RouteScratch {
  float lane_keys[kLanes];     // best of each lane
  float keys[kLanes];          // of the candidates, ascending experts
  int32_t candidates[kLanes];  // their experts
  float values[kLanes];        // and what their weights are made of
  float group_keys[kMaxRoutedGroups];
  bool kept[kMaxRoutedGroups];
  int32_t ids[kMaxTopK + 1];   // in order of choice
  float scores[kMaxTopK + 1];  // likewise
};

/// Unsigned integers in the order of the floats, and back.
__device__ inline uint32_t ordered(float value) {
  const auto bits = static_cast<int32_t>(__float_as_uint(value));
  return static_cast<uint32_t>(bits ^ (bits >> 31 | INT32_MIN));
}
__device__ inline float from_ordered(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}
/// numerator / denominator as IEEE rounds it, for a denominator in [1, 3] and a numerator in [0, 1]
/// that is not below 2^-25 unless the denominator is 1: the hardware's own steps without the branch
/// for other ranges, which would keep the slots' chains from overlapping.
__device__ inline float divide_in_range(float numerator, float denominator) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(denominator));
  inverse = fmaf(fmaf(-denominator, inverse, 1.0f), inverse, inverse);
  float quotient = numerator * inverse;
  quotient = fmaf(fmaf(-denominator, quotient, numerator), inverse, quotient);
  return fmaf(fmaf(-denominator, quotient, numerator), inverse, quotient);
}
/// sigmoid() of core/portable_math.h.
__device__ inline float branchless_sigmoid(float x) {
  const float z = exp_nonpositive(-fabsf(x));
  return divide_in_range(x < 0.0f ? z : 1.0f, 1.0f + z);
}
/// sqrt_softplus() of core/gating_score.h. From -17 on everything is in the ranges where the
/// hardware's own steps round as IEEE does: quotients from 2^-26 or too small to matter, roots of
/// 4e-8 and more. Below, the exponential is all.
__device__ inline float branchless_sqrt_softplus(float x) {
  const bool is_small = x < -17.0f;
  const float z = exp_nonpositive(is_small ? 0.5f * x : -fabsf(x));
  const float value = fmaxf(x, 0.0f) + log_of_ratio(divide_in_range(z, 2.0f + z));
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(value));
  const float root = value * inverse;
  const float rounded = fmaf(fmaf(-root, root, value), 0.5f * inverse, root);
  return is_small ? z : rounded;
}
/// selection_key of a finite number, and NaN for NaN.
__device__ inline float flushed(float value) {
  float key;
  asm("add.ftz.f32 %0, %1, 0f00000000;" : "=f"(key) : "f"(value));
  return key;
}

/// A column of a token's choice.
__device__ inline void write_choice(const RouteJob& job, int64_t token, int k, int32_t id,
                                    float weight) {
  const int64_t at = token * (job.top_k + job.num_fused_shared) + k;
  job.topk_ids[at] = id;
  job.topk_weights[at] = weight;
  if (k >= job.top_k) return;
  if (job.routed_ids != nullptr) job.routed_ids[token * job.top_k + k] = id;
  if (job.routed_weights != nullptr) job.routed_weights[token * job.top_k + k] = weight;
}

template <int kSlots, RouteKind kKind = RouteKind::kAny>
class TokenRouter {
 public:
  __device__ TokenRouter(const RouteParams& params, RouteScratch& scratch)
      : job_(params.job),
        whole_lanes_(kKind != RouteKind::kAny || params.whole_lanes),
        throughput_(params.throughput),
        group_shift_(params.group_shift),
        scratch_(scratch) {}

  /// Before route(): selection biases come from far away, so a layer, whose biases never change,
  /// asks for them before it waits for the logits.
  __device__ void load_biases() {
    if (!hash() && !keys_are_logits()) load_biases(keys_);
  }
  /// Calls emit(column, expert, weight) for this lane's columns of topk_ids, those k with k % 32 ==
  /// lane; expert -1 for a token that is not there, and for the choices of one without experts.
  template <class Emit>
  __device__ void route(int64_t token, bool exists, Emit emit) {
    first_logit_ = token * job_.num_experts;
    bool routed = exists;
    if (exists) {
      load_logits();
      if (hash()) {
        routed = look_up(token);
      } else {
        choose();
      }
    }
    const float divisor = routed ? weigh() : 1.0f;
    const int columns = job_.top_k + job_.num_fused_shared;
    for (int k = lane_; k < columns; k += kLanes) {
      if (!exists || (!routed && k < job_.top_k)) {
        emit(k, -1, 0.0f);
      } else if (k >= job_.top_k) {
        const float weight =
            job_.shared_weights == nullptr ? job_.fused_shared_weight : job_.shared_weights[token];
        emit(k, job_.num_experts + k - job_.top_k, weight);
      } else {
        const int id = scratch_.ids[k];
        const float scale = job_.per_expert_scale == nullptr ? 1.0f : job_.per_expert_scale[id];
        emit(k, id, scratch_.scores[k] / divisor * job_.spec.routed_scaling_factor * scale);
      }
    }
  }

 private:
  static constexpr bool kBiased =
      kKind == RouteKind::kBiasedSigmoid || kKind == RouteKind::kBiasedSqrtSoftplus;
  static constexpr int kUnroll = kSlots <= 32 ? kSlots : 1;  // more slots live in local memory

  __device__ static float nothing() { return __uint_as_float(0x7fffffffu); }
  __device__ int expert(int slot) const { return lane_ * kSlots + slot; }
  __device__ bool has(int slot) const { return expert(slot) < job_.num_experts; }

  __device__ float logit_bias(int e) const {
    return load_one(job_.logit_bias, job_.logit_bias_type, e);
  }
  __device__ static float finite(float logit) {
    return fminf(fmaxf(logit, -FLT_MAX), FLT_MAX);  // finite_logit: fmaxf prefers the number to NaN
  }
  __device__ float logit_of(int e) const {
    const float logit = load_one(job_.logits, job_.logits_type, first_logit_ + e);
    return finite(job_.logit_bias == nullptr ? logit : logit + logit_bias(e));
  }

  /// This lane's part of a row of floats.
  __device__ static void load_floats(const float* row, float (&to)[kSlots]) {
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; j += 4) {
      const float4 four = reinterpret_cast<const float4*>(row)[j / 4];
      to[j] = four.x;
      to[j + 1] = four.y;
      to[j + 2] = four.z;
      to[j + 3] = four.w;
    }
  }
  __device__ void load_halves(const uint16_t* row, bool bf16) {
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; j += 4) {
      const uint2 four = reinterpret_cast<const uint2*>(row)[j / 4];
      const uint32_t pairs[] = {four.x, four.y};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        logits_[j + 2 * i] = bf16 ? __uint_as_float(pairs[i] << 16) : f16_bits_to_f32(pairs[i]);
        logits_[j + 2 * i + 1] =
            bf16 ? __uint_as_float(pairs[i] & 0xffff0000u) : f16_bits_to_f32(pairs[i] >> 16);
      }
    }
  }
  /// NaN in slots without an expert.
  __device__ void load_logits() {
    if (!whole_lanes_) {
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) logits_[j] = has(j) ? logit_of(expert(j)) : nothing();
      return;
    }
    if (!has(0)) {
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) logits_[j] = nothing();
      return;
    }
    const int64_t at = first_logit_ + expert(0);
    if (job_.logits_type == DataType::kF32) {
      load_floats(static_cast<const float*>(job_.logits) + at, logits_);
    } else {
      load_halves(static_cast<const uint16_t*>(job_.logits) + at,
                  job_.logits_type == DataType::kBf16);
    }
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; ++j) {
      if (job_.logit_bias != nullptr) logits_[j] += logit_bias(expert(j));
      logits_[j] = finite(logits_[j]);
    }
  }

  __device__ Scoring scoring() const {
    switch (kKind) {
      case RouteKind::kLogits: return Scoring::kSoftmax;
      case RouteKind::kBiasedSigmoid: return Scoring::kSigmoid;
      case RouteKind::kBiasedSqrtSoftplus: return Scoring::kSqrtSoftplus;
      case RouteKind::kAny: break;
    }
    return job_.spec.scoring;
  }
  __device__ bool is_softmax() const { return scoring() == Scoring::kSoftmax; }
  __device__ bool hash() const { return kKind == RouteKind::kAny && job_.spec.hash; }
  __device__ bool has_groups() const {
    return kKind != RouteKind::kLogits && job_.spec.num_groups > 1;
  }
  __device__ bool has_selection_bias() const {
    return kBiased || (kKind == RouteKind::kAny && job_.selection_bias != nullptr);
  }
  /// Largest of the warp; NaN does not count, and there are other numbers.
  __device__ static float warp_max(float value) {
    return from_ordered(__reduce_max_sync(kAllLanes, ordered(fmaxf(value, -FLT_MAX))));
  }
  /// Sum over all experts in lane_sum's order, which is not that of the slots: reads them again.
  __device__ float denominator() const {
    float sum = 0.0f;
    for (int e = lane_; e < job_.num_experts; e += kLanes) {
      sum += gating_score(Scoring::kSoftmax, logit_of(e), max_);
    }
#pragma unroll
    for (int width = kLanes / 2; width > 0; width /= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, width);
    }
    return sum;
  }

  __device__ bool keys_are_logits() const {
    return !has_selection_bias() &&
           !(has_groups() && job_.spec.group_score == GroupScore::kTop2Sum);
  }
  __device__ void load_biases(float (&biases)[kSlots]) const {
    if (has_selection_bias() && whole_lanes_ && has(0)) {
      return load_floats(job_.selection_bias + expert(0), biases);
    }
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; ++j) {
      biases[j] = has_selection_bias() && has(j) ? job_.selection_bias[expert(j)] : 0.0f;
    }
  }
  /// Scores take the logits' place. One loop per scoring, so that the slots' chains overlap.
  __device__ void score_logits() {
    if (scoring() == Scoring::kSigmoid) {
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) logits_[j] = branchless_sigmoid(logits_[j]);
    } else if (is_softmax()) {
      max_ = warp_max(largest(logits_));
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) logits_[j] = exp_nonpositive(logits_[j] - max_);
    } else {
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) {
        logits_[j] = branchless_sqrt_softplus(logits_[j]);
      }
    }
  }
  /// Keys in the place of the biases.
  __device__ void make_keys() {
    if (keys_are_logits()) {
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) keys_[j] = flushed(logits_[j]);
      return;
    }
    score_logits();
    const float divisor = is_softmax() ? denominator() : 1.0f;
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; ++j) {
      const float score = is_softmax() ? logits_[j] / divisor : logits_[j];
      keys_[j] = has(j) ? selection_key(score + keys_[j]) : nothing();
    }
  }

  __device__ static void offer(float key, float& best, float& second) {
    second = fmaxf(second, fminf(best, key));
    best = fmaxf(best, key);
  }
  __device__ float group_key(float best, float second) const {
    return job_.spec.group_score == GroupScore::kMax ? best : selection_key(best + second);
  }
  /// Groups that are whole lanes: every lane ranks its own. Without shared memory and divisions,
  /// which were a quarter of a token's time.
  __device__ void keep_best_groups() {
    float best = -INFINITY;
    float second = -INFINITY;
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; ++j) offer(keys_[j], best, second);
    for (int width = 1; width < 1 << group_shift_; width *= 2) {
      const float other_best = __shfl_xor_sync(kAllLanes, best, width);
      const float other_second = __shfl_xor_sync(kAllLanes, second, width);
      second = fmaxf(fmaxf(second, other_second), fminf(best, other_best));
      best = fmaxf(best, other_best);
    }
    const float key = has(0) ? group_key(best, second) : nothing();
    const int group = lane_ >> group_shift_;
    constexpr int kAtOnce = 8;
    int rank = 0;
    for (int first = 0; first < job_.spec.num_groups; first += kAtOnce) {
#pragma unroll
      for (int other = first; other < first + kAtOnce; ++other) {
        const float its_key = __shfl_sync(kAllLanes, key, other << group_shift_);
        const bool exists = other < job_.spec.num_groups;
        rank += exists && precedes(its_key, other, key, group) ? 1 : 0;
      }
    }
    const bool kept = has(0) && rank < job_.spec.topk_groups;
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; ++j) {
      if (!kept) keys_[j] = nothing();
    }
  }
  /// Groups of any size, one after the other.
  __device__ void find_uneven_group_keys(int group_size) {
    for (int group = 0; group < job_.spec.num_groups; ++group) {
      float best = -INFINITY;
      float second = -INFINITY;
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) {
        const auto offset = static_cast<unsigned>(expert(j) - group * group_size);
        if (offset < static_cast<unsigned>(group_size)) offer(keys_[j], best, second);
      }
      const uint32_t all_best = __reduce_max_sync(kAllLanes, ordered(best));
      const uint32_t holders = __ballot_sync(kAllLanes, ordered(best) == all_best);
      const bool first = lane_ == __ffs(static_cast<int>(holders)) - 1;
      const uint32_t all_second = __reduce_max_sync(kAllLanes, ordered(first ? second : best));
      if (lane_ == 0) {
        const float best_key = from_ordered(all_best);
        scratch_.group_keys[group] =
            group_size == 1 ? best_key : group_key(best_key, from_ordered(all_second));
      }
    }
  }
  __device__ void keep_best_uneven_groups() {
    const int num_groups = job_.spec.num_groups;
    const int group_size = job_.num_experts / num_groups;
    find_uneven_group_keys(group_size);
    __syncwarp();
    for (int group = lane_; group < num_groups; group += kLanes) {
      const float key = scratch_.group_keys[group];
      int rank = 0;
      for (int other = 0; other < num_groups; ++other) {
        rank += precedes(scratch_.group_keys[other], other, key, group) ? 1 : 0;
      }
      scratch_.kept[group] = rank < job_.spec.topk_groups;
    }
    __syncwarp();
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; ++j) {
      if (!has(j) || !scratch_.kept[expert(j) / group_size]) keys_[j] = nothing();
    }
  }

  /// Largest of the lane, as a tree.
  __device__ static float largest(const float (&values)[kSlots]) {
    float tree[kSlots];
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; ++j) tree[j] = values[j];
#pragma unroll
    for (int width = kSlots / 2; width > 0; width /= 2) {
#pragma unroll kUnroll
      for (int j = 0; j < width; ++j) tree[j] = fmaxf(tree[j], tree[j + width]);
    }
    return tree[0];
  }
  /// A key that at least top_k experts reach: of the lanes' best ones the k-th largest.
  __device__ float threshold_key() {
    const float best = largest(keys_);
    const bool counts = best == best;
    if (__popc(__ballot_sync(kAllLanes, counts)) < job_.top_k) return -INFINITY;
    if (job_.top_k <= 8 && throughput_) {
      uint32_t left = counts ? ordered(best) : 0;
      uint32_t lowest = 0;
      for (int k = 0; k < job_.top_k; ++k) {
        lowest = __reduce_max_sync(kAllLanes, left);
        if (left == lowest) left = 0;
      }
      return lowest == 0 ? -INFINITY : from_ordered(lowest);
    }
    scratch_.lane_keys[lane_] = best;
    __syncwarp();
    int rank = 0;
#pragma unroll
    for (int first = 0; first < kLanes; first += 4) {
      const float4 four = *reinterpret_cast<const float4*>(scratch_.lane_keys + first);
      rank += (four.x > best ? 1 : 0) + (four.y > best ? 1 : 0) + (four.z > best ? 1 : 0) +
              (four.w > best ? 1 : 0);
    }
    return from_ordered(
        __reduce_min_sync(kAllLanes, counts && rank < job_.top_k ? ordered(best) : kAllLanes));
  }
  /// Moves the experts that reach the threshold to scratch, in order, and returns how many they
  /// are; more than kLanes are only counted.
  __device__ int gather_candidates(float threshold) {
    uint32_t chosen = 0;
#pragma unroll
    for (int j = 0; j < kSlots; ++j) chosen |= keys_[j] >= threshold ? 1u << j : 0u;
    const int count = __popc(chosen);
    const uint32_t lower_lanes = (1u << lane_) - 1;
    int before = 0;
    int all = 0;
#pragma unroll
    for (int bit = 1; bit <= kSlots; bit *= 2) {
      const uint32_t lanes = __ballot_sync(kAllLanes, (count & bit) != 0);
      before += bit * __popc(lanes & lower_lanes);
      all += bit * __popc(lanes);
    }
    if (all > kLanes) return all;
    scratch_.keys[lane_] = nothing();
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
      if ((chosen >> j & 1u) == 0) continue;
      scratch_.keys[before] = keys_[j];
      scratch_.candidates[before] = expert(j);
      scratch_.values[before] = logits_[j];
      ++before;
    }
    __syncwarp();
    return all;
  }
  /// Every candidate counts those that precede it: its place in the order of choice.
  __device__ void rank_candidates(int count) {
    const float key = scratch_.keys[lane_];
    int rank = 0;
    for (int first = 0; first < count; first += 4) {
      const float4 four = *reinterpret_cast<const float4*>(scratch_.keys + first);
      const float others[] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) rank += precedes(others[i], first + i, key, lane_) ? 1 : 0;
    }
    if (lane_ < count && rank < job_.top_k) {
      scratch_.ids[rank] = scratch_.candidates[lane_];
      scratch_.scores[rank] = scratch_.values[lane_];
    }
  }
  /// The plain way, for many equal keys and many choices: a round takes the best of all.
  __device__ void take_one_by_one() {
    for (int k = 0; k < job_.top_k; ++k) {
      const float best = largest(keys_);
      const float winner =
          from_ordered(__reduce_max_sync(kAllLanes, best == best ? ordered(best) : 0u));
      auto mine = kAllLanes;
#pragma unroll kUnroll
      for (int j = kSlots - 1; j >= 0; --j) {
        if (keys_[j] == winner) mine = static_cast<uint32_t>(expert(j));
      }
      const auto id = static_cast<int>(__reduce_min_sync(kAllLanes, mine));
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) {
        if (expert(j) != id) continue;
        keys_[j] = nothing();
        scratch_.ids[k] = id;
        scratch_.scores[k] = logits_[j];
      }
    }
  }

  /// Experts in order of choice to scratch, and the logit or score of each.
  __device__ void choose() {
    make_keys();
    if (has_groups()) {
      kBiased || group_shift_ >= 0 ? keep_best_groups() : keep_best_uneven_groups();
    }
    if constexpr (kSlots <= kLanes) {
      if (job_.top_k <= kLanes) {
        const int count = gather_candidates(threshold_key());
        if (count <= kLanes) return rank_candidates(count);
      }
    }
    take_one_by_one();
  }

  /// The same from the table; false for an id outside the vocabulary or an entry outside the
  /// experts.
  __device__ bool look_up(int64_t token) {
    const int64_t input = job_.input_ids_wide ? static_cast<const int64_t*>(job_.input_ids)[token]
                                              : static_cast<const int32_t*>(job_.input_ids)[token];
    if (input < 0 || input >= job_.vocab) return false;
    if (is_softmax()) max_ = warp_max(largest(logits_));
    bool inside = true;
    for (int k = lane_; k < job_.top_k; k += kLanes) {
      const int64_t at = input * job_.top_k + k;
      const int64_t id = job_.tid2eid_wide ? static_cast<const int64_t*>(job_.tid2eid)[at]
                                           : static_cast<const int32_t*>(job_.tid2eid)[at];
      const bool valid = id >= 0 && id < job_.num_experts;
      inside = inside && valid;
      scratch_.ids[k] = static_cast<int32_t>(id);
      scratch_.scores[k] = valid ? logit_of(static_cast<int>(id)) : 0.0f;
    }
    return __all_sync(kAllLanes, inside) != 0;
  }

  /// Makes scores of what choose() left; returns what divides them.
  __device__ float weigh() {
    const RoutingSpec& spec = job_.spec;
    const bool logits = hash() || keys_are_logits();
    __syncwarp();
    // The first choice is the largest logit; a subnormal one is taken for 0, which scores alike.
    if (logits && !hash()) max_ = flushed(scratch_.scores[0]);
    for (int k = lane_; k < align_up(job_.top_k, 4); k += kLanes) {
      const float value = scratch_.scores[k];
      const float score = logits ? gating_score(scoring(), value, max_) : value;
      scratch_.scores[k] = k < job_.top_k ? score : 0.0f;
    }
    __syncwarp();
    float divisor = 1.0f;
    if (kKind != RouteKind::kLogits && is_softmax() &&
        (!spec.renormalize || spec.renormalize_epsilon > 0)) {
      divisor = denominator();
    }
    if (kKind != RouteKind::kLogits && !spec.renormalize) return divisor;
    float sum = 0.0f;
    for (int k = 0; k < job_.top_k; k += 4) {
      const float4 four = *reinterpret_cast<const float4*>(scratch_.scores + k);
      sum += four.x;
      sum += four.y;
      sum += four.z;
      sum += four.w;
    }
    divisor = mul_add(spec.renormalize_epsilon, divisor, sum);
    return divisor < kSmallestDivisor ? kSmallestDivisor : divisor;
  }

  const RouteJob& job_;
  const bool whole_lanes_, throughput_;
  const int group_shift_;
  RouteScratch& scratch_;
  const int lane_ = static_cast<int>(threadIdx.x) % kLanes;
  int64_t first_logit_ = 0;
  float max_ = 0.0f;      // of the logits, for a softmax
  float logits_[kSlots];  // or scores
  float keys_[kSlots];
};

}  // namespace switchyard::cuda
