#pragma once
// Weights in fragment order as operand A of wgmma: one block (64 rows x 64 columns) from shared
// memory to the registers of a warpgroup.

#include <type_traits>

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

__device__ const Nvfp4Tables kDeviceNvfp4Tables = make_nvfp4_tables();

/// Columns that share a scale in a format that has but one way.
constexpr int usual_scale_cols(Format format) { return format == Format::kNvfp4 ? 16 : 32; }

constexpr MmaType mma_type(FragmentOrder order) {
  return order == FragmentOrder::kFp8    ? MmaType::kE4m3
         : order == FragmentOrder::kInt8 ? MmaType::kS8
                                         : MmaType::kBf16;
}

/// kFactors: as of fragment_layout().
template <FragmentOrder kOrder, Format kFormat, int kScaleCols = usual_scale_cols(kFormat),
          bool kFactors = false>
struct FragmentOperand {
  static constexpr MmaType kMma = mma_type(kOrder);
  /// What a group of products is summed in.
  using Word = std::remove_extent_t<typename Wgmma<kMma, 8>::Accumulator>;
  static constexpr bool kBytes = multiplies_bytes(kOrder);
  /// E2M1 times a power of two, by Fp8Table.
  static constexpr bool kTables = kOrder == FragmentOrder::kFp8 && kFormat == Format::kMxfp4;
  /// By Nvfp4Tables.
  static constexpr bool kScaleTables = kOrder == FragmentOrder::kFp8 && kFormat == Format::kNvfp4;
  /// Columns of one matrix instruction, and instructions per block.
  static constexpr int kStepColumns = kBytes ? 32 : 16;
  static constexpr int kSteps = kFragmentCols / kStepColumns;
  static constexpr FragmentLayout kLayout =
      fragment_layout(kOrder, kFormat, kScaleCols, kFragmentRows, kFragmentCols, kFactors);
  static constexpr int kBlockBytes = kLayout.block_bytes;
  static constexpr int kCodeBytes = fragment_code_bytes(kFormat);
  /// Products of INT4 need their scales after the sum: a code times a bf16 is no bf16.
  static constexpr bool kScalesSums = kFormat == Format::kInt4;
  static constexpr int kGroups = kFragmentCols / kScaleCols;   ///< scales of a row
  using Scales = uint32_t[kGroups * kLayout.scale_bytes / 2];  ///< first row's, then second row's

  /// What a thread loads for one block.
  struct Raw {
    uint32_t words[kCodeBytes / kFragmentThreads / 4];
    Scales scales;
  };
  /// thread: of the warpgroup.
  template <class Byte>
  __device__ __forceinline__ static Raw load(const Byte* block, int thread) {
    Raw raw;
#pragma unroll
    for (int i = 0; i < kCodeBytes / kFragmentThreads / 16; ++i) {
      const uint4 codes = reinterpret_cast<const uint4*>(block)[i * kFragmentThreads + thread];
      uint32_t* words = raw.words + 4 * i;
      words[0] = codes.x, words[1] = codes.y, words[2] = codes.z, words[3] = codes.w;
    }
    const Byte* scales = block + kCodeBytes + thread / 4 * static_cast<int>(sizeof(raw.scales));
    if constexpr (sizeof(raw.scales) == 4) {
      raw.scales[0] = *reinterpret_cast<const uint32_t*>(scales);
    } else if constexpr (sizeof(raw.scales) == 16) {
      const uint4 all = *reinterpret_cast<const uint4*>(scales);
      raw.scales[0] = all.x, raw.scales[1] = all.y, raw.scales[2] = all.z, raw.scales[3] = all.w;
    } else {
      const uint2 both = *reinterpret_cast<const uint2*>(scales);
      raw.scales[0] = both.x, raw.scales[1] = both.y;
    }
    return raw;
  }
  __device__ static Raw load(const char* block) {
    return load(block, static_cast<int>(threadIdx.x) % kFragmentThreads);
  }

