#pragma once
// 4-bit weights times many rows: which tile comes next, and how its operands and whatever its end
// needs get into shared memory. By one warpgroup.

#include <algorithm>

#include "core/fp4_prefill_tiles.h"
#include "core/fragment_convert.h"
#include "core/grouped_tile_scheduler.h"
#include "cuda/sm90/fp4_prefill_kernels.h"
#include "cuda/sm90/fragment_operand.cuh"
#include "cuda/sm90/grouped_gemm_params.cuh"

namespace switchyard::cuda::sm90 {

/// A kernel is compiled for one of these. kScaledRows: E4M3 rows have a scale per 128 columns.
template <class FragmentOperand, bool kScaledRows, RowSource kRowSource, TileEnd kTileEnd,
          int kRows>
struct Fp4PrefillTraits {
  using Operand = FragmentOperand;
  static constexpr bool kRowScales = kScaledRows;
  static constexpr bool kGather = kRowSource != RowSource::kSorted;
  static constexpr TileEnd kEnd = kTileEnd;
  static constexpr int kTileRows = kRows;
  static constexpr int kRowStep = fp4_prefill_cost::row_step(kRows);
  static_assert(kRows % kRowStep == 0);
  /// As many as registers allow: the fewer rows, the longer a consumer waits beside its products.
  static constexpr int kConsumers = kRows <= fp4_prefill_cost::kLowRows ? 4 : 3;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  /// Of the 64 K that threads share alike at first, in eights.
  static constexpr int kProducerRegisters = 32;
  static constexpr int kConsumerRegisters =
      (65536 / kThreads / 8 * 8 * (kConsumers + 1) - kProducerRegisters) / kConsumers / 8 * 8;
  static constexpr int kTileWeightRows = kConsumers * kFragmentRows;
  /// A stage is 128 bytes of every row, and the weights of as many columns.
  static constexpr int kElementBytes = Operand::kBytes ? 1 : 2;
  static constexpr int kBlockK = kGemmBlockBytes / kElementBytes;
  static constexpr int kStageBlocks = kBlockK / kFragmentCols;
  static constexpr int kBlockBytes = Operand::kBlockBytes;
  static constexpr int kConsumerStage = kStageBlocks * kBlockBytes;
  static constexpr int kRowStage = kRows * kGemmBlockBytes;
  static constexpr int kWeightStage = kConsumers * kConsumerStage;
  static constexpr int kScaleStage = kRowScales ? kRows * 4 : 0;
  /// K blocks between promotions of E4M3 sums, counted from column 0: 512 columns, as everywhere,
  /// or 128 where a scale ends.
  static constexpr int kPromoteBlocks = kRowScales ? 1 : 4;
  using Sums = float[kRows / 2];
  /// E4M3 has two sets of sums, of which registers hold so many: a thread's last ones wait in
  /// shared memory, where they are needed once in kPromoteBlocks.
  static constexpr int kRegisterSums = kConsumers == 4 ? 64 : 128;
  static constexpr int kHeldSums =
      Operand::kBytes && !Operand::kScalesSums && kRows > kRegisterSums ? kRows - kRegisterSums : 0;

