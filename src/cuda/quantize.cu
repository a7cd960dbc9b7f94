// Quantisation to the bits of core/block_quantize.h. Blocks of 8 to 256 columns: a thread owns
// eight columns and its neighbours share the block, one pass. Whole rows and odd blocks: a thread
// block each, two passes, the second from the L1. Whole tensors: one kernel for the largest
// magnitude, one for the codes.

#include "core/block_quantize.h"
#include "core/expert_sort.h"
#include "core/scale_layout.h"
#include "cuda/launch.cuh"
#include "cuda/quantize.h"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kMagnitude = 0x7fffffffu;
constexpr uint32_t kAll = ~0u;

struct Row {
  int64_t input, output;  // input -1: zeros
  const float* channel_scale;
};

/// Where row r of the launch reads and writes; false: nowhere.
__device__ bool pick_row(const QuantizeJob& job, int64_t r, Row& row) {
  row = {r, r, job.channel_scale};
  if (job.sorted_ids != nullptr) {
    if (r >= job.num_valid_ids[0]) return false;
    const int32_t packed = job.sorted_ids[r];
    const int64_t token = packed_token(packed);
    if (packed_slot(packed) >= job.top_k) return false;
    row.output = token * job.top_k + packed_slot(packed);
    row.input = job.input_per_pair ? row.output : token;
    if (job.rows_stay_sorted) row.input = row.output = r;
    row.channel_scale += job.sorted_expert_ids[r / job.unit_size] * job.channel_scale_stride;
    return true;
  }
  if (r >= job.rows.value()) return false;
  if (job.row_index != nullptr) {
    row.input = job.row_index[r];
    if (row.input >= job.num_input_rows) row.input = -1;
  }
  return true;
}

/// Channel scales, where there are any. Subnormal numbers count as zero wherever values are used.
__device__ void apply_channels(const QuantizeJob& job, const Row& row, int64_t col,
                               float (&v)[kVector]) {
  if (job.channel_scale == nullptr || row.input < 0) return;
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    if (col + j < job.cols) v[j] = flushed_product(v[j], row.channel_scale[col + j]);
  }
}
/// Largest magnitude; NaN or infinity win, and a subnormal one is zero to block_scale.
__device__ float largest(const float (&v)[kVector]) {
  float amax = max_magnitude(v[0], v[1]);
#pragma unroll
  for (int j = 2; j < kVector; ++j) amax = max_magnitude(amax, v[j]);
  return amax;
}
__device__ uint32_t magnitude_bits(float amax) { return __float_as_uint(amax) & kMagnitude; }

__device__ BlockScale scale_of(const QuantizeJob& job, uint32_t amax_bits) {
  return block_scale({.format = job.format,
                      .rounding = job.rounding,
                      .power_of_two_scales = job.power_of_two_scales,
                      .scale_type = job.scale_type,
                      .global_scale = job.global_scale},
                     amax_bits);
}
__device__ void store_scale(const QuantizeJob& job, int64_t index, float stored) {
  switch (job.scale_type) {
    case DataType::kF32: static_cast<float*>(job.scales)[index] = stored; return;
    case DataType::kBf16: static_cast<uint16_t*>(job.scales)[index] = f32_to_bf16(stored); return;
    case DataType::kF8E4m3:
      static_cast<uint8_t*>(job.scales)[index] = f32_to_fp8_e4m3(stored);
      return;
    default:  // E8M0: a power of two, or NaN; its exponent field is the code
      static_cast<uint8_t*>(job.scales)[index] =
          static_cast<uint8_t>(__float_as_uint(stored) >> 23);
  }
}

/// Integers, ties to even: the low bits of the sum with 1.5 * 2^23. No product exceeds the largest
/// code by half, because the scale comes from the largest value.
__device__ uint32_t integer_code(float product) { return __float_as_uint(product + 12582912.0f); }

/// Codes of eight values, the first in the low bits: 64 bits, or 32 of 4-bit formats.
__device__ uint2 encode(Format format, const float (&v)[kVector], float inverse) {
  float x[kVector];
#pragma unroll
  for (int j = 0; j < kVector; ++j) x[j] = flushed_product(v[j], inverse);
  uint2 packed{0, 0};
  switch (format) {
    case Format::kInt8:
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const uint32_t low = __byte_perm(integer_code(x[j]), integer_code(x[j + 1]), 0x0040);
        const uint32_t high = __byte_perm(integer_code(x[4 + j]), integer_code(x[5 + j]), 0x0040);
        packed.x |= (low & 0xffffu) << (8 * j);
        packed.y |= (high & 0xffffu) << (8 * j);
      }
      return packed;
    case Format::kInt4:
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        packed.x |= ((integer_code(x[j]) + kInt4ZeroPoint) & 15u) << (4 * j);
      }
      return packed;
    case Format::kMxfp4:
    case Format::kNvfp4:
