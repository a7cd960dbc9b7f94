#pragma once
// The k loop of one consumer warpgroup: 64 rows times the tile's weights.

#include "cuda/sm90/grouped_gemm_producer.cuh"

namespace switchyard::cuda::sm90 {

/// The scales that a thread's sums are multiplied with, for every 128 columns of the tile. Lane q
/// of a quad holds the row scales of k block 4 c + q, lane l of a warp the weight scales of k block
/// 32 c + l; all are fetched ahead.
template <class Traits>
class BlockScales {
 public:
  /// Fetches the first ones of a tile: of row `first_row` and the eighth after it, and of the
  /// weights on its `side`.
  __device__ BlockScales(const GroupedGemmParams& p, const TileMargin<Traits>& margin,
                         const TileTicket& tile, int first_row, int side, int lane)
      : p_(p), lane_(lane) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t row = __float_as_int(margin.scale[first_row + 8 * h]);
      row_[h] = p.row_scales + int64_t{row} * p.row_scale_stride;
    }
    const int32_t columns = ceil_div(p.num_weight_rows, Traits::kPartN);
    const int32_t column = tile.column * (Traits::kBlockN / Traits::kPartN) + side * Traits::kParts;
    if (p.block_scales != nullptr && column < columns) {
      weight_ = reinterpret_cast<const float2*>(p.block_scales) +
                (int64_t{tile.expert} * columns + column) * p.num_k_blocks;
    }
    next_part_ = column + 1 < columns ? p.num_k_blocks : 0;
    fetch_rows(0);
    advance_rows(0);
    fetch_weights(0);
  }
  /// Of the sums of k block k and the part-th 128 columns: [row half][even or odd column]. k counts
  /// up from 0, part inside.
  __device__ __forceinline__ void take(int k, int part, float (&scale)[4]) {
    constexpr unsigned kAll = ~0u;
    const float low = __shfl_sync(kAll, rows_[0], k % 4, 4);
    const float high = __shfl_sync(kAll, rows_[1], k % 4, 4);
    const float even = __shfl_sync(kAll, weights_[part].x, k % 32);
    const float odd = __shfl_sync(kAll, weights_[part].y, k % 32);
    scale[0] = low * even, scale[1] = low * odd;
    scale[2] = high * even, scale[3] = high * odd;
    if (part < Traits::kParts - 1) return;
    if (k % 4 == 3) advance_rows(k + 1);
    if (k % 32 == 31) fetch_weights(k + 1);
  }

 private:
  __device__ __forceinline__ void fetch_rows(int k) {
    const int mine = k + lane_ % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      next_rows_[h] = mine < p_.num_k_blocks ? __ldg(row_[h] + mine * p_.row_scale_step) : 0.0f;
    }
  }
  /// From k block k on; those after them are fetched.
  __device__ __forceinline__ void advance_rows(int k) {
#pragma unroll
    for (int h = 0; h < 2; ++h) rows_[h] = next_rows_[h];
    fetch_rows(k + 4);
  }
  __device__ __forceinline__ void fetch_weights(int k) {
    const bool exists = weight_ != nullptr && k + lane_ < p_.num_k_blocks;
#pragma unroll
    for (int h = 0; h < Traits::kParts; ++h) {
      weights_[h] = exists ? __ldg(weight_ + k + lane_ + h * next_part_) : float2{1.0f, 1.0f};
    }
  }

  const GroupedGemmParams& p_;
  int lane_;
  const float* row_[2];
  const float2* weight_ = nullptr;
  int32_t next_part_;
  float rows_[2], next_rows_[2];
  float2 weights_[Traits::kParts];
};

template <class Traits>
struct GroupedGemmConsumer {
  using Accumulator = typename Traits::Accumulator;
  using Sums = float[Traits::kAccumulators];

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
  __device__ __forceinline__ void multiply_block(Accumulator& d, bool fresh, int part = 0) const {
    constexpr int kPartBytes = Traits::kPartN * kGemmBlockBytes;
    // Descriptors count 16 bytes.
    const uint64_t a = first_rows + static_cast<uint32_t>(at.slot * (Traits::kRowStage / 16));
    const uint64_t b = first_weights + static_cast<uint32_t>(at.slot * (Traits::kWeightStage / 16) +
                                                             part * (kPartBytes / 16));
    pin(d);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) {  // 32 bytes of K each
      Traits::Mma::ss(d, a + j * 2, b + j * 2, j > 0 || !fresh);
    }
    wgmma_commit();
    pin(d);
  }

  /// Sums stay inside the matrix unit; a block's slot is released when the next one is under way.
  __device__ void accumulate(Accumulator& sums) {
    int previous = -1;
    for (int k = 0; k < p.num_k_blocks; ++k) {
      wait_full();
      multiply_block(sums, k == 0);
      wgmma_wait<1>();
      if (previous >= 0) release(previous);
      previous = at.slot;
      at.advance();
    }
    wgmma_wait<0>();
    pin(sums);
    release(previous);
  }

  /// Takes the sums out every kPromoteBlocks k blocks.
  __device__ void accumulate_promoted(Sums& sums) {
    static_assert(Traits::kParts == 1, "there is one set of accumulators");
    Accumulator part;
#pragma unroll
    for (int i = 0; i < Traits::kAccumulators; ++i) sums[i] = 0.0f;
    for (int first = 0; first < p.num_k_blocks; first += Traits::kPromoteBlocks) {
      const int end = min(first + Traits::kPromoteBlocks, p.num_k_blocks);
      int previous = -1;
      for (int k = first; k < end; ++k) {
        wait_full();
        multiply_block(part, k == first);
        wgmma_wait<1>();
        if (previous >= 0) release(previous);
        previous = at.slot;
        at.advance();
      }
      wgmma_wait<0>();
      pin(part);
      release(previous);
#pragma unroll
      for (int i = 0; i < Traits::kAccumulators; ++i) sums[i] += part[i];
    }
  }

  /// As above every k block, times the block's scales.
  __device__ void accumulate_scaled(BlockScales<Traits>& scales, Sums& sums) {
    Accumulator part;
#pragma unroll
    for (int i = 0; i < Traits::kAccumulators; ++i) sums[i] = 0.0f;
    for (int k = 0; k < p.num_k_blocks; ++k) {
      wait_full();
#pragma unroll
      for (int h = 0; h < Traits::kParts; ++h) {
        multiply_block(part, true, h);
        float scale[4];
        scales.take(k, h, scale);  // not before: the first ones wait for memory
        pin(scale);
        wgmma_wait<0>();
        pin(part);
        if (h == Traits::kParts - 1) release(at.slot);
#pragma unroll
        for (int i = 0; i < Traits::kPartN / 2; ++i) {
          float& sum = sums[h * (Traits::kPartN / 2) + i];
          sum = fmaf(part[i], scale[i % 4], sum);
        }
      }
      at.advance();
    }
  }
};

}  // namespace switchyard::cuda::sm90
