// Quantisation to the bits of core/block_quantize.h. Blocks of 16 to 256 columns: a warp has 1024
// columns of a row in registers, one pass. Whole rows: a thread block each, one pass. Other blocks:
// a thread block each, the second pass from the L1. Whole tensors: one kernel for the scale, one
// for the codes.

#include <algorithm>

#include "core/expert_sort.h"
#include "core/scale_layout.h"
#include "cuda/launch.cuh"
#include "cuda/quantize.h"
#include "cuda/quantize_vector.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 256;

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
__device__ BlockQuantization how(const QuantizeJob& job) {
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

/// Largest magnitude of eight numbers as they lie in memory.
__device__ uint32_t largest_raw(const RawVector& raw, DataType type) {
  if (type == DataType::kF32) {
    float v[kVector];
    unpack(raw, type, v);
    return largest(v);
  }
  const uint4 w = raw.first;
  if (type == DataType::kBf16) {
    const uint32_t both =
        max_magnitudes_bf16(max_magnitudes_bf16(w.x, w.y), max_magnitudes_bf16(w.z, w.w));
    return max(both << 16, both & 0xffff0000u);
  }
  const uint32_t both =
      max_magnitudes_f16(max_magnitudes_f16(w.x, w.y), max_magnitudes_f16(w.z, w.w));
  return __float_as_uint(f16_bits_to_f32(max(both & 0xffffu, both >> 16)));
}

/// Eight numbers of a row, as read and with their channel scales.
struct Vector {
  RawVector raw{};

  __device__ void load(const QuantizeJob& job, const Row& row, int col) {
    if (row.input >= 0 && col < job.cols) {
      raw = load_raw(job.input, job.input_type, row.input * job.cols + col);
    }
  }
  __device__ void values(const QuantizeJob& job, const Row& row, int col,
                         float (&v)[kVector]) const {
    unpack(raw, job.input_type, v);
    apply_channels(job, row, col, v);
  }
  __device__ uint32_t amax(const QuantizeJob& job, const Row& row, int col) const {
    if (job.channel_scale == nullptr) return largest_raw(raw, job.input_type);
    float v[kVector];
    values(job, row, col, v);
    return largest(v);
  }
};

/// kWide: f32 input, else bf16 or f16; a constant, because f32 takes twice the registers.
template <bool kWide>
__device__ void fix_input_type(QuantizeJob& job) {
  if (kWide) {
    job.input_type = DataType::kF32;
  } else {
    job.input_type = job.input_type == DataType::kBf16 ? DataType::kBf16 : DataType::kF16;
  }
}

/// One warp per SharedBlocks::kVectors vectors of a row.
template <Format kFormat, bool kWide>
__global__ void __launch_bounds__(kThreads)
    quantize_blocks_kernel(QuantizeJob job, unsigned row_warps) {
  using Blocks = SharedBlocks;
  constexpr bool kPair = kFormat == Format::kNvfp4;
  constexpr int kScales = kPair ? 2 : 1;
  fix_input_type<kWide>(job);
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int64_t num_rows = job.sorted_ids != nullptr ? job.num_sorted : job.rows.limit;
  Row row;
  if (warp / row_warps >= num_rows || !pick_row(job, warp / row_warps, row)) return;
  const int first =
      static_cast<int>(warp % row_warps) * Blocks::kVectors + static_cast<int>(threadIdx.x % 32);
  const auto column = [first](int i) { return (first + 32 * i) * kVector; };
  Vector vectors[Blocks::kPerLane];
#pragma unroll
  for (int i = 0; i < Blocks::kPerLane; ++i) vectors[i].load(job, row, column(i));
  uint32_t amax[Blocks::kPerLane];
#pragma unroll
  for (int i = 0; i < Blocks::kPerLane; ++i) amax[i] = vectors[i].amax(job, row, column(i));
  const int lanes = static_cast<int>(job.scale_block.cols) / kVector;
  Blocks::reduce<kPair>(amax, lanes);
  const int num_blocks = ceil_div(static_cast<int>(job.cols), lanes * kVector);
  float inverse[kScales];
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    const BlockScale scale = device_block_scale<kFormat>(how(job), amax[s]);
    inverse[s] = scale.inverse;
    const int vector = first + 32 * Blocks::register_of<kPair>(s);
    const bool stores = kPair || first % lanes < 4;
    if (stores && vector / lanes < num_blocks) {
      store_scale(job.scales, job.scale_type, row.output * num_blocks + vector / lanes,
                  scale.stored);
    }
  }
#pragma unroll
  for (int i = 0; i < Blocks::kPerLane; ++i) {
    const float block_inverse = Blocks::scale_of_register<kPair>(inverse, i);
    if (column(i) >= job.cols) continue;
    float v[kVector];
    vectors[i].values(job, row, column(i), v);
    store_codes<kFormat>(job, row.output, column(i), encode<kFormat>(v, block_inverse), true);
  }
}

