// Format detection: the kind of values first, then the scale block from the ratio of shapes.

#include "checkpoint/matrix_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "checkpoint/dtype.h"
#include "checkpoint/json.h"
#include "core/math.h"
#include "core/scale_layout.h"
#include "switchyard/error.h"

namespace switchyard {

namespace {

/// What the values are, before their scales say which of two formats it is.
enum class Kind { kFloat, kFp8, kInt8, kFp4, kBlocks, kPackedInt4, kQweight, kUnknown };

using Extents = std::vector<int64_t>;

[[noreturn]] void fail(const CheckpointTensor& tensor, const std::string& rule) {
  throw Error(ErrorCode::kInvalidFile,
              fmt::format("{} is {}; {}", printable(tensor.name), describe(tensor), rule));
}

bool is_e8m0(const CheckpointTensor* scale) {
  return scale != nullptr &&
         (scale->view.type == DataType::kF8E8m0 || scale->view.type == DataType::kU8);
}

bool is_float(DataType type) {
  return type == DataType::kF32 || type == DataType::kF16 || type == DataType::kBf16;
}

Kind kind_of(const StoredMatrix& stored) {
  if (stored[Part::kQweight] != nullptr) return Kind::kQweight;
  if (stored[Part::kBlocks] != nullptr) return Kind::kBlocks;
  const DataType type = stored.values()->view.type;
  if (stored[Part::kPacked] != nullptr) {
    return type == DataType::kI32  ? Kind::kPackedInt4
           : type == DataType::kU8 ? Kind::kFp4
                                   : Kind::kUnknown;
  }
  switch (type) {
    case DataType::kF32:
    case DataType::kF16:
    case DataType::kBf16: return Kind::kFloat;
    case DataType::kF8E4m3:
    case DataType::kF8E5m2: return Kind::kFp8;
    case DataType::kU8: return Kind::kFp4;
    case DataType::kI8: return is_e8m0(stored[Part::kScale]) ? Kind::kFp4 : Kind::kInt8;
    default: return Kind::kUnknown;
  }
}

bool is_nvfp4(const StoredMatrix& stored) {
  const CheckpointTensor* scale = stored[Part::kScale];
  return kind_of(stored) == Kind::kFp4 && scale != nullptr && scale->view.type == DataType::kF8E4m3;
}

Extents extents_of(const CheckpointTensor& tensor) {
  const auto begin = tensor.view.shape.begin();
  return {begin, begin + tensor.view.rank};
}

/// Extents of one matrix: a stacked tensor loses its leading [E].
Extents matrix_extents(const CheckpointTensor& tensor, const MatrixExpectation& expected) {
  Extents extents = extents_of(tensor);
  if (expected.stack == 0) return extents;
  if (extents.empty() || extents.front() != expected.stack) {
    fail(tensor, fmt::format("the first extent must be the number of experts, {}", expected.stack));
  }
  extents.erase(extents.begin());
  return extents;
}

/// The pair of extents that a matrix must have.
std::pair<int64_t, int64_t> two_extents(const CheckpointTensor& tensor,
                                        const MatrixExpectation& expected) {
  const Extents extents = matrix_extents(tensor, expected);
  if (extents.size() != 2) {
    fail(tensor, fmt::format("must have {} dimensions", expected.stack > 0 ? 3 : 2));
  }
  return {extents[0], extents[1]};
}

void set_values_shape(const StoredMatrix& stored, Kind kind, const MatrixExpectation& expected,
                      MatrixFormat& out) {
  const CheckpointTensor& values = *stored.values();
  if (kind == Kind::kBlocks) {
    const Extents extents = matrix_extents(values, expected);
    if (values.view.type != DataType::kU8 || extents.size() != 3 || extents[2] != 16) {
      fail(values, "must be U8 [experts, rows, blocks, 16]");
    }
    out.rows = extents[0];
    out.cols = 32 * extents[1];
    return;
  }
  std::tie(out.rows, out.cols) = two_extents(values, expected);
  if (expected.k_major) {
    if (kind != Kind::kFloat && kind != Kind::kFp8 && kind != Kind::kInt8) {
      fail(values, "4-bit values must be stored [rows, columns]");
    }
    std::swap(out.rows, out.cols);
    out.k_major = true;
  }
  if (kind == Kind::kFp4) out.cols *= 2;
  if (kind == Kind::kPackedInt4) {
    const bool padded = expected.cols > 0 && ceil_div(expected.cols, int64_t{8}) == out.cols;
    out.cols = padded ? expected.cols : 8 * out.cols;
  }
}

void set_qweight_shape(const StoredMatrix& stored, MatrixFormat& out) {
  const CheckpointTensor& values = *stored.values();
  const CheckpointTensor& scale = *stored[Part::kScale];
  if (values.view.type != DataType::kI32 || values.view.rank != 2) fail(values, "must be 2-D I32");
  if (!is_float(scale.view.type) || scale.view.rank != 2) fail(scale, "must be 2-D F16 or BF16");
  out.rows = scale.view.extent(1);
  if (values.view.extent(1) == out.rows) {
    out.packing = Packing::kGptq;
    out.cols = 8 * values.view.extent(0);
  } else if (values.view.extent(1) * 8 == out.rows) {
    out.packing = Packing::kAwq;
    out.cols = values.view.extent(0);
  } else {
    fail(values, fmt::format("fits neither GPTQ [K/8, {0}] nor AWQ [K, {0}/8]", out.rows));
  }
}

void check_shape(const CheckpointTensor& values, const MatrixExpectation& expected,
                 const MatrixFormat& out) {
  const bool rows_fit = expected.rows == 0 || expected.rows == out.rows;
  const bool cols_fit = expected.cols == 0 || expected.cols == out.cols;
  if (!rows_fit || !cols_fit || out.rows == 0 || out.cols == 0) {
    const auto text = [](int64_t extent) {
      return extent == 0 ? std::string("any") : std::to_string(extent);
    };
    fail(values, fmt::format("holds [{}, {}] values, must hold [{}, {}]", out.rows, out.cols,
                             text(expected.rows), text(expected.cols)));
  }
  if (out.rows % expected.halves != 0) fail(values, "gate and up need an even number of rows");
}

/// Scale tensors come as [], [1], [N], [N, 1] or [rows, cols] of blocks.
void set_scale_extents(const CheckpointTensor& scale, const MatrixExpectation& expected,
                       MatrixFormat& out) {
  Extents extents = matrix_extents(scale, expected);
  if (extents.size() == 1 && expected.halves == 2 && extents[0] == 2 && out.rows != 2) {
    out.per_half_scale = true;
    extents = {1, 1};
  }
  const bool transposed = out.k_major && extents.size() == 2;
  if (extents.empty()) extents = {1, 1};
  if (extents.size() == 1) extents.push_back(1);
  if (extents.size() != 2) fail(scale, "scales must have at most two dimensions per matrix");
  out.scale_rows = extents[0];
  out.scale_cols = extents[1];
  if (transposed) std::swap(out.scale_rows, out.scale_cols);
}

/// Elements along one extent that share a scale. 0 = the whole extent.
int64_t infer_block(const CheckpointTensor& scale, int64_t extent, int64_t count,
                    int64_t configured) {
  if (count == 1 && extent <= std::max(configured, int64_t{1})) return configured;
  if (count == 1 && configured == 0) return 0;
  if (configured > 0) {
    if (ceil_div(extent, configured) == count) return configured;
    fail(scale, fmt::format("{} scales over {} elements contradict config.json's block of {}",
                            count, extent, configured));
  }
  if (count == extent) return 1;
  for (int64_t block = 2; block <= 4096; block *= 2) {
    if (ceil_div(extent, block) == count) return block;
  }
  if (count > 0 && extent % count == 0) return extent / count;
  fail(scale, fmt::format("{} scales fit no block of {} elements", count, extent));
}

void require_scale_shape(const CheckpointTensor& scale, const MatrixFormat& out, int64_t group) {
  if (out.scale_rows != out.rows || out.scale_cols != ceil_div(out.cols, group)) {
    fail(scale, fmt::format("must be [{}, {}]: one scale per {} of [{}, {}]", out.rows,
                            ceil_div(out.cols, group), group, out.rows, out.cols));
  }
}

/// Formats whose group is part of their definition.
void set_fixed_group(const CheckpointTensor& scale, Format format, int64_t group,
                     const QuantizationConfig& config, MatrixFormat& out) {
  require_scale_shape(scale, out, group);
  // Under "fp8" the configured block is that of the other layers (DeepSeek-V4).
  if (config.block_cols > 0 && config.block_cols != group && config.method != "fp8") {
    fail(scale, fmt::format("{} has groups of {}, config.json says {}", to_string(format), group,
                            config.block_cols));
  }
  out.format = format;
  out.block = {1, group};
}

void set_block_scales(const StoredMatrix& stored, Kind kind, const MatrixExpectation& expected,
                      const QuantizationConfig& config, MatrixFormat& out) {
  const CheckpointTensor& scale = *stored[Part::kScale];
  set_scale_extents(scale, expected, out);
  if (kind == Kind::kBlocks || (kind == Kind::kFp4 && !is_nvfp4(stored))) {
    if (!is_e8m0(&scale)) fail(scale, "scales of MXFP4 must be F8_E8M0 or U8");
    return set_fixed_group(scale, Format::kMxfp4, 32, config, out);
  }
  if (kind == Kind::kFp4) return set_fixed_group(scale, Format::kNvfp4, 16, config, out);
  const bool mx = kind == Kind::kFp8 && is_e8m0(&scale) && out.scale_rows == out.rows &&
                  out.scale_cols == ceil_div(out.cols, int64_t{32});
  if (mx && stored.values()->view.type == DataType::kF8E4m3) {
    return set_fixed_group(scale, Format::kMxfp8, 32, config, out);
  }
  if (!is_float(scale.view.type) && !(kind == Kind::kFp8 && is_e8m0(&scale))) {
    fail(scale, "scales must be F32, F16, BF16 or, for FP8, F8_E8M0");
  }
  out.block.rows = infer_block(scale, out.rows, out.scale_rows, config.block_rows);
  out.block.cols = infer_block(scale, out.cols, out.scale_cols, config.block_cols);
}

void set_int4_groups(const StoredMatrix& stored, const QuantizationConfig& config,
                     MatrixFormat& out) {
  const CheckpointTensor& scale = *stored[Part::kScale];
  const CheckpointTensor* zeros = stored[Part::kZeroPoint];
  if (!is_float(scale.view.type) || scale.view.rank != 2)
    fail(scale, "must be 2-D F32, F16 or BF16");
  if (config.bits != 0 && config.bits != 4) {
    fail(*stored.values(),
         fmt::format("config.json says {} bits; only 4 can be read", config.bits));
  }
  const bool plain = out.packing == Packing::kPlain;
  out.scale_rows = scale.view.extent(plain ? 0 : 1);
  out.scale_cols = scale.view.extent(plain ? 1 : 0);
  if (out.scale_rows != out.rows)
    fail(scale, fmt::format("must have a scale for each of {} rows", out.rows));
  out.block = {1, infer_block(scale, out.cols, out.scale_cols, config.block_cols)};
  if (zeros == nullptr) return;
  const int64_t words = ceil_div(out.rows, int64_t{8});
  const Extents shape = plain ? Extents{words, out.scale_cols} : Extents{out.scale_cols, words};
  if (zeros->view.type != DataType::kI32 || extents_of(*zeros) != shape) {
    fail(*zeros, fmt::format("zero points must be I32 [{}]", fmt::join(shape, ", ")));
  }
}

void check_small_parts(const StoredMatrix& stored, const MatrixExpectation& expected,
                       const MatrixFormat& out) {
  if (const CheckpointTensor* index = stored[Part::kGroupIndex]) {
    if (index->view.type != DataType::kI32 || extents_of(*index) != Extents{out.cols}) {
      fail(*index, fmt::format("must be I32 [{}]", out.cols));
    }
  }
  for (const Part part : {Part::kGlobalScale, Part::kGlobalDivisor}) {
    const CheckpointTensor* global = stored[part];
    if (global == nullptr) continue;
    const int64_t count = std::max(expected.stack, int64_t{1});
    const int64_t held = global->view.num_elements();
    if (global->view.type != DataType::kF32 || (held != count && held != count * expected.halves)) {
      fail(*global, fmt::format("must be {} F32 values", count));
    }
  }
  if (const CheckpointTensor* bias = stored[Part::kBias]) {
    if (!is_float(bias->view.type) || matrix_extents(*bias, expected) != Extents{out.rows}) {
      fail(*bias, fmt::format("a bias must be F32, F16 or BF16 with {} values", out.rows));
    }
  }
  for (const CheckpointTensor* tensor : stored.parts) {
    if (tensor == nullptr) continue;
    const auto address = reinterpret_cast<uintptr_t>(tensor->view.data);
    if (address % static_cast<uintptr_t>(element_bytes(tensor->view.type)) != 0) {
      fail(*tensor, "its offset in the file is no multiple of its element size");
    }
  }
}

/// "128x128", "1x32", "per channel", "per tensor"
std::string describe_block(const ScaleBlock& block) {
  if (block == ScaleBlock{0, 0}) return "per tensor";
  if (block == ScaleBlock{1, 0}) return "per channel";
  const auto extent = [](int64_t count) { return count == 0 ? "all" : std::to_string(count); };
  return fmt::format("{}x{}", extent(block.rows), extent(block.cols));
}

std::string describe_format(const StoredMatrix& stored, const MatrixFormat& out) {
  std::string text = to_string(out.format);
  if (const CheckpointTensor* scale = stored[Part::kScale]) {
    const bool e8m0 = out.format == Format::kMxfp4 || out.format == Format::kMxfp8;
    text += fmt::format(", scales {} {}", describe_block(out.block),
                        to_string(e8m0 ? DataType::kF8E8m0 : scale->view.type));
  }
  if (stored[Part::kZeroPoint] != nullptr) text += ", zero points";
  if (stored[Part::kGroupIndex] != nullptr) text += ", group index";
  if (out.packing == Packing::kGptq) text += ", GPTQ packing";
  if (out.packing == Packing::kAwq) text += ", AWQ packing";
  if (out.k_major) text += ", transposed";
  return text;
}

}  // namespace

PartReport check_parts(const StoredMatrix& stored) {
  PartReport report;
  const Kind kind = kind_of(stored);
  const std::string& name = stored.values()->name;
  const bool nvfp4 = is_nvfp4(stored);
  const auto need = [&](Part part, const char* what) {
    if (stored[part] == nullptr) report.missing.push_back(fmt::format("{} of {}", what, name));
  };
  std::vector<Part> readable{Part::kValues, Part::kPacked, Part::kBlocks, Part::kQweight,
                             Part::kBias};
  if (kind != Kind::kFloat && kind != Kind::kUnknown) {
    need(Part::kScale, "the scale");
    readable.push_back(Part::kScale);
  }
  if (nvfp4) {
    if (stored[Part::kGlobalDivisor] == nullptr) need(Part::kGlobalScale, "the global scale");
    const bool multiplies = stored[Part::kGlobalScale] != nullptr;
    readable.push_back(multiplies ? Part::kGlobalScale : Part::kGlobalDivisor);
  }
  if (kind == Kind::kQweight) need(Part::kZeroPoint, "the zero points");
  if (kind == Kind::kQweight || kind == Kind::kPackedInt4) {
    readable.insert(readable.end(), {Part::kZeroPoint, Part::kGroupIndex});
  }
  for (size_t part = 0; part < kNumParts; ++part) {
    const bool read =
        std::find(readable.begin(), readable.end(), static_cast<Part>(part)) != readable.end();
    if (stored.parts[part] != nullptr && !read) report.unused.push_back(stored.parts[part]->name);
  }
  return report;
}

MatrixFormat detect_format(const StoredMatrix& stored, const MatrixExpectation& expected,
                           const QuantizationConfig& config) {
  const CheckpointTensor& values = *stored.values();
  const Kind kind = kind_of(stored);
  MatrixFormat out{.stacked = expected.stack > 0,
                   .zero_points_minus_one = config.zero_points_minus_one};
  if (kind == Kind::kUnknown) fail(values, "not a dtype that weights have");
  if (kind == Kind::kQweight || kind == Kind::kPackedInt4) {
    if (expected.stack > 0) fail(values, "INT4 experts must be stored one by one");
  }
  if (kind == Kind::kQweight) {
    set_qweight_shape(stored, out);
  } else {
    set_values_shape(stored, kind, expected, out);
  }
  check_shape(values, expected, out);
  switch (kind) {
    case Kind::kFloat:
      out.format = values.view.type == DataType::kF32   ? Format::kF32
                   : values.view.type == DataType::kF16 ? Format::kF16
                                                        : Format::kBf16;
      break;
    case Kind::kPackedInt4:
    case Kind::kQweight:
      out.format = Format::kInt4;
      set_int4_groups(stored, config, out);
      break;
    default:
      out.format = kind == Kind::kInt8                     ? Format::kInt8
                   : values.view.type == DataType::kF8E5m2 ? Format::kFp8E5m2
                                                           : Format::kFp8E4m3;
      set_block_scales(stored, kind, expected, config, out);
  }
  check_small_parts(stored, expected, out);
  out.description = describe_format(stored, out);
  return out;
}

void unify_formats(std::span<MatrixFormat* const> formats, const std::string& layer) {
  ScaleBlock common{};
  const MatrixFormat& first = *formats.front();
  for (const MatrixFormat* format : formats) {
    common.rows = std::max(common.rows, format->block.rows);
    common.cols = std::max(common.cols, format->block.cols);
  }
  for (MatrixFormat* format : formats) {
    const auto fits = [](int64_t block, int64_t all, int64_t extent) {
      return block == all || (block == 0 && extent <= all);
    };
    const bool same = format->format == first.format &&
                      fits(format->block.rows, common.rows, format->rows) &&
                      fits(format->block.cols, common.cols, format->cols);
    if (!same) {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("{}: experts mix '{}' and '{}'; all matrices of the routed experts "
                              "must be stored alike",
                              layer, first.description, format->description));
    }
    format->block = common;
  }
}

std::string describe(const CheckpointTensor& tensor) {
  const auto begin = tensor.view.shape.begin();
  return fmt::format("{} [{}]", tensor.dtype, fmt::join(begin, begin + tensor.view.rank, ", "));
}

}  // namespace switchyard
