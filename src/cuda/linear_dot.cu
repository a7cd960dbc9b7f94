// A linear of few tokens is a read of its weights: every block asks for all it can before it waits
// for the kernel that makes the tokens.

#include <algorithm>

#include "core/math.h"
#include "cuda/launch.cuh"
#include "cuda/linear_dot.h"
#include "cuda/linear_end.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kStepColumns = kThreads * kVector;

/// Eight numbers as they lie in memory.
template <bool kWide>
struct Numbers {
  uint4 words[kWide ? 2 : 1];
};

/// Numbers index .. index + count - 1, then zeros. `aligned`: rows begin on 16 bytes and are padded
/// to them.
template <bool kWide>
__device__ __forceinline__ Numbers<kWide> load_numbers(const void* data, int64_t index, int count,
                                                       bool aligned) {
  constexpr int kBytes = kWide ? 4 : 2;
  Numbers<kWide> numbers{};
  const char* from = static_cast<const char*>(data) + index * kBytes;
  if (aligned) {
    if (count > 0) numbers.words[0] = reinterpret_cast<const uint4*>(from)[0];
    if constexpr (kWide) {
      if (count > 4) numbers.words[1] = reinterpret_cast<const uint4*>(from)[1];
    }
    return numbers;
  }
  uint32_t words[kWide ? 8 : 4] = {};
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    if (j >= count) continue;
    if constexpr (kWide) {
      words[j] = reinterpret_cast<const uint32_t*>(from)[j];
    } else {
      words[j / 2] |= uint32_t{reinterpret_cast<const uint16_t*>(from)[j]} << (j % 2 * 16);
    }
  }
#pragma unroll
  for (int i = 0; i < (kWide ? 2 : 1); ++i) {
    numbers.words[i] = {words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]};
  }
  return numbers;
}

template <bool kWide>
__device__ __forceinline__ void unpack_numbers(const Numbers<kWide>& numbers, bool bf16,
                                               float (&v)[kVector]) {
  if constexpr (kWide) {
    unpack({numbers.words[0], numbers.words[1]}, DataType::kF32, v);
  } else if (bf16) {
    unpack_bf16(numbers.words[0], v);
  } else {
    unpack_f16(numbers.words[0], v);
  }
}

/// Leaves one value's sum over the warp in v[0] and returns which, or -1. Lanes trade half of their
/// values while they have several, so that n values take n + 4 - log2 n shuffles; lanes 16 apart
/// add first, whatever n.
template <int kCount>
__device__ __forceinline__ int sum_over_warp(float (&v)[kCount], int lane) {
  int value = 0, count = kCount;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const bool upper = (lane & distance) != 0;
    if (count > 1) {
      count /= 2;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        if (i >= count) continue;
        const float mine = upper ? v[i + count] : v[i];
        const float other = upper ? v[i] : v[i + count];
        v[i] = mine + __shfl_xor_sync(~0u, other, distance);
      }
      value += upper ? count : 0;
    } else {
      v[0] += __shfl_xor_sync(~0u, v[0], distance);
      if (upper) value = -1;
    }
  }
  return value;
}

/// kRows weight rows meet kTokens tokens; loads of kAhead steps are in flight together.
template <bool kWideWeights, bool kWideInput, int kRows, int kTokens, int kAhead>
__global__ void __launch_bounds__(kThreads, 2)
    linear_dot_kernel(const __grid_constant__ LinearJob job, bool input_aligned) {
  __shared__ float warp_sums[kWarps][kRows * kTokens];
  const int32_t cols = job.weights.num_cols;
  const bool bf16_weights = job.weights.rows.format == Format::kBf16;
  const bool bf16_input = job.input_type == DataType::kBf16;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const auto first_row = static_cast<int32_t>(blockIdx.x) * kRows;
  const int64_t first_token = int64_t{blockIdx.y} * kTokens;

  Numbers<kWideWeights> weights[kAhead][kRows];
  const auto load_weights = [&](int32_t first_col) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int32_t col = first_col + a * kStepColumns + thread * kVector;
        const int32_t row = min(first_row + r, job.weights.num_rows - 1);
        const char* values =
            static_cast<const char*>(job.weights.rows.values) + row * job.weights.rows.row_bytes;
        weights[a][r] = load_numbers<kWideWeights>(values, col, cols - col, true);
      }
    }
  };
  load_weights(0);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t num_tokens = job.tokens.value();
  if (first_token >= num_tokens) return;

  float sums[kRows * kTokens] = {};
  for (int32_t first_col = 0; first_col < cols; first_col += kAhead * kStepColumns) {
    if (first_col > 0) load_weights(first_col);
    Numbers<kWideInput> input[kAhead][kTokens];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const int32_t col = first_col + a * kStepColumns + thread * kVector;
        const int64_t token = min(first_token + t, num_tokens - 1);
        input[a][t] =
            load_numbers<kWideInput>(job.input, token * cols + col, cols - col, input_aligned);
      }
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      float w[kRows][kVector];
#pragma unroll
      for (int r = 0; r < kRows; ++r) unpack_numbers(weights[a][r], bf16_weights, w[r]);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        float x[kVector];
        unpack_numbers(input[a][t], bf16_input, x);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int j = 0; j < kVector; ++j) {
            sums[r * kTokens + t] = fmaf(w[r][j], x[j], sums[r * kTokens + t]);
          }
        }
      }
    }
  }

  const int value = sum_over_warp(sums, thread % 32);
  if (value >= 0) warp_sums[thread / 32][value] = sums[0];
  __syncthreads();
  if (thread >= kRows * kTokens) return;
  const int32_t row = first_row + thread / kTokens;
  const int64_t token = first_token + thread % kTokens;
  if (row >= job.weights.num_rows || token >= num_tokens) return;
  float sum = warp_sums[0][thread];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum += warp_sums[w][thread];
  finish_linear(job, token, row, sum);
}

