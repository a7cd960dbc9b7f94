#pragma once
// The loading warpgroup: weights by the copy engine, rows by the copy engine or, where they are
// gathered through the sorted ids, 16 bytes at a time by all its threads.

#include "cuda/sm90/grouped_gemm_params.cuh"

namespace switchyard::cuda::sm90 {

template <class Traits>
struct GroupedGemmRing {
  uint8_t* rows;
  uint8_t* weights;
  uint64_t* full;
  uint64_t* empty;

  __device__ explicit GroupedGemmRing(uint8_t* shared)
      : rows(shared + Traits::kShared.rows),
        weights(shared + Traits::kShared.weights),
        full(reinterpret_cast<uint64_t*>(shared + Traits::kShared.full)),
        empty(reinterpret_cast<uint64_t*>(shared + Traits::kShared.empty)) {}
  __device__ void init() const {
    for (int i = 0; i < Traits::kStages; ++i) {
      // The thread that announces the copy engine's bytes, and every gathering thread.
      barrier_init(&full[i], Traits::kGather ? 1 + 128 : 1);
      barrier_init(&empty[i], 4 * Traits::kConsumers);  // one lane per warp
    }
    fence_barrier_init();
  }
};

/// Rows of a tile that hold pairs come first; a wave without any is neither loaded nor computed.
template <class Traits>
__device__ __forceinline__ int num_waves(const GroupedGemmParams& p, int64_t first_row) {
  int waves = 1;
#pragma unroll
  for (int w = 1; w < Traits::kConsumers; ++w) {
    if (is_pair(p.sorted.ids[first_row + w * kGemmWaveRows], p.sorted.top_k)) waves = w + 1;
  }
  return waves;
}

template <class Traits>
__device__ void load_sorted_rows(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                                 const GroupedTileScheduler& scheduler) {
  RingPosition<Traits::kStages> at;
  at.parity = 1;  // every slot is free at first
  for (int64_t t = blockIdx.x; t < scheduler.num_tiles(); t += gridDim.x) {
    const GroupedTile tile = scheduler.tile(t);
    const int32_t expert = p.sorted.experts[tile.row_block];
    const int first_row = tile.row_block * Traits::kBlockM;
    const int waves = num_waves<Traits>(p, first_row);
    const uint32_t bytes = Traits::kWeightStage + waves * kGemmWaveRows * kGemmBlockBytes;
    for (int k = 0; k < p.num_k_blocks; ++k) {
      barrier_wait(&ring.empty[at.slot], at.parity);
      barrier_expect(&ring.full[at.slot], bytes);
      tensor_load(ring.weights + at.slot * Traits::kWeightStage, &p.weight_map, k * Traits::kBlockK,
                  tile.column * Traits::kBlockN, expert, &ring.full[at.slot]);
      for (int w = 0; w < waves; ++w) {
        tensor_load(ring.rows + at.slot * Traits::kRowStage + w * kGemmWaveRows * kGemmBlockBytes,
                    &p.row_map, k * Traits::kBlockK, first_row + w * kGemmWaveRows,
                    &ring.full[at.slot]);
      }
      at.advance();
    }
  }
}

template <class Traits>
__device__ void gather_rows(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                            const GroupedTileScheduler& scheduler, int thread) {
  constexpr int kPasses = Traits::kBlockM / 16;  // 128 threads bring 16 rows of 8 chunks
  constexpr int kPassBytes = 16 * kGemmBlockBytes;
  const int chunk = thread % 8;
  const int row = thread / 8;
  // Rows 16 apart have the same swizzle.
  const uint32_t place = shared_address(ring.rows) +
                         static_cast<uint32_t>(row * kGemmBlockBytes + ((chunk ^ (row % 8)) << 4));
  const auto row_chunks = static_cast<uint32_t>(p.input_row_bytes / 16);
  RingPosition<Traits::kStages> at;
  at.parity = 1;
  for (int64_t t = blockIdx.x; t < scheduler.num_tiles(); t += gridDim.x) {
    const GroupedTile tile = scheduler.tile(t);
    const int32_t expert = p.sorted.experts[tile.row_block];
    const int64_t first_row = static_cast<int64_t>(tile.row_block) * Traits::kBlockM;
    const int passes = num_waves<Traits>(p, first_row) * (kGemmWaveRows / 16);
    uint32_t from[kPasses];  // in chunks of 16 bytes; all ones: no such row
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int32_t packed = p.sorted.ids[first_row + row + 16 * i];
      const int32_t token = packed_token(packed);
      const int32_t source =
          p.source == RowSource::kPair ? token * p.sorted.top_k + packed_slot(packed) : token;
      from[i] = is_pair(packed, p.sorted.top_k)
                    ? static_cast<uint32_t>(source) * row_chunks + static_cast<uint32_t>(chunk)
                    : ~0u;
    }
    const uint8_t* column = p.input;
    int left = p.row_bytes_k - chunk * 16;
    for (int k = 0; k < p.num_k_blocks; ++k) {
      barrier_wait(&ring.empty[at.slot], at.parity);
      if (thread == 0) {
        barrier_expect(&ring.full[at.slot], Traits::kWeightStage);
        tensor_load(ring.weights + at.slot * Traits::kWeightStage, &p.weight_map,
                    k * Traits::kBlockK, tile.column * Traits::kBlockN, expert,
                    &ring.full[at.slot]);
      }
      const uint32_t to = place + static_cast<uint32_t>(at.slot * Traits::kRowStage);
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        if (i >= passes) break;
        const bool exists = from[i] != ~0u && left > 0;
        async_copy_16(to + static_cast<uint32_t>(i * kPassBytes),
                      exists ? column + static_cast<uint64_t>(from[i]) * 16 : p.input, exists);
      }
      async_copy_arrive(&ring.full[at.slot]);
      column += kGemmBlockBytes;
      left -= kGemmBlockBytes;
      at.advance();
    }
  }
}

}  // namespace switchyard::cuda::sm90
