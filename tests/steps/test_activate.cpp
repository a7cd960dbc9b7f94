// The activation step against the formulas in long double: orders, biases, types, ragged widths.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "cpu/steps.h"
#include "reference/steps.h"
#include "support/activation_formula.h"
#include "support/buffer.h"
#include "support/random.h"
#include "switchyard/ops.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::Random;
using Real = long double;

/// Half a unit of the output type, and its smallest step.
Real output_rounding(DataType type, Real value) {
  const Real relative = type == DataType::kBf16 ? 0x1p-8L : type == DataType::kF16 ? 0x1p-11L : 0;
  return relative * std::fabs(value) + (type == DataType::kF16 ? 0x1p-25L : 0);
}

/// f32 arithmetic: the rounded sum with the bias moves each operand by half a unit, the activation
/// itself makes eight roundings, and an exponential of an argument x magnifies its rounding x-fold.
Real tolerance(const ActivationSpec& spec, Real gate, Real up, DataType type) {
  const Real want = test::activation_formula(spec, gate, up);
  Real moved = 0;
  for (const Real dg : {-0x1p-24L, 0x1p-24L}) {
    for (const Real du : {-0x1p-24L, 0x1p-24L}) {
      const Real other = test::activation_formula(spec, gate * (1 + dg), up * (1 + du));
      moved = std::max(moved, std::fabs(other - want));
    }
  }
  Real exponent = std::fabs(gate);
  if (spec.kind == Activation::kGeGlu) exponent = gate * gate;
  if (spec.kind == Activation::kGeGluTanh)
    exponent = 4 * (exponent + 0.1L * exponent * exponent * exponent);
  return 2 * moved + 0x1p-23L * (8 + 2 * exponent) * std::fabs(want) + 1e-36L +
         output_rounding(type, want);
}

struct Case {
  ActivationSpec activation;
  GateUpOrder order;
  int64_t rows, intermediate;
  DataType input_type, output_type;
  bool biased;
};

struct Implementation {
  const char* name;
  void (*activate)(const ops::ActivateArgs&);
};

class Activate : public testing::TestWithParam<Implementation> {
 protected:
  void run(const Case& c) {
    const int64_t width = c.activation.gated() ? 2 * c.intermediate : c.intermediate;
    Random random(static_cast<uint64_t>(width + c.rows));
    const Buffer input = Buffer::normal(random, c.input_type, {c.rows, width}, 4.0);
    const Buffer bias = Buffer::normal(random, c.input_type, {width}, 1.0);
    Buffer output(c.output_type, {c.rows, c.intermediate});
    GetParam().activate({.activation = c.activation,
                         .order = c.order,
                         .input = input,
                         .bias = c.biased ? bias.view() : TensorView{},
                         .output = output});
    ASSERT_TRUE(output.canaries_intact());
    const bool interleaved = c.order == GateUpOrder::kInterleaved;
    for (int64_t i = 0; i < output.size(); ++i) {
      const int64_t row = i / c.intermediate;
      const int64_t column = i % c.intermediate;
      const auto at = [&](int64_t x) -> Real {
        return Real(input.at(row * width + x)) + (c.biased ? Real(bias.at(x)) : 0);
      };
      Real gate = 0;
      Real up = 0;
      if (!c.activation.gated()) {
        up = at(column);
      } else {
        gate = at(interleaved ? 2 * column : column);
        up = at(interleaved ? 2 * column + 1 : c.intermediate + column);
      }
      const Real want = test::activation_formula(c.activation, gate, up);
      ASSERT_NEAR(output.at(i), double(want),
                  double(tolerance(c.activation, gate, up, c.output_type)))
          << to_string(c.activation.kind) << " row " << row << " of " << c.rows << " column "
          << column << " of " << c.intermediate << " gate " << gate << " up " << up;
    }
  }
};
INSTANTIATE_TEST_SUITE_P(All, Activate,
                         testing::Values(Implementation{"reference", reference::activate},
                                         Implementation{"cpu", cpu::activate}),
                         [](const auto& suite) { return suite.param.name; });

TEST_P(Activate, EveryKindOrderAndType) {
  for (const ActivationSpec& activation : test::all_activations()) {
    for (const auto order : {GateUpOrder::kConcatenated, GateUpOrder::kInterleaved}) {
      for (const auto input : {DataType::kF32, DataType::kBf16, DataType::kF16}) {
        for (const auto output : {DataType::kF32, DataType::kBf16, DataType::kF16}) {
          for (const bool biased : {false, true})
            run({activation, order, 3, 37, input, output, biased});
        }
      }
    }
  }
}

TEST_P(Activate, RaggedShapes) {
  for (const auto kind : {Activation::kSwiGlu, Activation::kRelu2}) {
    for (const auto order : {GateUpOrder::kConcatenated, GateUpOrder::kInterleaved}) {
      for (const int64_t rows : {0, 1, 2, 19}) {
        for (const int64_t intermediate : {1, 192, 1023, 1024, 1025, 2880}) {
          run({{.kind = kind}, order, rows, intermediate, DataType::kBf16, DataType::kF32, true});
        }
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
