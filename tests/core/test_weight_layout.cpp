// The packed order: every value, scale and zero point has its own place, and unpacking finds what
// packing stored.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>

#include "core/weight_layout.h"
#include "cpu/pack_weights.h"
#include "switchyard/error.h"

namespace switchyard {
namespace {

constexpr PanelValues kAllValues[] = {
    PanelValues::kFp4,     PanelValues::kInt4, PanelValues::kInt8, PanelValues::kFp8E4m3,
    PanelValues::kFp8E5m2, PanelValues::kBf16, PanelValues::kF16,  PanelValues::kF32};

TEST(WeightLayout, PlacesAreDisjointInsideThePanelAndFillIt) {
  for (const PanelValues values : kAllValues) {
    for (const int64_t cols : {1, 32, 40, 96}) {
      for (const int64_t scale_cols : {0, 16, 32, 64}) {
        const PanelLayout layout = panel_layout(values, PanelScales::kBf16, true, scale_cols, cols);
        const int64_t padded = int64_t{layout.num_blocks} * kBlockCols;
        std::set<std::pair<int64_t, int>> seen;
        for (int64_t row = 0; row < kPanelRows; ++row) {
          for (int64_t col = 0; col < padded; ++col) {
            const ValueLocation at = value_location(layout, row, col);
            ASSERT_GE(at.byte, layout.values_offset);
            ASSERT_LE(at.byte + (value_bits(values) + 7) / 8, layout.panel_bytes);
            ASSERT_TRUE(seen.insert({at.byte, at.shift}).second);
            ASSERT_LE(scale_location(layout, row, col) + 2, layout.zeros_offset);
            ASSERT_GE(zero_location(layout, row, col), layout.zeros_offset);
            ASSERT_LT(zero_location(layout, row, col), layout.values_offset);
          }
        }
        EXPECT_EQ(static_cast<int64_t>(seen.size()) * value_bits(values) / 8,
                  layout.panel_bytes - layout.values_offset);
      }
    }
  }
}

TEST(WeightLayout, PackedBytesEqualStoredBytes) {
  const PanelLayout mxfp4 = panel_layout(PanelValues::kFp4, PanelScales::kE8m0, false, 32, 2880);
  EXPECT_EQ(mxfp4.panel_bytes, 32 * 2880 * 17 / 32 + (32 * 90 + 63) / 64 * 64 - 32 * 90);
  const PanelLayout bf16 = panel_layout(PanelValues::kBf16, PanelScales::kNone, false, 0, 2048);
  EXPECT_EQ(bf16.panel_bytes, 32 * 2048 * 2);
}

TEST(WeightLayout, BlocksOfMxfp4EndWithTheirScales) {
  for (const int64_t cols : {32, 768, 2880}) {
    const PanelLayout layout = panel_layout(PanelValues::kFp4, PanelScales::kE8m0, false, 32, cols);
    ASSERT_TRUE(layout.scales_in_blocks);
    std::set<int64_t> bytes;
    for (int64_t row = 0; row < kPanelRows; ++row) {
      for (int64_t col = 0; col < cols; ++col) {
        bytes.insert(value_location(layout, row, col).byte);
        bytes.insert(scale_location(layout, row, col));
        ASSERT_EQ(scale_location(layout, row, col) / layout.block_bytes, col / kBlockCols);
      }
    }
    EXPECT_EQ(std::ssize(bytes), layout.panel_bytes) << "every byte is a place, and no other";
    EXPECT_EQ(*bytes.rbegin(), layout.panel_bytes - 1);
  }
  EXPECT_FALSE(panel_layout(PanelValues::kFp4, PanelScales::kE4m3, false, 16, 64).scales_in_blocks);
  EXPECT_FALSE(panel_layout(PanelValues::kFp4, PanelScales::kE8m0, false, 64, 64).scales_in_blocks);
}

/// Random bits of a stored matrix, with every stride the library accepts.
struct Stored {
  std::vector<uint8_t> values, scales;
  WeightMatrix matrix;
};

Stored random_matrix(Format format, DataType type, int64_t rows, int64_t cols, bool transposed,
                     std::mt19937& random) {
  Stored stored;
  const int64_t unit = element_bytes(type);
  const int64_t units = (cols * element_bits(format) / 8 + unit - 1) / unit;
  stored.values.resize(static_cast<size_t>(rows * units * unit));
  for (uint8_t& byte : stored.values) {
    byte = static_cast<uint8_t>(random());
    if ((byte & 0x7f) == 0x7f) byte ^= 1;  // E4M3's NaN
  }
  const int64_t groups = (cols + 31) / 32;
  stored.scales.resize(static_cast<size_t>(rows * groups));
  for (uint8_t& byte : stored.scales) byte = static_cast<uint8_t>(random() % 255);
  stored.matrix = {.format = format, .rows = rows, .cols = cols};
  stored.matrix.values = TensorView::contiguous(stored.values.data(), type, {rows, units});
  if (transposed) stored.matrix.values.strides = {1, rows};
  if (element_bits(format) <= 8) {
    stored.matrix.scales =
        TensorView::contiguous(stored.scales.data(), DataType::kF8E8m0, {rows, groups});
    stored.matrix.scale_block = {1, 32};
  }
  return stored;
}

/// Bits of (row, col) as stored.
uint32_t stored_bits(const WeightMatrix& matrix, int64_t row, int64_t col) {
  const int bits = element_bits(matrix.format);
  const int64_t unit = element_bytes(matrix.values.type);
  const int64_t unit_cols = unit * 8 / bits;
  uint32_t word = 0;
  const auto* at =
      matrix.values.as<const uint8_t>() +
      (row * matrix.values.stride(0) + col / unit_cols * matrix.values.stride(1)) * unit;
  std::memcpy(&word, at, static_cast<size_t>(unit));
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  return static_cast<uint32_t>(word >> (col % unit_cols * bits) & mask);
}

uint32_t packed_bits(const PanelLayout& layout, const uint8_t* panel, int64_t row, int64_t col) {
  const ValueLocation at = value_location(layout, row, col);
  uint32_t word = 0;
  const int bits = value_bits(layout.values);
  std::memcpy(&word, panel + at.byte, static_cast<size_t>(bits < 8 ? 1 : bits / 8));
  word = word >> at.shift & static_cast<uint32_t>((uint64_t{1} << bits) - 1);
  return layout.values == PanelValues::kInt8 ? word ^ 0x80u : word;
}

TEST(PackWeights, UnpackAfterPackIsTheIdentity) {
  struct Case {
    Format format;
    DataType type;
  };
  const Case cases[] = {{Format::kMxfp4, DataType::kU8},  {Format::kMxfp4, DataType::kI32},
                        {Format::kInt4, DataType::kI32},  {Format::kInt8, DataType::kI8},
                        {Format::kMxfp8, DataType::kU8},  {Format::kFp8E5m2, DataType::kF8E5m2},
                        {Format::kBf16, DataType::kBf16}, {Format::kF16, DataType::kF16},
                        {Format::kF32, DataType::kF32}};
  std::mt19937 random(7);
  for (const Case& c : cases) {
    for (const auto& [rows, cols] : {std::pair{32, 32}, {40, 72}, {1, 192}, {70, 8}, {33, 96}}) {
      for (const bool transposed : {false, true}) {
        const Stored stored = random_matrix(c.format, c.type, rows, cols, transposed, random);
        const cpu::Packing packing = cpu::choose_packing(stored.matrix, true);
        ASSERT_FALSE(packing.decoded);
        const PanelLayout& layout = packing.layout;
        for (int64_t panel = 0; panel * kPanelRows < rows; ++panel) {
          std::vector<uint8_t> packed(static_cast<size_t>(layout.panel_bytes), 0);
          cpu::pack_panel(stored.matrix, packing, panel, packed.data(), "w");
          for (int64_t row = panel * 32; row < std::min<int64_t>(rows, panel * 32 + 32); ++row) {
            for (int64_t col = 0; col < cols; ++col) {
              ASSERT_EQ(packed_bits(layout, packed.data(), row % 32, col),
                        stored_bits(stored.matrix, row, col))
                  << to_string(c.format) << " row " << row << " col " << col;
              if (layout.scales == PanelScales::kE8m0) {
                ASSERT_EQ(packed[static_cast<size_t>(scale_location(layout, row % 32, col))],
                          stored.scales[static_cast<size_t>(row * ((cols + 31) / 32) + col / 32)]);
              }
            }
          }
        }
      }
    }
  }
}

TEST(PackWeights, RefusesScalesAndValuesThatAreNotNumbers) {
  std::mt19937 random(8);
  Stored stored = random_matrix(Format::kMxfp4, DataType::kU8, 40, 64, false, random);
  stored.scales[2 * 35 + 1] = 255;
  const cpu::Packing packing = cpu::choose_packing(stored.matrix, true);
  std::vector<uint8_t> packed(static_cast<size_t>(packing.layout.panel_bytes));
  cpu::pack_panel(stored.matrix, packing, 0, packed.data(), "expert 3 up");
  try {
    cpu::pack_panel(stored.matrix, packing, 1, packed.data(), "expert 3 up");
    FAIL() << "accepted a NaN scale";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "expert 3 up scale at row 35, column 32 is not a number; weights must be finite");
  }
}

}  // namespace
}  // namespace switchyard