#pragma unroll
      for (int j = 0; j < kVector; ++j) packed.x |= fp4_e2m1_code(x[j]) << (4 * j);
      return packed;
    default:
      packed.x = pack_fp8_e4m3(x[0], x[1]) | pack_fp8_e4m3(x[2], x[3]) << 16;
      packed.y = pack_fp8_e4m3(x[4], x[5]) | pack_fp8_e4m3(x[6], x[7]) << 16;
      return packed;
  }
}

/// Codes of columns col .. col + 7 (those before job.cols) of an output row.
__device__ void store_codes(const QuantizeJob& job, int64_t row, int64_t col, uint2 codes,
                            bool aligned) {
  auto* out = static_cast<uint8_t*>(job.values) + row * job.value_row_bytes;
  const bool nibbles = element_bits(job.format) == 4;
  out += nibbles ? col / 2 : col;
  if (aligned) {
    if (nibbles) {
      *reinterpret_cast<uint32_t*>(out) = codes.x;
    } else {
      *reinterpret_cast<uint2*>(out) = codes;
    }
    return;
  }
  const int64_t left = min(job.cols - col, int64_t{kVector});
  const int64_t bytes = nibbles ? (left + 1) / 2 : left;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const uint32_t word = i < 4 ? codes.x : codes.y;
    if (i < bytes) out[i] = static_cast<uint8_t>(word >> (i % 4 * 8));
  }
}

/// Codes of eight prepared values. An odd row's last nibble is the code of a zero.
__device__ void write_vector(const QuantizeJob& job, const Row& row, int64_t col,
                             const float (&v)[kVector], const BlockScale& scale, bool aligned) {
  uint2 codes = encode(job.format, v, scale.inverse);
  if (scale.inverse == 0.0f) {
    const uint32_t zero = job.format == Format::kInt4 ? 0x88888888u : 0u;
    codes = {zero, zero};
  }
  store_codes(job, row.output, col, codes, aligned);
}

/// Largest magnitude over `lanes` neighbours; a power of two.
__device__ float lanes_max(float amax, int lanes) {
  for (int width = 1; width < lanes; width *= 2) {
    amax = max_magnitude(amax, __shfl_xor_sync(kAll, amax, width));
  }
  return amax;
}

/// Blocks of 16 << n columns; a thread owns kPerThread vectors that lie side by side in one block,
/// so the scale is computed once for them. blockDim.x threads share a row, blockDim.y rows a block.
constexpr int kPerThread = 2;
template <Format kFormat>
__global__ void __launch_bounds__(kThreads) quantize_blocks_kernel(const QuantizeJob any_format) {
  QuantizeJob job = any_format;
  job.format = kFormat;  // a constant: the switches on it vanish
  if (kFormat == Format::kMxfp4 || kFormat == Format::kMxfp8) job.scale_type = DataType::kF8E8m0;
  constexpr int kWidth = kPerThread * kVector;
  Row row;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t num_rows = job.sorted_ids != nullptr ? job.num_sorted : job.rows.limit;
  if (r >= num_rows || !pick_row(job, r, row)) return;
  const int lanes = static_cast<int>(job.scale_block.cols) / kWidth;
  const auto num_cols = static_cast<int>(job.cols);
  const int num_blocks = ceil_div(num_cols, static_cast<int>(job.scale_block.cols));
  const int piece = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const int col = piece * kWidth;
  RawVector raw[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    raw[i] = RawVector{};
    if (row.input >= 0 && col + i * kVector < num_cols) {
      raw[i] = load_raw(job.input, job.input_type, row.input * job.cols + col + i * kVector);
    }
  }
  float v[kPerThread][kVector];
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    unpack(raw[i], job.input_type, v[i]);
    apply_channels(job, row, col + i * kVector, v[i]);
    amax = max_magnitude(amax, largest(v[i]));
  }
  const BlockScale scale = scale_of(job, magnitude_bits(lanes_max(amax, lanes)));
  if (piece >= num_blocks * lanes) return;  // the last block may be partly past the end
  if (piece % lanes == 0) {
    store_scale(job, row.output * num_blocks + piece / lanes, scale.stored);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (col + i * kVector < num_cols) {
      write_vector(job, row, col + i * kVector, v[i], scale, true);
    }
  }
}

__device__ uint32_t block_max(uint32_t value) {
  __shared__ uint32_t warp_max[kThreads / 32];
  value = __reduce_max_sync(kAll, value);
  if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x % 32 < kThreads / 32 ? warp_max[threadIdx.x % 32] : 0u;
  return __reduce_max_sync(kAll, value);
}

