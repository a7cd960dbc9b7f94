#pragma once
// 4-bit weights times many rows: how operands get into shared memory, and the k loop. Weight rows
// lie on wgmma's M and come from registers, where a thread converts just the codes it multiplies;
// sorted rows lie on N. Three warpgroups of 64 weight rows share the rows of a tile: while one
// converts or takes its sums out, the others keep the matrix unit busy.

#include "core/fragment_convert.h"
#include "core/grouped_tile_scheduler.h"
#include "cuda/sm90/fp4_prefill_kernels.h"
#include "cuda/sm90/grouped_gemm_params.cuh"

namespace switchyard::cuda::sm90 {

/// A kernel is compiled for one of these.
template <FragmentOrder kOrder, RowSource kRowSource, TileEnd kTileEnd, int kRows>
struct Fp4PrefillTraits {
  static constexpr bool kFp8 = kOrder == FragmentOrder::kFp8;
  static constexpr bool kGather = kRowSource != RowSource::kSorted;
  static constexpr TileEnd kEnd = kTileEnd;
  static constexpr int kTileRows = kRows;
  static constexpr int kConsumers = 3;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kTileWeightRows = kConsumers * kFragmentRows;
  /// A stage is 128 bytes of every row, and the weights of as many columns.
  static constexpr int kElementBytes = kFp8 ? 1 : 2;
  static constexpr int kBlockK = kGemmBlockBytes / kElementBytes;
  static constexpr int kStageBlocks = kBlockK / kFragmentCols;
  static constexpr int kBlockBytes = kFragmentCodeBytes + kFragmentRows * kFragmentCols / 32;
  static constexpr int kConsumerStage = kStageBlocks * kBlockBytes;
  static constexpr int kRowStage = kRows * kGemmBlockBytes;
  static constexpr int kWeightStage = kConsumers * kConsumerStage;
  /// K blocks between promotions of E4M3 sums, counted from column 0: 512 columns, as everywhere.
  static constexpr int kPromoteBlocks = 4;
  using Mma = Wgmma<kFp8 ? MmaType::kE4m3 : MmaType::kBf16, kRows>;
  using Sums = float[kRows / 2];

  /// Output of a consumer on its way, and what a tile's end needs to know (two tiles of it).
  static constexpr int kOutputBytes = 64 * 2 * kFragmentRows;
  static constexpr int kFactBytes = 4 * (3 * kRows + 2 * kTileWeightRows);
  static constexpr int kFactBuffers = 2;
  static constexpr int kTableBytes = kNumFp8Tables * 8 + 8;
  static constexpr int kMostBarriers = 2 * 12 + 2 * kFactBuffers;
  static constexpr int kFixedBytes =
      kConsumers * kOutputBytes + kFactBuffers * kFactBytes + kTableBytes + 8 * kMostBarriers;
  static constexpr int kMostStages =
      static_cast<int>((kSm90SharedBytes - kFixedBytes) / (kRowStage + kWeightStage));
  static constexpr int kStages = kMostStages < 12 ? kMostStages : 12;
  static constexpr int kWeightsAt = kStages * kRowStage;
  static constexpr int kOutputAt = kWeightsAt + kStages * kWeightStage;
  static constexpr int kFactsAt = kOutputAt + kConsumers * kOutputBytes;
  static constexpr int kTablesAt = kFactsAt + kFactBuffers * kFactBytes;
  static constexpr int kBarriersAt = kTablesAt + kTableBytes;
  static constexpr int kSharedBytes = kBarriersAt + 8 * (2 * kStages + 2 * kFactBuffers);
  static_assert(kSharedBytes <= kSm90SharedBytes && kStages >= 3);
};

/// What a tile's end needs to know; brought by the loading warpgroup, which is a tile ahead.
template <class Traits>
struct Fp4PrefillFacts {
  float row_scale[Traits::kTileRows];
  float row_weight[Traits::kTileRows];
  int32_t packed[Traits::kTileRows];
  float weight_scale[Traits::kTileWeightRows];
  float bias[Traits::kTileWeightRows];
};

template <class Traits>
struct Fp4PrefillRing {
  using Facts = Fp4PrefillFacts<Traits>;
  static_assert(sizeof(Facts) == Traits::kFactBytes);
  uint8_t* rows;
  uint8_t* weights;
  Facts* facts;
  uint64_t* full;
  uint64_t* empty;
  uint64_t* facts_full;
  uint64_t* facts_empty;

