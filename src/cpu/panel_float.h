#pragma once
// Panels times f32 or bf16 rows.
// Included only by kernels_*.cpp; internal linkage.

#include "cpu/panel_slab.h"

namespace switchyard::cpu {
namespace {

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
  int scale_index = 0;
  const auto add_chain = [&](const F(&chain)[kRows][kVecs]) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      const F scale = slab_scale<Isa>(slab, scale_index, first_vec + v);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) acc[r][v] = Isa::fma(chain[r][v], scale, acc[r][v]);
    }
    ++scale_index;
  };
  F chain[kRows][kVecs];
  for (int b = 0; b < slab.num_blocks; ++b) {
    const uint8_t* block =
        unit_address<Isa, kValues>(slab.values, first_vec, 0) + b * slab.block_bytes;
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
    const uint8_t* block = slab.values + b * slab.block_bytes;
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

template <class Isa, class Products, bool kScaled, int kTileRows>
static void float_rows(const MultiplyJob& job, Slab slab, bool fresh) {
  const int tiles = (job.num_rows + kTileRows - 1) / kTileRows;
  for (int begin = 0, tile = 0, count; begin < job.num_rows; begin += count, ++tile) {
    if (shares_prefetches(job)) share_prefetches(slab, tile, tiles);
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

template <class Isa, PanelValues kValues>
static void float_slab(const MultiplyJob& job, Slab slab, bool fresh) {
  constexpr bool kScaled = has_scales(kValues);
  constexpr int kTileRows = kScaled ? Isa::kTileRowsScaled : Isa::kTileRowsFloat;
  constexpr bool kCheap = kValues == PanelValues::kF32 || kValues == PanelValues::kBf16;
  if (kCheap || Isa::kDecodesBesideProducts || job.num_rows <= kTileRows) {
    float_rows<Isa, FloatProducts<Isa, kValues>, kScaled, kTileRows>(job, slab, fresh);
  } else if constexpr (!kCheap && !Isa::kDecodesBesideProducts) {
    decode_floats<Isa, kValues, PanelValues::kF32>(slab, job.scratch->decoded);
    slab.take_decoded(job.scratch->decoded, PanelValues::kF32);
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
    slab.take_decoded(job.scratch->decoded, PanelValues::kBf16);
    float_rows<Isa, PairProducts<Isa, PanelValues::kBf16>, kScaled, kTileRows>(job, slab, fresh);
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

}  // namespace
}  // namespace switchyard::cpu
