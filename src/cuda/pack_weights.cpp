#include "cuda/pack_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/number_formats.h"
#include "core/scale_layout.h"
#include "cuda/check.h"

namespace switchyard::cuda {
namespace {

/// Copies row `row` of the stored values; the rest of the padded row stays zero.
void copy_values(const WeightMatrix& matrix, int64_t row, char* to) {
  const TensorView& values = matrix.values;
  const int64_t word = element_bytes(values.type);
  const int64_t bytes = ceil_div<int64_t>(matrix.cols * element_bits(matrix.format), 8);
  const char* from = values.as<const char>() + row * values.stride(0) * word;
  if (values.stride(1) == 1) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    return;
  }
  for (int64_t at = 0, i = 0; at < bytes; at += word, ++i) {
    std::memcpy(to + at, from + i * values.stride(1) * word,
                static_cast<size_t>(std::min(word, bytes - at)));
  }
}

int64_t scale_row(const WeightMatrix& matrix, int64_t row) {
  return scale_index(matrix.scale_row_begin + row * matrix.scale_row_step, matrix.scale_block.rows);
}

/// Scales of one row as they are stored.
void copy_stored_scales(const WeightMatrix& matrix, int64_t row, int64_t num_groups, char* to) {
  const TensorView& scales = matrix.scales;
  const int64_t bytes = element_bytes(scales.type);
  const char* from = scales.as<const char>() + scale_row(matrix, row) * scales.stride(0) * bytes;
  for (int64_t g = 0; g < num_groups; ++g) {
    std::memcpy(to + g * bytes, from + g * scales.stride(1) * bytes, static_cast<size_t>(bytes));
  }
}

/// Scales of one row, one per group of columns, as the kernels keep them.
void copy_scales(const WeightMatrix& matrix, int64_t row, int64_t num_groups, ScaleKind kind,
                 char* to) {
  const TensorView& scales = matrix.scales;
  for (int64_t g = 0; g < num_groups; ++g) {
    const int64_t at = scale_row(matrix, row) * scales.stride(0) + g * scales.stride(1);
    if (kind == ScaleKind::kF32) {
      const DataType type = scales.type == DataType::kU8 ? DataType::kF8E8m0 : scales.type;
      const float scale = scales.empty() ? 1.0f : load_as_f32(scales.data, type, at);
      std::memcpy(to + g * 4, &scale, sizeof(scale));
    } else {
      to[g] = scales.as<const char>()[at];
    }
  }
}

void copy_zero_points(const WeightMatrix& matrix, int64_t row, int64_t num_groups, char* to) {
  const TensorView& zeros = matrix.zero_points;
  for (int64_t g = 0; g < num_groups; ++g) {
    to[g] = zeros.empty() ? static_cast<char>(kInt4ZeroPoint)
                          : zeros.as<const char>()[row * zeros.stride(0) + g * zeros.stride(1)];
  }
}

/// int4_factor() of every group of one row.
void copy_factors(const WeightMatrix& matrix, int64_t row, int64_t num_groups, char* to) {
  std::vector<char> zeros(static_cast<size_t>(num_groups));
  copy_scales(matrix, row, num_groups, ScaleKind::kF32, to);
  copy_zero_points(matrix, row, num_groups, zeros.data());
  for (int64_t g = 0; g < num_groups; ++g) {
    const auto zero_point = static_cast<uint8_t>(zeros[static_cast<size_t>(g)]);
    if (zero_point > kInt4ZeroBits) {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("an INT4 zero point is {}; the CUDA backend has at most {}",
                              zero_point, kInt4ZeroBits));
    }
    float scale;
    std::memcpy(&scale, to + g * 4, sizeof(scale));
    const uint32_t factor = int4_factor(scale, zero_point);
    std::memcpy(to + g * 4, &factor, sizeof(factor));
  }
}

int64_t num_groups_of(const WeightMatrix& matrix) {
  if (!matrix.scales.empty()) return matrix.scales.extent(1);
  if (!matrix.zero_points.empty()) return matrix.zero_points.extent(1);
  return 1;
}

/// The MX and NVFP4 kinds hold bytes; any other type of scale becomes f32.
ScaleKind kept_scales(const WeightMatrix& matrix) {
  const ScaleKind kind = scale_kind(matrix.format);
  if (matrix.scales.empty() && matrix.zero_points.empty()) return ScaleKind::kNone;
  if (matrix.scales.empty() || element_bytes(matrix.scales.type) != 1) return ScaleKind::kF32;
  if (matrix.scales.type == DataType::kF8E4m3) return ScaleKind::kE4m3;
  return kind == ScaleKind::kE8m0 ? kind : ScaleKind::kF32;
}

