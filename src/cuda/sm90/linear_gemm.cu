// A block has one tile: 128 tokens on wgmma's M, weight rows on its N. One warp loads through
// a ring, two warpgroups multiply; sums then pass through shared memory, so that warps write whole
// rows, and so that the blocks of a cluster, which share a tile's chunks of K, can add theirs in
// order.

#include "core/grouped_tile_scheduler.h"
#include "cuda/launch.cuh"
#include "cuda/linear_end.cuh"
#include "cuda/sm90/linear_gemm.h"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/tensor_map.h"
#include "cuda/sm90/wgmma.cuh"

namespace switchyard::cuda::sm90 {
namespace {

constexpr int kTileM = kLinearTileTokens;
constexpr int kWaveRows = 64;  // M of one wgmma
constexpr int kConsumers = kTileM / kWaveRows;
constexpr int kThreads = kConsumers * 128 + 32;
constexpr int kBlockBytes = kLinearBlockCols * 2;
constexpr int kWaveBytes = kWaveRows * kBlockBytes;
constexpr int kBoxRows = 64;  // of weights, the narrowest tile
constexpr int kBoxBytes = kBoxRows * kBlockBytes;
constexpr int kFourColumns = 4;

struct LinearGemmParams {
  CUtensorMap weights, tokens;
  LinearJob job;
  LinearBlocks blocks;
  int32_t token_blocks;  ///< of K; every part of the weights meets them
  int32_t tile_rows, tile_columns;
  bool stores_fours;
};

/// kShare: blocks of a cluster, each with one chunk of K. kChunked: sums of chunks are numbers of
/// their own.
template <int kWidth, int kDepth, int kShare, bool kSumsChunks>
struct Tile {
  static constexpr int kN = kWidth;
  static constexpr int kStages = kDepth;
  static constexpr int kCluster = kShare;
  static constexpr bool kChunked = kSumsChunks;
  static constexpr int kStageBytes = kTileM * kBlockBytes + kN * kBlockBytes;
  static constexpr int kRing = kStages * kStageBytes;
  /// Of a row of sums: eight rows of a warp meet all banks.
  static constexpr int kPitch = kN + 8;
  static_assert(kTileM * kPitch * 4 <= kRing, "sums lie where the ring was");
  static constexpr int kBarriers = kRing;
  static constexpr int kSharedBytes = kBarriers + 2 * kStages * 8 + 1024;
  static constexpr int kBlocksPerSm = kSharedBytes <= 113 * 1024 ? 2 : 1;
  using Mma = Wgmma<MmaType::kBf16, kN>;
  static constexpr int kSums = kN / 2;  // of a thread
};
using NarrowSplitTile = Tile<64, 4, kLinearChunks, true>;
using SplitTile = Tile<128, 3, kLinearChunks, true>;
using SquareTile = Tile<128, 6, 1, true>;
using WideTile = Tile<256, 4, 1, false>;

struct RingAt {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++slot == stages) slot = 0, parity ^= 1;
  }
};

/// The part of a launch that one block computes.
struct Share {
  GroupedTile tile;
  int32_t rank;            ///< in the cluster
  int32_t k_begin, k_end;  ///< blocks of K
  int64_t first_token;
};
template <class T>
__device__ __forceinline__ Share share_of(const LinearGemmParams& p) {
  const auto rank = static_cast<int32_t>(blockIdx.x % T::kCluster);
  const GroupedTile tile =
      GroupedTileScheduler{p.tile_rows, p.tile_columns}.tile(blockIdx.x / T::kCluster);
  const bool shared = T::kCluster > 1;
  return {.tile = tile,
          .rank = rank,
          .k_begin = shared ? p.blocks.begin(rank) : 0,
          .k_end = shared ? p.blocks.begin(rank + 1) : p.blocks.num_blocks,
          .first_token = int64_t{tile.row_block} * kTileM};
}

template <class T>
struct Ring {
  uint8_t* stages;
  uint64_t* full;
  uint64_t* empty;

  __device__ explicit Ring(uint8_t* shared)
      : stages(shared),
        full(reinterpret_cast<uint64_t*>(shared + T::kBarriers)),
        empty(full + T::kStages) {}
  __device__ uint8_t* weights(int slot) const { return stages + slot * T::kStageBytes; }
  __device__ uint8_t* tokens(int slot) const { return weights(slot) + T::kN * kBlockBytes; }
  __device__ void init() const {
    for (int i = 0; i < T::kStages; ++i) {
      barrier_init(&full[i], 2);  // weights and tokens are announced apart
      barrier_init(&empty[i], kConsumers * 4);
    }
    fence_barrier_init();
  }
};

