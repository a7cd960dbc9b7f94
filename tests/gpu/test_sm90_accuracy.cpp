// How far the Hopper GEMMs are from exact sums of the same operands: K up to 16384, data around
// zero and data of one sign, where the matrix unit's truncated sums drift. The epilogue's bf16
// output is part of the error of the prefill kernels; the decode kernels store f32 here.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "core/expert_sort.h"
#include "core/weight_matrix.h"
#include "cuda/sm90/decode_fragments.h"
#include "cuda/sm90/decode_gemm.h"
#include "cuda/sm90/grouped_gemm.h"
#include "cuda/sort.h"
#include "gpu/device_tensor.h"
#include "support/random.h"
#include "support/random_weights.h"

namespace switchyard {
namespace {

namespace sm90 = cuda::sm90;
using test::Buffer;
using test::DeviceTensor;
using test::Random;

struct Operands {
  Format weights;
  ScaleBlock block;
  int32_t row_group;  ///< columns that share a row's scale; 0: all
};
const Operands kOperands[] = {{Format::kBf16, {}, 0},
                              {Format::kFp8E4m3, {1, 0}, 0},
                              {Format::kFp8E4m3, {128, 128}, 128},
                              {Format::kInt8, {1, 0}, 0},
                              {Format::kMxfp4, {1, 32}, 0}};
constexpr int64_t kTokens = 8, kRows = 128;

/// What meets weights of this format.
Format row_format(Format weights) { return weights == Format::kMxfp4 ? Format::kFp8E4m3 : weights; }
DataType row_type(Format weights) {
  switch (weights) {
    case Format::kBf16: return DataType::kBf16;
    case Format::kInt8: return DataType::kI8;
    default: return DataType::kF8E4m3;
  }
}

enum class Signs {
  kBoth,          ///< sums walk around zero
  kPositiveRows,  ///< activations >= 0, 60 % of the weights: sums drift
  kAllPositive,   ///< every product is: the worst case of truncated sums
};
const char* to_string(Signs signs) {
  switch (signs) {
    case Signs::kBoth: return "zero-mean";
    case Signs::kPositiveRows: return "positive rows";
    default: return "all positive";
  }
}

/// Clears the sign of every `stride`-th byte of codes: one value, or two 4-bit ones.
void make_positive(const TensorView& values, Format format, int64_t stride) {
  auto* bytes = values.as<uint8_t>();
  const int64_t size = element_bytes(values.type);
  for (int64_t i = 0; i < values.num_elements(); i += stride) {
    uint8_t& top = bytes[i * size + size - 1];
    if (format == Format::kInt8) {
      top = static_cast<uint8_t>(std::abs(static_cast<int>(static_cast<int8_t>(top))));
    } else {
      top &= format == Format::kMxfp4 ? 0x77 : 0x7f;
    }
  }
}

/// One expert's matrix and rows of tokens, as the kernels read them, and their exact product.
struct Problem {
  Problem(const Operands& operands_, int64_t cols_, Signs signs)
      : operands(operands_), cols(cols_) {
    Random random(static_cast<uint64_t>(cols) + static_cast<uint64_t>(signs));
    test::MatrixOptions options = test::usual_matrix(operands.weights);
    options.scale_block = operands.block;
    const test::OwnedMatrix owned = test::random_matrix(random, kRows, cols, options);
    const WeightMatrix& w = owned.matrix;
    // INT8 codes near their largest magnitude, as a quantiser leaves a row's peak.
    Buffer codes = operands.weights == Format::kInt8
                       ? Buffer::normal(random, DataType::kI8, {kTokens, cols}, 40.0)
                       : Buffer::normal(random, row_type(operands.weights), {kTokens, cols});
    groups = operands.row_group == 0 ? 1 : ceil_div(cols, int64_t{operands.row_group});
    Buffer factors = Buffer::normal(random, DataType::kF32, {kTokens, groups});
    for (int64_t i = 0; i < factors.size(); ++i) {
      factors.as<float>()[i] = std::fabs(factors.as<float>()[i]) + 0.1f;
    }
    if (signs != Signs::kBoth) {
      make_positive(w.values, operands.weights, signs == Signs::kAllPositive ? 1 : 5);
      make_positive(codes.view(), row_format(operands.weights), 1);
    }
    const FragmentOrder order =
        operands.weights == Format::kMxfp4 ? FragmentOrder::kFp8 : FragmentOrder::kRowMajor;
    packed = cuda::PackedMatrices(w, 1, false, 1, order);
    packed.pack(0, {w}, {TensorView{}});
    packed.finish("matrix");
    exact.resize(kTokens * kRows);
    std::vector<float> row(static_cast<size_t>(cols));
    for (int64_t r = 0; r < kRows; ++r) {
      decode_row(w, r, row.data());
      for (int64_t t = 0; t < kTokens; ++t) {
        double sum = 0;
        for (int64_t c = 0; c < cols; ++c) {
          const int64_t group = operands.row_group == 0 ? 0 : c / operands.row_group;
          const double scale = has_scales() ? factors.at(t * groups + group) : 1.0;
          sum += static_cast<double>(row[static_cast<size_t>(c)]) * codes.at(t * cols + c) * scale;
        }
        exact[static_cast<size_t>(t * kRows + r)] = sum;
      }
    }
    rows = DeviceTensor(codes);
    scales = DeviceTensor(factors);
  }
  bool has_scales() const { return operands.weights != Format::kBf16; }
  int64_t row_bytes() const { return cols * element_bytes(row_type(operands.weights)); }
  double rms_error(const Buffer& got) const {
    double error = 0, size = 0;
    for (int64_t i = 0; i < got.size(); ++i) {
      const double want = exact[static_cast<size_t>(i)];
      error += (got.at(i) - want) * (got.at(i) - want);
      size += want * want;
    }
    return std::sqrt(error / size);
  }

