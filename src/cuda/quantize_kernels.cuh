#pragma once
// The two kernels that quantise in one pass, over whatever makes the values. A Source says which
// row of the launch reads and writes where, and holds eight values:
//   struct Job : QuantizeJob            the launch's argument
//   kPerLane, kRowVectors               how many a thread has: of a row in pieces, of a whole one
//   kBlocksPerSm                        at least so many must fit an SM; 1: registers come first
//   static bool pick_row(job, r, row)   false: nothing to do
//   static load<kStep>(job, row, col, end, vectors)   starts the loads of columns col + i * kStep;
//                                       zeros from column `end` on
//   amax(), values(v)
//   kBf16Words, words()                 whether the values are bf16 numbers, and these

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
  __shared__ uint32_t warp_max[32];
  value = __reduce_max_sync(kAllLanes, value);
  if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x % 32 < blockDim.x / 32 ? warp_max[threadIdx.x % 32] : 0u;
  return __reduce_max_sync(kAllLanes, value);
}

/// Whole vectors of codes, at their place.
template <Format kFormat>
__device__ void store_vector_codes(uint8_t* out, uint2 codes) {
  if constexpr (element_bits(kFormat) == 4) {
    *reinterpret_cast<uint32_t*>(out) = codes.x;
  } else {
    *reinterpret_cast<uint2*>(out) = codes;
  }
}

/// One warp per SharedBlocks::kVectors vectors of a row, which are row_warps.divisor of the
/// num_warps. Quotients and 64-bit addresses are made once: they were a third of the instructions.
template <Format kFormat, class Source>
__global__ void __launch_bounds__(kQuantizeThreads, Source::kBlocksPerSm)
    quantize_blocks_kernel(const __grid_constant__ typename Source::Job job,
                           const __grid_constant__ Divider row_warps, unsigned num_warps) {
  constexpr int kPerLane = Source::kPerLane;
  constexpr bool kPairs = kFormat == Format::kNvfp4 || kPerLane == 2;
  using Blocks = SharedBlocks<kPerLane, kPairs ? 2 : 4>;
  constexpr int kStep = 32 * kVector;
  constexpr DataType kScaleType = kFormat == Format::kNvfp4 ? DataType::kF8E4m3
                                  : kFormat == Format::kMxfp4 || kFormat == Format::kMxfp8
                                      ? DataType::kF8E8m0
                                      : DataType::kF32;
  let_next_kernel_start();
  wait_for_previous_kernel();
  const unsigned warp = blockIdx.x * (kQuantizeThreads / 32) + threadIdx.x / 32;
  const unsigned row_of_launch = row_warps.quotient(warp);
  QuantizeRow row;
  if (warp >= num_warps || !Source::pick_row(job, row_of_launch, row)) return;
  const int first = static_cast<int>((warp - row_of_launch * row_warps.divisor) * Blocks::kVectors +
                                     threadIdx.x % 32);
  const auto num_cols = static_cast<int>(job.cols);
  const int col = first * kVector;
  Source vectors[kPerLane];
  Source::template load<kStep>(job, row, col, num_cols, vectors);
  uint32_t amax[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) amax[i] = vectors[i].amax();
  const int lanes = static_cast<int>(job.scale_block.cols) / kVector;
  const int lanes_shift = kFormat == Format::kNvfp4 ? 1 : __ffs(lanes) - 1;  // a power of two
  Blocks::reduce(amax, lanes);
  const int block_shift = lanes_shift + 3;
  const int num_blocks = (num_cols + (1 << block_shift) - 1) >> block_shift;
  auto scale_type = job.scale_type;
  if constexpr (kScaleType != DataType::kF32) scale_type = kScaleType;
  BlockQuantization method = how(job);
  method.scale_type = scale_type;
  float inverse[Blocks::kScales];
  bool clips = false;
  bool tiny = false;
#pragma unroll
  for (int s = 0; s < Blocks::kScales; ++s) {
    const BlockScale scale = device_block_scale<kFormat>(method, amax[s]);
    inverse[s] = scale.inverse;
    clips = clips || __uint_as_float(amax[s]) * scale.inverse >= 7.0f;
    tiny = tiny || (amax[s] != 0 && scale.inverse > kMostPackedInverse);
    const int block = (first + 32 * Blocks::register_of(s)) >> lanes_shift;
    if ((first & (lanes - 1)) < (kPairs ? 2 : 4) && block < num_blocks) {
      store_scale(job.scales, scale_type, row.output * num_blocks + block, scale.stored);
    }
  }
  clips = __any_sync(kAllLanes, clips) != 0;
  constexpr bool kMayPack = kFormat == Format::kMxfp4 && Source::kBf16Words;
  const bool packs = kMayPack && !__any_sync(kAllLanes, tiny);
  constexpr int kBits = element_bits(kFormat);
  auto* out = static_cast<uint8_t*>(job.values) + row.output * job.value_row_bytes +
              static_cast<int64_t>(col) * kBits / 8;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const float block_inverse = Blocks::scale_of_register(inverse, i);
    if (col + i * kStep >= num_cols) continue;
    auto* to = out + i * kStep * kBits / 8;
    if constexpr (kMayPack) {
      if (packs) {
        const uint32_t codes =
            encode_fp4_bf16(vectors[i].words(), fminf(block_inverse, kMostPackedInverse), clips);
        store_vector_codes<kFormat>(to, {block_inverse == 0.0f ? 0 : codes, 0});
        continue;
      }
    }
    float v[kVector];
    vectors[i].values(v);
    store_vector_codes<kFormat>(to, encode<kFormat>(v, block_inverse, clips));
  }
}

