// Quantising bf16 rows on one thread of the CPU: GB/s of input by format.

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <vector>

#include "core/scale_layout.h"
#include "cpu/steps.h"
#include "switchyard/ops.h"

namespace switchyard {
namespace {

struct Case {
  const char* name;
  Format format;
  DataType codes;
  ScaleBlock block;
  DataType scales;
};

constexpr int64_t kRows = 256, kCols = 4096;

void quantize(benchmark::State& state, const Case& c) {
  std::vector<uint16_t> input(kRows * kCols);
  for (size_t i = 0; i < input.size(); ++i) {
    input[i] = static_cast<uint16_t>(0x3f00 + i * 40503 % 256 + (i % 3 == 0 ? 0x8000 : 0));
  }
  const bool nibbles = element_bits(c.format) == 4;
  std::vector<uint8_t> codes(kRows * kCols);
  std::vector<float> scales(kRows * kCols / 16);
  const int64_t groups = c.block.cols == 0 ? 1 : kCols / c.block.cols;
  const ops::QuantizeArgs args{
      .input = TensorView::contiguous(input.data(), DataType::kBf16, {kRows, kCols}),
      .format = c.format,
      .scale_block = c.block,
      .values = TensorView::contiguous(codes.data(), c.codes, {kRows, nibbles ? kCols / 2 : kCols}),
      .scales = TensorView::contiguous(scales.data(), c.scales, {kRows, groups})};
  cpu::ThreadPool one_thread(1);
  for (auto _ : state) cpu::quantize(args, one_thread);
  state.SetBytesProcessed(state.iterations() * kRows * kCols * 2);
}

const bool kRegistered = [] {
  for (const Case& c :
       {Case{"int8/1x32", Format::kInt8, DataType::kI8, {1, 32}, DataType::kF32},
        Case{"int8/row", Format::kInt8, DataType::kI8, {1, 0}, DataType::kF32},
        Case{"fp8/1x128", Format::kFp8E4m3, DataType::kF8E4m3, {1, 128}, DataType::kF32},
        Case{"mxfp8", Format::kMxfp8, DataType::kF8E4m3, {1, 32}, DataType::kF8E8m0},
        Case{"mxfp4", Format::kMxfp4, DataType::kU8, {1, 32}, DataType::kF8E8m0}}) {
    benchmark::RegisterBenchmark(fmt::format("quantize/{}", c.name).c_str(),
                                 [c](benchmark::State& state) { quantize(state, c); });
  }
  return true;
}();

}  // namespace
}  // namespace switchyard
