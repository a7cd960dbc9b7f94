#pragma once
// 4-bit weights in fragment order: a step is one bulk copy of consecutive blocks; operand A comes
// from registers.

#include "cuda/sm90/decode_fragments.h"
#include "cuda/sm90/decode_kernel.cuh"
#include "cuda/sm90/fragment_operand.cuh"

namespace switchyard::cuda::sm90 {

template <FragmentOrder kOrder, Format kFormat>
struct DecodeFragments {
  using Operand = FragmentOperand<kOrder, kFormat>;
  static constexpr MmaType kMma = Operand::kMma;
  static constexpr int kStepBlocks = kDecodeStepFragments;
  static constexpr int kTokenBytes = kOrder == FragmentOrder::kFp8 ? 1 : 2;  ///< of an element
  static constexpr int kTokenBlocks = kStepBlocks * kFragmentCols * kTokenBytes / 128;
  static constexpr int kStepBytes = kStepBlocks * Operand::kBlockBytes;
  static constexpr int kChunkSteps = kDecodeFragmentChunkSteps;
  static constexpr bool kBlockScales = false;
  static constexpr bool kRowPairs = true;
  using Args = DecodeFragmentArgs;

  /// The last step of a row may be short.
  __device__ static int num_blocks(const Args& args, int k_step) {
    return min(kStepBlocks, args.col_blocks - k_step * kStepBlocks);
  }
  __device__ static uint32_t step_bytes(const Args& args, int k_step) {
    return static_cast<uint32_t>(num_blocks(args, k_step) * Operand::kBlockBytes);
  }
  __device__ static void load(const Args& args, char* to, int expert, int row_block, int k_step,
                              uint64_t* full) {
    const int64_t block = static_cast<int64_t>(row_block) * args.col_blocks + k_step * kStepBlocks;
    bulk_load(to, args.blocks + expert * args.expert_bytes + block * Operand::kBlockBytes,
              step_bytes(args, k_step), full, evict_first_policy());
  }

  template <int kN>
  __device__ static void multiply(const Args& args, const Step& step, bool accumulate,
                                  float (&sum)[kN / 2]) {
    // Two sets of registers: one is converted while the instructions that read the other run.
    uint32_t a[2][kGroup * Operand::kSteps][4];
    const int blocks = num_blocks(args, step.k_step);
#pragma unroll
    for (int b = 0; b < kStepBlocks; b += kGroup) {
      group<kN>(args, step, b, blocks, accumulate || b > 0, a[b / kGroup % 2], sum);
      wgmma_wait<1>();
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

}  // namespace switchyard::cuda::sm90
