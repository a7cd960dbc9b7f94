// Integer panels by tile registers have the bits of the VNNI kernels.
#include <fmt/format.h>

#include <memory>
#include <vector>

#include "cpu/activation_rows.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "steps/cpu_experts_fixture.h"
#include "steps/emulated_tiles.h"

namespace switchyard::test {
namespace {

using namespace cpu;

struct PanelCase {
  const char* name;
  PanelValues values;
  PanelScales scales;
  int scale_cols;
  bool zero_points = false;
};

TEST(CpuTiles, SameBitsAsVnni) {
  const Kernels* kernels = nullptr;
  try {
    kernels = &select_kernels("avx512_bf16");
  } catch (const Error&) {
    GTEST_SKIP() << "needs AVX-512 BF16";
  }
  const FlushSubnormals flush;
  Random random(51);
  const PanelCase cases[] = {
      {"int8", PanelValues::kInt8, PanelScales::kF32, 0},
      {"mxfp4", PanelValues::kFp4, PanelScales::kE8m0, 32},
      {"nvfp4", PanelValues::kFp4, PanelScales::kE4m3, 16},  // by VNNI on either
      {"int4", PanelValues::kInt4, PanelScales::kBf16, 128},
      {"int4 zero points", PanelValues::kInt4, PanelScales::kBf16, 32, true}};
  for (const PanelCase& c : cases) {
    constexpr int kCols = 33 * kBlockCols;  // one block more than a slab
    const PanelLayout layout = panel_layout(c.values, c.scales, c.zero_points, c.scale_cols, kCols);
    std::vector<uint8_t> panel(static_cast<size_t>(layout.panel_bytes) + kLineBytes);
    for (uint8_t& byte : panel) byte = static_cast<uint8_t>(random.below(0x78));  // no NaN scale
    const RowLayout rows = row_layout(layout, RowValues::kInt8);
    for (const int num_rows : {1, 7, 8, 16, 17, 50}) {
      SCOPED_TRACE(fmt::format("{}, {} rows", c.name, num_rows));
      std::vector<float> row(kCols);
      std::vector<uint8_t> packed(static_cast<size_t>(num_rows * rows.row_bytes));
      std::vector<int32_t> index;
      for (int r = 0; r < num_rows; ++r) {
        for (float& x : row) x = static_cast<float>(random.normal());
        kernels->quantize_blocks(row.data(), rows, 0, rows.num_blocks,
                                 packed.data() + r * rows.row_bytes);
        index.push_back((num_rows - 1 - r) * 3);
      }
      const auto scratch = std::make_unique<MultiplyScratch>();
      std::vector<float> expected(static_cast<size_t>(num_rows * kPanelRows), -1.0f);
      std::vector<float> actual(expected.size(), -2.0f);
      MultiplyJob job{.layout = &layout, .row_layout = &rows};
      job.panel = panel.data();
      job.rows = packed.data();
      job.row_index = index.data();
      job.row_divisor = 3;
      job.num_rows = num_rows;
      job.scratch = scratch.get();
      job.out = expected.data();
      kernels->multiply(job);
      job.out = actual.data();
      multiply_with_emulated_tiles(job);
      EXPECT_EQ(actual, expected);
    }
  }
}

}  // namespace
}  // namespace switchyard::test
