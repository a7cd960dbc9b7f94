#pragma once
// One panel of 32 outputs times any number of rows. Every output element is one definition whatever
// the tile and the instruction set, so its bits depend on neither:
//   integer rows    acc = fma(float(exact int32 sum of 32 products), weight scale * row scale, acc)
//   scaled weights  chain = fma(value, x, chain) over 32 columns; acc = fma(chain, scale, acc)
//   plain floats    acc = fma(value, x, acc)
// in ascending column order (16 in place of 32 where scales are per 16).
// Included only by kernels_*.cpp; internal linkage.

#include "cpu/panel_values.h"

namespace switchyard::cpu {
namespace {

/// How far ahead of its use a line is prefetched. Values that multiply as they are stored are gone
/// as fast as memory delivers: into L1, from near, else the prefetches only slow the hardware's own
/// (one core of Zen 4, where a plain read reaches 33 GB/s: bf16 30 GB/s, int8 22; from 8 KiB into
/// L2: 23 and 20). Where decoding takes longer, L2, since prefetches into L1 hold one of its few
/// miss buffers each (MXFP4 20, FP8 20; as above: 17 and 19; none: 16 and 14).
constexpr bool prefetches_near(PanelValues values) {
  return !has_scales(values) || values == PanelValues::kInt8;
}
constexpr int64_t prefetch_bytes(PanelValues values) {
  return prefetches_near(values) ? 4096 : 8192;
}

/// A number as a type.
template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

/// What a tile works on: some blocks of one panel, expanded or as stored.
struct Slab {
  const uint8_t* values = nullptr;  // of the slab's first block
  const float* scales = nullptr;    // [num_blocks or twice that][32]
  const int32_t* zeros = nullptr;   // [num_blocks][32]
  int first_block = 0;
  int num_blocks = 0;
  bool half_scales = false;
  // While block b is worked on, the block's bytes at (b < switch_at ? ahead : beyond) + b * block
  // bytes are prefetched, and header_lines lines of the next panel's scales. Null: nothing.
  const uint8_t* ahead = nullptr;
  const uint8_t* beyond = nullptr;
  int switch_at = 0;
  const uint8_t* header = nullptr;
  int header_lines = 0;
};

template <PanelValues kValues>
SWITCHYARD_INLINE void prefetch_line(const uint8_t* p) {
  constexpr auto kHint = prefetches_near(kValues) ? _MM_HINT_T0 : _MM_HINT_T1;
  _mm_prefetch(reinterpret_cast<const char*>(p), kHint);
}

constexpr int values_block_bytes(PanelValues values) {
  switch (values) {
    case PanelValues::kFp4:
    case PanelValues::kInt4: return kPanelRows * kBlockCols / 2;
    case PanelValues::kBf16:
    case PanelValues::kF16: return kPanelRows * kBlockCols * 2;
    case PanelValues::kF32: return kPanelRows * kBlockCols * 4;
    default: return kPanelRows * kBlockCols;
  }
}

/// Prefetches for one block, spread over its work: a burst would fill the miss buffers.
template <PanelValues kValues>
struct Prefetch {
  const uint8_t* next;

  SWITCHYARD_INLINE Prefetch of(const Slab& slab, int block, bool wanted) {
    if (!wanted || slab.ahead == nullptr) return {nullptr};
    for (int i = 0; i < slab.header_lines; ++i) {
      prefetch_line<kValues>(slab.header + (int64_t{block} * slab.header_lines + i) * kLineBytes);
    }
    return {(block < slab.switch_at ? slab.ahead : slab.beyond) +
            int64_t{block} * values_block_bytes(kValues)};
  }
  /// Part `part` of `parts` of the block's lines.
  SWITCHYARD_INLINE void step(const Prefetch& prefetch, int part, int parts) {
    if (prefetch.next == nullptr) return;
    const int bytes = values_block_bytes(kValues) / parts;
#pragma GCC unroll 8
    for (int i = 0; i < bytes; i += kLineBytes)
      prefetch_line<kValues>(prefetch.next + part * bytes + i);
  }
};

/// Blocks [first, first + count) of a slab, as far as it has them.
SWITCHYARD_INLINE Slab blocks_of(Slab slab, PanelValues values, int first, int count) {
  const int64_t bytes = int64_t{first} * values_block_bytes(values);
  const int scales = first * kPanelRows * (slab.half_scales ? 2 : 1);
  slab.values += bytes;
  slab.scales += scales;
  slab.zeros += first * kPanelRows;
  slab.first_block += first;
  slab.num_blocks = slab.num_blocks - first < count ? slab.num_blocks - first : count;
  slab.ahead += bytes;
  slab.beyond += bytes;
  slab.switch_at -= first;
  slab.header += int64_t{first} * slab.header_lines * kLineBytes;
  return slab;
}

// ---- Integer path ----

/// fp4 codes doubled and moved to 0..24, so that they are unsigned; the row's correction takes 12
/// per unit of activation off again, and the scale is halved.
alignas(16) constexpr uint8_t kFp4Unsigned[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                                  12, 11, 10, 9,  8,  6,  4,  0};

/// Weight vectors of one block for the integer path. A step is four columns of each row; two where
/// they are words, first the even and then the odd ones of each four.
template <class Isa, PanelValues kValues, IntBytes kBytes>
struct IntBlock {
  static constexpr bool kNibbles = kValues != PanelValues::kInt8;
  static constexpr bool kWords = kBytes == IntBytes::kWords;
  static constexpr int kSteps = kWords ? 16 : 8;
  static constexpr int kRowBytes = kSteps * 4;  // of a block of a row of activations
  static constexpr int64_t kBlockBytes = kPanelRows * kRowBytes / (kNibbles ? 2 : 1);
  using Dot = typename Isa::template Dot<kBytes>;
  using I = typename Isa::I;

