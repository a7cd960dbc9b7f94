// 4-bit and MXFP8 weights in fragment order: every code and scale has its own place, the places are
// the registers wgmma wants, and the converters are exact for every code and every scale.

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "core/fragment_convert.h"
#include "core/fragment_layout.h"

namespace switchyard {
namespace {

struct Kind {
  FragmentOrder order;
  Format format;
  int64_t group;
  bool factors = false;
};
constexpr Kind kKinds[] = {
    {FragmentOrder::kFp8, Format::kMxfp4, 32},  {FragmentOrder::kBf16, Format::kMxfp4, 32},
    {FragmentOrder::kBf16, Format::kNvfp4, 16}, {FragmentOrder::kBf16, Format::kInt4, 32},
    {FragmentOrder::kBf16, Format::kInt4, 128}, {FragmentOrder::kBf16, Format::kMxfp8, 32},
    {FragmentOrder::kFp8, Format::kInt4, 32},   {FragmentOrder::kFp8, Format::kInt4, 128, true},
    {FragmentOrder::kInt8, Format::kInt4, 32},  {FragmentOrder::kFp8, Format::kNvfp4, 16},
};

/// Every bit of a code, from the lowest on.
std::vector<int> bits_of(const CodePlace& at) {
  if (at.middle == 0) return {at.low, at.low + 1, at.low + 2, at.top};
  return {at.low,    at.low + 1,    at.low + 2,    at.low + 3,
          at.middle, at.middle + 1, at.middle + 2, at.top};
}

TEST(FragmentLayout, PlacesAreDisjointAndFillTheBlock) {
  for (const Kind& kind : kKinds) {
    const FragmentLayout layout =
        fragment_layout(kind.order, kind.format, kind.group, 64, 64, kind.factors);
    std::set<int> bits, scale_bytes;
    for (int row = 0; row < kFragmentRows; ++row) {
      for (int col = 0; col < kFragmentCols; ++col) {
        const CodePlace at = code_place(layout, row, col);
        const std::vector<int> own = bits_of(at);
        ASSERT_EQ(static_cast<int>(own.size()), element_bits(kind.format));
        for (const int bit : own) {
          ASSERT_TRUE(bits.insert(at.word * 32 + bit).second);
        }
        const CodePlace first =
            code_place(layout, row, col / code_run(kind.order) * code_run(kind.order));
        ASSERT_EQ(at.word, first.word) << "a run shares its word";
        const int scale = scale_place(layout, row, col);
        for (int b = 0; b < layout.scale_bytes; ++b) scale_bytes.insert(scale + b);
        ASSERT_EQ(scale == scale_place(layout, row, col - col % layout.scale_cols), true);
      }
    }
    const int code_bytes = fragment_code_bytes(kind.format);
    EXPECT_EQ(*bits.begin(), 0);
    EXPECT_EQ(*bits.rbegin(), code_bytes * 8 - 1);
    EXPECT_EQ(static_cast<int>(bits.size()), code_bytes * 8);
    EXPECT_EQ(*scale_bytes.begin(), code_bytes);
    EXPECT_EQ(*scale_bytes.rbegin(), layout.block_bytes - 1);
    EXPECT_EQ(static_cast<int>(scale_bytes.size()), layout.block_bytes - code_bytes);
    EXPECT_EQ(layout.block_bytes % 16, 0) << "the copy engine's granule";
  }
}

TEST(FragmentLayout, BlocksOfARowBlockFollowEachOtherAndPaddingIsWholeBlocks) {
  const FragmentLayout layout =
      fragment_layout(FragmentOrder::kFp8, Format::kMxfp4, 32, 5760, 2880);
  EXPECT_EQ(layout.block_bytes, 2176);
  EXPECT_EQ(layout.bytes(), 5760 * 2880 / 32 * 17) << "no padding where sizes are multiples of 64";
  int64_t next = 0;
  for (int64_t row = 0; row < 5760; row += 64) {
    for (int64_t col = 0; col < 2880; col += 64) {
      ASSERT_EQ(fragment_block(layout, row, col), next);
      next += layout.block_bytes;
    }
  }
  EXPECT_EQ(next, layout.bytes());
  const FragmentLayout odd = fragment_layout(FragmentOrder::kBf16, Format::kMxfp4, 32, 65, 63);
  EXPECT_EQ(odd.padded_rows(), 128);
  EXPECT_EQ(odd.padded_cols(), 64);
  EXPECT_EQ(odd.bytes(), 2 * 2176);
  EXPECT_EQ(fragment_layout(FragmentOrder::kBf16, Format::kNvfp4, 16, 64, 64).block_bytes, 2304);
  EXPECT_EQ(fragment_layout(FragmentOrder::kBf16, Format::kInt4, 32, 64, 64).block_bytes, 2304);
  EXPECT_EQ(fragment_layout(FragmentOrder::kBf16, Format::kInt4, 128, 64, 64).block_bytes, 2176);
  EXPECT_EQ(fragment_layout(FragmentOrder::kBf16, Format::kMxfp8, 32, 64, 64).block_bytes, 4224);
}

/// Random codes of a block, and the words that hold them.
struct Block {
  Block(FragmentOrder order, Format format, std::mt19937& random, bool factors = false)
      : words(static_cast<size_t>(fragment_code_bytes(format) / 4)),
        codes(kFragmentRows * kFragmentCols) {
    const uint32_t mask = (1u << element_bits(format)) - 1;
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random() & mask);
    for (int row = 0; row < kFragmentRows; ++row) {
      for (int col = 0; col < kFragmentCols; ++col) {
        const CodePlace at = code_place(order, format, row, col, factors);
        words[static_cast<size_t>(at.word)] |= placed_code(code(row, col), at);
      }
    }
  }
  uint8_t code(int row, int col) const {
    return codes[static_cast<size_t>(row * kFragmentCols + col)];
  }
  /// Row of the packed matrix in row `row` of the wgmma tile.
  static int packed_row(int row) {
    for (int packed = 0; packed < kFragmentRows; ++packed) {
      if (fragment_row(packed) == row) return packed;
    }
    return -1;
  }
  std::vector<uint32_t> words;
  std::vector<uint8_t> codes;
};

TEST(FragmentLayout, UnpackingFindsWhatPackingStored) {
  std::mt19937 random(1);
  for (const Kind& kind : kKinds) {
    const Block block(kind.order, kind.format, random, kind.factors);
    for (int row = 0; row < kFragmentRows; ++row) {
      for (int col = 0; col < kFragmentCols; ++col) {
        const CodePlace at = code_place(kind.order, kind.format, row, col, kind.factors);
        ASSERT_EQ(code_of(block.words[static_cast<size_t>(at.word)], at), block.code(row, col));
      }
    }
  }
}

// The operand A of wgmma m64kN, by the PTX manual: register a[r] of lane 4 g + q of warp w holds
// row 16 w + g + 8 (r % 2) and, with b bytes to an element, columns 4 / b * q + (r / 2) * 16 / b
// ...
TEST(FragmentConvert, ThreadsGetTheirOwnFp8Registers) {
  std::mt19937 random(2);
  const Block block(FragmentOrder::kFp8, Format::kMxfp4, random);
  for (int thread = 0; thread < kFragmentThreads; ++thread) {
    const int w = thread / 32, g = thread % 32 / 4, q = thread % 4;
    for (int step = 0; step < 2; ++step) {
      uint32_t a[4];
      for (int h = 0; h < 2; ++h) {
        const uint32_t word = block.words[static_cast<size_t>(thread * 4 + step * 2 + h)];
        convert_fp8(word, kFp8Tables[8], a[h], a[2 + h]);
      }
      for (int r = 0; r < 4; ++r) {
        const int row = Block::packed_row(16 * w + g + 8 * (r % 2));
        for (int i = 0; i < 4; ++i) {
          const uint8_t code = block.code(row, step * 32 + r / 2 * 16 + q * 4 + i);
          ASSERT_EQ(fp8_e4m3_to_f32(static_cast<uint8_t>(a[r] >> (8 * i))), fp4_e2m1_to_f32(code));
        }
      }
    }
  }
}

TEST(FragmentConvert, ThreadsGetTheirOwnBytesOfInt4) {
  std::mt19937 random(5);
  for (const Kind& kind : kKinds) {
    if (kind.format != Format::kInt4 || !multiplies_bytes(kind.order)) continue;
    const FragmentLayout layout =
        fragment_layout(kind.order, kind.format, kind.group, 64, 64, kind.factors);
    const Block block(kind.order, kind.format, random, kind.factors);
    for (int thread = 0; thread < kFragmentThreads; ++thread) {
      const int w = thread / 32, g = thread % 32 / 4, q = thread % 4;
      for (int step = 0; step < 2; ++step) {
        for (int r = 0; r < 4; ++r) {
          const uint32_t word =
              block.words[static_cast<size_t>(thread * 4 + step * 2 + r % 2)] >> (r / 2 * 4);
          const uint32_t zeros = int4_zeros(kInt4ZeroPoint);
          const uint32_t a = kind.order == FragmentOrder::kInt8 ? int4_to_int8(word, zeros)
                             : kind.factors                     ? int4_to_fp8(word, zeros)
                                                                : int4_to_fp8(word);
          const int row = Block::packed_row(16 * w + g + 8 * (r % 2));
          for (int i = 0; i < 4; ++i) {
            const auto byte = static_cast<uint8_t>(a >> (8 * i));
            const float got = kind.order == FragmentOrder::kInt8
                                  ? static_cast<float>(static_cast<int8_t>(byte))
                                  : fp8_e4m3_to_f32(byte) * int4_row_scale(layout);
            const uint8_t code = block.code(row, step * 32 + r / 2 * 16 + q * 4 + i);
            ASSERT_EQ(got, int4_to_f32(code));
          }
        }
      }
    }
  }
}

TEST(FragmentConvert, ThreadsGetTheirOwnBf16Registers) {
  std::mt19937 random(3);
  for (const Format format : {Format::kMxfp4, Format::kInt4}) {
    const Block block(FragmentOrder::kBf16, format, random);
    for (int thread = 0; thread < kFragmentThreads; ++thread) {
      const int w = thread / 32, g = thread % 32 / 4, q = thread % 4;
      for (int step = 0; step < 4; ++step) {
        const uint32_t word = block.words[static_cast<size_t>(thread * 4 + step)];
        const uint32_t one = mx_multiplier(253, 0);  // 2^126
        uint32_t a[4];
        format == Format::kInt4 ? convert_int4(word, a) : convert_bf16(word, one, one, a);
        for (int r = 0; r < 4; ++r) {
          const int row = Block::packed_row(16 * w + g + 8 * (r % 2));
          for (int i = 0; i < 2; ++i) {
            const uint8_t code = block.code(row, step * 16 + r / 2 * 8 + q * 2 + i);
            ASSERT_EQ(bf16_to_f32(static_cast<uint16_t>(a[r] >> (16 * i))),
                      format == Format::kInt4 ? int4_to_f32(code) : fp4_e2m1_to_f32(code));
          }
        }
      }
    }
  }
}

TEST(FragmentConvert, ThreadsGetTheirOwnBf16RegistersOfE4m3) {
  std::mt19937 random(4);
  const Block block(FragmentOrder::kBf16, Format::kMxfp8, random);
  const uint32_t one = mx_multiplier(247, 0);  // 2^120
  for (int thread = 0; thread < kFragmentThreads; ++thread) {
    const int w = thread / 32, g = thread % 32 / 4, q = thread % 4;
    for (int step = 0; step < 4; ++step) {
      uint32_t a[4];
      for (int h = 0; h < 2; ++h) {
        const int word = step / 2 * kFragmentThreads * 4 + thread * 4 + step % 2 * 2 + h;
        convert_e4m3_bf16(block.words[static_cast<size_t>(word)], one, a[h], a[2 + h]);
      }
      for (int r = 0; r < 4; ++r) {
        const int row = Block::packed_row(16 * w + g + 8 * (r % 2));
        for (int i = 0; i < 2; ++i) {
          const uint8_t code = block.code(row, step * 16 + r / 2 * 8 + q * 2 + i);
          if ((code & 0x7f) == 0x7f) continue;  // NaN: refused when packed
          ASSERT_EQ(f32_bits(bf16_to_f32(static_cast<uint16_t>(a[r] >> (16 * i)))),
                    f32_bits(fp8_e4m3_to_f32(code)));
        }
      }
    }
  }
}

/// Every code in every place of a word.
template <class Check>
void for_each_code(FragmentOrder order, Format format, Check check) {
  const int bits = element_bits(format);
  for (int place = 0; place < 32 / bits; ++place) {
    // Row pair 0, thread 0: the places of its word 0.
    const bool fp8 = multiplies_bytes(order), one_row = fp8 || bits == 8;
    const int row = one_row ? 0 : place / 2 % 2;
    const int col = fp8 ? place % 4 + place / 4 * 16 : place % 2 + place * bits / 16 * 8;
    const CodePlace at = code_place(order, format, row, col);
    ASSERT_EQ(at.word, 0);
    for (uint32_t code = 0; code < 1u << bits; ++code) {
      for (const uint32_t others : {0u, ~0u}) {
        const uint32_t mine = placed_code((1u << bits) - 1, at);
        check(placed_code(code, at) | (others & ~mine), place, static_cast<uint8_t>(code));
      }
    }
  }
}

TEST(FragmentConvert, Fp8IsExactForEveryCodeAndStep) {
  for (int down = 0; down <= max_steps_down(FragmentOrder::kFp8); ++down) {
    const uint8_t byte = mx_scale_byte(FragmentOrder::kFp8, down);
    const int exponent = mx_scale_exponent(FragmentOrder::kFp8, Format::kMxfp4, byte);
    EXPECT_EQ(exponent, 6 - down);
    const Fp8Table table = kFp8Tables[byte / 8];
    for_each_code(FragmentOrder::kFp8, Format::kMxfp4, [&](uint32_t word, int place, uint8_t code) {
      uint32_t a[2];
      convert_fp8(word, table, a[0], a[1]);
      const auto got = static_cast<uint8_t>(a[place / 4] >> (place % 4 * 8));
      const float want = std::ldexp(fp4_e2m1_to_f32(code), exponent);
      ASSERT_EQ(f32_bits(fp8_e4m3_to_f32(got)), f32_bits(want))
          << "code " << int{code} << " times 2^" << exponent;
    });
  }
}

TEST(FragmentConvert, AddingGivesTheSameTables) {
  for (int down = 0; down <= kMaxAddedSteps; ++down) {
    const uint8_t byte = mx_scale_byte(FragmentOrder::kFp8, down);
    const Fp8Table table = added_fp8_table(byte);
    EXPECT_EQ(table.low, kFp8Tables[byte / 8].low);
    EXPECT_EQ(table.high, kFp8Tables[byte / 8].high);
  }
}

TEST(FragmentConvert, Bf16IsExactForEveryCodeAndStep) {
  for (int down = 0; down <= max_steps_down(FragmentOrder::kBf16); ++down) {
    const uint8_t byte = mx_scale_byte(FragmentOrder::kBf16, down);
    const int exponent = mx_scale_exponent(FragmentOrder::kBf16, Format::kMxfp4, byte);
    EXPECT_EQ(exponent, 1 - down);
    for_each_code(FragmentOrder::kBf16, Format::kMxfp4,
                  [&](uint32_t word, int place, uint8_t code) {
                    uint32_t a[4];
                    const uint32_t multiplier = mx_multiplier(uint32_t{byte} << 16, 2);
                    convert_bf16(word, multiplier, multiplier, a);
                    const auto got = static_cast<uint16_t>(a[place / 2] >> (place % 2 * 16));
                    const float want = std::ldexp(fp4_e2m1_to_f32(code), exponent);
                    ASSERT_EQ(f32_bits(bf16_to_f32(got)), f32_bits(want));
                  });
  }
}

TEST(FragmentConvert, Mxfp8IsExactForEveryCodeAndStep) {
  for (int down = 0; down <= max_steps_down(FragmentOrder::kBf16); ++down) {
    const uint8_t byte = mx_scale_byte(FragmentOrder::kBf16, down);
    const int exponent = mx_scale_exponent(FragmentOrder::kBf16, Format::kMxfp8, byte);
    EXPECT_EQ(exponent, 7 - down);
    for_each_code(FragmentOrder::kBf16, Format::kMxfp8,
                  [&](uint32_t word, int place, uint8_t code) {
                    if ((code & 0x7f) == 0x7f) return;  // NaN: refused when packed
                    uint32_t a[2];
                    convert_e4m3_bf16(word, mx_multiplier(uint32_t{byte} << 24, 3), a[0], a[1]);
                    const auto got = static_cast<uint16_t>(a[place / 2] >> (place % 2 * 16));
                    const float want = std::ldexp(fp8_e4m3_to_f32(code), exponent);
                    ASSERT_EQ(f32_bits(bf16_to_f32(got)), f32_bits(want))
                        << "code " << int{code} << " times 2^" << exponent;
                  });
  }
}

TEST(FragmentConvert, Nvfp4IsExactForEveryCodeAndScale) {
  for (int scale = 1; scale < 0x7f; ++scale) {
    const uint8_t byte = nvfp4_scale_byte(static_cast<uint8_t>(scale));
    const float value = fp8_e4m3_to_f32(static_cast<uint8_t>(scale));
    EXPECT_EQ(nvfp4_scale(byte), value);
    for_each_code(FragmentOrder::kBf16, Format::kNvfp4,
                  [&](uint32_t word, int place, uint8_t code) {
                    uint32_t a[4];
                    const uint32_t multiplier = nvfp4_multiplier(uint32_t{byte} << 24, 3);
                    convert_bf16(word, multiplier, multiplier, a);
                    const auto got = static_cast<uint16_t>(a[place / 2] >> (place % 2 * 16));
                    ASSERT_EQ(f32_bits(bf16_to_f32(got) * kNvfp4RowScale),
                              f32_bits(fp4_e2m1_to_f32(code) * value));
                  });
  }
}

/// Every code under every scale, in rows whose largest exponent is any: within a 21st of itself, or
/// half of E4M3's least number.
TEST(FragmentConvert, Nvfp4RoundsToE4m3ByA21st) {
  static constexpr Nvfp4Tables kTables = make_nvfp4_tables();
  const FragmentLayout layout = fragment_layout(FragmentOrder::kFp8, Format::kNvfp4, 16, 64, 64);
  for (int largest = 0; largest < kNvfp4Exponents; ++largest) {
    const float row_scale = nvfp4_row_scale(FragmentOrder::kFp8, largest);
    for (int scale = 1; scale < 0x7f; ++scale) {
      const uint8_t own = nvfp4_scale_byte(static_cast<uint8_t>(scale));
      if (nvfp4_exponent(own) > largest) continue;
      const uint8_t byte = nvfp4_relative_byte(own, largest);
      const float value = fp8_e4m3_to_f32(static_cast<uint8_t>(scale));
      ASSERT_EQ(fragment_scale(layout, byte, row_scale), value) << "generic kernels are exact";
      for_each_code(layout.order, layout.format, [&](uint32_t word, int place, uint8_t code) {
        uint32_t a[2];
        const Fp8Table other = kFp8Tables[3];
        convert_fp8(word, place < 4 ? kTables.of[byte] : other,
                    place < 4 ? other : kTables.of[byte], a[0], a[1]);
        const auto got = static_cast<uint8_t>(a[place / 4] >> (place % 4 * 8));
        const float want = fp4_e2m1_to_f32(code) * value;
        const float floor = std::ldexp(row_scale, -10);  // half of E4M3's least number
        ASSERT_LE(std::abs(fp8_e4m3_to_f32(got) * row_scale - want),
                  std::max(std::abs(want) / 21, floor));
      });
    }
  }
}

TEST(FragmentConvert, Int4IsExactForEveryCodeAndZeroPoint) {
  for (uint32_t zero_point = 0; zero_point <= kInt4ZeroBits; ++zero_point) {
    for_each_code(FragmentOrder::kBf16, Format::kInt4, [&](uint32_t word, int place, uint8_t code) {
      uint32_t a[4];
      const int row = place / 2 % 2;  // the other one has another zero point
      convert_int4(word, int4_bias(row == 0 ? zero_point : 3), int4_bias(row == 1 ? zero_point : 3),
                   a);
      const auto got = static_cast<uint16_t>(a[place / 2] >> (place % 2 * 16));
      ASSERT_EQ(bf16_to_f32(got), static_cast<float>(code) - static_cast<float>(zero_point));
    });
  }
}

TEST(FragmentConvert, Int4IsExactInBytesForEveryCodeAndZeroPoint) {
  const FragmentLayout fp8 = fragment_layout(FragmentOrder::kFp8, Format::kInt4, 32, 64, 64, true);
  for (uint32_t zero_point = 0; zero_point <= kInt4ZeroBits; ++zero_point) {
    for (uint32_t word = 0; word < 0x10000; word += 0x11) {  // every code beside every other
      const uint32_t words = word | word << 16;
      const uint32_t int8 = int4_to_int8(words, int4_zeros(zero_point));
      const uint32_t e4m3 = int4_to_fp8(words, int4_zeros(zero_point));
      for (int i = 0; i < 4; ++i) {
        const auto want =
            static_cast<float>(words >> (8 * i) & 15u) - static_cast<float>(zero_point);
        ASSERT_EQ(static_cast<float>(static_cast<int8_t>(int8 >> (8 * i))), want);
        if (zero_point > kMostInt4Fp8Zero) continue;
        ASSERT_EQ(fp8_e4m3_to_f32(static_cast<uint8_t>(e4m3 >> (8 * i))) * int4_row_scale(fp8),
                  want);
      }
    }
  }
}

TEST(FragmentConvert, Int4FactorsKeepEveryScaleAndZeroPoint) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    for (const float scale : {f16_to_f32(half), bf16_to_f32(half)}) {
      if (std::isnan(scale)) continue;
      for (const uint32_t zero_point : {0u, 7u, 16u, kInt4ZeroBits}) {
        const uint32_t factor = int4_factor(scale, zero_point);
        ASSERT_EQ(f32_bits(int4_scale(factor)), f32_bits(scale));
        ASSERT_EQ(int4_zero_point(factor), zero_point);
      }
    }
  }
}

