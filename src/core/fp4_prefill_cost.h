#pragma once
// How long the prefill GEMM for 4-bit weights takes under a config.

#include <cmath>

#include "core/cost_model.h"
#include "core/fragment_layout.h"
#include "core/grouped_gemm_config.h"

namespace switchyard {

/// One GEMM over a batch: `experts` that have rows, about `rows_per_expert` each.
struct Fp4PrefillWork {
  FragmentOrder order = FragmentOrder::kFp8;
  double experts = 0, rows_per_expert = 0;
  int64_t weight_rows = 0;
  int64_t token_row_bytes = 0;  ///< K, as the matrix unit reads it
};

namespace fp4_prefill_cost {

// H200, fitted to gpt-oss-120b, R1 TP8 and R1 EP8 at 8 to 256 rows per expert: 5 % rms, 9 % at most.
inline constexpr double kClock = 1.755e9;
/// Multiplying takes time per row that is there, in steps of so many; converting takes time per
/// tile, which three warpgroups hide only in part.
inline constexpr int kRowStep = 32;
/// Clocks of everything of one expert, per stage (128 bytes of K) of one column of tiles.
inline double stage_clocks(FragmentOrder order, int tile_rows, double rows_per_expert) {
  const bool fp8 = order == FragmentOrder::kFp8;
  const double of_tile = fp8 ? 600 + 0.8 * tile_rows : 495 + 0.4 * tile_rows;
  const double of_row = fp8 ? 4.1 : 4.0;
  return expected_row_tiles(rows_per_expert, tile_rows) * of_tile +
         expected_row_tiles(rows_per_expert, kRowStep) * kRowStep * of_row;
}
/// And of the tiles' ends.
inline double end_clocks(int tile_rows, double rows_per_expert) {
  return expected_row_tiles(rows_per_expert, tile_rows) * 700 +
         expected_row_tiles(rows_per_expert, kRowStep) * kRowStep * 12;
}

}  // namespace fp4_prefill_cost

/// Microseconds of the GEMM on num_sms SMs.
inline double fp4_prefill_us(const GroupedGemmConfig& c, const Fp4PrefillWork& w, int num_sms) {
  const double columns = std::ceil(static_cast<double>(w.weight_rows) / c.block_n);
  const double stages = std::ceil(static_cast<double>(w.token_row_bytes) / kGemmBlockBytes);
  const double clocks =
      stages * fp4_prefill_cost::stage_clocks(w.order, c.block_m, w.rows_per_expert) +
      fp4_prefill_cost::end_clocks(c.block_m, w.rows_per_expert);
  return w.experts * columns * clocks / num_sms / fp4_prefill_cost::kClock * 1e6;
}

}  // namespace switchyard