  SWITCHYARD_INLINE const uint8_t* address(const uint8_t* block, int vec, int step) {
    return unit_address<Isa, PanelValues::kInt8>(block, vec, step);
  }
  /// The columns of one step of vector vec, as stored in kInt8.
  SWITCHYARD_INLINE I bytes(const uint8_t* block, int vec, int step) {
    if constexpr (kNibbles) {
      I codes = Isa::load_int(address(block, vec, step % 4));
      if (step >= 4) codes = Isa::template shift_right<4>(codes);
      codes = Isa::bit_and(codes, Isa::set_int(0x0f0f0f0f));
      if constexpr (kValues == PanelValues::kFp4) {
        codes = Isa::look_up_bytes(Isa::table_bytes(kFp4Unsigned), codes);
      }
      return codes;
    } else {
      return Isa::load_int(address(block, vec, step));
    }
  }
  SWITCHYARD_INLINE auto load(const uint8_t* block, int vec, int step) {
    return Dot::weight(bytes(block, vec, step));
  }
};

struct IntRowPointers {
  const int8_t* values;
  const float* scales;
  const int32_t* corrections;
};

/// acc += scale * row_scale * (exact dot product) for each block, or half block.
template <class Isa, PanelValues kValues, IntBytes kBytes, bool kHalf, bool kZeros, int kVecs,
          int kRows>
[[gnu::noinline]] static void int_tile(const Slab& slab, const IntRowPointers* rows, int first_vec,
                                       bool fresh, float* const* out) {
  using Block = IntBlock<Isa, kValues, kBytes>;
  using Dot = typename Block::Dot;
  using F = typename Isa::F;
  constexpr int kParts = kHalf ? 2 : 1;
  constexpr int kSteps = Block::kSteps / kParts;

  // A tile of one row has registers to spare.
  constexpr bool kInMemory = Isa::kSumsInMemory && kRows > 1;
  F acc[kRows][kVecs];
  const auto load_sums = [&](bool zeros) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        acc[r][v] = zeros ? Isa::zero() : Isa::load(out[r] + (first_vec + v) * Isa::kLanes);
      }
    }
  };
  const auto store_sums = [&] {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        Isa::store(out[r] + (first_vec + v) * Isa::kLanes, acc[r][v]);
      }
    }
  };
  load_sums(fresh);
  if (kInMemory) store_sums();
  for (int b = 0; b < slab.num_blocks; ++b) {
    const uint8_t* block = Block::address(slab.values, first_vec, 0) + b * Block::kBlockBytes;
    const auto prefetch = Prefetch<kValues>::of(slab, b, first_vec == 0);
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      typename Dot::Acc sum[kRows][kVecs];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const auto correction = Isa::set_int(rows[r].corrections[b * kParts + part]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          if constexpr (kZeros) {
            const auto zeros =
                Isa::load_int(slab.zeros + b * kPanelRows + (first_vec + v) * Isa::kLanes);
            sum[r][v] = Dot::start(Isa::times_zeros(zeros, correction));
          } else {
            sum[r][v] = Dot::start(correction);
          }
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < kSteps; ++i) {
        // Low and high nibbles of one load follow each other.
        const int step = kHalf || !Block::kNibbles ? part * kSteps + i : i / 2 + i % 2 * 4;
        if (i % (kSteps / 4 * kParts) == 0) {
          Prefetch<kValues>::step(prefetch, (part * kSteps + i) * 4 / Block::kSteps, 4);
        }
        decltype(Block::load(block, 0, 0)) weights[kVecs];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          weights[v] = Block::load(block, v, step);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const auto activation = Dot::activation(rows[r].values + b * Block::kRowBytes + step * 4);
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) Dot::step(sum[r][v], weights[v], activation);
        }
      }
      F scales[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        scales[v] = Isa::load(slab.scales + (b * kParts + part) * kPanelRows +
                              (first_vec + v) * Isa::kLanes);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const F row_scale = Isa::set(rows[r].scales[b]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          float* memory = out[r] + (first_vec + v) * Isa::kLanes;
          if (kInMemory) acc[r][v] = Isa::load(memory);
          acc[r][v] = Isa::fma(Isa::to_float(Dot::result(sum[r][v])),
                               Isa::mul(scales[v], row_scale), acc[r][v]);
          if (kInMemory) Isa::store(memory, acc[r][v]);
        }
      }
    }
  }
  if (!kInMemory) store_sums();
}

