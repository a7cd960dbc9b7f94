#pragma once
// Which scale belongs to element (row, col). The last block of a row or column may be partial.

#include <cstdint>

#include "core/host_device.h"
#include "core/math.h"
#include "switchyard/layer_spec.h"

namespace switchyard {

/// Index of the block that holds element `index`, for blocks of `block` elements; 0 = one block.
SWITCHYARD_HOST_DEVICE constexpr int64_t scale_index(int64_t index, int64_t block) {
  return block == 0 ? 0 : index / block;
}
/// Blocks that cover `extent` elements; at least one for {0, 0}-like blocks, whatever the extent.
SWITCHYARD_HOST_DEVICE constexpr int64_t num_scales(int64_t extent, int64_t block) {
  return block == 0 ? 1 : ceil_div(extent, block);
}
SWITCHYARD_HOST_DEVICE constexpr int64_t scale_rows(const ScaleBlock& block, int64_t rows) {
  return num_scales(rows, block.rows);
}
SWITCHYARD_HOST_DEVICE constexpr int64_t scale_cols(const ScaleBlock& block, int64_t cols) {
  return num_scales(cols, block.cols);
}

}  // namespace switchyard
