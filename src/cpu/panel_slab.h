#pragma once
// What every tile works on: some blocks of a panel, their prefetches, and rows of activations.
// Included only by kernels_*.cpp; internal linkage.

#include "cpu/panel_values.h"

namespace switchyard::cpu {
namespace {

/// Where lines are prefetched to. bf16, f16 and f32 multiply as they are stored and are gone as
/// fast as memory delivers: into L1, else the prefetches only slow the hardware's own (one core of
/// Zen 4, where a plain read reaches 33 GB/s: bf16 30 GB/s; into L2 23). The others stay in L2,
/// since prefetches into L1 hold one of its few miss buffers each (int8 21, MXFP4 16).
constexpr bool prefetches_into_l1(PanelValues values) { return !has_scales(values); }
/// How far ahead of their use. One integer row is multiplied about as fast as memory delivers:
/// distant prefetches lead the hardware's astray (one core, 2, 3, 4, 5, 8 KiB ahead and none: int8
/// 31.8 31.7 31.1 29.3 20.0, 29.1 GB/s; MXFP4 13.9 17.3 19.6 22.7 20.6, 17.6). Slower work sees too
/// few lines ahead with near ones (3, 4, 5, 8 KiB: FP8 15 18 20 22;
/// 4, 6, 8, 12 KiB: int8 with 6 rows 19 24 22 22).
constexpr int64_t prefetch_bytes(PanelValues values, bool one_integer_row) {
  if (!has_scales(values)) return 4096;
  if (!one_integer_row) return values == PanelValues::kInt8 ? 6144 : 8192;
  return values == PanelValues::kInt8 ? 3072 : 5120;
}

/// A number as a type.
template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

constexpr int values_block_bytes(PanelValues values) {
  return kPanelRows * kBlockCols * value_bits(values) / 8;
}

/// What a tile works on: some blocks of one panel, expanded or as stored.
struct Slab {
  const uint8_t* values = nullptr;  // of the slab's first block
  int64_t block_bytes = 0;          // from one block to the next
  // Scales: stored E8M0 codes, 32 per block, to be multiplied by `factor`; else, where null,
  // expanded ones.
  const uint8_t* codes = nullptr;
  int64_t code_step = 0;
  float factor = 1.0f;
  const float* scales = nullptr;    // [num_blocks or twice that][32], or
  int64_t scale_step = kPanelRows;  // 0: the same 32 for all blocks
  const int32_t* zeros = nullptr;   // [num_blocks][32]
  int first_block = 0;
  int num_blocks = 0;
  int end_block = 0;  // of the panel
  bool half_scales = false;
  // While block b is worked on, the block's bytes at (b < switch_at ? ahead : beyond) + b * block
  // bytes are prefetched, and if b < header_blocks header_lines lines of the next panel's scales.
  // Null: nothing; `ahead` alone where hardware does it.
  const uint8_t* ahead = nullptr;
  const uint8_t* beyond = nullptr;
  int64_t ahead_step = 0;
  bool near = true;  // not a whole slab ahead, which L1 would not hold
  int switch_at = 0;
  const uint8_t* header = nullptr;
  int header_lines = 0;
  int header_blocks = 0;
  // Blocks [prefetch_begin, prefetch_end) of them do so.
  int prefetch_begin = 0;
  int prefetch_end = kSlabBlocks;

  /// The same blocks with their values decoded, and already prefetched.
  void take_decoded(const uint8_t* decoded, PanelValues as) {
    values = decoded;
    block_bytes = values_block_bytes(as);
    ahead = beyond = nullptr;
  }
};

/// Vector `vec` of the scales that scale `index` of every row makes.
template <class Isa>
SWITCHYARD_INLINE typename Isa::F slab_scale(const Slab& slab, int index, int vec) {
  if (slab.codes == nullptr) {
    return Isa::load(slab.scales + index * slab.scale_step + vec * Isa::kLanes);
  }
  const uint8_t* codes = slab.codes + index * slab.code_step + vec * Isa::kLanes;
  return Isa::mul(load_scales<Isa>(codes, PanelScales::kE8m0), Isa::set(slab.factor));
}

/// Tiles of rows that go over the same blocks share the prefetches among them: tile `tile` of
/// `tiles` does those of its part of the blocks.
SWITCHYARD_INLINE void share_prefetches(Slab& slab, int tile, int tiles) {
  slab.prefetch_begin = slab.num_blocks * tile / tiles;
  slab.prefetch_end = slab.num_blocks * (tile + 1) / tiles;
}

template <PanelValues kValues>
SWITCHYARD_INLINE void prefetch_line(const uint8_t* p, bool near) {
  if (prefetches_into_l1(kValues) && near) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  } else {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
  }
}

/// Prefetches for one block, spread over its work: a burst would fill the miss buffers.
template <PanelValues kValues>
struct Prefetch {
  const uint8_t* next;
  bool near;

