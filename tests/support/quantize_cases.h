#pragma once
// Every way to quantise, once for the tests of all backends.

#include <string>
#include <vector>

#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard::test {

struct QuantizeCase {
  Format format = Format::kFp8E4m3;
  ScaleBlock block{1, 128};
  DataType scale_type = DataType::kF32;
  ScaleRounding rounding = ScaleRounding::kUp;
  bool power_of_two = false;
  float global_scale = 1.0f;
};

inline std::vector<QuantizeCase> quantize_cases() {
  using enum Format;
  std::vector<QuantizeCase> all = {
      {kFp8E4m3, {0, 0}},
      {kFp8E4m3, {1, 0}},
      {kFp8E4m3, {1, 128}},
      {kFp8E4m3, {128, 128}},
      {kFp8E4m3, {1, 48}},
      {kFp8E4m3, {1, 128}, DataType::kF32, ScaleRounding::kUp, true},
      {kFp8E4m3, {1, 128}, DataType::kF8E8m0, ScaleRounding::kUp, true},
      {kFp8E4m3, {1, 0}, DataType::kBf16},
      {kInt8, {0, 0}},
      {kInt8, {1, 0}},
      {kInt8, {1, 32}},
      {kInt8, {1, 256}},
      {kInt4, {1, 32}},
      {kInt4, {1, 128}},
      {kInt4, {1, 128}, DataType::kBf16},
      {kNvfp4, {1, 16}, DataType::kF8E4m3},
      {kNvfp4, {1, 16}, DataType::kF8E4m3, ScaleRounding::kUp, false, 1.0f / 2688},
  };
  for (const ScaleRounding rounding :
       {ScaleRounding::kDown, ScaleRounding::kUp, ScaleRounding::kEven, ScaleRounding::kCeil}) {
    all.push_back({kMxfp4, {1, 32}, DataType::kF8E8m0, rounding});
    all.push_back({kMxfp8, {1, 32}, DataType::kF8E8m0, rounding});
  }
  return all;
}

inline std::string describe(const QuantizeCase& c) {
  return std::string(to_string(c.format)) + " block " + std::to_string(c.block.rows) + "x" +
         std::to_string(c.block.cols) + " scales " + to_string(c.scale_type) + " rounding " +
         std::to_string(static_cast<int>(c.rounding)) + (c.power_of_two ? " power of two" : "");
}

/// Type and columns of the tensor that holds the codes.
inline DataType code_type(Format format) {
  if (element_bits(format) == 4) return DataType::kU8;
  return format == Format::kInt8 ? DataType::kI8 : DataType::kF8E4m3;
}
inline int64_t code_cols(Format format, int64_t cols) {
  return element_bits(format) == 4 ? (cols + 1) / 2 : cols;
}

}  // namespace switchyard::test