void require_like_example(bool holds, int64_t expert, const char* what) {
  if (holds) return;
  throw Error(
      ErrorCode::kUnsupported,
      fmt::format("expert {}: its {} differ from expert 0's; the CUDA backend packs experts "
                  "that are stored alike",
                  expert, what));
}

/// Whether matrices stored like `example` can be kept in fragment order.
bool has_fragment_order(const WeightMatrix& example) {
  const ScaleBlock block = example.scale_block;
  if (block.rows != 1 || example.scales.empty()) return false;
  switch (example.format) {
    case Format::kMxfp4:
    case Format::kMxfp8: return kept_scales(example) == ScaleKind::kE8m0 && block.cols == 32;
    case Format::kNvfp4: return kept_scales(example) == ScaleKind::kE4m3 && block.cols == 16;
    case Format::kInt4: {
      const DataType type = example.scales.type;
      return (type == DataType::kBf16 || type == DataType::kF16) && example.group_index.empty() &&
             (block.cols == 32 || block.cols % kFragmentCols == 0);
    }
    default: return false;
  }
}
/// FragmentLayout of such a matrix: whether kInt4 needs more than bf16 scales.
bool has_factors(const WeightMatrix& example) {
  return example.format == Format::kInt4 &&
         (example.scales.type != DataType::kBf16 || !example.zero_points.empty());
}

}  // namespace

FragmentOrder fragment_order(ActivationFormat activations, const WeightMatrix& up,
                             const WeightMatrix& down, int device) {
  if (device_facts(device).capability != 90) return FragmentOrder::kRowMajor;
  if (!has_fragment_order(up) || !has_fragment_order(down)) return FragmentOrder::kRowMajor;
  const auto of = [&](FragmentOrder order, auto... formats) {
    return ((up.format == formats) || ...) ? order : FragmentOrder::kRowMajor;
  };
  // Zero points of 32 columns are rare, and each operand has kernels of its own.
  const bool short_factors = up.format == Format::kInt4 && up.scale_block.cols == 32 &&
                             (has_factors(up) || has_factors(down));
  if (short_factors && activations != ActivationFormat::kNone) return FragmentOrder::kRowMajor;
  switch (activations) {
    case ActivationFormat::kNone: return FragmentOrder::kBf16;
    case ActivationFormat::kMxfp8:  // MXFP8 rows become bf16, too
      if (up.format == Format::kMxfp8) return FragmentOrder::kBf16;
      return of(FragmentOrder::kFp8, Format::kMxfp4);
    case ActivationFormat::kFp8PerTensor:
    case ActivationFormat::kFp8PerToken:
      return of(FragmentOrder::kFp8, Format::kMxfp4, Format::kInt4, Format::kNvfp4);
    case ActivationFormat::kFp8Block128:
    case ActivationFormat::kMxfp4: return of(FragmentOrder::kFp8, Format::kMxfp4);
    case ActivationFormat::kInt8PerToken: return of(FragmentOrder::kInt8, Format::kInt4);
    default: return FragmentOrder::kRowMajor;
  }
}

PackedMatrices::Part PackedMatrices::allocate(int64_t expert_bytes, int64_t num_experts) const {
  return {DeviceBuffer(expert_bytes * num_experts), expert_bytes};
}

