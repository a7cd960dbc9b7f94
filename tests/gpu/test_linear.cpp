// Linears (router, shared gate, latent projections) on the GPU against the reference in double.

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>

#include "gpu/device_tensor.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/random_weights.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::DeviceTensor;
using test::Random;

constexpr DataType kTypes[] = {DataType::kF32, DataType::kBf16, DataType::kF16};
constexpr Format kPlain[] = {Format::kF32, Format::kBf16, Format::kF16};

/// One matrix on both sides.
struct Linears {
  test::OwnedMatrix matrix;
  Buffer bias;
  std::unique_ptr<PackedLinear> on_gpu, reference;

  Linears(Format format, int64_t rows, int64_t cols, bool with_bias) {
    Random random(static_cast<uint64_t>(rows * 31 + cols));
    matrix = test::random_matrix(random, rows, cols, test::usual_matrix(format));
    if (with_bias) bias = Buffer::normal(random, DataType::kBf16, {rows});
    on_gpu = test::gpu().pack_linear(matrix.matrix, bias, {});
    reference = reference_backend().pack_linear(matrix.matrix, bias, {});
  }
  int64_t rows() const { return matrix.matrix.rows; }
  int64_t cols() const { return matrix.matrix.cols; }
};

struct Batch {
  int64_t tokens = 1;
  DataType input = DataType::kBf16, output = DataType::kF32;
  bool addend = false, sigmoid = false;
  int64_t counted = -1;  ///< tokens that there are, on the device; -1: all
};

/// Runs on the GPU into poisoned memory with canaries.
Buffer run_on_gpu(const PackedLinear& linear, const Buffer& input, const Buffer& addend,
                  const Batch& batch, int64_t rows) {
  const Buffer count = Buffer::of(DataType::kI32, {1}, {static_cast<double>(batch.counted)});
  const Buffer output(batch.output, {batch.tokens, rows});
  const DeviceTensor x(input), a(addend), y(output), c(count);
  const cuda::DeviceBuffer workspace = test::device_workspace(linear.workspace_bytes(batch.tokens));
  linear.run({.input = x,
              .addend = a,
              .num_tokens = batch.counted < 0 ? TensorView{} : c.view(),
              .epilogue = batch.sigmoid ? LinearEpilogue::kSigmoid : LinearEpilogue::kNone,
              .output = y},
             test::workspace_of(workspace), {});
  return y.fetch();
}

void expect_agreement(const Linears& linears, const Batch& batch) {
  const int64_t rows = linears.rows(), cols = linears.cols();
  SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols) + " " +
               to_string(linears.matrix.matrix.format) + ", T " + std::to_string(batch.tokens) +
               " of " + std::to_string(batch.counted) + ", " + to_string(batch.input) + " to " +
               to_string(batch.output));
  Random random(static_cast<uint64_t>(batch.tokens * 7 + cols));
  const Buffer input = Buffer::normal(random, batch.input, {batch.tokens, cols});
  const Buffer addend =
      batch.addend ? Buffer::normal(random, DataType::kF32, {batch.tokens, rows}) : Buffer();
  const Buffer got = run_on_gpu(*linears.on_gpu, input, addend, batch, rows);
  const int64_t counted = batch.counted < 0 ? batch.tokens : batch.counted;
  EXPECT_TRUE(got.untouched(counted * rows, got.size()));
  if (counted == 0) return;

  // Of many tokens about a hundred, the last among them.
  constexpr int64_t kMost = 100;
  const int64_t step = (counted + kMost - 1) / kMost;
  const int64_t picked = (counted + step - 1) / step;
  const auto pick = [&](const Buffer& from, int64_t columns) {
    if (from.view().empty()) return Buffer();
    Buffer to(from.view().type, {picked, columns});
    const int64_t row_bytes = columns * element_bytes(from.view().type);
    for (int64_t i = 0; i < picked; ++i) {
      std::memcpy(to.as<char>() + i * row_bytes,
                  from.as<char>() + (counted - 1 - i * step) * row_bytes,
                  static_cast<size_t>(row_bytes));
    }
    return to;
  };
  Buffer want(batch.output, {picked, rows});
  const test::GuardedMemory workspace(linears.reference->workspace_bytes(picked));
  linears.reference->run(
      {.input = pick(input, cols),
       .addend = pick(addend, rows),
       .epilogue = batch.sigmoid ? LinearEpilogue::kSigmoid : LinearEpilogue::kNone,
       .output = want},
      workspace.workspace(), {});
  ErrorBound bound = test::rounding_bound(cols + 2, batch.output);
  // Hopper cuts a sum's last bit, 2^-23 at most, for every 16 columns that it adds.
  const double cut = 0x1p-24 * static_cast<double>(cols) / 16;
  bound.rms += cut;
  bound.worst += 12 * cut;
  EXPECT_TRUE(test::within(pick(got, rows), want, bound));
}

TEST(GpuLinear, FormatsShapesAndEpilogues) {
  for (const Format format : {Format::kF32, Format::kBf16, Format::kFp8E4m3, Format::kInt8}) {
    for (const auto& [n, k] : {std::pair{1, 64}, {256, 712}, {65, 33}}) {
      const Linears linears(format, n, k, true);
      for (const int64_t t : {1, 5, 40, 130}) {
        for (const bool sigmoid : {false, true}) {
          expect_agreement(linears,
                           {.tokens = t, .addend = true, .sigmoid = sigmoid, .counted = t / 2});
        }
      }
    }
  }
}

