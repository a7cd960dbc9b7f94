#include "core/fragment_layout.h"
#include "core/math.h"
#include "cuda/launch.cuh"
#include "cuda/sm90/reencode_rows.h"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda::sm90 {
namespace {

constexpr int kWarps = 8;
constexpr int kGroup = 32;  // columns per scale
constexpr unsigned kAll = ~0u;
/// 6 * 2^6 is the largest E2M1 multiple in E4M3.
constexpr int kFp4Headroom = 6;

/// Whether a group holds anything but zeros.
__device__ bool has_nonzero(const ReencodeJob& job, const uint8_t* codes, int64_t group) {
  const bool fp4 = job.format == Format::kMxfp4;
  const auto* words = reinterpret_cast<const uint4*>(codes + group * (fp4 ? 16 : 32));
  const uint32_t magnitudes = fp4 ? 0x77777777u : 0x7f7f7f7fu;
  uint32_t any = 0;
  for (int i = 0; i < (fp4 ? 1 : 2); ++i) {
    any |= words[i].x | words[i].y | words[i].z | words[i].w;
  }
  return (any & magnitudes) != 0;
}

/// Four values of columns 4 i .. 4 i + 3.
__device__ void four_values(const ReencodeJob& job, const uint8_t* codes, int64_t i,
                            float (&value)[4]) {
  const bool fp4 = job.format == Format::kMxfp4;
  const uint32_t word = fp4 ? reinterpret_cast<const uint16_t*>(codes)[i]
                            : reinterpret_cast<const uint32_t*>(codes)[i];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    value[j] = fp4 ? fp4_e2m1_to_f32(static_cast<uint8_t>(word >> (4 * j) & 15u))
                   : fp8_e4m3_to_f32(static_cast<uint8_t>(word >> (8 * j) & 255u));
  }
}

/// A warp per row.
__global__ void __launch_bounds__(kWarps * 32) sm90_reencode_rows_kernel(const ReencodeJob job) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (row >= job.rows.value()) return;
  const int64_t groups = ceil_div<int64_t>(job.cols, kGroup);
  const uint8_t* codes = job.codes + row * job.code_row_bytes;
  const uint8_t* scales = job.scales + row * groups;
  int largest = -1;
  for (int64_t g = lane; g < groups; g += 32) {
    if (has_nonzero(job, codes, g)) largest = max(largest, static_cast<int>(scales[g]));
  }
  largest = __reduce_max_sync(kAll, largest);
  if (largest < 0) largest = 127;  // a row of zeros
  const int headroom = job.format == Format::kMxfp4 ? kFp4Headroom : 0;
  if (lane == 0) {
    // An E8M0 NaN is its block's and the row's.
    job.row_scales[row] =
        largest == 255 ? f32_from_bits(0x7fc00000u) : power_of_two(largest - 127 - headroom);
  }
  auto* values = reinterpret_cast<uint32_t*>(job.values + row * job.value_row_bytes);
  for (int64_t i = lane; i < job.cols / 4; i += 32) {
    // Far below the largest everything is zero; so is what a zero block's scale says.
    const int steps = max(static_cast<int>(scales[i * 4 / kGroup]) - largest, -100);
    const float factor = steps > 0 ? 0.0f : power_of_two(steps + headroom);
    float v[4];
    four_values(job, codes, i, v);
    values[i] = pack_fp8_e4m3(v[0] * factor, v[1] * factor) |
                pack_fp8_e4m3(v[2] * factor, v[3] * factor) << 16;
  }
}

/// A thread per four columns.
__global__ void __launch_bounds__(kWarps * 32) sm90_expand_rows_kernel(const ReencodeJob job) {
  const int64_t quads = job.cols / 4;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps * 32 + threadIdx.x;
  const int64_t row = at / quads, i = at - row * quads;
  if (row >= job.rows.value()) return;
  const float scale =
      e8m0_to_f32(job.scales[row * ceil_div<int64_t>(job.cols, kGroup) + i * 4 / kGroup]);
  float v[4];
  four_values(job, job.codes + row * job.code_row_bytes, i, v);
  reinterpret_cast<uint2*>(job.values + row * job.value_row_bytes)[i] = {
      pack_bf16(v[0] * scale, v[1] * scale), pack_bf16(v[2] * scale, v[3] * scale)};
}

}  // namespace

void expand_rows(const ReencodeJob& job, Stream stream) {
  if (job.rows.limit == 0) return;
  launch(sm90_expand_rows_kernel,
         {.grid = static_cast<unsigned>(
              ceil_div<int64_t>(job.rows.limit * (job.cols / 4), kWarps * 32)),
          .block = kWarps * 32},
         static_cast<cudaStream_t>(stream.handle), job);
}

void reencode_rows(const ReencodeJob& job, Stream stream) {
  if (job.rows.limit == 0) return;
  launch(sm90_reencode_rows_kernel,
         {.grid = static_cast<unsigned>(ceil_div<int64_t>(job.rows.limit, kWarps)),
          .block = kWarps * 32},
         static_cast<cudaStream_t>(stream.handle), job);
}

}  // namespace switchyard::cuda::sm90
