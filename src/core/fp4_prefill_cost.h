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

// H200, clocks of a stage (128 bytes of K). E4M3 at 64, 96 and 128 rows: 846, 968, 1079. bf16 at
// 32, 64, 96 and 128 rows, from gpt-oss-120b at T = 1024 (32 and 64) and 8192: 655, 816, 908, 1091.
inline constexpr double kClock = 1.755e9;
inline constexpr double kTileClocks = 1250;
/// Multiplying takes time per row; converting, which three warpgroups hide only in part, once.
inline double stage_clocks(FragmentOrder order, double rows) {
  return order == FragmentOrder::kFp8 ? 3.64 * (rows + 168) : 4.6 * (rows + 107);
}

}  // namespace fp4_prefill_cost

/// Microseconds of the GEMM on num_sms SMs.
inline double fp4_prefill_us(const GroupedGemmConfig& c, const Fp4PrefillWork& w, int num_sms) {
  const double tiles = w.experts * expected_row_tiles(w.rows_per_expert, c.block_m) *
                       std::ceil(static_cast<double>(w.weight_rows) / c.block_n);
  const double stages = std::ceil(static_cast<double>(w.token_row_bytes) / kGemmBlockBytes);
  const double clocks =
      stages * fp4_prefill_cost::stage_clocks(w.order, c.block_m) + fp4_prefill_cost::kTileClocks;
  return tiles * clocks / num_sms / fp4_prefill_cost::kClock * 1e6;
}

}  // namespace switchyard
