// Routing, one warp per token: core/gating.h in the arithmetic and the order of that file, so the
// choice and the weights have the CPU's bits. Lane i holds experts i, i + 32, ...; a round of the
// choice is two warp reductions.

#include "core/gating.h"
#include "core/math.h"
#include "cuda/launch.cuh"
#include "cuda/route.h"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kLanes = 32;
constexpr uint32_t kAll = ~0u;
constexpr uint32_t kTaken = 0;  // below the key of every number, -infinity included

/// Unsigned integers in the order of the floats.
__device__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ float from_ordered(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

__device__ float warp_sum(float value) {  // lane_sum's halves
#pragma unroll
  for (int width = kLanes / 2; width > 0; width /= 2) value += __shfl_xor_sync(kAll, value, width);
  return value;
}
__device__ float warp_max(float value) {
  return from_ordered(__reduce_max_sync(kAll, ordered(value)));
}

/// kSlots experts per lane; kChoices choices (and groups) per lane. Up to 32 slots live in
/// registers, more in local memory.
template <int kSlots, int kChoices>
struct Router {
  static constexpr int kUnroll = kSlots <= 32 ? kSlots : 1;

  const RouteJob& job;
  const int64_t token;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  float logits[kSlots];
  uint32_t keys[kSlots];
  int32_t ids[kChoices];  // choice c * 32 + lane
  float weights[kChoices];

  __device__ Router(const RouteJob& the_job, int64_t the_token) : job(the_job), token(the_token) {}

  __device__ int expert(int slot) const { return slot * kLanes + lane; }
  __device__ bool has(int slot) const { return expert(slot) < job.num_experts; }

  __device__ float finite(float logit, int e) const {
    if (job.logit_bias != nullptr) logit += load_one(job.logit_bias, job.logit_bias_type, e);
    return finite_logit(logit);
  }
  __device__ void load_logits() {
    const int64_t first = token * job.num_experts;
    if (job.logits_type == DataType::kF32) {
      const float* row = static_cast<const float*>(job.logits) + first;
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) logits[j] = has(j) ? row[expert(j)] : 0.0f;
    } else {
      const uint16_t* row = static_cast<const uint16_t*>(job.logits) + first;
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) {
        const uint16_t code = has(j) ? row[expert(j)] : uint16_t{0};
        logits[j] = job.logits_type == DataType::kBf16 ? bf16_to_f32(code) : f16_bits_to_f32(code);
      }
    }
    if (job.logit_bias != nullptr) {
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) {
        if (has(j)) logits[j] += load_one(job.logit_bias, job.logit_bias_type, expert(j));
      }
    }
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; ++j) logits[j] = finite_logit(logits[j]);
  }

  __device__ float max_logit() const {
    float best = -FLT_MAX;
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; ++j) best = has(j) ? fmaxf(best, logits[j]) : best;
    return warp_max(best);
  }
  __device__ float denominator(float max) const {
    float sum = 0.0f;
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; ++j) {
      if (has(j)) sum += gating_score(Scoring::kSoftmax, logits[j], max);
    }
    return warp_sum(sum);
  }

  __device__ void make_keys() {
    const RoutingSpec& spec = job.spec;
    const bool sums_groups = spec.num_groups > 1 && spec.group_score == GroupScore::kTop2Sum;
    if (job.selection_bias == nullptr && !sums_groups) {
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) {
        keys[j] = has(j) ? ordered(selection_key(logits[j])) : kTaken;
      }
      return;
    }
    const bool softmax = spec.scoring == Scoring::kSoftmax;
    const float max = softmax ? max_logit() : 0.0f;
    const float divisor = softmax ? denominator(max) : 1.0f;
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; ++j) {
      keys[j] = kTaken;
      if (!has(j)) continue;
      const float bias = job.selection_bias == nullptr ? 0.0f : job.selection_bias[expert(j)];
      const float score = gating_score(spec.scoring, logits[j], max);
      keys[j] = ordered(selection_key((softmax ? score / divisor : score) + bias));
    }
  }

  /// Key of a group from every lane's two best in it.
  __device__ uint32_t group_key(uint32_t best, uint32_t second, int group_size) const {
    const uint32_t first = __reduce_max_sync(kAll, best);
    if (job.spec.group_score == GroupScore::kMax || group_size == 1) return first;
    const int winner = __ffs(static_cast<int>(__ballot_sync(kAll, best == first))) - 1;
    const uint32_t runner_up = __reduce_max_sync(kAll, lane == winner ? second : best);
    return ordered(selection_key(from_ordered(first) + from_ordered(runner_up)));
  }
  __device__ static void offer(uint32_t key, uint32_t& best, uint32_t& second) {
    second = key > best ? best : max(second, key);
    best = max(best, key);
  }
  /// Lane g % 32 gets the key of group g in entry g / 32.
  __device__ void make_group_keys(int group_size, uint32_t (&group_keys)[kChoices]) const {
    const bool whole_slots = group_size % kLanes == 0;
    uint32_t best = kTaken;
    uint32_t second = kTaken;
    if (whole_slots) {  // a group is a run of slots: one pass over them
      int group = 0;
      int left = group_size / kLanes;
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) {
        offer(keys[j], best, second);
        if (--left > 0 || group >= job.spec.num_groups) continue;
        const uint32_t key = group_key(best, second, group_size);
        if (group % kLanes == lane) group_keys[group / kLanes] = key;
        ++group;
        left = group_size / kLanes;
        best = second = kTaken;
      }
      return;
    }
    for (int group = 0; group < job.spec.num_groups; ++group) {
      best = second = kTaken;
#pragma unroll kUnroll
      for (int j = 0; j < kSlots; ++j) {
        const auto offset = static_cast<unsigned>(expert(j) - group * group_size);
        if (offset < static_cast<unsigned>(group_size)) offer(keys[j], best, second);
      }
      const uint32_t key = group_key(best, second, group_size);
      if (group % kLanes == lane) group_keys[group / kLanes] = key;
    }
  }
  /// Takes the experts outside the best groups out of the choice.
  __device__ void keep_best_groups() {
    if (job.spec.num_groups <= 1) return;
    const int group_size = job.num_experts / job.spec.num_groups;
    uint32_t group_keys[kChoices];
#pragma unroll
    for (int c = 0; c < kChoices; ++c) group_keys[c] = kTaken;
    make_group_keys(group_size, group_keys);
    uint32_t kept[kChoices] = {};
    for (int i = 0; i < job.spec.topk_groups; ++i) {
      const int group = take_best(group_keys);
#pragma unroll
      for (int c = 0; c < kChoices; ++c) {
        if (group / kLanes == c) kept[c] |= 1u << (group % kLanes);
      }
    }
    const int last_group = job.spec.num_groups - 1;
#pragma unroll kUnroll
    for (int j = 0; j < kSlots; ++j) {
      const int group = min(expert(j) / group_size, last_group);
      uint32_t word = kept[0];
#pragma unroll
      for (int c = 1; c < kChoices; ++c) word = group / kLanes == c ? kept[c] : word;
      if ((word >> (group % kLanes) & 1u) == 0) keys[j] = kTaken;
    }
  }

  /// Largest of an array, as a tree: the chain of a round is what a single token waits for.
  template <int kCount>
  __device__ static uint32_t largest(const uint32_t (&from)[kCount]) {
    uint32_t tree[kCount];
#pragma unroll kUnroll
    for (int j = 0; j < kCount; ++j) tree[j] = from[j];
#pragma unroll
    for (int width = kCount / 2; width > 0; width /= 2) {
#pragma unroll kUnroll
      for (int j = 0; j < width; ++j) tree[j] = max(tree[j], tree[j + width]);
    }
    return tree[0];
  }
  /// Index (slot * 32 + lane) of the largest key of the warp, the lowest on a tie; takes it out.
  template <int kCount>
  __device__ int take_best(uint32_t (&from)[kCount]) const {
    const uint32_t winner = __reduce_max_sync(kAll, largest(from));
    uint32_t slots = 0;  // bit j: slot j holds the winner; at most 32 at a time
    int base = 0;
#pragma unroll kUnroll
    for (int j = 0; j < kCount; ++j) {
      if (kCount > 32 && j % 32 == 0 && slots == 0) base = j;
      if (kCount <= 32 || j - base < 32) slots |= (from[j] == winner ? 1u : 0u) << (j - base);
    }
    const int slot = base + __ffs(static_cast<int>(slots)) - 1;
    const auto candidate = slots != 0 ? static_cast<unsigned>(slot * kLanes + lane) : kAll;
    const int index = static_cast<int>(__reduce_min_sync(kAll, candidate));
#pragma unroll kUnroll
    for (int j = 0; j < kCount; ++j) {
      if (j * kLanes + lane == index) from[j] = kTaken;
    }
    return index;
  }

  __device__ void choose() {
    make_keys();
    keep_best_groups();
    for (int k = 0; k < job.top_k; ++k) {
      const int id = take_best(keys);
#pragma unroll
      for (int c = 0; c < kChoices; ++c) {
        if (k == c * kLanes + lane) ids[c] = id;
      }
    }
  }

  /// False for an id outside the vocabulary or an entry outside the experts.
  __device__ bool look_up() {
    const int64_t input = job.input_ids_wide ? static_cast<const int64_t*>(job.input_ids)[token]
                                             : static_cast<const int32_t*>(job.input_ids)[token];
    if (input < 0 || input >= job.vocab) return false;
    bool inside = true;
#pragma unroll
    for (int c = 0; c < kChoices; ++c) {
      const int k = c * kLanes + lane;
      if (k >= job.top_k) continue;
      const int64_t at = input * job.top_k + k;
      const int64_t id = job.tid2eid_wide ? static_cast<const int64_t*>(job.tid2eid)[at]
                                          : static_cast<const int32_t*>(job.tid2eid)[at];
      inside = inside && id >= 0 && id < job.num_experts;
      ids[c] = static_cast<int32_t>(id);
    }
    return __all_sync(kAll, inside) != 0;
  }

  __device__ void weigh() {
    const RoutingSpec& spec = job.spec;
    const bool softmax = spec.scoring == Scoring::kSoftmax;
    const float max = softmax ? max_logit() : 0.0f;
    float divisor = 1.0f;
    if (softmax && (!spec.renormalize || spec.renormalize_epsilon > 0)) divisor = denominator(max);
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < kChoices; ++c) {
      weights[c] = 0.0f;
      if (c * kLanes + lane < job.top_k) {
        const float logit = load_one(job.logits, job.logits_type, token * job.num_experts + ids[c]);
        weights[c] = gating_score(spec.scoring, finite(logit, ids[c]), max);
      }
      const int last = min(kLanes, job.top_k - c * kLanes);
      for (int k = 0; k < last; ++k) sum += __shfl_sync(kAll, weights[c], k);
    }
    if (spec.renormalize) {
      divisor = mul_add(spec.renormalize_epsilon, divisor, sum);
      divisor = divisor < kSmallestDivisor ? kSmallestDivisor : divisor;
    }
