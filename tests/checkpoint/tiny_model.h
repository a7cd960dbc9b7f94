#pragma once
// Writes tiny checkpoints in every stored format, from codes drawn at random, and remembers the
// real value of every weight, computed here from the definitions of the formats and from nothing of
// the library.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/temp_dir.h"

namespace switchyard::testing {

using Bytes = std::vector<uint8_t>;
using Shape = std::vector<int64_t>;

/// A matrix as real numbers, row-major [rows, cols].
struct Truth {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<double> values{};
  double at(int64_t row, int64_t col) const {
    return values[static_cast<size_t>(row * cols + col)];
  }
  double& at(int64_t row, int64_t col) { return values[static_cast<size_t>(row * cols + col)]; }
};

// --- what the codes mean ---------------------------------------------------------------------

inline double bf16_value(uint16_t code) {
  const uint32_t bits = uint32_t{code} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return static_cast<double>(value);
}
/// Sign, `exponent_bits`, `mantissa_bits`, bias 2^(e-1) - 1; subnormals; no specials.
inline double small_float(uint32_t code, int exponent_bits, int mantissa_bits) {
  const uint32_t mantissa = code & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>(code >> mantissa_bits & ((1u << exponent_bits) - 1));
  const double sign = (code >> (exponent_bits + mantissa_bits) & 1u) != 0 ? -1.0 : 1.0;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double fraction = std::ldexp(static_cast<double>(mantissa), -mantissa_bits);
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias)
                       : sign * std::ldexp(1.0 + fraction, exponent - bias);
}
inline double e4m3_value(uint8_t code) { return small_float(code, 4, 3); }
inline double e5m2_value(uint8_t code) { return small_float(code, 5, 2); }
inline double e2m1_value(uint8_t code) { return small_float(code, 2, 1); }
inline double f16_value(uint16_t code) { return small_float(code, 5, 10); }
inline double e8m0_value(uint8_t code) { return std::ldexp(1.0, code - 127); }

enum class Stored {
  kBf16,
  kF16,
  kF32,
  kFp8Block,         ///< weight_scale_inv F32 per 128x128
  kFp8BlockE8m0,     ///< .scale F8_E8M0 per 128x128
  kFp8Block32,       ///< weight_scale_inv F32 per 32x32
  kFp8Channel,       ///< weight_scale BF16 [N, 1]
  kFp8Tensor,        ///< weight_scale F32 [], input_scale
  kFp8E5m2Channel,   ///< the same as kFp8Channel with E5M2
  kInt8Channel,      ///< weight_scale F32 [N, 1]
  kMxfp8,            ///< weight_scale_inv U8 [N, K/32]
  kMxfp4I8,          ///< DeepSeek-V4: I8 + .scale F8_E8M0
  kMxfp4F4,          ///< the same, labelled F4
  kMxfp4Packed,      ///< weight_packed U8 + weight_scale U8
  kMxfp4Quark,       ///< weight U8 + weight_scale U8
  kNvfp4ModelOpt,    ///< weight U8, weight_scale E4M3, weight_scale_2, input_scale
  kNvfp4Packed,      ///< weight_packed U8, weight_scale, weight_global_scale (divides)
  kInt4Packed,       ///< weight_packed I32, BF16 scales per 32, weight_shape
  kInt4PackedZero,   ///< the same with zero points, per 128
  kInt4PackedOrder,  ///< the same with weight_g_idx
  kGptq,
  kGptqOrder,
  kGptqV2,
  kAwq,
};

/// A checkpoint in the making.
class TinyModel {
 public:
  explicit TinyModel(uint64_t seed = 1) : random_(seed) {}

  nlohmann::json config = nlohmann::json::object();

