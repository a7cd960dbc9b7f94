#pragma once
// 4-bit and MXFP8 weights in fragment order: a step is one bulk copy of consecutive blocks; operand
// A comes from registers.

#include <type_traits>

#include "cuda/sm90/decode_fragments.h"
#include "cuda/sm90/decode_kernel.cuh"
#include "cuda/sm90/fragment_operand.cuh"

namespace switchyard::cuda::sm90 {

/// kBlocks of 64 columns in a step. kTokenScales: E4M3 tokens have a scale per 128 columns.
template <class FragmentOperand, int kBlocks, bool kTokenScales>
struct DecodeFragments {
  using Operand = FragmentOperand;
  using Word = float;
  static constexpr MmaType kMma = Operand::kMma;
  static constexpr int kTokenBytes = Operand::kBytes ? 1 : 2;  ///< of an element
  static constexpr int kTokenBlocks = kBlocks * kFragmentCols * kTokenBytes / 128;
  static constexpr int kStepBytes = kBlocks * Operand::kBlockBytes;
  static constexpr int kChunkSteps = kDecodeChunkFragments / kBlocks;
  static constexpr bool kBlockScales = kTokenScales, kRowBlockScales = false;
  static constexpr bool kRowPairs = true;
  using Args = DecodeFragmentArgs;

  /// The last step of a row may be short.
  __device__ static int num_blocks(const Args& args, int k_step) {
    return min(kBlocks, args.col_blocks - k_step * kBlocks);
  }
  __device__ static uint32_t step_bytes(const Args& args, int k_step) {
    return static_cast<uint32_t>(num_blocks(args, k_step) * Operand::kBlockBytes);
  }
  __device__ static void load(const Args& args, char* to, int expert, int row_block, int k_step,
                              uint64_t* full) {
    const int64_t block = static_cast<int64_t>(row_block) * args.col_blocks + k_step * kBlocks;
    bulk_load(to, args.blocks + expert * args.expert_bytes + block * Operand::kBlockBytes,
              step_bytes(args, k_step), full, evict_first_policy());
  }

  /// Deep matrices read their tables.
  template <class Function>
  __device__ static void with_variant(const Args& args, Function&& function) {
    if constexpr (Operand::kTables) {
      if (args.deep) return function(std::true_type{});
    }
    function(std::false_type{});
  }
  template <int kN, bool kDeep>
  __device__ static void multiply(const Step& step, bool accumulate, float (&sum)[kN / 2]) {
    if constexpr (Operand::kScalesSums) {
      multiply_scaled<kN>(step, kBlocks, accumulate, sum);
    } else if constexpr (kTokenScales) {
      multiply_promoted<kN, kDeep, kBlocks>(step, 0, accumulate, sum);
    } else {
      multiply_run<kN, kDeep, kBlocks>(step, 0, accumulate, sum);
    }
  }
  /// Blocks of the last step if it is short, else 0.
  SWITCHYARD_HOST_DEVICE static int tail_blocks(const Args& args) {
    return args.col_blocks % kBlocks;
  }
  template <int kN>
  __device__ static void multiply_tail(const Args& args, const Step& step, int blocks,
                                       bool accumulate, float (&sum)[kN / 2]) {
    if constexpr (Operand::kScalesSums) {
      multiply_scaled<kN>(step, blocks, accumulate, sum);
    } else {
      with_variant(args, [&](auto deep) {
        if constexpr (kTokenScales) {
          return multiply_promoted_tail<kN, deep()>(step, blocks, accumulate, sum);
        }
        int first = 0;
        if (blocks >= 2 * kGroup) {
          multiply_run<kN, deep(), 2 * kGroup>(step, 0, accumulate, sum);
          first = 2 * kGroup;
        }
#pragma unroll 1
        for (; first < blocks; ++first) {
          multiply_run<kN, deep(), 1>(step, first, accumulate || first > 0, sum);
        }
      });
    }
  }

 private:
  /// Blocks between waits: four instructions.
  static constexpr int kGroup = 4 / Operand::kSteps;
  /// 128 bytes of a token: descriptors count 16.
  static_assert(kGroup * kFragmentCols * kTokenBytes == 128);
  /// Sums of E4M3 products lose low bits (docs/numerics.md): they leave every 256 columns.
  static constexpr bool kPromotes = kMma == MmaType::kE4m3;
  static constexpr int kPartBlocks = 256 / kFragmentCols;

