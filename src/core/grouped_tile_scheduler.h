#pragma once
// Which tile of a grouped GEMM is number i, so that tiles that run together share operands.

#include <cstdint>

#include "core/host_device.h"
#include "core/math.h"

namespace switchyard {

/// Row block (of the sorted rows) and column of a tile, in tiles.
struct GroupedTile {
  int32_t row_block = 0;
  int32_t column = 0;
  constexpr bool operator==(const GroupedTile&) const = default;
};

/// Bands of kBand row blocks, columns inside a band, rows fastest. Sorted rows are expert-major, so
/// a band holds one expert (or a few small ones): its rows stay in the L2 while all its weights
/// pass once, and the CTAs of a moment read few distinct columns.
struct GroupedTileScheduler {
  static constexpr int32_t kBand = 12;  // 132 SMs: 11 columns at a time
  int32_t num_row_blocks = 0;
  int32_t num_columns = 0;

  /// Chunks of a batch have at most a few thousand row blocks: 32 bits are plenty, and a 64-bit
  /// division would stand between two tiles.
  SWITCHYARD_HOST_DEVICE constexpr uint32_t num_tiles() const {
    return static_cast<uint32_t>(num_row_blocks) * static_cast<uint32_t>(num_columns);
  }
  SWITCHYARD_HOST_DEVICE constexpr GroupedTile tile(uint32_t index) const {
    const uint32_t per_band = kBand * static_cast<uint32_t>(num_columns);
    const auto first = static_cast<int32_t>(index / per_band) * kBand;
    const uint32_t inside = index % per_band;
    const int32_t left = num_row_blocks - first;
    const auto height = static_cast<uint32_t>(left < kBand ? left : kBand);
    return {first + static_cast<int32_t>(inside % height), static_cast<int32_t>(inside / height)};
  }
};

/// How many neighbouring tiles of a row block a CTA takes at a time: what belongs to the rows is
/// then fetched once, which takes longer than a tile of few k blocks. Enough units must stay for
/// all.
constexpr int32_t unit_columns(int32_t num_row_blocks, int32_t num_columns, int32_t num_k_blocks,
                               int32_t num_sms) {
  constexpr int32_t kBlocks = 16, kMost = 8, kUnitsPerSm = 8;
  int32_t columns = 1;
  while (columns < kMost && 2 * columns * num_k_blocks <= kBlocks &&
         int64_t{num_row_blocks} * ceil_div(num_columns, 2 * columns) >= kUnitsPerSm * num_sms) {
    columns *= 2;
  }
  return columns;
}

}  // namespace switchyard
