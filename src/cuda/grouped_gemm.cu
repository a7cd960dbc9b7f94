// The generic grouped GEMM: shared-memory tiles of decoded f32, fused multiply-adds in column
// order. The fallback for what has no tuned kernel and the second opinion in tests; never fast.

#include <algorithm>

#include "core/activation.h"
#include "core/expert_sort.h"
#include "cuda/decode.cuh"
#include "cuda/grouped_gemm.h"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlockN = 64;
constexpr int kBlockK = 64;
constexpr int kSide = 16;  // threads along rows and along columns
constexpr int kThreadN = kBlockN / kSide;

struct GemmParams {
  GemmJob job;
  ActivationSpec activation;
  bool activate, gated;
  int32_t output_columns;
};

template <int kBlockM>
struct Tiles {
  float input[kBlockK][kBlockM];
  float weights[kBlockK][kBlockN];
  int32_t input_row[kBlockM];  // -1: none
  int32_t output_row[kBlockM];
  float row_weight[kBlockM];
};

/// What one thread block computes.
struct BlockWork {
  int32_t expert;
  bool any;
};

/// Fills the row tables of one tile of sorted rows.
template <int kBlockM>
__device__ BlockWork sorted_rows(const GemmParams& p, Tiles<kBlockM>& tiles) {
  const GemmRowMap& map = p.job.map;
  const int parts = ceil_div(map.unit_size, kBlockM);
  const int block = static_cast<int>(blockIdx.x) / parts;
  const int first = (static_cast<int>(blockIdx.x) % parts) * kBlockM;
  if (block * map.unit_size >= map.num_valid_ids[0]) return {0, false};
  const int i = static_cast<int>(threadIdx.x);
  bool used = false;
  if (i < kBlockM) {
    tiles.input_row[i] = -1;
    const int32_t row = block * map.unit_size + first + i;
    if (first + i < map.unit_size) {
      const int32_t packed = map.sorted_ids[row];
      const int32_t token = packed_token(packed);
      used = token < map.tokens.limit;
      if (used) {
        const int32_t pair = token * map.top_k + packed_slot(packed);
        tiles.input_row[i] = p.job.input_per_pair ? pair : token;
        tiles.output_row[i] = pair;
        tiles.row_weight[i] = map.sorted_weights == nullptr ? 1.0f : map.sorted_weights[row];
      }
    }
  }
  return {map.sorted_expert_ids[block], __syncthreads_or(used) != 0};
}

__device__ bool is_wanted(const GemmRowMap& map, int64_t token) {
  return token < map.tokens.value() && (map.wanted == nullptr || map.wanted[token] != 0);
}

/// Whether a tile of tokens has anything to do.
template <int kBlockM>
__device__ bool any_wanted(const GemmRowMap& map) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockM;
  return __syncthreads_or(is_wanted(map, first + threadIdx.x % kBlockM)) != 0;
}

/// Fills the row tables of one tile of tokens that meet `expert`.
template <int kBlockM>
__device__ BlockWork token_rows(const GemmParams& p, int32_t expert, Tiles<kBlockM>& tiles) {
  const GemmRowMap& map = p.job.map;
  const int i = static_cast<int>(threadIdx.x);
  bool used = false;
  if (i < kBlockM) {
    tiles.input_row[i] = -1;
    const int64_t token = static_cast<int64_t>(blockIdx.x) * kBlockM + i;
    if (is_wanted(map, token)) {
      const float alpha =
          map.alpha == nullptr ? 1.0f : map.alpha[token * map.alpha_stride + expert];
      used = alpha != 0.0f;
      const auto own = static_cast<int32_t>(expert * map.tokens.limit + token);
      if (used) tiles.input_row[i] = p.job.input_per_pair ? own : static_cast<int32_t>(token);
      tiles.output_row[i] = p.job.sum_over_experts ? static_cast<int32_t>(token) : own;
      tiles.row_weight[i] = map.alpha != nullptr           ? alpha
                            : map.token_weights != nullptr ? map.token_weights[token]
                                                           : 1.0f;
    }
  }
  return {expert, __syncthreads_or(used) != 0};
}

