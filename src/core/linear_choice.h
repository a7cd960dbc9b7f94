#pragma once
// Which kernel a linear (one matrix for all tokens) takes, and how the matrix unit's tiles and
// chunks of K lie.

#include <cstdint>

#include "core/host_device.h"
#include "core/math.h"

namespace switchyard {

enum class LinearKernel {
  kGeneric,      ///< every format
  kDot,          ///< plain numbers, few tokens
  kNarrowSplit,  ///< a cluster shares a tile's chunks of K
  kSplit,        ///< the same with wider tiles
  kTile,         ///< the same sums, a block per tile
  kWideTile,     ///< one sum over all of K
};
constexpr const char* to_string(LinearKernel kernel) {
  switch (kernel) {
    case LinearKernel::kDot: return "linear_dot";
    case LinearKernel::kNarrowSplit: return "sm90_linear_split_128x64";
    case LinearKernel::kSplit: return "sm90_linear_split_128x128";
    case LinearKernel::kTile: return "sm90_linear_128x128";
    case LinearKernel::kWideTile: return "sm90_linear_128x256";
    case LinearKernel::kGeneric: break;
  }
  return "linear";
}

inline constexpr int kLinearTileTokens = 128;
inline constexpr int kLinearBlockCols = 64;  ///< of K: 128 bytes of bf16, one swizzle atom
inline constexpr int kLinearChunks = 8;      ///< of K at most; also the cluster that shares them

/// K of a linear in blocks, and in chunks of blocks, each a sum of its own: where a chunk begins
/// depends on K alone, so that tokens have the same bits whether a tile is shared or not.
struct LinearBlocks {
  int32_t parts = 1;  ///< weights that are sums of so many lie side by side, each of whole blocks
  int32_t num_blocks = 0, chunk_blocks = 0;

  SWITCHYARD_HOST_DEVICE constexpr explicit LinearBlocks(int32_t cols, int32_t num_parts = 1)
      : parts(num_parts),
        num_blocks(ceil_div(cols, kLinearBlockCols) * parts),
        chunk_blocks(ceil_div(num_blocks, kLinearChunks)) {}
  SWITCHYARD_HOST_DEVICE constexpr int32_t begin(int32_t chunk) const {
    const int32_t at = chunk * chunk_blocks;
    return at < num_blocks ? at : num_blocks;
  }
  SWITCHYARD_HOST_DEVICE constexpr int32_t num_chunks() const {
    return ceil_div(num_blocks, chunk_blocks);
  }
};

namespace linear_cost {

// H200, from the times of every kernel over six shapes (128 to 7168 rows) and T = 2 .. 8192.
/// Up to here a dot product's block has its tokens at hand; above 1024 rows that is too much
/// traffic (3584 x 7168: 23 us at 2 tokens, the matrix unit 16).
inline constexpr int64_t kDotTokens = 8, kDotRows = 1024;
/// Where the matrix unit multiplies three parts (160 x 5120, T = 16: 5.9 us against 10.7; 64: 14.7
/// against 11.4).
inline constexpr int64_t kDotTokensOfParts = 32;
/// us of a block of K in a tile of 128 and of 256 rows.
inline constexpr double kTileBlock = 0.41, kWideBlock = 0.65;
/// us of a split launch, of each of its blocks, and of a block of K in each.
inline constexpr double kSplitStart = 4, kSplitEnd = 0.0304, kSplitBlock = 0.0041;

}  // namespace linear_cost

/// For weights and tokens that the matrix unit takes.
constexpr LinearKernel choose_linear(int64_t num_tokens, int64_t rows, const LinearBlocks& blocks,
                                     int num_sms) {
  using namespace linear_cost;
  const int64_t few = blocks.parts > 1 ? kDotTokensOfParts : kDotTokens;
  if (num_tokens == 1 || (num_tokens <= few && rows <= kDotRows)) return LinearKernel::kDot;
  const auto tiles = [&](int64_t width) {
    return ceil_div<int64_t>(num_tokens, kLinearTileTokens) * ceil_div(rows, width);
  };
  constexpr int64_t kNarrow = 64, kSquare = 128, kWide = 256;
  if (tiles(kNarrow) * kLinearChunks <= num_sms) return LinearKernel::kNarrowSplit;
  const auto us = [&](int64_t width, double block) {
    return block * blocks.num_blocks *
           static_cast<double>(ceil_div<int64_t>(tiles(width), num_sms));
  };
  const double split = kSplitStart + static_cast<double>(tiles(kSquare) * kLinearChunks) *
                                         (kSplitEnd + kSplitBlock * blocks.chunk_blocks);
  const double square = us(kSquare, kTileBlock), wide = us(kWide, kWideBlock);
  if (split <= square && split <= wide) return LinearKernel::kSplit;
  return square <= wide ? LinearKernel::kTile : LinearKernel::kWideTile;
}

}  // namespace switchyard
