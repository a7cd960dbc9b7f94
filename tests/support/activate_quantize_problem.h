#pragma once
// A random split-K intermediate with everything that activate_quantize may be given, and the check
// of what came out against the formula.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "core/expert_sort.h"
#include "core/scale_layout.h"
#include "core/weight_matrix.h"
#include "support/activation_formula.h"
#include "support/buffer.h"
#include "support/quantize_cases.h"
#include "support/random.h"
#include "switchyard/ops.h"

namespace switchyard::test {

struct ActivateQuantizeProblem {
  QuantizeCase how{};
  ActivationSpec activation{};
  GateUpOrder order = GateUpOrder::kConcatenated;
  DataType type = DataType::kBf16;
  int64_t num_parts = 2, num_rows = 5, width = 64;
  enum Bias { kNone, kOne, kPerExpert } bias_kind = kNone;
  bool sorted = false;

  static constexpr int64_t kTopK = 4, kExperts = 3, kUnit = 8;

  std::string text() const {
    return describe(how) + ", " + to_string(activation.kind) + ", " + to_string(type) + ", " +
           std::to_string(num_parts) + " parts of " + std::to_string(num_rows) + " x " +
           std::to_string(width) + (sorted ? ", sorted" : "") + ", bias " +
           std::to_string(static_cast<int>(bias_kind));
  }
  int64_t input_cols() const { return activation.gated() ? 2 * width : width; }
  int64_t output_rows() const { return sorted ? sorted_ids.size() : num_rows; }

  Buffer input{}, bias{}, sorted_ids{}, sorted_expert_ids{};

