// Activation and quantisation of partial sums on the host, against the formulas.

#include <gtest/gtest.h>

#include "backend.h"
#include "support/activate_quantize_problem.h"

namespace switchyard {
namespace {

using test::ActivateQuantizeProblem;
using test::Buffer;

TEST(ActivateQuantize, IsWithinHalfAStepOfTheFormula) {
  uint64_t seed = 0;
  for (ActivateQuantizeProblem& problem : test::activate_quantize_problems()) {
    problem.fill(++seed);
    for (const BackendKind backend : {BackendKind::kReference, BackendKind::kCpu}) {
      SCOPED_TRACE(std::string(to_string(backend)) + " " + problem.text());
      const Buffer values = problem.values_buffer(), scales = problem.scales_buffer();
      ops::activate_quantize(problem.args(values, scales), {.backend = backend});
      EXPECT_TRUE(values.canaries_intact() && scales.canaries_intact());
      test::expect_half_a_step(problem, values, scales);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(ActivateQuantize, RefusesWhatDoesNotFit) {
  ActivateQuantizeProblem problem{.how = {Format::kMxfp4, {1, 32}, DataType::kF8E8m0},
                                  .bias_kind = ActivateQuantizeProblem::kPerExpert,
                                  .sorted = true};
  problem.fill(1);
  const Buffer values = problem.values_buffer(), scales = problem.scales_buffer();
  const auto refused = [&](auto change) {
    ops::ActivateQuantizeArgs args = problem.args(values, scales);
    change(args);
    EXPECT_THROW(ops::activate_quantize(args), Error);
    EXPECT_TRUE(values.untouched() && scales.untouched());
  };
  using Args = ops::ActivateQuantizeArgs;
  refused([](Args& a) { a.sorted_ids = {}; });  // the bias has a row per expert
  refused([](Args& a) { a.top_k = 0; });
  refused([](Args& a) { a.unit_size = 0; });
  refused([&](Args& a) { a.quantized.input = problem.input; });
  refused([](Args& a) { a.quantized.scale_block = {1, 16}; });
  refused([](Args& a) { a.input.shape[2] -= 1; });
  refused([](Args& a) { a.activation.kind = static_cast<Activation>(99); });
  problem.sorted_expert_ids.as<int32_t>()[0] = ActivateQuantizeProblem::kExperts;
  refused([](Args&) {});
}

}  // namespace
}  // namespace switchyard
