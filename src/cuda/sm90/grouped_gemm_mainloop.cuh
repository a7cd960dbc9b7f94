#pragma once
// The k loop of one consumer warpgroup: 64 rows times the tile's weights.

#include "cuda/sm90/grouped_gemm_producer.cuh"

namespace switchyard::cuda::sm90 {

/// The scales that a thread's sums are multiplied with, for every 128 columns of the tile. Lane q
/// of a quad holds those of k block 4 c + q; the first ones come with the margin, the next ones are
/// fetched while these are used.
template <class Traits>
class BlockScales {
 public:
  /// Of row `first_row` and the eighth after it, and of the weights on this `side`.
  __device__ BlockScales(const GroupedGemmParams& p, const TileMargin<Traits>& margin,
                         const TileTicket& tile, int first_row, int side, int lane)
      : p_(p), quad_lane_(lane % 4) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t row = __float_as_int(margin.scale[first_row + 8 * h]);
      row_[h] = p.row_scales + int64_t{row} * p.row_scale_stride;
      rows_[h] = margin.block_scale[first_row + 8 * h][quad_lane_];
    }
#pragma unroll
    for (int i = 0; i < Traits::kParts; ++i) {
      const int part = side * Traits::kParts + i;
      weight_[i] = weight_scales(p, tile.expert, tile.column * (Traits::kBlockN / 128) + part);
      weights_[i] = margin.weight_scale[part][quad_lane_];
    }
    fetch(kMarginScales);
  }
  /// Of the sums of k block k and the part-th 128 columns: [row half][even or odd column]. k counts
  /// up from 0, part inside.
  __device__ __forceinline__ void take(int k, int part, float (&scale)[4]) {
    constexpr unsigned kAll = ~0u;
    const float low = __shfl_sync(kAll, rows_[0], k % 4, 4);
    const float high = __shfl_sync(kAll, rows_[1], k % 4, 4);
    const float even = __shfl_sync(kAll, weights_[part].x, k % 4, 4);
    const float odd = __shfl_sync(kAll, weights_[part].y, k % 4, 4);
    scale[0] = low * even, scale[1] = low * odd;
    scale[2] = high * even, scale[3] = high * odd;
    if (part < Traits::kParts - 1 || k % 4 < 3) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) rows_[h] = next_rows_[h];
#pragma unroll
    for (int i = 0; i < Traits::kParts; ++i) weights_[i] = next_weights_[i];
    fetch(k + 5);
  }

 private:
  /// Of k block k and the three after it.
  __device__ __forceinline__ void fetch(int k) {
    const int mine = k + quad_lane_;
    const bool exists = mine < p_.num_k_blocks;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      next_rows_[h] = exists ? __ldg(row_[h] + mine * p_.row_scale_step) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < Traits::kParts; ++i) {
      next_weights_[i] =
          exists && weight_[i] != nullptr ? __ldg(weight_[i] + mine) : float2{1.0f, 1.0f};
    }
  }

  const GroupedGemmParams& p_;
  int quad_lane_;
  const float* row_[2];
  const float2* weight_[Traits::kParts];
  float rows_[2], next_rows_[2];
  float2 weights_[Traits::kParts], next_weights_[Traits::kParts];
};

template <class Traits>
struct GroupedGemmConsumer {
  using Accumulator = typename Traits::Accumulator;
  using Sums = float[Traits::kAccumulators];
  using Piece = typename Traits::PieceMma::Accumulator;

  const GroupedGemmParams& p;
  const GroupedGemmRing<Traits>& ring;
  int thread;  ///< of the warpgroup
  uint64_t first_rows, first_weights;
  RingPosition<Traits::kStages> at{};

  /// `wave`: which 64 rows of the tile; `side`: which of its columns.
  __device__ GroupedGemmConsumer(const GroupedGemmParams& params,
                                 const GroupedGemmRing<Traits>& ring_, int wave, int side,
                                 int thread_)
      : p(params),
        ring(ring_),
        thread(thread_),
        first_rows(swizzled_128_descriptor(
            shared_address(ring_.rows + wave * kGemmWaveRows * kGemmBlockBytes))),
        first_weights(swizzled_128_descriptor(
            shared_address(ring_.weights + side * Traits::kSideN * kGemmBlockBytes))) {}