/// int8 blocks to signed words.
template <class Isa>
static void widen_weights(const Slab& slab, uint8_t* out) {
  using Bytes = IntBlock<Isa, PanelValues::kInt8, IntBytes::kWide>;
  using Words = IntBlock<Isa, PanelValues::kInt8, IntBytes::kWords>;
  for (int b = 0; b < slab.num_blocks; ++b, out += Words::kBlockBytes) {
    const uint8_t* block = slab.values + b * Bytes::kBlockBytes;
    const auto prefetch = Prefetch<PanelValues::kInt8>::of(slab, b, true);
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; ++quad) {
      if (quad % 2 == 0) Prefetch<PanelValues::kInt8>::step(prefetch, quad / 2, 4);
#pragma GCC unroll 4
      for (int v = 0; v < kPanelRows / Isa::kLanes; ++v) {
        const auto words = Isa::words_less_128(Bytes::bytes(block, v, quad));
        const int64_t at = Bytes::address(block, v, quad) - block;
        Isa::store_int(out + at, words.even);
        Isa::store_int(out + Bytes::kBlockBytes + at, words.odd);
      }
    }
  }
}

/// 4-bit blocks to the bytes that IntBlock would load, in the layout of kInt8.
template <class Isa, PanelValues kValues>
static void decode_bytes(const Slab& slab, uint8_t* out) {
  using Block = IntBlock<Isa, kValues, IntBytes::kNarrow>;
  for (int b = 0; b < slab.num_blocks; ++b) {
    const uint8_t* block = slab.values + b * Block::kBlockBytes;
    const auto prefetch = Prefetch<kValues>::of(slab, b, true);
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; ++quad) {
      if (quad % 2 == 0) Prefetch<kValues>::step(prefetch, quad / 2, 4);
#pragma GCC unroll 4
      for (int v = 0; v < kPanelRows / Isa::kLanes; ++v) {
        uint8_t* to = out + (unit_address<Isa, PanelValues::kInt8>(block, v, quad) - block);
        Isa::store_int(to, Block::bytes(block, v, quad));
      }
    }
    out += kPanelRows * kBlockCols;
  }
}

// ---- Float path ----

/// Vector vec of kColumns decoded columns, unscaled; int4 and int8 less their zero points. Exact.
template <class Isa, PanelValues kValues>
SWITCHYARD_INLINE void load_weights(const uint8_t* block, const int32_t* zeros, int vec, int load,
                                    typename Isa::F* out) {
  constexpr int kColumns = columns_per_load(kValues);
  load_columns<Isa, kValues>(block, vec, load, out);
  if constexpr (has_zeros(kValues)) {
    const typename Isa::F zero = Isa::to_float(Isa::load_int(zeros + vec * Isa::kLanes));
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) out[c] = Isa::sub(out[c], zero);
  }
}

/// What a float tile adds in one step: the products of some columns with f32 rows, column by
/// column.
template <class Isa, PanelValues kValues>
struct FloatProducts {
  using F = typename Isa::F;
  static constexpr PanelValues kPanelValues = kValues;
  static constexpr int kColumns = columns_per_load(kValues);
  static constexpr int kSteps = kBlockCols / kColumns;
  static constexpr int kRowBytes = kBlockCols * 4;  // of a block

