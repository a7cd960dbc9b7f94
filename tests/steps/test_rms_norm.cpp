// RMS norm against long double.

#include <gtest/gtest.h>

#include <cmath>

#include "cpu/steps.h"
#include "reference/steps.h"
#include "support/buffer.h"
#include "support/random.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::Random;
using Real = long double;

struct Implementation {
  const char* name;
  void (*rms_norm)(const RmsNormArgs&);
};

class RmsNorm : public testing::TestWithParam<Implementation> {
 protected:
  void run(int64_t num_tokens, int64_t columns, DataType type, double deviation, int64_t computed) {
    SCOPED_TRACE(testing::Message()
                 << "T " << num_tokens << " C " << columns << " deviation " << deviation);
    Random random(static_cast<uint64_t>(columns));
    const Buffer input = Buffer::normal(random, type, {num_tokens, columns}, deviation);
    const Buffer scale = Buffer::normal(random, type, {columns});
    const Buffer count = Buffer::of(DataType::kI32, {1}, {static_cast<double>(computed)});
    Buffer output(DataType::kF32, {num_tokens, columns});
    constexpr float kEpsilon = 1e-6f;
    GetParam().rms_norm({.input = input,
                         .scale = scale,
                         .epsilon = kEpsilon,
                         .num_tokens = computed < num_tokens ? count.view() : TensorView{},
                         .output = output});
    for (int64_t t = 0; t < computed; ++t) {
      Real sum = 0;
      for (int64_t c = 0; c < columns; ++c) sum += std::pow(Real(input.at(t * columns + c)), 2);
      const Real rms = std::sqrt(sum / Real(columns) + Real(kEpsilon));
      for (int64_t c = 0; c < columns; ++c) {
        const Real want = Real(input.at(t * columns + c)) / rms * Real(scale.at(c));
        // Two f32 roundings; the sum is in double.
        ASSERT_NEAR(output.at(t * columns + c), double(want), double(0x1.1p-23L * std::fabs(want)))
            << "token " << t << " column " << c;
      }
    }
    EXPECT_TRUE(output.untouched(computed * columns, output.size()));
    EXPECT_TRUE(output.canaries_intact());
  }
};
INSTANTIATE_TEST_SUITE_P(All, RmsNorm,
                         testing::Values(Implementation{"reference", reference::rms_norm},
                                         Implementation{"cpu", cpu::rms_norm}),
                         [](const auto& suite) { return suite.param.name; });

TEST_P(RmsNorm, ShapesTypesAndMagnitudes) {
  for (const auto type : {DataType::kF32, DataType::kBf16, DataType::kF16}) {
    for (const int64_t columns : {1, 7, 8, 1023, 1024, 1025, 2816}) {
      for (const int64_t t : {0, 1, 3, 40}) run(t, columns, type, 1.0, t);
      run(5, columns, type, 1e-3, 2);
    }
  }
  run(2, 3000, DataType::kBf16, 1e30, 2);  // a sum of squares in f32 would overflow
  run(2, 3000, DataType::kF32, 1e-10, 2);  // epsilon decides
}

}  // namespace
}  // namespace switchyard
