// Activation of a gate/up product on its own, and the RMS norm of the latent sum and router input.

#include "core/math.h"
#include "cuda/gated_curve.cuh"
#include "cuda/launch.cuh"
#include "cuda/small_steps.h"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 256;

struct ActivateParams {
  ActivationSpec activation;
  GatedCurve curve;
  bool interleaved;
  const void* input;
  DataType input_type;
  const void* bias;
  DataType bias_type;
  void* output;
  DataType output_type;
  int64_t num_rows, width;  // width: I
};

__device__ float biased(const ActivateParams& p, int64_t row, int64_t column, int64_t columns) {
  const float value = load_one(p.input, p.input_type, row * columns + column);
  return p.bias == nullptr ? value : value + load_one(p.bias, p.bias_type, column);
}

__global__ void __launch_bounds__(kThreads) activate_kernel(const ActivateParams p) {
  const int64_t count = p.num_rows * p.width;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const bool gated = p.activation.gated();
  const int64_t columns = gated ? 2 * p.width : p.width;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    const int64_t row = i / p.width;
    const int64_t column = i - row * p.width;
    const int64_t gate = p.interleaved ? 2 * column : column;
    const int64_t up = !gated ? column : p.interleaved ? gate + 1 : column + p.width;
    const float g = gated ? biased(p, row, gate, columns) : 0.0f;
    const float u = biased(p, row, up, columns);
    store_one(p.output, p.output_type, i, activate_one(p.activation, p.curve, g, u));
  }
}

struct RmsNormParams {
  const void* input;
  DataType input_type;
  const void* scale;
  DataType scale_type;
  float epsilon;
  TokenCount tokens;
  int64_t columns;
  void* output;
  DataType output_type;
};

/// One thread block per token; lanes, then warps, add up in a fixed order.
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const RmsNormParams p) {
  __shared__ float warp_sum[kThreads / 32];
  const int64_t first = blockIdx.x * p.columns;
  if (blockIdx.x >= p.tokens.value()) return;
  float sum = 0.0f;
  for (int64_t c = threadIdx.x; c < p.columns; c += kThreads) {
    const float x = load_one(p.input, p.input_type, first + c);
    sum = fmaf(x, x, sum);
  }
#pragma unroll
  for (int width = 16; width > 0; width /= 2) sum += __shfl_xor_sync(~0u, sum, width);
  if (threadIdx.x % 32 == 0) warp_sum[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) sum += warp_sum[w];
  const float rms = sqrtf(sum / static_cast<float>(p.columns) + p.epsilon);
  for (int64_t c = threadIdx.x; c < p.columns; c += kThreads) {
    const float x = load_one(p.input, p.input_type, first + c);
    store_one(p.output, p.output_type, first + c, x / rms * load_one(p.scale, p.scale_type, c));
  }
}

}  // namespace

void activate(const ops::ActivateArgs& args, Stream stream) {
  const ActivateParams p{.activation = args.activation,
                         .curve = curve_of(args.activation),
                         .interleaved = args.order == GateUpOrder::kInterleaved,
                         .input = args.input.data,
                         .input_type = args.input.type,
                         .bias = args.bias.data,
                         .bias_type = args.bias.type,
                         .output = args.output.data,
                         .output_type = args.output.type,
                         .num_rows = args.output.extent(0),
                         .width = args.output.extent(1)};
  const int64_t blocks = ceil_div<int64_t>(p.num_rows * p.width, kThreads * 4);
  if (blocks == 0) return;
  constexpr int64_t kMaxBlocks = 1 << 16;
  launch(
      activate_kernel,
      {.grid = static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), .block = kThreads},
      static_cast<cudaStream_t>(stream.handle), p);
}

void rms_norm(const RmsNormArgs& args, Stream stream) {
  const RmsNormParams p{
      .input = args.input.data,
      .input_type = args.input.type,
      .scale = args.scale.data,
      .scale_type = args.scale.type,
      .epsilon = args.epsilon,
      .tokens = {.limit = args.input.extent(0), .on_device = args.num_tokens.as<const int32_t>()},
      .columns = args.input.extent(1),
      .output = args.output.data,
      .output_type = args.output.type};
  if (p.tokens.limit == 0 || p.columns == 0) return;
  launch(rms_norm_kernel, {.grid = static_cast<unsigned>(p.tokens.limit), .block = kThreads},
         static_cast<cudaStream_t>(stream.handle), p);
}

}  // namespace switchyard::cuda
