#pragma once
// Tiles of the prefill kernels for weights in fragment order. Apart from their cost, so that a
// change of its figures compiles no kernel.

namespace switchyard::fp4_prefill_cost {

/// Tiles of up to so many rows have four warpgroups instead of three.
inline constexpr int kLowRows = 80;
/// A tile whose last rows are no pairs multiplies a multiple of so many.
constexpr int row_step(int tile_rows) {
  return tile_rows <= kLowRows ? 16 : tile_rows <= 128 ? 32 : 48;
}

}  // namespace switchyard::fp4_prefill_cost
