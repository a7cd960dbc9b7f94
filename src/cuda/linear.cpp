#include "cuda/linear.h"

#include "core/bf16_parts.h"
#include "cuda/experts.h"
#include "cuda/linear_dot.h"
#include "cuda/reachable.h"

namespace switchyard::cuda {
namespace {

void run_generic(const LinearJob& job, const TensorView& input, Stream stream) {
  grouped_gemm({.map = {.tokens = job.tokens},
                .input = plain_rows(input),
                .weights = job.weights,
                .sigmoid = job.sigmoid,
                .addend = job.addend,
                .output = job.output,
                .output_type = job.output_type},
               stream);
}

/// [rows][parts][columns in whole blocks] of bf16.
PackedMatrices pack_parts(const WeightMatrix& matrix) {
  const int64_t part_cols = align_up<int64_t>(matrix.cols, kLinearBlockCols);
  const int64_t cols = part_cols * kBf16Parts;
  std::vector<uint16_t> codes(static_cast<size_t>(matrix.rows * cols));
  const TensorView& values = matrix.values;
  for (int64_t r = 0; r < matrix.rows; ++r) {
    for (int64_t c = 0; c < matrix.cols; ++c) {
      const Bf16Parts parts =
          bf16_parts(values.as<const float>()[r * values.stride(0) + c * values.stride(1)]);
      for (int p = 0; p < kBf16Parts; ++p) {
        codes[static_cast<size_t>(r * cols + p * part_cols + c)] = parts.code[p];
      }
    }
  }
  const WeightMatrix all{
      .format = Format::kBf16,
      .rows = matrix.rows,
      .cols = cols,
      .values = TensorView::contiguous(codes.data(), DataType::kBf16, {matrix.rows, cols})};
  PackedMatrices packed(all, 1, false, 1);
  packed.pack(0, {all}, {TensorView{}});
  return packed;
}

}  // namespace

CudaLinear::CudaLinear(const WeightMatrix& matrix, const TensorView& bias,
                       const LayerOptions& options)
    : device_(options.device), generic_(options.generic_kernels) {
  const DeviceScope scope(device_);
  weights_ = PackedMatrices(matrix, 1, !bias.empty(), 1);
  weights_.pack(0, {matrix}, {bias});
  const WeightRows& rows = weights_.rows();
  if (device_facts(device_).capability != 90 || !is_plain(rows)) return;
  if (rows.num_cols % 8 != 0) return;  // rows of tokens in whole vectors
  if (rows.rows.format == Format::kBf16) {
    gemm_weights_ = sm90::linear_gemm_weights(rows, 1);
  } else if (rows.rows.format == Format::kF32) {
    parts_ = pack_parts(matrix);
    gemm_weights_ = sm90::linear_gemm_weights(parts_.rows(), kBf16Parts);
  }
}

LinearKernel CudaLinear::kernel_for(int64_t num_tokens) const {
  if (generic_ || !is_plain(weights_.rows())) return LinearKernel::kGeneric;
  if (!gemm_weights_) return LinearKernel::kDot;
  const WeightRows& rows = weights_.rows();
  return choose_linear(num_tokens, rows.num_rows, LinearBlocks(rows.num_cols, gemm_weights_->parts),
                       device_facts(device_).num_sms);
}

LinearStep CudaLinear::step(int64_t num_tokens) const {
  const LinearKernel kernel = kernel_for(num_tokens);
  const bool gemm = kernel != LinearKernel::kGeneric && kernel != LinearKernel::kDot;
  const bool parts = gemm && gemm_weights_->parts > 1;
  return {.kernel = to_string(kernel),
          .weight_bytes = (parts ? parts_ : weights_).bytes(),
          .on_matrix_unit = gemm};
}

void CudaLinear::run(const LinearArgs& args, Workspace, Stream stream) const {
  const DeviceScope scope(device_);
  require_reachable("input", args.input);
  require_reachable("output", args.output);
  if (args.input.extent(0) == 0) return;
  const LinearJob job{
      .weights = weights_.rows(),
      .input = args.input.data,
      .input_type = args.input.type,
      .tokens = {.limit = args.input.extent(0), .on_device = args.num_tokens.as<const int32_t>()},
      .sigmoid = args.epilogue == LinearEpilogue::kSigmoid,
      .addend = args.addend.as<const float>(),
      .output = args.output.data,
      .output_type = args.output.type};
  const LinearKernel kernel = kernel_for(job.tokens.limit);
  if (kernel == LinearKernel::kGeneric) return run_generic(job, args.input, stream);
  if (kernel == LinearKernel::kDot || !sm90::can_read_tokens(job)) return linear_dot(job, stream);
  sm90::linear_gemm(job, *gemm_weights_, kernel, stream);
}

}  // namespace switchyard::cuda