TEST(GpuLinear, EveryType) {
  for (const Format format : kPlain) {
    for (const auto& [n, k] : {std::pair{7, 2057}, {64, 136}, {12, 2052}}) {
      const Linears linears(format, n, k, n == 64);
      for (const DataType input : kTypes) {
        for (const DataType output : kTypes) {
          for (const int64_t t : {1, 3, 9, 140}) {
            expect_agreement(linears,
                             {.tokens = t, .input = input, .output = output, .addend = n == 7});
          }
        }
      }
    }
  }
}

TEST(GpuLinear, EveryTokenCount) {
  for (const auto& [n, k] : {std::pair{1, 2880}, {8, 7168}, {250, 2880}, {256, 16}, {65, 1000}}) {
    const Linears linears(Format::kBf16, n, k, n == 250);
    for (const int64_t t : {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257}) {
      expect_agreement(linears, {.tokens = t, .addend = t % 3 == 0, .sigmoid = n == 1});
    }
  }
  const Linears small(Format::kBf16, 65, 712, true);
  for (const int64_t t : {1000, 3001}) expect_agreement(small, {.tokens = t, .addend = true});
}

TEST(GpuLinear, ManyTokens) {
  const Linears router(Format::kBf16, 256, 2888, true);
  for (const int64_t t : {1200, 4000, 8449}) expect_agreement(router, {.tokens = t});
  for (const auto& [n, k] : {std::pair{160, 5120}, {37, 1000}}) {  // three parts
    const Linears exact(Format::kF32, n, k, true);
    for (const int64_t t : {9, 64, 300, 2000}) expect_agreement(exact, {.tokens = t});
  }
  const Linears latent(Format::kBf16, 1040, 200, false);
  for (const DataType output : kTypes) {
    expect_agreement(latent, {.tokens = 1950, .output = output, .addend = true});
    expect_agreement(latent, {.tokens = 2000, .output = output, .counted = 1921});
  }
  const Linears wide(Format::kBf16, 1800, 3584, false);
  expect_agreement(wide, {.tokens = 1950, .addend = true});
}

TEST(GpuLinear, ModelShapes) {
  for (const auto& [n, k] : {std::pair{256, 7168}, {128, 2880}, {384, 7168}}) {
    const Linears linears(Format::kBf16, n, k, n == 128);
    for (const int64_t t : {1, 4, 33, 70}) expect_agreement(linears, {.tokens = t});
  }
  const Linears latent(Format::kBf16, 1792, 3584, false);
  for (const int64_t t : {2, 40, 130, 400}) {
    expect_agreement(latent, {.tokens = t, .output = DataType::kBf16, .addend = true});
  }
}

TEST(GpuLinear, TokensCountedOnTheDevice) {
  for (const Format format : {Format::kF32, Format::kBf16}) {
    const Linears linears(format, 48, 1032, true);
    for (const int64_t t : {1, 8, 100, 300}) {
      for (const int64_t counted : {int64_t{0}, int64_t{1}, t / 2, t - 1, t}) {
        expect_agreement(linears, {.tokens = t, .addend = true, .counted = counted});
      }
    }
  }
}

/// Rows of a batch have the bits that they have in every other batch of `family`.
void expect_invariance(const Linears& linears, DataType input_type,
                       const std::vector<int64_t>& family) {
  const int64_t most = family.back(), rows = linears.rows(), cols = linears.cols();
  Random random(3);
  const Buffer input = Buffer::normal(random, input_type, {most, cols});
  const Buffer all = run_on_gpu(*linears.on_gpu, input, {}, {.tokens = most}, rows);
  for (const int64_t t : family) {
    SCOPED_TRACE(std::to_string(t) + " tokens");
    // The last ones, so that they lie in other tiles.
    const int64_t row_bytes = cols * element_bytes(input_type);
    Buffer last(input_type, {t, cols});
    std::memcpy(last.view().data, input.as<char>() + (most - t) * row_bytes,
                static_cast<size_t>(t * row_bytes));
    const Buffer got = run_on_gpu(*linears.on_gpu, last, {}, {.tokens = t}, rows);
    EXPECT_EQ(0, std::memcmp(got.view().data, all.as<float>() + (most - t) * rows,
                             static_cast<size_t>(t * rows * 4)));
  }
}

TEST(GpuLinear, TokensDoNotDependOnTheirBatch) {
  const std::vector<int64_t> all{1, 2, 3, 4, 5, 8, 9, 64, 100, 300};
  expect_invariance(Linears(Format::kF32, 37, 5000, true), DataType::kF32, all);
  expect_invariance(Linears(Format::kBf16, 37, 5000, true), DataType::kF32, all);
  expect_invariance(Linears(Format::kBf16, 40, 5000, true), DataType::kBf16, {1, 2, 3, 4, 5, 8});
  expect_invariance(Linears(Format::kF32, 40, 5000, true), DataType::kBf16, {33, 64, 100, 300});
  const std::vector<int64_t> many{9, 16, 63, 64, 65, 128, 129, 300, 1000, 4000};
  expect_invariance(Linears(Format::kBf16, 200, 5000, true), DataType::kBf16, many);
  expect_invariance(Linears(Format::kBf16, 1500, 1000, true), DataType::kBf16, {1800, 2000, 2500});
}

}  // namespace
}  // namespace switchyard
