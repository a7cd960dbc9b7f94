#pragma once
// How long the prefill GEMM takes under a config, in clocks of the matrix units: what chooses the
// configs of a batch and what plan() prints.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/cost_model.h"
#include "core/grouped_gemm_config.h"
#include "switchyard/layer_spec.h"

namespace switchyard {

/// One GEMM over a batch: `experts` that have rows, about `rows_per_expert` each.
struct GroupedGemmWork {
  double experts = 0, rows_per_expert = 0;
  int64_t weight_rows = 0;
  int64_t row_bytes = 0;  ///< K
  bool gathers = false;
  bool promotes = false;         ///< FP8
  bool scales_blocks = false;    ///< sums of 128 columns have scales of their own
  bool long_activation = false;  ///< is_long()
  /// Bytes in and out of a pass that rounds the output where no warpgroup holds_gated_scale().
  double rounding_bytes = 0;
};
/// Whether an activation's formula is hundreds of instructions.
constexpr bool is_long(Activation kind) { return kind == Activation::kSiTu; }

/// Both GEMMs of a layer's batch.
struct LayerGemmWork {
  GroupedGemmWork gate_up, down;
};
/// With every expert as likely as any other. scales_blocks: FP8 sums of 128 columns have scales;
/// may_round: gate_up's kernel may round the intermediate, and a pass of its own does otherwise.
inline LayerGemmWork layer_gemm_work(const LayerSpec& spec, int64_t top_k, int64_t num_tokens,
                                     Format weights, bool scales_blocks, bool may_round) {
  const double experts = expected_distinct_experts(spec.num_experts, top_k, num_tokens);
  const auto pairs = static_cast<double>(num_tokens * top_k);
  const auto work = [&](int64_t weight_rows, int64_t cols) {
    return GroupedGemmWork{.experts = experts,
                           .rows_per_expert = pairs / std::max(experts, 1.0),
                           .weight_rows = weight_rows,
                           .row_bytes = cols * element_bits(weights) / 8,
                           .promotes = weights == Format::kFp8E4m3,
                           .scales_blocks = scales_blocks};
  };
  const int64_t inner = spec.intermediate_size, width = spec.expert_width();
  LayerGemmWork both{work((spec.activation.gated() ? 2 : 1) * inner, width), work(width, inner)};
  both.gate_up.gathers = true;
  both.gate_up.long_activation = is_long(spec.activation.kind);
  // Reads bf16 and writes FP8.
  if (may_round) both.gate_up.rounding_bytes = 3.0 * pairs * static_cast<double>(inner);
  return both;
}

namespace gemm_cost {

// H200, fitted to bench_prefill over the batches that layers give to these kernels: bf16 and INT8
// of 52 models at T = 1 .. 16384, FP8 (after its tiles' last change) of six at T = 256 .. 4096.
// GroupedGemmCost.ChoosesWithin15PercentOfTheRecord holds the choice to the recorded times.
inline constexpr double kStartClocks = 442;       ///< of a tile
inline constexpr double kClocksPerOutput = 0.08;  ///< of its end
inline constexpr double kWideEnd = 1.1;           ///< times that where a warpgroup has 256 columns
/// Between two products of a warpgroup, and more of it where it takes sums out.
inline constexpr double kPauseClocks = 196;
inline constexpr double kPromotionClocks = 26;
/// Times a k block whose sums are scaled: R1 EP8 at T = 1024 and 4096 beside the same tiles per
/// token, 1.13 to 1.20; where each warpgroup owns 128 columns, 1.22 to 1.41, but not before the
/// scales that come with a tile are used up.
inline constexpr double kScaling = 1.14, kScalingOfNarrow = 1.34;
inline constexpr double kBytesPerClock = 54;  ///< L2 to one SM, rows and weights
inline constexpr double kGatherStart = 230;   ///< of a k block whose rows are gathered
inline constexpr double kGatherClocksPerRow = 3.74;
inline constexpr double kMatrixClock = 1.42e9;  ///< Hz under full matrix load
inline constexpr double kReadBytesPerClock = 4.2e12 / kMatrixClock;
/// Of an expert's weights, read again by every row block after the first.
inline constexpr double kRereadShare = 0.29;
inline constexpr double kRoundingStart = 8000;  ///< of a pass that rounds the output
inline constexpr double kRoundingBytesPerClock = 3.2e12 / kMatrixClock;
/// Of a long activation's end, by the columns of a warpgroup: 256 unrolled leave the instruction
/// cache.
inline constexpr double kLongOutput128 = 0.8, kLongOutput256 = 1.8;
/// Reading the weights and multiplying overlap, but not wholly where they take as long.
inline double overlapped(double a, double b) {
  return std::sqrt(std::sqrt(a * a * a * a + b * b * b * b));
}

/// Clocks between two k blocks when `warpgroups` take turns at the matrix unit, each for `products`
/// clocks with `pause` clocks in between: a closed queue.
inline double turn_clocks(int warpgroups, double products, double pause) {
  double stay = products;
  for (int n = 2; n <= warpgroups; ++n) {
    stay = products * (1 + (n - 1) * stay / (stay + pause));
  }
  return stay + pause;
}

/// Clocks of one k block of a tile with `waves` times 64 rows.
inline double k_block_clocks(const GroupedGemmConfig& c, const GroupedGemmWork& work, int waves) {
  const int rows = waves * kGemmWaveRows;
  const int warpgroups = waves * c.num_sides;
  const double products = 2.0 * c.block_n / c.num_sides;
  // Promoted sums leave the matrix unit 128 columns at a time.
  const double parts = work.promotes ? c.block_n / c.num_sides / 128 : 1;
  const double pause = kPauseClocks + (work.promotes ? kPromotionClocks : 0);
  const double turns = parts * turn_clocks(warpgroups, products / parts, pause);
  const double supply = (rows + c.block_n) * kGemmBlockBytes / kBytesPerClock;
  const double gather = work.gathers ? kGatherStart + kGatherClocksPerRow * rows : 0;
  const bool narrow =
      c.num_sides == 1 && c.block_n == 128 && work.row_bytes > kMarginScales * kGemmBlockBytes;
  const double scaling = !work.scales_blocks ? 1 : narrow ? kScalingOfNarrow : kScaling;
  return scaling * std::max({turns, supply, gather});
}

/// Clocks of all row blocks of one expert with `waves` times 64 rows, for one column of tiles.
inline double expert_clocks(const GroupedGemmConfig& c, const GroupedGemmWork& work, int waves) {
  const double k_blocks = std::ceil(static_cast<double>(work.row_bytes) / kGemmBlockBytes);
  const bool wide = c.block_n / c.num_sides > 128;
  double per_output = kClocksPerOutput;
  if (work.long_activation) per_output += wide ? kLongOutput256 : kLongOutput128;
  if (wide) per_output *= kWideEnd;
  const double ends = kStartClocks + per_output * c.block_m * c.block_n;
  const auto tile = [&](int w) { return k_blocks * k_block_clocks(c, work, w) + ends; };
  const int block_waves = c.block_m / kGemmWaveRows;
  const int rest = waves % block_waves;
  return waves / block_waves * tile(block_waves) + (rest > 0 ? tile(rest) : 0.0);
}
/// The mean of f(waves) over experts whose rows are about normal around theirs, with its root as
/// deviation: a mean at the edge of a tile fills one more for half of the experts.
template <class F>
double over_experts(const GroupedGemmWork& work, F f) {
  const double mean = work.rows_per_expert, deviation = std::sqrt(mean);
  const auto at_most = [&](int waves) {
    return 0.5 * std::erfc((mean - waves * kGemmWaveRows - 0.5) / (deviation * std::sqrt(2.0)));
  };
  const int first = std::max(1, static_cast<int>((mean - 4 * deviation) / kGemmWaveRows));
  const int last = static_cast<int>((mean + 4 * deviation) / kGemmWaveRows) + 1;
  double sum = 0, below = 0;
  for (int waves = first; waves <= last; ++waves) {
    const double all = waves == last ? 1.0 : at_most(waves);
    sum += (all - below) * f(waves);
    below = all;
  }
  return sum;
}
inline double expected_row_blocks(const GroupedGemmConfig& c, const GroupedGemmWork& work) {
  return over_experts(work, [&](int waves) { return std::ceil(waves * 64.0 / c.block_m); });
}

}  // namespace gemm_cost

/// Clocks of the whole GEMM on num_sms SMs.
inline double grouped_gemm_clocks(const GroupedGemmConfig& c, const GroupedGemmWork& work,
                                  int num_sms) {
  if (work.experts <= 0 || work.rows_per_expert <= 0) return 0;
  const double mean = work.rows_per_expert;
  const double of_expert = gemm_cost::over_experts(
      work, [&](int waves) { return gemm_cost::expert_clocks(c, work, waves); });
  const double columns = std::ceil(static_cast<double>(work.weight_rows) / c.block_n);
  // The last tiles of the grid run beside idle SMs, half a tile on average.
  const double tile = gemm_cost::expert_clocks(
      c, work,
      static_cast<int>(std::ceil(std::min(mean, static_cast<double>(c.block_m)) / kGemmWaveRows)));
  const double read =
      work.experts * static_cast<double>(work.weight_rows * work.row_bytes) *
      (1 + gemm_cost::kRereadShare * (gemm_cost::expected_row_blocks(c, work) - 1)) /
      gemm_cost::kReadBytesPerClock;
  const double multiply = std::max(work.experts * columns * of_expert / num_sms + tile / 2, tile);
  return gemm_cost::overlapped(multiply, read);
}

/// Both GEMMs of a layer share the sorted rows, in units that both tiles divide; tiles without a
/// pair are passed over.
inline constexpr int kMaxSortUnit = 384;
struct GroupedGemmConfigs {
  GroupedGemmConfig gate_up{}, down{};
  constexpr int sort_unit() const { return std::lcm(gate_up.block_m, down.block_m); }
};
inline GroupedGemmConfigs best_configs(const std::vector<GroupedGemmConfig>& configs,
                                       const LayerGemmWork& work, int num_sms) {
  const auto& [gate_up, down] = work;
  GroupedGemmConfigs best;
  double least = std::numeric_limits<double>::infinity();
  const double rounding =
      gate_up.rounding_bytes <= 0
          ? 0
          : gemm_cost::kRoundingStart + gate_up.rounding_bytes / gemm_cost::kRoundingBytesPerClock;
  for (const GroupedGemmConfig& first : configs) {
    const double first_clocks =
        grouped_gemm_clocks(first, gate_up, num_sms) + (holds_gated_scale(first) ? 0 : rounding);
    for (const GroupedGemmConfig& second : configs) {
      if (GroupedGemmConfigs{first, second}.sort_unit() > kMaxSortUnit) continue;
      const double clocks = first_clocks + grouped_gemm_clocks(second, down, num_sms);
      if (clocks < least) {
        least = clocks;
        best = {first, second};
      }
    }
  }
  return best;
}

}  // namespace switchyard