/// One scale per row of up to kMostRowVectors vectors: the row stays in registers.
inline constexpr int kMostRowVectors = 1024;
template <Format kFormat, class Source>
__global__ void __launch_bounds__(kMostRowVectors / Source::kRowVectors)
    quantize_rows_kernel(const __grid_constant__ typename Source::Job job) {
  constexpr int kRowVectors = Source::kRowVectors;
  constexpr int kStep = kMostRowVectors / kRowVectors * kVector;  // of a full block, if it matters
  let_next_kernel_start();
  wait_for_previous_kernel();
  QuantizeRow row;
  if (!Source::pick_row(job, blockIdx.x, row)) return;
  const auto num_cols = static_cast<int>(job.cols);
  const int col = static_cast<int>(threadIdx.x) * kVector;
  Source vectors[kRowVectors];
  Source::template load<kStep>(job, row, col, num_cols, vectors);
  uint32_t amax = 0;
#pragma unroll
  for (int i = 0; i < kRowVectors; ++i) amax = max(amax, vectors[i].amax());
  const BlockScale scale = device_block_scale<kFormat>(how(job), block_max(amax));
  if (threadIdx.x == 0) store_scale(job.scales, job.scale_type, row.output, scale.stored);
  constexpr int kBits = element_bits(kFormat);
  auto* out =
      static_cast<uint8_t*>(job.values) + row.output * job.value_row_bytes + col * kBits / 8;
#pragma unroll
  for (int i = 0; i < kRowVectors; ++i) {
    if (col + i * kStep >= num_cols) continue;
    float v[kVector];
    vectors[i].values(v);
    store_vector_codes<kFormat>(out + i * kStep * kBits / 8,
                                encode<kFormat>(v, scale.inverse, true));
  }
}

template <class Job>
struct OnePassKernels {
  void (*blocks)(Job, Divider, unsigned) = nullptr;
  void (*rows)(Job) = nullptr;
  int per_lane = 0, row_vectors = 0;
};
template <class Source>
OnePassKernels<typename Source::Job> one_pass_kernels(Format format) {
  switch (format) {
#define SWITCHYARD_KERNELS(name)                          \
  case Format::name:                                      \
    return {quantize_blocks_kernel<Format::name, Source>, \
            quantize_rows_kernel<Format::name, Source>, Source::kPerLane, Source::kRowVectors}
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
  return block == ScaleBlock{1, 0} && cols <= kMostRowVectors * kVector;
}

/// Over `num_rows` rows whose vectors are aligned; false when the blocks are of neither kind.
template <class Job>
bool quantize_in_one_pass(const OnePassKernels<Job>& kernels, const Job& job, int64_t num_rows,
                          cudaStream_t stream) {
  LaunchShape shape{.block = kQuantizeThreads, .overlap_previous = can_overlap()};
  if (lanes_share(job.format, job.scale_block)) {
    const int64_t row_warps = ceil_div<int64_t>(job.cols, 32 * kernels.per_lane * kVector);
    const int64_t num_warps = num_rows * row_warps;
    shape.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(num_warps, kQuantizeThreads / 32)));
    launch(kernels.blocks, shape, stream, job, Divider(static_cast<uint32_t>(row_warps)),
           static_cast<unsigned>(num_warps));
    return true;
  }
  if (!row_fits(job.scale_block, job.cols)) return false;
  shape.grid = dim3(static_cast<unsigned>(num_rows));
  const int64_t threads = kernels.row_vectors > 1 ? kMostRowVectors / kernels.row_vectors
                                                  : align_up<int64_t>(job.cols / kVector, 32);
  shape.block = dim3(static_cast<unsigned>(threads));
  launch(kernels.rows, shape, stream, job);
  return true;
}

}  // namespace switchyard::cuda
