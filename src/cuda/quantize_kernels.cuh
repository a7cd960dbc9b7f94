#pragma once
// The two kernels that quantise in one pass, over whatever makes the values. A Source says which
// row of the launch reads and writes where, and gives eight values at a time:
//   struct Job : QuantizeJob            the launch's argument
//   static bool pick_row(job, r, row)   false: nothing to do
//   load(job, row, col)                 starts the loads of columns col .. col + 7; zeros past the
//   end amax(job, row, col), values(job, row, col, v)

#include "core/math.h"
#include "cuda/launch.cuh"
#include "cuda/quantize.h"
#include "cuda/quantize_vector.cuh"

namespace switchyard::cuda {

inline constexpr int kQuantizeThreads = 256;

struct QuantizeRow {
  int64_t input = 0, output = 0;  // input -1: zeros
  const float* channel_scale = nullptr;
};

__device__ inline BlockQuantization how(const QuantizeJob& job) {
  return {.format = job.format,
          .rounding = job.rounding,
          .power_of_two_scales = job.power_of_two_scales,
          .scale_type = job.scale_type,
          .global_scale = job.global_scale};
}

/// Codes of columns col .. col + 7 (those before job.cols) of an output row.
template <Format kFormat>
__device__ void store_codes(const QuantizeJob& job, int64_t row, int64_t col, uint2 codes,
                            bool aligned) {
  auto* out = static_cast<uint8_t*>(job.values) + row * job.value_row_bytes;
  constexpr bool kNibbles = element_bits(kFormat) == 4;
  out += kNibbles ? col / 2 : col;
  if (aligned) {
    if (kNibbles) {
      *reinterpret_cast<uint32_t*>(out) = codes.x;
    } else {
      *reinterpret_cast<uint2*>(out) = codes;
    }
    return;
  }
  const int64_t left = min(job.cols - col, int64_t{kVector});
  const int64_t bytes = kNibbles ? (left + 1) / 2 : left;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const uint32_t word = i < 4 ? codes.x : codes.y;
    if (i < bytes) out[i] = static_cast<uint8_t>(word >> (i % 4 * 8));
  }
}

__device__ inline uint32_t block_max(uint32_t value) {
  __shared__ uint32_t warp_max[kQuantizeThreads / 32];
  value = __reduce_max_sync(kAllLanes, value);
  if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x % 32 < kQuantizeThreads / 32 ? warp_max[threadIdx.x % 32] : 0u;
  return __reduce_max_sync(kAllLanes, value);
}

/// One warp per SharedBlocks::kVectors vectors of a row; num_warps of them.
template <Format kFormat, class Source>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_blocks_kernel(typename Source::Job job, unsigned row_warps, unsigned num_warps) {
  using Blocks = SharedBlocks;
  constexpr bool kPair = kFormat == Format::kNvfp4;
  constexpr int kScales = kPair ? 2 : 1;
  if constexpr (kFormat == Format::kMxfp4 || kFormat == Format::kMxfp8) {
    job.scale_type = DataType::kF8E8m0;
  }
  let_next_kernel_start();
  wait_for_previous_kernel();
  const unsigned warp = blockIdx.x * (kQuantizeThreads / 32) + threadIdx.x / 32;
  QuantizeRow row;
  if (warp >= num_warps || !Source::pick_row(job, warp / row_warps, row)) return;
  const int first =
      static_cast<int>(warp % row_warps) * Blocks::kVectors + static_cast<int>(threadIdx.x % 32);
  const auto num_cols = static_cast<int>(job.cols);
  const auto column = [first](int i) { return (first + 32 * i) * kVector; };
  Source vectors[Blocks::kPerLane];
#pragma unroll
  for (int i = 0; i < Blocks::kPerLane; ++i) vectors[i].load(job, row, column(i));
  uint32_t amax[Blocks::kPerLane];
#pragma unroll
  for (int i = 0; i < Blocks::kPerLane; ++i) amax[i] = vectors[i].amax(job, row, column(i));
  const int lanes = static_cast<int>(job.scale_block.cols) / kVector;
  const int lanes_shift = kPair ? 1 : __ffs(lanes) - 1;  // a power of two
  Blocks::reduce<kPair>(amax, lanes);
  const int num_blocks = ceil_div(num_cols, kVector << lanes_shift);
  float inverse[kScales];
  bool clips = false;
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    const BlockScale scale = device_block_scale<kFormat>(how(job), amax[s]);
    inverse[s] = scale.inverse;
    clips = clips || __uint_as_float(amax[s]) * scale.inverse >= 7.0f;
    const int vector = first + 32 * Blocks::register_of<kPair>(s);
    const int block = vector >> lanes_shift;
    if ((kPair || (first & (lanes - 1)) < 4) && block < num_blocks) {
      store_scale(job.scales, job.scale_type, row.output * num_blocks + block, scale.stored);
    }
  }
  clips = __any_sync(kAllLanes, clips) != 0;
