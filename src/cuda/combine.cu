// Weighted sum over the K slots of a token, in slot order, f32. One thread owns a few columns of
// one token and has the loads of several slots in flight: all of them where tokens are few, so that
// it waits once.

#include "core/math.h"
#include "cuda/combine.h"
#include "cuda/launch.cuh"
#include "cuda/slot_sum.cuh"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kFewTokens = 64;
constexpr int64_t kLineBytes = 128;

/// Whether to throw the expert output's lines away before the L2 writes them back, beside the next
/// weights' stream, which costs several times their bytes (R1 TP8 FP8, T = 64: 313 to 303 us). Few
/// bytes stay in the L2 until they are written again.
bool can_discard(const CombineJob& job) {
  constexpr int64_t kLeastBytes = 4 << 20;
  const int64_t row_bytes = job.width * element_bytes(job.input_type);
  return job.last_reader && row_bytes % kLineBytes == 0 &&
         reinterpret_cast<uintptr_t>(job.expert_output) % kLineBytes == 0 &&
         job.tokens.limit * job.top_k * row_bytes >= kLeastBytes;
}

/// Its 128 bytes hold anything from now on.
__device__ void discard_line(const char* line) {
  asm volatile("discard.global.L2 [%0], 128;" ::"l"(line) : "memory");
}

/// Consecutive slots of a token; those past the last repeat it, unused.
template <int kSlots>
struct Slots {
  int64_t pair[kSlots];
  int32_t id[kSlots];

  __device__ Slots(const CombineJob& job, int64_t token, int k) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      pair[i] = token * job.top_k + min(k + i, job.top_k - 1);
      id[i] = job.topk_ids == nullptr ? 0 : job.topk_ids[pair[i]];
      if (k + i >= job.top_k) id[i] = -1;
    }
  }
  __device__ bool used(const CombineJob& job, int i) const {
    if (id[i] < 0 || (job.topk_ids != nullptr && id[i] >= job.num_experts)) return false;
    return job.expert_mask == nullptr || job.expert_mask[id[i]] != 0;
  }
};

/// All loads of a kind come before the first use of one.
template <bool kAligned, int kSlots>
__device__ void add_slots(const CombineJob& job, const Slots<kSlots>& slots, int64_t column,
                          float (&sum)[kVector]) {
  float weight[kSlots];
  bool used[kSlots];
  RawVector raw[kSlots];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    weight[i] = job.topk_weights == nullptr ? 1.0f : job.topk_weights[slots.pair[i]];
    used[i] = slots.used(job, i);
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    if (kAligned && used[i]) {
      raw[i] = load_raw(job.expert_output, job.input_type, slots.pair[i] * job.width + column);
    }
  }
  float value[kVector];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    if (!used[i]) continue;
    if constexpr (kAligned) {
      unpack(raw[i], job.input_type, value);
    } else {
      load_vector(job.expert_output, job.input_type, slots.pair[i] * job.width + column,
                  (slots.pair[i] + 1) * job.width, false, value);
    }
    add_slot(weight[i], value, sum);
  }
}

template <bool kAligned, int kSlots>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const __grid_constant__ CombineJob job, unsigned column_blocks, bool discards) {
  const int64_t token = blockIdx.x / column_blocks;
  const int64_t column =
      (static_cast<int64_t>(blockIdx.x % column_blocks) * kThreads + threadIdx.x) * kVector;
  if (!job.ids_ready) wait_for_previous_kernel();
  Slots<kSlots> slots(job, token, 0);
  if (job.ids_ready) wait_for_previous_kernel();
  let_next_kernel_start();
  if (token >= job.tokens.value()) return;
  const unsigned inside = __ballot_sync(~0u, column < job.width);
  if (column >= job.width) return;
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
  for (int k = 0;;) {
    add_slots<kAligned>(job, slots, column, sum);
    if ((k += kSlots) >= job.top_k) break;
    slots = Slots<kSlots>(job, token, k);
  }
  store_vector(job.output, job.output_type, token * job.width + column, end, kAligned, sum);
  if (!discards) return;
  __syncwarp(inside);  // all loads of the warp's lines are done
  const int64_t bytes = element_bytes(job.input_type);
  if (column * bytes % kLineBytes != 0) return;
  const char* line = static_cast<const char*>(job.expert_output) +
                     (token * job.top_k * job.width + column) * bytes;
  for (int k = 0; k < job.top_k; ++k, line += job.width * bytes) discard_line(line);
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
  const auto kernel = !aligned                        ? combine_kernel<false, 4>
                      : job.tokens.limit > kFewTokens ? combine_kernel<true, 4>
                      : job.top_k > 8                 ? combine_kernel<true, 12>
                                                      : combine_kernel<true, 8>;
  launch(kernel,
         {.grid = dim3(static_cast<unsigned>(job.tokens.limit) * columns),
          .block = kThreads,
          .overlap_previous = can_overlap()},
         static_cast<cudaStream_t>(stream.handle), job, columns, aligned && can_discard(job));
}

}  // namespace switchyard::cuda