  __device__ __forceinline__ void release(int slot) const {
    if (thread % 32 == 0) barrier_arrive(&ring.empty[slot]);
  }
  __device__ __forceinline__ void wait_full() const {
    barrier_wait(&ring.full[at.slot], at.parity);
    // Gathered rows were written by ordinary stores as far as wgmma is concerned.
    if constexpr (Traits::kGather) fence_async_shared();
  }
  /// Lets a tile's k blocks pass.
  __device__ void skip_tile() {
    for (int k = 0; k < p.num_k_blocks; ++k) {
      barrier_wait(&ring.full[at.slot], at.parity);
      release(at.slot);
      at.advance();
    }
  }
  /// Of 32 bytes of K at a time, [kBegin, kEnd) of a k block's four; `first`: of the columns.
  template <class Mma, int kBegin = 0, int kEnd = 4>
  __device__ __forceinline__ void multiply(typename Mma::Accumulator& d, bool fresh,
                                           int first = 0) const {
    // Descriptors count 16 bytes.
    const uint64_t a = first_rows + static_cast<uint32_t>(at.slot * (Traits::kRowStage / 16));
    const uint64_t b = first_weights + static_cast<uint32_t>(at.slot * (Traits::kWeightStage / 16) +
                                                             first * (kGemmBlockBytes / 16));
    pin(d);
    wgmma_fence();
#pragma unroll
    for (int j = kBegin; j < kEnd; ++j) Mma::ss(d, a + j * 2, b + j * 2, j > kBegin || !fresh);
    wgmma_commit();
    pin(d);
  }

  /// Sums stay inside the matrix unit; a block's slot is released when the next one is under way.
  __device__ void accumulate(Accumulator& sums) {
    int previous = -1;
    for (int k = 0; k < p.num_k_blocks; ++k) {
      wait_full();
      multiply<typename Traits::Mma>(sums, k == 0);
      wgmma_wait<1>();
      if (previous >= 0) release(previous);
      previous = at.slot;
      at.advance();
    }
    wgmma_wait<0>();
    pin(sums);
    release(previous);
  }

  /// Takes the sums out every 192 columns, one and a half k blocks, counted from column 0. Three
  /// warpgroups keep the matrix unit busy although each waits for its product: 1 % faster than to
  /// issue the next one first.
  __device__ void accumulate_promoted(Sums& sums) {
    using Mma = typename Traits::Mma;
    Accumulator part;
#pragma unroll
    for (int i = 0; i < Traits::kAccumulators; ++i) sums[i] = 0.0f;
    const auto finish = [&] {
      wgmma_wait<0>();
      pin(part);
    };
    const auto promote = [&] {
#pragma unroll
      for (int i = 0; i < Traits::kAccumulators; ++i) sums[i] += part[i];
    };
    const auto next_block = [&] {
      release(at.slot);
      at.advance();
    };
    for (int k = 0; k < p.num_k_blocks; k += 3) {
      wait_full();
      multiply<Mma>(part, true);
      finish();
      next_block();
      if (k + 1 < p.num_k_blocks) {
        wait_full();
        multiply<Mma, 0, 2>(part, false);
        finish();
        promote();
        multiply<Mma, 2, 4>(part, true);
        finish();
        next_block();
      }
      if (k + 2 < p.num_k_blocks) {
        wait_full();
        multiply<Mma>(part, false);
        finish();
        next_block();
      }
      promote();
    }
  }

  /// As above every k block, times the block's scales.
  __device__ void accumulate_scaled(BlockScales<Traits>& scales, Sums& sums) {
#pragma unroll
    for (int i = 0; i < Traits::kAccumulators; ++i) sums[i] = 0.0f;
    int k = 0;
    for (; k + 2 <= p.num_k_blocks; k += 2) scaled_blocks<2>(k, scales, sums);
    for (; k < p.num_k_blocks; ++k) scaled_blocks<1>(k, scales, sums);  // as an if, it spills
  }

 private:
  /// Products of 64 columns in turns: one is under way while the one before is scaled and added.
  /// None may be under way around the end of a loop, or ptxas waits for each; and four blocks at a
  /// time do not fit the registers of three warpgroups.
  template <int kBlocks>
  __device__ __forceinline__ void scaled_blocks(int k, BlockScales<Traits>& scales, Sums& sums) {
    constexpr int kPieces = Traits::kSideN / Traits::kPieceN;
    constexpr int kPiecesPerScale = kPieces / Traits::kParts;
    Piece piece[2];
    float scale[4];
    int previous = -1;
    const auto promote = [&](int h) {
      pin(piece[h % 2]);
#pragma unroll
      for (int i = 0; i < Traits::kPieceN / 2; ++i) {
        float& sum = sums[h * (Traits::kPieceN / 2) + i];
        sum = fmaf(piece[h % 2][i], scale[i % 4], sum);
      }
    };
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      wait_full();
#pragma unroll
      for (int h = 0; h < kPieces; ++h) {
        multiply<typename Traits::PieceMma>(piece[h % 2], true, h * Traits::kPieceN);
        if (block > 0 || h > 0) {
          wgmma_wait<1>();
          promote((h + kPieces - 1) % kPieces);
          if (h == 0) release(previous);
        }
        if (h % kPiecesPerScale == 0) {
          scales.take(k + block, h / kPiecesPerScale, scale);
          pin(scale);
        }
      }
      previous = at.slot;
      at.advance();
    }
    wgmma_wait<0>();
    promote(kPieces - 1);
    release(previous);
  }
};

}  // namespace switchyard::cuda::sm90
