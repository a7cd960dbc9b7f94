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

/// The fastest or within 7 % of it in the measurements that the costs come from.
TEST(LinearChoice, IsWhatWasMeasuredFastest) {
  using enum LinearKernel;
  struct Measured {
    int64_t tokens, rows;
    int32_t cols;
    LinearKernel fastest;
  };
  const Measured measured[] = {{1, 256, 7168, kDot},          {8, 256, 7168, kDot},
                               {64, 256, 7168, kNarrowSplit}, {512, 256, 7168, kNarrowSplit},
                               {2048, 256, 7168, kSplit},     {4096, 256, 7168, kTile},
                               {8192, 256, 7168, kTile},      {1024, 128, 2880, kNarrowSplit},
                               {2048, 128, 2880, kSplit},     {8192, 128, 2880, kTile},
                               {1024, 512, 4096, kSplit},     {4096, 512, 4096, kTile},
                               {8192, 512, 4096, kWideTile},  {512, 1024, 4096, kSplit},
                               {2048, 1024, 4096, kTile},     {4096, 1024, 4096, kWideTile},
                               {1, 3584, 7168, kDot},         {2, 3584, 7168, kSplit},
                               {256, 3584, 7168, kSplit},     {512, 3584, 7168, kTile},
                               {1024, 3584, 7168, kWideTile}, {8192, 3584, 7168, kWideTile},
                               {256, 7168, 3584, kTile},      {512, 7168, 3584, kWideTile}};
  for (const Measured& m : measured) {
    EXPECT_STREQ(to_string(choose_linear(m.tokens, m.rows, LinearBlocks(m.cols), 132)),
                 to_string(m.fastest))
        << m.rows << " x " << m.cols << ", T " << m.tokens;
  }
  const LinearBlocks parts(5120, kBf16Parts);
  EXPECT_STREQ(to_string(choose_linear(16, 160, parts, 132)), to_string(kDot));
  EXPECT_STREQ(to_string(choose_linear(64, 160, parts, 132)), to_string(kNarrowSplit));
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
