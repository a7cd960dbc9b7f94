#pragma once
// How long the prefill GEMM for 4-bit weights takes under a config.

#include <cmath>

#include "core/cost_model.h"
#include "core/fp4_prefill_tiles.h"
#include "core/fragment_layout.h"
#include "core/grouped_gemm_config.h"

namespace switchyard {

/// One GEMM over a batch: `experts` that have rows, about `rows_per_expert` each.
struct Fp4PrefillWork {
  FragmentLayout weights{.order = FragmentOrder::kFp8};
  bool block_scales = false;  ///< E4M3 rows have a scale per 128 columns
  double experts = 0, rows_per_expert = 0;
  int64_t weight_rows = 0;
  int64_t token_row_bytes = 0;  ///< K, as the matrix unit reads it
};

namespace fp4_prefill_cost {

// H200, MXFP4 fitted to R1 TP8, gpt-oss-120b and R1 EP8 at 12 to 512 rows per expert under every
// tile: 6 to 8 % rms; the tile chosen is 3 % slower than the best at worst.
inline constexpr double kClock = 1.755e9;
/// Of a batch's rows, those that tiles multiply.
inline double multiplied_rows(int tile_rows, double rows_per_expert) {
  const int step = row_step(tile_rows);
  return expected_row_tiles(rows_per_expert, step) * step;
}
/// Multiplying takes time per row; converting takes time per tile, which other warpgroups hide only
/// in part.
struct Rates {
  double tile, tile_row, row;           ///< clocks of a stage
  double end_tile = 1100, end_row = 7;  ///< of a tile's end
};
inline Rates rates(const FragmentLayout& weights, bool block_scales, int tile_rows) {
  const bool low = tile_rows <= kLowRows;
  const bool short_groups = weights.scale_cols == 32;
  if (weights.order == FragmentOrder::kInt8) {
    // Integer sums become f32 numbers first. Fitted to Kimi-K2 TP8 at T = 1024 and 8192 alone.
    if (short_groups) return low ? Rates{900, 3.6, 17.9} : Rates{720, 1.9, 12.7};
    return low ? Rates{840, 4.1, 6.8} : Rates{620, 1.0, 7.7};
  }
  if (weights.order == FragmentOrder::kFp8) {
    // A sum of 32 columns is scaled after every instruction; of 64 at MXFP4's price. As above.
    if (weights.format == Format::kInt4 && short_groups) {
      return low ? Rates{820, 5.0, 4.4} : Rates{600, 2.0, 6.5};
    }
    // Rows' scales are multiplied beside the products.
    if (block_scales) return low ? Rates{657, 6.8, 0, 860, 25} : Rates{360, 4.7, 2.6, 310, 25};
    return low ? Rates{657, 5.8, 0, 860, 25} : Rates{360, 3.7, 2.6, 310, 25};
  }
  if (weights.format != Format::kInt4) {
    return low ? Rates{578, 4.2, 0.9, 430, 23} : Rates{377, 2.3, 2.2, 955, 12};
  }
  // Sums of groups are scaled beside the products.
  if (short_groups) return low ? Rates{475, 1.9, 9.4} : Rates{380, 1.0, 6.7};
  return low ? Rates{560, 2.8, 4.5} : Rates{425, 0.7, 5.3};
}
/// Clocks of all tiles of one expert in one column of tiles.
inline double expert_clocks(const Fp4PrefillWork& w, int tile_rows, double tiles) {
  const Rates r = rates(w.weights, w.block_scales, tile_rows);
  const double stages = std::ceil(static_cast<double>(w.token_row_bytes) / kGemmBlockBytes);
  const double rows = multiplied_rows(tile_rows, w.rows_per_expert);
  return stages * (tiles * (r.tile + r.tile_row * tile_rows) + rows * r.row) + tiles * r.end_tile +
         rows * r.end_row;
}
/// Tiles one after the other on an SM that has `share` of them on average: between a grid that ends
/// together, half a tile late, and one of whole waves.
inline double waves(double share) { return (share + 0.5 + std::ceil(share - 0.02)) / 2; }

}  // namespace fp4_prefill_cost

/// Microseconds of the GEMM on num_sms SMs.
inline double fp4_prefill_us(const GroupedGemmConfig& c, const Fp4PrefillWork& w, int num_sms) {
  const double columns = std::ceil(static_cast<double>(w.weight_rows) / c.block_n);
  const double tiles = expected_row_tiles(w.rows_per_expert, c.block_m);
  return fp4_prefill_cost::expert_clocks(w, c.block_m, tiles) / tiles *
         fp4_prefill_cost::waves(w.experts * columns * tiles / num_sms) / fp4_prefill_cost::kClock *
         1e6;
}

}  // namespace switchyard
