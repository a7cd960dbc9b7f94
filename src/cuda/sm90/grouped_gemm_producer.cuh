#pragma once
// The loading warpgroup: weights by the copy engine, rows by the copy engine or, where they are
// gathered through the sorted ids, 16 bytes at a time by all its threads.

#include "cuda/sm90/grouped_gemm_params.cuh"

namespace switchyard::cuda::sm90 {

template <class Traits>
struct GroupedGemmRing {
  using Margin = TileMargin<Traits>;
  static_assert(sizeof(Margin) == margin_words(Traits::kConfig) * sizeof(float));
  /// Threads that fill a margin: all that gather, or the warps that the copy engine leaves idle.
  static constexpr int kMarginThreads = Traits::kGather ? 128 : 96;

  uint8_t* rows;
  uint8_t* weights;
  Margin* margins;
  uint64_t* full;
  uint64_t* empty;
  uint64_t* margin_full;
  uint64_t* margin_empty;

  __device__ explicit GroupedGemmRing(uint8_t* shared)
      : rows(shared + Traits::kShared.rows),
        weights(shared + Traits::kShared.weights),
        margins(reinterpret_cast<Margin*>(shared + Traits::kShared.margins)),
        full(reinterpret_cast<uint64_t*>(shared + Traits::kShared.full)),
        empty(reinterpret_cast<uint64_t*>(shared + Traits::kShared.empty)),
        margin_full(reinterpret_cast<uint64_t*>(shared + Traits::kShared.margin_full)),
        margin_empty(reinterpret_cast<uint64_t*>(shared + Traits::kShared.margin_empty)) {}
  __device__ void init() const {
    constexpr int kWarps = 4 * Traits::kConsumers;  // one lane of each releases
    for (int i = 0; i < Traits::kStages; ++i) {
      // The thread that announces the copy engine's bytes, and every gathering thread.
      barrier_init(&full[i], Traits::kGather ? 1 + 128 : 1);
      barrier_init(&empty[i], kWarps);
    }
    for (int i = 0; i < kMargins; ++i) {
      barrier_init(&margin_full[i], kMarginThreads);
      barrier_init(&margin_empty[i], kWarps);
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

__device__ __forceinline__ int32_t source_row(const GroupedGemmParams& p, int32_t packed,
                                              int32_t sorted_row) {
  const int32_t token = packed_token(packed);
  switch (p.source) {
    case RowSource::kToken: return token;
    case RowSource::kPair: return token * p.sorted.top_k + packed_slot(packed);
    default: return sorted_row;
  }
}

/// By kMarginThreads threads.
template <class Traits>
__device__ void fill_margin(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                            const GroupedTile& tile, int32_t expert,
                            const RingPosition<kMargins>& at, int thread) {
  constexpr int kThreads = GroupedGemmRing<Traits>::kMarginThreads;
  TileMargin<Traits>& margin = ring.margins[at.slot];
  const int32_t first_row = tile.row_block * Traits::kBlockM;
  barrier_wait(&ring.margin_empty[at.slot], at.parity);
#pragma unroll
  for (int i = 0; i < ceil_div(Traits::kBlockM, kThreads); ++i) {
    const int r = thread + i * kThreads;
    if (r >= Traits::kBlockM) break;
    const int32_t packed = p.sorted.ids[first_row + r];
    const bool used = is_pair(packed, p.sorted.top_k);
    const int32_t pair = packed_token(packed) * p.sorted.top_k + packed_slot(packed);
    margin.output_row[r] = !used ? -1 : p.output_per_pair ? pair : first_row + r;
    const int32_t source = used ? source_row(p, packed, first_row + r) : 0;
    if constexpr (Traits::kScaling == Scaling::kOuter) {
      margin.scale[r] = p.row_scales[static_cast<int64_t>(source) * p.row_scale_stride];
    } else if constexpr (Traits::kScaling == Scaling::kBlock) {
      margin.scale[r] = __int_as_float(source);
    }
    margin.weight[r] = p.sorted.weights == nullptr ? 1.0f : p.sorted.weights[first_row + r];
  }
  const int64_t first_column =
      static_cast<int64_t>(expert) * p.num_weight_rows + tile.column * Traits::kBlockN;
#pragma unroll
  for (int i = 0; i < ceil_div(Traits::kBlockN, kThreads); ++i) {
    const int c = thread + i * kThreads;
    if (c >= Traits::kBlockN) break;
    const bool inside = tile.column * Traits::kBlockN + c < p.num_weight_rows;
    if (p.channel_scales != nullptr) {
      margin.channel_scale[c] = inside ? p.channel_scales[first_column + c] : 0.0f;
    }
    if (p.bias != nullptr) margin.bias[c] = inside ? p.bias[first_column + c] : 0.0f;
  }
  barrier_arrive(&ring.margin_full[at.slot]);
}

template <class Traits>
__device__ void fill_margins(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                             const GroupedTileScheduler& scheduler, int thread) {
  RingPosition<kMargins> at;
  at.parity = 1;
  for (int64_t t = blockIdx.x; t < scheduler.num_tiles(); t += gridDim.x) {
    const GroupedTile tile = scheduler.tile(t);
    fill_margin(p, ring, tile, p.sorted.experts[tile.row_block], at, thread);
    at.advance();
  }
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
  constexpr int kWavePasses = kGemmWaveRows / 16;
  constexpr int kPassBytes = 16 * kGemmBlockBytes;
  const int chunk = thread % 8;
  const int row = thread / 8;
  // Rows 16 apart have the same swizzle.
  const uint32_t place = shared_address(ring.rows) +
                         static_cast<uint32_t>(row * kGemmBlockBytes + ((chunk ^ (row % 8)) << 4));
  const auto row_chunks = static_cast<uint32_t>(p.input_row_bytes / 16);
  RingPosition<Traits::kStages> at;
  RingPosition<kMargins> margin_at;
  at.parity = margin_at.parity = 1;
  for (int64_t t = blockIdx.x; t < scheduler.num_tiles(); t += gridDim.x) {
    const GroupedTile tile = scheduler.tile(t);
    const int32_t expert = p.sorted.experts[tile.row_block];
    const int64_t first_row = static_cast<int64_t>(tile.row_block) * Traits::kBlockM;
    const int waves = num_waves<Traits>(p, first_row);
    uint32_t from[kPasses];  // in chunks of 16 bytes
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      // Where there is no pair any row will do: its sums are never stored.
      const int32_t packed = p.sorted.ids[first_row + row + 16 * i];
      const int32_t source = is_pair(packed, p.sorted.top_k) ? source_row(p, packed, 0) : 0;
      from[i] = static_cast<uint32_t>(source) * row_chunks + static_cast<uint32_t>(chunk);
    }
    fill_margin(p, ring, tile, expert, margin_at, thread);
    margin_at.advance();
    const uint8_t* column = p.input;
    for (int k = 0; k < p.num_k_blocks; ++k) {
      barrier_wait(&ring.empty[at.slot], at.parity);
      if (thread == 0) {
        barrier_expect(&ring.full[at.slot], Traits::kWeightStage);
        tensor_load(ring.weights + at.slot * Traits::kWeightStage, &p.weight_map,
                    k * Traits::kBlockK, tile.column * Traits::kBlockN, expert,
                    &ring.full[at.slot]);
      }
      const uint32_t to = place + static_cast<uint32_t>(at.slot * Traits::kRowStage);
      // Past the end of K there are zeros: the next row's numbers could be NaN.
      const bool exists = k * kGemmBlockBytes + chunk * 16 < p.row_bytes_k;
#pragma unroll
      for (int w = 0; w < Traits::kConsumers; ++w) {
        if (w >= waves) break;
        // Addresses first: one register pair for all would make every copy wait for the last.
        const uint8_t* source[kWavePasses];
#pragma unroll
        for (int i = 0; i < kWavePasses; ++i) {
          source[i] = column + static_cast<uint64_t>(from[w * kWavePasses + i]) * 16;
        }
#pragma unroll
        for (int i = 0; i < kWavePasses; ++i) {
          async_copy_16(to + static_cast<uint32_t>((w * kWavePasses + i) * kPassBytes), source[i],
                        exists);
        }
      }
      async_copy_arrive(&ring.full[at.slot]);
      column += kGemmBlockBytes;
      at.advance();
    }
  }
}

}  // namespace switchyard::cuda::sm90