__device__ uint32_t block_max(uint32_t value) {
  __shared__ uint32_t warp_max[kThreads / 32];
  value = __reduce_max_sync(kAllLanes, value);
  if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x % 32 < kThreads / 32 ? warp_max[threadIdx.x % 32] : 0u;
  return __reduce_max_sync(kAllLanes, value);
}

/// One scale per row of up to kThreads * kRowVectors vectors: the row stays in registers.
constexpr int kRowVectors = 4;
template <Format kFormat, bool kWide>
__global__ void __launch_bounds__(kThreads) quantize_rows_kernel(QuantizeJob job) {
  fix_input_type<kWide>(job);
  let_next_kernel_start();
  wait_for_previous_kernel();
  Row row;
  if (!pick_row(job, blockIdx.x, row)) return;
  const auto column = [](int i) {
    return (i * kThreads + static_cast<int>(threadIdx.x)) * kVector;
  };
  Vector vectors[kRowVectors];
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
    if (column(i) >= job.cols) continue;
    float v[kVector];
    vectors[i].values(job, row, column(i), v);
    store_codes<kFormat>(job, row.output, column(i), encode<kFormat>(v, scale.inverse), true);
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

/// Codes of prepared values, for kernels that are compiled for all formats at once.
__device__ uint2 encode_any(Format format, const float (&v)[kVector], float inverse) {
  switch (format) {
    case Format::kInt8: return encode<Format::kInt8>(v, inverse);
    case Format::kInt4: return encode<Format::kInt4>(v, inverse);
    case Format::kMxfp4:
    case Format::kNvfp4: return encode<Format::kMxfp4>(v, inverse);
    default: return encode<Format::kFp8E4m3>(v, inverse);
  }
}
__device__ void write_vector(const QuantizeJob& job, const Row& row, int64_t col,
                             const float (&v)[kVector], float inverse, bool aligned) {
  const uint2 codes = encode_any(job.format, v, inverse);
  if (element_bits(job.format) == 4) {
    store_codes<Format::kMxfp4>(job, row.output, col, codes, aligned);
  } else {
    store_codes<Format::kFp8E4m3>(job, row.output, col, codes, aligned);
  }
}

/// Any block of height x width: one thread block each.
__global__ void __launch_bounds__(kThreads)
    quantize_wide_kernel(const QuantizeJob job, int64_t num_rows, int64_t height, int64_t width,
                         bool aligned) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int64_t begin = blockIdx.y * width;
  const int64_t end = min(begin + width, job.cols);
  const int64_t first_row = blockIdx.x * height;
  const int64_t last_row = min(first_row + height, num_rows);
  const int64_t first_col = begin + threadIdx.x * kVector;
  constexpr int64_t kStep = kThreads * kVector;
  uint32_t amax = 0;
  float v[kVector];
  Row row{};
  bool any = job.scale_block.rows == 0;  // there is always a scale of a whole tensor
  for (int64_t r = first_row; r < last_row; ++r) {
    if (!pick_row(job, r, row)) continue;
    any = true;
    for (int64_t col = first_col; col < end; col += kStep) {
      load_prepared(job, row, col, end, aligned, v);
      amax = max(amax, largest(v));
    }
  }
  if (!any) return;
  const BlockScale scale = block_scale(how(job), block_max(amax));
  const int64_t scale_row = height == 1 ? row.output : blockIdx.x;
  if (threadIdx.x == 0) {
    store_scale(job.scales, job.scale_type, scale_row * gridDim.y + blockIdx.y, scale.stored);
  }
  QuantizeJob block = job;
  block.cols = end;
  for (int64_t r = first_row; r < last_row; ++r) {
    if (!pick_row(job, r, row)) continue;
    for (int64_t col = first_col; col < end; col += kStep) {
      load_prepared(job, row, col, end, aligned, v);
      write_vector(block, row, col, v, scale.inverse, aligned);
    }
  }
}

