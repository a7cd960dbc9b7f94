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
  GroupedTile* tiles;  ///< row_block < 0: no more
  uint64_t* full;
  uint64_t* empty;
  uint64_t* margin_full;
  uint64_t* margin_empty;

  __device__ explicit GroupedGemmRing(uint8_t* shared)
      : rows(shared + Traits::kShared.rows),
        weights(shared + Traits::kShared.weights),
        margins(reinterpret_cast<Margin*>(shared + Traits::kShared.margins)),
        tiles(reinterpret_cast<GroupedTile*>(shared + Traits::kShared.tiles)),
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
                            const GroupedTile& tile, int32_t expert, int slot, int thread) {
  constexpr int kThreads = GroupedGemmRing<Traits>::kMarginThreads;
  TileMargin<Traits>& margin = ring.margins[slot];
  const int32_t first_row = tile.row_block * Traits::kBlockM;
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
  barrier_arrive(&ring.margin_full[slot]);
}

/// Hands the CTA its tiles, in order of the whole grid: one with light tiles takes more of them,
/// and tiles that run together stay neighbours, so that the L2 serves them all.
template <class Traits>
class TileSource {
 public:
  __device__ TileSource(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                        const GroupedTileScheduler& scheduler, int thread)
      : p_(p), ring_(ring), scheduler_(scheduler), thread_(thread), first_(blockIdx.x) {
    at_.parity = 1;  // every slot is free at first
  }
  /// The next tile; row_block < 0: no more. For all 128 threads together.
  __device__ GroupedTile next() {
    __syncwarp();
    if (thread_ == 0) {
      barrier_wait(&ring_.margin_empty[at_.slot], at_.parity);
      const uint32_t tile = first_ + counted_;
      ring_.tiles[at_.slot] =
          tile < scheduler_.num_tiles() ? scheduler_.tile(tile) : GroupedTile{-1, 0};
      first_ = gridDim.x;
      counted_ = atomicAdd(p_.tile_counter, 1u);  // used a tile later: its latency does not show
    }
    __syncwarp();
    constexpr int kBarrier = 1;
    named_barrier(kBarrier, 128);
    const GroupedTile tile = ring_.tiles[at_.slot];
    slot_ = at_.slot;
    at_.advance();
    return tile;
  }
  /// Of the margin that belongs to the tile.
  __device__ int slot() const { return slot_; }

 private:
  const GroupedGemmParams& p_;
  const GroupedGemmRing<Traits>& ring_;
  const GroupedTileScheduler& scheduler_;
  int thread_;
  // Of thread 0: the next tile is their sum. The first is the CTA's own, the rest are counted.
  uint32_t first_, counted_ = 0;
  RingPosition<kMargins> at_;
  int slot_ = 0;
};

template <class Traits>
__device__ void load_weights(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                             const GroupedTile& tile, int32_t expert, int k, int slot) {
  tensor_load(ring.weights + slot * Traits::kWeightStage, &p.weight_map, k * Traits::kBlockK,
              tile.column * Traits::kBlockN, expert, &ring.full[slot]);
}

/// By one thread.
template <class Traits>
__device__ void load_tile(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                          const GroupedTile& tile, int32_t expert,
                          RingPosition<Traits::kStages>& at) {
  constexpr int kWaveBytes = kGemmWaveRows * kGemmBlockBytes;
  const int first_row = tile.row_block * Traits::kBlockM;
  const int waves = num_waves<Traits>(p, first_row);
  const auto bytes = static_cast<uint32_t>(Traits::kWeightStage + waves * kWaveBytes);
  for (int k = 0; k < p.num_k_blocks; ++k) {
    barrier_wait(&ring.empty[at.slot], at.parity);
    barrier_expect(&ring.full[at.slot], bytes);
    load_weights(p, ring, tile, expert, k, at.slot);
    for (int w = 0; w < waves; ++w) {
      tensor_load(ring.rows + at.slot * Traits::kRowStage + w * kWaveBytes, &p.row_map,
                  k * Traits::kBlockK, first_row + w * kGemmWaveRows, &ring.full[at.slot]);
    }
    at.advance();
  }
}

/// By 128 threads: 16 rows of 8 chunks at a time.
template <class Traits>
__device__ void gather_tile(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                            const GroupedTile& tile, int32_t expert, int margin_slot, int thread,
                            RingPosition<Traits::kStages>& at) {
  constexpr int kPasses = Traits::kBlockM / 16;
  constexpr int kWavePasses = kGemmWaveRows / 16;
  constexpr int kPassBytes = 16 * kGemmBlockBytes;
  const int chunk = thread % 8;
  const int row = thread / 8;
  // Rows 16 apart have the same swizzle.
  const uint32_t place = shared_address(ring.rows) +
                         static_cast<uint32_t>(row * kGemmBlockBytes + ((chunk ^ (row % 8)) << 4));
  const auto row_chunks = static_cast<uint32_t>(p.input_row_bytes / 16);
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
  fill_margin(p, ring, tile, expert, margin_slot, thread);
  const uint8_t* column = p.input;
  for (int k = 0; k < p.num_k_blocks; ++k) {
    barrier_wait(&ring.empty[at.slot], at.parity);
    if (thread == 0) {
      barrier_expect(&ring.full[at.slot], Traits::kWeightStage);
      load_weights(p, ring, tile, expert, k, at.slot);
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

template <class Traits>
__device__ void produce_tiles(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                              const GroupedTileScheduler& scheduler, int thread) {
  constexpr int kFirstMarginThread = 128 - GroupedGemmRing<Traits>::kMarginThreads;
  TileSource<Traits> source(p, ring, scheduler, thread);
  RingPosition<Traits::kStages> at;
  at.parity = 1;
  for (GroupedTile tile = source.next(); tile.row_block >= 0; tile = source.next()) {
    const int32_t expert = p.sorted.experts[tile.row_block];
    if constexpr (Traits::kGather) {
      gather_tile(p, ring, tile, expert, source.slot(), thread, at);
    } else {
      if (thread == 0) load_tile(p, ring, tile, expert, at);
      if (thread >= kFirstMarginThread) {
        fill_margin(p, ring, tile, expert, source.slot(), thread - kFirstMarginThread);
      }
    }
  }
  if (thread >= kFirstMarginThread) barrier_arrive(&ring.margin_full[source.slot()]);
}

}  // namespace switchyard::cuda::sm90
