#include "layer/validate_matrix.h"

#include <cmath>
#include <cstring>

#include "core/number_formats.h"
#include "core/scale_layout.h"

namespace switchyard {
namespace {

bool is_plain(Format format) {
  return format == Format::kF32 || format == Format::kF16 || format == Format::kBf16;
}
bool is_nibbles(Format format) { return element_bits(format) == 4; }
bool is_mx(Format format) { return format == Format::kMxfp4 || format == Format::kMxfp8; }

Types value_types(Format format) {
  static const Types f32 = {DataType::kF32};
  static const Types f16 = {DataType::kF16};
  static const Types bf16 = {DataType::kBf16};
  static const Types e4m3 = {DataType::kF8E4m3, DataType::kU8};
  static const Types e5m2 = {DataType::kF8E5m2, DataType::kU8};
  static const Types int8 = {DataType::kI8};
  static const Types nibbles = {DataType::kU8, DataType::kI8, DataType::kI32};
  switch (format) {
    case Format::kF32: return f32;
    case Format::kF16: return f16;
    case Format::kBf16: return bf16;
    case Format::kFp8E4m3:
    case Format::kMxfp8: return e4m3;
    case Format::kFp8E5m2: return e5m2;
    case Format::kInt8: return int8;
    default: return nibbles;
  }
}

Types scale_types(Format format) {
  static const Types mx = {DataType::kF8E8m0, DataType::kU8};
  static const Types nvfp4 = {DataType::kF8E4m3};
  static const Types others = {DataType::kF32, DataType::kBf16, DataType::kF16, DataType::kF8E8m0,
                               DataType::kU8};
  return is_mx(format) ? mx : format == Format::kNvfp4 ? nvfp4 : others;
}

/// Whether any code has all bits of `mask`: the exponent of a NaN or infinity, or a NaN's code.
template <class T>
bool any_has(const TensorView& view, T mask) {
  const auto row_has = [&](const char* row, int64_t stride) {
    bool found = false;
    for (int64_t c = 0; c < view.extent(1); ++c) {
      T code;
      std::memcpy(&code, row + c * stride * int64_t{sizeof(T)}, sizeof(T));
      found |= static_cast<T>(code & mask) == mask;
    }
    return found;
  };
  for (int64_t r = 0; r < view.extent(0); ++r) {
    const char* row = view.as<const char>() + r * view.stride(0) * int64_t{sizeof(T)};
    // Spelled twice so that the usual stride is a constant and the loop becomes vector code.
    if (view.stride(1) == 1 ? row_has(row, 1) : row_has(row, view.stride(1))) return true;
  }
  return false;
}

bool any_not_finite(const TensorView& view) {
  switch (view.type) {
    case DataType::kF32: return any_has<uint32_t>(view, 0x7f800000u);
    case DataType::kBf16: return any_has<uint16_t>(view, 0x7f80u);
    case DataType::kF16: return any_has<uint16_t>(view, 0x7c00u);
    case DataType::kF8E4m3: return any_has<uint8_t>(view, 0x7fu);
    case DataType::kF8E8m0:
    case DataType::kU8: return any_has<uint8_t>(view, 0xffu);
    default: return false;
  }
}

TensorView as_row(const TensorView& vector) {
  TensorView row = vector;
  row.rank = 2;
  row.shape = {1, vector.extent(0)};
  row.strides = {vector.extent(0), vector.stride(0)};
  return row;
}

/// Rank, extents and type of a view into a checkpoint: strides are free, alignment too.
void check_stored(const MatrixName& name, const char* what, const TensorView& view, Types types,
                  Extents extents) {
  const std::string full = fmt::format("{}{}", name, what);
  check_type(full.c_str(), view, types);
  check_shape(full.c_str(), view, extents);
  require(!view.empty(), "{} is null; it must point to {} elements", full, view.num_elements());
}

void check_scales(const MatrixName& name, const WeightMatrix& m) {
  if (is_plain(m.format)) {
    require(m.scales.empty(), "{}.scales is {}; format {} has none", name, describe_shape(m.scales),
            to_string(m.format));
    return;
  }
  check_format("scale_block", m.format, m.scale_block);
  if (m.scales.empty()) {
    const bool needed = is_nibbles(m.format) || is_mx(m.format);
    require(!needed, "{}.scales is empty; format {} needs one per block", name,
            to_string(m.format));
    return;
  }
  check_stored(name, ".scales", m.scales, scale_types(m.format), {kAnyExtent, kAnyExtent});
  require(m.scale_row_begin >= 0 && m.scale_row_begin <= kMaxExtent && m.scale_row_step >= 1 &&
              m.scale_row_step <= kMaxExtent,
          "{} has scale rows from {} in steps of {}; they must start at 0 or later and ascend",
          name, m.scale_row_begin, m.scale_row_step);
  const int64_t last_row = m.scale_row_begin + (m.rows - 1) * m.scale_row_step;
  const int64_t rows_needed = scale_index(last_row, m.scale_block.rows) + 1;
  const int64_t cols_needed = scale_cols(m.scale_block, m.cols);
  require(m.scales.extent(0) >= rows_needed && m.scales.extent(1) == cols_needed,
          "{}.scales is {}; {} rows of {} columns in blocks of {}x{} need [{}, {}]", name,
          describe_shape(m.scales), m.rows, m.cols, m.scale_block.rows, m.scale_block.cols,
          rows_needed, cols_needed);
  require(!any_not_finite(m.scales),
          "{}.scales holds a NaN or infinity; every scale must be finite", name);
}

void check_int4_extras(const MatrixName& name, const WeightMatrix& m) {
  const int64_t groups = scale_cols(m.scale_block, m.cols);
  if (!m.zero_points.empty()) {
    require(m.format == Format::kInt4, "{}.zero_points is given; format {} has none", name,
            to_string(m.format));
    check_stored(name, ".zero_points", m.zero_points, {DataType::kU8}, {m.rows, groups});
  }
  if (m.group_index.empty()) return;
  require(m.format == Format::kInt4, "{}.group_index is given; format {} has none", name,
          to_string(m.format));
  check_stored(name, ".group_index", m.group_index, {DataType::kI32}, {m.cols});
  for (int64_t c = 0; c < m.cols; ++c) {
    int32_t group;
    std::memcpy(&group, m.group_index.as<const char>() + c * m.group_index.stride(0) * 4, 4);
    require(group >= 0 && group < groups, "{}.group_index[{}] is {}; there are {} groups", name, c,
            group, groups);
  }
}

int64_t read_id(const TensorView& ids, int64_t at) {
  if (ids.type == DataType::kI32) {
    int32_t id;
    std::memcpy(&id, ids.as<const char>() + at * 4, 4);
    return id;
  }
  int64_t id;
  std::memcpy(&id, ids.as<const char>() + at * 8, 8);
  return id;
}

constexpr Types kIds = {DataType::kI32, DataType::kI64};

}  // namespace

void check_format(const char* name, Format format, const ScaleBlock& block) {
  check_range(name, static_cast<int64_t>(format), 0, static_cast<int64_t>(Format::kNvfp4));
  const auto is = [&](int64_t rows, int64_t cols) { return block == ScaleBlock{rows, cols}; };
  const char* rule = nullptr;
  if (is_plain(format)) {
    if (!is(0, 0)) rule = "0x0, because it has no scales";
  } else if (is_mx(format)) {
    if (!is(1, 32)) rule = "1x32";
  } else if (format == Format::kNvfp4) {
    if (!is(1, 16)) rule = "1x16";
  } else if (format == Format::kInt4) {
    if (block.rows != 1 || block.cols < 0) rule = "1 x its group";
  } else if (block.rows < 0 || block.cols < 0) {
    rule = "rows x cols, 0 for the whole extent";
  }
  if (rule == nullptr) return;
  reject("scale block of {} is {}x{}; it must be {}", to_string(format), block.rows, block.cols,
         rule);
}

void check_matrix(const MatrixName& name, const WeightMatrix& matrix, int64_t rows, int64_t cols) {
  require(!matrix.empty(), "{} is empty; it must be [{}, {}]", name, rows, cols);
  require(matrix.rows == rows && matrix.cols == cols, "{} is [{}, {}]; it must be [{}, {}]", name,
          matrix.rows, matrix.cols, rows, cols);
  require(matrix.format >= Format::kF32 && matrix.format <= Format::kNvfp4,
          "format of {} is {}; it must be a Format", name, static_cast<int>(matrix.format));
  const int64_t per_word =
      is_nibbles(matrix.format) ? 2 * element_bytes(matrix.values.type) : int64_t{1};
  check_stored(name, ".values", matrix.values, value_types(matrix.format),
               {rows, ceil_div(cols, per_word)});
  check_scales(name, matrix);
  check_int4_extras(name, matrix);
  require(std::isfinite(matrix.global_scale), "{}.global_scale is {}; it must be finite", name,
          matrix.global_scale);
  if (matrix.smooth_scales.empty()) return;
  check_stored(name, ".smooth_scales", matrix.smooth_scales, {DataType::kF32}, {cols});
  require(!any_not_finite(as_row(matrix.smooth_scales)),
          "{}.smooth_scales holds a NaN or infinity; every scale must be finite", name);
}

void check_stored_vector(const MatrixName& name, const TensorView& vector, int64_t size) {
  if (vector.empty()) return;
  check_stored(name, "", vector, kFloats, {size});
}

void check_same_smooth_scales(const MatrixName& name, const WeightMatrix& gate,
                              const WeightMatrix& up) {
  const TensorView& a = gate.smooth_scales;
  const TensorView& b = up.smooth_scales;
  bool same = a.empty() == b.empty();
  for (int64_t c = 0; same && !a.empty() && c < gate.cols; ++c) {
    same = std::memcmp(a.as<const char>() + c * a.stride(0) * 4,
                       b.as<const char>() + c * b.stride(0) * 4, 4) == 0;
  }
  require(same, "{}.smooth_scales differs from that of up; one input meets both", name);
}

void check_expert_table(const TensorView& table, int64_t top_k, int64_t num_experts) {
  check_stored("router.tid2eid", "", table, kIds, {kAnyExtent, top_k});
  require(table.is_contiguous(), "router.tid2eid is strided; it must be contiguous");
  for (int64_t i = 0; i < table.num_elements(); ++i) {
    const int64_t expert = read_id(table, i);
    require(expert >= 0 && expert < num_experts,
            "router.tid2eid[{}, {}] is {}; it must be below the {} routed experts", i / top_k,
            i % top_k, expert, num_experts);
  }
}

void check_token_ids(const TensorView& ids, int64_t max_tokens, const TensorView& num_tokens,
                     int64_t vocabulary, bool on_host) {
  check_tensor("input_ids", ids, kIds, {max_tokens});
  if (!on_host) return;
  const int64_t count = num_tokens.empty() ? max_tokens : num_tokens.as<const int32_t>()[0];
  for (int64_t t = 0; t < count; ++t) {
    const int64_t id = read_id(ids, t);
    require(id >= 0 && id < vocabulary, "input_ids[{}] is {}; it must be between 0 and {}", t, id,
            vocabulary - 1);
  }
}

void check_token_count(const char* name, const TensorView& count, int64_t num_tokens,
                       bool on_host) {
  if (count.empty()) return;
  check_tensor(name, count, {DataType::kI32}, {1});
  if (on_host) check_range(name, count.as<const int32_t>()[0], 0, num_tokens);
}

}  // namespace switchyard