  /// Output of a consumer on its way, or the sums that it holds; and what a tile's end needs to
  /// know.
  static constexpr int kOutputBytes =
      std::max({64 * 2 * kFragmentRows, kRows* kFragmentRows, kHeldSums * 4 * 128});
  static constexpr int kFactBytes = 16 + 16 * kRows + 8 * kTileWeightRows;
  static constexpr int kFactBuffers = 4;  ///< with two k blocks a tile, the ring spans three tiles
  static constexpr int kTableBytes =
      Operand::kScaleTables ? Nvfp4Tables::kCount * 8 : kNumFp8Tables * 8 + 8;
  static constexpr int kMostBarriers = 2 * 12 + 2 * kFactBuffers;
  static constexpr int kFixedBytes =
      kConsumers * kOutputBytes + kFactBuffers * kFactBytes + kTableBytes + 8 * kMostBarriers;
  static constexpr int kMostStages =
      static_cast<int>((kSm90SharedBytes - kFixedBytes) / (kRowStage + kWeightStage + kScaleStage));
  static constexpr int kStages = kMostStages < 12 ? kMostStages : 12;
  static constexpr int kWeightsAt = kStages * kRowStage;
  static constexpr int kScalesAt = kWeightsAt + kStages * kWeightStage;
  static constexpr int kOutputAt = kScalesAt + kStages * kScaleStage;
  static constexpr int kFactsAt = kOutputAt + kConsumers * kOutputBytes;
  static constexpr int kTablesAt = kFactsAt + kFactBuffers * kFactBytes;
  static constexpr int kBarriersAt = kTablesAt + kTableBytes;
  static constexpr int kSharedBytes = kBarriersAt + 8 * (2 * kStages + 2 * kFactBuffers);
  static_assert(kSharedBytes <= kSm90SharedBytes && kStages >= 3);
};

/// A tile as the loading warpgroup hands it on.
struct alignas(16) Fp4PrefillTicket {
  int32_t row_block;  ///< < 0: no more
  int32_t column;
  int32_t expert;
  int32_t rows;  ///< that may be pairs, from the first on
};

/// What a tile's end needs to know; brought by the loading warpgroup, which is tiles ahead.
template <class Traits>
struct Fp4PrefillFacts {
  Fp4PrefillTicket ticket;
  uint16_t* output[Traits::kTileRows];  ///< of the row; null: no such row
  float factor[Traits::kTileRows];      ///< of the row's sums, before the bias
  float after[Traits::kTileRows];       ///< and after it, where there is one
  float weight_scale[Traits::kTileWeightRows];
  float bias[Traits::kTileWeightRows];
};

template <class Traits>
struct Fp4PrefillRing {
  using Facts = Fp4PrefillFacts<Traits>;
  static_assert(sizeof(Facts) == Traits::kFactBytes);
  uint8_t* rows;
  uint8_t* weights;
  float* scales;  ///< kRowScales
  Facts* facts;
  uint64_t* full;
  uint64_t* empty;
  uint64_t* facts_full;
  uint64_t* facts_empty;

  __device__ explicit Fp4PrefillRing(uint8_t* shared)
      : rows(shared),
        weights(shared + Traits::kWeightsAt),
        scales(reinterpret_cast<float*>(shared + Traits::kScalesAt)),
        facts(reinterpret_cast<Facts*>(shared + Traits::kFactsAt)),
        full(reinterpret_cast<uint64_t*>(shared + Traits::kBarriersAt)),
        empty(full + Traits::kStages),
        facts_full(empty + Traits::kStages),
        facts_empty(facts_full + Traits::kFactBuffers) {}
  __device__ void init() const {
    for (int i = 0; i < Traits::kStages; ++i) {
      // One lane per loading warp; the copies of every thread.
      barrier_init(&full[i], 4 + (Traits::kGather || Traits::kRowScales ? 128 : 0));
      barrier_init(&empty[i], 4 * Traits::kConsumers);
    }
    for (int i = 0; i < Traits::kFactBuffers; ++i) {
      barrier_init(&facts_full[i], 2 * 128);  // every thread's stores, and its copies
      barrier_init(&facts_empty[i], 4 * Traits::kConsumers);
    }
    fence_barrier_init();
  }
};

/// Hands the CTA its tiles, in order of the whole grid, so that tiles that run together share
/// operands in the L2. Where K is short it takes several columns of a row block at a time.
template <class Traits>
class Fp4PrefillTiles {
 public:
  __device__ Fp4PrefillTiles(const Fp4PrefillParams& p, const Fp4PrefillRing<Traits>& ring)
      : p_(p), ring_(ring), unit_(blockIdx.x) {
    at_.parity = 1;  // every buffer is free at first
  }
  /// The next tile, for all 128 threads together.
  __device__ Fp4PrefillTicket next(int thread) {
    if (thread == 0) {
      barrier_wait(&ring_.facts_empty[at_.slot], at_.parity);
      const int before = (at_.slot + Traits::kFactBuffers - 1) % Traits::kFactBuffers;
      ring_.facts[at_.slot].ticket = left_ > 0 ? next_column(ring_.facts[before].ticket) : take();
    }
    constexpr int kBarrier = 1 + Traits::kConsumers;
    named_barrier(kBarrier, 128);
    slot_ = at_.slot;
    at_.advance();
    return ring_.facts[slot_].ticket;
  }
  /// Of the facts that belong to the tile.
  __device__ int slot() const { return slot_; }