  Operands operands;
  int64_t cols, groups = 1;
  cuda::PackedMatrices packed;
  std::vector<double> exact;
  DeviceTensor rows, scales;
};

/// Every token's only choice is expert 0: its rows in order, then padding.
struct Lists {
  explicit Lists(int32_t unit)
      : ids(Buffer(DataType::kI32, {unit})),
        experts(Buffer::zeros(DataType::kI32, {1})),
        valid(Buffer::of(DataType::kI32, {2}, {static_cast<double>(unit), 0.0})) {
    Buffer packed(DataType::kI32, {unit});
    for (int32_t i = 0; i < unit; ++i) {
      packed.as<int32_t>()[i] = i < kTokens ? pack_pair(i, 0) : pack_pair(kTokens, 1);
    }
    ids.upload(packed);
  }
  DeviceTensor ids, experts, valid;
};

Buffer by_decode(const Problem& problem) {
  const cuda::WeightRows& w = problem.packed.rows();
  const bool fragments = w.fragments.order != FragmentOrder::kRowMajor;
  const Lists lists(kTokens);
  const DeviceTensor output(Buffer(DataType::kF32, {kTokens, kRows}));
  constexpr int kCtas = 3;
  sm90::DecodeArgs args{
      .sorted_ids = lists.ids.view().as<int32_t>(),
      .sorted_expert_ids = lists.experts.view().as<int32_t>(),
      .num_valid_ids = lists.valid.view().as<int32_t>(),
      .unit_size = kTokens,
      .num_tokens = kTokens,
      .tokens = problem.rows.view().data,
      .token_row_bytes = problem.row_bytes(),
      .token_bytes = static_cast<int32_t>(problem.row_bytes()),
      .row_scales = fragments ? w.row_scales : static_cast<const float*>(w.rows.scales),
      .row_scale_groups = fragments ? 1 : w.rows.num_groups,
      .num_rows = w.num_rows,
      .output = output.view().data,
      .output_columns = kRows};
  if (problem.has_scales()) {
    args.token_scales = problem.scales.view().as<float>();
    args.token_scale_groups = static_cast<int32_t>(problem.groups);
  }
  const sm90::DecodeFragmentArgs blocks =
      fragments ? sm90::decode_fragment_args(problem.packed) : sm90::DecodeFragmentArgs{};
  args.steps = fragments ? sm90::decode_fragment_steps(blocks.col_blocks, 1)
                         : sm90::decode_steps(problem.row_bytes());
  const int64_t lanes = kCtas * decode_lanes(kTokens);
  const cuda::DeviceBuffer partials(
      decode_partial_bytes(lanes, args.steps.num_chunks() + 1, kTokens));
  const DeviceTensor counters(Buffer::zeros(DataType::kI32, {2 * lanes}));
  args.partials = partials.as<uint32_t>();
  args.counters = counters.view().as<uint32_t>();
  if (fragments) {
    sm90::decode_fragments(w.fragments.order, blocks, args, kCtas, {});
  } else {
    const auto operand = w.rows.format == Format::kBf16   ? sm90::DecodeOperand::kBf16
                         : w.rows.format == Format::kInt8 ? sm90::DecodeOperand::kInt8
                         : w.rows.num_groups > 1          ? sm90::DecodeOperand::kFp8Block128
                                                          : sm90::DecodeOperand::kFp8;
    sm90::decode_gemm(operand, sm90::decode_weight_map(w, 1), args, kCtas, {});
  }
  return output.fetch();
}

Buffer by_prefill(const Problem& problem) {
  const cuda::WeightRows& w = problem.packed.rows();
  cuda::StoredRows input{.format = problem.operands.weights,
                         .values = problem.rows.view().data,
                         .row_bytes = problem.row_bytes(),
                         .scale_kind = cuda::ScaleKind::kF32,
                         .scales = problem.scales.view().data,
                         .num_groups = static_cast<int32_t>(problem.groups),
                         .group_size = problem.operands.row_group};
  const sm90::Scaling scaling = sm90::scaling_of(input, w);
  const bool blocks = w.rows.num_groups > 1;
  const cuda::DeviceBuffer table(blocks ? sm90::block_scale_count(w, 1) * 4 : 0);
  const DeviceTensor mixed(Buffer::zeros(DataType::kI32, {1}));
  if (blocks) {
    sm90::block_scale_table(w, 1, table.as<float>(), mixed.view().as<int32_t>(), {});
  }
  const GroupedGemmConfig config = sm90::configs_of(w.rows.format, scaling).front();
  const Lists lists(config.block_m);
  const DeviceTensor counter(Buffer::zeros(DataType::kI32, {1}));
  const DeviceTensor output(Buffer(DataType::kBf16, {kTokens, kRows}));
  sm90::grouped_gemm({.sorted = {.ids = lists.ids.view().as<int32_t>(),
                                 .experts = lists.experts.view().as<int32_t>(),
                                 .num_valid = lists.valid.view().as<int32_t>(),
                                 .num_blocks = 1,
                                 .block_rows = config.block_m},
                      .tile_counter = counter.view().as<uint32_t>(),
                      .source = sm90::RowSource::kToken,
                      .input = input,
                      .num_input_rows = kTokens,
                      .weights = w,
                      .num_experts = 1,
                      .block_scales = table.as<const float>(),
                      .output_per_pair = true,
                      .output = output.view().data,
                      .output_stride = kRows},
                     config, sm90::weight_map(w, 1, config), 3, {});
  return output.fetch();
}

/// Bounds on the rms error of f32 outputs: with a bf16 output (1.7e-3) below 2.5e-3. E4M3 sums lose
/// what lies 13 bits below them, product by product, until they are promoted: every 128 columns, or
/// 256 where weights have 4 bits. docs/numerics.md.
double bound_of(const Operands& operands, Signs signs) {
  switch (operands.weights) {
    case Format::kBf16: return 1e-6;
    case Format::kInt8: return 1e-7;
    default: break;
  }
  if (signs != Signs::kAllPositive) return 1e-3;
  return operands.weights == Format::kMxfp4 ? 1.8e-3 : 1.2e-3;
}

TEST(GpuSm90Accuracy, SumsOfAnyLengthAndSign) {
  for (const Operands& operands : kOperands) {
    for (const Signs signs : {Signs::kBoth, Signs::kPositiveRows, Signs::kAllPositive}) {
      for (const int64_t cols : {512, 4096, 16384}) {
        const std::string line = std::string(to_string(operands.weights)) +
                                 (operands.row_group > 0 ? " 1x128" : "") + " K " +
                                 std::to_string(cols) + ", " + to_string(signs);
        SCOPED_TRACE(line);
        const double bound = bound_of(operands, signs);
        const Problem problem(operands, cols, signs);
        const double decode = problem.rms_error(by_decode(problem));
        EXPECT_LT(decode, bound);
        std::printf("%-36s decode (f32) %.2e", line.c_str(), decode);
        if (operands.weights != Format::kMxfp4) {
          const double prefill = problem.rms_error(by_prefill(problem));
          EXPECT_LT(prefill, 2.5e-3);
          std::printf("  prefill (bf16) %.2e", prefill);
        }
        std::printf("\n");
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