  template <int kVecs, int kRows>
  SWITCHYARD_INLINE void add(const uint8_t* block, const int32_t* zeros, const uint8_t* const* rows,
                             int64_t row_offset, int step, F (&sums)[kRows][kVecs]) {
    F weights[kVecs][kColumns];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      load_weights<Isa, kValues>(block, zeros, v, step, weights[v]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const float* x = reinterpret_cast<const float*>(rows[r] + row_offset) + step * kColumns + c;
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sums[r][v] = Isa::fma_at(weights[v][c], x, sums[r][v]);
      }
    }
  }
};

/// The same with bf16 rows, two columns per product; the same bits.
template <class Isa, PanelValues kValues>
struct PairProducts {
  using F = typename Isa::F;
  using I = typename Isa::I;
  static constexpr PanelValues kPanelValues = kValues;
  static constexpr int kPairs = kValues == PanelValues::kBf16 ? 1 : 2;
  static constexpr int kSteps = kBlockCols / 2 / kPairs;
  static constexpr int kRowBytes = kBlockCols * 2;

  SWITCHYARD_INLINE void load(const uint8_t* block, int vec, int step, I* out) {
    if constexpr (kValues == PanelValues::kBf16) {
      out[0] = Isa::load_int(unit_address<Isa, kValues>(block, vec, step));
    } else {
      I codes = Isa::load_int(unit_address<Isa, kValues>(block, vec, step % 4));
      if (step >= 4) codes = Isa::template shift_right<4>(codes);
      const bool fp4 = kValues == PanelValues::kFp4;
      Isa::nibble_pairs(Isa::table_words(fp4 ? kFp4Bf16 : kInt4Bf16), codes, out);
    }
  }

  template <int kVecs, int kRows>
  SWITCHYARD_INLINE void add(const uint8_t* block, const int32_t*, const uint8_t* const* rows,
                             int64_t row_offset, int step, F (&sums)[kRows][kVecs]) {
    I weights[kVecs][kPairs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) load(block, v, step, weights[v]);
#pragma GCC unroll 2
    for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const int32_t* x =
            reinterpret_cast<const int32_t*>(rows[r] + row_offset) + step * kPairs + p;
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          sums[r][v] = Isa::fma_pairs_at(weights[v][p], x, sums[r][v]);
        }
      }
    }
  }
};

/// acc += weights * x; where there are scales, each scale's columns (32 at most) form a chain of
/// their own, and acc += scale * chain.
template <class Isa, class Products, bool kScaled, int kVecs, int kRows>
[[gnu::noinline]] static void float_tile(const Slab& slab, const uint8_t* const* rows,
                                         int first_vec, bool fresh, float* const* out) {
  using F = typename Isa::F;
  constexpr PanelValues kValues = Products::kPanelValues;
  constexpr int kSteps = Products::kSteps;
  F acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      acc[r][v] = fresh ? Isa::zero() : Isa::load(out[r] + (first_vec + v) * Isa::kLanes);
    }
  }
  const auto clear = [&](F(&chain)[kRows][kVecs]) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) chain[r][v] = Isa::zero();
    }
  };
  const float* scales = slab.scales;
  const auto add_chain = [&](const F(&chain)[kRows][kVecs]) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      const F scale = Isa::load(scales + (first_vec + v) * Isa::kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) acc[r][v] = Isa::fma(chain[r][v], scale, acc[r][v]);
    }
    scales += kPanelRows;
  };
  F chain[kRows][kVecs];
  for (int b = 0; b < slab.num_blocks; ++b) {
    const uint8_t* block = unit_address<Isa, kValues>(slab.values, first_vec, 0) +
                           int64_t{b} * values_block_bytes(kValues);
    const int32_t* zeros = slab.zeros + b * kPanelRows + first_vec * Isa::kLanes;
    const int64_t row_offset = int64_t{b} * Products::kRowBytes;
    const auto prefetch = Prefetch<kValues>::of(slab, b, first_vec == 0);
    // Columns [16 * half, 16 * half + 16).
    const auto add_half = [&](auto half, F(&sums)[kRows][kVecs]) {
#pragma GCC unroll 8
      for (int i = 0; i < kSteps / 2; ++i) {
        const int step = decltype(half)::value * kSteps / 2 + i;
        Prefetch<kValues>::step(prefetch, step, kSteps);
        Products::template add<kVecs, kRows>(block, zeros, rows, row_offset, step, sums);
      }
    };
    if constexpr (!kScaled) {
      add_half(Count<0>{}, acc);
      add_half(Count<1>{}, acc);
    } else {
      clear(chain);
      add_half(Count<0>{}, chain);
      if (slab.half_scales) {
        add_chain(chain);
        clear(chain);
      }
      add_half(Count<1>{}, chain);
      add_chain(chain);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      Isa::store(out[r] + (first_vec + v) * Isa::kLanes, acc[r][v]);
    }
  }
}

