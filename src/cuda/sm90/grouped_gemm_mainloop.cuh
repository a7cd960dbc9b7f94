#pragma once
// The k loop of one consumer warpgroup: 64 rows times the tile's weights.

#include "cuda/sm90/grouped_gemm_producer.cuh"

namespace switchyard::cuda::sm90 {

template <class Traits>
struct GroupedGemmConsumer {
  using Accumulator = typename Traits::Accumulator;
  using Sums = float[Traits::kAccumulators];

  const GroupedGemmParams& p;
  const GroupedGemmRing<Traits>& ring;
  int thread;  ///< of the warpgroup
  uint64_t first_rows, first_weights;
  RingPosition<Traits::kStages> at{};

  /// `wave`: which 64 rows of the tile.
  __device__ GroupedGemmConsumer(const GroupedGemmParams& params,
                                 const GroupedGemmRing<Traits>& ring_, int wave, int thread_)
      : p(params),
        ring(ring_),
        thread(thread_),
        first_rows(swizzled_128_descriptor(
            shared_address(ring_.rows + wave * kGemmWaveRows * kGemmBlockBytes))),
        first_weights(swizzled_128_descriptor(shared_address(ring_.weights))) {}

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
  __device__ __forceinline__ void multiply_block(Accumulator& d, bool fresh) const {
    // Descriptors count 16 bytes.
    const uint64_t a = first_rows + static_cast<uint32_t>(at.slot * (Traits::kRowStage / 16));
    const uint64_t b = first_weights + static_cast<uint32_t>(at.slot * (Traits::kWeightStage / 16));
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

  /// As above every k block, times the block's scales. Lane q of a quad holds the row scales of
  /// k block 4 c + q, lane l the weight scales of k block 32 c + l; both are fetched while the
  /// products before them are under way.
  __device__ void accumulate_scaled(const float* low_row, const float* high_row,
                                    const float2* weight_scales, Sums& sums) {
    Accumulator part;
#pragma unroll
    for (int i = 0; i < Traits::kAccumulators; ++i) sums[i] = 0.0f;
    const int lane = thread % 32;
    const int quad = lane % 4;
    const auto row_scale = [&](const float* row, int k) {
      return row == nullptr || k >= p.num_k_blocks ? 1.0f : __ldg(row + k * p.row_scale_step);
    };
    const auto weight_scale = [&](int k) {
      return weight_scales == nullptr || k >= p.num_k_blocks ? float2{1.0f, 1.0f}
                                                             : __ldg(weight_scales + k);
    };
    float low = row_scale(low_row, quad), high = row_scale(high_row, quad);
    float next_low = row_scale(low_row, 4 + quad), next_high = row_scale(high_row, 4 + quad);
    float2 weight = weight_scale(lane);
    float scale[4];  // of the next k block: what multiplies its sums must not wait for a shuffle
    const auto set_scale = [&](int k) {
      if (k % 4 == 0 && k > 0) {
        low = next_low, high = next_high;
        next_low = row_scale(low_row, k + 4 + quad);
        next_high = row_scale(high_row, k + 4 + quad);
        if (k % 32 == 0) weight = weight_scale(k + lane);
      }
      constexpr unsigned kAll = ~0u;
      const float low_now = __shfl_sync(kAll, low, k % 4, 4);
      const float high_now = __shfl_sync(kAll, high, k % 4, 4);
      const float even = __shfl_sync(kAll, weight.x, k % 32);
      const float odd = __shfl_sync(kAll, weight.y, k % 32);
      scale[0] = low_now * even, scale[1] = low_now * odd;
      scale[2] = high_now * even, scale[3] = high_now * odd;
    };
    for (int k = 0; k < p.num_k_blocks; ++k) {
      wait_full();
      multiply_block(part, true);
      if (k == 0) set_scale(0);  // not before: it waits for memory
      const float now[4] = {scale[0], scale[1], scale[2], scale[3]};
      set_scale(k + 1);
      wgmma_wait<0>();
      pin(part);
      release(at.slot);
#pragma unroll
      for (int i = 0; i < Traits::kAccumulators; ++i) {
        sums[i] = fmaf(part[i], now[i % 4], sums[i]);
      }
      at.advance();
    }
  }
};

}  // namespace switchyard::cuda::sm90