 private:
  __device__ Fp4PrefillTicket next_column(Fp4PrefillTicket ticket) {
    --left_;
    ++ticket.column;
    return ticket;
  }
  __device__ Fp4PrefillTicket take() {
    const int32_t columns = ceil_div(p_.num_row_blocks, Traits::kConsumers);
    const GroupedTileScheduler units{p_.sorted.num_valid[0] / Traits::kTileRows,
                                     ceil_div(columns, p_.unit_columns)};
    if (unit_ >= units.num_tiles()) return {.row_block = -1};
    const GroupedTile tile = units.tile(unit_);
    unit_ = gridDim.x + atomicAdd(p_.tile_counter, 1u);  // used a unit later
    const int32_t column = tile.column * p_.unit_columns;
    left_ = min(p_.unit_columns, columns - column) - 1;
    const int32_t* ids = p_.sorted.ids + tile.row_block * Traits::kTileRows;
    int32_t rows = Traits::kRowStep;
#pragma unroll
    for (int r = Traits::kRowStep; r < Traits::kTileRows; r += Traits::kRowStep) {
      if (is_pair(__ldg(ids + r), p_.sorted.top_k)) rows = r + Traits::kRowStep;
    }
    return {tile.row_block, column, __ldg(p_.sorted.experts + tile.row_block), rows};
  }

