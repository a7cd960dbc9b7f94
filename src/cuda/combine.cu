// Weighted sum over the K slots of a token, in slot order, f32. One thread owns a few columns of
// one token and has the loads of four slots in flight.

#include "core/math.h"
#include "cuda/combine.h"
#include "cuda/launch.cuh"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kSlotsInFlight = 4;

/// Adds slots k .. k + 3 of `token`. All loads of a kind come before the first use of one; slots
/// past the last repeat it, unused.
template <bool kAligned>
__device__ void add_slots(const CombineJob& job, int64_t token, int k, int64_t column,
                          float (&sum)[kVector]) {
  int64_t pair[kSlotsInFlight];
  float weight[kSlotsInFlight];
  bool used[kSlotsInFlight];
  RawVector raw[kSlotsInFlight];
#pragma unroll
  for (int i = 0; i < kSlotsInFlight; ++i) {
    pair[i] = token * job.top_k + min(k + i, job.top_k - 1);
    weight[i] = job.topk_weights == nullptr ? 1.0f : job.topk_weights[pair[i]];
    const int32_t id = job.topk_ids == nullptr ? 0 : job.topk_ids[pair[i]];
    used[i] = k + i < job.top_k && id >= 0 && (job.topk_ids == nullptr || id < job.num_experts);
    if (used[i] && job.expert_mask != nullptr) used[i] = job.expert_mask[id] != 0;
  }
#pragma unroll
  for (int i = 0; i < kSlotsInFlight; ++i) {
    if (kAligned && used[i]) {
      raw[i] = load_raw(job.expert_output, job.input_type, pair[i] * job.width + column);
    }
  }
  float value[kVector];
#pragma unroll
  for (int i = 0; i < kSlotsInFlight; ++i) {
    if (!used[i]) continue;
    if constexpr (kAligned) {
      unpack(raw[i], job.input_type, value);
    } else {
      load_vector(job.expert_output, job.input_type, pair[i] * job.width + column,
                  (pair[i] + 1) * job.width, false, value);
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) sum[j] = fmaf(weight[i], value[j], sum[j]);
  }
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const CombineJob job, unsigned column_blocks) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t token = blockIdx.x / column_blocks;
  const int64_t column =
      (static_cast<int64_t>(blockIdx.x % column_blocks) * kThreads + threadIdx.x) * kVector;
  if (column >= job.width || token >= job.tokens.value()) return;
  float sum[kVector] = {};
  const int64_t end = (token + 1) * job.width;
  if (job.addend != nullptr) {
    load_vector(job.addend, job.addend_type, token * job.width + column, end, kAligned, sum);
  }
  if (job.residual != nullptr) {
    float value[kVector];
    load_vector(job.residual, job.residual_type, token * job.width + column, end, kAligned, value);
#pragma unroll
    for (int j = 0; j < kVector; ++j) sum[j] = sum[j] + value[j];
  }
  for (int k = 0; k < job.top_k; k += kSlotsInFlight) {
    add_slots<kAligned>(job, token, k, column, sum);
  }
  store_vector(job.output, job.output_type, token * job.width + column, end, kAligned, sum);
}

}  // namespace

void combine(const CombineJob& job, Stream stream) {
  if (job.tokens.limit == 0 || job.width == 0) return;
  const bool aligned =
      vectors_aligned(job.expert_output, job.width, job.input_type) &&
      vectors_aligned(job.output, job.width, job.output_type) &&
      (job.addend == nullptr || vectors_aligned(job.addend, job.width, job.addend_type)) &&
      (job.residual == nullptr || vectors_aligned(job.residual, job.width, job.residual_type));
  const auto columns = static_cast<unsigned>(ceil_div<int64_t>(job.width, kThreads * kVector));
  launch(aligned ? combine_kernel<true> : combine_kernel<false>,
         {.grid = dim3(static_cast<unsigned>(job.tokens.limit) * columns),
          .block = kThreads,
          .overlap_previous = can_overlap()},
         static_cast<cudaStream_t>(stream.handle), job, columns);
}

}  // namespace switchyard::cuda
