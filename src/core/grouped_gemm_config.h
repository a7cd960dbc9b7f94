#pragma once
// The tiles that the prefill kernels are compiled for (many rows per expert: rows on M, weights on
// N), and where a tile's operands lie in shared memory.

#include <array>
#include <cstdint>

#include "core/host_device.h"
#include "core/math.h"

namespace switchyard {

/// Tuning knobs of one compiled kernel. A k block is 128 bytes of every row, one swizzle atom.
struct GroupedGemmConfig {
  int block_m = 0;     ///< rows of a tile: 64 per consumer warpgroup; also the sort's unit size
  int block_n = 0;     ///< weight rows of a tile
  int num_stages = 0;  ///< depth of the shared-memory ring
  /// Warpgroups side by side, each with a share of the columns: where there are few rows, one
  /// warpgroup alone would spend more time between its products than in them.
  int num_sides = 1;

  constexpr bool operator==(const GroupedGemmConfig&) const = default;
  SWITCHYARD_HOST_DEVICE constexpr int num_consumers() const { return block_m / 64 * num_sides; }
  /// The last warpgroup loads.
  SWITCHYARD_HOST_DEVICE constexpr int num_threads() const { return (num_consumers() + 1) * 128; }
};

/// Whether a warpgroup holds the 128 gated columns that share a scale, so that it can round them.
SWITCHYARD_HOST_DEVICE constexpr bool holds_gated_scale(const GroupedGemmConfig& c) {
  return c.block_n / c.num_sides == 256;
}

inline constexpr int kGemmBlockBytes = 128;  ///< of K
inline constexpr int kGemmWaveRows = 64;     ///< the M of one wgmma; empty waves are skipped
inline constexpr int64_t kSm90SharedBytes = 227 * 1024;

/// Byte offsets into shared memory. The host launches with `bytes`, the kernel adds the offsets.
struct GroupedGemmShared {
  int rows = 0, weights = 0;
  int margins = 0;  ///< kMargins times what belongs to a tile's rows and columns
  int tickets = 0;  ///< which tile that is, and whose
  int full = 0, empty = 0, margin_full = 0, margin_empty = 0;
  int bytes = 0;
};
/// Tiles in flight between producer and consumers: with two k blocks a tile, a ring of five stages
/// spans three.
inline constexpr int kMargins = 4;
inline constexpr int kTicketBytes = 16;
/// K blocks whose scales a margin holds: short sums need no others, long ones fetch theirs
/// meanwhile.
inline constexpr int kMarginScales = 4;
/// Three words per row (output row, scale, weight), two per column (scale, bias), and the scales of
/// the first k blocks: one per row, two per 128 columns.
SWITCHYARD_HOST_DEVICE constexpr int margin_words(const GroupedGemmConfig& c) {
  return (3 + kMarginScales) * c.block_m + 2 * c.block_n + 2 * kMarginScales * (c.block_n / 128);
}
SWITCHYARD_HOST_DEVICE constexpr GroupedGemmShared shared_layout(const GroupedGemmConfig& c) {
  constexpr int kSwizzleAlignment = 1024;
  constexpr int kBarrierBytes = 8;
  GroupedGemmShared s;
  s.weights = c.num_stages * c.block_m * kGemmBlockBytes;
  s.margins = s.weights + c.num_stages * c.block_n * kGemmBlockBytes;
  s.tickets = s.margins + kMargins * margin_words(c) * 4;
  s.full = s.tickets + kMargins * kTicketBytes;
  s.empty = s.full + c.num_stages * kBarrierBytes;
  s.margin_full = s.empty + c.num_stages * kBarrierBytes;
  s.margin_empty = s.margin_full + kMargins * kBarrierBytes;
  // The driver aligns shared memory to 16 bytes only.
  s.bytes = s.margin_empty + kMargins * kBarrierBytes + kSwizzleAlignment;
  return s;
}

/// Why `c` cannot be compiled, or null.
SWITCHYARD_HOST_DEVICE constexpr const char* why_invalid(const GroupedGemmConfig& c) {
  if (c.block_m % kGemmWaveRows != 0 || c.block_m < kGemmWaveRows) {
    return "block_m must be a positive multiple of wgmma's M, 64";
  }
  if (c.num_consumers() > 3) return "the register file holds three consumer warpgroups";
  if (c.num_sides < 1 || c.block_n % (128 * c.num_sides) != 0 || c.block_n < 128) {
    return "every side's share of block_n must be a positive multiple of 128, the rows that share "
           "a "
           "scale";
  }
  if (c.block_n > 256) return "wgmma's N and a box of the copy engine end at 256";
  if (c.num_stages < 3) return "the ring needs three stages: promoted sums span two k blocks";
  if (shared_layout(c).bytes > kSm90SharedBytes) return "shared memory exceeds 227 KB";
  return nullptr;
}

/// Every tile compiled in. H200, 8192 x 4096 x 7168: plain PTX at 192 x 128 with three consumers
/// reaches 1490-1513 TFLOP/s in FP8 promoted every 128 columns, 128 x 256 806-828 in bf16.
inline constexpr GroupedGemmConfig kTallTile{.block_m = 192, .block_n = 128, .num_stages = 5};
inline constexpr GroupedGemmConfig kSquareTile{.block_m = 128, .block_n = 128, .num_stages = 6};
inline constexpr GroupedGemmConfig kWideTile{.block_m = 128, .block_n = 256, .num_stages = 4};
inline constexpr GroupedGemmConfig kLowTile{
    .block_m = 64, .block_n = 256, .num_stages = 5, .num_sides = 2};
static_assert(why_invalid(kTallTile) == nullptr);
static_assert(why_invalid(kSquareTile) == nullptr);
static_assert(why_invalid(kWideTile) == nullptr);
static_assert(why_invalid(kLowTile) == nullptr);

}  // namespace switchyard
