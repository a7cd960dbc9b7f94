// How a linear's K is cut, and floats as sums of bf16 numbers.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "core/bf16_parts.h"
#include "core/linear_choice.h"
#include "support/random.h"

namespace switchyard {
namespace {

TEST(LinearBlocks, ChunksCoverEveryBlockOnce) {
  for (int32_t cols = 8; cols < 20000; cols += 8) {
    for (const int32_t parts : {1, kBf16Parts}) {
      const LinearBlocks blocks(cols, parts);
      ASSERT_GE(blocks.num_blocks * kLinearBlockCols, cols * parts);
      ASSERT_LE(blocks.num_chunks(), kLinearChunks);
      ASSERT_EQ(blocks.begin(0), 0);
      ASSERT_EQ(blocks.begin(blocks.num_chunks()), blocks.num_blocks);
      ASSERT_EQ(blocks.begin(kLinearChunks), blocks.num_blocks);
      for (int32_t c = 0; c < blocks.num_chunks(); ++c) {
        ASSERT_LT(blocks.begin(c), blocks.begin(c + 1)) << cols;
      }
    }
  }
}

TEST(LinearChoice, TokensOfOneSizeTakeOneKernel) {
  constexpr int kSms = 132;
  EXPECT_EQ(choose_linear(1, 256, kSms), LinearKernel::kDot);
  EXPECT_EQ(choose_linear(64, 256, kSms), LinearKernel::kSplitTile);
  EXPECT_EQ(choose_linear(1 << 24, 256, kSms), LinearKernel::kTile);
  EXPECT_EQ(choose_linear(8192, 3584, kSms), LinearKernel::kWideTile);
}

TEST(Bf16Parts, AddUpExactly) {
  test::Random random(5);
  const auto expect_exact = [](float value) {
    const Bf16Parts parts = bf16_parts(value);
    double sum = 0;
    for (const uint16_t code : parts.code) sum += static_cast<double>(bf16_to_f32(code));
    EXPECT_EQ(sum, static_cast<double>(value));
  };
  for (int i = 0; i < 100000; ++i) {
    const auto bits = static_cast<uint32_t>(random.below(1u << 31));
    constexpr uint32_t kLeastExponent = 25;  // 2^-102
    if (bits >> 23 < kLeastExponent || bits >> 23 == 255) continue;
    expect_exact(std::bit_cast<float>(bits));
    expect_exact(-std::bit_cast<float>(bits));
  }
  expect_exact(0.0f);
  expect_exact(3.4e38f);
  EXPECT_TRUE(std::isinf(bf16_to_f32(bf16_parts(INFINITY).code[kBf16Parts - 1])));
  EXPECT_TRUE(std::isnan(bf16_to_f32(bf16_parts(NAN).code[kBf16Parts - 1])));
}

}  // namespace
}  // namespace switchyard
