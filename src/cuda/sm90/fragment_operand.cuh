#pragma once
// Weights in fragment order as operand A of wgmma: one block (64 rows x 64 columns) from shared
// memory to the registers of a warpgroup.

#include "core/fragment_convert.h"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace switchyard::cuda::sm90 {

/// kFp8Tables where threads can read them; an L1 hit when they are needed at all.
__device__ const Fp8Table kDeviceFp8Tables[kNumFp8Tables] = {
    make_fp8_table(0),  make_fp8_table(1),  make_fp8_table(2),  make_fp8_table(3),
    make_fp8_table(4),  make_fp8_table(5),  make_fp8_table(6),  make_fp8_table(7),
    make_fp8_table(8),  make_fp8_table(9),  make_fp8_table(10), make_fp8_table(11),
    make_fp8_table(12), make_fp8_table(13), make_fp8_table(14)};

template <FragmentOrder kOrder, Format kFormat>
struct FragmentOperand {
  static constexpr MmaType kMma = kOrder == FragmentOrder::kFp8 ? MmaType::kE4m3 : MmaType::kBf16;
  /// Columns of one matrix instruction, and instructions per block.
  static constexpr int kStepColumns = kOrder == FragmentOrder::kFp8 ? 32 : 16;
  static constexpr int kSteps = kFragmentCols / kStepColumns;
  static constexpr int kBlockBytes =
      fragment_layout(kOrder, kFormat, kFormat == Format::kNvfp4 ? 16 : 32, 64, 64).block_bytes;

  /// What a thread loads for one block.
  struct Raw {
    uint32_t words[4];
    uint32_t scales[kFormat == Format::kMxfp4 ? 1 : 2];  ///< first row's, then second row's
  };
  /// Zeros where there is no such block: a branch would end the overlap of instructions in flight.
  __device__ static Raw load(const char* block, bool exists) {
    const int thread = static_cast<int>(threadIdx.x) % kFragmentThreads;
    Raw raw{};
    if (!exists) return raw;
    const uint4 codes = reinterpret_cast<const uint4*>(block)[thread];
    raw.words[0] = codes.x, raw.words[1] = codes.y, raw.words[2] = codes.z, raw.words[3] = codes.w;
    const char* scales =
        block + kFragmentCodeBytes + thread / 4 * static_cast<int>(sizeof(raw.scales));
    if constexpr (kFormat == Format::kMxfp4) {
      raw.scales[0] = *reinterpret_cast<const uint32_t*>(scales);
    } else {
      const uint2 both = *reinterpret_cast<const uint2*>(scales);
      raw.scales[0] = both.x, raw.scales[1] = both.y;
    }
    return raw;
  }

  /// a[step]: the four registers of one instruction. `deep`: some block of the matrix is more than
  /// kMaxAddedSteps down (kFp8).
  __device__ static void convert(const Raw& raw, bool deep, uint32_t (&a)[kSteps][4]) {
    if constexpr (kOrder == FragmentOrder::kFp8) {
      deep ? convert_with(
                 raw, [](uint32_t byte) { return kDeviceFp8Tables[byte / 8]; }, a)
           : convert_with(
                 raw, [](uint32_t byte) { return added_fp8_table(byte); }, a);
    } else {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        if constexpr (kFormat == Format::kNvfp4) {
          convert_bf16(raw.words[step], nvfp4_multiplier(raw.scales[0], step),
                       nvfp4_multiplier(raw.scales[1], step), a[step]);
        } else {
          convert_bf16(raw.words[step], mx_multiplier(raw.scales[0], step / 2),
                       mx_multiplier(raw.scales[0], 2 + step / 2), a[step]);
        }
      }
    }
  }

  /// d (+)= block . tokens^T, not waited for. tokens: descriptor of the block's first column.
  template <int kN>
  __device__ static void multiply(const uint32_t (&a)[kSteps][4], uint64_t tokens, bool accumulate,
                                  float (&d)[kN / 2]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      // 32 bytes of K, 2 in a descriptor, whatever the type.
      Wgmma<kMma, kN>::rs(d, a[step], tokens + 2 * static_cast<uint64_t>(step),
                          accumulate || step > 0);
    }
  }

 private:
  template <class Table>
  __device__ static void convert_with(const Raw& raw, Table table, uint32_t (&a)[kSteps][4]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {  // row of the pair
        const uint32_t byte =
            choose_bytes(raw.scales[0], 0, 0x4440u + static_cast<uint32_t>(2 * h + step));
        convert_fp8(raw.words[2 * step + h], table(byte), a[step][h], a[step][2 + h]);
      }
    }
  }
};

}  // namespace switchyard::cuda::sm90