/// A tensor's scale grows with its largest magnitude, so the largest of all rows' scales is it, and
/// NaN's bits are above every number's. A row of zeros has none; no scale at all means 1.
__global__ void tensor_clear_kernel(uint32_t* scale) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  *scale = 0;
}
__global__ void __launch_bounds__(kThreads)
    tensor_scale_kernel(const QuantizeJob job, int64_t num_rows, bool aligned) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  uint32_t amax = 0;
  float v[kVector];
  for (int64_t r = blockIdx.x; r < num_rows; r += gridDim.x) {
    Row row;
    if (!pick_row(job, r, row)) continue;
    for (int64_t col = threadIdx.x * kVector; col < job.cols; col += kThreads * kVector) {
      load_prepared(job, row, col, job.cols, aligned, v);
      amax = max(amax, largest(v));
    }
  }
  amax = block_max(amax);
  if (threadIdx.x != 0 || amax < kMinNormalBits) return;
  atomicMax(static_cast<uint32_t*>(job.scales),
            __float_as_uint(block_scale(how(job), amax).stored));
}
/// Rows from the last to the first: the end of the tensor is still in the L2.
__global__ void __launch_bounds__(kThreads)
    tensor_codes_kernel(const QuantizeJob job, int64_t num_rows, bool aligned) {
  wait_for_previous_kernel();
  auto* stored = static_cast<float*>(job.scales);
  const float scale = *stored;  // of zeros: 0, or already 1; both give the same codes
  if (scale == 0.0f && blockIdx.x == 0 && threadIdx.x == 0) *stored = 1.0f;
  const float inverse = scale == 0.0f ? 1.0f : scale == scale ? 1.0f / scale : 0.0f;
  float v[kVector];
  for (int64_t r = num_rows - 1 - blockIdx.x; r >= 0; r -= gridDim.x) {
    Row row;
    if (!pick_row(job, r, row)) continue;
    for (int64_t col = threadIdx.x * kVector; col < job.cols; col += kThreads * kVector) {
      load_prepared(job, row, col, job.cols, aligned, v);
      write_vector(job, row, col, v, inverse, aligned);
    }
  }
}
using BlocksKernel = void (*)(QuantizeJob, unsigned);
using RowsKernel = void (*)(QuantizeJob);
struct Kernels {
  BlocksKernel blocks;
  RowsKernel rows;
};
template <bool kWide>
Kernels kernels_of(Format format) {
  switch (format) {
#define SWITCHYARD_KERNELS(name) \
  case Format::name:             \
    return {quantize_blocks_kernel<Format::name, kWide>, quantize_rows_kernel<Format::name, kWide>}
    SWITCHYARD_KERNELS(kInt8);
    SWITCHYARD_KERNELS(kInt4);
    SWITCHYARD_KERNELS(kMxfp4);
    SWITCHYARD_KERNELS(kMxfp8);
    SWITCHYARD_KERNELS(kNvfp4);
    default: SWITCHYARD_KERNELS(kFp8E4m3);
  }
}

/// Whether a warp's lanes can share these blocks.
bool lanes_share(const QuantizeJob& job, bool aligned) {
  const int64_t cols = job.scale_block.cols;
  if (!aligned || job.scale_block.rows != 1) return false;
  if (job.format == Format::kNvfp4) return cols == 2 * kVector;
  return cols >= 4 * kVector && cols <= 32 * kVector && (cols & (cols - 1)) == 0;
}