TEST(FragmentConvert, Int4IsExactForEveryCode) {
  for_each_code(FragmentOrder::kBf16, Format::kInt4, [&](uint32_t word, int place, uint8_t code) {
    uint32_t a[4];
    convert_int4(word, a);
    const auto got = static_cast<uint16_t>(a[place / 2] >> (place % 2 * 16));
    ASSERT_EQ(bf16_to_f32(got), int4_to_f32(code));
  });
}

TEST(FragmentConvert, EveryScaleOfEveryRowIsKept) {
  // All 255 E8M0 bytes, in rows whose largest is any byte that is not too far above.
  for (const auto& [order, format] : {std::pair{FragmentOrder::kFp8, Format::kMxfp4},
                                      {FragmentOrder::kBf16, Format::kMxfp4},
                                      {FragmentOrder::kBf16, Format::kMxfp8}}) {
    const FragmentLayout layout = fragment_layout(order, format, 32, 64, 64);
    for (int largest = 0; largest < 255; ++largest) {
      const float row_scale =
          power_of_two(mx_row_exponent(order, format, static_cast<uint8_t>(largest)));
      for (int down = 0; down <= std::min(largest, max_steps_down(order)); ++down) {
        const auto e8m0 = static_cast<uint8_t>(largest - down);
        ASSERT_EQ(fragment_scale(layout, mx_scale_byte(order, down), row_scale), e8m0_to_f32(e8m0));
      }
    }
    for (int byte = 0; byte < 255; ++byte) {
      ASSERT_EQ(fragment_scale(layout, static_cast<uint32_t>(byte), -1.0f),
                e8m0_to_f32(static_cast<uint8_t>(byte)));
    }
  }
}

}  // namespace
}  // namespace switchyard
