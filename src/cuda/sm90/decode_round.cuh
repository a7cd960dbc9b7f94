#pragma once
// Rows rounded to E4M3 or INT8 by a team of warps per group of columns, to the bits of
// core/block_quantize.h: the input of a decode GEMM.

#include "core/block_quantize.h"
#include "cuda/sm90/round_rows.h"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda::sm90 {

__device__ inline float4 load_four(const void* data, DataType type, int64_t index) {
  if (type == DataType::kF32) {
    return __ldcg(reinterpret_cast<const float4*>(static_cast<const float*>(data) + index));
  }
  const uint2 raw =
      __ldcg(reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + index));
  if (type == DataType::kBf16) {
    return {__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u),
            __uint_as_float(raw.y << 16), __uint_as_float(raw.y & 0xffff0000u)};
  }
  return {f16_bits_to_f32(raw.x & 0xffffu), f16_bits_to_f32(raw.x >> 16),
          f16_bits_to_f32(raw.y & 0xffffu), f16_bits_to_f32(raw.y >> 16)};
}

__device__ inline uint32_t four_codes(Format format, const float4& v, float inverse) {
  if (inverse == 0.0f) return 0;
  const float x[4] = {flushed_product(v.x, inverse), flushed_product(v.y, inverse),
                      flushed_product(v.z, inverse), flushed_product(v.w, inverse)};
  if (format != Format::kInt8) return pack_fp8_e4m3(x[0], x[1]) | pack_fp8_e4m3(x[2], x[3]) << 16;
  uint32_t codes = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // ties to even: the low bits of the sum with 1.5 * 2^23
    codes |= (__float_as_uint(x[i] + 12582912.0f) & 0xffu) << (8 * i);
  }
  return codes;
}

/// Threads that round a group together.
template <class Meet>
struct RoundingTeam {
  int thread, num_warps;
  float* maxima;  ///< shared memory, one per warp, of a team of several warps
  Meet meet;      ///< their barrier
};

/// Largest magnitude that any thread of the team has.
template <class Meet>
__device__ float team_magnitude(const RoundingTeam<Meet>& team, float amax) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    amax = max_magnitude(amax, __shfl_xor_sync(~0u, amax, lanes));
  }
  if (team.num_warps == 1) return amax;
  if (team.thread % 32 == 0) team.maxima[team.thread / 32] = amax;
  team.meet();
  amax = 0.0f;
  for (int warp = 0; warp < team.num_warps; ++warp) amax = max_magnitude(amax, team.maxima[warp]);
  team.meet();  // the maxima have been read
  return amax;
}

/// Group `group` of row `row`; channels: [columns] or null. Called by the whole team.
template <class Meet>
__device__ void round_group(const RoundedRows& to, const void* from, DataType type, int64_t row,
                            int32_t group, const float* channels, const RoundingTeam<Meet>& team) {
  constexpr int kHeld = 8;  // vectors in registers; more are read twice
  const int32_t begin = group * to.columns_of_group();
  const int32_t end = min(begin + to.columns_of_group(), to.num_columns);
  const int32_t step = team.num_warps * 128;
  const int32_t first = begin + team.thread * 4;
  const auto value = [&](int32_t column) {
    float4 v = load_four(from, type, row * to.num_columns + column);
    if (channels != nullptr) {
      const float4 c = *reinterpret_cast<const float4*>(channels + column);
      v = {flushed_product(v.x, c.x), flushed_product(v.y, c.y), flushed_product(v.z, c.z),
           flushed_product(v.w, c.w)};
    }
    return v;
  };
  const auto magnitude = [](const float4& v) {
    return max_magnitude(max_magnitude(v.x, v.y), max_magnitude(v.z, v.w));
  };
  float4 held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    held[i] = first + i * step < end ? value(first + i * step) : float4{};
  }
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) amax = max_magnitude(amax, magnitude(held[i]));
  const int32_t rest = first + kHeld * step;
  for (int32_t column = rest; column < end; column += step) {
    amax = max_magnitude(amax, magnitude(value(column)));
  }
  amax = team_magnitude(team, amax);
  const BlockScale scale = block_scale({.format = to.format}, __float_as_uint(amax) & 0x7fffffffu);
  if (team.thread == 0) to.scales[row * to.groups() + group] = scale.stored;
  const auto store = [&](int32_t column, const float4& v) {
    *reinterpret_cast<uint32_t*>(to.codes + row * to.row_bytes + column) =
        four_codes(to.format, v, scale.inverse);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step < end) store(first + i * step, held[i]);
  }
  for (int32_t column = rest; column < end; column += step) store(column, value(column));
}

/// Block `block` of job.blocks(blockDim.x). maxima: shared memory, a float per warp.
__device__ inline void round_rows(const RoundJob& job, int32_t block, float* maxima) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const auto num_warps = static_cast<int32_t>(blockDim.x) / 32;
  const auto meet = [] { __syncthreads(); };
  const RoundingTeam<decltype(meet)> all{thread, num_warps, maxima, meet};
  const RoundingTeam<decltype(meet)> warp{thread % 32, 1, nullptr, meet};
  const bool whole_row = job.to.group_columns == 0;
  const int32_t item = whole_row ? block : block * num_warps + thread / 32;
  const int32_t row = item / job.to.groups();
  if (row >= job.rows.value()) return;
  round_group(job.to, job.from, job.type, row, item % job.to.groups(), nullptr,
              whole_row ? all : warp);
}

}  // namespace switchyard::cuda::sm90
