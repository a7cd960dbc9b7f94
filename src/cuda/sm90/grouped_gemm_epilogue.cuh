#pragma once
// From a consumer's sums to bf16 output rows. A thread of wgmma's layout holds columns 2 q and
// 2 q + 1 of every group of eight, of rows g and g + 8 (lane = 4 g + q); gate and up rows
// alternate, so they meet in one thread. Lanes of a quad trade columns to store 16 bytes each,
// without shared memory.

#include "core/activation.h"
#include "cuda/sm90/grouped_gemm_params.cuh"

namespace switchyard::cuda::sm90 {

/// words[i] of lane q becomes words[q] of lane i, inside every quad.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4], int q) {
  constexpr unsigned kAll = ~0u;
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = (q & step) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & step) != 0) continue;
      const uint32_t mine = upper ? words[i] : words[i + step];
      const uint32_t other = __shfl_xor_sync(kAll, mine, step);
      (upper ? words[i] : words[i + step]) = other;
    }
  }
}

/// 1 / (1 + exp(-x)) by the special function unit: within 3 ulp for |x| < 8.
__device__ __forceinline__ float fast_sigmoid(float x) {
  constexpr float kLog2e = 1.44269504088896341f;
  float power, result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -kLog2e));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power));
  return result;
}
/// NaN passes, as in core/activation.h.
__device__ __forceinline__ float gated_value(const GatedCurve& c, float gate, float up) {
  const float g = activation::at_most(gate, c.gate_limit);
  const float u = activation::clamp(up, c.up_limit);
  const float factor = fast_sigmoid(g * fmaf(c.cubic, g * g, c.slope));
  return (factor == 0.0f ? 0.0f : g * factor) * (u + c.shift);
}

template <class Traits>
struct GroupedGemmEnd {
  static constexpr int kGroups = Traits::kBlockN / 8;
  using Sums = float[Traits::kAccumulators];  // [group][row half][2]

  const GroupedGemmParams& p;
  int32_t expert;
  int32_t first_weight_row;
  int thread;
  int64_t row[2]{};  ///< of the output; < 0: none
  float row_weight[2]{};
  float row_scale[2]{};

