#pragma once
// How long the prefill GEMM takes under a config, in clocks of the matrix units: what select_config
// compares and plan() prints.

#include <algorithm>
#include <cmath>

#include "core/grouped_gemm_config.h"

namespace switchyard {

/// One GEMM over a batch: `experts` that have rows, about `rows_per_expert` each.
struct GroupedGemmWork {
  double experts = 0, rows_per_expert = 0;
  int64_t weight_rows = 0;
  int64_t row_bytes = 0;  ///< K
  bool gathers = false;
  bool scales_blocks = false;  ///< promotes every k block
};

namespace gemm_cost {

// H200, measured per k block and tile over R1 EP8 and TP8 at T = 8192 (docs/decisions.md).
inline constexpr double kStartClocks = 2600;       ///< of a tile
inline constexpr double kClocksPerOutput = 0.035;  ///< of its end
inline constexpr double kIssueClocks = 30;         ///< of a k block, beside its products
inline constexpr double kPromotionClocks = 230;    ///< with block scales: hardly hidden
inline constexpr double kBytesPerClock = 58;       ///< L2 to one SM, rows and weights
inline constexpr double kGatherStart = 320;        ///< of a k block whose rows are gathered
inline constexpr double kGatherClocksPerRow = 3.05;
inline constexpr double kMatrixClock = 1.55e9;  ///< Hz under full matrix load

/// Clocks of one k block of a tile with `waves` times 64 rows.
inline double k_block_clocks(const GroupedGemmConfig& c, const GroupedGemmWork& work, int waves) {
  const int rows = waves * kGemmWaveRows;
  const double products = 2.0 * c.block_n * waves + kIssueClocks;
  const double supply = (rows + c.block_n) * kGemmBlockBytes / kBytesPerClock;
  const double gather = work.gathers ? kGatherStart + kGatherClocksPerRow * rows : 0;
  return std::max({products, supply, gather}) + (work.scales_blocks ? kPromotionClocks : 0);
}

/// Clocks of all row blocks of one expert with `rows` rows, for one column of tiles.
inline double expert_clocks(const GroupedGemmConfig& c, const GroupedGemmWork& work, double rows) {
  const double k_blocks = std::ceil(static_cast<double>(work.row_bytes) / kGemmBlockBytes);
  const double ends = kStartClocks + kClocksPerOutput * c.block_m * c.block_n;
  const auto tile = [&](int waves) { return k_blocks * k_block_clocks(c, work, waves) + ends; };
  const double full = std::floor(rows / c.block_m);
  const double rest = rows - full * c.block_m;
  const int rest_waves = static_cast<int>(std::ceil(rest / kGemmWaveRows));
  return full * tile(c.num_consumers()) + (rest_waves > 0 ? tile(rest_waves) : 0.0);
}

}  // namespace gemm_cost

/// Clocks of the whole GEMM on num_sms SMs.
inline double grouped_gemm_clocks(const GroupedGemmConfig& c, const GroupedGemmWork& work,
                                  int num_sms) {
  if (work.experts <= 0 || work.rows_per_expert <= 0) return 0;
  // Rows scatter around their mean by its root: three points with that variance.
  const double mean = work.rows_per_expert;
  const double spread = std::min(std::sqrt(1.5 * mean), mean - std::min(mean, 1.0));
  const double of_expert =
      (gemm_cost::expert_clocks(c, work, mean - spread) + gemm_cost::expert_clocks(c, work, mean) +
       gemm_cost::expert_clocks(c, work, mean + spread)) /
      3;
  const double columns = std::ceil(static_cast<double>(work.weight_rows) / c.block_n);
  // The last tiles of the grid run beside idle SMs, half a tile on average.
  const double tile =
      gemm_cost::expert_clocks(c, work, std::min(mean, static_cast<double>(c.block_m)));
  return std::max(work.experts * columns * of_expert / num_sms + tile / 2, tile);
}

}  // namespace switchyard