/// One scale per row of up to kThreads * kRowVectors vectors: the row stays in registers.
constexpr int kRowVectors = 4;
template <Format kFormat>
__global__ void __launch_bounds__(kThreads) quantize_rows_kernel(const QuantizeJob any_format) {
  QuantizeJob job = any_format;
  job.format = kFormat;
  Row row;
  if (!pick_row(job, blockIdx.x, row)) return;
  const auto num_cols = static_cast<int>(job.cols);
  const int first = static_cast<int>(threadIdx.x) * kVector;
  constexpr int kStep = kThreads * kVector;
  RawVector raw[kRowVectors];
#pragma unroll
  for (int i = 0; i < kRowVectors; ++i) {
    raw[i] = RawVector{};
    if (row.input >= 0 && first + i * kStep < num_cols) {
      raw[i] = load_raw(job.input, job.input_type, row.input * job.cols + first + i * kStep);
    }
  }
  float v[kVector];
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kRowVectors; ++i) {
    unpack(raw[i], job.input_type, v);
    apply_channels(job, row, first + i * kStep, v);
    amax = max_magnitude(amax, largest(v));
  }
  const BlockScale scale = scale_of(job, block_max(magnitude_bits(amax)));
  if (threadIdx.x == 0) store_scale(job, row.output, scale.stored);
#pragma unroll
  for (int i = 0; i < kRowVectors; ++i) {
    if (first + i * kStep >= num_cols) continue;
    unpack(raw[i], job.input_type, v);
    apply_channels(job, row, first + i * kStep, v);
    write_vector(job, row, first + i * kStep, v, scale, true);
  }
}

__device__ void load_prepared(const QuantizeJob& job, const Row& row, int64_t col, int64_t end,
                              bool aligned, float (&v)[kVector]) {
#pragma unroll
  for (int j = 0; j < kVector; ++j) v[j] = 0.0f;
  if (row.input >= 0) {
    const int64_t first = row.input * job.cols;
    load_vector(job.input, job.input_type, first + col, first + end, aligned, v);
  }
  apply_channels(job, row, col, v);
}

/// Any block of height x width: one thread block each.
__global__ void __launch_bounds__(kThreads)
    quantize_wide_kernel(const QuantizeJob job, int64_t num_rows, int64_t height, int64_t width,
                         bool aligned) {
  const int64_t begin = blockIdx.y * width;
  const int64_t end = min(begin + width, job.cols);
  const int64_t first_row = blockIdx.x * height;
  const int64_t last_row = min(first_row + height, num_rows);
  const int64_t first_col = begin + threadIdx.x * kVector;
  constexpr int64_t kStep = kThreads * kVector;
  uint32_t amax = 0;
  float v[kVector];
  Row row{};
  bool any = num_rows == 0;
  for (int64_t r = first_row; r < last_row; ++r) {
    if (!pick_row(job, r, row)) continue;
    any = true;
    for (int64_t col = first_col; col < end; col += kStep) {
      load_prepared(job, row, col, end, aligned, v);
      amax = max(amax, magnitude_bits(largest(v)));
    }
  }
  if (!any) return;
  const BlockScale scale = scale_of(job, block_max(amax));
  const int64_t scale_row = height == 1 ? row.output : blockIdx.x;
  if (threadIdx.x == 0) store_scale(job, scale_row * gridDim.y + blockIdx.y, scale.stored);
  QuantizeJob block = job;
  block.cols = end;
  for (int64_t r = first_row; r < last_row; ++r) {
    if (!pick_row(job, r, row)) continue;
    for (int64_t col = first_col; col < end; col += kStep) {
      load_prepared(job, row, col, end, aligned, v);
      write_vector(block, row, col, v, scale, aligned);
    }
  }
}

/// scales[0] holds the bits of the largest magnitude between these kernels.
__global__ void __launch_bounds__(kThreads)
    tensor_amax_kernel(const QuantizeJob job, int64_t num_rows, bool aligned) {
  uint32_t amax = 0;
  float v[kVector];
  for (int64_t r = blockIdx.x; r < num_rows; r += gridDim.x) {
    Row row;
    if (!pick_row(job, r, row)) continue;
    for (int64_t col = threadIdx.x * kVector; col < job.cols; col += kThreads * kVector) {
      load_prepared(job, row, col, job.cols, aligned, v);
      amax = max(amax, magnitude_bits(largest(v)));
    }
  }
  amax = block_max(amax);
  if (threadIdx.x == 0) atomicMax(static_cast<uint32_t*>(job.scales), amax);
}
__global__ void __launch_bounds__(kThreads)
    tensor_codes_kernel(const QuantizeJob job, int64_t num_rows, bool aligned) {
  const BlockScale scale = scale_of(job, *static_cast<const uint32_t*>(job.scales));
  float v[kVector];
  for (int64_t r = blockIdx.x; r < num_rows; r += gridDim.x) {
    Row row;
    if (!pick_row(job, r, row)) continue;
    for (int64_t col = threadIdx.x * kVector; col < job.cols; col += kThreads * kVector) {
      load_prepared(job, row, col, job.cols, aligned, v);
      write_vector(job, row, col, v, scale, aligned);
    }
  }
}
__global__ void tensor_scale_kernel(const QuantizeJob job) {
  store_scale(job, 0, scale_of(job, *static_cast<const uint32_t*>(job.scales)).stored);
}