/// The pieces of the next k block that this thread brings: in flight while the last one is used.
template <int kBlockM>
struct Fetched {
  static constexpr int kChunks = kBlockK / kVector;
  static constexpr int kInput = kBlockM * kChunks / kThreads > 0 ? kBlockM* kChunks / kThreads : 1;
  static constexpr int kWeights = kBlockN * kChunks / kThreads;
  StoredVector input[kInput];
  StoredVector weights[kWeights];

  __device__ static int input_row(int i) {
    return (static_cast<int>(threadIdx.x) + i * kThreads) % kBlockM;
  }
  __device__ static int input_chunk(int i) {
    return (static_cast<int>(threadIdx.x) + i * kThreads) / kBlockM;
  }
  __device__ static int weight_row(int) { return static_cast<int>(threadIdx.x) % kBlockN; }
  __device__ static int weight_chunk(int i) {
    return (static_cast<int>(threadIdx.x) + i * kThreads) / kBlockN;
  }

  __device__ void fetch(const GemmParams& p, const Tiles<kBlockM>& tiles, int32_t expert,
                        int32_t n0, int32_t k0) {
    const int32_t num_cols = p.job.weights.num_cols;
#pragma unroll
    for (int i = 0; i < kInput; ++i) {
      const int32_t col = k0 + input_chunk(i) * kVector;
      const int32_t row = input_chunk(i) < kChunks ? tiles.input_row[input_row(i)] : -1;
      input[i] = row >= 0 && col < num_cols ? load_stored(p.job.input, row, col, num_cols)
                                            : StoredVector{};
    }
#pragma unroll
    for (int i = 0; i < kWeights; ++i) {
      const int32_t col = k0 + weight_chunk(i) * kVector;
      const int32_t row = n0 + weight_row(i);
      weights[i] = row < p.job.weights.num_rows && col < num_cols
                       ? load_weights(p.job.weights, expert, row, col)
                       : StoredVector{};
    }
  }

  __device__ void store(const GemmParams& p, Tiles<kBlockM>& tiles, int32_t expert, int32_t n0,
                        int32_t k0) const {
    const int32_t num_cols = p.job.weights.num_cols;
    float v[kVector];
#pragma unroll
    for (int i = 0; i < kInput; ++i) {
      if (input_chunk(i) >= kChunks) continue;
      const int32_t col = k0 + input_chunk(i) * kVector;
      const int32_t row = tiles.input_row[input_row(i)];
      const bool inside = row >= 0 && col < num_cols;
      if (inside) decode_input(p.job.input, row, col, num_cols, input[i], v);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        tiles.input[input_chunk(i) * kVector + j][input_row(i)] = inside ? v[j] : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kWeights; ++i) {
      const int32_t col = k0 + weight_chunk(i) * kVector;
      const int32_t row = n0 + weight_row(i);
      const bool inside = row < p.job.weights.num_rows && col < num_cols;
      if (inside) decode_weights(p.job.weights, expert, row, col, weights[i], v);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        tiles.weights[weight_chunk(i) * kVector + j][weight_row(i)] = inside ? v[j] : 0.0f;
      }
    }
  }
};

template <int kThreadM>
using Accumulators = float[kThreadM][kThreadN];

