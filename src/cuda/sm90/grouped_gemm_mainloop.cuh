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
      next_rows_[h] = margin.block_scale[first_row + 8 * h][quad_lane_];
    }
#pragma unroll
    for (int i = 0; i < Traits::kParts; ++i) {
      const int part = side * Traits::kParts + i;
      weight_[i] = weight_scales(p, tile.expert, tile.column * (Traits::kBlockN / 128) + part);
      next_weights_[i] = margin.weight_scale[part][quad_lane_];
    }
  }
  /// Before k blocks k to k + 3: takes theirs and asks for those of the four after them.
  __device__ __forceinline__ void advance(int k) {
#pragma unroll
    for (int h = 0; h < 2; ++h) rows_[h] = next_rows_[h];
#pragma unroll
    for (int i = 0; i < Traits::kParts; ++i) weights_[i] = next_weights_[i];
    // Past the end those of the last block: a load under a condition would be waited for at once.
    const int mine = min(k + kMarginScales + quad_lane_, p_.num_k_blocks - 1);
#pragma unroll
    for (int h = 0; h < 2; ++h) next_rows_[h] = __ldg(row_[h] + mine * p_.row_scale_step);
#pragma unroll
    for (int i = 0; i < Traits::kParts; ++i) {
      if (weight_[i] != nullptr) next_weights_[i] = __ldg(weight_[i] + mine);
    }
  }
  /// Of the sums of the j-th of these blocks and the part-th 128 columns: [row half][even or odd
  /// column].
  __device__ __forceinline__ void take(int j, int part, float (&scale)[4]) {
    constexpr unsigned kAll = ~0u;
    const float low = __shfl_sync(kAll, rows_[0], j, 4);
    const float high = __shfl_sync(kAll, rows_[1], j, 4);
    const float even = __shfl_sync(kAll, weights_[part].x, j, 4);
    const float odd = __shfl_sync(kAll, weights_[part].y, j, 4);
    scale[0] = low * even, scale[1] = low * odd;
    scale[2] = high * even, scale[3] = high * odd;
  }

 private:
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
  static constexpr int kPartSums = Traits::kAccumulators / Traits::kParts;

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
  /// Waits for the next k block; its slot.
  __device__ __forceinline__ int next_block() {
    barrier_wait(&ring.full[at.slot], at.parity);
    // Gathered rows were written by ordinary stores as far as wgmma is concerned.
    if constexpr (Traits::kGather) fence_async_shared();
    const int slot = at.slot;
    at.advance();
    return slot;
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
  __device__ __forceinline__ void multiply(typename Mma::Accumulator& d, bool fresh, int slot,
                                           int first = 0) const {
    // Descriptors count 16 bytes.
    const uint64_t a = first_rows + static_cast<uint32_t>(slot * (Traits::kRowStage / 16));
    const uint64_t b = first_weights + static_cast<uint32_t>(slot * (Traits::kWeightStage / 16) +
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
      const int slot = next_block();
      multiply<typename Traits::Mma>(sums, k == 0, slot);
      wgmma_wait<1>();
      if (previous >= 0) release(previous);
      previous = slot;
    }
    wgmma_wait<0>();
    pin(sums);
    release(previous);
  }

  // Where sums leave the matrix unit they do so 128 columns of the tile at a time, as the registers
  // allow. A warpgroup's next products wait for that, so nothing else is done there: the next k
  // block and its scales are waited for while products run.

  /// Every 192 columns of K, one and a half k blocks, counted from column 0.
  __device__ void accumulate_promoted(Sums& sums) {
    using Mma = typename Traits::PartMma;
    constexpr int kLast = Traits::kParts - 1;
    typename Mma::Accumulator part;
#pragma unroll
    for (int i = 0; i < Traits::kAccumulators; ++i) sums[i] = 0.0f;
    const auto promote = [&](int i) {
#pragma unroll
      for (int a = 0; a < kPartSums; ++a) sums[i * kPartSums + a] += part[a];
    };
    int slot = next_block(), second = 0, third = 0;
    for (int k = 0; k < p.num_k_blocks; k += 3) {
      const int blocks = min(p.num_k_blocks - k, 3);
#pragma unroll
      for (int i = 0; i < Traits::kParts; ++i) {
        multiply<Mma>(part, true, slot, i * 128);
        if (blocks > 1) {
          if (i == 0) second = next_block();
          multiply<Mma, 0, 2>(part, false, second, i * 128);
        }
        if (i == kLast && blocks > 2) third = next_block();
        wgmma_wait<0>();
        pin(part);
        if (i == kLast) release(slot);
        promote(i);
      }
      if (blocks == 1) break;
#pragma unroll
      for (int i = 0; i < Traits::kParts; ++i) {
        multiply<Mma, 2, 4>(part, true, second, i * 128);
        if (blocks > 2) multiply<Mma>(part, false, third, i * 128);
        if (i == kLast && k + 3 < p.num_k_blocks) slot = next_block();
        wgmma_wait<0>();
        pin(part);
        if (i == kLast) {
          release(second);
          if (blocks > 2) release(third);
        }
        promote(i);
      }
    }
  }

  /// Every k block, times the block's scales.
  __device__ void accumulate_scaled(BlockScales<Traits>& scales, Sums& sums) {
    using Mma = typename Traits::PartMma;
    typename Mma::Accumulator part;
    float scale[4];
#pragma unroll
    for (int i = 0; i < Traits::kAccumulators; ++i) sums[i] = 0.0f;
    int slot = next_block(), next = 0;
    for (int first = 0; first < p.num_k_blocks; first += kMarginScales) {
      scales.advance(first);
      const int count = min(kMarginScales, p.num_k_blocks - first);
      for (int j = 0; j < count; ++j) {
#pragma unroll
        for (int i = 0; i < Traits::kParts; ++i) {
          const bool last = i == Traits::kParts - 1;
          multiply<Mma>(part, true, slot, i * 128);
          scales.take(j, i, scale);
          pin(scale);
          if (last && first + j + 1 < p.num_k_blocks) next = next_block();
          wgmma_wait<0>();
          pin(part);
          if (last) release(slot);
#pragma unroll
          for (int a = 0; a < kPartSums; ++a) {
            float& sum = sums[i * kPartSums + a];
            sum = fmaf(part[a], scale[a % 4], sum);
          }
        }
        slot = next;
      }
    }
  }
};

}  // namespace switchyard::cuda::sm90
