#pragma once
// From a consumer's sums to bf16 output rows. A thread of wgmma's layout holds columns 2 q and
// 2 q + 1 of every group of eight, of rows g and g + 8 (lane = 4 g + q); gate and up rows
// alternate, so they meet in one thread. Lanes of a quad trade columns to store 16 bytes each,
// without shared memory.

#include "cuda/gated_curve.cuh"
#include "cuda/quantize_vector.cuh"
#include "cuda/sm90/grouped_gemm_params.cuh"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda::sm90 {

/// words[g][i] of lane q becomes words[g][q] of lane i, inside every quad. All groups take a step
/// together: one after the other each would wait for its own shuffles.
template <int kCount>
__device__ __forceinline__ void transpose_quads(uint32_t (&words)[kCount][4], int q) {
  constexpr unsigned kAll = ~0u;
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = (q & step) != 0;
#pragma unroll
    for (int g = 0; g < kCount; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((i & step) != 0) continue;
        const uint32_t mine = upper ? words[g][i] : words[g][i + step];
        const uint32_t other = __shfl_xor_sync(kAll, mine, step);
        (upper ? words[g][i] : words[g][i + step]) = other;
      }
    }
  }
}

template <class Traits>
struct GroupedGemmEnd {
  static constexpr int kGroups = Traits::kSideN / 8;
  using Sums = float[Traits::kAccumulators];  // [group][row half][2]
  /// Whether a warpgroup has 128 gated columns: rounds_output().
  static constexpr bool kRounds = Traits::kScaling == Scaling::kBlock && Traits::kSideN == 256;

  const GroupedGemmParams& p;
  const TileMargin<Traits>& margin;
  int32_t first_column;      ///< of the tile
  int32_t first_weight_row;  ///< the same column of the matrix
  int thread;
  int row[2];  ///< of the tile

  /// `wave`: which 64 rows of the tile; `side`: which of its columns.
  __device__ GroupedGemmEnd(const GroupedGemmParams& params, const TileMargin<Traits>& margin_,
                            int32_t column, int wave, int side, int thread_)
      : p(params),
        margin(margin_),
        first_column(side * Traits::kSideN),
        first_weight_row(column * Traits::kBlockN + first_column),
        thread(thread_),
        row{first_row(wave, thread_), first_row(wave, thread_) + 8} {}
  /// A thread has this row of its tile and the eighth after it.
  __device__ static int first_row(int wave, int thread) {
    return wave * kGemmWaveRows + thread / 32 * 16 + thread % 32 / 4;
  }

