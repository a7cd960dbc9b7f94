#pragma once
// Stored numbers to f32, eight neighbours of a row at a time.

#include "core/number_formats.h"
#include "cuda/stored_rows.h"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda {

/// The bytes of eight elements, first in the low bytes; 4-bit formats use one word, f32 all eight.
struct StoredVector {
  uint32_t words[8];
};

__device__ inline StoredVector load_stored(const StoredRows& rows, int64_t row, int32_t col,
                                           int32_t num_cols) {
  StoredVector raw{};
  const int bits = element_bits(rows.format);
  const char* at = static_cast<const char*>(rows.values) + row * rows.row_bytes +
                   static_cast<int64_t>(col) * bits / 8;
  if (!rows.aligned) {  // the caller's own f32, bf16 or f16 rows
    for (int j = 0; j < kVector && col + j < num_cols; ++j) {
      if (bits == 32) {
        raw.words[j] = reinterpret_cast<const uint32_t*>(at)[j];
      } else {
        const uint32_t code = reinterpret_cast<const uint16_t*>(at)[j];
        raw.words[j / 2] |= code << (j % 2 * 16);
      }
    }
    return raw;
  }
  if (bits == 4) {
    raw.words[0] = *reinterpret_cast<const uint32_t*>(at);
  } else if (bits == 8) {
    const uint2 two = *reinterpret_cast<const uint2*>(at);
    raw.words[0] = two.x, raw.words[1] = two.y;
  } else {
    const uint4 low = *reinterpret_cast<const uint4*>(at);
    raw.words[0] = low.x, raw.words[1] = low.y, raw.words[2] = low.z, raw.words[3] = low.w;
    if (bits == 32) {
      const uint4 high = reinterpret_cast<const uint4*>(at)[1];
      raw.words[4] = high.x, raw.words[5] = high.y, raw.words[6] = high.z, raw.words[7] = high.w;
    }
  }
  return raw;
}

/// Eight codes of a weight row, gathered from the words of fragment order where that is its order.
__device__ inline StoredVector load_weights(const WeightRows& w, int64_t expert, int32_t row,
                                            int32_t col) {
  const char* values = static_cast<const char*>(w.rows.values) + expert * w.expert_bytes;
  if (w.fragments.order == FragmentOrder::kRowMajor) {
    StoredRows rows = w.rows;
    rows.values = values;
    return load_stored(rows, row, col, w.num_cols);
  }
  const auto* block =
      reinterpret_cast<const uint32_t*>(values + fragment_block(w.fragments, row, col));
  StoredVector raw{};
  for (int j = 0; j < kVector; ++j) {
    const CodePlace place = code_place(w.fragments, row % kFragmentRows, (col + j) % kFragmentCols);
    const int bit = element_bits(w.rows.format) * j;
    raw.words[bit / 32] |= code_of(block[place.word], place) << (bit % 32);
  }
  return raw;
}

/// Values without scale; int4 without its zero point.
__device__ inline void decode(Format format, const StoredVector& raw, float (&v)[kVector]) {
  const auto code16 = [&](int j) { return raw.words[j / 2] >> (j % 2 * 16) & 0xffffu; };
  const auto code8 = [&](int j) { return static_cast<uint8_t>(raw.words[j / 4] >> (j % 4 * 8)); };
  const auto code4 = [&](int j) { return static_cast<uint8_t>(raw.words[0] >> (j * 4) & 15u); };
  const auto each = [&](auto value) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = value(j);
  };
  switch (format) {
    case Format::kF32: return each([&](int j) { return __uint_as_float(raw.words[j]); });
    case Format::kF16: return each([&](int j) { return f16_bits_to_f32(code16(j)); });
    case Format::kBf16: return each([&](int j) { return __uint_as_float(code16(j) << 16); });
    case Format::kFp8E4m3:
    case Format::kMxfp8: return each([&](int j) { return fp8_e4m3_to_f32(code8(j)); });
    case Format::kFp8E5m2: return each([&](int j) { return f16_bits_to_f32(code8(j) << 8); });
    case Format::kInt8:
      return each([&](int j) { return static_cast<float>(static_cast<int8_t>(code8(j))); });
    case Format::kInt4: return each([&](int j) { return static_cast<float>(code4(j)); });
    case Format::kMxfp4:
    case Format::kNvfp4: return each([&](int j) { return fp4_e2m1_to_f32(code4(j)); });
  }
}