PackedMatrices::PackedMatrices(const WeightMatrix& example, int32_t halves, bool has_bias,
                               int64_t num_experts, FragmentOrder order) {
  const int64_t rows = example.rows * halves;
  const int64_t groups = num_groups_of(example);
  const ScaleKind kind = kept_scales(example);
  view_.num_rows = static_cast<int32_t>(rows);
  view_.num_cols = static_cast<int32_t>(example.cols);
  view_.halves = halves;
  view_.rows.format = example.format;
  view_.rows.row_bytes = padded_row_bytes(example.format, example.cols);
  view_.rows.scale_kind = kind;
  view_.rows.num_groups = static_cast<int32_t>(groups);
  const int64_t stored_width = example.scale_block.cols;
  const int64_t width = groups == 1 ? 0 : stored_width;
  view_.rows.group_size = static_cast<int32_t>(width);

  const auto some = [&](bool present, int64_t expert_bytes) {
    return allocate(present ? expert_bytes : 0, num_experts);
  };
  if (order == FragmentOrder::kRowMajor) {
    values_ = allocate(rows * view_.rows.row_bytes, num_experts);
    scales_ = some(kind != ScaleKind::kNone, rows * groups * scale_kind_bytes(kind));
  } else {
    const FragmentLayout layout =
        fragment_layout(order, example.format, stored_width == 0 ? kFragmentCols : stored_width,
                        rows, example.cols, has_factors(example));
    view_.fragments = layout;
    values_ = allocate(layout.bytes(), num_experts);
    row_scales_ = allocate(rows * 4, num_experts);
    staged_rows_ = DeviceBuffer(rows * view_.rows.row_bytes);
    staged_scales_ = DeviceBuffer(rows * groups * layout.scale_bytes);
    device_spread_ = DeviceBuffer(sizeof(ScaleSpread));
    device_spread_.copy_from_host(0, &spread_, sizeof(ScaleSpread));
  }
  zero_points_ =
      some(!example.zero_points.empty() && order == FragmentOrder::kRowMajor, rows * groups);
  group_index_ = some(!example.group_index.empty(), halves * example.cols * 4);
  smooth_ = some(!example.smooth_scales.empty(), example.cols * 4);
  global_ = some(example.global_scale != 1.0f || example.format == Format::kNvfp4, halves * 4);
  bias_ = some(has_bias, rows * 4);

  view_.rows.values = values_.memory.data();
  view_.expert_bytes = values_.expert_bytes;
  view_.rows.scales = scales_.memory.data();
  view_.expert_scales = rows * groups;
  view_.row_scales = row_scales_.memory.as<const float>();
  view_.zero_points = zero_points_.memory.as<const uint8_t>();
  view_.group_index = group_index_.memory.as<const int32_t>();
  view_.smooth_scales = smooth_.memory.as<const float>();
  view_.global_scales = global_.memory.as<const float>();
  view_.bias = bias_.memory.as<const float>();
}

int64_t PackedMatrices::bytes() const {
  int64_t sum = 0;
  for (const Part* part : {&values_, &scales_, &row_scales_, &zero_points_, &group_index_, &smooth_,
                           &global_, &bias_}) {
    sum += part->memory.bytes();
  }
  return sum;
}

void PackedMatrices::pack(int64_t expert, const std::vector<WeightMatrix>& matrices,
                          const std::vector<TensorView>& biases) {
  const auto halves = static_cast<int64_t>(matrices.size());
  const int64_t groups = view_.rows.num_groups;
  for (const WeightMatrix& m : matrices) {
    require_like_example(m.format == view_.rows.format && m.cols == view_.num_cols &&
                             m.rows * halves == view_.num_rows,
                         expert, "format and shape");
    const bool bf16_scales = view_.fragments.scale_bytes == 2;
    require_like_example(kept_scales(m) == view_.rows.scale_kind && num_groups_of(m) == groups &&
                             (!bf16_scales || m.scales.type == DataType::kBf16),
                         expert, "scales");
    require_like_example(m.group_index.empty() == (view_.group_index == nullptr) &&
                             m.smooth_scales.empty() == (view_.smooth_scales == nullptr) &&
                             (m.zero_points.empty() || view_.zero_points != nullptr ||
                              view_.fragments.scale_bytes == 4) &&
                             (m.global_scale == 1.0f || view_.global_scales != nullptr),
                         expert, "zero points, group index, smooth or global scales");
  }
  // fill(half, source row, destination of the packed row); rows of the halves alternate.
  const auto stage = [&](const DeviceBuffer& to, int64_t offset, int64_t bytes, int64_t num_rows,
                         int64_t row_bytes, auto fill) {
    if (bytes == 0) return;
    staging_.assign(static_cast<size_t>(bytes), 0);
    for (int64_t r = 0; r < num_rows; ++r) {
      fill(static_cast<size_t>(r % halves), r / halves, staging_.data() + r * row_bytes);
    }
    to.copy_from_host(offset, staging_.data(), bytes);
  };
  const auto upload = [&](const Part& part, int64_t num_rows, int64_t row_bytes, auto fill) {
    stage(part.memory, expert * part.expert_bytes, part.memory.bytes() == 0 ? 0 : part.expert_bytes,
          num_rows, row_bytes, fill);
  };
  const int64_t rows = view_.num_rows;
  const int64_t row_bytes = view_.rows.row_bytes;
  const auto fill_values = [&](size_t h, int64_t r, char* to) { copy_values(matrices[h], r, to); };
  upload(global_, halves, 4, [&](size_t h, int64_t, char* to) {
    std::memcpy(to, &matrices[h].global_scale, sizeof(float));
  });
  if (view_.fragments.order != FragmentOrder::kRowMajor) {
    stage(staged_rows_, 0, staged_rows_.bytes(), rows, row_bytes, fill_values);
    stage(staged_scales_, 0, staged_scales_.bytes(), rows, staged_scales_.bytes() / rows,
          [&](size_t h, int64_t r, char* to) {
            const auto copy = view_.fragments.scale_bytes == 4 ? copy_factors : copy_stored_scales;
            copy(matrices[h], r, groups, to);
          });
    pack_fragments(expert);
  } else {
    upload(values_, rows, row_bytes, fill_values);
    upload(scales_, rows, groups * scale_kind_bytes(view_.rows.scale_kind),
           [&](size_t h, int64_t r, char* to) {
             copy_scales(matrices[h], r, groups, view_.rows.scale_kind, to);
           });
  }
  upload(zero_points_, rows, groups,
         [&](size_t h, int64_t r, char* to) { copy_zero_points(matrices[h], r, groups, to); });
  const int64_t cols = view_.num_cols;
  upload(group_index_, halves, cols * 4, [&](size_t h, int64_t, char* to) {
    const TensorView& index = matrices[h].group_index;
    for (int64_t c = 0; c < cols; ++c) {
      std::memcpy(to + c * 4, index.as<const char>() + c * index.stride(0) * 4, 4);
    }
  });
  upload(smooth_, 1, 0, [&](size_t, int64_t, char* to) {
    const TensorView& smooth = matrices.back().smooth_scales;  // gate and up share their input
    for (int64_t c = 0; c < cols; ++c) {
      const float value = load_as_f32(smooth.data, smooth.type, c * smooth.stride(0));
      std::memcpy(to + c * 4, &value, sizeof(value));
    }
  });
  upload(bias_, rows, 4, [&](size_t h, int64_t r, char* to) {
    const TensorView& bias = biases[h];
    const float value = bias.empty() ? 0.0f : load_as_f32(bias.data, bias.type, r * bias.stride(0));
    std::memcpy(to, &value, sizeof(value));
  });
}