/// sums = the tile's rows times rows n0 .. n0 + 63 of the expert's weights.
template <int kBlockM>
__device__ void multiply(const GemmParams& p, Tiles<kBlockM>& tiles, int32_t expert, int32_t n0,
                         Accumulators<kBlockM / kSide>& sums) {
  constexpr int kThreadM = kBlockM / kSide;
  const int row = static_cast<int>(threadIdx.x) / kSide * kThreadM;
  const int column = static_cast<int>(threadIdx.x) % kSide * kThreadN;
#pragma unroll
  for (int m = 0; m < kThreadM; ++m) {
#pragma unroll
    for (int n = 0; n < kThreadN; ++n) sums[m][n] = 0.0f;
  }
  Fetched<kBlockM> next;
  next.fetch(p, tiles, expert, n0, 0);
  for (int32_t k0 = 0; k0 < p.job.weights.num_cols; k0 += kBlockK) {
    next.store(p, tiles, expert, n0, k0);
    __syncthreads();
    if (k0 + kBlockK < p.job.weights.num_cols) next.fetch(p, tiles, expert, n0, k0 + kBlockK);
#pragma unroll 8
    for (int k = 0; k < kBlockK; ++k) {
      const float4 w = *reinterpret_cast<const float4*>(&tiles.weights[k][column]);
#pragma unroll
      for (int m = 0; m < kThreadM; ++m) {
        const float x = tiles.input[k][row + m];
        sums[m][0] = fmaf(x, w.x, sums[m][0]);
        sums[m][1] = fmaf(x, w.y, sums[m][1]);
        sums[m][2] = fmaf(x, w.z, sums[m][2]);
        sums[m][3] = fmaf(x, w.w, sums[m][3]);
      }
    }
    __syncthreads();
  }
}

__device__ float load_bias(const GemmParams& p, int32_t expert, int32_t row) {
  const WeightRows& w = p.job.weights;
  if (w.bias == nullptr || row >= w.num_rows) return 0.0f;
  return w.bias[static_cast<int64_t>(expert) * w.num_rows + row];
}

__device__ void write(const GemmParams& p, int64_t row, int32_t column, float value) {
  const int64_t at = row * p.output_columns + column;
  if (p.job.sigmoid) value = sigmoid(value);
  if (p.job.addend != nullptr) value += p.job.addend[at];
  store_one(p.job.output, p.job.output_type, at, value);
}

/// Bias, activation, routing weight; gate and up are neighbours, so they meet in one thread.
template <int kBlockM>
__device__ void finish(const GemmParams& p, const Tiles<kBlockM>& tiles, int32_t expert, int32_t n0,
                       const Accumulators<kBlockM / kSide>& sums) {
  constexpr int kThreadM = kBlockM / kSide;
  const int first = static_cast<int>(threadIdx.x) / kSide * kThreadM;
  const int32_t column = n0 + static_cast<int>(threadIdx.x) % kSide * kThreadN;
#pragma unroll
  for (int m = 0; m < kThreadM; ++m) {
    if (tiles.input_row[first + m] < 0) continue;
    const float weight = tiles.row_weight[first + m];
    float value[kThreadN];
#pragma unroll
    for (int n = 0; n < kThreadN; ++n) {
      const float bias = load_bias(p, expert, column + n);
      value[n] = p.job.weight_before_bias ? sums[m][n] * weight + bias
                                          : (sums[m][n] + bias) * (p.activate ? 1.0f : weight);
    }
    const int64_t row = tiles.output_row[first + m];
    if (p.gated) {
#pragma unroll
      for (int n = 0; n < kThreadN; n += 2) {
        if ((column + n) / 2 >= p.output_columns) continue;
        write(p, row, (column + n) / 2, apply_activation(p.activation, value[n], value[n + 1]));
      }
      continue;
    }
#pragma unroll
    for (int n = 0; n < kThreadN; ++n) {
      if (column + n >= p.output_columns) continue;
      if (p.activate) value[n] = apply_activation(p.activation, 0.0f, value[n]);
      write(p, row, column + n, value[n]);
    }
  }
}

template <int kBlockM>
__global__ void __launch_bounds__(kThreads)
    grouped_gemm_kernel(const __grid_constant__ GemmParams p) {
  __shared__ Tiles<kBlockM> tiles;
  const GemmRowMap& map = p.job.map;
  const bool sorted = map.sorted_ids != nullptr;
  const int32_t num_experts = sorted ? 1 : map.num_experts;
  const int32_t n0 = static_cast<int32_t>(blockIdx.y) * kBlockN;
  wait_for_previous_kernel();
  if (!sorted && !any_wanted<kBlockM>(map)) return;
  for (auto e = static_cast<int32_t>(blockIdx.z); e < num_experts;
       e += static_cast<int32_t>(gridDim.z)) {
    const BlockWork work = sorted ? sorted_rows(p, tiles) : token_rows(p, e, tiles);
    if (work.any) {
      Accumulators<kBlockM / kSide> sums;
      multiply(p, tiles, work.expert, n0, sums);
      finish(p, tiles, work.expert, n0, sums);
    }
    __syncthreads();  // the tables are read no more
  }
}