__device__ inline float load_scale(ScaleKind kind, const void* scales, int64_t index) {
  switch (kind) {
    case ScaleKind::kF32: return static_cast<const float*>(scales)[index];
    case ScaleKind::kE8m0: return e8m0_to_f32(static_cast<const uint8_t*>(scales)[index]);
    case ScaleKind::kE4m3: return fp8_e4m3_to_f32(static_cast<const uint8_t*>(scales)[index]);
    case ScaleKind::kNone: break;
  }
  return 1.0f;
}

/// Activations: values times the scale of their group; 0 from num_cols on.
__device__ inline void decode_input(const StoredRows& rows, int64_t row, int32_t col,
                                    int32_t num_cols, const StoredVector& raw,
                                    float (&v)[kVector]) {
  decode(rows.format, raw, v);
  if (rows.scale_kind != ScaleKind::kNone) {
    const int32_t group = rows.group_size == 0 ? 0 : col / rows.group_size;
    const float scale = load_scale(rows.scale_kind, rows.scales, row * rows.num_groups + group);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] *= scale;
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j) v[j] = col + j < num_cols ? v[j] : 0.0f;
}

/// Scale (global scale included) and zero point of one group of a weight row.
struct GroupFactors {
  float scale, zero_point;
};
__device__ inline GroupFactors load_factors(const WeightRows& w, int64_t expert, int32_t row,
                                            int32_t group) {
  if (w.fragments.order != FragmentOrder::kRowMajor) {
    const int32_t col = group * w.rows.group_size;
    const char* at = static_cast<const char*>(w.rows.values) + expert * w.expert_bytes +
                     fragment_block(w.fragments, row, col) +
                     scale_place(w.fragments, row % kFragmentRows, col % kFragmentCols);
    const int bytes = w.fragments.scale_bytes;
    const uint32_t scale = bytes == 4   ? *reinterpret_cast<const uint32_t*>(at)
                           : bytes == 2 ? *reinterpret_cast<const uint16_t*>(at)
                                        : *reinterpret_cast<const uint8_t*>(at);
    const uint32_t zero_point = bytes == 4                       ? int4_zero_point(scale)
                                : w.rows.format == Format::kInt4 ? kInt4ZeroPoint
                                                                 : 0u;
    return {fragment_scale(w.fragments, scale, w.row_scales[expert * w.num_rows + row]),
            static_cast<float>(zero_point)};
  }
  const int64_t at =
      expert * w.expert_scales + static_cast<int64_t>(row) * w.rows.num_groups + group;
  GroupFactors f{load_scale(w.rows.scale_kind, w.rows.scales, at), 0.0f};
  if (w.global_scales != nullptr) f.scale *= w.global_scales[expert * w.halves + row % w.halves];
  if (w.rows.format == Format::kInt4) {
    f.zero_point = w.zero_points == nullptr ? static_cast<float>(kInt4ZeroPoint)
                                            : static_cast<float>(w.zero_points[at]);
  }
  return f;
}

/// Weights: (value - zero point) * scale [* smooth scale of the column], finite from num_cols on.
__device__ inline void decode_weights(const WeightRows& w, int64_t expert, int32_t row, int32_t col,
                                      const StoredVector& raw, float (&v)[kVector]) {
  decode(w.rows.format, raw, v);
  const int64_t half = expert * w.halves + row % w.halves;
  const int32_t group_size = w.rows.group_size;
  if (w.group_index == nullptr && group_size % kVector == 0) {
    const GroupFactors f = load_factors(w, expert, row, group_size == 0 ? 0 : col / group_size);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = (v[j] - f.zero_point) * f.scale;
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const int32_t at = min(col + j, w.num_cols - 1);
      const int32_t group =
          w.group_index != nullptr ? w.group_index[half * w.num_cols + at] : at / group_size;
      const GroupFactors f = load_factors(w, expert, row, group);
      v[j] = (v[j] - f.zero_point) * f.scale;
    }
  }
  if (w.smooth_scales == nullptr) return;
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    v[j] *= w.smooth_scales[expert * w.num_cols + min(col + j, w.num_cols - 1)];
  }
}

}  // namespace switchyard::cuda
