// Quantisation to the bits of core/block_quantize.h. Blocks of 16 to 256 columns: a warp has 1024
// columns of a row in registers, one pass. Whole rows: a thread block each, one pass. Other blocks:
// a thread block each, the second pass from the L1. Whole tensors: one kernel for the scale, one
// for the codes.

#include <algorithm>

#include "core/expert_sort.h"
#include "core/scale_layout.h"
#include "cuda/quantize.h"
#include "cuda/quantize_kernels.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = kQuantizeThreads;

/// Where row r of the launch reads and writes; false: nowhere.
__device__ bool pick_row(const QuantizeJob& job, int64_t r, QuantizeRow& row) {
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
__device__ void apply_channels(const QuantizeJob& job, const QuantizeRow& row, int64_t col,
                               float (&v)[kVector]) {
  if (job.channel_scale == nullptr || row.input < 0) return;
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    if (col + j < job.cols) v[j] = flushed_product(v[j], row.channel_scale[col + j]);
  }
}
__device__ void load_prepared(const QuantizeJob& job, const QuantizeRow& row, int64_t col,
                              int64_t end, bool aligned, float (&v)[kVector]) {
#pragma unroll
  for (int j = 0; j < kVector; ++j) v[j] = 0.0f;
  if (row.input >= 0) {
    const int64_t first = row.input * job.cols;
    load_vector(job.input, job.input_type, first + col, first + end, aligned, v);
  }
  apply_channels(job, row, col, v);
}

/// Rows as they lie in memory; the type is a constant, because branches on it cost as much as the
/// work.
template <DataType kType>
class PlainRows {
 public:
  using Job = QuantizeJob;
  static constexpr int kPerLane = 4, kRowVectors = 4, kBlocksPerSm = 1;
  static constexpr bool kBf16Words = kType == DataType::kBf16;
  __device__ static bool pick_row(const Job& job, int64_t r, QuantizeRow& row) {
    return cuda::pick_row(job, r, row);
  }
  template <int kStep, int kCount>
  __device__ static void load(const Job& job, const QuantizeRow& row, int col, int end,
                              PlainRows (&vectors)[kCount]) {
    if (row.input < 0) return;
    const auto* first =
        static_cast<const char*>(job.input) + (row.input * job.cols + col) * element_bytes(kType);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (col + i * kStep < end) vectors[i].raw_ = load_raw(first, kType, i * kStep);
    }
  }
  __device__ void values(float (&v)[kVector]) const { unpack(raw_, kType, v); }
  __device__ uint4 words() const { return raw_.first; }
  __device__ uint32_t amax() const {
    const uint4 w = raw_.first;
    if constexpr (kType == DataType::kBf16) {
      const uint32_t both = larger_bf16(larger_bf16(magnitudes_bf16(w.x), magnitudes_bf16(w.y)),
                                        larger_bf16(magnitudes_bf16(w.z), magnitudes_bf16(w.w)));
      return max(both << 16, both & 0xffff0000u);
    } else if constexpr (kType == DataType::kF16) {
      const uint32_t both = larger_f16(larger_f16(magnitudes_f16(w.x), magnitudes_f16(w.y)),
                                       larger_f16(magnitudes_f16(w.z), magnitudes_f16(w.w)));
      return __float_as_uint(f16_bits_to_f32(max(both & 0xffffu, both >> 16)));
    } else {
      float v[kVector];
      unpack(raw_, kType, v);
      return largest(v);
    }
  }

 private:
  RawVector raw_{};
};

/// Rows of any type at any address, times channel scales where there are any.
class AnyRows {
 public:
  using Job = QuantizeJob;
  static constexpr int kPerLane = 4, kRowVectors = 4, kBlocksPerSm = 1;
  static constexpr bool kBf16Words = false;
  __device__ static bool pick_row(const Job& job, int64_t r, QuantizeRow& row) {
    return cuda::pick_row(job, r, row);
  }
  template <int kStep, int kCount>
  __device__ static void load(const Job& job, const QuantizeRow& row, int col, int end,
                              AnyRows (&vectors)[kCount]) {
    const bool aligned =
        job.cols % kVector == 0 && reinterpret_cast<uintptr_t>(job.input) % 16 == 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (col + i * kStep < end) {
        load_prepared(job, row, col + i * kStep, end, aligned, vectors[i].v_);
      }
    }
  }
  __device__ void values(float (&v)[kVector]) const {
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = v_[j];
  }
  __device__ uint32_t amax() const { return largest(v_); }

 private:
  float v_[kVector] = {};
};

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
__device__ void write_vector(const QuantizeJob& job, const QuantizeRow& row, int64_t col,
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
  QuantizeRow row{};
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
constexpr int kTensorVectors = 4;  // of a thread, in flight
constexpr int kTensorStep = kThreads * kVector;
/// Calls work(row, column, loaded vector) for all of a row.
template <class Source, class Work>
__device__ void for_row(const QuantizeJob& job, int64_t r, const Work& work) {
  QuantizeRow row;
  if (!pick_row(job, r, row)) return;
  const auto num_cols = static_cast<int>(job.cols);
  for (int begin = static_cast<int>(threadIdx.x) * kVector; begin < num_cols;
       begin += kTensorVectors * kTensorStep) {
    Source vectors[kTensorVectors];
    Source::template load<kTensorStep>(job, row, begin, num_cols, vectors);
#pragma unroll
    for (int i = 0; i < kTensorVectors; ++i) {
      if (begin + i * kTensorStep < num_cols) work(row, begin + i * kTensorStep, vectors[i]);
    }
  }
}

template <class Source>
__global__ void __launch_bounds__(kThreads)
    tensor_scale_kernel(const QuantizeJob job, int64_t num_rows) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  uint32_t amax = 0;
  for (int64_t r = blockIdx.x; r < num_rows; r += gridDim.x) {
    for_row<Source>(job, r, [&](const QuantizeRow&, int, const Source& vector) {
      amax = max(amax, vector.amax());
    });
  }
  amax = block_max(amax);
  if (threadIdx.x != 0 || amax < kMinNormalBits) return;
  atomicMax(static_cast<uint32_t*>(job.scales),
            __float_as_uint(block_scale(how(job), amax).stored));
}
/// Rows from the last to the first: the end of the tensor is still in the L2.
template <class Source>
__global__ void __launch_bounds__(kThreads)
    tensor_codes_kernel(const QuantizeJob job, int64_t num_rows, bool aligned) {
  wait_for_previous_kernel();
  auto* stored = static_cast<float*>(job.scales);
  const float scale = *stored;  // of zeros: 0, or already 1; both give the same codes
  if (scale == 0.0f && blockIdx.x == 0 && threadIdx.x == 0) *stored = 1.0f;
  const float inverse = scale == 0.0f ? 1.0f : scale == scale ? 1.0f / scale : 0.0f;
  for (int64_t r = num_rows - 1 - blockIdx.x; r >= 0; r -= gridDim.x) {
    for_row<Source>(job, r, [&](const QuantizeRow& row, int col, const Source& vector) {
      float v[kVector];
      vector.values(v);
      write_vector(job, row, col, v, inverse, aligned);
    });
  }
}