  /// a[step]: the four registers of one instruction. kDeep: some block of the matrix is more than
  /// kMaxAddedSteps down (kTables).
  template <bool kDeep>
  __device__ static void convert(const Raw& raw, uint32_t (&a)[kSteps][4]) {
    if constexpr (kTables) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {  // row of the pair
          const uint32_t byte =
              choose_bytes(raw.scales[0], 0, 0x4440u + static_cast<uint32_t>(2 * h + step));
          convert_fp8(raw.words[2 * step + h],
                      kDeep ? kDeviceFp8Tables[byte / 8] : added_fp8_table(byte), a[step][h],
                      a[step][2 + h]);
        }
      }
    } else {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        convert_step(raw, step, a[step]);
      }
    }
  }
  /// kScaleTables: of byte `index` of a row's scales.
  __device__ static Fp8Table scale_table(const Fp8Table* tables, uint32_t scales, int index) {
    const uint32_t byte = choose_bytes(scales, 0, 0x4440u + static_cast<uint32_t>(index));
    const uint2 pair = reinterpret_cast<const uint2*>(tables)[byte];
    return {pair.x, pair.y};
  }
  /// Not kTables. tables: kScaleTables' Nvfp4Tables.
  __device__ __forceinline__ static void convert_step(
      const Raw& raw, int step, uint32_t (&a)[4],
      [[maybe_unused]] const Fp8Table* tables = kDeviceNvfp4Tables.of) {
    if constexpr (kScaleTables) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {  // row of the pair
        convert_fp8(raw.words[2 * step + h], scale_table(tables, raw.scales[h], 2 * step),
                    scale_table(tables, raw.scales[h], 2 * step + 1), a[h], a[2 + h]);
      }
    } else if constexpr (kBytes) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {  // row of the pair
        const uint32_t word = raw.words[2 * step + h];
        const uint32_t zeros = int4_zeros(zero_point(raw.scales, h, step * kGroups / kSteps));
        a[h] = byte_of_int4(word, zeros);
        a[2 + h] = byte_of_int4(word >> 4, zeros);
      }
    } else if constexpr (kFormat == Format::kMxfp8) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {  // row of the pair
        convert_e4m3_bf16(raw.words[2 * step + h], mx_multiplier(raw.scales[0], 2 * h + step / 2),
                          a[h], a[2 + h]);
      }
    } else if constexpr (kFactors) {
      const int group = step * kGroups / kSteps;
      convert_int4(raw.words[step], int4_bias(zero_point(raw.scales, 0, group)),
                   int4_bias(zero_point(raw.scales, 1, group)), a);
    } else if constexpr (kFormat == Format::kInt4) {
      convert_int4(raw.words[step], a);
    } else if constexpr (kFormat == Format::kNvfp4) {
      convert_bf16(raw.words[step], nvfp4_multiplier(raw.scales[0], step),
                   nvfp4_multiplier(raw.scales[1], step), a);
    } else {
      convert_bf16(raw.words[step], mx_multiplier(raw.scales[0], step / 2),
                   mx_multiplier(raw.scales[0], 2 + step / 2), a);
    }
  }

  /// kInt4: of row `row` of the pair, in group `group`.
  __device__ static uint32_t zero_point(const Scales& scales, int row, int group) {
    if constexpr (kFactors) return int4_zero_point(scales[row * kGroups + group]);
    return kInt4ZeroPoint;
  }
  __device__ static uint32_t byte_of_int4(uint32_t word, uint32_t zeros) {
    if constexpr (kOrder == FragmentOrder::kInt8) {
      return int4_to_int8(word, zeros);
    } else if constexpr (kFactors) {
      return int4_to_fp8(word, zeros);
    } else {
      return int4_to_fp8(word);
    }
  }

  /// kScalesSums: of row `row` of the pair, in group `group`.
  __device__ static float scale(const Scales& scales, int row, int group) {
    const int at = row * kGroups + group;
    if constexpr (kFactors) {
      return int4_scale(scales[at]);
    } else {  // bf16 numbers
      const uint32_t both = scales[at / 2];
      return __uint_as_float(at % 2 == 0 ? both << 16 : both & 0xffff0000u);
    }
  }

  /// d[g] = group g of the block . tokens^T, not waited for.
  template <int kN>
  __device__ static void multiply_groups(const uint32_t (&a)[kSteps][4], uint64_t tokens,
                                         Word (&d)[kGroups][kN / 2]) {
    constexpr int kStepsOfGroup = kSteps / kGroups;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Wgmma<kMma, kN>::rs(d[step / kStepsOfGroup], a[step],
                          tokens + 2 * static_cast<uint64_t>(step), step % kStepsOfGroup > 0);
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
};

}  // namespace switchyard::cuda::sm90
