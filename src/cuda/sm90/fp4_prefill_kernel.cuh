#pragma once
// The prefill kernel for 4-bit weights: a persistent grid, one loading warpgroup, three or four
// that multiply.

#include "cuda/launch.cuh"
#include "cuda/sm90/fp4_prefill_epilogue.cuh"

namespace switchyard::cuda::sm90 {

template <class Traits>
__device__ __forceinline__ void multiply_tiles(const Fp4PrefillParams& p,
                                               const Fp4PrefillRing<Traits>& ring, uint8_t* shared,
                                               int consumer, int thread) {
  uint8_t* output = shared + Traits::kOutputAt + consumer * Traits::kOutputBytes;
  Fp4PrefillConsumer<Traits> loop{
      p,        ring,  shared + Traits::kTablesAt, reinterpret_cast<float4*>(output) + thread,
      consumer, thread};
  RingPosition<Traits::kFactBuffers> facts_at;
  for (;;) {
    barrier_wait(&ring.facts_full[facts_at.slot], facts_at.parity);
    const Fp4PrefillTicket& tile = ring.facts[facts_at.slot].ticket;
    if (tile.row_block < 0) return;
    if (tile.column * Traits::kConsumers + consumer >= p.num_row_blocks) {
      loop.skip_tile();
    } else {
      typename Traits::Sums sums;
      loop.run(sums, tile.rows);
      // Opaque, or the end's addresses stay in registers through the k loop, which has none to
      // spare.
      int own = thread;
      asm volatile("" : "+r"(own));
      const Fp4PrefillEnd<Traits> end(p, ring.facts[facts_at.slot], output, consumer, own);
      end.finish(sums);
      if constexpr (Traits::kHeldSums > 0) end.meet();  // the next sums wait where output was
    }
    __syncwarp();
    if (thread % 32 == 0) barrier_arrive(&ring.facts_empty[facts_at.slot]);
    facts_at.advance();
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    sm90_fp4_prefill_kernel(const __grid_constant__ Fp4PrefillParams p) {
  // Aligned by the compiler, addresses are constants and cost no registers.
  extern __shared__ __align__(1024) uint8_t shared[];
  const Fp4PrefillRing<Traits> ring(shared);
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  const int thread = static_cast<int>(threadIdx.x) % 128;
  if (threadIdx.x == 0) ring.init();
  if (Traits::Operand::kTables && threadIdx.x < kNumFp8Tables) {
    reinterpret_cast<Fp8Table*>(shared + Traits::kTablesAt)[threadIdx.x] =
        make_fp8_table(static_cast<int>(threadIdx.x));
  }
  if (Traits::Operand::kScaleTables && threadIdx.x < Nvfp4Tables::kCount) {
    reinterpret_cast<Fp8Table*>(shared + Traits::kTablesAt)[threadIdx.x] =
        kDeviceNvfp4Tables.of[threadIdx.x];
  }
  __syncthreads();
  wait_for_previous_kernel();
  if (warpgroup == Traits::kConsumers) {
    give_registers<Traits::kProducerRegisters>();
    load_tiles(p, ring, thread);
  } else {
    take_registers<Traits::kConsumerRegisters>();
    multiply_tiles(p, ring, shared, warpgroup, thread);
  }
}

template <class Traits>
void launch_fp4_prefill(const Fp4PrefillParams& params, int num_blocks, Stream stream) {
  launch(sm90_fp4_prefill_kernel<Traits>,
         {.grid = static_cast<unsigned>(num_blocks),
          .block = Traits::kThreads,
          .shared_bytes = Traits::kSharedBytes,
          .overlap_previous = true},
         static_cast<cudaStream_t>(stream.handle), params);
}

template <class Operand, bool kRowScales, int kRows>
constexpr Fp4PrefillVariants fp4_prefill_variants() {
  constexpr auto kToken = RowSource::kToken, kSorted = RowSource::kSorted;
  using Gated = Fp4PrefillTraits<Operand, kRowScales, kToken, TileEnd::kGated, kRows>;
  using Up = Fp4PrefillTraits<Operand, kRowScales, kToken, TileEnd::kRows, kRows>;
  using Down = Fp4PrefillTraits<Operand, kRowScales, kSorted, TileEnd::kRows, kRows>;
  return {{kRows, Down::kTileWeightRows, Down::kStages},
          launch_fp4_prefill<Gated>,
          launch_fp4_prefill<Up>,
          launch_fp4_prefill<Down>};
}
template <class Operand, bool kRowScales, int... kRows>
constexpr Fp4PrefillVariants kFp4PrefillVariants[] = {
    fp4_prefill_variants<Operand, kRowScales, kRows>()...};
template <class Operand, bool kRowScales, int... kRows>
Fp4PrefillVariantList fp4_prefill_list_of() {
  return {kFp4PrefillVariants<Operand, kRowScales, kRows...>, sizeof...(kRows)};
}
/// kRowScales: E4M3 rows have a scale per 128 columns. Batches whose experts have about 32, 64 or
/// 128 rows each need tiles of a few rows more, or half of the experts would take two (R1 TP8,
/// T = 2048: 389 to 343 us). Where sums are scaled beside the products, registers do not suffice.
template <class Operand, bool kRowScales = false>
Fp4PrefillVariantList fp4_prefill_list() {
  if constexpr (kRowScales || Operand::kScalesSums) {
    return fp4_prefill_list_of<Operand, kRowScales, 128, 96, 64, 32>();
  } else {
    return fp4_prefill_list_of<Operand, kRowScales, 144, 128, 96, 80, 64, 48, 32>();
  }
}

}  // namespace switchyard::cuda::sm90
