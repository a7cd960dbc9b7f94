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
  TileTicket* tickets;
  uint64_t* full;
  uint64_t* empty;
  uint64_t* margin_full;
  uint64_t* margin_empty;

  __device__ explicit GroupedGemmRing(uint8_t* shared)
      : rows(shared + Traits::kShared.rows),
        weights(shared + Traits::kShared.weights),
        margins(reinterpret_cast<Margin*>(shared + Traits::kShared.margins)),
        tickets(reinterpret_cast<TileTicket*>(shared + Traits::kShared.tickets)),
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

/// How many groups of kRows rows of a tile hold pairs: those rows come first, and a group without
/// any is neither loaded nor computed.
template <class Traits, int kRows>
__device__ __forceinline__ int num_used_groups(const GroupedGemmParams& p, int64_t first_row) {
  int groups = 1;
#pragma unroll
  for (int g = 1; g < Traits::kBlockM / kRows; ++g) {
    if (is_pair(p.sorted.ids[first_row + g * kRows], p.sorted.top_k)) groups = g + 1;
  }
  return groups;
}

/// Of gathered rows.
__device__ __forceinline__ int32_t source_row(const GroupedGemmParams& p, int32_t packed) {
  const int32_t token = packed_token(packed);
  return p.source == RowSource::kPair ? token * p.sorted.top_k + packed_slot(packed) : token;
}

__device__ __forceinline__ void copy_scales(float (&to)[kMarginScales],
                                            const float (&from)[kMarginScales]) {
  static_assert(kMarginScales == 4);
  *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from);
}
/// Those of 128 weight rows, per k block; null: there are none.
__device__ __forceinline__ const float2* weight_scales(const GroupedGemmParams& p, int32_t expert,
                                                       int32_t column) {
  const int32_t columns = ceil_div(p.num_weight_rows, 128);
  if (p.block_scales == nullptr || column >= columns) return nullptr;
  return reinterpret_cast<const float2*>(p.block_scales) +
         (int64_t{expert} * columns + column) * p.num_k_blocks;
}

/// By kMarginThreads threads. `before`: the margin of a tile of the same rows, or null.
template <class Traits>
__device__ void fill_margin(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                            const TileTicket& tile, int slot, const TileMargin<Traits>* before,
                            int thread) {
  constexpr int kThreads = GroupedGemmRing<Traits>::kMarginThreads;
  TileMargin<Traits>& margin = ring.margins[slot];
  const int32_t first_row = tile.row_block * Traits::kBlockM;
#pragma unroll
  for (int i = 0; i < ceil_div(Traits::kBlockM, kThreads); ++i) {
    const int r = thread + i * kThreads;
    if (r >= Traits::kBlockM) break;
    if (before != nullptr) {  // this thread wrote it
      margin.output_row[r] = before->output_row[r];
      margin.scale[r] = before->scale[r];
      margin.weight[r] = before->weight[r];
      if constexpr (Traits::kScaling == Scaling::kBlock) {
        copy_scales(margin.block_scale[r], before->block_scale[r]);
      }
      continue;
    }
    const int32_t packed = p.sorted.ids[first_row + r];
    const bool used = is_pair(packed, p.sorted.top_k);
    const int32_t pair = packed_token(packed) * p.sorted.top_k + packed_slot(packed);
    margin.output_row[r] = !used ? -1 : p.output_per_pair ? pair : first_row + r;
    // Rows that stay sorted need not wait for their id.
    const int32_t source = Traits::kGather ? (used ? source_row(p, packed) : 0) : first_row + r;
    if constexpr (Traits::kScaling == Scaling::kOuter) {
      margin.scale[r] = p.row_scales[static_cast<int64_t>(source) * p.row_scale_stride];
    } else if constexpr (Traits::kScaling == Scaling::kBlock) {
      margin.scale[r] = __int_as_float(source);
      const float* scales = p.row_scales + int64_t{source} * p.row_scale_stride;
#pragma unroll
      for (int k = 0; k < kMarginScales; ++k) {
        margin.block_scale[r][k] = k < p.num_k_blocks ? scales[k * p.row_scale_step] : 0.0f;
      }
    }
    margin.weight[r] = p.sorted.weights == nullptr ? 1.0f : p.sorted.weights[first_row + r];
  }
  const int64_t first_column =
      int64_t{tile.expert} * p.num_weight_rows + tile.column * Traits::kBlockN;
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
  if constexpr (Traits::kScaling == Scaling::kBlock) {
    constexpr int kScales = Traits::kBlockN / 128 * kMarginScales;
    static_assert(kScales <= kThreads);
    if (thread < kScales) {
      const float2* scales = weight_scales(
          p, tile.expert, tile.column * (Traits::kBlockN / 128) + thread / kMarginScales);
      const int k = thread % kMarginScales;
      margin.weight_scale[thread / kMarginScales][k] =
          scales != nullptr && k < p.num_k_blocks ? scales[k] : float2{1.0f, 1.0f};
    }
  }
  barrier_arrive(&ring.margin_full[slot]);
}

