#pragma once
// Which kernel a linear (one matrix for all tokens) takes, and how the matrix unit's tiles and
// chunks of K lie.

#include <cstdint>

#include "core/host_device.h"
#include "core/math.h"

namespace switchyard {

enum class LinearKernel {
  kGeneric,    ///< every format
  kDot,        ///< plain numbers, few tokens
  kSplitTile,  ///< a cluster shares a tile's chunks of K
  kTile,       ///< the same sums, a block per tile
  kWideTile,   ///< one sum over all of K
};
constexpr const char* to_string(LinearKernel kernel) {
  switch (kernel) {
    case LinearKernel::kDot: return "linear_dot";
    case LinearKernel::kSplitTile: return "sm90_linear_split";
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
  int32_t num_blocks = 0, chunk_blocks = 0;

  /// `parts`: weights that are sums lie side by side, each part of whole blocks.
  SWITCHYARD_HOST_DEVICE constexpr explicit LinearBlocks(int32_t cols, int32_t parts = 1)
      : num_blocks(ceil_div(cols, kLinearBlockCols) * parts),
        chunk_blocks(ceil_div(num_blocks, kLinearChunks)) {}
  SWITCHYARD_HOST_DEVICE constexpr int32_t begin(int32_t chunk) const {
    const int32_t at = chunk * chunk_blocks;
    return at < num_blocks ? at : num_blocks;
  }
  SWITCHYARD_HOST_DEVICE constexpr int32_t num_chunks() const {
    return ceil_div(num_blocks, chunk_blocks);
  }
};

/// For weights and tokens that the matrix unit takes. H200 figures: linear rows of bench_gpu.
constexpr LinearKernel choose_linear(int64_t num_tokens, int64_t rows, int num_sms) {
  // Of many rows each wants its tokens again: 3584 x 7168 takes 23 us at 2 tokens, the matrix unit
  // 16.
  constexpr int64_t kFewTokens = 8, kFewRows = 1024;
  if (num_tokens == 1 || (num_tokens <= kFewTokens && rows <= kFewRows)) return LinearKernel::kDot;
  const int64_t tiles =
      ceil_div<int64_t>(num_tokens, kLinearTileTokens) * ceil_div<int64_t>(rows, kLinearTileTokens);
  if (tiles < num_sms) return LinearKernel::kSplitTile;
  return rows >= kFewRows ? LinearKernel::kWideTile : LinearKernel::kTile;
}

}  // namespace switchyard