#pragma unroll
  for (int i = 0; i < Blocks::kPerLane; ++i) {
    const float block_inverse = Blocks::scale_of_register<kPair>(inverse, i);
    if (column(i) >= num_cols) continue;
    float v[kVector];
    vectors[i].values(job, row, column(i), v);
    store_codes<kFormat>(job, row.output, column(i), encode<kFormat>(v, block_inverse, clips),
                         true);
  }
}

/// One scale per row of up to kQuantizeThreads * kRowVectors vectors: the row stays in registers.
inline constexpr int kRowVectors = 4;
template <Format kFormat, class Source>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_rows_kernel(const typename Source::Job job) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  QuantizeRow row;
  if (!Source::pick_row(job, blockIdx.x, row)) return;
  const auto num_cols = static_cast<int>(job.cols);
  const auto column = [](int i) {
    return (i * kQuantizeThreads + static_cast<int>(threadIdx.x)) * kVector;
  };
  Source vectors[kRowVectors];
#pragma unroll
  for (int i = 0; i < kRowVectors; ++i) vectors[i].load(job, row, column(i));
  uint32_t amax = 0;
#pragma unroll
  for (int i = 0; i < kRowVectors; ++i) {
    amax = max(amax, vectors[i].amax(job, row, column(i)));
  }
  const BlockScale scale = device_block_scale<kFormat>(how(job), block_max(amax));
  if (threadIdx.x == 0) store_scale(job.scales, job.scale_type, row.output, scale.stored);
#pragma unroll
  for (int i = 0; i < kRowVectors; ++i) {
    if (column(i) >= num_cols) continue;
    float v[kVector];
    vectors[i].values(job, row, column(i), v);
    store_codes<kFormat>(job, row.output, column(i), encode<kFormat>(v, scale.inverse), true);
  }
}

template <class Job>
struct OnePassKernels {
  void (*blocks)(Job, unsigned, unsigned) = nullptr;
  void (*rows)(Job) = nullptr;
};
template <class Source>
OnePassKernels<typename Source::Job> one_pass_kernels(Format format) {
  switch (format) {
#define SWITCHYARD_KERNELS(name)                          \
  case Format::name:                                      \
    return {quantize_blocks_kernel<Format::name, Source>, \
            quantize_rows_kernel<Format::name, Source>}
    SWITCHYARD_KERNELS(kInt8);
    SWITCHYARD_KERNELS(kInt4);
    SWITCHYARD_KERNELS(kMxfp4);
    SWITCHYARD_KERNELS(kMxfp8);
    SWITCHYARD_KERNELS(kNvfp4);
    default: SWITCHYARD_KERNELS(kFp8E4m3);
#undef SWITCHYARD_KERNELS
  }
}

/// Whether a warp's lanes can share these blocks.
inline bool lanes_share(Format format, const ScaleBlock& block) {
  if (block.rows != 1) return false;
  if (format == Format::kNvfp4) return block.cols == 2 * kVector;
  return block.cols >= 4 * kVector && block.cols <= 32 * kVector &&
         (block.cols & (block.cols - 1)) == 0;
}
inline bool row_fits(const ScaleBlock& block, int64_t cols) {
  return block == ScaleBlock{1, 0} && cols <= kQuantizeThreads * kRowVectors * kVector;
}

/// Over `num_rows` rows whose vectors are aligned; false when the blocks are of neither kind.
template <class Job>
bool quantize_in_one_pass(const OnePassKernels<Job>& kernels, const Job& job, int64_t num_rows,
                          cudaStream_t stream) {
  LaunchShape shape{.block = kQuantizeThreads, .overlap_previous = can_overlap()};
  if (lanes_share(job.format, job.scale_block)) {
    const int64_t row_warps = ceil_div<int64_t>(job.cols, SharedBlocks::kVectors * kVector);
    const int64_t num_warps = num_rows * row_warps;
    shape.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(num_warps, kQuantizeThreads / 32)));
    launch(kernels.blocks, shape, stream, job, static_cast<unsigned>(row_warps),
           static_cast<unsigned>(num_warps));
    return true;
  }
  if (!row_fits(job.scale_block, job.cols)) return false;
  shape.grid = dim3(static_cast<unsigned>(num_rows));
  launch(kernels.rows, shape, stream, job);
  return true;
}

}  // namespace switchyard::cuda
