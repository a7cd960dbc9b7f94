#pragma once
// Matrices as the generic kernels read them: rows of any format with scales per row and group of
// columns. Trivially copyable, so that a kernel takes one by value.

#include <cstdint>

#include "core/fragment_layout.h"
#include "core/math.h"
#include "switchyard/layer_spec.h"

namespace switchyard::cuda {

/// Rows start on this boundary and are padded to it, so that eight elements are one access.
inline constexpr int64_t kRowAlignment = 16;

constexpr int64_t padded_row_bytes(Format format, int64_t cols) {
  return align_up<int64_t>(ceil_div<int64_t>(cols * element_bits(format), 8), kRowAlignment);
}

enum class ScaleKind : int32_t { kNone, kF32, kE8m0, kE4m3 };

/// How a format's scales are kept here: one per row and group of columns.
constexpr ScaleKind scale_kind(Format format) {
  switch (format) {
    case Format::kMxfp4:
    case Format::kMxfp8: return ScaleKind::kE8m0;
    case Format::kNvfp4: return ScaleKind::kE4m3;
    default: return ScaleKind::kF32;
  }
}
constexpr int64_t scale_kind_bytes(ScaleKind kind) { return kind == ScaleKind::kF32 ? 4 : 1; }

struct StoredRows {
  Format format = Format::kF32;
  const void* values = nullptr;
  int64_t row_bytes = 0;
  /// Whole groups of eight may be read with one access.
  bool aligned = true;
  ScaleKind scale_kind = ScaleKind::kNone;
  const void* scales = nullptr;  ///< [rows][num_groups]
  int32_t num_groups = 1;
  int32_t group_size = 0;  ///< columns; 0: the whole row
};

/// Packed weights of all experts on the device; gate and up rows alternate when there are both.
struct WeightRows {
  StoredRows rows{};  ///< of expert 0
  /// Unless kRowMajor: rows.values are blocks in fragment order, scales among them.
  FragmentLayout fragments{};
  const float* row_scales = nullptr;  ///< fragments: [E][num_rows]
  int64_t expert_bytes = 0;
  int64_t expert_scales = 0;             ///< scales of one expert
  const uint8_t* zero_points = nullptr;  ///< shaped like the scales; null: 8
  const int32_t* group_index = nullptr;  ///< [E][halves][cols] or null
  const float* smooth_scales = nullptr;  ///< [E][cols] or null; multiply the input's channels
  const float* global_scales = nullptr;  ///< [E][halves] or null
  const float* bias = nullptr;           ///< [E][num_rows] or null
  int32_t num_rows = 0;
  int32_t num_cols = 0;
  int32_t halves = 1;  ///< 2: row r belongs to gate (even) or up (odd)
};

}  // namespace switchyard::cuda
