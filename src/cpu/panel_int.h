#pragma once
// Panels times int8 rows.
// Included only by kernels_*.cpp; internal linkage.

#include "cpu/panel_slab.h"

namespace switchyard::cpu {
namespace {

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
      if constexpr (kValues == PanelValues::kFp4) {
        return Isa::look_up_nibbles(Isa::table_bytes(kFp4Unsigned), codes);
      } else {
        return Isa::bit_and(codes, Isa::set_int(0x0f0f0f0f));
      }
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

/// How exact sums meet the scales of weights. kPowers has the bits of kBlocks.
enum class IntScales { kBlocks, kHalfBlocks, kPowers, kOutputs };

/// Sums of kPowers start at the bits of this float times the weights' power of two, and so are
/// floats that exceed scale * sum by it: one subtraction is both the conversion and the product,
/// and leaves the pipes of the dot products alone (Zen 4, MXFP4, 64 rows: 347 to 392 Gop/s).
constexpr float kSumOffset = 0x1.8p23f;

/// acc += (exact dot product) * scale * row_scale for each block, or half block; or
/// acc += (exact dot product) * row_scale, and after the last block acc *= scale.
template <class Isa, PanelValues kValues, IntBytes kBytes, IntScales kScales, bool kZeros,
          int kVecs, int kRows>
[[gnu::noinline]] static void int_tile(const Slab& slab, const IntRowPointers* rows, int first_vec,
                                       bool fresh, float* const* out) {
  using Block = IntBlock<Isa, kValues, kBytes>;
  using Dot = typename Block::Dot;
  using F = typename Isa::F;
  constexpr bool kPowers = kScales == IntScales::kPowers;
  constexpr int kParts = kScales == IntScales::kHalfBlocks ? 2 : 1;
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
  const auto store_sums = [&](bool scaled) {
    F scales[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      scales[v] = scaled ? slab_scale<Isa>(slab, 0, first_vec + v) : Isa::set(1.0f);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        Isa::store(out[r] + (first_vec + v) * Isa::kLanes,
                   scaled ? Isa::mul(acc[r][v], scales[v]) : acc[r][v]);
      }
    }
  };
  load_sums(fresh);
  if (kInMemory) store_sums(false);
  for (int b = 0; b < slab.num_blocks; ++b) {
    const uint8_t* block = Block::address(slab.values, first_vec, 0) + b * slab.block_bytes;
    const auto prefetch = Prefetch<kValues>::of(slab, b, first_vec == 0);
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      typename Dot::Acc sum[kRows][kVecs];
      F offsets[kVecs];
#pragma GCC unroll 4
      for (int v = 0; kPowers && v < kVecs; ++v) {
        offsets[v] = Isa::load(slab.scales + b * kPanelRows + (first_vec + v) * Isa::kLanes);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const auto correction = Isa::set_int(rows[r].corrections[b * kParts + part]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          if constexpr (kZeros) {
            const auto zeros =
                Isa::load_int(slab.zeros + b * kPanelRows + (first_vec + v) * Isa::kLanes);
            sum[r][v] = Dot::start(Isa::times_zeros(zeros, correction));
          } else if constexpr (kPowers) {
            sum[r][v] = Isa::add_int(Isa::as_int(offsets[v]), correction);
          } else {
            sum[r][v] = Dot::start(correction);
          }
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < kSteps; ++i) {
        // Low and high nibbles of one load follow each other.
        const int step = kParts == 2 || !Block::kNibbles ? part * kSteps + i : i / 2 + i % 2 * 4;
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
        if (!kPowers && kScales != IntScales::kOutputs) {
          scales[v] = slab_scale<Isa>(slab, b * kParts + part, first_vec + v);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const F row_scale = Isa::set(rows[r].scales[b]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          float* memory = out[r] + (first_vec + v) * Isa::kLanes;
          if (kInMemory) acc[r][v] = Isa::load(memory);
          F product;
          if constexpr (kPowers) {
            product = Isa::sub(Isa::as_float(sum[r][v]), offsets[v]);
          } else if constexpr (kScales == IntScales::kOutputs) {
            product = Isa::to_float(Dot::result(sum[r][v]));
          } else {
            product = Isa::mul(Isa::to_float(Dot::result(sum[r][v])), scales[v]);
          }
          acc[r][v] = Isa::fma(product, row_scale, acc[r][v]);
          if (kInMemory) Isa::store(memory, acc[r][v]);
        }
      }
    }
  }
  const bool last =
      kScales == IntScales::kOutputs && slab.first_block + slab.num_blocks == slab.end_block;
  if (kInMemory && last) load_sums(false);
  if (!kInMemory || last) store_sums(last);
}

/// int8 blocks to signed words.
template <class Isa>
static void widen_weights(const Slab& slab, uint8_t* out) {
  using Bytes = IntBlock<Isa, PanelValues::kInt8, IntBytes::kWide>;
  using Words = IntBlock<Isa, PanelValues::kInt8, IntBytes::kWords>;
  for (int b = 0; b < slab.num_blocks; ++b, out += Words::kBlockBytes) {
    const uint8_t* block = slab.values + b * slab.block_bytes;
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; ++quad) {
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

/// Blocks to the bytes that IntBlock would load, in the layout of kInt8; less `excess`, which makes
/// them signed.
template <class Isa, PanelValues kValues, int kExcess = 0>
static void decode_bytes(const Slab& slab, uint8_t* out) {
  using Block = IntBlock<Isa, kValues, IntBytes::kNarrow>;
  for (int b = 0; b < slab.num_blocks; ++b) {
    const uint8_t* block = slab.values + b * slab.block_bytes;
    const auto prefetch = Prefetch<kValues>::of(slab, b, true);
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; ++quad) {
      if (quad % 2 == 0) Prefetch<kValues>::step(prefetch, quad / 2, 4);
#pragma GCC unroll 4
      for (int v = 0; v < kPanelRows / Isa::kLanes; ++v) {
        uint8_t* to = out + (unit_address<Isa, PanelValues::kInt8>(block, v, quad) - block);
        auto bytes = Block::bytes(block, v, quad);
        if constexpr (kExcess != 0) bytes = Isa::template less_each<kExcess>(bytes);
        Isa::store_int(to, bytes);
      }
    }
    out += kPanelRows * kBlockCols;
  }
}

template <class Isa, PanelValues kValues, IntBytes kBytes, IntScales kScales, bool kZeros>
static void int_rows(const MultiplyJob& job, Slab slab, bool fresh) {
  constexpr bool kWords = kBytes == IntBytes::kWords;
  constexpr int kTileRows = kWords ? Isa::kTileRowsWords : Isa::kTileRowsInt;
  constexpr int kTileVectors = kWords                      ? Isa::kTileVectorsWords
                               : kBytes == IntBytes::kWide ? Isa::kTileVectorsWide
                                                           : Isa::kTileVectors;
  constexpr int kRowBytes = IntBlock<Isa, kValues, kBytes>::kRowBytes;
  const int64_t values_offset = kWords ? job.row_layout->words_offset : 0;
  const int tiles = (job.num_rows + kTileRows - 1) / kTileRows;
  for (int begin = 0, tile = 0, count; begin < job.num_rows; begin += count, ++tile) {
    count = tile_rows(job.num_rows - begin, kTileRows);
    if (kWords || shares_prefetches(job)) share_prefetches(slab, tile, tiles);
    IntRowPointers rows[kTileRows];
    float* out[kTileRows];
    for (int r = 0; r < count; ++r) {
      const uint8_t* row = row_at(job, begin + r);
      const int64_t block = slab.first_block;
      rows[r].values = reinterpret_cast<const int8_t*>(row) + values_offset + block * kRowBytes;
      rows[r].scales = reinterpret_cast<const float*>(row + job.row_layout->scales_offset) + block;
      rows[r].corrections =
          reinterpret_cast<const int32_t*>(row + job.row_layout->corrections_offset) +
          block * (kScales == IntScales::kHalfBlocks ? 2 : 1);
      out[r] = job.out + int64_t{begin + r} * kPanelRows;
    }
    with_count<kTileRows>(count, [&](auto n) {
      constexpr int kRows = decltype(n)::value;
      // A single row takes all vectors at once, in one stream.
      constexpr int kVecs = kRows == 1 ? kPanelRows / Isa::kLanes : kTileVectors;
      for (int vec = 0; vec < kPanelRows / Isa::kLanes; vec += kVecs) {
        int_tile<Isa, kValues, kBytes, kScales, kZeros, kVecs, kRows>(slab, rows, vec, fresh, out);
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

/// From so many rows on a tile register is filled well enough.
constexpr int kMinTileRegisterRows = 8;
/// Blocks at a time: their weights (8 KiB) and sums (16 KiB) stay in L1 between the tile registers
/// and the scales.
constexpr int kTileSumBlocks = 8;
constexpr int kTileRegisterRows = 16;

/// acc += sum * scales for kRows rows of the sums that tile registers left: int_tile's second half.
template <class Isa, IntScales kScales, bool kZeros, int kRows>
[[gnu::noinline]] static void scale_tile_sums(
    const Slab& slab,
    const int32_t (*sums)[kPanelRows / Isa::kLanes][kTileRegisterRows][Isa::kLanes], int first_row,
    const IntRowPointers* rows, bool fresh, float* const* out) {
  using F = typename Isa::F;
  constexpr int kVecs = kPanelRows / Isa::kLanes;
  constexpr bool kAtEnd = kScales == IntScales::kOutputs;
  F acc[kRows][kVecs], scales[kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      acc[r][v] = fresh ? Isa::zero() : Isa::load(out[r] + v * Isa::kLanes);
    }
  }
  for (int b = 0; b < slab.num_blocks; ++b) {
    for (int v = 0; v < kVecs; ++v) scales[v] = slab_scale<Isa>(slab, b, v);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F row_scale = Isa::set(rows[r].scales[b]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        auto sum = Isa::load_int(sums[b][v][first_row + r]);
        if constexpr (kZeros) {
          const auto zeros = Isa::load_int(slab.zeros + b * kPanelRows + v * Isa::kLanes);
          sum = Isa::add_int(sum, Isa::times_zeros(zeros, Isa::set_int(rows[r].corrections[b])));
        }
        const F product = kAtEnd ? Isa::to_float(sum) : Isa::mul(Isa::to_float(sum), scales[v]);
        acc[r][v] = Isa::fma(product, row_scale, acc[r][v]);
      }
    }
  }
  const bool last = kAtEnd && slab.first_block + slab.num_blocks == slab.end_block;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      Isa::store(out[r] + v * Isa::kLanes, last ? Isa::mul(acc[r][v], scales[v]) : acc[r][v]);
    }
  }
}

/// int_rows by tile registers, for up to kTileSumBlocks decoded blocks: 16 rows times a block of
/// signed bytes give exact int32 sums, so the bits are the same.
template <class Isa, IntScales kScales, bool kZeros>
static void tile_register_rows(const MultiplyJob& job, const Slab& slab, bool fresh) {
  constexpr int kScaledRows = 8;  // 16 sums of 32 registers
  constexpr int kVecs = kPanelRows / Isa::kLanes;
  const RowLayout& layout = *job.row_layout;
  alignas(64) int8_t gathered[kTileRegisterRows][kTileSumBlocks * kBlockCols];
  alignas(64) int32_t sums[kTileSumBlocks][kVecs][kTileRegisterRows][Isa::kLanes];
  for (int begin = 0, count; begin < job.num_rows; begin += count) {
    count = tile_rows(job.num_rows - begin, kTileRegisterRows);
    IntRowPointers rows[kTileRegisterRows];
    float* out[kTileRegisterRows];
    for (int r = 0; r < count; ++r) {
      const uint8_t* row = row_at(job, begin + r);
      const int64_t block = slab.first_block;
      rows[r].values = reinterpret_cast<const int8_t*>(row) + block * kBlockCols;
      rows[r].scales = reinterpret_cast<const float*>(row + layout.scales_offset) + block;
      rows[r].corrections =
          reinterpret_cast<const int32_t*>(row + layout.corrections_offset) + block;
      out[r] = job.out + int64_t{begin + r} * kPanelRows;
    }
    const int8_t* values = rows[0].values;
    int64_t stride = layout.row_bytes;
    if (job.row_index != nullptr) {
      values = gathered[0];
      stride = sizeof(gathered[0]);
      for (int r = 0; r < count; ++r) {
        __builtin_memcpy(gathered[r], rows[r].values,
                         static_cast<size_t>(slab.num_blocks) * kBlockCols);
      }
    }
    for (int b = 0; b < slab.num_blocks; ++b) {
      Isa::Tiles::multiply(slab.values + b * slab.block_bytes, values + b * kBlockCols, stride,
                           sums[b]);
    }
    for (int r = 0, n; r < count; r += n) {
      n = tile_rows(count - r, kScaledRows);
      with_count<kScaledRows>(n, [&](auto at_once) {
        scale_tile_sums<Isa, kScales, kZeros, decltype(at_once)::value>(slab, sums, r, rows + r,
                                                                        fresh, out + r);
      });
    }
  }
}

template <class Isa, PanelValues kValues, IntScales kScales, bool kZeros>
static void int_slab(const MultiplyJob& job, Slab slab, bool fresh) {
  using enum IntBytes;
  constexpr bool kInt8 = kValues == PanelValues::kInt8;
  constexpr int kDirectTiles = kInt8 ? 1 : kMaxDirectTiles;
  // VPDPBUSD takes int8 weights as they are, and leaves pipes idle that decode nibbles again for
  // every tile (Zen 4, MXFP4, 64 rows: 392 Gop/s; through a decoded slab 374).
  constexpr bool kDecodes = Isa::kWordCorrections;
  if constexpr (Isa::kHasTiles && kScales != IntScales::kHalfBlocks) {
    if (job.num_rows >= kMinTileRegisterRows) {
      constexpr int kExcess = kZeros ? 0 : kInt8 ? 128 : kValues == PanelValues::kFp4 ? 12 : 8;
      Isa::Tiles::configure(tile_rows(job.num_rows, kTileRegisterRows));
      for (int first = 0; first < slab.num_blocks; first += kTileSumBlocks) {
        Slab part = blocks_of(slab, first, kTileSumBlocks);
        decode_bytes<Isa, kValues, kExcess>(part, job.scratch->decoded);
        part.take_decoded(job.scratch->decoded, PanelValues::kInt8);
        tile_register_rows<Isa, kScales, kZeros>(job, part, fresh && first == 0);
      }
      return Isa::Tiles::release();
    }
  }
  if (!kDecodes || job.num_rows <= kDirectTiles * Isa::kTileRowsInt) {
    return int_rows < Isa, kValues, kInt8 ? kWide : kNarrow, kScales, kZeros > (job, slab, fresh);
  }
  if constexpr (kDecodes && kInt8) {
    for (int first = 0; first < slab.num_blocks; first += kWordBlocks) {
      Slab part = blocks_of(slab, first, kWordBlocks);
      widen_weights<Isa>(part, job.scratch->decoded);
      part.values = job.scratch->decoded;
      part.block_bytes = IntBlock<Isa, PanelValues::kInt8, kWords>::kBlockBytes;
      int_rows<Isa, PanelValues::kInt8, kWords, kScales, kZeros>(job, part, fresh && first == 0);
    }
  } else if constexpr (kDecodes) {
    decode_bytes<Isa, kValues>(slab, job.scratch->decoded);
    slab.take_decoded(job.scratch->decoded, PanelValues::kInt8);
    int_rows<Isa, PanelValues::kInt8, kNarrow, kScales, kZeros>(job, slab, fresh);
  }
}

/// What sums of IntScales::kPowers start at. False where they would not have the bits of kBlocks:
/// scales that are no powers of two, or so far from 1 that products could leave the normal numbers.
template <class Isa>
static bool expand_offsets(const Slab& slab, float* out) {
  constexpr int kMostFactor = 20, kMost = 100;  // exponents, of either sign
  using I = typename Isa::I;
  uint32_t factor;
  __builtin_memcpy(&factor, &slab.factor, sizeof(factor));
  const int exponent = static_cast<int>(factor >> 23) - 127;
  if (slab.codes == nullptr || factor << 9 != 0 || exponent < -kMostFactor ||
      exponent > kMostFactor) {
    return false;
  }
  uint32_t offset;
  __builtin_memcpy(&offset, &kSumOffset, sizeof(offset));
  const I exponents = Isa::set_int(
      static_cast<int32_t>(offset + static_cast<uint32_t>(exponent - 127) * (1u << 23)));
  I most = Isa::set_int(-kMost), least = Isa::set_int(-255);  // least: negative
  for (int b = 0; b < slab.num_blocks; ++b) {
    for (int v = 0; v < kPanelRows / Isa::kLanes; ++v, out += Isa::kLanes) {
      const I codes = Isa::load_bytes(slab.codes + b * slab.code_step + v * Isa::kLanes);
      most = Isa::max_int(most, codes);
      least = Isa::max_int(least, Isa::sub_int(Isa::set_int(0), codes));
      Isa::store(out, Isa::as_float(Isa::add_int(Isa::template shift_left<23>(codes), exponents)));
    }
  }
  return Isa::reduce_max(most) - 127 + exponent <= kMost &&
         -Isa::reduce_max(least) - 127 + exponent >= -kMost;
}

/// From so many rows on offsets are worth expanding: that reads a slab's scales at once, which few
/// rows do not hide (from memory, 4 rows: 305 to 289 Gop/s).
constexpr int kMinPowerRows = 6;

template <class Isa>
static void int_values(const MultiplyJob& job, const Slab& slab, bool fresh) {
  using enum PanelValues;
  using enum IntScales;
  const bool zeros = job.layout->zero_points;
  switch (job.layout->values) {
    case kFp4:
      if (slab.half_scales) return int_slab<Isa, kFp4, kHalfBlocks, false>(job, slab, fresh);
      if constexpr (!Isa::kWordCorrections) {
        if (job.num_rows >= kMinPowerRows &&
            !(Isa::kHasTiles && job.num_rows >= kMinTileRegisterRows) &&
            expand_offsets<Isa>(slab, job.scratch->scales)) {
          return int_slab<Isa, kFp4, kPowers, false>(job, slab, fresh);
        }
      }
      return int_slab<Isa, kFp4, kBlocks, false>(job, slab, fresh);
    case kInt4:
      return zeros ? int_slab<Isa, kInt4, kBlocks, true>(job, slab, fresh)
                   : int_slab<Isa, kInt4, kBlocks, false>(job, slab, fresh);
    default:
      return slab.scale_step == 0 ? int_slab<Isa, kInt8, kOutputs, false>(job, slab, fresh)
                                  : int_slab<Isa, kInt8, kBlocks, false>(job, slab, fresh);
  }
}

}  // namespace
}  // namespace switchyard::cpu
