#pragma once
// From the sums of a tile of 4-bit weights to bf16 output rows. Of every 16 weight rows of a warp a
// thread (lane = 4 g + q) holds rows 2 g and 2 g + 1 - gate and up, or two neighbouring columns of
// the output - for sorted rows 2 q and 2 q + 1 of every group of eight. Output passes through
// shared memory, so that it leaves in whole rows.

#include "cuda/sm90/fp4_prefill_mainloop.cuh"
#include "cuda/sm90/grouped_gemm_epilogue.cuh"

namespace switchyard::cuda::sm90 {

/// 4 bytes without a register or a wait; zero when there is no source.
__device__ __forceinline__ void async_copy_4(void* to, const void* from, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(exists ? 4 : 0)
               : "memory");
}
__device__ __forceinline__ void async_copy_wait() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}
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

  /// What a tile's end needs to know, fetched while the tile is multiplied.
  struct Facts {
    float row_scale[kRows];
    float row_weight[kRows];
    int32_t packed[kRows];
    float weight_scale[kFragmentRows];
    float bias[kFragmentRows];
  };
  static_assert(sizeof(Facts) == Traits::kFactBytes);

  const Fp4PrefillParams& p;
  uint8_t* shared;  ///< of this consumer
  int consumer;
  int thread;

  __device__ __forceinline__ Facts& facts() const { return *reinterpret_cast<Facts*>(shared); }
  __device__ __forceinline__ uint8_t* output() const { return shared + Traits::kFactBytes; }
  __device__ __forceinline__ void meet() const { named_barrier(1 + consumer, 128); }

  __device__ void fetch_facts(int32_t expert, int32_t row_block, int first_row) const {
    if (thread < kRows) {
      const int sorted = first_row + thread;
      const int32_t packed = __ldg(p.sorted.ids + sorted);
      const bool used = is_pair(packed, p.sorted.top_k);
      facts().packed[thread] = packed;
      if constexpr (Traits::kFp8) {
        const int64_t row = p.source == RowSource::kToken  ? packed_token(packed)
                            : p.source == RowSource::kPair ? pair_of(packed)
                                                           : sorted;
        async_copy_4(&facts().row_scale[thread], p.row_scales + row * p.row_scale_stride, used);
      }
      if (p.sorted.weights != nullptr) {
        async_copy_4(&facts().row_weight[thread], p.sorted.weights + sorted, used);
      }
    }
    if (thread < kFragmentRows) {
      const int row = row_block * kFragmentRows + thread;
      const bool exists = row < p.num_weight_rows;
      const int64_t at = static_cast<int64_t>(expert) * p.num_weight_rows + row;
      async_copy_4(&facts().weight_scale[thread], p.weight_row_scales + at, exists);
      if (p.bias != nullptr) async_copy_4(&facts().bias[thread], p.bias + at, exists);
    }
  }
  __device__ __forceinline__ int64_t pair_of(int32_t packed) const {
    return static_cast<int64_t>(packed_token(packed)) * p.sorted.top_k + packed_slot(packed);
  }

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
    const float2 value = *reinterpret_cast<const float2*>(per_row + thread / 4 * 2);
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) f(sums[i], i / 2 % 2 == 0 ? value.x : value.y);
  }

  __device__ void scale_and_bias(Sums& sums) const {
    const auto multiply = [](float& sum, float by) { sum *= by; };
    if constexpr (Traits::kFp8) with_rows(sums, facts().row_scale, multiply);
    with_weight_rows(sums, facts().weight_scale, multiply);
    if (p.weight_before_bias) with_rows(sums, facts().row_weight, multiply);
    if (p.bias != nullptr) {
      with_weight_rows(sums, facts().bias, [](float& sum, float bias) { sum += bias; });
    }
    if (p.weight_after) with_rows(sums, facts().row_weight, multiply);
  }

  /// Leaves the activated product of gate and up in the gate's place.
  __device__ void activate(Sums& sums) const {
    const auto each = [&](auto f) {
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) {
        if (i / 2 % 2 == 0) sums[i] = f(sums[i], sums[i + 2]);
      }
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

  /// Copies rows of kRowBytes from shared memory (16-byte chunk c of row r at swizzle(r, c)) to
  /// their places; the first one is row `begin` of the tile.
  template <int kRowBytes, class Swizzle>
  __device__ void copy_out(int begin, int count, int first_row, int32_t column,
                           Swizzle swizzle) const {
    constexpr int kChunks = kRowBytes / 16;
    const int chunk = thread % kChunks;
    const int32_t at = column + chunk * 8;
    if (at >= p.num_columns) return;
    for (int r = thread / kChunks; r < count; r += 128 / kChunks) {
      const int32_t packed = facts().packed[begin + r];
      if (!is_pair(packed, p.sorted.top_k)) return;  // pairs come first
      const int64_t row = p.output_per_pair ? pair_of(packed) : first_row + begin + r;
      *reinterpret_cast<uint4*>(p.output + row * p.output_stride + at) =
          *reinterpret_cast<const uint4*>(output() + r * kRowBytes + (swizzle(r, chunk) << 4));
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
      store_transposed(shared_address(output()) +
                           static_cast<uint32_t>(row * kRowBytes + (swizzle(row, warp) << 4)),
                       words);
    }
    meet();
    copy_out<kRowBytes>(0, kRows, first_row, row_block * (kFragmentRows / 2), swizzle);
  }

  __device__ void store_rows(const Sums& sums, int32_t row_block, int first_row) const {
    constexpr int kRowBytes = 2 * kFragmentRows;
    constexpr int kPass =
        Traits::kOutputBytes / kRowBytes < kRows ? Traits::kOutputBytes / kRowBytes : kRows;
    const auto swizzle = [](int row, int chunk) { return chunk ^ (row / 2 % 4 * 2); };
    const int pair = thread / 4, q = thread % 4;
#pragma unroll
    for (int begin = 0; begin < kRows; begin += kPass) {
      if (begin > 0) meet();
#pragma unroll
      for (int j = 0; j < kPass / 8 && begin + j * 8 < kRows; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int row = j * 8 + q * 2 + e;
          const float* sum = &sums[4 * (begin / 8 + j) + e];
          *reinterpret_cast<uint32_t*>(output() + row * kRowBytes + (swizzle(row, pair / 4) << 4) +
                                       pair % 4 * 4) = pack_bf16(sum[0], sum[2]);
        }
      }
      meet();
      copy_out<kRowBytes>(begin, min(kPass, kRows - begin), first_row, row_block * kFragmentRows,
                          swizzle);
    }
  }

  __device__ void finish(Sums& sums, int32_t row_block, int first_row) const {
    async_copy_wait();
    meet();
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
    meet();  // facts and output may be written again
  }
};

}  // namespace switchyard::cuda::sm90
