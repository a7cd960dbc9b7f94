#pragma once
// INT4 weights in groups, in fragment order, times bf16 tokens. Codes become bf16 integers, so that
// products are exact; a group's scale multiplies its sum, in f32, because a weight times its scale
// has up to 12 significant bits, four more than a bf16.

#include "core/fragment_convert.h"
#include "cuda/sm90/decode_fragments.h"
#include "cuda/sm90/decode_kernel.cuh"

namespace switchyard::cuda::sm90 {

/// kScaleCols: 32, or 64 for every longer group. kBlocks of 64 columns in a step.
template <int kScaleCols, int kBlocks>
struct DecodeInt4 {
  static constexpr MmaType kMma = MmaType::kBf16;
  static constexpr int kTokenBlocks = kBlocks;  // 64 bf16 are 128 bytes
  static constexpr int kBlockBytes =
      fragment_layout(FragmentOrder::kBf16, Format::kInt4, kScaleCols, 64, 64).block_bytes;
  static constexpr int kStepBytes = kBlocks * kBlockBytes;
  static constexpr int kChunkSteps = kDecodeChunkFragments / kBlocks;
  static constexpr bool kBlockScales = false;
  static constexpr bool kRowPairs = true;
  using Args = DecodeFragmentArgs;

  /// The last step of a row may be short.
  __device__ static int num_blocks(const Args& args, int k_step) {
    return min(kBlocks, args.col_blocks - k_step * kBlocks);
  }
  __device__ static uint32_t step_bytes(const Args& args, int k_step) {
    return static_cast<uint32_t>(num_blocks(args, k_step) * kBlockBytes);
  }
  __device__ static void load(const Args& args, char* to, int expert, int row_block, int k_step,
                              uint64_t* full) {
    const int64_t block = static_cast<int64_t>(row_block) * args.col_blocks + k_step * kBlocks;
    bulk_load(to, args.blocks + expert * args.expert_bytes + block * kBlockBytes,
              step_bytes(args, k_step), full, evict_first_policy());
  }

  template <int kN>
  __device__ static void multiply(const Args& args, const Step& step, bool accumulate,
                                  float (&sum)[kN / 2]) {
    // Two blocks in flight where registers allow: one is converted under the other's products.
    constexpr int kSets = kN <= 16 ? 2 : 1;
    if (!accumulate) {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) sum[i] = 0.0f;
    }
    const int blocks = num_blocks(args, step.k_step);
    Block<kN> block[kSets];
#pragma unroll 1
    for (int first = 0; first < blocks; first += kSets) {
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        start<kN>(step, first + set, first + set < blocks, block[set]);
      }
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        set + 1 < kSets ? wgmma_wait<1>() : wgmma_wait<0>();
        add<kN>(block[set], sum);
      }
    }
  }

 private:
  static constexpr int kGroups = kFragmentCols / kScaleCols;  ///< of a block
  static constexpr int kSteps = kFragmentCols / 16;           ///< matrix instructions of a block
  static constexpr int kGroupSteps = kSteps / kGroups;
  template <int kN>
  struct Block {
    uint32_t a[kSteps][4];
    uint32_t scales[kGroups];  ///< g32: the groups of a row in a word; else both rows in one
    float part[kGroups][kN / 2];
  };

  /// Products of one block, not waited for. Where there is no such block its scales are 0.
  template <int kN>
  __device__ static void start(const Step& step, int index, bool exists, Block<kN>& block) {
    const int thread = static_cast<int>(threadIdx.x) % kFragmentThreads;
    const char* from = step.weights + index * kBlockBytes;
    uint4 codes{};
#pragma unroll
    for (int g = 0; g < kGroups; ++g) block.scales[g] = 0;
    if (exists) {
      codes = reinterpret_cast<const uint4*>(from)[thread];
      const char* scales = from + kFragmentCodeBytes + thread / 4 * (4 * kGroups);
      if constexpr (kGroups == 2) {
        const uint2 both = *reinterpret_cast<const uint2*>(scales);
        block.scales[0] = both.x, block.scales[1] = both.y;
      } else {
        block.scales[0] = *reinterpret_cast<const uint32_t*>(scales);
      }
    }
    convert_int4(codes.x, block.a[0]);
    convert_int4(codes.y, block.a[1]);
    convert_int4(codes.z, block.a[2]);
    convert_int4(codes.w, block.a[3]);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) pin(block.part[g]);
    wgmma_fence();
    const uint64_t tokens = step.token_descriptor(exists ? index : 0);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      // 32 bytes of K, 2 in a descriptor.
      Wgmma<kMma, kN>::rs(block.part[s / kGroupSteps], block.a[s],
                          tokens + 2 * static_cast<uint64_t>(s), s % kGroupSteps != 0);
    }
    wgmma_commit();
#pragma unroll
    for (int g = 0; g < kGroups; ++g) pin(block.part[g]);
  }

  /// Scale of a group for the thread's first or second row.
  template <int kN>
  __device__ static float scale(const Block<kN>& block, int group, int row) {
    const uint32_t word = kGroups == 2 ? block.scales[row] : block.scales[0];
    const bool upper = kGroups == 2 ? group == 1 : row == 1;
    return __uint_as_float(upper ? word & 0xffff0000u : word << 16);
  }
  template <int kN>
  __device__ static void add(Block<kN>& block, float (&sum)[kN / 2]) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      pin(block.part[g]);
      const float by[2] = {scale(block, g, 0), scale(block, g, 1)};
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) {
        sum[i] = fmaf(block.part[g][i], by[i / 2 % 2], sum[i]);
      }
    }
  }
};

template <int kScaleCols>
void launch_decode_int4(const DecodeFragmentArgs& weights, DecodeArgs args, int num_ctas,
                        Stream stream) {
  constexpr int kLong = kDecodeChunkFragments, kShort = kDecodeChunkFragments / 2;
  const bool few = args.unit_size <= 8;
  args.steps = decode_fragment_steps(weights.col_blocks, few ? kLong : kShort);
  few ? launch_decode_tile<DecodeInt4<kScaleCols, kLong>, 8>(weights, args, num_ctas, stream)
      : launch_decode_tile<DecodeInt4<kScaleCols, kShort>, kDecodeMaxUnit>(weights, args, num_ctas,
                                                                           stream);
}

}  // namespace switchyard::cuda::sm90
