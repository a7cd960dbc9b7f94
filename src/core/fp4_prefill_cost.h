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

// H200, fitted to R1 TP8, Kimi-K2, gpt-oss-120b and R1 EP8 at 2 to 256 rows per expert under every
// tile: 7 % rms, 23 % at most (down of gpt-oss).
inline constexpr double kClock = 1.755e9;
/// Of a batch's rows, those that tiles multiply.
inline double multiplied_rows(int tile_rows, double rows_per_expert) {
  const int step = row_step(tile_rows);
  return expected_row_tiles(rows_per_expert, step) * step;
}
/// Multiplying takes time per row; converting takes time per tile, which other warpgroups hide only
/// in part.
struct Rates {
  double tile, tile_row, row;
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
    if (block_scales) return low ? Rates{840, 6.4, 0.3} : Rates{550, 2.8, 4.2};
    return low ? Rates{840, 5.4, 0.3} : Rates{550, 1.8, 4.2};
  }
  if (weights.format != Format::kInt4) return low ? Rates{660, 2.4, 2.5} : Rates{455, 1.2, 3.6};
  // Sums of groups are scaled beside the products.
  if (short_groups) return low ? Rates{475, 1.9, 9.4} : Rates{380, 1.0, 6.7};
  return low ? Rates{560, 2.8, 4.5} : Rates{425, 0.7, 5.3};
}
/// Clocks of everything of one expert, per stage (128 bytes of K) of one column of tiles.
inline double stage_clocks(const FragmentLayout& weights, bool block_scales, int tile_rows,
                           double rows_per_expert) {
  const Rates r = rates(weights, block_scales, tile_rows);
  return expected_row_tiles(rows_per_expert, tile_rows) * (r.tile + r.tile_row * tile_rows) +
         multiplied_rows(tile_rows, rows_per_expert) * r.row;
}
/// And of the tiles' ends.
inline double end_clocks(int tile_rows, double rows_per_expert) {
  return expected_row_tiles(rows_per_expert, tile_rows) * 1100 +
         multiplied_rows(tile_rows, rows_per_expert) * 7;
}

}  // namespace fp4_prefill_cost

/// Microseconds of the GEMM on num_sms SMs.
inline double fp4_prefill_us(const GroupedGemmConfig& c, const Fp4PrefillWork& w, int num_sms) {
  const double columns = std::ceil(static_cast<double>(w.weight_rows) / c.block_n);
  const double stages = std::ceil(static_cast<double>(w.token_row_bytes) / kGemmBlockBytes);
  const double clocks = stages * fp4_prefill_cost::stage_clocks(w.weights, w.block_scales,
                                                                c.block_m, w.rows_per_expert) +
                        fp4_prefill_cost::end_clocks(c.block_m, w.rows_per_expert);
  return w.experts * columns * clocks / num_sms / fp4_prefill_cost::kClock * 1e6;
}

}  // namespace switchyard