/// Rows that follow each other without a gap, in blocks that do not cross them, are one long row.
QuantizeJob as_one_row(QuantizeJob job) {
  const int64_t elements = job.rows.limit * job.cols;
  const bool plain = job.sorted_ids == nullptr && job.row_index == nullptr &&
                     job.channel_scale == nullptr && job.rows.on_device == nullptr;
  constexpr int64_t kMostElements = int64_t{1} << 30;
  if (!plain || job.cols % job.scale_block.cols != 0 || elements > kMostElements ||
      job.value_row_bytes * 8 != job.cols * element_bits(job.format)) {
    return job;
  }
  job.num_input_rows = job.rows.limit = 1;
  job.value_row_bytes *= elements / job.cols;
  job.cols = elements;
  return job;
}

class Launcher {
 public:
  Launcher(const QuantizeJob& job, Stream stream)
      : job_(job),
        stream_(static_cast<cudaStream_t>(stream.handle)),
        num_rows_(job.sorted_ids != nullptr ? job.num_sorted : job.rows.limit),
        aligned_(vectors_aligned(job.input, job.cols, job.input_type) &&
                 job.value_row_bytes % element_bits(job.format) == 0 &&  // bytes of a vector
                 reinterpret_cast<uintptr_t>(job.values) % 8 == 0) {}

  void run() {
    const ScaleBlock block = job_.scale_block;
    constexpr int64_t kSmallTensor = 1 << 15;  // one thread block is as fast as three launches
    if (block == ScaleBlock{0, 0} && job_.scale_type == DataType::kF32 &&
        num_rows_ * job_.cols > kSmallTensor) {
      return run_tensor();
    }
    if (block.rows != 0 && (num_rows_ == 0 || job_.cols == 0)) return;
    if (lanes_share(job_, aligned_)) return run_blocks();
    if (block == ScaleBlock{1, 0} && aligned_ && job_.cols <= kThreads * kRowVectors * kVector) {
      return start(kernels().rows, dim3(static_cast<unsigned>(num_rows_)), job_);
    }
    const int64_t width = block.cols == 0 ? job_.cols : block.cols;
    const int64_t height = block.rows == 0 ? num_rows_ : block.rows;
    start(quantize_wide_kernel,
          dim3(static_cast<unsigned>(scale_rows(block, num_rows_)),
               static_cast<unsigned>(scale_cols(block, job_.cols))),
          job_, num_rows_, height, width, aligned_ && width % kVector == 0);
  }

 private:
  Kernels kernels() const {
    return job_.input_type == DataType::kF32 ? kernels_of<true>(job_.format)
                                             : kernels_of<false>(job_.format);
  }
  void run_blocks() {
    const QuantizeJob job = as_one_row(job_);
    const int64_t rows = job.sorted_ids != nullptr ? job.num_sorted : job.rows.limit;
    const int64_t row_warps = ceil_div<int64_t>(job.cols, SharedBlocks::kVectors * kVector);
    start(kernels().blocks,
          dim3(static_cast<unsigned>(ceil_div<int64_t>(rows * row_warps, kThreads / 32))), job,
          static_cast<unsigned>(row_warps));
  }
  void run_tensor() {
    constexpr int64_t kMaxBlocks = 4096;
    const dim3 blocks(static_cast<unsigned>(std::min(num_rows_, kMaxBlocks)));
    auto* scale = static_cast<uint32_t*>(job_.scales);
    start(tensor_clear_kernel, dim3(1), scale);
    start(tensor_scale_kernel, blocks, job_, num_rows_, aligned_);
    start(tensor_codes_kernel, blocks, job_, num_rows_, aligned_);
  }
  template <class... Params, class... Args>
  void start(void (*kernel)(Params...), dim3 grid, const Args&... args) const {
    launch(kernel, {.grid = grid, .block = kThreads, .overlap_previous = can_overlap()}, stream_,
           args...);
  }

  const QuantizeJob& job_;
  cudaStream_t stream_;
  int64_t num_rows_;
  bool aligned_;
};

}  // namespace

void quantize(const QuantizeJob& job, Stream stream) { Launcher(job, stream).run(); }

}  // namespace switchyard::cuda
