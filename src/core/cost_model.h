#pragma once
// How many experts a batch touches and how long bytes and FLOPs take: the arithmetic behind every
// plan.

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace switchyard {

/// Experts that T tokens hit when each takes K distinct ones uniformly: E (1 - (1 - K/E)^T).
inline double expected_distinct_experts(int64_t num_experts, int64_t top_k, int64_t num_tokens) {
  if (num_experts <= 0 || num_tokens <= 0) return 0;
  const auto e = static_cast<double>(num_experts);
  const double missed = 1.0 - std::min(static_cast<double>(top_k) / e, 1.0);
  return e * (1.0 - std::pow(missed, static_cast<double>(num_tokens)));
}

/// Tiles of `tile_rows` that the rows of one expert need, their number being about normal.
inline double expected_row_tiles(double rows_per_expert, int tile_rows) {
  const double deviation = std::sqrt(2 * std::max(rows_per_expert, 1.0));
  double tiles = 1;
  for (int begin = tile_rows; begin < rows_per_expert + 3 * deviation; begin += tile_rows) {
    tiles += 0.5 * std::erfc((begin + 0.5 - rows_per_expert) / deviation);
  }
  return tiles;
}

/// The slower of the two roofs; a limit of 0 is unknown and costs nothing.
inline double predict_us(double bytes, double flops, double gbps, double gflops) {
  const double memory_us = gbps > 0 ? bytes / (gbps * 1e3) : 0.0;
  const double compute_us = gflops > 0 ? flops / (gflops * 1e3) : 0.0;
  return std::max(memory_us, compute_us);
}

}  // namespace switchyard