/// Hands the CTA its tiles, in order of the whole grid: one with light tiles takes more of them,
/// and tiles that run together stay neighbours, so that the L2 serves them all. Where K is short it
/// takes several columns of a row block at a time.
template <class Traits>
class TileSource {
 public:
  __device__ TileSource(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring, int thread)
      : p_(p),
        ring_(ring),
        thread_(thread),
        num_columns_(ceil_div(p.num_weight_rows, Traits::kBlockN)),
        units_{p.sorted.num_valid[0] / Traits::kBlockM, ceil_div(num_columns_, p.unit_columns)},
        first_(blockIdx.x) {
    at_.parity = 1;  // every slot is free at first
  }
  /// The next tile, for all 128 threads together.
  __device__ TileTicket next() {
    __syncwarp();
    if (thread_ == 0) {
      barrier_wait(&ring_.margin_empty[at_.slot], at_.parity);
      ring_.tickets[at_.slot] = take();
    }
    __syncwarp();
    constexpr int kBarrier = 1;
    named_barrier(kBarrier, 128);
    const TileTicket ticket = ring_.tickets[at_.slot];
    slot_ = at_.slot;
    at_.advance();
    return ticket;
  }
  /// Of the margin that belongs to the tile.
  __device__ int slot() const { return slot_; }

 private:
  __device__ TileTicket take() {
    ++ticket_.column;
    while (left_ == 0) {
      const uint32_t unit = first_ + counted_;
      if (unit >= units_.num_tiles()) return {.row_block = -1};
      first_ = gridDim.x;
      counted_ = atomicAdd(p_.tile_counter, 1u);  // used a unit later: its latency does not show
      const GroupedTile tile = units_.tile(unit);
      const int32_t block = tile.row_block / p_.tiles_per_block;
      // Low tiles of a tall block may hold no pair.
      const bool used =
          p_.tiles_per_block == 1 ||
          is_pair(p_.sorted.ids[int64_t{tile.row_block} * Traits::kBlockM], p_.sorted.top_k);
      if (!used) continue;
      ticket_ = {tile.row_block, tile.column * p_.unit_columns, p_.sorted.experts[block]};
      left_ = min(p_.unit_columns, num_columns_ - ticket_.column);
    }
    --left_;
    return ticket_;
  }

  const GroupedGemmParams& p_;
  const GroupedGemmRing<Traits>& ring_;
  int thread_;
  int32_t num_columns_;
  GroupedTileScheduler units_;
  // Of thread 0: the next unit is their sum. The first is the CTA's own, the rest are counted.
  uint32_t first_, counted_ = 0;
  TileTicket ticket_{};
  int32_t left_ = 0;  ///< columns of the unit after it
  RingPosition<kMargins> at_;
  int slot_ = 0;
};

template <class Traits>
__device__ void load_weights(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                             const TileTicket& tile, int k, int slot) {
  tensor_load(ring.weights + slot * Traits::kWeightStage, &p.weight_map, k * Traits::kBlockK,
              tile.column * Traits::kBlockN, tile.expert, &ring.full[slot]);
}