  /// kCount blocks from `first` on, finished on return. Unrolled: around a loop's end the compiler
  /// would wait for the instructions in flight.
  template <int kN, bool kDeep, int kCount>
  __device__ static void multiply_run(const Step& step, int first, bool accumulate,
                                      float (&sum)[kN / 2]) {
    constexpr int kAtOnce = kCount < kGroup ? kCount : kGroup;
    using Raw = typename Operand::Raw[kAtOnce];
    const char* weights = step.weights + first * Operand::kBlockBytes;
    const uint64_t tokens = tokens_of_block(step, first);
    constexpr int kParts = kPromotes ? ceil_div(kCount, kPartBlocks) : 0;
    float parts[kParts + 1][kN / 2];
    uint32_t a[2][kAtOnce][Operand::kSteps][4];
    Raw raw;
    load(weights, raw);
#pragma unroll
    for (int i = 0; i < kCount / kAtOnce; ++i) {
#pragma unroll
      for (int b = 0; b < kAtOnce; ++b) Operand::template convert<kDeep>(raw[b], a[i % 2][b]);
      if (i + 1 < kCount / kAtOnce) load(weights + (i + 1) * kAtOnce * Operand::kBlockBytes, raw);
      const int first_of_group = i * kAtOnce;
      auto& now = kPromotes ? parts[first_of_group / kPartBlocks] : sum;
      const bool begun = kPromotes ? first_of_group % kPartBlocks > 0 : accumulate || i > 0;
      pin(now);
      wgmma_fence();
#pragma unroll
      for (int b = 0; b < kAtOnce; ++b) {
        Operand::template multiply<kN>(a[i % 2][b], tokens + i * (kN * 8) + b * (8 / kGroup),
                                       begun || b > 0, now);
      }
      wgmma_commit();
      wgmma_wait<1>();
    }
    wgmma_wait<0>();
    if constexpr (kPromotes) {
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        pin(parts[p]);
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) {
          sum[i] = accumulate || p > 0 ? sum[i] + parts[p][i] : parts[p][i];
        }
      }
    } else {
      pin(sum);
    }
  }

  /// The same with tokens' scales: 128 columns leave the matrix unit together, and are added under
  /// the next ones' products where registers hold both sums.
  template <int kN, bool kDeep, int kCount>
  __device__ static void multiply_promoted(const Step& step, int first, bool accumulate,
                                           float (&sum)[kN / 2]) {
    constexpr int kPairs = ceil_div(kCount, kGroup);
    constexpr int kAhead = kN <= 16 && kPairs > 1 ? 1 : 0;  // in flight beside the newest
    constexpr int kAtOnce = kCount < kGroup ? kCount : kGroup;
    static_assert(kCount % kAtOnce == 0);
    const char* weights = step.weights + first * Operand::kBlockBytes;
    uint32_t a[2][kAtOnce][Operand::kSteps][4];
    typename Operand::Raw raw[kAtOnce];
    float part[1 + kAhead][kN / 2];
    load(weights, raw);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
#pragma unroll
      for (int b = 0; b < kAtOnce; ++b) Operand::template convert<kDeep>(raw[b], a[i % 2][b]);
      if (i + 1 < kPairs) load(weights + (i + 1) * kAtOnce * Operand::kBlockBytes, raw);
      auto& now = part[i % (1 + kAhead)];
      const uint64_t tokens = step.token_descriptor(first / kGroup + i);
      pin(now);
      wgmma_fence();
#pragma unroll
      for (int b = 0; b < kAtOnce; ++b) {
        Operand::template multiply<kN>(a[i % 2][b], tokens + b * (8 / kGroup), b > 0, now);
      }
      wgmma_commit();
      wgmma_wait<kAhead>();
      if (i >= kAhead) {
        const int before = i - kAhead;
        promote<kN>(step, first / kGroup + before, accumulate || before > 0,
                    part[before % (1 + kAhead)], sum);
      }
    }
    if constexpr (kAhead > 0) {
      wgmma_wait<0>();
      promote<kN>(step, first / kGroup + kPairs - 1, true, part[(kPairs - 1) % 2], sum);
    }
  }
  template <int kN, bool kDeep>
  __device__ static void multiply_promoted_tail(const Step& step, int blocks, bool accumulate,
                                                float (&sum)[kN / 2]) {
    int first = 0;
#pragma unroll 1
    for (; first + kGroup <= blocks; first += kGroup) {
      multiply_promoted<kN, kDeep, kGroup>(step, first, accumulate || first > 0, sum);
    }
    if (first < blocks) {
      multiply_promoted<kN, kDeep, 1>(step, first, accumulate || first > 0, sum);
    }
  }
  /// sum (+)= part * scale of the token, for 128 columns.
  template <int kN>
  __device__ static void promote(const Step& step, int group, bool accumulate,
                                 float (&part)[kN / 2], float (&sum)[kN / 2]) {
    pin(part);
    const float* scales = step.scales + group * step.scale_stride + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      sum[i] = fmaf(part[i], scales[i / 4 * 8 + i % 2], accumulate ? sum[i] : 0.0f);
    }
  }

  template <int kN>
  __device__ static void multiply_scaled(const Step& step, int blocks, bool accumulate,
                                         float (&sum)[kN / 2]) {
    if (!accumulate) {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) sum[i] = 0.0f;
    }
    if (blocks == kBlocks) return multiply_scaled_run<kN, kBlocks>(step, 0, sum);
