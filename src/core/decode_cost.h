#pragma once
// How long the GEMMs of few rows per expert take: beside the costs of the prefill kernels, what
// decides which of the two a batch goes through.

#include <algorithm>
#include <cmath>

#include "core/cost_model.h"
#include "core/decode_schedule.h"

namespace switchyard {

/// One GEMM over a batch: `experts` that have rows, about `rows_per_expert` each.
struct DecodeGemmWork {
  double experts = 0, rows_per_expert = 0;
  int32_t unit_size = 8;
  int64_t weight_rows = 0;
  int64_t token_row_bytes = 0;  ///< K, as the matrix unit reads it
  double expert_bytes = 0;      ///< of weights
};

/// What the weights are to a decode kernel.
enum class DecodeLoop { kFp4ToFp8, kFp4ToBf16, kBytes, kBf16 };

namespace decode_cost {

// H200, kernels in a chain (R1 EP8, R1 TP8, Kimi-K2 and gpt-oss-120b at T = 8 .. 256), solved for
// the clocks of an SM per tile (64 weight rows x 128 bytes of K) and per end of 64 rows.
inline constexpr double kClock = 1.755e9;
inline constexpr double kReadGbps = 4400;  ///< of a long read
struct Rates {
  double tile, tile_row, end;  ///< tile_row: more of a tile, per row of the block
};
constexpr Rates rates(DecodeLoop loop, int32_t unit_size) {
  const int height = unit_size <= 8 ? 0 : unit_size <= 16 ? 1 : 2;
  constexpr Rates kFp8[] = {{238, 0, 180}, {240, 0, 230}, {230, 1, 150}};
  constexpr Rates kBf16[] = {{140, 0, 300}, {156, 0, 300}, {155, 0.5, 300}};
  constexpr Rates kBytes[] = {{440, 0, 160}, {440, 0, 240}, {430, 1, 160}};
  constexpr Rates kWide[] = {{420, 0, 250}, {438, 0, 250}, {438, 1.2, 300}};
  switch (loop) {
    case DecodeLoop::kFp4ToFp8: return kFp8[height];
    case DecodeLoop::kFp4ToBf16: return kBf16[height];
    case DecodeLoop::kBytes: return kBytes[height];
    case DecodeLoop::kBf16: break;
  }
  return kWide[height];
}

}  // namespace decode_cost

inline double decode_gemm_us(const DecodeGemmWork& w, DecodeLoop loop, int num_sms) {
  const double blocks = w.experts * expected_row_tiles(w.rows_per_expert, w.unit_size);
  const double row_blocks = blocks * std::ceil(static_cast<double>(w.weight_rows) / kDecodeRows);
  const double tiles = row_blocks * std::ceil(static_cast<double>(w.token_row_bytes) / 128);
  const decode_cost::Rates r = decode_cost::rates(loop, w.unit_size);
  const double rows = std::min<double>(w.rows_per_expert, w.unit_size);
  const double clocks = tiles * (r.tile + r.tile_row * rows) + row_blocks * r.end;
  return std::max(clocks / num_sms / decode_cost::kClock * 1e6,
                  blocks * w.expert_bytes / (decode_cost::kReadGbps * 1e3));
}

}  // namespace switchyard