/// Blocks of any format as kTo, unscaled: f32, or pairs of bf16.
template <class Isa, PanelValues kValues, PanelValues kTo>
static void decode_floats(const Slab& slab, uint8_t* out) {
  constexpr int kColumns = columns_per_load(kValues);
  constexpr int kUnitColumns = columns_per_load(kTo);
  for (int b = 0; b < slab.num_blocks; ++b, out += values_block_bytes(kTo)) {
    const uint8_t* block = slab.values + int64_t{b} * values_block_bytes(kValues);
    const auto prefetch = Prefetch<kValues>::of(slab, b, true);
#pragma GCC unroll 8
    for (int load = 0; load < kBlockCols / kColumns; ++load) {
      Prefetch<kValues>::step(prefetch, load, kBlockCols / kColumns);
      for (int v = 0; v < kPanelRows / Isa::kLanes; ++v) {
        typename Isa::F weights[kColumns];
        load_weights<Isa, kValues>(block, slab.zeros + b * kPanelRows, v, load, weights);
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; c += kUnitColumns) {
          auto unit = Isa::as_int(weights[c]);
          if constexpr (kTo == PanelValues::kBf16) {  // the lower halves are zero
            const auto lower = Isa::template shift_right<16>(Isa::as_int(weights[c + 1]));
            unit = Isa::bit_or(unit, lower);
          }
          const int64_t at =
              unit_address<Isa, kTo>(out, v, (load * kColumns + c) / kUnitColumns) - out;
          Isa::store_int(out + at, unit);
        }
      }
    }
  }
}

// ---- Rows and slabs ----

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

template <class Isa, PanelValues kValues, IntBytes kBytes, bool kHalf, bool kZeros>
static void int_rows(const MultiplyJob& job, const Slab& slab, bool fresh) {
  constexpr bool kWords = kBytes == IntBytes::kWords;
  constexpr int kTileRows = kWords ? Isa::kTileRowsWords : Isa::kTileRowsInt;
  constexpr int kTileVectors = kWords                      ? Isa::kTileVectorsWords
                               : kBytes == IntBytes::kWide ? Isa::kTileVectorsWide
                                                           : Isa::kTileVectors;
  constexpr int kRowBytes = IntBlock<Isa, kValues, kBytes>::kRowBytes;
  const int64_t values_offset = kWords ? job.row_layout->words_offset : 0;
  for (int begin = 0, count; begin < job.num_rows; begin += count) {
    count = tile_rows(job.num_rows - begin, kTileRows);
    IntRowPointers rows[kTileRows];
    float* out[kTileRows];
    for (int r = 0; r < count; ++r) {
      const uint8_t* row = row_at(job, begin + r);
      const int64_t block = slab.first_block;
      rows[r].values = reinterpret_cast<const int8_t*>(row) + values_offset + block * kRowBytes;
      rows[r].scales = reinterpret_cast<const float*>(row + job.row_layout->scales_offset) + block;
      rows[r].corrections =
          reinterpret_cast<const int32_t*>(row + job.row_layout->corrections_offset) +
          block * (kHalf ? 2 : 1);
      out[r] = job.out + int64_t{begin + r} * kPanelRows;
    }
    with_count<kTileRows>(count, [&](auto n) {
      constexpr int kRows = decltype(n)::value;
      // A single row takes all vectors at once, in one stream.
      constexpr int kVecs = kRows == 1 ? kPanelRows / Isa::kLanes : kTileVectors;
      for (int vec = 0; vec < kPanelRows / Isa::kLanes; vec += kVecs) {
        int_tile<Isa, kValues, kBytes, kHalf, kZeros, kVecs, kRows>(slab, rows, vec, fresh, out);
      }
    });
  }
}