  void add(const std::string& name, const std::string& dtype, const Shape& shape, Bytes data) {
    tensors_[name] = {dtype, shape, std::move(data)};
  }
  void remove(const std::string& name) {
    ASSERT_EQ(tensors_.erase(name), 1u) << name << " is not in the model";
  }
  bool has(const std::string& name) const { return tensors_.contains(name); }
  void rename(const std::string& from, const std::string& to) {
    ASSERT_TRUE(has(from)) << from;
    tensors_[to] = tensors_[from];
    remove(from);
  }
  Bytes& data(const std::string& name) { return tensors_.at(name).data; }
  std::string& dtype(const std::string& name) { return tensors_.at(name).dtype; }
  Shape& shape(const std::string& name) { return tensors_.at(name).shape; }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& [name, tensor] : tensors_) out.push_back(name);
    return out;
  }

  uint32_t draw(uint32_t count) { return static_cast<uint32_t>(random_() % count); }

  /// A vector of F32.
  std::vector<double> add_vector(const std::string& name, int64_t count) {
    const Truth truth = floats(name, Stored::kF32, {count}, 1, count);
    return truth.values;
  }
  void add_integers(const std::string& name, const std::string& dtype, const Shape& shape,
                    const std::vector<int64_t>& values) {
    Bytes out;
    for (const int64_t value : values) append(out, &value, dtype == "I64" ? 8 : 4);
    add(name, dtype, shape, out);
  }

  /// A float tensor of any shape, and its values as [rows, cols].
  Truth floats(const std::string& name, Stored stored, const Shape& shape, int64_t rows,
               int64_t cols) {
    Truth truth = empty(rows, cols);
    Bytes out;
    for (double& value : truth.values) {
      if (stored == Stored::kF32) {
        const float f = static_cast<float>(static_cast<int>(draw(20001)) - 10000) / 4096.0f;
        append(out, &f, 4);
        value = static_cast<double>(f);
      } else {
        const bool half = stored == Stored::kF16;
        // Magnitudes between 2^-6 and 4.
        const uint32_t exponent = half ? 9 + draw(8) : 121 + draw(8);
        const uint32_t mantissa_bits = half ? 10 : 7;
        const auto code = static_cast<uint16_t>(draw(2) << 15 | exponent << mantissa_bits |
                                                draw(1u << mantissa_bits));
        append(out, &code, 2);
        value = half ? f16_value(code) : bf16_value(code);
      }
    }
    add(name, stored == Stored::kF32 ? "F32" : stored == Stored::kF16 ? "F16" : "BF16", shape, out);
    return truth;
  }

  /// One matrix below `base` ("...experts.0.w1"), in any format.
  Truth add_matrix(Stored stored, const std::string& base, int64_t rows, int64_t cols);

  /// Writes config.json and model.safetensors.
  void write(const TempDir& dir) const {
    write_text(dir.file("config.json"), config.dump());
    write_text(dir.file("model.safetensors"), file());
  }

  /// The file: wide elements first, so that everything is aligned.
  std::string file() const {
    std::vector<std::pair<std::string, const Tensor*>> order;
    for (const auto& [name, tensor] : tensors_) order.emplace_back(name, &tensor);
    std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
      return width(a.second->dtype) > width(b.second->dtype);
    });
    nlohmann::json header = nlohmann::json::object();
    std::string body;
    for (const auto& [name, tensor] : order) {
      const size_t begin = body.size();
      body.append(tensor->data.begin(), tensor->data.end());
      header[name] = {{"dtype", tensor->dtype},
                      {"shape", tensor->shape},
                      {"data_offsets", {begin, body.size()}}};
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return raw_safetensors(text, 0) + body;
  }

  static Truth empty(int64_t rows, int64_t cols) {
    return {.rows = rows,
            .cols = cols,
            .values = std::vector<double>(static_cast<size_t>(rows * cols))};
  }
  static void append(Bytes& out, const void* value, size_t size) {
    const auto* bytes = static_cast<const uint8_t*>(value);
    out.insert(out.end(), bytes, bytes + size);
  }

  // Building blocks, also for stacked tensors: they return codes and fill the truth.

  /// FP8 codes without NaN.
  Bytes fp8(Truth& truth, bool e5m2 = false) {
    Bytes out;
    for (double& value : truth.values) {
      const auto code = static_cast<uint8_t>(draw(2) << 7 | (e5m2 ? 40 + draw(40) : draw(0x7f)));
      out.push_back(code);
      value = e5m2 ? e5m2_value(code) : e4m3_value(code);
    }
    return out;
  }
  /// Two E2M1 codes per byte, the even column low.
  Bytes fp4(Truth& truth) {
    Bytes out;
    for (size_t i = 0; i < truth.values.size(); i += 2) {
      const auto low = static_cast<uint8_t>(draw(16));
      const auto high = static_cast<uint8_t>(draw(16));
      truth.values[i] = e2m1_value(low);
      truth.values[i + 1] = e2m1_value(high);
      out.push_back(static_cast<uint8_t>(low | high << 4));
    }
    return out;
  }
  /// Multiplies blocks of the truth by scales drawn from `next`.
  template <class Next>
  Bytes scale(Truth& truth, int64_t block_rows, int64_t block_cols, Next next) {
    Bytes out;
    for (int64_t row = 0; row < truth.rows; row += block_rows) {
      for (int64_t col = 0; col < truth.cols; col += block_cols) {
        const double factor = next(out);
        for (int64_t r = row; r < std::min(row + block_rows, truth.rows); ++r) {
          for (int64_t c = col; c < std::min(col + block_cols, truth.cols); ++c) {
            truth.at(r, c) *= factor;
          }
        }
      }
    }
    return out;
  }
  auto next_f32() {
    return [this](Bytes& out) {
      const float value = static_cast<float>(1 + draw(1000)) / 512.0f;
      append(out, &value, 4);
      return static_cast<double>(value);
    };
  }
  auto next_bf16() {
    return [this](Bytes& out) {
      const auto code = static_cast<uint16_t>((120 + draw(8)) << 7 | draw(128));
      append(out, &code, 2);
      return bf16_value(code);
    };
  }
  auto next_f16() {
    return [this](Bytes& out) {
      const auto code = static_cast<uint16_t>((8 + draw(8)) << 10 | draw(1024));
      append(out, &code, 2);
      return f16_value(code);
    };
  }
  auto next_e8m0() {
    return [this](Bytes& out) {
      out.push_back(static_cast<uint8_t>(117 + draw(14)));
      return e8m0_value(out.back());
    };
  }
  auto next_e4m3() {
    return [this](Bytes& out) {
      out.push_back(static_cast<uint8_t>(8 + draw(0x77 - 8)));
      return e4m3_value(out.back());
    };
  }

 private:
  struct Tensor {
    std::string dtype;
    Shape shape;
    Bytes data;
  };
  static int width(const std::string& dtype) {
    if (dtype == "I64" || dtype == "F64" || dtype == "U64") return 8;
    if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
    return dtype == "BF16" || dtype == "F16" ? 2 : 1;
  }

  Truth add_int4(Stored stored, const std::string& base, int64_t rows, int64_t cols);

  std::mt19937_64 random_;
  std::map<std::string, Tensor> tensors_;
};