  const Fp4PrefillParams& p_;
  const Fp4PrefillRing<Traits>& ring_;
  uint32_t unit_;     ///< the next one; of thread 0. The first is the CTA's own
  int32_t left_ = 0;  ///< columns of this one
  RingPosition<Traits::kFactBuffers> at_;
  int slot_ = 0;
};

/// Of gathered rows.
__device__ __forceinline__ int32_t source_row(const Fp4PrefillParams& p, int32_t packed) {
  const int32_t token = packed_token(packed);
  return p.source == RowSource::kPair ? token * p.sorted.top_k + packed_slot(packed) : token;
}

/// `before`: facts of a tile of the same rows, or null.
template <class Traits>
__device__ __forceinline__ void fill_facts(const Fp4PrefillParams& p,
                                           Fp4PrefillFacts<Traits>& facts,
                                           const Fp4PrefillTicket& tile,
                                           const Fp4PrefillFacts<Traits>* before, int thread) {
  const int32_t first_weight_row = tile.column * Traits::kTileWeightRows;
  for (int i = thread; i < Traits::kTileWeightRows; i += 128) {
    const bool exists = first_weight_row + i < p.num_weight_rows;
    const int64_t at = int64_t{tile.expert} * p.num_weight_rows + first_weight_row + i;
    async_copy_4(shared_address(&facts.weight_scale[i]), p.weight_row_scales + at, exists);
    if (p.bias != nullptr) async_copy_4(shared_address(&facts.bias[i]), p.bias + at, exists);
  }
  for (int row = thread; row < Traits::kTileRows; row += 128) {
    if (before != nullptr) {  // this thread wrote it
      facts.output[row] = before->output[row];
      facts.factor[row] = before->factor[row];
      facts.after[row] = before->after[row];
    } else {
      const int32_t sorted = tile.row_block * Traits::kTileRows + row;
      const int32_t packed = p.sorted.ids[sorted];
      const bool used = is_pair(packed, p.sorted.top_k);
      const int32_t pair = packed_token(packed) * p.sorted.top_k + packed_slot(packed);
      const int64_t to = p.output_per_pair ? pair : sorted;
      facts.output[row] = used ? p.output + to * p.output_stride : nullptr;
      float factor = 1.0f, after = 1.0f;
      if constexpr (Traits::Operand::kBytes && !Traits::kRowScales) {
        const int64_t source = !used ? 0 : Traits::kGather ? source_row(p, packed) : sorted;
        factor = p.row_scales[source * p.row_scale_stride];
      }
      if (p.weight_before_bias || (p.weight_after && p.bias == nullptr)) {
        factor *= p.sorted.weights[sorted];
      } else if (p.weight_after) {
        after = p.sorted.weights[sorted];
      }
      facts.factor[row] = factor;
      facts.after[row] = after;
    }
  }
}

/// Every warp brings a consumer's weights: one thread issues a copy in 200-300 clocks, and a
/// stage has 768 (one thread for all four copies held the kernel at 53 % of the matrix unit).
/// Rows: by the copy engine (the last warp), or gathered 16 bytes at a time by all threads.
template <class Traits>
__device__ __forceinline__ void load_tiles(const Fp4PrefillParams& p,
                                           const Fp4PrefillRing<Traits>& ring, int thread) {
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
  Fp4PrefillTiles<Traits> tiles(p, ring);
  int32_t row_block_before = -1;
  const Fp4PrefillFacts<Traits>* before = nullptr;
  for (;;) {
    const Fp4PrefillTicket tile = tiles.next(thread);
    Fp4PrefillFacts<Traits>& facts = ring.facts[tiles.slot()];
    uint64_t* facts_full = &ring.facts_full[tiles.slot()];
    if (tile.row_block >= 0) {
      fill_facts<Traits>(p, facts, tile, tile.row_block == row_block_before ? before : nullptr,
                         thread);
    }
    async_copy_arrive(facts_full);
    barrier_arrive(facts_full);
    if (tile.row_block < 0) return;
    row_block_before = tile.row_block;
    before = &facts;
    const int first_row = tile.row_block * Traits::kTileRows;
    const int row_block = tile.column * Traits::kConsumers + warp;
    const bool brings_weights = warp < Traits::kConsumers && row_block < p.num_row_blocks;
    const bool brings_rows = !Traits::kGather && warp == 3;
    const uint8_t* weights =
        p.weights + tile.expert * p.expert_bytes + row_block * p.row_block_bytes;
    const float* scales = nullptr;  // of row `thread`
    if constexpr (Traits::kRowScales) {
      // Where there is no pair any row's will do, here too.
      const int32_t own = first_row + thread % Traits::kTileRows;
      const int32_t packed = __ldg(p.sorted.ids + own);
      const int32_t some = __ldg(p.sorted.ids + first_row);
      const int64_t source =
          Traits::kGather ? source_row(p, is_pair(packed, p.sorted.top_k) ? packed : some) : own;
      scales = p.row_scales + source * p.row_scale_stride;
    }
    uint32_t from[kPasses];  // in chunks of 16 bytes
    if constexpr (Traits::kGather) {
      // Where there is no pair any row will do, as its sums are never stored: but one of the tile's
      // own, or all tiles would read the same.
      const int32_t some = __ldg(p.sorted.ids + first_row);
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        const int32_t packed = __ldg(p.sorted.ids + first_row + row + kPassRows * i);
        const int32_t source = source_row(p, is_pair(packed, p.sorted.top_k) ? packed : some);
        from[i] = static_cast<uint32_t>(source) * row_chunks + static_cast<uint32_t>(chunk);
      }
    }
    const uint8_t* column = p.input;
    int left = p.row_bytes_k - chunk * 16;
    for (int k = 0; k < p.num_k_blocks; ++k) {
      barrier_wait(&ring.empty[at.slot], at.parity);
      if (leads) {
        const int bytes =
            (brings_weights ? Traits::kConsumerStage : 0) + (brings_rows ? Traits::kRowStage : 0);
        barrier_expect(&ring.full[at.slot], static_cast<uint32_t>(bytes));
        if (brings_weights) {
          uint8_t* to =
              ring.weights + at.slot * Traits::kWeightStage + warp * Traits::kConsumerStage;
          const uint8_t* of_stage = weights + k * Traits::kConsumerStage;
          const bool whole = (k + 1) * Traits::kStageBlocks <= p.num_col_blocks;
          bulk_load(to, of_stage, whole ? Traits::kConsumerStage : Traits::kBlockBytes,
                    &ring.full[at.slot]);
          // Past the last block rows are zeros; any finite weights will do.
          if (!whole) {
            bulk_load(to + Traits::kBlockBytes, weights, Traits::kBlockBytes, &ring.full[at.slot]);
          }
        }
        if (brings_rows) {
          tensor_load(ring.rows + at.slot * Traits::kRowStage, &p.row_map, k * Traits::kBlockK,
                      first_row, &ring.full[at.slot]);
        }
      }
      if constexpr (Traits::kGather) {
        const uint32_t to =
            shared_address(ring.rows) + static_cast<uint32_t>(at.slot * Traits::kRowStage) + place;
        const bool exists = left > 0;
        constexpr int kPassBytes = kPassRows * kGemmBlockBytes;
        const auto copy = [&](int i) {
          async_copy_16(to + static_cast<uint32_t>(i * kPassBytes), column + uint64_t{from[i]} * 16,
                        exists);
        };
        // A branch per copy takes as long as two copies, and the loop has no time to spare.
        if (tile.rows == Traits::kTileRows) {
#pragma unroll
          for (int i = 0; i < kPasses; ++i) copy(i);
        } else {
          constexpr int kStepPasses = Traits::kRowStep / kPassRows;
#pragma unroll
          for (int first = 0; first < kPasses; first += kStepPasses) {
            if (first * kPassRows >= tile.rows) break;
#pragma unroll
            for (int i = 0; i < kStepPasses; ++i) copy(first + i);
          }
        }
        column += kGemmBlockBytes;
        left -= kGemmBlockBytes;
      }
      if constexpr (Traits::kRowScales) {
        if (thread < Traits::kTileRows) {
          async_copy_4(shared_address(ring.scales + at.slot * Traits::kTileRows + thread),
                       scales + k, true);
        }
      }
      if constexpr (Traits::kGather || Traits::kRowScales) async_copy_arrive(&ring.full[at.slot]);
      at.advance();
    }
  }
}

}  // namespace switchyard::cuda::sm90