template <class Isa, class Products, bool kScaled, int kTileRows>
static void float_rows(const MultiplyJob& job, const Slab& slab, bool fresh) {
  for (int begin = 0, count; begin < job.num_rows; begin += count) {
    count = tile_rows(job.num_rows - begin, kTileRows);
    const uint8_t* rows[kTileRows];
    float* out[kTileRows];
    for (int r = 0; r < count; ++r) {
      rows[r] = row_at(job, begin + r) + int64_t{slab.first_block} * Products::kRowBytes;
      out[r] = job.out + int64_t{begin + r} * kPanelRows;
    }
    with_count<kTileRows>(count, [&](auto n) {
      constexpr int kRows = decltype(n)::value;
      constexpr int kVecs = kRows == 1 ? kPanelRows / Isa::kLanes : Isa::kTileVectors;
      for (int vec = 0; vec < kPanelRows / Isa::kLanes; vec += kVecs) {
        float_tile<Isa, Products, kScaled, kVecs, kRows>(slab, rows, vec, fresh, out);
      }
    });
  }
}

/// Without VPDPBUSD, up to so many tiles decode in registers; more share a decoded slab (AVX-512,
/// MXFP4: 16 rows 272 and 270, 64 rows 272 and 301 Gop/s).
constexpr int kMaxDirectTiles = 3;

/// Blocks of int8 weights that are words at a time: 16 KiB, half of L1, which every tile of rows
/// reads anew (AVX2, 64 rows: 160 Gop/s; 32 blocks 151).
constexpr int kWordBlocks = 8;

/// From so many rows on a tile register is filled well enough. A guess: AMX was never timed.
constexpr int kMinTileRegisterRows = 8;

/// int_rows by tile registers: 16 rows times a block give exact int32 sums, so the bits are the
/// same.
template <class Isa, bool kZeros>
static void tile_register_rows(const MultiplyJob& job, const Slab& slab, bool fresh) {
  using Tiles = typename Isa::Tiles;
  constexpr int kRows = 16;
  constexpr int kRowBytes = kSlabBlocks * kBlockCols;
  alignas(64) int8_t values[kRows][kRowBytes] = {};
  alignas(64) int32_t sums[kPanelRows / Isa::kLanes][kRows][Isa::kLanes];
  Tiles::configure();
  for (int begin = 0; begin < job.num_rows; begin += kRows) {
    const int count = job.num_rows - begin < kRows ? job.num_rows - begin : kRows;
    const uint8_t* rows[kRows];
    for (int r = 0; r < count; ++r) {
      rows[r] = row_at(job, begin + r);
      __builtin_memcpy(values[r], rows[r] + int64_t{slab.first_block} * kBlockCols,
                       static_cast<size_t>(slab.num_blocks) * kBlockCols);
    }
    for (int b = 0; b < slab.num_blocks; ++b) {
      Tiles::multiply(slab.values + b * kPanelRows * kBlockCols, values[0] + b * kBlockCols,
                      kRowBytes, sums);
      const int block = slab.first_block + b;
      for (int r = 0; r < count; ++r) {
        const auto* scales =
            reinterpret_cast<const float*>(rows[r] + job.row_layout->scales_offset);
        const auto* corrections =
            reinterpret_cast<const int32_t*>(rows[r] + job.row_layout->corrections_offset);
        const auto row_scale = Isa::set(scales[block]);
        for (int v = 0; v < kPanelRows / Isa::kLanes; ++v) {
          auto correction = Isa::set_int(corrections[block]);
          const int at = b * kPanelRows + v * Isa::kLanes;
          if (kZeros) correction = Isa::times_zeros(Isa::load_int(slab.zeros + at), correction);
          const auto sum = Isa::add_int(Isa::load_int(sums[v][r]), correction);
          float* out = job.out + int64_t{begin + r} * kPanelRows + v * Isa::kLanes;
          Isa::store(out,
                     Isa::fma(Isa::to_float(sum), Isa::mul(Isa::load(slab.scales + at), row_scale),
                              fresh && b == 0 ? Isa::zero() : Isa::load(out)));
        }
      }
    }
  }
  Tiles::release();
}