inline int64_t ceil_ratio(int64_t extent, int64_t block) { return (extent + block - 1) / block; }

inline Truth TinyModel::add_matrix(Stored stored, const std::string& base, int64_t rows,
                                   int64_t cols) {
  Truth truth = empty(rows, cols);
  const std::string weight = base + ".weight";
  const Shape shape{rows, cols};
  const Shape halved{rows, cols / 2};
  const auto blocks = [&](int64_t r, int64_t c) {
    return Shape{ceil_ratio(rows, r), ceil_ratio(cols, c)};
  };
  switch (stored) {
    case Stored::kBf16:
    case Stored::kF16:
    case Stored::kF32: return floats(weight, stored, shape, rows, cols);
    case Stored::kFp8Block:
      add(weight, "F8_E4M3", shape, fp8(truth));
      add(base + ".weight_scale_inv", "F32", blocks(128, 128), scale(truth, 128, 128, next_f32()));
      break;
    case Stored::kFp8Block32:
      add(weight, "F8_E4M3", shape, fp8(truth));
      add(base + ".weight_scale_inv", "F32", blocks(32, 32), scale(truth, 32, 32, next_f32()));
      break;
    case Stored::kFp8BlockE8m0:
      add(weight, "F8_E4M3", shape, fp8(truth));
      add(base + ".scale", "F8_E8M0", blocks(128, 128), scale(truth, 128, 128, next_e8m0()));
      break;
    case Stored::kFp8Channel:
      add(weight, "F8_E4M3", shape, fp8(truth));
      add(base + ".weight_scale", "BF16", {rows, 1}, scale(truth, 1, cols, next_bf16()));
      break;
    case Stored::kFp8E5m2Channel:
      add(weight, "F8_E5M2", shape, fp8(truth, true));
      add(base + ".weight_scale", "F32", {rows, 1}, scale(truth, 1, cols, next_f32()));
      break;
    case Stored::kFp8Tensor: {
      add(weight, "F8_E4M3", shape, fp8(truth));
      add(base + ".weight_scale", "F32", {}, scale(truth, rows, cols, next_f32()));
      Bytes ignored(4);
      add(base + ".input_scale", "F32", {}, ignored);
      break;
    }
    case Stored::kInt8Channel: {
      Bytes codes;
      for (double& value : truth.values) {
        codes.push_back(static_cast<uint8_t>(draw(256)));
        value = static_cast<int8_t>(codes.back());
      }
      add(weight, "I8", shape, codes);
      add(base + ".weight_scale", "F32", {rows, 1}, scale(truth, 1, cols, next_f32()));
      break;
    }
    case Stored::kMxfp8:
      add(weight, "F8_E4M3", shape, fp8(truth));
      add(base + ".weight_scale_inv", "U8", blocks(1, 32), scale(truth, 1, 32, next_e8m0()));
      break;
    case Stored::kMxfp4I8:
      add(weight, "I8", halved, fp4(truth));
      add(base + ".scale", "F8_E8M0", blocks(1, 32), scale(truth, 1, 32, next_e8m0()));
      break;
    case Stored::kMxfp4F4:
      add(weight, "F4", shape, fp4(truth));
      add(base + ".scale", "F8_E8M0", blocks(1, 32), scale(truth, 1, 32, next_e8m0()));
      break;
    case Stored::kMxfp4Packed:
      add(base + ".weight_packed", "U8", halved, fp4(truth));
      add(base + ".weight_scale", "U8", blocks(1, 32), scale(truth, 1, 32, next_e8m0()));
      break;
    case Stored::kMxfp4Quark:
      add(weight, "U8", halved, fp4(truth));
      add(base + ".weight_scale", "U8", blocks(1, 32), scale(truth, 1, 32, next_e8m0()));
      break;
    case Stored::kNvfp4ModelOpt: {
      add(weight, "U8", halved, fp4(truth));
      add(base + ".weight_scale", "F8_E4M3", blocks(1, 16), scale(truth, 1, 16, next_e4m3()));
      add(base + ".weight_scale_2", "F32", {}, scale(truth, rows, cols, next_f32()));
      Bytes ignored(4);
      add(base + ".input_scale", "F32", {}, ignored);
      break;
    }
    case Stored::kNvfp4Packed: {
      add(base + ".weight_packed", "U8", halved, fp4(truth));
      add(base + ".weight_scale", "F8_E4M3", blocks(1, 16), scale(truth, 1, 16, next_e4m3()));
      Bytes divisor;
      const float global = 448.0f * 6.0f / static_cast<float>(1 + draw(100));
      append(divisor, &global, 4);
      for (double& value : truth.values) value /= static_cast<double>(global);
      add(base + ".weight_global_scale", "F32", {1}, divisor);
      Bytes ignored(4);
      add(base + ".input_global_scale", "F32", {1}, ignored);
      break;
    }
    default: return add_int4(stored, base, rows, cols);
  }
  return truth;
}