  SWITCHYARD_INLINE Prefetch of(const Slab& slab, int block, bool wanted) {
    if (!wanted || slab.beyond == nullptr) return {nullptr, false};
    if (block < slab.prefetch_begin || block >= slab.prefetch_end) return {nullptr, false};
    for (int i = 0; block < slab.header_blocks && i < slab.header_lines; ++i) {
      prefetch_line<kValues>(slab.header + (int64_t{block} * slab.header_lines + i) * kLineBytes,
                             slab.near);
    }
    const uint8_t* next = block < slab.switch_at ? slab.ahead : slab.beyond;
    if (next == nullptr) return {nullptr, false};
    next += block * slab.ahead_step;
    if (slab.codes != nullptr) {
      prefetch_line<kValues>(next + values_block_bytes(kValues), slab.near);
    }
    return {next, slab.near};
  }
  /// Part `part` of `parts` of the block's lines.
  SWITCHYARD_INLINE void step(const Prefetch& prefetch, int part, int parts) {
    if (prefetch.next == nullptr) return;
    const int bytes = values_block_bytes(kValues) / parts;
#pragma GCC unroll 8
    for (int i = 0; i < bytes; i += kLineBytes)
      prefetch_line<kValues>(prefetch.next + part * bytes + i, prefetch.near);
  }
};

/// Blocks [first, first + count) of a slab, as far as it has them.
SWITCHYARD_INLINE Slab blocks_of(Slab slab, int first, int count) {
  const int64_t bytes = first * slab.block_bytes;
  slab.values += bytes;
  slab.codes += first * slab.code_step;
  slab.scales += first * slab.scale_step * (slab.half_scales ? 2 : 1);
  slab.zeros += first * kPanelRows;
  slab.first_block += first;
  slab.num_blocks = slab.num_blocks - first < count ? slab.num_blocks - first : count;
  slab.ahead += bytes;
  slab.beyond += bytes;
  slab.switch_at -= first;
  slab.header += int64_t{first} * slab.header_lines * kLineBytes;
  slab.header_blocks -= first;
  return slab;
}

/// From so many rows on memory waits for the products, and near prefetches come too late where a
/// slab begins: a whole slab ahead, its tiles share them (one core of Zen 4, from memory, Gop/s:
/// MXFP4 16 rows 338 to 365; bf16 pairs 8 rows 148 to 205, 16 rows 171 to 215,
/// 64 rows 209 to 222; fewer rows lose: bf16 4 rows 98 to 85, int8 8 rows 257 to 232).
constexpr int min_rows_to_share_prefetches(PanelValues values) {
  return value_bits(values) == 8 ? 12 : 6;
}
SWITCHYARD_INLINE bool shares_prefetches(const MultiplyJob& job) {
  return job.num_rows >= min_rows_to_share_prefetches(job.layout->values);
}

/// Calls call(Count<n>) for n = count, 1 <= count <= kMax.
template <int kMax, class Call>
SWITCHYARD_INLINE void with_count(int count, const Call& call) {
  if constexpr (kMax > 1) {
    if (count < kMax) return with_count<kMax - 1>(count, call);
  }
  call(Count<kMax>{});
}

SWITCHYARD_INLINE const uint8_t* row_at(const MultiplyJob& job, int row) {
  const int64_t index = job.row_index == nullptr ? row : job.row_index[row] / job.row_divisor;
  return job.rows + index * job.row_layout->row_bytes;
}

/// Rows of the next tile when `left` are left: tiles of a set differ by one row at most, since a
/// tile of few rows costs nearly what a full one does.
SWITCHYARD_INLINE int tile_rows(int left, int most) {
  const int tiles = (left + most - 1) / most;
  return (left + tiles - 1) / tiles;
}

}  // namespace
}  // namespace switchyard::cpu
