#pragma once
// How each packed format becomes vectors of one column and kLanes rows: scales, zero points and
// values. Included only by kernels_*.cpp; internal linkage.

#include "cpu/kernels.h"

namespace switchyard::cpu {
namespace {

/// Address of the unit (dword, or word where lines interleave words) `unit` of vector `vec` in a
/// block.
template <class Isa, PanelValues kValues>
SWITCHYARD_INLINE const uint8_t* unit_address(const uint8_t* block, int vec, int unit) {
  constexpr int64_t kUnitBytes = interleaves_words(kValues) ? 2 : 4;
  return block + (int64_t{unit} * kPanelRows + int64_t{vec} * Isa::kLanes) * kUnitBytes;
}

/// Columns that one load_columns delivers.
constexpr int columns_per_load(PanelValues values) {
  switch (values) {
    case PanelValues::kF32:
    case PanelValues::kF16: return 1;
    case PanelValues::kBf16:
    case PanelValues::kFp8E4m3:
    case PanelValues::kFp8E5m2: return 2;
    default: return 4;
  }
}

/// Whether values carry a scale (the others are stored as they are).
constexpr bool has_scales(PanelValues values) {
  return values != PanelValues::kF32 && values != PanelValues::kF16 && values != PanelValues::kBf16;
}

/// Whether stored codes exceed their values by a zero point.
constexpr bool has_zeros(PanelValues values) {
  return values == PanelValues::kInt4 || values == PanelValues::kInt8;
}

/// Pairs of bf16, the first in the upper half, as f32.
template <class Isa>
SWITCHYARD_INLINE void split_pairs(typename Isa::I pairs, typename Isa::F* out) {
  out[0] = Isa::as_float(Isa::bit_and(pairs, Isa::set_int(static_cast<int32_t>(0xffff0000u))));
  out[1] = Isa::as_float(Isa::template shift_left<16>(pairs));
}

template <class Isa>
SWITCHYARD_INLINE void load_int8(typename Isa::I bytes, typename Isa::F* out) {
  const typename Isa::I mask = Isa::set_int(255);
  out[0] = Isa::to_float(Isa::bit_and(bytes, mask));
  out[1] = Isa::to_float(Isa::bit_and(Isa::template shift_right<8>(bytes), mask));
  out[2] = Isa::to_float(Isa::bit_and(Isa::template shift_right<16>(bytes), mask));
  out[3] = Isa::to_float(Isa::template shift_right<24>(bytes));
}

/// Columns [load * columns_per_load, ...) of a block, unscaled: fp4 and floats by value (e4m3 times
/// 2^-8), int4 and int8 as their unsigned codes.
template <class Isa, PanelValues kValues>
SWITCHYARD_INLINE void load_columns(const uint8_t* block, int vec, int load, typename Isa::F* out) {
  using I = typename Isa::I;
  const auto at = [&](int unit) { return unit_address<Isa, kValues>(block, vec, unit); };
  if constexpr (kValues == PanelValues::kF32) {
    out[0] = Isa::as_float(Isa::load_int(at(load)));
  } else if constexpr (kValues == PanelValues::kF16) {
    out[0] = Isa::load_halves(at(load));
  } else if constexpr (kValues == PanelValues::kBf16) {
    const I pairs = Isa::load_int(at(load));
    split_pairs<Isa>(pairs, out);
  } else if constexpr (kValues == PanelValues::kFp8E4m3 || kValues == PanelValues::kFp8E5m2) {
    constexpr bool kE4m3 = kValues == PanelValues::kFp8E4m3;
    out[0] = Isa::template load_fp8<false, kE4m3>(at(load));
    out[1] = Isa::template load_fp8<true, kE4m3>(at(load));
  } else if constexpr (kValues == PanelValues::kInt8) {
    load_int8<Isa>(Isa::load_int(at(load)), out);
  } else {
    constexpr bool kFp4 = kValues == PanelValues::kFp4;
    const I codes = Isa::load_int(at(load % 4));
    Isa::template nibbles<kFp4>(load < 4 ? codes : Isa::template shift_right<4>(codes), out);
  }
}

/// kLanes stored scales at p as f32.
template <class Isa>
SWITCHYARD_INLINE typename Isa::F load_scales(const uint8_t* p, PanelScales scales) {
  switch (scales) {
    case PanelScales::kE8m0: return Isa::as_float(Isa::template shift_left<23>(Isa::load_bytes(p)));
    case PanelScales::kE4m3: {
      // The exponent moved into place is 2^120 short; positive, and its subnormals are integers.
      const typename Isa::I codes = Isa::load_bytes(p);
      const typename Isa::F normal =
          Isa::as_float(Isa::add_int(Isa::template shift_left<20>(codes), Isa::set_int(120 << 23)));
      const typename Isa::F subnormal = Isa::mul(Isa::to_float(codes), Isa::set(0x1p-9f));
      return Isa::select_less(Isa::to_float(codes), Isa::set(8.0f), subnormal, normal);
    }
    case PanelScales::kF32: return Isa::load(reinterpret_cast<const float*>(p));
    case PanelScales::kBf16: return Isa::as_float(Isa::template shift_left<16>(Isa::load_words(p)));
    case PanelScales::kF16: return Isa::load_halves(p);
    case PanelScales::kNone: break;
  }
  return Isa::set(1.0f);
}

constexpr int stored_scale_bytes(PanelScales scales) {
  return scales == PanelScales::kNone                                  ? 0
         : scales == PanelScales::kF32                                 ? 4
         : scales == PanelScales::kBf16 || scales == PanelScales::kF16 ? 2
                                                                       : 1;
}

/// Scales of blocks [first, first + count), one row of 32 per block (per half block where scales
/// are per 16), times `factor`.
template <class Isa>
static void expand_scales(const PanelLayout& layout, const uint8_t* panel, int first, int count,
                          float factor, float* out) {
  const int step = layout.scale_cols < kBlockCols ? layout.scale_cols : kBlockCols;
  const int bytes = stored_scale_bytes(layout.scales);
  const typename Isa::F factors = Isa::set(factor);
  int index = first * kBlockCols / layout.scale_cols;
  int col = first * kBlockCols;
  const int end = col + count * kBlockCols;
  for (; col < end; ++index) {
    const uint8_t* stored = panel + index * kPanelRows * bytes;
    const int next = (index + 1) * layout.scale_cols < end ? (index + 1) * layout.scale_cols : end;
    typename Isa::F scales[kPanelRows / Isa::kLanes];
    for (int v = 0; v < kPanelRows / Isa::kLanes; ++v) {
      scales[v] =
          Isa::mul(load_scales<Isa>(stored + v * Isa::kLanes * bytes, layout.scales), factors);
    }
    for (; col < next; col += step, out += kPanelRows) {
      for (int v = 0; v < kPanelRows / Isa::kLanes; ++v) {
        Isa::store(out + v * Isa::kLanes, scales[v]);
      }
    }
  }
}

/// Zero points of blocks [first, first + count): z, or where `negated` the word -z in each dword's
/// lower half, or both where corrections are words. `absent` where the matrix stores none.
template <class Isa>
static void expand_zeros(const PanelLayout& layout, const uint8_t* panel, int first, int count,
                         int absent, bool negated, int32_t* out) {
  for (int b = 0; b < count; ++b) {
    const int index = (first + b) * kBlockCols / layout.scale_cols;
    const uint8_t* stored = panel + layout.zeros_offset + index * kPanelRows;
    for (int row = 0; row < kPanelRows; row += Isa::kLanes, out += Isa::kLanes) {
      auto zero = layout.zero_points ? Isa::load_bytes(stored + row) : Isa::set_int(absent);
      if (negated) {
        const auto minus = Isa::sub_int(Isa::set_int(0), zero);
        zero = Isa::bit_and(minus, Isa::set_int(0xffff));
        if (Isa::kWordCorrections) zero = Isa::bit_or(zero, Isa::template shift_left<16>(minus));
      }
      Isa::store_int(out, zero);
    }
  }
}

}  // namespace
}  // namespace switchyard::cpu