void quantize_tensor(const QuantizeJob& job, int64_t num_rows, bool aligned, cudaStream_t stream) {
  constexpr int64_t kMaxBlocks = 4096;
  const auto blocks = static_cast<unsigned>(num_rows < kMaxBlocks ? num_rows : kMaxBlocks);
  check(cudaMemsetAsync(job.scales, 0, sizeof(float), stream), "cudaMemsetAsync");
  if (num_rows > 0) {
    const LaunchShape shape{.grid = blocks, .block = kThreads};
    launch(tensor_amax_kernel, shape, stream, job, num_rows, aligned);
    launch(tensor_codes_kernel, shape, stream, job, num_rows, aligned);
  }
  launch(tensor_scale_kernel, {}, stream, job);
}

/// Threads of a row in one thread block: as few idle ones as possible in the last.
int row_threads(int64_t pieces) {
  constexpr int kWarp = 32;
  int best = kThreads;
  for (int threads = kThreads - kWarp; threads >= kWarp; threads -= kWarp) {
    const bool full = threads >= kThreads / 2 || kThreads % threads == 0;
    const int64_t cost = ceil_div<int64_t>(pieces, threads) * threads;
    if (full && cost < ceil_div<int64_t>(pieces, best) * best) best = threads;
  }
  return best;
}

using Kernel = void (*)(QuantizeJob);
struct Kernels {
  Kernel blocks, rows;
};
template <Format kFormat>
constexpr Kernels kKernels{quantize_blocks_kernel<kFormat>, quantize_rows_kernel<kFormat>};
Kernels kernels_of(Format format) {
  switch (format) {
    case Format::kInt8: return kKernels<Format::kInt8>;
    case Format::kInt4: return kKernels<Format::kInt4>;
    case Format::kMxfp4: return kKernels<Format::kMxfp4>;
    case Format::kMxfp8: return kKernels<Format::kMxfp8>;
    case Format::kNvfp4: return kKernels<Format::kNvfp4>;
    default: return kKernels<Format::kFp8E4m3>;
  }
}

bool neighbours_share(const QuantizeJob& job, bool aligned) {
  const int64_t cols = job.scale_block.cols;
  return aligned && cols >= kPerThread * kVector && cols <= 32 * kPerThread * kVector &&
         (cols & (cols - 1)) == 0;
}

}  // namespace

void quantize(const QuantizeJob& job, Stream stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream.handle);
  const int64_t num_rows = job.sorted_ids != nullptr ? job.num_sorted : job.rows.limit;
  const int64_t code_bytes = element_bits(job.format);  // of a vector
  const bool aligned = vectors_aligned(job.input, job.cols, job.input_type) &&
                       job.value_row_bytes % code_bytes == 0 &&
                       reinterpret_cast<uintptr_t>(job.values) % 8 == 0;
  const ScaleBlock block = job.scale_block;
  if (block == ScaleBlock{0, 0} && job.scale_type == DataType::kF32) {
    return quantize_tensor(job, num_rows, aligned, cuda_stream);
  }
  if (block.rows != 0 && (num_rows == 0 || job.cols == 0)) return;
  if (block.rows == 1 && neighbours_share(job, aligned)) {
    const int64_t pieces = ceil_div(job.cols, block.cols) * block.cols / (kPerThread * kVector);
    const int x = row_threads(pieces);
    const int y = kThreads / x;
    launch(kernels_of(job.format).blocks,
           {.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(num_rows, y)),
                         static_cast<unsigned>(ceil_div<int64_t>(pieces, x))),
            .block = dim3(static_cast<unsigned>(x), static_cast<unsigned>(y))},
           cuda_stream, job);
    return;
  }
  if (block == ScaleBlock{1, 0} && aligned && job.cols <= kThreads * kRowVectors * kVector) {
    launch(kernels_of(job.format).rows,
           {.grid = static_cast<unsigned>(num_rows), .block = kThreads}, cuda_stream, job);
    return;
  }
  const int64_t width = block.cols == 0 ? job.cols : block.cols;
  const int64_t height = block.rows == 0 ? num_rows : block.rows;
  launch(quantize_wide_kernel,
         {.grid = dim3(static_cast<unsigned>(scale_rows(block, num_rows)),
                       static_cast<unsigned>(scale_cols(block, job.cols))),
          .block = kThreads},
         cuda_stream, job, num_rows, height, width, aligned && width % kVector == 0);
}

}  // namespace switchyard::cuda