#pragma unroll
    for (int c = 0; c < kChoices; ++c) {
      if (c * kLanes + lane >= job.top_k) continue;
      const float scale = job.per_expert_scale == nullptr ? 1.0f : job.per_expert_scale[ids[c]];
      weights[c] = weights[c] / divisor * spec.routed_scaling_factor * scale;
    }
  }

  __device__ void write(bool valid) const {
    const int columns = job.top_k + job.num_fused_shared;
    const int64_t first = token * columns;
#pragma unroll
    for (int c = 0; c < kChoices; ++c) {
      const int k = c * kLanes + lane;
      if (k >= job.top_k) continue;
      job.topk_ids[first + k] = valid ? ids[c] : -1;
      job.topk_weights[first + k] = valid ? weights[c] : 0.0f;
    }
    for (int k = job.top_k + lane; k < columns; k += kLanes) {
      job.topk_ids[first + k] = valid ? job.num_experts + k - job.top_k : -1;
      job.topk_weights[first + k] = valid ? job.fused_shared_weight : 0.0f;
    }
  }
};

template <int kSlots, int kChoices>
__global__ void __launch_bounds__(kWarpsPerBlock* kLanes) route_kernel(const RouteJob job) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kLanes;
  if (token >= job.tokens.limit) return;
  Router<kSlots, kChoices> router(job, token);
  router.load_logits();
  bool valid = token < job.tokens.value();
  if (valid && job.spec.hash) {
    valid = router.look_up();
  } else if (valid) {
    router.choose();
  }
  if (valid) router.weigh();
  router.write(valid);
}

}  // namespace

void route(const RouteJob& job, Stream stream) {
  if (job.tokens.limit == 0) return;
  const bool wide = job.top_k > kLanes || job.spec.num_groups > kLanes;
  const auto kernel = wide || job.num_experts > 1024 ? route_kernel<128, 4>
                      : job.num_experts > 512        ? route_kernel<32, 1>
                      : job.num_experts > 256        ? route_kernel<16, 1>
                      : job.num_experts > 128        ? route_kernel<8, 1>
                                                     : route_kernel<4, 1>;
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(job.tokens.limit, kWarpsPerBlock));
  launch(kernel, {.grid = blocks, .block = kWarpsPerBlock * kLanes},
         static_cast<cudaStream_t>(stream.handle), job);
}

}  // namespace switchyard::cuda