  __device__ explicit Fp4PrefillRing(uint8_t* shared)
      : rows(shared),
        weights(shared + Traits::kWeightsAt),
        facts(reinterpret_cast<Facts*>(shared + Traits::kFactsAt)),
        full(reinterpret_cast<uint64_t*>(shared + Traits::kBarriersAt)),
        empty(full + Traits::kStages),
        facts_full(empty + Traits::kStages),
        facts_empty(facts_full + Traits::kFactBuffers) {}
  __device__ void init() const {
    for (int i = 0; i < Traits::kStages; ++i) {
      barrier_init(&full[i], 4 + (Traits::kGather ? 128 : 0));  // one lane per loading warp
      barrier_init(&empty[i], 4 * Traits::kConsumers);
    }
    for (int i = 0; i < Traits::kFactBuffers; ++i) {
      barrier_init(&facts_full[i], 128);
      barrier_init(&facts_empty[i], 4 * Traits::kConsumers);
    }
    fence_barrier_init();
  }
};

__device__ __forceinline__ int64_t pair_of(const Fp4PrefillParams& p, int32_t packed) {
  return static_cast<int64_t>(packed_token(packed)) * p.sorted.top_k + packed_slot(packed);
}

/// 4 bytes without a register or a wait; zero when there is no source.
__device__ __forceinline__ void async_copy_4(void* to, const void* from, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(exists ? 4 : 0)
               : "memory");
}

template <class Traits>
__device__ __forceinline__ void fetch_facts(const Fp4PrefillParams& p,
                                            Fp4PrefillFacts<Traits>& facts, int32_t expert,
                                            int32_t first_weight_row, int first_row, int thread) {
  if (thread < Traits::kTileRows) {
    const int sorted = first_row + thread;
    async_copy_4(&facts.packed[thread], p.sorted.ids + sorted, true);
    if constexpr (Traits::kFp8) {
      const int32_t packed = __ldg(p.sorted.ids + sorted);
      const int64_t row = p.source == RowSource::kToken  ? packed_token(packed)
                          : p.source == RowSource::kPair ? pair_of(p, packed)
                                                         : sorted;
      async_copy_4(&facts.row_scale[thread], p.row_scales + row * p.row_scale_stride,
                   is_pair(packed, p.sorted.top_k));
    }
    if (p.sorted.weights != nullptr) {
      async_copy_4(&facts.row_weight[thread], p.sorted.weights + sorted, true);
    }
  }
  for (int i = thread; i < Traits::kTileWeightRows; i += 128) {
    const bool exists = first_weight_row + i < p.num_weight_rows;
    const int64_t at = static_cast<int64_t>(expert) * p.num_weight_rows + first_weight_row + i;
    async_copy_4(&facts.weight_scale[i], p.weight_row_scales + at, exists);
    if (p.bias != nullptr) async_copy_4(&facts.bias[i], p.bias + at, exists);
  }
}