  void fill(uint64_t seed) {
    Random random(seed);
    input = Buffer::normal(random, type, {num_parts, num_rows, input_cols()}, 2.0);
    if (bias_kind != kNone) {
      const int64_t rows = bias_kind == kPerExpert ? kExperts : 1;
      bias = Buffer::normal(random, DataType::kBf16, {rows, input_cols()});
    }
    if (!sorted) return;
    // Pairs in any order, padding between them, and a row that does not exist.
    std::vector<double> ids;
    const auto padding = static_cast<double>(kTopK << kPackedTokenBits | (num_rows / kTopK));
    for (int64_t row = num_rows - 1; row >= 0; --row) {
      ids.push_back(static_cast<double>((row % kTopK) << kPackedTokenBits | row / kTopK));
      if (row % 3 == 0) ids.push_back(padding);
    }
    ids.push_back(static_cast<double>(num_rows / kTopK + 1));
    while (ids.size() % kUnit != 0) ids.push_back(padding);
    std::vector<double> experts;
    for (size_t block = 0; block < ids.size() / kUnit; ++block) {
      experts.push_back(static_cast<double>(block % kExperts));
    }
    const auto count = static_cast<int64_t>(ids.size());
    sorted_ids = Buffer::of(DataType::kI32, {count}, ids);
    sorted_expert_ids = Buffer::of(DataType::kI32, {count / kUnit}, experts);
  }
  ops::ActivateQuantizeArgs args(const Buffer& values, const Buffer& scales) const {
    ops::ActivateQuantizeArgs args{.activation = activation,
                                   .order = order,
                                   .input = input,
                                   .quantized = {.format = how.format,
                                                 .scale_block = how.block,
                                                 .rounding = how.rounding,
                                                 .power_of_two_scales = how.power_of_two,
                                                 .global_scale = how.global_scale,
                                                 .values = values,
                                                 .scales = scales}};
    if (bias_kind == kPerExpert) args.bias = bias;
    if (bias_kind == kOne) {
      args.bias = TensorView::contiguous(bias.view().data, DataType::kBf16, {input_cols()});
    }
    if (sorted) {
      args.sorted_ids = sorted_ids;
      args.sorted_expert_ids = sorted_expert_ids;
      args.unit_size = kUnit;
      args.top_k = kTopK;
    }
    return args;
  }
  Buffer values_buffer() const {
    return Buffer(code_type(how.format), {output_rows(), code_cols(how.format, width)});
  }
  Buffer scales_buffer() const {
    return Buffer(how.scale_type,
                  {scale_rows(how.block, output_rows()), scale_cols(how.block, width)});
  }
  /// Input row of an output row; -1: zeros.
  int64_t input_row(int64_t r) const {
    if (!sorted) return r;
    const int32_t packed = sorted_ids.as<int32_t>()[r];
    const int64_t row = packed_token(packed) * kTopK + packed_slot(packed);
    return packed_slot(packed) < kTopK && row < num_rows ? row : -1;
  }
  /// Column c of the sum that output row r is made of. In f32 it is what every backend adds up.
  template <class Real>
  Real sum_at(int64_t r, int64_t c) const {
    const int64_t row = input_row(r);
    if (row < 0) return 0;
    Real sum = 0;
    for (int64_t part = 0; part < num_parts; ++part) {
      const auto value = static_cast<Real>(input.at((part * num_rows + row) * input_cols() + c));
      sum = part == 0 ? value : sum + value;
    }
    if (bias_kind == kNone) return sum;
    const int64_t expert = bias_kind == kOne ? 0 : sorted_expert_ids.as<int32_t>()[r / kUnit];
    return sum + static_cast<Real>(bias.at(expert * input_cols() + c));
  }
  long double activated_at(int64_t r, int64_t column) const {
    const bool interleaved = order == GateUpOrder::kInterleaved;
    if (!activation.gated()) {
      return activation_formula(activation, 0.0L, sum_at<long double>(r, column));
    }
    return activation_formula(
        activation, sum_at<long double>(r, interleaved ? 2 * column : column),
        sum_at<long double>(r, interleaved ? 2 * column + 1 : width + column));
  }
};

/// Every decoded value is within half a step of its format of the formula, but for f32 roundings.
inline void expect_half_a_step(const ActivateQuantizeProblem& p, const Buffer& values,
                               const Buffer& scales) {
  WeightMatrix matrix{.format = p.how.format, .rows = p.output_rows(), .cols = p.width};
  matrix.values = values;
  matrix.scales = scales;
  matrix.scale_block = p.how.block;
  matrix.global_scale = p.how.global_scale;
  for (int64_t r = 0; r < p.output_rows(); ++r) {
    for (int64_t c = 0; c < p.width; ++c) {
      const double scale =
          static_cast<double>(detail::scale_of_group(matrix, r, scale_index(c, p.how.block.cols))) *
          static_cast<double>(p.how.global_scale);
      const auto want = static_cast<double>(p.activated_at(r, c));
      if (scale == 0) {  // NVFP4's smallest scale is 2^-9; less than half of it is none
        ASSERT_EQ(decode_element(matrix, r, c), 0) << p.text();
        ASSERT_LE(std::fabs(want), 6 * static_cast<double>(p.how.global_scale) * 0x1.01p-10);
        continue;
      }
      const double magnitude = std::fabs(want) / scale;
      const double half_step = p.how.format == Format::kInt8 || p.how.format == Format::kInt4 ? 0.5
                               : element_bits(p.how.format) == 4
                                   ? (magnitude < 2   ? 0.25
                                      : magnitude < 4 ? 0.5
                                                      : 1.0)
                                   : std::max(magnitude * 0x1p-4, 0x1p-10);
      // Sums and activation: a dozen f32 roundings of terms of the sum's size; NVFP4 scales are
      // rounded to nearest, so the largest value may be clipped by a sixteenth.
      const double clipped = p.how.format == Format::kNvfp4 ? std::max(0.0, magnitude - 6) : 0;
      const double slack = 1e-5 * (1 + std::fabs(want)) / scale;
      ASSERT_LE(std::fabs(static_cast<double>(decode_element(matrix, r, c)) - want) / scale,
                std::max(half_step, clipped) * 1.001 + slack)
          << p.text() << " row " << r << " column " << c << " scale " << scale;
    }
  }
}

/// Each format with each kind of block, activation, order, input and row list at least once.
inline std::vector<ActivateQuantizeProblem> activate_quantize_problems() {
  using P = ActivateQuantizeProblem;
  std::vector<P> all;
  const std::vector<QuantizeCase> hows = {
      {Format::kFp8E4m3, {1, 128}},
      {Format::kFp8E4m3, {1, 0}},
      {Format::kInt8, {1, 32}},
      {Format::kInt8, {1, 0}},
      {Format::kInt4, {1, 32}},
      {Format::kMxfp8, {1, 32}, DataType::kF8E8m0},
      {Format::kMxfp4, {1, 32}, DataType::kF8E8m0},
      {Format::kNvfp4, {1, 16}, DataType::kF8E4m3, ScaleRounding::kUp, false, 1.0f / 64}};
  int turn = 0;
  const auto add = [&](P problem) {
    problem.type = std::vector{DataType::kBf16, DataType::kF32, DataType::kF16}[turn % 3];
    problem.order = turn % 2 == 0 ? GateUpOrder::kConcatenated : GateUpOrder::kInterleaved;
    problem.sorted = turn % 4 >= 2;
    problem.bias_kind = turn % 5 == 0    ? P::kNone
                        : turn % 5 < 3   ? P::kOne
                        : problem.sorted ? P::kPerExpert
                                         : P::kOne;
    ++turn;
    all.push_back(std::move(problem));
  };
  for (const QuantizeCase& how : hows) {
    for (const ActivationSpec& activation : all_activations()) {
      add({.how = how, .activation = activation, .num_parts = 1 + turn % 4, .num_rows = 9});
    }
    for (const auto& [rows, width] : {std::pair{0, 64}, {1, 8}, {3, 200}, {13, 1032}, {2, 2880}}) {
      add({.how = how, .num_rows = rows, .width = width});
    }
  }
  return all;
}

}  // namespace switchyard::test