  __device__ GroupedGemmEnd(const GroupedGemmParams& params, int32_t expert_, int32_t column,
                            int64_t first_row, int thread_)
      : p(params), expert(expert_), first_weight_row(column * Traits::kBlockN), thread(thread_) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t sorted = first_row + thread / 32 * 16 + h * 8 + thread % 32 / 4;
      const int32_t packed = p.sorted.ids[sorted];
      const bool used = is_pair(packed, p.sorted.top_k);
      const int64_t pair =
          static_cast<int64_t>(packed_token(packed)) * p.sorted.top_k + packed_slot(packed);
      row[h] = !used ? -1 : p.output_per_pair ? pair : sorted;
      row_weight[h] = used && p.sorted.weights != nullptr ? p.sorted.weights[sorted] : 1.0f;
      if constexpr (Traits::kScaling == Scaling::kOuter) {
        row_scale[h] = used ? p.row_scales[scale_row(packed, sorted) * p.row_scale_stride] : 1.0f;
      }
    }
  }
  __device__ int64_t scale_row(int32_t packed, int64_t sorted) const {
    const int32_t token = packed_token(packed);
    switch (p.source) {
      case RowSource::kToken: return token;
      case RowSource::kPair:
        return static_cast<int64_t>(token) * p.sorted.top_k + packed_slot(packed);
      default: return sorted;
    }
  }

  /// f(sum, row half, value of `per_row` for the sum's weight row).
  template <class F>
  __device__ __forceinline__ void with_columns(Sums& sums, const float* per_row, F f) const {
    const float* at = per_row + static_cast<int64_t>(expert) * p.num_weight_rows;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const int n = first_weight_row + j * 8 + thread % 4 * 2;
      float2 value{0.0f, 0.0f};
      if (n < p.num_weight_rows) value = __ldg(reinterpret_cast<const float2*>(at + n));
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        f(sums[4 * j + 2 * h], h, value.x);
        f(sums[4 * j + 2 * h + 1], h, value.y);
      }
    }
  }
  __device__ __forceinline__ void scale_rows(Sums& sums, const float (&by)[2]) const {
#pragma unroll
    for (int i = 0; i < Traits::kAccumulators; ++i) sums[i] *= by[i / 2 % 2];
  }

  __device__ void scale_and_bias(Sums& sums) const {
    if constexpr (Traits::kScaling == Scaling::kOuter) scale_rows(sums, row_scale);
    if constexpr (Traits::kScaling != Scaling::kNone) {
      if (p.channel_scales != nullptr) {
        with_columns(sums, p.channel_scales, [](float& sum, int, float scale) { sum *= scale; });
      }
    }
    if (p.weight_before_bias) scale_rows(sums, row_weight);
    if (p.bias != nullptr) {
      with_columns(sums, p.bias, [](float& sum, int, float bias) { sum += bias; });
    }
    if (p.weight_after) scale_rows(sums, row_weight);
  }

  /// Leaves the activated product of sums 2 i and 2 i + 1 in sum 2 i.
  __device__ void activate(Sums& sums) const {
    const auto each = [&](auto f) {
#pragma unroll
      for (int i = 0; i < Traits::kAccumulators; i += 2) sums[i] = f(sums[i], sums[i + 1]);
    };
    ActivationSpec spec = p.activation_spec;
    switch (p.activation) {
      case Activation::kGeGlu:
        spec.kind = Activation::kGeGlu;
        return each([&](float g, float u) { return apply_activation(spec, g, u); });
      case Activation::kSiTu:
        spec.kind = Activation::kSiTu;
        return each([&](float g, float u) { return apply_activation(spec, g, u); });
      default: return each([&](float g, float u) { return gated_value(p.curve, g, u); });
    }
  }

  __device__ __forceinline__ void store16(int h, int32_t column, const uint4& v) const {
    if (row[h] < 0 || column >= p.num_columns) return;
    *reinterpret_cast<uint4*>(p.output + row[h] * p.output_stride + column) = v;
  }
  __device__ void store_gated(const Sums& sums) const {
    const int q = thread % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int m = 0; m < kGroups / 8; ++m) {
        // Column 4 j + q of the tile is sum [j][h][0]: a word holds those of groups 2 i and 2 i
        // + 1.
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = 8 * m + 2 * i;
          w[i] = pack_bf16(sums[4 * j + 2 * h], sums[4 * (j + 1) + 2 * h]);
        }
        transpose_quad(w, q);
        constexpr uint32_t kLow = 0x5410, kHigh = 0x7632;
        store16(h, first_weight_row / 2 + 8 * (4 * m + q),
                {permute_bytes(w[0], w[1], kLow), permute_bytes(w[2], w[3], kLow),
                 permute_bytes(w[0], w[1], kHigh), permute_bytes(w[2], w[3], kHigh)});
      }
    }
  }
  __device__ void store_rows(const Sums& sums) const {
    const int q = thread % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int m = 0; m < kGroups / 4; ++m) {
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = 4 * m + i;
          w[i] = pack_bf16(sums[4 * j + 2 * h], sums[4 * j + 2 * h + 1]);
        }
        transpose_quad(w, q);
        store16(h, first_weight_row + 8 * (4 * m + q), {w[0], w[1], w[2], w[3]});
      }
    }
  }

  __device__ void finish(Sums& sums) const {
    scale_and_bias(sums);
    if constexpr (Traits::kEnd == TileEnd::kGated) {
      activate(sums);
      store_gated(sums);
    } else {
      if (p.square) {
#pragma unroll
        for (int i = 0; i < Traits::kAccumulators; ++i) {
          sums[i] = sums[i] < 0.0f ? 0.0f : sums[i] * sums[i];
        }
      }
      store_rows(sums);
    }
  }
};

}  // namespace switchyard::cuda::sm90