template <class Isa, PanelValues kValues, bool kHalf, bool kZeros>
static void int_slab(const MultiplyJob& job, Slab slab, bool fresh) {
  using enum IntBytes;
  constexpr bool kInt8 = kValues == PanelValues::kInt8;
  constexpr int kDirectTiles = kInt8 ? 1 : kMaxDirectTiles;
  // VPDPBUSD takes int8 weights as they are, and leaves pipes idle that decode nibbles again for
  // every tile (Zen 4, MXFP4, 64 rows: 367 Gop/s; through a decoded slab 349).
  constexpr bool kDecodes = Isa::kWordCorrections;
  if constexpr (Isa::kHasTiles && !kHalf) {
    if (job.num_rows >= kMinTileRegisterRows) {
      if constexpr (!kInt8) {
        decode_bytes<Isa, kValues>(slab, job.scratch->decoded);
        slab.values = job.scratch->decoded;
      }
      return tile_register_rows<Isa, kZeros>(job, slab, fresh);
    }
  }
  if (!kDecodes || job.num_rows <= kDirectTiles * Isa::kTileRowsInt) {
    return int_rows < Isa, kValues, kInt8 ? kWide : kNarrow, kHalf, kZeros > (job, slab, fresh);
  }
  if constexpr (kDecodes && kInt8) {
    for (int first = 0; first < slab.num_blocks; first += kWordBlocks) {
      Slab part = blocks_of(slab, kValues, first, kWordBlocks);
      widen_weights<Isa>(part, job.scratch->decoded);
      part.values = job.scratch->decoded;
      part.ahead = nullptr;
      int_rows<Isa, PanelValues::kInt8, kWords, kHalf, kZeros>(job, part, fresh && first == 0);
    }
  } else if constexpr (kDecodes) {
    decode_bytes<Isa, kValues>(slab, job.scratch->decoded);
    slab.values = job.scratch->decoded;
    slab.ahead = nullptr;
    int_rows<Isa, PanelValues::kInt8, kNarrow, kHalf, kZeros>(job, slab, fresh);
  }
}

template <class Isa, PanelValues kValues>
static void float_slab(const MultiplyJob& job, Slab slab, bool fresh) {
  constexpr bool kScaled = has_scales(kValues);
  constexpr int kTileRows = kScaled ? Isa::kTileRowsScaled : Isa::kTileRowsFloat;
  constexpr bool kCheap = kValues == PanelValues::kF32 || kValues == PanelValues::kBf16;
  if (kCheap || Isa::kDecodesBesideProducts || job.num_rows <= kTileRows) {
    float_rows<Isa, FloatProducts<Isa, kValues>, kScaled, kTileRows>(job, slab, fresh);
  } else if constexpr (!kCheap && !Isa::kDecodesBesideProducts) {
    decode_floats<Isa, kValues, PanelValues::kF32>(slab, job.scratch->decoded);
    slab.values = job.scratch->decoded;
    slab.ahead = nullptr;
    float_rows<Isa, FloatProducts<Isa, PanelValues::kF32>, kScaled, kTileRows>(job, slab, fresh);
  }
}

template <class Isa, PanelValues kValues>
static void pair_slab(const MultiplyJob& job, Slab slab, bool fresh) {
  constexpr bool kScaled = has_scales(kValues);
  constexpr int kTileRows = kScaled ? Isa::kTileRowsScaled : Isa::kTileRowsFloat;
  constexpr bool kStored = kValues == PanelValues::kBf16;
  if constexpr (multiplies_pairs(kValues)) {
    if (kStored || !job.layout->zero_points) {
      return float_rows<Isa, PairProducts<Isa, kValues>, kScaled, kTileRows>(job, slab, fresh);
    }
  }
  if constexpr (!kStored) {
    decode_floats<Isa, kValues, PanelValues::kBf16>(slab, job.scratch->decoded);
    slab.values = job.scratch->decoded;
    slab.ahead = nullptr;
    float_rows<Isa, PairProducts<Isa, PanelValues::kBf16>, kScaled, kTileRows>(job, slab, fresh);
  }
}

template <class Isa>
static void int_values(const MultiplyJob& job, const Slab& slab, bool fresh) {
  const bool zeros = job.layout->zero_points;
  switch (job.layout->values) {
    case PanelValues::kFp4:
      return slab.half_scales ? int_slab<Isa, PanelValues::kFp4, true, false>(job, slab, fresh)
                              : int_slab<Isa, PanelValues::kFp4, false, false>(job, slab, fresh);
    case PanelValues::kInt4:
      return zeros ? int_slab<Isa, PanelValues::kInt4, false, true>(job, slab, fresh)
                   : int_slab<Isa, PanelValues::kInt4, false, false>(job, slab, fresh);
    default: return int_slab<Isa, PanelValues::kInt8, false, false>(job, slab, fresh);
  }
}

