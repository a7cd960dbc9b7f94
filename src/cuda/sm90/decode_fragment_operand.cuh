#pragma once
// 4-bit weights in fragment order: a step is one bulk copy of consecutive blocks; operand A comes
// from registers.

#include "cuda/sm90/decode_fragments.h"
#include "cuda/sm90/decode_kernel.cuh"
#include "cuda/sm90/fragment_operand.cuh"

namespace switchyard::cuda::sm90 {

/// kBlocks of 64 columns in a step.
template <FragmentOrder kOrder, Format kFormat, int kBlocks>
struct DecodeFragments {
  using Operand = FragmentOperand<kOrder, kFormat>;
  static constexpr MmaType kMma = Operand::kMma;
  static constexpr int kTokenBytes = kOrder == FragmentOrder::kFp8 ? 1 : 2;  ///< of an element
  static constexpr int kTokenBlocks = kBlocks * kFragmentCols * kTokenBytes / 128;
  static constexpr int kStepBytes = kBlocks * Operand::kBlockBytes;
  static constexpr int kChunkSteps = kDecodeChunkFragments / kBlocks;
  static constexpr bool kBlockScales = false;
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

  template <int kN>
  __device__ static void multiply(const Args& args, const Step& step, bool accumulate,
                                  float (&sum)[kN / 2]) {
    // Two sets of registers: one is converted while the instructions that read the other run. For
    // 64 tokens there is no room for them.
    constexpr int kSets = kN <= 32 ? 2 : 1;
    Registers a[kSets];
    const int blocks = num_blocks(args, step.k_step);
#pragma unroll 1
    for (int first = 0; first < blocks; first += kSets * kGroup) {
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        group<kN>(args, step, first + set * kGroup, blocks, accumulate || first + set > 0, a[set],
                  sum);
        wgmma_wait<kSets - 1>();
      }
    }
    wgmma_wait<0>();
    pin(sum);
  }

 private:
  /// Blocks between waits: four instructions.
  static constexpr int kGroup = 4 / Operand::kSteps;
  using Registers = uint32_t[kGroup * Operand::kSteps][4];

  template <int kN>
  __device__ static void group(const Args& args, const Step& step, int first, int blocks,
                               bool accumulate, Registers& a, float (&sum)[kN / 2]) {
    typename Operand::Raw raw[kGroup];
#pragma unroll
    for (int b = 0; b < kGroup; ++b) {
      raw[b] = Operand::load(step.weights + (first + b) * Operand::kBlockBytes, first + b < blocks);
    }
    using Block = uint32_t[Operand::kSteps][4];
#pragma unroll
    for (int b = 0; b < kGroup; ++b) {
      Operand::convert(raw[b], args.deep, reinterpret_cast<Block&>(a[b * Operand::kSteps]));
    }
    pin(sum);
    wgmma_fence();
#pragma unroll
    for (int b = 0; b < kGroup; ++b) {
      const int byte = (first + b) * kFragmentCols * kTokenBytes;
      Operand::template multiply<kN>(
          reinterpret_cast<const Block&>(a[b * Operand::kSteps]),
          step.token_descriptor(byte / 128) + static_cast<uint64_t>(byte % 128 / 16),
          accumulate || b > 0, sum);
    }
    wgmma_commit();
    pin(sum);
  }
};

/// Longer steps cost less beside their conversions; with more tokens they would leave no ring.
template <FragmentOrder kOrder, Format kFormat>
void launch_decode_fragments(const DecodeFragmentArgs& weights, DecodeArgs args, int num_ctas,
                             Stream stream) {
  constexpr int kLong = kDecodeChunkFragments, kShort = kDecodeChunkFragments / 2;
  const bool few = args.unit_size <= 8;
  args.steps = decode_fragment_steps(weights.col_blocks, few ? kLong : kShort);
  few ? launch_decode_tile<DecodeFragments<kOrder, kFormat, kLong>, 8>(weights, args, num_ctas,
                                                                       stream)
      : launch_decode_tile<DecodeFragments<kOrder, kFormat, kShort>, kDecodeMaxUnit>(
            weights, args, num_ctas, stream);
}

}  // namespace switchyard::cuda::sm90