/// Warps 0..2 bring a consumer's weights each: one thread issues a copy in 200-300 clocks, and a
/// stage has 768 (one thread for all four copies held the kernel at 53 % of the matrix unit).
/// Rows: by the copy engine (warp 3), or gathered 16 bytes at a time by all threads.
template <class Traits>
__device__ void load_tiles(const Fp4PrefillParams& p, const Fp4PrefillRing<Traits>& ring,
                           const GroupedTileScheduler& scheduler, int thread) {
  constexpr int kPassRows = 16;  // 128 threads bring 16 rows of 8 chunks
  constexpr int kPasses = Traits::kGather ? Traits::kTileRows / kPassRows : 1;
  const int warp = __shfl_sync(~0u, thread / 32, 0);
  const bool leads = thread % 32 == 0;
  const int chunk = thread % 8;
  const int row = thread / 8;
  const uint32_t place = static_cast<uint32_t>(row * kGemmBlockBytes + ((chunk ^ (row % 8)) << 4));
  const auto row_chunks = static_cast<uint32_t>(p.input_row_bytes / 16);
  RingPosition<Traits::kStages> at;
  at.parity = 1;  // every slot is free at first
  RingPosition<Traits::kFactBuffers> facts_at;
  facts_at.parity = 1;
  for (int64_t t = blockIdx.x; t < scheduler.num_tiles(); t += gridDim.x) {
    const GroupedTile tile = scheduler.tile(t);
    const int first_row = tile.row_block * Traits::kTileRows;
    const int row_block = tile.column * Traits::kConsumers + warp;
    const bool brings_weights = warp < Traits::kConsumers && row_block < p.num_row_blocks;
    const int32_t expert = p.sorted.experts[tile.row_block];
    const uint8_t* weights = p.weights + expert * p.expert_bytes + row_block * p.row_block_bytes;
    barrier_wait(&ring.facts_empty[facts_at.slot], facts_at.parity);
    fetch_facts<Traits>(p, ring.facts[facts_at.slot], expert, tile.column * Traits::kTileWeightRows,
                        first_row, thread);
    async_copy_arrive(&ring.facts_full[facts_at.slot]);
    facts_at.advance();
    uint32_t from[kPasses];  // in chunks of 16 bytes; all ones: no such row
    if constexpr (Traits::kGather) {
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        const int32_t packed = __ldg(p.sorted.ids + first_row + row + kPassRows * i);
        const int32_t token = packed_token(packed);
        const int32_t source =
            p.source == RowSource::kPair ? token * p.sorted.top_k + packed_slot(packed) : token;
        from[i] = is_pair(packed, p.sorted.top_k)
                      ? static_cast<uint32_t>(source) * row_chunks + static_cast<uint32_t>(chunk)
                      : ~0u;
      }
    }
    const uint8_t* column = p.input;
    int left = p.row_bytes_k - chunk * 16;
    for (int k = 0; k < p.num_k_blocks; ++k) {
      barrier_wait(&ring.empty[at.slot], at.parity);
      if (leads) {
        if (brings_weights) {
          uint8_t* to =
              ring.weights + at.slot * Traits::kWeightStage + warp * Traits::kConsumerStage;
          const uint8_t* of_stage = weights + k * Traits::kConsumerStage;
          const bool whole = (k + 1) * Traits::kStageBlocks <= p.num_col_blocks;
          barrier_expect(&ring.full[at.slot], Traits::kConsumerStage);
          bulk_load(to, of_stage, whole ? Traits::kConsumerStage : Traits::kBlockBytes,
                    &ring.full[at.slot]);
          // Past the last block rows are zeros; any finite weights will do.
          if (!whole) {
            bulk_load(to + Traits::kBlockBytes, weights, Traits::kBlockBytes, &ring.full[at.slot]);
          }
        } else if (!Traits::kGather && warp == Traits::kConsumers) {
          barrier_expect(&ring.full[at.slot], Traits::kRowStage);
          tensor_load(ring.rows + at.slot * Traits::kRowStage, &p.row_map, k * Traits::kBlockK,
                      first_row, &ring.full[at.slot]);
        } else {
          barrier_arrive(&ring.full[at.slot]);
        }
      }
      if constexpr (Traits::kGather) {
        const uint32_t to =
            shared_address(ring.rows) + static_cast<uint32_t>(at.slot * Traits::kRowStage) + place;
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
          const bool exists = from[i] != ~0u && left > 0;
          async_copy_16(to + static_cast<uint32_t>(i * kPassRows * kGemmBlockBytes),
                        exists ? column + static_cast<uint64_t>(from[i]) * 16 : p.input, exists);
        }
        async_copy_arrive(&ring.full[at.slot]);
        column += kGemmBlockBytes;
        left -= kGemmBlockBytes;
      }
      at.advance();
    }
  }
}

/// The k loop of one warpgroup: its 64 weight rows times the tile's rows.
template <class Traits>
struct Fp4PrefillConsumer {
  using Mma = typename Traits::Mma;
  using Sums = typename Traits::Sums;
  /// Operand A of two k-steps, 64 bytes of K: half a stage.
  using HalfOperand = uint32_t[2][4];

  const Fp4PrefillParams& p;
  const Fp4PrefillRing<Traits>& ring;
  const uint8_t* tables;  ///< Fp8Table by scale byte, in shared memory
  int consumer;
  int thread;  ///< of the warpgroup
  RingPosition<Traits::kStages> at{};

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

