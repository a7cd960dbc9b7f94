#pragma once
// Weights in fragment order become the tiles that 8-bit weights are copied to: once for all rows
// that a CTA has of an expert.

#include "cuda/sm90/down_sum_cta.cuh"
#include "cuda/sm90/fragment_operand.cuh"

namespace switchyard::cuda::sm90 {

/// Four matrices of 8 x 16 bytes: lane 8 i + r names row r of matrix i.
__device__ __forceinline__ void store_matrices(uint32_t to, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

/// Codes that are read once: they do not push the ring out of the L2.
__device__ __forceinline__ uint4 load_once(const uint4* from, uint64_t policy) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from), "l"(policy));
  return v;
}
__device__ __forceinline__ uint32_t load_once(const uint32_t* from, uint64_t policy) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.u32 %0, [%1], %2;"
               : "=r"(v)
               : "l"(from), "l"(policy));
  return v;
}

/// By a warpgroup: every slab's weights, once per expert. Two runs' are on their way beside the one
/// that is converted, because that takes less than the way from memory.
template <class Traits, bool kDeep>
__device__ __forceinline__ void convert_runs(const DownSumCta& cta, int thread) {
  using Operand = typename Traits::Operand;
  constexpr int kBlocks = kDownSumBlocks * kDownSumBlockBytes / kFragmentCols;
  const GroupedGemmParams& g = cta.p.gemm;
  const DownSumFragments& from = cta.p.fragments;
  const int lane = thread % 32;
  // Of a block's registers, matrix i has row i % 2 of every pair, 16 columns from 16 (i / 2) on.
  const int row = thread / 32 * 16 + lane % 8 * 2 + lane / 8 % 2;
  const uint32_t place =
      shared_address(cta.weights) +
      static_cast<uint32_t>(row * kDownSumBlockBytes + ((row % 8 ^ lane / 16) << 4));
  const float* const columns = thread < kDownSumColumns ? g.channel_scales : g.bias;
  const uint64_t once = evict_first_policy();
  const int num_runs = cta.num_runs();
  const int32_t expert_of_lane = cta.expert_of_run(lane);

  struct Loaded {
    typename Operand::Raw raw[kBlocks];
    float of_column;
  };
  static_assert(sizeof(typename Operand::Raw) == sizeof(uint4) + sizeof(uint32_t));
  Loaded even, odd;
  int left = num_runs * cta.num_slabs(), to_load = left, run = 0;
  const uint8_t* of_slab = from.blocks;
  const float* columns_of_slab = columns == nullptr ? nullptr : columns + thread % kDownSumColumns;
  DownSumBuffer at;
  at.parity = 1;
  const auto load = [&](Loaded& to) {
    const int64_t expert = __shfl_sync(~0u, expert_of_lane, run);
    if (to_load-- <= 0) return;
    const uint8_t* block = of_slab + expert * from.expert_bytes;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {  // past the last one rows are zeros: any numbers will do
      const uint8_t* codes = block + min(b, from.col_blocks - 1) * Operand::kBlockBytes;
      const uint4 words = load_once(reinterpret_cast<const uint4*>(codes) + thread, once);
      to.raw[b].words[0] = words.x, to.raw[b].words[1] = words.y;
      to.raw[b].words[2] = words.z, to.raw[b].words[3] = words.w;
      to.raw[b].scales[0] = load_once(
          reinterpret_cast<const uint32_t*>(codes + Operand::kCodeBytes) + thread / 4, once);
    }
    to.of_column = columns == nullptr ? 0.0f : columns_of_slab[expert * g.num_weight_rows];
    if (++run == num_runs) {
      run = 0;
      of_slab += from.row_block_bytes;
      if (columns != nullptr) columns_of_slab += kDownSumColumns;
    }
  };
  const auto convert = [&](Loaded& run) {
    barrier_wait(&cta.empty[at.slot], at.parity);
    const uint32_t to = place + static_cast<uint32_t>(at.slot * kDownSumWaveBytes);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      uint32_t a[Operand::kSteps][4];
      Operand::template convert<kDeep>(run.raw[b], a);
#pragma unroll
      for (int step = 0; step < Operand::kSteps; ++step) {
        const auto chunk = static_cast<uint32_t>(b % 2 * 4 + step * 2);
        store_matrices((to ^ chunk << 4) + static_cast<uint32_t>(b / 2 * kDownSumBlock), a[step]);
      }
    }
    DownSumMargin& margin = cta.margins[at.slot];
    (thread < kDownSumColumns ? margin.channel_scale : margin.bias)[thread % kDownSumColumns] =
        run.of_column;
    load(run);
    fence_async_shared();
    __syncwarp();
    if (lane == 0) barrier_arrive(&cta.full[at.slot]);
    at.advance(1, cta.p.num_buffers);
    --left;
  };
  load(even);
  load(odd);
  for (;;) {
    convert(even);
    if (left == 0) return;
    convert(odd);
    if (left == 0) return;
  }
}
template <class Traits>
__device__ void convert_slabs(const DownSumCta& cta, int thread) {
  if (cta.num_waves == 0) return;
  cta.p.fragments.deep ? convert_runs<Traits, true>(cta, thread)
                       : convert_runs<Traits, false>(cta, thread);
}

}  // namespace switchyard::cuda::sm90
