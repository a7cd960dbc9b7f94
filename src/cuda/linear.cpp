#include "cuda/linear.h"

#include "cuda/experts.h"
#include "cuda/linear_dot.h"
#include "cuda/reachable.h"

namespace switchyard::cuda {

CudaLinear::CudaLinear(const WeightMatrix& matrix, const TensorView& bias,
                       const LayerOptions& options)
    : device_(options.device), generic_(options.generic_kernels) {
  const DeviceScope scope(device_);
  weights_ = PackedMatrices(matrix, 1, !bias.empty(), 1);
  weights_.pack(0, {matrix}, {bias});
}

void CudaLinear::run(const LinearArgs& args, Workspace, Stream stream) const {
  const DeviceScope scope(device_);
  require_reachable("input", args.input);
  require_reachable("output", args.output);
  if (args.input.extent(0) == 0) return;
  const TokenCount tokens{.limit = args.input.extent(0),
                          .on_device = args.num_tokens.as<const int32_t>()};
  if (!generic_ && is_plain(weights_.rows())) {
    return linear_dot({.weights = weights_.rows(),
                       .input = args.input.data,
                       .input_type = args.input.type,
                       .tokens = tokens,
                       .sigmoid = args.epilogue == LinearEpilogue::kSigmoid,
                       .addend = args.addend.as<const float>(),
                       .output = args.output.data,
                       .output_type = args.output.type},
                      stream);
  }
  GemmJob job{.input = plain_rows(args.input),
              .weights = weights_.rows(),
              .sigmoid = args.epilogue == LinearEpilogue::kSigmoid,
              .addend = args.addend.as<const float>(),
              .output = args.output.data,
              .output_type = args.output.type};
  job.map.tokens = tokens;
  grouped_gemm(job, stream);
}

}  // namespace switchyard::cuda