  /// f(sum, value of `per_column` for the sum's weight row).
  template <class F>
  __device__ __forceinline__ void with_columns(Sums& sums, const float* per_column, F f) const {
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const float2 value =
          *reinterpret_cast<const float2*>(per_column + first_column + j * 8 + thread % 4 * 2);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        f(sums[4 * j + 2 * h], value.x);
        f(sums[4 * j + 2 * h + 1], value.y);
      }
    }
  }
  __device__ __forceinline__ void scale_rows(Sums& sums, const float* by) const {
    const float scale[2] = {by[row[0]], by[row[1]]};
#pragma unroll
    for (int i = 0; i < Traits::kAccumulators; ++i) sums[i] *= scale[i / 2 % 2];
  }

  __device__ void scale_and_bias(Sums& sums) const {
    if constexpr (Traits::kScaling == Scaling::kOuter) scale_rows(sums, margin.scale);
    if constexpr (Traits::kScaling != Scaling::kNone) {
      if (p.channel_scales != nullptr) {
        with_columns(sums, margin.channel_scale, [](float& sum, float scale) { sum *= scale; });
      }
    }
    if (p.weight_before_bias) scale_rows(sums, margin.weight);
    if (p.bias != nullptr) {
      with_columns(sums, margin.bias, [](float& sum, float bias) { sum += bias; });
    }
    if (p.weight_after) scale_rows(sums, margin.weight);
  }

  /// Leaves the activated product of sums 2 i and 2 i + 1 in sum 2 i.
  __device__ void activate(Sums& sums) const {
    const auto each = [&](auto f) {
#pragma unroll
      for (int i = 0; i < Traits::kAccumulators; i += 2) {
        sums[i] = f(sums[i], sums[i + 1]);
        asm volatile("" : "+f"(sums[i]));  // one after the other: long formulas would spill
      }
    };
    with_activation(p.activation_spec, p.curve, each);
  }

  __device__ __forceinline__ void store16(int32_t output_row, int32_t column,
                                          const uint4& v) const {
    if (output_row < 0 || column >= p.num_columns) return;
    auto* output = static_cast<uint16_t*>(p.output);
    *reinterpret_cast<uint4*>(output + output_row * p.output_stride + column) = v;
  }
  /// The 128 columns of a scale, of which this lane has vectors of eight, four vectors apart.
  __device__ __forceinline__ void store_rounded(int32_t output_row, int32_t column,
                                                const uint4 (&vectors)[4]) const {
    uint32_t amax = 0;
#pragma unroll
    for (const uint4& vector : vectors) {
      float v[kVector];
      unpack_bf16(vector, v);
      amax = max(amax, largest(v));
    }
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) amax = max(amax, __shfl_xor_sync(~0u, amax, step));
    if (output_row < 0 || column >= p.num_columns) return;
    const BlockScale scale = block_scale({}, amax);
    if (thread % 4 == 0) {
      p.output_scales[output_row * (p.num_columns / 128) + column / 128] = scale.stored;
    }
    auto* codes = static_cast<uint8_t*>(p.output) + output_row * p.output_stride + column;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      float v[kVector];
      unpack_bf16(vectors[m], v);
      *reinterpret_cast<uint2*>(codes + 32 * m) = encode<Format::kFp8E4m3>(v, scale.inverse);
    }
  }
  __device__ void store_gated(const Sums& sums) const {
    const int q = thread % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t output_row = margin.output_row[row[h]];
      uint32_t words[kGroups / 8][4];
#pragma unroll
      for (int m = 0; m < kGroups / 8; ++m) {
        // Column 4 j + q of the tile is sum [j][h][0]: a word holds those of groups 2 i and 2 i
        // + 1.
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = 8 * m + 2 * i;
          words[m][i] = pack_bf16(sums[4 * j + 2 * h], sums[4 * (j + 1) + 2 * h]);
        }
      }
      transpose_quads(words, q);
      uint4 vectors[kGroups / 8];
#pragma unroll
      for (int m = 0; m < kGroups / 8; ++m) {
        const uint32_t(&w)[4] = words[m];
        constexpr uint32_t kLow = 0x5410, kHigh = 0x7632;
        vectors[m] = {permute_bytes(w[0], w[1], kLow), permute_bytes(w[2], w[3], kLow),
                      permute_bytes(w[0], w[1], kHigh), permute_bytes(w[2], w[3], kHigh)};
      }
      const int32_t first = first_weight_row / 2 + 8 * q;
      if constexpr (kRounds) {
        if (p.output_scales != nullptr) {
          store_rounded(output_row, first, vectors);
          continue;
        }
      }
#pragma unroll
      for (int m = 0; m < kGroups / 8; ++m) store16(output_row, first + 32 * m, vectors[m]);
    }
  }
  __device__ void store_rows(const Sums& sums) const {
    const int q = thread % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t output_row = margin.output_row[row[h]];
      uint32_t words[kGroups / 4][4];
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        words[j / 4][j % 4] = pack_bf16(sums[4 * j + 2 * h], sums[4 * j + 2 * h + 1]);
      }
      transpose_quads(words, q);
#pragma unroll
      for (int m = 0; m < kGroups / 4; ++m) {
        const uint32_t(&w)[4] = words[m];
        store16(output_row, first_weight_row + 8 * (4 * m + q), {w[0], w[1], w[2], w[3]});
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
