#pragma once
// Rows rounded to E4M3 or INT8 by a warp per group of columns, to the bits of
// core/block_quantize.h: the input of a decode GEMM.

#include "core/block_quantize.h"
#include "cuda/sm90/decode_args.h"
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

/// Group `group` of row `row`; channels: [columns] or null. Called by a whole warp.
__device__ inline void round_group(const RoundedRows& to, const void* from, DataType type,
                                   int64_t row, int32_t group, const float* channels) {
  const int32_t group_columns = to.group_columns == 0 ? to.num_columns : to.group_columns;
  const int32_t begin = group * group_columns;
  const int32_t end = min(begin + group_columns, to.num_columns);
  const int32_t first = begin + static_cast<int32_t>(threadIdx.x) % 32 * 4;
  const auto value = [&](int32_t column) {
    float4 v = load_four(from, type, row * to.num_columns + column);
    if (channels != nullptr) {
      const float4 c = *reinterpret_cast<const float4*>(channels + column);
      v = {flushed_product(v.x, c.x), flushed_product(v.y, c.y), flushed_product(v.z, c.z),
           flushed_product(v.w, c.w)};
    }
    return v;
  };
  float amax = 0.0f;
#pragma unroll 4
  for (int32_t column = first; column < end; column += 128) {
    const float4 v = value(column);
    amax = max_magnitude(amax, max_magnitude(max_magnitude(v.x, v.y), max_magnitude(v.z, v.w)));
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    amax = max_magnitude(amax, __shfl_xor_sync(~0u, amax, lanes));
  }
  const BlockScale scale = block_scale({.format = to.format}, __float_as_uint(amax) & 0x7fffffffu);
  if (threadIdx.x % 32 == 0) {
    to.scales[row * ceil_div(to.num_columns, group_columns) + group] = scale.stored;
  }
#pragma unroll 4
  for (int32_t column = first; column < end; column += 128) {
    *reinterpret_cast<uint32_t*>(to.codes + row * to.row_bytes + column) =
        four_codes(to.format, value(column), scale.inverse);
  }
}

}  // namespace switchyard::cuda::sm90
