// StoredMatrix + MatrixFormat -> WeightMatrix.

#include "checkpoint/matrix_loader.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "checkpoint/int4_repack.h"
#include "checkpoint/json.h"
#include "core/math.h"
#include "core/number_formats.h"
#include "switchyard/error.h"

namespace switchyard {

namespace {

[[noreturn]] void fail(const CheckpointTensor& tensor, int64_t expert, const std::string& what) {
  const std::string who = expert < 0 ? "" : fmt::format(", expert {}", expert);
  throw Error(ErrorCode::kInvalidFile, fmt::format("{}{}: {}", printable(tensor.name), who, what));
}

TensorView view_2d(const void* data, DataType type, int64_t rows, int64_t cols) {
  return TensorView::contiguous(data, type, {rows, cols});
}

/// Finite for every type that scales have; E8M0 and E4M3 have a NaN but no infinity.
template <class T, class IsBad>
int64_t find_bad(const void* data, int64_t count, IsBad is_bad) {
  const T* values = static_cast<const T*>(data);
  for (int64_t i = 0; i < count; ++i) {
    if (is_bad(values[i])) return i;
  }
  return -1;
}

int64_t find_bad_scale(const TensorView& scales) {
  const int64_t count = scales.num_elements();
  switch (scales.type) {
    case DataType::kF32:
      return find_bad<float>(scales.data, count, [](float v) { return !std::isfinite(v); });
    case DataType::kBf16:
      return find_bad<uint16_t>(scales.data, count,
                                [](uint16_t v) { return (v & 0x7f80u) == 0x7f80u; });
    case DataType::kF16:
      return find_bad<uint16_t>(scales.data, count,
                                [](uint16_t v) { return (v & 0x7c00u) == 0x7c00u; });
    case DataType::kF8E4m3:
      return find_bad<uint8_t>(scales.data, count, [](uint8_t v) { return (v & 0x7fu) == 0x7fu; });
    default:  // E8M0, also as U8
      const void* bad = std::memchr(scales.data, 255, static_cast<size_t>(count));
      return bad == nullptr ? -1 : static_cast<const char*>(bad) - scales.as<const char>();
  }
}

void check_scales(const CheckpointTensor& tensor, const TensorView& scales, int64_t expert) {
  const int64_t bad = find_bad_scale(scales);
  if (bad < 0) return;
  fail(tensor, expert,
       fmt::format("the scale at [{}, {}] is NaN or infinite", bad / scales.extent(1),
                   bad % scales.extent(1)));
}

/// Scales as [rows, cols] blocks of this matrix.
TensorView load_scales(const CheckpointTensor& tensor, const MatrixFormat& format, int64_t expert,
                       Arena& arena) {
  const TensorView slice = expert_slice(tensor, format, expert);
  TensorView scales = view_2d(slice.data, slice.type, format.scale_rows, format.scale_cols);
  const bool transposed = format.packing != Packing::kPlain ||
                          (format.k_major && format.scale_rows > 1 && format.scale_cols > 1);
  if (format.per_half_scale) {
    check_scales(tensor, view_2d(slice.data, slice.type, 2, 1), expert);
    return scales;
  }
  if (transposed) {
    const TensorView stored = view_2d(slice.data, slice.type, format.scale_cols, format.scale_rows);
    check_scales(tensor, stored, expert);
    scales.data = arena.allocate<std::byte>(scales.num_elements() * element_bytes(scales.type));
    transpose_elements(stored.data, element_bytes(scales.type), stored.extent(0), stored.extent(1),
                       scales.data);
    return scales;
  }
  check_scales(tensor, scales, expert);
  return scales;
}

TensorView load_values(const StoredMatrix& stored, const MatrixFormat& format, int64_t expert,
                       Arena& arena) {
  const TensorView slice = expert_slice(*stored.values(), format, expert);
  const int64_t rows = format.rows;
  const int64_t cols = format.cols;
  if (format.packing == Packing::kGptq) {
    // A word holds eight k of one n already in our order: only words change places.
    auto* words = arena.allocate<uint32_t>(rows * cols / 8);
    transpose_elements(slice.data, sizeof(uint32_t), cols / 8, rows, words);
    return view_2d(words, DataType::kU8, rows, cols / 2);
  }
  if (format.packing == Packing::kAwq) {
    auto* bytes = arena.allocate<uint8_t>(rows * cols / 2);
    repack_awq(slice.as<const uint32_t>(), rows, cols, bytes);
    return view_2d(bytes, DataType::kU8, rows, cols / 2);
  }
  if (format.k_major) {
    TensorView view = view_2d(slice.data, slice.type, cols, rows);
    std::swap(view.shape[0], view.shape[1]);
    std::swap(view.strides[0], view.strides[1]);
    return view;
  }
  return view_2d(slice.data, slice.type, rows, slice.num_elements() / rows);
}

TensorView load_zero_points(const CheckpointTensor& tensor, const MatrixFormat& format,
                            Arena& arena) {
  const ZeroPointPacking packing = format.packing == Packing::kPlain ? ZeroPointPacking::kAlongRows
                                   : format.packing == Packing::kAwq ? ZeroPointPacking::kAwq
                                   : format.zero_points_minus_one ? ZeroPointPacking::kGptqMinusOne
                                                                  : ZeroPointPacking::kGptq;
  auto* bytes = arena.allocate<uint8_t>(format.rows * format.scale_cols);
  unpack_zero_points(tensor.view.as<const uint32_t>(), packing, format.rows, format.scale_cols,
                     bytes);
  return view_2d(bytes, DataType::kU8, format.rows, format.scale_cols);
}

/// Empty when the index only repeats column / group, which is what most files hold.
TensorView load_group_index(const CheckpointTensor& tensor, const MatrixFormat& format,
                            int64_t expert) {
  const auto* groups = tensor.view.as<const int32_t>();
  const int64_t width = format.block.cols == 0 ? format.cols : format.block.cols;
  bool plain = true;
  for (int64_t col = 0; col < format.cols; ++col) {
    if (groups[col] < 0 || groups[col] >= format.scale_cols) {
      fail(tensor, expert,
           fmt::format("the group of column {} is {}; there are {} groups", col, groups[col],
                       format.scale_cols));
    }
    plain &= groups[col] == col / width;
  }
  return plain ? TensorView{} : tensor.view;
}

/// The second-level scale of one expert, or of one half of a fused matrix.
float load_global_scale(const StoredMatrix& stored, const MatrixFormat& format, int64_t expert,
                        Half half) {
  const bool divides = stored[Part::kGlobalDivisor] != nullptr;
  const CheckpointTensor* tensor = stored[divides ? Part::kGlobalDivisor : Part::kGlobalScale];
  if (tensor == nullptr) return 1.0f;
  const TensorView slice = expert_slice(*tensor, format, expert);
  const bool per_half = slice.num_elements() == 2;
  const float value = slice.as<const float>()[per_half ? static_cast<int64_t>(half) : 0];
  if (!std::isfinite(value) || (divides && value == 0.0f)) {
    fail(*tensor, expert, fmt::format("the global scale is {}", value));
  }
  return divides ? 1.0f / value : value;
}

}  // namespace

TensorView expert_slice(const CheckpointTensor& tensor, const MatrixFormat& format,
                        int64_t expert) {
  TensorView view = tensor.view;
  if (!format.stacked) return view;
  view.data = view.as<std::byte>() + expert * view.stride(0) * element_bytes(view.type);
  --view.rank;
  for (size_t d = 0; d + 1 < view.shape.size(); ++d) {
    view.shape[d] = view.shape[d + 1];
    view.strides[d] = view.strides[d + 1];
  }
  return view;
}

WeightMatrix load_matrix(const StoredMatrix& stored, const MatrixFormat& format, int64_t expert,
                         Arena& arena) {
  WeightMatrix matrix{.format = format.format, .rows = format.rows, .cols = format.cols};
  matrix.values = load_values(stored, format, expert, arena);
  matrix.scale_block = format.block;
  if (const CheckpointTensor* scale = stored[Part::kScale]) {
    matrix.scales = load_scales(*scale, format, expert, arena);
  }
  if (const CheckpointTensor* zeros = stored[Part::kZeroPoint]) {
    matrix.zero_points = load_zero_points(*zeros, format, arena);
  }
  if (const CheckpointTensor* index = stored[Part::kGroupIndex]) {
    matrix.group_index = load_group_index(*index, format, expert);
  }
  matrix.global_scale = load_global_scale(stored, format, expert, Half::kGate);
  return matrix;
}

WeightMatrix take_half(const WeightMatrix& whole, const StoredMatrix& stored,
                       const MatrixFormat& format, int64_t expert, Half half, GateUpOrder order) {
  WeightMatrix matrix = whole;
  matrix.rows = whole.rows / 2;
  const auto index = static_cast<int64_t>(half);
  const bool interleaved = order == GateUpOrder::kInterleaved;
  matrix.scale_row_begin = interleaved ? index : index * matrix.rows;
  matrix.scale_row_step = interleaved ? 2 : 1;
  for (TensorView* view : {&matrix.values, &matrix.zero_points}) {
    if (view->empty()) continue;
    view->data = view->as<std::byte>() +
                 matrix.scale_row_begin * view->stride(0) * element_bytes(view->type);
    view->shape[0] = matrix.rows;
    view->strides[0] *= matrix.scale_row_step;
  }
  if (format.per_half_scale) {
    matrix.scales.data = matrix.scales.as<std::byte>() + index * element_bytes(matrix.scales.type);
  }
  matrix.global_scale = load_global_scale(stored, format, expert, half);
  return matrix;
}

TensorView load_bias(const StoredMatrix& stored, const MatrixFormat& format, int64_t expert) {
  const CheckpointTensor* bias = stored[Part::kBias];
  return bias == nullptr ? TensorView{} : expert_slice(*bias, format, expert);
}

TensorView take_half(const TensorView& bias, Half half, GateUpOrder order) {
  if (bias.empty()) return bias;
  TensorView view = bias;
  const bool interleaved = order == GateUpOrder::kInterleaved;
  view.shape[0] /= 2;
  const int64_t begin = static_cast<int64_t>(half) * (interleaved ? 1 : view.extent(0));
  view.data = view.as<std::byte>() + begin * view.stride(0) * element_bytes(view.type);
  if (interleaved) view.strides[0] *= 2;
  return view;
}

}  // namespace switchyard
