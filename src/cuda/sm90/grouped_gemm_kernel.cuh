#pragma once
// The prefill kernel: a persistent grid, one loading warpgroup, two or three that multiply.

#include "cuda/launch.cuh"
#include "cuda/sm90/grouped_gemm_epilogue.cuh"
#include "cuda/sm90/grouped_gemm_mainloop.cuh"

namespace switchyard::cuda::sm90 {

template <class Traits>
__device__ void consume_tiles(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                              int wave, int side, int thread) {
  GroupedGemmConsumer<Traits> consumer(p, ring, wave, side, thread);
  RingPosition<kMargins> margin_at;
  for (;;) {
    barrier_wait(&ring.margin_full[margin_at.slot], margin_at.parity);
    const TileTicket tile = ring.tickets[margin_at.slot];
    if (tile.row_block < 0) return;
    const TileMargin<Traits>& margin = ring.margins[margin_at.slot];
    if (margin.output_row[wave * kGemmWaveRows] < 0) {
      consumer.skip_tile();
    } else {
      const GroupedGemmEnd<Traits> end(p, margin, tile.column, wave, side, thread);
      float sums[Traits::kAccumulators];
      if constexpr (Traits::kScaling == Scaling::kBlock) {
        BlockScales<Traits> scales(p, margin, tile, end.row[0], side, thread % 32);
        consumer.accumulate_scaled(scales, sums);
      } else if constexpr (Traits::kPromotes) {
        consumer.accumulate_promoted(sums);
      } else if constexpr (Traits::kMma == MmaType::kBf16) {
        consumer.accumulate(sums);
      } else {
        typename Traits::Accumulator exact;
        consumer.accumulate(exact);
#pragma unroll
        for (int i = 0; i < Traits::kAccumulators; ++i) sums[i] = static_cast<float>(exact[i]);
      }
      end.finish(sums);
    }
    __syncwarp();
    if (thread % 32 == 0) barrier_arrive(&ring.margin_empty[margin_at.slot]);
    margin_at.advance();
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kConfig.num_threads(), 1)
    sm90_grouped_gemm_kernel(const __grid_constant__ GroupedGemmParams p) {
  extern __shared__ uint8_t unaligned[];
  constexpr uint32_t kAlignment = 1024;
  uint8_t* shared = unaligned + (kAlignment - shared_address(unaligned) % kAlignment) % kAlignment;
  const GroupedGemmRing<Traits> ring(shared);
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  const int thread = static_cast<int>(threadIdx.x) % 128;
  if (threadIdx.x == 0) ring.init();
  __syncthreads();
  wait_for_previous_kernel();
  // 64 K registers: three consumers of 152 or two of 224 beside a producer of 56, or two of 232
  // beside 40. With few registers a gathering producer's addresses wait for each other: 20 % slower
  // at 192 rows and 32 registers, 2 % at 128 rows and 40.
  constexpr bool kThree = Traits::kConsumers == 3;
  constexpr bool kMany = kThree || Traits::kGather;
  if (warpgroup == Traits::kConsumers) {
    give_registers<kMany ? 56 : 40>();
    produce_tiles(p, ring, thread);
  } else {
    take_registers<kThree ? 152 : kMany ? 224 : 232>();
    consume_tiles(p, ring, warpgroup % Traits::kWaves, warpgroup / Traits::kWaves, thread);
  }
}

template <class Traits>
void launch_grouped_gemm(const GroupedGemmParams& params, int num_blocks, Stream stream) {
  launch(sm90_grouped_gemm_kernel<Traits>,
         {.grid = static_cast<unsigned>(num_blocks),
          .block = static_cast<unsigned>(Traits::kConfig.num_threads()),
          .shared_bytes = Traits::kShared.bytes,
          .overlap_previous = true},
         static_cast<cudaStream_t>(stream.handle), params);
}

template <MmaType kMma, Scaling kScaling, int kM, int kN, int kStages, int kSides>
constexpr GroupedGemmVariants grouped_gemm_variants() {
  return {{kM, kN, kStages, kSides},
          launch_grouped_gemm<GroupedGemmTraits<kMma, kScaling, RowSource::kToken, TileEnd::kGated,
                                                kM, kN, kStages, kSides>>,
          launch_grouped_gemm<GroupedGemmTraits<kMma, kScaling, RowSource::kToken, TileEnd::kRows,
                                                kM, kN, kStages, kSides>>,
          launch_grouped_gemm<GroupedGemmTraits<kMma, kScaling, RowSource::kSorted, TileEnd::kRows,
                                                kM, kN, kStages, kSides>>};
}
#define SWITCHYARD_GEMM_VARIANTS(mma, scaling, tile) \
  grouped_gemm_variants<mma, scaling, tile.block_m, tile.block_n, tile.num_stages, tile.num_sides>()

}  // namespace switchyard::cuda::sm90