#pragma unroll 1
    for (int first = 0; first < blocks; ++first) multiply_scaled_run<kN, 1>(step, first, sum);
  }

  /// Groups of columns have sums of their own, which are added with their scales: under the next
  /// block's products where registers hold two blocks' sums.
  template <int kN, int kCount>
  __device__ static void multiply_scaled_run(const Step& step, int first, float (&sum)[kN / 2]) {
    constexpr int kAhead = kN <= 16 && kCount > 1 ? 1 : 0;  // blocks in flight beside the newest
    const char* weights = step.weights + first * Operand::kBlockBytes;
    uint32_t a[2][Operand::kSteps][4];
    typename Operand::Raw raw[3];
    typename Operand::Word part[1 + kAhead][Operand::kGroups][kN / 2];
    raw[0] = Operand::load(weights);
#pragma unroll
    for (int b = 0; b < kCount; ++b) {
      Operand::template convert<false>(raw[b % 3], a[b % 2]);
      if (b + 1 < kCount)
        raw[(b + 1) % 3] = Operand::load(weights + (b + 1) * Operand::kBlockBytes);
      auto& now = part[b % (1 + kAhead)];
#pragma unroll
      for (int g = 0; g < Operand::kGroups; ++g) pin(now[g]);
      wgmma_fence();
      Operand::template multiply_groups<kN>(a[b % 2], tokens_of_block(step, first + b), now);
      wgmma_commit();
      wgmma_wait<kAhead>();
      if (b >= kAhead) add<kN>(raw[(b - kAhead) % 3], part[(b - kAhead) % (1 + kAhead)], sum);
    }
    if constexpr (kAhead > 0) {
      wgmma_wait<0>();
      add<kN>(raw[(kCount - 1) % 3], part[(kCount - 1) % 2], sum);
    }
  }
  template <int kN>
  __device__ static void add(const typename Operand::Raw& raw,
                             typename Operand::Word (&part)[Operand::kGroups][kN / 2],
                             float (&sum)[kN / 2]) {
#pragma unroll
    for (int g = 0; g < Operand::kGroups; ++g) {
      pin(part[g]);
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) {
        sum[i] =
            fmaf(static_cast<float>(part[g][i]), Operand::scale(raw.scales, i / 2 % 2, g), sum[i]);
      }
    }
  }
  /// Of the tokens' columns that a block of weights meets.
  __device__ static uint64_t tokens_of_block(const Step& step, int block) {
    return step.token_descriptor(block / kGroup) +
           static_cast<uint64_t>(block % kGroup * (8 / kGroup));
  }

  template <int kCount>
  __device__ static void load(const char* weights, typename Operand::Raw (&raw)[kCount]) {
#pragma unroll
    for (int b = 0; b < kCount; ++b) raw[b] = Operand::load(weights + b * Operand::kBlockBytes);
  }
};

/// Longer steps cost less beside their conversions; with more tokens they would leave no ring.
template <class FragmentOperand, bool kTokenScales = false>
void launch_decode_fragments(const DecodeFragmentArgs& weights, DecodeArgs args, int num_ctas,
                             Stream stream) {
  constexpr int kLong = kDecodeChunkFragments * kFragmentCodeBytes / FragmentOperand::kCodeBytes;
  constexpr int kShort = kLong / 2;
  const bool few = args.unit_size <= 8 && weights.col_blocks > kShort;
  args.steps = decode_fragment_steps(weights.col_blocks, few ? kLong : kShort);
  using Long = DecodeFragments<FragmentOperand, kLong, kTokenScales>;
  using Short = DecodeFragments<FragmentOperand, kShort, kTokenScales>;
  few ? launch_decode_tile<Long, 8>(weights, args, num_ctas, stream)
      : launch_decode<Short>(weights, args, num_ctas, stream);
}

}  // namespace switchyard::cuda::sm90