  /// This thread's codes of a stage, and the scales of its pair of rows: [row][32 columns].
  struct Raw {
    uint4 words[Traits::kStageBlocks];
    uint32_t scales[Traits::kStageBlocks];
  };
  __device__ __forceinline__ void load(Raw& raw) const {
    const uint8_t* stage =
        ring.weights + at.slot * Traits::kWeightStage + consumer * Traits::kConsumerStage;
#pragma unroll
    for (int i = 0; i < Traits::kStageBlocks; ++i) {
      const uint8_t* block = stage + i * Traits::kBlockBytes;
      raw.words[i] = *reinterpret_cast<const uint4*>(block + thread * 16);
      raw.scales[i] =
          *reinterpret_cast<const uint32_t*>(block + kFragmentCodeBytes + thread / 4 * 4);
    }
  }
  __device__ __forceinline__ Fp8Table table(uint32_t scales, int index) const {
    const uint32_t byte = permute_bytes(scales, 0, 0x4440u + static_cast<uint32_t>(index));
    const uint2 pair = *reinterpret_cast<const uint2*>(tables + byte);
    return {pair.x, pair.y};
  }
  template <int kHalf>
  __device__ __forceinline__ void convert_half(const Raw& raw, HalfOperand& a) const {
    if constexpr (Traits::kFp8) {
      const uint4& w = raw.words[kHalf];
      convert_fp8(w.x, table(raw.scales[kHalf], 0), a[0][0], a[0][2]);
      convert_fp8(w.y, table(raw.scales[kHalf], 2), a[0][1], a[0][3]);
      convert_fp8(w.z, table(raw.scales[kHalf], 1), a[1][0], a[1][2]);
      convert_fp8(w.w, table(raw.scales[kHalf], 3), a[1][1], a[1][3]);
    } else {
      const uint4& w = raw.words[0];
      const uint32_t first = mx_multiplier(raw.scales[0], kHalf);
      const uint32_t second = mx_multiplier(raw.scales[0], 2 + kHalf);
      convert_bf16(kHalf == 0 ? w.x : w.z, first, second, a[0]);
      convert_bf16(kHalf == 0 ? w.y : w.w, first, second, a[1]);
    }
  }
  __device__ __forceinline__ uint64_t rows_descriptor() const {
    return swizzled_128_descriptor(shared_address(ring.rows + at.slot * Traits::kRowStage));
  }
  __device__ __forceinline__ void multiply_half(Sums& d, const HalfOperand& a, uint64_t b,
                                                bool accumulate) const {
    pin(d);
    wgmma_fence();
    Mma::rs(d, a[0], b, accumulate);
    Mma::rs(d, a[1], b + 2, true);  // descriptors count 16 bytes
    wgmma_commit();
    pin(d);
  }

  /// Sums stay inside the matrix unit. A half is converted while the one before it is multiplied;
  /// that one's operand is free by then, and so is the stage before.
  __device__ void accumulate(Sums& sums) {
    HalfOperand low, high;
#pragma unroll 1
    for (int k = 0; k < p.num_k_blocks; ++k) {
      wait_full();
      const uint64_t b = rows_descriptor();
      Raw raw;
      load(raw);
      wgmma_wait<1>();
      convert_half<0>(raw, low);
      multiply_half(sums, low, b, k != 0);
      wgmma_wait<1>();
      if (k != 0) release(at.slot == 0 ? Traits::kStages - 1 : at.slot - 1);
      convert_half<1>(raw, high);
      multiply_half(sums, high, b + 4, true);
      at.advance();
    }
    wgmma_wait<0>();
    pin(sums);
    release(at.slot == 0 ? Traits::kStages - 1 : at.slot - 1);
  }

  /// Takes the sums out every kPromoteBlocks k blocks. The next stage's codes are fetched while
  /// this one is multiplied (5 % at 128 rows); registers allow no more.
  __device__ void accumulate_promoted(Sums& sums) {
    Sums part;
    HalfOperand low, high;
    Raw raw;
#pragma unroll
    for (int i = 0; i < Traits::kTileRows / 2; ++i) sums[i] = 0.0f;
    wait_full();
    load(raw);
    for (int left = p.num_k_blocks; left > 0; left -= Traits::kPromoteBlocks) {
#pragma unroll 1
      for (int k = 0; k < Traits::kPromoteBlocks && k < left; ++k) {
        const uint64_t b = rows_descriptor();
        const int slot = at.slot;
        convert_half<0>(raw, low);
        multiply_half(part, low, b, k != 0);
        convert_half<1>(raw, high);
        multiply_half(part, high, b + 4, true);
        at.advance();
        if (k + 1 < left) {
          wait_full();
          load(raw);
        }
        wgmma_wait<0>();
        pin(part);
        release(slot);
      }
#pragma unroll
      for (int i = 0; i < Traits::kTileRows / 2; ++i) sums[i] += part[i];
    }
  }

  __device__ void run(Sums& sums) {
    if constexpr (Traits::kFp8) {
      accumulate_promoted(sums);
    } else {
      accumulate(sums);
    }
  }
};

}  // namespace switchyard::cuda::sm90