template <class Isa>
static void float_values(const MultiplyJob& job, const Slab& slab, bool fresh) {
  switch (job.layout->values) {
    case PanelValues::kFp4: return float_slab<Isa, PanelValues::kFp4>(job, slab, fresh);
    case PanelValues::kInt4: return float_slab<Isa, PanelValues::kInt4>(job, slab, fresh);
    case PanelValues::kInt8: return float_slab<Isa, PanelValues::kInt8>(job, slab, fresh);
    case PanelValues::kFp8E4m3: return float_slab<Isa, PanelValues::kFp8E4m3>(job, slab, fresh);
    case PanelValues::kFp8E5m2: return float_slab<Isa, PanelValues::kFp8E5m2>(job, slab, fresh);
    case PanelValues::kBf16: return float_slab<Isa, PanelValues::kBf16>(job, slab, fresh);
    case PanelValues::kF16: return float_slab<Isa, PanelValues::kF16>(job, slab, fresh);
    case PanelValues::kF32: return float_slab<Isa, PanelValues::kF32>(job, slab, fresh);
  }
}

template <class Isa>
static void pair_values(const MultiplyJob& job, const Slab& slab, bool fresh) {
  if constexpr (Isa::kPairProducts) {
    switch (job.layout->values) {
      case PanelValues::kFp4: return pair_slab<Isa, PanelValues::kFp4>(job, slab, fresh);
      case PanelValues::kInt4: return pair_slab<Isa, PanelValues::kInt4>(job, slab, fresh);
      case PanelValues::kInt8: return pair_slab<Isa, PanelValues::kInt8>(job, slab, fresh);
      case PanelValues::kFp8E4m3: return pair_slab<Isa, PanelValues::kFp8E4m3>(job, slab, fresh);
      case PanelValues::kFp8E5m2: return pair_slab<Isa, PanelValues::kFp8E5m2>(job, slab, fresh);
      case PanelValues::kBf16: return pair_slab<Isa, PanelValues::kBf16>(job, slab, fresh);
      case PanelValues::kF16:
      case PanelValues::kF32: break;  // not exact in bf16: takes_bf16_rows
    }
  }
}

/// What scales are multiplied with besides the matrix's own global scale.
constexpr float scale_factor(PanelValues values, bool integer) {
  if (values == PanelValues::kFp4 && integer) return 0.5f;  // codes were doubled
  if (values == PanelValues::kFp8E4m3) return 256.0f;       // decoded 2^-8 too small
  return 1.0f;
}

static void aim_prefetch(const MultiplyJob& job, Slab& slab) {
  const PanelLayout& layout = *job.layout;
  const int64_t start =
      int64_t{slab.first_block} * layout.block_bytes + prefetch_bytes(layout.values);
  const int64_t left = layout.panel_bytes - layout.values_offset - start;
  const uint8_t* next = job.next == nullptr ? job.panel : job.next;
  slab.ahead = job.panel + layout.values_offset + start;
  slab.beyond = next + start - (layout.panel_bytes - layout.values_offset) + layout.values_offset;
  slab.switch_at = left <= 0 ? 0 : static_cast<int>(left / layout.block_bytes);
  const int64_t lines = layout.values_offset / kLineBytes;
  slab.header_lines = static_cast<int>((lines + layout.num_blocks - 1) / layout.num_blocks);
  slab.header = next + int64_t{slab.first_block} * slab.header_lines * kLineBytes;
}

template <class Isa>
static void multiply(const MultiplyJob& job) {
  const PanelLayout& layout = *job.layout;
  const bool integer = job.row_layout->integer();
  const float factor = job.global_scale * scale_factor(layout.values, integer);
  Slab slab;
  slab.half_scales = layout.scale_cols < kBlockCols;
  slab.scales = job.scratch->scales;
  slab.zeros = job.scratch->zeros;
  for (int first = 0; first < layout.num_blocks; first += kSlabBlocks) {
    slab.first_block = first;
    slab.num_blocks =
        layout.num_blocks - first < kSlabBlocks ? layout.num_blocks - first : kSlabBlocks;
    slab.values = job.panel + layout.values_offset + int64_t{first} * layout.block_bytes;
    aim_prefetch(job, slab);
    if (has_scales(layout.values)) {
      expand_scales<Isa>(layout, job.panel, first, slab.num_blocks, factor, job.scratch->scales);
      if (layout.zero_points || (!integer && has_zeros(layout.values))) {
        expand_zeros<Isa>(layout, job.panel, first, slab.num_blocks,
                          layout.values == PanelValues::kInt8 ? 128 : 8, integer,
                          job.scratch->zeros);
      }
    }
    switch (job.row_layout->values) {
      case RowValues::kInt8: int_values<Isa>(job, slab, first == 0); break;
      case RowValues::kBf16: pair_values<Isa>(job, slab, first == 0); break;
      case RowValues::kF32: float_values<Isa>(job, slab, first == 0); break;
    }
  }
}

}  // namespace
}  // namespace switchyard::cpu
