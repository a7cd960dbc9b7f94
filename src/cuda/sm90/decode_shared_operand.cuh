#pragma once
// Row-major bf16, E4M3 and INT8 weights: boxes of 64 rows x 128 bytes by the copy engine, both
// operands of wgmma from shared memory.

#include <type_traits>

#include "cuda/sm90/decode_gemm.h"
#include "cuda/sm90/decode_kernel.cuh"

namespace switchyard::cuda::sm90 {

template <MmaType kType, bool kScaled>
struct SharedOperand {
  static constexpr MmaType kMma = kType;
  using Word = std::remove_extent_t<typename Wgmma<kType, 8>::Accumulator>;
  static constexpr int kTokenBlocks = kDecodeStepRowBytes / 128;
  static constexpr int kBlockBytes = kDecodeRows * 128;
  static constexpr int kStepBytes = kTokenBlocks * kBlockBytes;
  static constexpr int kChunkSteps = kDecodeChunkSteps;
  static constexpr bool kBlockScales = kScaled, kRowBlockScales = kScaled;
  static constexpr bool kRowPairs = false;
  static constexpr int kBlockColumns = kType == MmaType::kBf16 ? 64 : 128;
  struct Args {
    CUtensorMap map;  ///< [E][rows][K], boxes of 64 rows x 128 bytes
  };

  __device__ static void prefetch(const Args& args) { prefetch_map(&args.map); }
  __device__ static void load(const Args& args, char* to, int expert, int row_block, int k_step,
                              uint64_t* full) {
#pragma unroll
    for (int b = 0; b < kTokenBlocks; ++b) {
      tensor_load(to + b * kBlockBytes, &args.map, (k_step * kTokenBlocks + b) * kBlockColumns,
                  row_block * kDecodeRows, expert, full, evict_first_policy());
    }
  }

  template <class Function>
  __device__ static void with_variant(const Args&, Function&& function) {
    function(std::false_type{});
  }
  template <int kN, bool>
  __device__ static void multiply(const Step& step, bool accumulate,
                                  typename Wgmma<kType, kN>::Accumulator& sum) {
    const uint64_t weights = swizzled_128_descriptor(shared_address(step.weights));
    if constexpr (kPromotes) {
      // Small sums leave room for both blocks' products, so that one is promoted under the other.
      constexpr int kParts = kN <= 16 ? kTokenBlocks : 1;
      typename Wgmma<kType, kN>::Accumulator part[kParts];
#pragma unroll
      for (int b = 0; b < kTokenBlocks; b += kParts) {
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
          multiply_block<kN>(weights + (b + i) * (kBlockBytes / 16), step.token_descriptor(b + i),
                             false, part[i]);
        }
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
          i + 1 < kParts ? wgmma_wait<1>() : wgmma_wait<0>();
          pin(part[i]);
          promote<kN>(step, b + i, accumulate || b + i > 0, part[i], sum);
        }
      }
    } else {
#pragma unroll
      for (int b = 0; b < kTokenBlocks; ++b) {
        multiply_block<kN>(weights + b * (kBlockBytes / 16), step.token_descriptor(b),
                           accumulate || b > 0, sum);
      }
      wgmma_wait<0>();
      pin(sum);
    }
  }

 private:
  /// Sums of E4M3 products lose low bits (docs/numerics.md): they leave every 128 columns.
  static constexpr bool kPromotes = kType == MmaType::kE4m3;

  /// 128 bytes of K: four instructions, 32 bytes (2 in a descriptor) apart.
  template <int kN>
  __device__ static void multiply_block(uint64_t weights, uint64_t tokens, bool accumulate,
                                        typename Wgmma<kType, kN>::Accumulator& d) {
    pin(d);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Wgmma<kType, kN>::ss(d, weights + 2 * i, tokens + 2 * i, accumulate || i > 0);
    }
    wgmma_commit();
  }

  /// sum (+)= part [* scale of the rows * scale of the token], for one block of 128 columns.
  template <int kN>
  __device__ static void promote(const Step& step, int block, bool accumulate,
                                 const float (&part)[kN / 2], float (&sum)[kN / 2]) {
    if constexpr (kScaled) {
      const float* scales = step.scales + block * step.scale_stride;
      const int lane = static_cast<int>(threadIdx.x) % 32;
      const float rows =
          step.row_scales[block * step.scale_stride + lane / 4 % 2];  // gate rows are even
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) {
        const float scale = rows * scales[i / 4 * 8 + lane % 4 * 2 + i % 2];
        sum[i] = fmaf(part[i], scale, accumulate ? sum[i] : 0.0f);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) sum[i] = accumulate ? sum[i] + part[i] : part[i];
    }
  }
};

}  // namespace switchyard::cuda::sm90