/// Draws nibbles, zero points, groups and scales first; the packings come after.
inline Truth TinyModel::add_int4(Stored stored, const std::string& base, int64_t rows,
                                 int64_t cols) {
  const bool packed = stored == Stored::kInt4Packed || stored == Stored::kInt4PackedZero ||
                      stored == Stored::kInt4PackedOrder;
  const bool symmetric = stored == Stored::kInt4Packed || stored == Stored::kInt4PackedOrder;
  const bool ordered = stored == Stored::kInt4PackedOrder || stored == Stored::kGptqOrder;
  const bool awq = stored == Stored::kAwq;
  const int64_t group = stored == Stored::kInt4PackedZero || awq ? 128 : 32;
  const int64_t groups = ceil_ratio(cols, group);
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };

  std::vector<uint32_t> nibbles(at(rows * cols));
  for (uint32_t& nibble : nibbles) nibble = draw(16);
  std::vector<uint32_t> zeros(at(rows * groups), 8);
  if (!symmetric) {
    for (uint32_t& zero : zeros) zero = draw(16);
  }
  std::vector<int64_t> group_of(at(cols));
  for (int64_t c = 0; c < cols; ++c) group_of[at(c)] = c / group;
  if (ordered) std::shuffle(group_of.begin(), group_of.end(), random_);
  std::vector<double> scales;
  std::vector<uint16_t> scale_codes;
  for (int64_t i = 0; i < rows * groups; ++i) {
    Bytes code;
    scales.push_back(packed ? next_bf16()(code) : next_f16()(code));
    scale_codes.push_back(static_cast<uint16_t>(code[0] | code[1] << 8));
  }
  Truth truth = empty(rows, cols);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t g = r * groups + group_of[at(c)];
      const int difference =
          static_cast<int>(nibbles[at(r * cols + c)]) - static_cast<int>(zeros[at(g)]);
      truth.at(r, c) = difference * scales[at(g)];
    }
  }

  const auto words = [&](int64_t outer, int64_t inner, auto nibble_of) {
    Bytes out;
    for (int64_t i = 0; i < outer * inner; ++i) {
      uint32_t word = 0;
      for (int j = 0; j < 8; ++j) word |= nibble_of(i / inner, i % inner, j) << (4 * j);
      append(out, &word, 4);
    }
    return out;
  };
  const auto nibble = [&](int64_t r, int64_t c) { return nibbles[at(r * cols + c)]; };
  const auto zero = [&](int64_t r, int64_t g) { return zeros[at(r * groups + g)]; };
  static constexpr int kAwqOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  if (packed) {
    add(base + ".weight_packed", "I32", {rows, cols / 8},
        words(rows, cols / 8, [&](int64_t r, int64_t w, int j) { return nibble(r, 8 * w + j); }));
    Bytes out;
    for (const uint16_t code : scale_codes) append(out, &code, 2);
    add(base + ".weight_scale", "BF16", {rows, groups}, out);
    add_integers(base + ".weight_shape", "I64", {2}, {rows, cols});
    if (!symmetric) {
      add(base + ".weight_zero_point", "I32", {rows / 8, groups},
          words(rows / 8, groups, [&](int64_t w, int64_t g, int j) { return zero(8 * w + j, g); }));
    }
    if (ordered) add_integers(base + ".weight_g_idx", "I32", {cols}, group_of);
    return truth;
  }
  Bytes out;
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t r = 0; r < rows; ++r) append(out, &scale_codes[at(r * groups + g)], 2);
  }
  add(base + ".scales", "F16", {groups, rows}, out);
  if (awq) {
    add(base + ".qweight", "I32", {cols, rows / 8},
        words(cols, rows / 8,
              [&](int64_t c, int64_t w, int j) { return nibble(8 * w + kAwqOrder[j], c); }));
    add(base + ".qzeros", "I32", {groups, rows / 8},
        words(groups, rows / 8,
              [&](int64_t g, int64_t w, int j) { return zero(8 * w + kAwqOrder[j], g); }));
    return truth;
  }
  const uint32_t minus = stored == Stored::kGptqV2 ? 0 : 1;
  add(base + ".qweight", "I32", {cols / 8, rows},
      words(cols / 8, rows, [&](int64_t w, int64_t r, int j) { return nibble(r, 8 * w + j); }));
  add(base + ".qzeros", "I32", {groups, rows / 8},
      words(groups, rows / 8,
            [&](int64_t g, int64_t w, int j) { return (zero(8 * w + j, g) - minus) & 15u; }));
  add_integers(base + ".g_idx", "I32", {cols}, group_of);
  return truth;
}

}  // namespace switchyard::testing
