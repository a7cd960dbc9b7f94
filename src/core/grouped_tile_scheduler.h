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

  SWITCHYARD_HOST_DEVICE constexpr int64_t num_tiles() const {
    return static_cast<int64_t>(num_row_blocks) * num_columns;
  }
  SWITCHYARD_HOST_DEVICE constexpr GroupedTile tile(int64_t index) const {
    const int32_t per_band = kBand * num_columns;
    const auto band = static_cast<int32_t>(index / per_band);
    const auto inside = static_cast<int32_t>(index % per_band);
    const int32_t first = band * kBand;
    const int32_t left = num_row_blocks - first;
    const int32_t height = left < kBand ? left : kBand;
    return {first + inside % height, inside / height};
  }
};

}  // namespace switchyard