void PackedMatrices::pack_fragments(int64_t expert) {
  const FragmentLayout& layout = view_.fragments;
  cuda::pack_fragments(
      {.layout = layout,
       .num_rows = view_.num_rows,
       .num_cols = view_.num_cols,
       .codes = staged_rows_.as<const uint8_t>(),
       .row_bytes = view_.rows.row_bytes,
       .scales = staged_scales_.as<const uint8_t>(),
       .num_groups = view_.rows.num_groups,
       .group_size = view_.rows.group_size,
       .global_scales =
           view_.global_scales == nullptr ? nullptr : view_.global_scales + expert * view_.halves,
       .halves = view_.halves,
       .blocks = values_.memory.as<uint8_t>() + expert * values_.expert_bytes,
       .row_scales = row_scales_.memory.as<float>() + expert * view_.num_rows,
       .spread = device_spread_.as<ScaleSpread>()},
      nullptr);
}

void PackedMatrices::finish(const char* name) {
  staging_ = {};
  if (view_.fragments.order == FragmentOrder::kRowMajor) return;
  check(cudaMemcpy(&spread_, device_spread_.data(), sizeof(spread_), cudaMemcpyDeviceToHost),
        "cudaMemcpy");
  staged_rows_ = {}, staged_scales_ = {}, device_spread_ = {};
  if (spread_.not_numbers == 0) return;
  throw Error(
      ErrorCode::kInvalidArgument,
      fmt::format("{} has {} scales or values that are not a number; weights must be finite", name,
                  spread_.not_numbers));
}

std::string to_string(const ScaleSpread& spread) {
  const auto count = [&](int begin, int end) {
    return std::accumulate(spread.rows + begin, spread.rows + end, 0.0);
  };
  const double all = count(0, ScaleSpread::kBins);
  std::string text;
  for (int begin = 0; begin < ScaleSpread::kBins; begin += 4) {
    const double share = count(begin, begin + 4);
    if (share == 0) continue;
    const bool last = begin + 4 == ScaleSpread::kBins;  // holds everything above as well
    text += fmt::format("{}{}{} {}in {:.3g} %{}", text.empty() ? "row scales " : ", ", begin,
                        last ? "+" : fmt::format("-{}", begin + 3),
                        text.empty() ? "binades apart " : "", 100 * share / all,
                        text.empty() ? " of rows" : "");
  }
  return text;
}

}  // namespace switchyard::cuda