/// By one thread. `waves`: of rows to load, 0 where the ring's slots still hold them.
template <class Traits>
__device__ void load_tile(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                          const TileTicket& tile, int waves, RingPosition<Traits::kStages>& at) {
  constexpr int kWaveBytes = kGemmWaveRows * kGemmBlockBytes;
  const int first_row = tile.row_block * Traits::kBlockM;
  const auto bytes = static_cast<uint32_t>(Traits::kWeightStage + waves * kWaveBytes);
  for (int k = 0; k < p.num_k_blocks; ++k) {
    barrier_wait(&ring.empty[at.slot], at.parity);
    barrier_expect(&ring.full[at.slot], bytes);
    load_weights(p, ring, tile, k, at.slot);
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
                            const TileTicket& tile, int margin_slot, int thread,
                            RingPosition<Traits::kStages>& at) {
  constexpr int kPassRows = 16;
  constexpr int kPasses = Traits::kBlockM / kPassRows;
  constexpr int kWavePasses = kGemmWaveRows / kPassRows;
  constexpr int kPassBytes = kPassRows * kGemmBlockBytes;
  const int chunk = thread % 8;
  const int row = thread / 8;
  // Rows 16 apart have the same swizzle.
  const uint32_t place = shared_address(ring.rows) +
                         static_cast<uint32_t>(row * kGemmBlockBytes + ((chunk ^ (row % 8)) << 4));
  const auto row_chunks = static_cast<uint32_t>(p.input_row_bytes / 16);
  const int64_t first_row = static_cast<int64_t>(tile.row_block) * Traits::kBlockM;
  const int passes = num_used_groups<Traits, kPassRows>(p, first_row);
  // Where there is no pair any row will do, as its sums are never stored: but one of the tile's
  // own. All tiles reading the same row cost half of the time (R1 TP8, 8 rows per expert).
  const int32_t some = p.sorted.ids[first_row];
  uint32_t from[kPasses];  // in chunks of 16 bytes
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const int32_t packed = p.sorted.ids[first_row + row + kPassRows * i];
    const int32_t source = source_row(p, is_pair(packed, p.sorted.top_k) ? packed : some);
    from[i] = static_cast<uint32_t>(source) * row_chunks + static_cast<uint32_t>(chunk);
  }
  fill_margin<Traits>(p, ring, tile, margin_slot, nullptr, thread);
  const uint8_t* column = p.input;
  for (int k = 0; k < p.num_k_blocks; ++k) {
    barrier_wait(&ring.empty[at.slot], at.parity);
    if (thread == 0) {
      barrier_expect(&ring.full[at.slot], Traits::kWeightStage);
      load_weights(p, ring, tile, k, at.slot);
    }
    const uint32_t to = place + static_cast<uint32_t>(at.slot * Traits::kRowStage);
    // Past the end of K there are zeros: the next row's numbers could be NaN.
    const bool exists = k * kGemmBlockBytes + chunk * 16 < p.row_bytes_k;
    const auto copy_wave = [&](int w, int count) {
      // Addresses first: one register pair for all would make every copy wait for the last.
      const uint8_t* source[kWavePasses];
#pragma unroll
      for (int i = 0; i < kWavePasses; ++i) {
        source[i] = column + static_cast<uint64_t>(from[w * kWavePasses + i]) * 16;
      }
#pragma unroll
      for (int i = 0; i < kWavePasses; ++i) {
        if (i >= count) break;
        async_copy_16(to + static_cast<uint32_t>((w * kWavePasses + i) * kPassBytes), source[i],
                      exists);
      }
    };
#pragma unroll
    for (int w = 0; w < Traits::kWaves; ++w) {
      const int left = passes - w * kWavePasses;
      if (left <= 0) break;
      if (left >= kWavePasses) {  // a predicate per copy would cost 4 %
        copy_wave(w, kWavePasses);
      } else {
        copy_wave(w, left);
      }
    }
    async_copy_arrive(&ring.full[at.slot]);
    column += kGemmBlockBytes;
    at.advance();
  }
}

template <class Traits>
__device__ void produce_tiles(const GroupedGemmParams& p, const GroupedGemmRing<Traits>& ring,
                              int thread) {
  constexpr int kFirstMarginThread = 128 - GroupedGemmRing<Traits>::kMarginThreads;
  TileSource<Traits> source(p, ring, thread);
  RingPosition<Traits::kStages> at;
  at.parity = 1;
  int32_t row_block = -1;
  const TileMargin<Traits>* before = nullptr;
  int waves = 0;
  int tiles = 0;  // of this row block so far
  // Where K's blocks divide the ring's slots, a row block's later tiles find their rows in them.
  const bool rows_stay = Traits::kStages % p.num_k_blocks == 0;
  for (TileTicket tile = source.next(); tile.row_block >= 0; tile = source.next()) {
    // Of all tiles of a row block only the first waits for memory.
    const bool same_rows = tile.row_block == row_block;
    row_block = tile.row_block;
    if constexpr (Traits::kGather) {
      gather_tile(p, ring, tile, source.slot(), thread, at);
    } else {
      if (thread == 0) {
        if (!same_rows) {
          waves = num_used_groups<Traits, kGemmWaveRows>(p, int64_t{row_block} * Traits::kBlockM);
          tiles = 0;
        }
        const bool rows_lie = rows_stay && tiles++ * p.num_k_blocks >= Traits::kStages;
        load_tile(p, ring, tile, rows_lie ? 0 : waves, at);
      }
      if (thread >= kFirstMarginThread) {
        fill_margin(p, ring, tile, source.slot(), same_rows ? before : nullptr,
                    thread - kFirstMarginThread);
      }
      before = &ring.margins[source.slot()];
    }
  }
  if (thread >= kFirstMarginThread) barrier_arrive(&ring.margin_full[source.slot()]);
}

}  // namespace switchyard::cuda::sm90
