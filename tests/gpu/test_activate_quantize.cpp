// Activation and quantisation of partial sums on the GPU: the bits of its own activate and the
// reference's quantize over sums in f32, and within half a step of the formula.

#include <gtest/gtest.h>

#include "gpu/device_tensor.h"
#include "reference/steps.h"
#include "support/activate_quantize_problem.h"

namespace switchyard {
namespace {

using test::ActivateQuantizeProblem;
using test::Buffer;
using test::DeviceTensor;

/// Codes and scales by way of the two steps.
void expected(const ActivateQuantizeProblem& p, const Buffer& values, const Buffer& scales) {
  const Buffer sums(DataType::kF32, {p.output_rows(), p.input_cols()});
  for (int64_t r = 0; r < p.output_rows(); ++r) {
    for (int64_t c = 0; c < p.input_cols(); ++c) {
      sums.as<float>()[r * p.input_cols() + c] = p.sum_at<float>(r, c);
    }
  }
  const DeviceTensor device_sums(sums);
  const DeviceTensor device_activated(Buffer(DataType::kF32, {p.output_rows(), p.width}));
  test::gpu().activate({.activation = p.activation,
                        .order = p.order,
                        .input = device_sums,
                        .output = device_activated},
                       test::on_gpu());
  const Buffer activated = device_activated.fetch();
  ops::QuantizeArgs quantized = p.args(values, scales).quantized;
  quantized.input = activated;
  reference::quantize(quantized);
}

TEST(GpuActivateQuantize, HasTheBitsOfTheTwoSteps) {
  uint64_t seed = 0;
  for (ActivateQuantizeProblem& problem : test::activate_quantize_problems()) {
    problem.fill(++seed);
    SCOPED_TRACE(problem.text());
    const Buffer values = problem.values_buffer(), scales = problem.scales_buffer();
    expected(problem, values, scales);
    ops::ActivateQuantizeArgs args = problem.args(values, scales);
    const DeviceTensor input(args.input), bias(args.bias), ids(args.sorted_ids),
        experts(args.sorted_expert_ids), device_values(problem.values_buffer()),
        device_scales(problem.scales_buffer());
    args.input = input;
    args.bias = bias;
    args.sorted_ids = ids;
    args.sorted_expert_ids = experts;
    args.quantized.values = device_values;
    args.quantized.scales = device_scales;
    test::gpu().activate_quantize(args, test::on_gpu());
    const Buffer got_values = device_values.fetch(), got_scales = device_scales.fetch();
    ASSERT_TRUE(test::same_bits(got_scales, scales));
    ASSERT_TRUE(test::same_bits(got_values, values));
    test::expect_half_a_step(problem, got_values, got_scales);
    if (HasFatalFailure()) return;
  }
}

TEST(GpuActivateQuantize, SaysWhatItDoesNotTake) {
  for (const int64_t width : {64, 60}) {
    ActivateQuantizeProblem problem{.how = {Format::kInt8, {1, width == 64 ? 48 : 32}},
                                    .width = width};
    problem.fill(3);
    const DeviceTensor input(problem.input.view()), values(problem.values_buffer()),
        scales(problem.scales_buffer());
    ops::ActivateQuantizeArgs args = problem.args(problem.values_buffer(), problem.scales_buffer());
    args.input = input;
    args.quantized.values = values;
    args.quantized.scales = scales;
    try {
      test::gpu().activate_quantize(args, test::on_gpu());
      FAIL() << "took " << problem.text();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
      EXPECT_NE(std::string(error.what()).find(width == 64 ? "48" : "60"), std::string::npos);
    }
    EXPECT_TRUE(values.fetch().untouched());
  }
}

}  // namespace
}  // namespace switchyard
