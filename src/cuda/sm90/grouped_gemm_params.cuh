#pragma once
// What a prefill kernel is compiled for.

#include <cuda.h>

#include "core/expert_sort.h"
#include "core/grouped_gemm_config.h"
#include "core/grouped_tile_scheduler.h"
#include "cuda/sm90/grouped_gemm_kernels.h"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace switchyard::cuda::sm90 {

/// How the tile's sums become output columns.
enum class TileEnd {
  kRows,   ///< one output column per weight row
  kGated,  ///< gate and up rows alternate: one column per pair
};

/// A kernel is compiled for one of these.
template <MmaType kMmaType, Scaling kScalingKind, RowSource kRowSource, TileEnd kTileEnd, int kM,
          int kN, int kDepth, int kNumSides>
struct GroupedGemmTraits {
  static constexpr MmaType kMma = kMmaType;
  static constexpr Scaling kScaling = kScalingKind;
  static constexpr bool kGather = kRowSource != RowSource::kSorted;
  static constexpr TileEnd kEnd = kTileEnd;
  static constexpr GroupedGemmConfig kConfig{kM, kN, kDepth, kNumSides};
  static constexpr GroupedGemmShared kShared = shared_layout(kConfig);
  static constexpr int kBlockM = kM;
  static constexpr int kBlockN = kN;
  static constexpr int kStages = kDepth;
  static constexpr int kConsumers = kConfig.num_consumers();
  static constexpr int kWaves = kM / kGemmWaveRows;
  static constexpr int kSideN = kN / kNumSides;  ///< columns of a warpgroup
  static constexpr int kRowStage = kM * kGemmBlockBytes;
  static constexpr int kWeightStage = kN * kGemmBlockBytes;
  static constexpr int kElementBytes = kMmaType == MmaType::kBf16 ? 2 : 1;
  static constexpr int kBlockK = kGemmBlockBytes / kElementBytes;
  /// E4M3 sums keep 13 bits inside the matrix unit; bf16 sums 23 and s32 sums all.
  static constexpr bool kPromotes = kMmaType == MmaType::kE4m3;
  using Mma = Wgmma<kMmaType, kSideN>;
  using Accumulator = typename Mma::Accumulator;
  /// Weight rows that share scales, in parts of a side.
  static constexpr int kParts = kSideN / 128;
  using PartMma = Wgmma<kMmaType, 128>;
  static constexpr int kAccumulators = kSideN / 2;
};

/// The ring's next slot.
template <int kStages>
struct RingPosition {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ bool is_pair(int32_t packed, int32_t top_k) {
  return packed_slot(packed) < top_k;
}

/// What the consumers are told of a tile.
struct alignas(kTicketBytes) TileTicket {
  int32_t row_block;  ///< < 0: no more
  int32_t column;
  int32_t expert;
};

/// What belongs to a tile's rows and columns. The producer writes it ahead, because a consumer that
/// asked memory for it between two tiles would leave the matrix unit idle.
template <class Traits>
struct TileMargin {
  /// Scaling::kBlock, of the first k blocks: of rows; of weights, [128 columns][k block], even and
  /// odd ones.
  float block_scale[Traits::kBlockM][kMarginScales];
  float2 weight_scale[Traits::kBlockN / 128][kMarginScales];
  int32_t output_row[Traits::kBlockM];  ///< < 0: no such row
  /// Scaling::kOuter: the row's scale. kBlock: bits of the row of its scales.
  float scale[Traits::kBlockM];
  float weight[Traits::kBlockM];
  float channel_scale[Traits::kBlockN];
  float bias[Traits::kBlockN];
};

}  // namespace switchyard::cuda::sm90