/// Dense: one block walks all experts and keeps the weighted sum.
__global__ void __launch_bounds__(kThreads)
    dense_down_kernel(const __grid_constant__ GemmParams p) {
  constexpr int kThreadM = kGemmRows / kSide;
  __shared__ Tiles<kGemmRows> tiles;
  const int first = static_cast<int>(threadIdx.x) / kSide * kThreadM;
  const int32_t n0 = static_cast<int32_t>(blockIdx.y) * kBlockN;
  const int32_t column = n0 + static_cast<int>(threadIdx.x) % kSide * kThreadN;
  wait_for_previous_kernel();
  if (!any_wanted<kGemmRows>(p.job.map)) return;
  Accumulators<kThreadM> total{};
  for (int32_t expert = 0; expert < p.job.map.num_experts; ++expert) {
    __syncthreads();
    if (!token_rows(p, expert, tiles).any) continue;
    Accumulators<kThreadM> sums;
    multiply(p, tiles, expert, n0, sums);
#pragma unroll
    for (int m = 0; m < kThreadM; ++m) {
      if (tiles.input_row[first + m] < 0) continue;
#pragma unroll
      for (int n = 0; n < kThreadN; ++n) {
        const float value = sums[m][n] + load_bias(p, expert, column + n);
        const float weight = p.job.weight_before_bias ? 1.0f : tiles.row_weight[first + m];
        total[m][n] = fmaf(weight, value, total[m][n]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kThreadM; ++m) {
    const int64_t token = static_cast<int64_t>(blockIdx.x) * kGemmRows + first + m;
    if (!is_wanted(p.job.map, token)) continue;
#pragma unroll
    for (int n = 0; n < kThreadN; ++n) {
      if (column + n < p.output_columns) write(p, token, column + n, total[m][n]);
    }
  }
}

}  // namespace

void grouped_gemm(const GemmJob& job, Stream stream) {
  GemmParams p{.job = job,
               .activation = job.activation == nullptr ? ActivationSpec{} : *job.activation,
               .activate = job.activation != nullptr,
               .gated = job.activation != nullptr && job.activation->gated(),
               .output_columns = job.weights.num_rows};
  p.job.activation = nullptr;  // a host pointer
  if (p.gated) p.output_columns /= 2;
  const GemmRowMap& map = job.map;
  const bool sorted = map.sorted_ids != nullptr;
  const bool small = (sorted ? map.unit_size : map.tokens.limit) <= kGemmRowsDecode;
  const int64_t block_rows = small ? kGemmRowsDecode : kGemmRows;
  const int64_t tiles = sorted ? map.num_blocks * ceil_div<int64_t>(map.unit_size, block_rows)
                               : ceil_div<int64_t>(map.tokens.limit, block_rows);
  if (tiles == 0) return;
  LaunchShape shape{.grid = dim3(static_cast<unsigned>(tiles),
                                 static_cast<unsigned>(ceil_div(job.weights.num_rows, kBlockN)), 1),
                    .block = kThreads,
                    .overlap_previous = can_overlap()};
  const auto cuda_stream = static_cast<cudaStream_t>(stream.handle);
  if (job.sum_over_experts) {
    shape.grid.x = static_cast<unsigned>(ceil_div<int64_t>(map.tokens.limit, kGemmRows));
    return launch(dense_down_kernel, shape, cuda_stream, p);
  }
  if (!sorted) {
    // Mostly nobody is wanted, and then blocks are what it takes: 11520 of gpt-oss-120b 10 us.
    const unsigned most = map.wanted == nullptr ? ~0u : 1024 / (shape.grid.x * shape.grid.y) + 1;
    shape.grid.z = std::min(static_cast<unsigned>(map.num_experts), most);
  }
  launch(small ? grouped_gemm_kernel<kGemmRowsDecode> : grouped_gemm_kernel<kGemmRows>, shape,
         cuda_stream, p);
}

}  // namespace switchyard::cuda