OnePassKernels<QuantizeJob> kernels_of(const QuantizeJob& job) {
  if (job.channel_scale != nullptr) return one_pass_kernels<AnyRows>(job.format);
  switch (job.input_type) {
    case DataType::kBf16: return one_pass_kernels<PlainRows<DataType::kBf16>>(job.format);
    case DataType::kF16: return one_pass_kernels<PlainRows<DataType::kF16>>(job.format);
    default: return one_pass_kernels<PlainRows<DataType::kF32>>(job.format);
  }
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

/// Any other block of height x width.
void quantize_wide(const QuantizeJob& job, int64_t num_rows, bool aligned, cudaStream_t stream) {
  const ScaleBlock block = job.scale_block;
  const int64_t width = block.cols == 0 ? job.cols : block.cols;
  const int64_t height = block.rows == 0 ? num_rows : block.rows;
  launch(quantize_wide_kernel,
         {.grid = dim3(static_cast<unsigned>(scale_rows(block, num_rows)),
                       static_cast<unsigned>(scale_cols(block, job.cols))),
          .block = kThreads,
          .overlap_previous = can_overlap()},
         stream, job, num_rows, height, width, aligned && width % kVector == 0);
}

template <class Source>
void quantize_tensor(const QuantizeJob& job, int64_t num_rows, bool aligned, cudaStream_t stream) {
  constexpr int64_t kMaxBlocks = 4096;
  const LaunchShape shape{.grid = static_cast<unsigned>(std::min(num_rows, kMaxBlocks)),
                          .block = kThreads,
                          .overlap_previous = can_overlap()};
  LaunchShape one = shape;
  one.grid = one.block = 1;
  launch(tensor_clear_kernel, one, stream, static_cast<uint32_t*>(job.scales));
  launch(tensor_scale_kernel<Source>, shape, stream, job, num_rows);
  launch(tensor_codes_kernel<Source>, shape, stream, job, num_rows, aligned);
}
void quantize_tensor(const QuantizeJob& job, int64_t num_rows, bool aligned, cudaStream_t stream) {
  if (!aligned || job.channel_scale != nullptr) {
    return quantize_tensor<AnyRows>(job, num_rows, aligned, stream);
  }
  switch (job.input_type) {
    case DataType::kBf16:
      return quantize_tensor<PlainRows<DataType::kBf16>>(job, num_rows, aligned, stream);
    case DataType::kF16:
      return quantize_tensor<PlainRows<DataType::kF16>>(job, num_rows, aligned, stream);
    default: return quantize_tensor<PlainRows<DataType::kF32>>(job, num_rows, aligned, stream);
  }
}

}  // namespace

void quantize(const QuantizeJob& any_rows, Stream stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream.handle);
  const int64_t num_rows =
      any_rows.sorted_ids != nullptr ? any_rows.num_sorted : any_rows.rows.limit;
  const ScaleBlock block = any_rows.scale_block;
  const bool aligned =
      vectors_aligned(any_rows.input, any_rows.cols, any_rows.input_type) &&
      any_rows.value_row_bytes % element_bits(any_rows.format) == 0 &&  // bytes of a vector
      reinterpret_cast<uintptr_t>(any_rows.values) % 8 == 0;
  constexpr int64_t kSmallTensor = 1 << 15;  // one thread block is as fast as three launches
  if (block == ScaleBlock{0, 0} && any_rows.scale_type == DataType::kF32 &&
      num_rows * any_rows.cols > kSmallTensor) {
    return quantize_tensor(any_rows, num_rows, aligned, cuda_stream);
  }
  if (block.rows != 0 && (num_rows == 0 || any_rows.cols == 0)) return;
  QuantizeJob job = any_rows;
  // A short row is a block that lanes share: a thread block each would idle (65536 x 256: 241 us).
  if (block == ScaleBlock{1, 0} && lanes_share(job.format, {1, job.cols})) {
    job.scale_block.cols = job.cols;
  }
  if (lanes_share(job.format, job.scale_block)) job = as_one_row(job);
  const int64_t rows = job.sorted_ids != nullptr ? job.num_sorted : job.rows.limit;
  if (aligned && quantize_in_one_pass(kernels_of(job), job, rows, cuda_stream)) return;
  quantize_wide(any_rows, num_rows, aligned, cuda_stream);
}

}  // namespace switchyard::cuda
