#pragma once
// From the sums of a tile of 4-bit weights to bf16 output rows. Of every 16 weight rows of a warp a
// thread (lane = 4 g + q) holds rows 2 g and 2 g + 1 - gate and up, or two neighbouring columns of
// the output - for sorted rows 2 q and 2 q + 1 of every group of eight. Output passes through
// shared memory, so that it leaves in whole rows.

#include "cuda/sm90/fp4_prefill_mainloop.cuh"
#include "cuda/sm90/grouped_gemm_epilogue.cuh"

namespace switchyard::cuda::sm90 {

/// Four 8 x 8 matrices of 16-bit elements, transposed: lane 8 i + r names row r of matrix i.
__device__ __forceinline__ void store_transposed(uint32_t to, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

template <class Traits>
struct Fp4PrefillEnd {
  static constexpr int kRows = Traits::kTileRows;
  static constexpr int kGroups = kRows / 8;
  using Sums = typename Traits::Sums;  // [group][weight row of the pair][2]

  const Fp4PrefillParams& p;
  const Fp4PrefillFacts<Traits>& facts;
  uint8_t* output;  ///< shared memory of this consumer
  int consumer;
  int thread;

  __device__ __forceinline__ void meet() const { named_barrier(1 + consumer, 128); }

  /// f(sum, factor of its sorted row)
  template <class F>
  __device__ __forceinline__ void with_rows(Sums& sums, const float* per_row, F f) const {
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const float2 value = *reinterpret_cast<const float2*>(per_row + j * 8 + thread % 4 * 2);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        f(sums[4 * j + 2 * h], value.x);
        f(sums[4 * j + 2 * h + 1], value.y);
      }
    }
  }
  /// f(sum, value of its weight row)
  template <class F>
  __device__ __forceinline__ void with_weight_rows(Sums& sums, const float* per_row, F f) const {
    const float2 value =
        *reinterpret_cast<const float2*>(per_row + consumer * kFragmentRows + thread / 4 * 2);
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) f(sums[i], i / 2 % 2 == 0 ? value.x : value.y);
  }

  __device__ void scale_and_bias(Sums& sums) const {
    const auto multiply = [](float& sum, float by) { sum *= by; };
    if constexpr (Traits::kFp8) with_rows(sums, facts.row_scale, multiply);
    with_weight_rows(sums, facts.weight_scale, multiply);
    if (p.weight_before_bias) with_rows(sums, facts.row_weight, multiply);
    if (p.bias != nullptr) {
      with_weight_rows(sums, facts.bias, [](float& sum, float bias) { sum += bias; });
    }
    if (p.weight_after) with_rows(sums, facts.row_weight, multiply);
  }

  /// Leaves the activated product of gate and up in the gate's place.
  __device__ void activate(Sums& sums) const {
    const auto each = [&](auto f) {
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) {
        if (i / 2 % 2 == 0) sums[i] = f(sums[i], sums[i + 2]);
      }
    };
    with_activation(p.activation_spec, p.curve, each);
  }

  /// Copies rows of kRowBytes from shared memory (16-byte chunk c of row r at swizzle(r, c)) to
  /// their places; the first one is row `begin` of the tile.
  template <int kRowBytes, int kCount, class Swizzle>
  __device__ void copy_out(int begin, int first_row, int32_t column, Swizzle swizzle) const {
    constexpr int kChunks = kRowBytes / 16;
    constexpr int kPass = 128 / kChunks;
    const int chunk = thread % kChunks;
    const int32_t at = column + chunk * 8;
    const bool in_row = at < p.num_columns;
#pragma unroll
    for (int i = 0; i < kCount / kPass; ++i) {
      const int r = i * kPass + thread / kChunks;
      const int32_t packed = facts.packed[begin + r];
      const int64_t row = p.output_per_pair ? pair_of(p, packed) : first_row + begin + r;
      if (in_row && is_pair(packed, p.sorted.top_k)) {
        *reinterpret_cast<uint4*>(p.output + row * p.output_stride + at) =
            *reinterpret_cast<const uint4*>(output + r * kRowBytes + (swizzle(r, chunk) << 4));
      }
    }
  }

  __device__ void store_gated(const Sums& sums, int32_t row_block, int first_row) const {
    constexpr int kRowBytes = kFragmentRows;  // 32 bf16
    const auto swizzle = [](int row, int chunk) { return chunk ^ (row / 2 % 4); };
    const int warp = thread / 32, lane = thread % 32;
#pragma unroll
    for (int j = 0; j < kGroups; j += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = pack_bf16(sums[4 * (j + i)], sums[4 * (j + i) + 1]);
      }
      const int row = j * 8 + lane;
      store_transposed(shared_address(output) +
                           static_cast<uint32_t>(row * kRowBytes + (swizzle(row, warp) << 4)),
                       words);
    }
    meet();
    copy_out<kRowBytes, kRows>(0, first_row, row_block * (kFragmentRows / 2), swizzle);
  }

  __device__ void store_rows(const Sums& sums, int32_t row_block, int first_row) const {
    constexpr int kRowBytes = 2 * kFragmentRows;
    constexpr int kPass = kRows <= 64 ? kRows : kRows / 2;
    static_assert(kPass * kRowBytes <= Traits::kOutputBytes);
    const auto swizzle = [](int row, int chunk) { return chunk ^ (row / 2 % 4 * 2); };
    const int pair = thread / 4, q = thread % 4;
#pragma unroll
    for (int begin = 0; begin < kRows; begin += kPass) {
      if (begin > 0) meet();
#pragma unroll
      for (int j = 0; j < kPass / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int row = j * 8 + q * 2 + e;
          const float* sum = &sums[4 * (begin / 8 + j) + e];
          *reinterpret_cast<uint32_t*>(output + row * kRowBytes + (swizzle(row, pair / 4) << 4) +
                                       pair % 4 * 4) = pack_bf16(sum[0], sum[2]);
        }
      }
      meet();
      copy_out<kRowBytes, kPass>(begin, first_row, row_block * kFragmentRows, swizzle);
    }
  }

  __device__ void finish(Sums& sums, int32_t row_block, int first_row) const {
    scale_and_bias(sums);
    if constexpr (Traits::kEnd == TileEnd::kGated) {
      activate(sums);
      store_gated(sums, row_block, first_row);
    } else {
      if (p.square) {
#pragma unroll
        for (int i = 0; i < kRows / 2; ++i) sums[i] = sums[i] < 0.0f ? 0.0f : sums[i] * sums[i];
      }
      store_rows(sums, row_block, first_row);
    }
    meet();  // output may be written again
  }
};

}  // namespace switchyard::cuda::sm90