/// The tokens [begin, begin + count) alone.
LinearJob tokens_of(LinearJob job, int64_t begin, int64_t count) {
  const int64_t outputs = begin * job.weights.num_rows;
  job.input = static_cast<const char*>(job.input) +
              begin * job.weights.num_cols * element_bytes(job.input_type);
  job.output = static_cast<char*>(job.output) + outputs * element_bytes(job.output_type);
  if (job.addend != nullptr) job.addend += outputs;
  job.tokens.limit = count;
  job.tokens.skipped += begin;
  return job;
}

/// How many rows and tokens a block takes: neither changes a bit.
template <bool kWideWeights, bool kWideInput>
struct Kernels {
  struct Choice {
    void (*kernel)(LinearJob, bool);
    int rows, tokens;
  };
  template <int kRows, int kTokens, int kAhead>
  static constexpr Choice choice() {
    return {linear_dot_kernel<kWideWeights, kWideInput, kRows, kTokens, kAhead>, kRows, kTokens};
  }
  static Choice of(int64_t num_tokens, int64_t rows) {
    constexpr int64_t kFewRows = 512;  // where blocks of four do not fill the GPU
    if (num_tokens == 1) return choice<2, 1, 4>();
    if (num_tokens <= 4) return choice<2, 4, 2>();
    if constexpr (!kWideInput) {  // f32 tokens would not fit into registers
      if (num_tokens <= 8 && rows <= kFewRows) return choice<2, 8, 2>();
    }
    return choice<4, 8, 1>();
  }
};

template <bool kWideWeights, bool kWideInput>
void launch_dot(const LinearJob& job, Stream stream) {
  constexpr int64_t kMostGroups = 65535;  // in a grid's y
  const auto choice = Kernels<kWideWeights, kWideInput>::of(job.tokens.limit, job.weights.num_rows);
  const auto row_groups = static_cast<unsigned>(ceil_div(job.weights.num_rows, choice.rows));
  const int64_t num_tokens = job.tokens.limit;
  const int64_t most = kMostGroups * choice.tokens;
  for (int64_t begin = 0; begin < num_tokens; begin += most) {
    const LinearJob part = tokens_of(job, begin, std::min(most, num_tokens - begin));
    const auto token_groups =
        static_cast<unsigned>(ceil_div<int64_t>(part.tokens.limit, choice.tokens));
    launch(choice.kernel,
           {.grid = dim3(row_groups, token_groups),
            .block = kThreads,
            .overlap_previous = can_overlap()},
           static_cast<cudaStream_t>(stream.handle), part,
           vectors_aligned(job.input, job.weights.num_cols, job.input_type));
  }
}

}  // namespace

bool is_plain(const WeightRows& weights) {
  const Format format = weights.rows.format;
  const bool number = format == Format::kF32 || format == Format::kBf16 || format == Format::kF16;
  return number && weights.rows.scale_kind == ScaleKind::kNone && weights.zero_points == nullptr &&
         weights.group_index == nullptr && weights.smooth_scales == nullptr &&
         weights.global_scales == nullptr;
}

void linear_dot(const LinearJob& job, Stream stream) {
  if (job.tokens.limit == 0) return;
  const bool wide_weights = job.weights.rows.format == Format::kF32;
  const bool wide_input = job.input_type == DataType::kF32;
  if (wide_weights) {
    return wide_input ? launch_dot<true, true>(job, stream) : launch_dot<true, false>(job, stream);
  }
  return wide_input ? launch_dot<false, true>(job, stream) : launch_dot<false, false>(job, stream);
}

}  // namespace switchyard::cuda
