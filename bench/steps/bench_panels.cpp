// One packed panel times the rows of an expert, per instruction set: from L2 (what the inner loop
// can do) and streamed from memory (what decode sees). One thread.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/activation_rows.h"
#include "cpu/huge_buffer.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "switchyard/error.h"

namespace switchyard::cpu {
namespace {

struct Case {
  const char* name;
  PanelValues values;
  PanelScales scales;
  int scale_cols;
  RowValues rows;
};

constexpr int64_t kCols = 2048;
constexpr int64_t kStreamBytes = int64_t{1}
                                 << 28;  // 8 times the L3 of the machine it was written on

/// Panels of finite random weights, and rows to multiply them with.
class Problem {
 public:
  Problem(const Kernels& kernels, const Case& c, int64_t num_rows, int64_t bytes)
      : layout_(panel_layout(c.values, c.scales, false, c.scale_cols, kCols)),
        row_layout_(row_layout(layout_, c.rows, kernels.word_rows)),
        num_panels_(std::max<int64_t>(1, bytes / layout_.panel_bytes)),
        panels_(num_panels_ * layout_.panel_bytes),
        rows_(static_cast<size_t>(num_rows * row_layout_.row_bytes)),
        out_(static_cast<size_t>(num_rows * kPanelRows)) {
    std::mt19937 random(1);
    // 0x3b.. is a small number in every type of value and scale; the time does not depend on it.
    std::memset(panels_.data(), 0x3b, static_cast<size_t>(panels_.bytes()));
    std::vector<float> row(kCols);
    for (int64_t r = 0; r < num_rows; ++r) {
      for (float& x : row) x = static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f;
      uint8_t* to = rows_.data() + r * row_layout_.row_bytes;
      if (c.rows == RowValues::kInt8) {
        kernels.quantize_blocks(row.data(), row_layout_, 0, row_layout_.num_blocks, to);
      } else if (c.rows == RowValues::kBf16) {
        std::memset(to, 0x3b, static_cast<size_t>(row_layout_.row_bytes));
      } else {
        std::copy(row.begin(), row.end(), reinterpret_cast<float*>(to));
      }
    }
    job_ = {.layout = &layout_, .row_layout = &row_layout_, .rows = rows_.data()};
    job_.num_rows = static_cast<int32_t>(num_rows);
    job_.out = out_.data();
    job_.scratch = &scratch_;
  }

  const MultiplyJob& next() {
    job_.panel = panel(index_);
    index_ = (index_ + 1) % num_panels_;
    job_.next = panel(index_);
    return job_;
  }
  int64_t panel_bytes() const { return layout_.panel_bytes; }

 private:
  const uint8_t* panel(int64_t i) const { return panels_.data() + i * layout_.panel_bytes; }

  PanelLayout layout_;
  RowLayout row_layout_;
  int64_t num_panels_;
  int64_t index_ = 0;
  HugeBuffer panels_;
  std::vector<uint8_t> rows_;
  std::vector<float> out_;
  MultiplyScratch scratch_;
  MultiplyJob job_;
};

void multiply(benchmark::State& state, const Kernels& kernels, const Case& c, int64_t num_rows,
              int64_t bytes) {
  const FlushSubnormals flush;
  Problem problem(kernels, c, num_rows, bytes);
  for (auto _ : state) kernels.multiply(problem.next());
  const auto panels = static_cast<double>(state.iterations());
  state.counters["Gop"] =
      benchmark::Counter(panels * 2e-9 * static_cast<double>(kPanelRows * kCols * num_rows),
                         benchmark::Counter::kIsRate);
  state.counters["GB"] = benchmark::Counter(
      panels * 1e-9 * static_cast<double>(problem.panel_bytes()), benchmark::Counter::kIsRate);
}

const Kernels* kernels_or_null(const char* level) {
  try {
    return &select_kernels(level);
  } catch (const Error&) {
    return nullptr;
  }
}

const bool kRegistered = [] {
  constexpr Case kCases[] = {
      {"mxfp4_int8", PanelValues::kFp4, PanelScales::kE8m0, 32, RowValues::kInt8},
      {"nvfp4_int8", PanelValues::kFp4, PanelScales::kE4m3, 16, RowValues::kInt8},
      {"int4_int8", PanelValues::kInt4, PanelScales::kBf16, 32, RowValues::kInt8},
      {"int8_int8", PanelValues::kInt8, PanelScales::kF32, 0, RowValues::kInt8},
      {"mxfp4_f32", PanelValues::kFp4, PanelScales::kE8m0, 32, RowValues::kF32},
      {"int4_f32", PanelValues::kInt4, PanelScales::kBf16, 32, RowValues::kF32},
      {"int8_f32", PanelValues::kInt8, PanelScales::kF32, 0, RowValues::kF32},
      {"fp8_f32", PanelValues::kFp8E4m3, PanelScales::kF32, 128, RowValues::kF32},
      {"bf16_f32", PanelValues::kBf16, PanelScales::kNone, 0, RowValues::kF32},
      {"mxfp4_bf16", PanelValues::kFp4, PanelScales::kE8m0, 32, RowValues::kBf16},
      {"int4_bf16", PanelValues::kInt4, PanelScales::kBf16, 32, RowValues::kBf16},
      {"int8_bf16", PanelValues::kInt8, PanelScales::kF32, 0, RowValues::kBf16},
      {"fp8_bf16", PanelValues::kFp8E4m3, PanelScales::kF32, 128, RowValues::kBf16},
      {"bf16_bf16", PanelValues::kBf16, PanelScales::kNone, 0, RowValues::kBf16},
  };
  for (const char* level : {"avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx"}) {
    const Kernels* kernels = kernels_or_null(level);
    if (kernels == nullptr) continue;
    for (const Case& c : kCases) {
      if (c.rows == RowValues::kBf16 && !kernels->bf16_rows) continue;
      for (const int64_t rows : {1, 4, 16, 64}) {
        for (const bool streamed : {false, true}) {
          if (streamed && rows != 1) continue;
          const std::string name = fmt::format("panels/{}/{}/{}/rows:{}", level, c.name,
                                               streamed ? "memory" : "l2", rows);
          benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
            multiply(state, *kernels, c, rows, streamed ? kStreamBytes : 0);
          });
        }
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace switchyard::cpu