/// By one thread. Weights are asked for before the kernel that makes the tokens has ended.
template <class T>
__device__ void produce(const LinearGemmParams& p, const Share& share, const Ring<T>& ring) {
  const auto load_weights = [&](int32_t k, int slot) {
    barrier_expect(&ring.full[slot], T::kN * kBlockBytes);
#pragma unroll
    for (int i = 0; i < T::kN / kBoxRows; ++i) {
      tensor_load(ring.weights(slot) + i * kBoxBytes, &p.weights, k * kLinearBlockCols,
                  share.tile.column * T::kN + i * kBoxRows, &ring.full[slot]);
    }
  };
  const int32_t ahead = min(share.k_begin + T::kStages, share.k_end);
  for (int32_t k = share.k_begin; k < ahead; ++k) load_weights(k, k - share.k_begin);
  wait_for_previous_kernel();
  const int64_t left = p.job.tokens.value() - share.first_token;
  if (left <= 0) {  // nothing may arrive in a block that has gone
    for (int slot = 0; slot < ahead - share.k_begin; ++slot) {
      barrier_arrive(&ring.full[slot]);
      barrier_wait(&ring.full[slot], 0);
    }
    return;
  }
  const int waves = left > kWaveRows ? 2 : 1;
  RingAt at{.slot = 0, .parity = 1};  // every slot is free at first
  for (int32_t k = share.k_begin; k < share.k_end; ++k) {
    if (k >= ahead) {
      barrier_wait(&ring.empty[at.slot], at.parity);
      load_weights(k, at.slot);
    }
    barrier_expect(&ring.full[at.slot], static_cast<uint32_t>(waves * kWaveBytes));
    for (int w = 0; w < waves; ++w) {
      tensor_load(ring.tokens(at.slot) + w * kWaveBytes, &p.tokens,
                  k % p.token_blocks * kLinearBlockCols,
                  static_cast<int>(share.first_token) + w * kWaveRows, &ring.full[at.slot]);
    }
    at.advance(T::kStages);
  }
}

template <class T>
struct Consumer {
  using Sums = float[T::kSums];
  const Ring<T>& ring;
  int thread;  ///< of the warpgroup
  int wave;
  bool has_rows;
  RingAt at{};

  __device__ __forceinline__ void release(int slot) const {
    if (thread % 32 == 0) barrier_arrive(&ring.empty[slot]);
  }
  /// d = the products of k blocks [begin, end).
  __device__ void multiply(int32_t begin, int32_t end, Sums& d) {
    int previous = -1;
    for (int32_t k = begin; k < end; ++k) {
      barrier_wait(&ring.full[at.slot], at.parity);
      if (!has_rows) {
        release(at.slot);
        at.advance(T::kStages);
        continue;
      }
      const uint64_t a =
          swizzled_128_descriptor(shared_address(ring.tokens(at.slot) + wave * kWaveBytes));
      const uint64_t b = swizzled_128_descriptor(shared_address(ring.weights(at.slot)));
      pin(d);
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 4; ++j) T::Mma::ss(d, a + j * 2, b + j * 2, j > 0 || k > begin);
      wgmma_commit();
      pin(d);
      wgmma_wait<1>();
      if (previous >= 0) release(previous);
      previous = at.slot;
      at.advance(T::kStages);
    }
    wgmma_wait<0>();
    pin(d);
    if (previous >= 0) release(previous);
  }
};

/// Sums of the tile's rows and columns, in shared memory.
template <class T>
__device__ __forceinline__ void stage_sums(const float (&sums)[T::kSums], int wave, int thread,
                                           float* to) {
  const int row = wave * kWaveRows + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
  for (int j = 0; j < T::kN / 8; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* at = to + (row + 8 * h) * T::kPitch + j * 8 + thread % 4 * 2;
      *reinterpret_cast<float2*>(at) = {sums[4 * j + 2 * h], sums[4 * j + 2 * h + 1]};
    }
  }
}

