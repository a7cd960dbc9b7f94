// Products of a panel with int8 rows are, bit for bit, the definition in cpu/panel_multiply.h at
// every instruction set and for any number of rows, whatever the scales.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "core/number_formats.h"
#include "cpu/activation_rows.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "support/random_weights.h"
#include "switchyard/error.h"

namespace switchyard::test {
namespace {

using namespace cpu;

constexpr int kCols = 34 * kBlockCols;  // two blocks more than a slab

/// A panel of random values.
struct Panel {
  PanelLayout layout;
  std::vector<uint8_t> bytes;

  Panel(Random& random, PanelValues values, PanelScales scales, int scale_cols)
      : layout(panel_layout(values, scales, false, scale_cols, kCols)),
        bytes(static_cast<size_t>(layout.panel_bytes)) {
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.below(256));
  }
  /// Twice the fp4 value, or the int8 value.
  int32_t value(int output, int col) const {
    const ValueLocation at = value_location(layout, output, col);
    const int code = bytes[static_cast<size_t>(at.byte)] >> at.shift;
    if (layout.values == PanelValues::kInt8) return (code & 255) - 128;
    return static_cast<int32_t>(2 * fp4_e2m1_to_f32(static_cast<uint8_t>(code & 15)));
  }
};

float expected_product(const Panel& panel, int output, const int8_t* values, const float* scales,
                       float factor) {
  const PanelLayout& layout = panel.layout;
  const auto weight_scale = [&](int block) {
    const int64_t at = scale_location(layout, output, block * kBlockCols);
    if (layout.scales == PanelScales::kE8m0) {
      const uint32_t bits = uint32_t{panel.bytes[static_cast<size_t>(at)]} << 23;
      float scale;
      std::memcpy(&scale, &bits, 4);
      return scale * factor;
    }
    float scale;
    std::memcpy(&scale, &panel.bytes[static_cast<size_t>(at)], 4);
    return scale * factor;
  };
  const bool at_end = layout.values == PanelValues::kInt8 && layout.num_scales == 1;
  float acc = 0;
  for (int b = 0; b < layout.num_blocks; ++b) {
    int32_t sum = 0;
    for (int c = b * kBlockCols; c < (b + 1) * kBlockCols; ++c) {
      sum += panel.value(output, c) * values[c];
    }
    const float product =
        at_end ? static_cast<float>(sum) : static_cast<float>(sum) * weight_scale(b);
    acc = std::fma(product, scales[b], acc);
  }
  return at_end ? acc * weight_scale(0) : acc;
}

/// Compares all levels and several numbers of rows.
void check(Random& random, const Panel& panel, float global_scale) {
  const FlushSubnormals flush;
  const float factor =
      panel.layout.values == PanelValues::kFp4 ? 0.5f * global_scale : global_scale;
  constexpr int kMostRows = 25;
  std::vector<std::vector<float>> input(kMostRows, std::vector<float>(kCols));
  for (auto& row : input) {
    for (float& x : row) x = static_cast<float>(random.normal());
  }
  for (const char* level :
       {"avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx"}) {
    const Kernels* kernels = nullptr;
    try {
      kernels = &select_kernels(level);
    } catch (const Error&) {
      continue;
    }
    const RowLayout layout = row_layout(panel.layout, RowValues::kInt8, kernels->word_rows);
    std::vector<uint8_t> rows(static_cast<size_t>(kMostRows * layout.row_bytes));
    for (int r = 0; r < kMostRows; ++r) {
      kernels->quantize_blocks(input[static_cast<size_t>(r)].data(), layout, 0, layout.num_blocks,
                               rows.data() + r * layout.row_bytes);
    }
    for (const int num_rows : {1, 3, 4, 6, 7, kMostRows}) {
      SCOPED_TRACE(fmt::format("{}, {} rows", level, num_rows));
      const auto scratch = std::make_unique<MultiplyScratch>();
      std::vector<float> out(static_cast<size_t>(num_rows * kPanelRows), NAN);
      kernels->multiply({.layout = &panel.layout,
                         .row_layout = &layout,
                         .panel = panel.bytes.data(),
                         .global_scale = global_scale,
                         .rows = rows.data(),
                         .num_rows = num_rows,
                         .out = out.data(),
                         .scratch = scratch.get()});
      for (int r = 0; r < num_rows; ++r) {
        const uint8_t* row = rows.data() + r * layout.row_bytes;
        for (int output = 0; output < kPanelRows; ++output) {
          const float actual = out[static_cast<size_t>(r * kPanelRows + output)];
          const float expected =
              expected_product(panel, output, reinterpret_cast<const int8_t*>(row),
                               reinterpret_cast<const float*>(row + layout.scales_offset), factor);
          ASSERT_TRUE(actual == expected || (std::isnan(actual) && std::isnan(expected)))
              << actual << " instead of " << expected << ", row " << r << ", output " << output;
        }
      }
    }
  }
}

TEST(CpuPanels, Mxfp4ScalesOfAnySize) {
  Random random(61);
  Panel panel(random, PanelValues::kFp4, PanelScales::kE8m0, 32);
  struct Codes {
    int first, count;
  };
  // All that may be powers added to a float's exponent, their limits, and one block beyond them.
  for (const Codes codes :
       {Codes{120, 10}, Codes{28, 200}, Codes{20, 12}, Codes{225, 8}, Codes{0, 3}, Codes{0, 200}}) {
    for (int b = 0; b < panel.layout.num_blocks; ++b) {
      for (int output = 0; output < kPanelRows; ++output) {
        panel.bytes[static_cast<size_t>(scale_location(panel.layout, output, b * kBlockCols))] =
            static_cast<uint8_t>(codes.first + static_cast<int>(random.below(codes.count)));
      }
    }
    for (const float global_scale : {1.0f, 0x1p-18f, 0x1p19f, 0x1p-40f, 0.75f, -2.0f}) {
      SCOPED_TRACE(fmt::format("codes from {}, {} of them, times {}", codes.first, codes.count,
                               global_scale));
      check(random, panel, global_scale);
    }
  }
}

TEST(CpuPanels, Int8ScalesOfOutputsAndOfBlocks) {
  Random random(62);
  for (const int scale_cols : {0, 32, 128}) {
    SCOPED_TRACE(fmt::format("{} columns a scale", scale_cols));
    Panel panel(random, PanelValues::kInt8, PanelScales::kF32, scale_cols);
    for (int s = 0; s < panel.layout.num_scales; ++s) {
      for (int output = 0; output < kPanelRows; ++output) {
        const auto scale = static_cast<float>(random.normal());
        std::memcpy(&panel.bytes[static_cast<size_t>(
                        scale_location(panel.layout, output, s * panel.layout.scale_cols))],
                    &scale, 4);
      }
    }
    check(random, panel, 1.5f);
  }
}

}  // namespace
}  // namespace switchyard::test