/// Every block of a cluster finishes its rows of the tile, each by one warp.
template <class T>
__device__ void finish_rows(const LinearGemmParams& p, const Share& share, const float* sums,
                            int warp, int lane) {
  const auto rows =
      static_cast<int>(min(p.job.tokens.value() - share.first_token, int64_t{kTileM}));
  const int32_t num_chunks = p.blocks.num_chunks();
  for (int row = share.rank + warp * T::kCluster; row < rows; row += T::kCluster * kConsumers * 4) {
#pragma unroll
    for (int c = 0; c < T::kN; c += 32 * kFourColumns) {
      const int column = c + lane * kFourColumns;
      if (column >= T::kN) continue;  // half a warp of a narrow tile
      const float* at = sums + row * T::kPitch + column;
      float4 sum{};
      if constexpr (T::kCluster == 1) {
        sum = *reinterpret_cast<const float4*>(at);
      } else {
        float4 chunk[T::kCluster];
#pragma unroll
        for (int i = 0; i < T::kCluster; ++i) {
          if (i < num_chunks) chunk[i] = cluster_load4(shared_address_in(at, i));
        }
#pragma unroll
        for (int i = 0; i < T::kCluster; ++i) {
          if (i >= num_chunks) break;
          sum.x += chunk[i].x, sum.y += chunk[i].y, sum.z += chunk[i].z, sum.w += chunk[i].w;
        }
      }
      finish_linear4(p.job, share.first_token + row, share.tile.column * T::kN + column, sum,
                     p.stores_fours);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, T::kBlocksPerSm)
    sm90_linear_kernel(const __grid_constant__ LinearGemmParams p) {
  extern __shared__ uint8_t unaligned[];
  constexpr uint32_t kAlignment = 1024;
  uint8_t* shared = unaligned + (kAlignment - shared_address(unaligned) % kAlignment) % kAlignment;
  const Ring<T> ring(shared);
  const Share share = share_of<T>(p);
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  const int thread = static_cast<int>(threadIdx.x) % 128;
  if (threadIdx.x == 0) ring.init();
  __syncthreads();
  if (warpgroup == kConsumers) {
    if (thread == 0) produce(p, share, ring);
    __syncwarp();
    wait_for_previous_kernel();
    let_next_kernel_start();
    if constexpr (T::kCluster > 1) {
      if (share.first_token >= p.job.tokens.value()) return;
      cluster_arrive(), cluster_wait();
      cluster_arrive(), cluster_wait();
    }
    return;
  }
  wait_for_previous_kernel();
  const int64_t left = p.job.tokens.value() - share.first_token;
  if (left <= 0) return;
  Consumer<T> consumer{ring, thread, warpgroup, left > warpgroup * kWaveRows};
  float sums[T::kSums];
  if constexpr (T::kChunked && T::kCluster == 1) {
    float chunk[T::kSums];
#pragma unroll
    for (int i = 0; i < T::kSums; ++i) sums[i] = 0.0f;
    for (int c = 0; c < p.blocks.num_chunks(); ++c) {
      consumer.multiply(p.blocks.begin(c), p.blocks.begin(c + 1), chunk);
#pragma unroll
      for (int i = 0; i < T::kSums; ++i) sums[i] += chunk[i];
    }
  } else {
    consumer.multiply(share.k_begin, share.k_end, sums);
  }
  constexpr int kBarrier = 1;
  named_barrier(kBarrier, kConsumers * 128);  // the ring is no longer read
  auto* staged = reinterpret_cast<float*>(shared);
  if (consumer.has_rows && share.k_begin < share.k_end) {
    stage_sums<T>(sums, warpgroup, thread, staged);
  }
  if constexpr (T::kCluster > 1) {
    __syncwarp();
    cluster_arrive(), cluster_wait();
  } else {
    named_barrier(kBarrier, kConsumers * 128);
  }
  finish_rows<T>(p, share, staged, static_cast<int>(threadIdx.x) / 32, thread % 32);
  if constexpr (T::kCluster > 1) {  // until the others have read our sums
    __syncwarp();
    cluster_arrive(), cluster_wait();
  }
}

template <class T>
void launch_linear(LinearGemmParams& p, Stream stream) {
  p.tile_columns = ceil_div(p.job.weights.num_rows, T::kN);
  const int64_t tiles = int64_t{p.tile_rows} * p.tile_columns;
  launch(sm90_linear_kernel<T>,
         {.grid = static_cast<unsigned>(tiles * T::kCluster),
          .block = kThreads,
          .shared_bytes = T::kSharedBytes,
          .overlap_previous = true,
          .cluster = T::kCluster},
         static_cast<cudaStream_t>(stream.handle), p);
}

}  // namespace

bool can_read_tokens(const LinearJob& job) {
  return job.input_type == DataType::kBf16 &&
         vectors_aligned(job.input, job.weights.num_cols, job.input_type);
}

LinearGemmWeights linear_gemm_weights(const WeightRows& packed, int32_t parts) {
  return {.map = tensor_map(TensorMap2d{.data = packed.rows.values,
                                        .rows = packed.num_rows,
                                        .cols = packed.num_cols,
                                        .row_bytes = packed.rows.row_bytes,
                                        .element_bytes = 2,
                                        .box_rows = kBoxRows,
                                        .box_cols = kLinearBlockCols}),
          .parts = parts};
}

void linear_gemm(const LinearJob& job, const LinearGemmWeights& weights, LinearKernel kernel,
                 Stream stream) {
  const int64_t num_tokens = job.tokens.limit;
  LinearGemmParams p{
      .weights = weights.map,
      .tokens = tensor_map(TensorMap2d{.data = job.input,
                                       .rows = num_tokens,
                                       .cols = job.weights.num_cols,
                                       .row_bytes = int64_t{job.weights.num_cols} * 2,
                                       .element_bytes = 2,
                                       .box_rows = kWaveRows,
                                       .box_cols = kLinearBlockCols}),
      .job = job,
      .blocks = LinearBlocks(job.weights.num_cols, weights.parts),
      .token_blocks = LinearBlocks(job.weights.num_cols).num_blocks,
      .tile_rows = static_cast<int32_t>(ceil_div<int64_t>(num_tokens, kTileM)),
      .tile_columns = 0,
      .stores_fours = stores_fours(job)};
  switch (kernel) {
    case LinearKernel::kNarrowSplit: return launch_linear<NarrowSplitTile>(p, stream);
    case LinearKernel::kSplit: return launch_linear<SplitTile>(p, stream);
    case LinearKernel::kWideTile: return launch_linear<WideTile>(p, stream);
    default: return launch_linear<SquareTile>(p, stream);
  }
}

}  // namespace switchyard::cuda::sm90
