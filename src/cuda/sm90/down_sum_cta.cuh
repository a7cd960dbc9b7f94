#pragma once
// What a CTA of down with its sum has in shared memory, and which kernels there are.

#include <type_traits>

#include "cuda/sm90/down_sum_kernels.h"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace switchyard::cuda::sm90 {

/// FragmentOperand: of weights in fragment order, which a warpgroup converts.
template <MmaType kMmaType, Scaling kScalingKind, class FragmentOperand = void>
struct DownSumTraits {
  using Operand = FragmentOperand;
  static constexpr MmaType kMma = kMmaType;
  static constexpr Scaling kScaling = kScalingKind;
  static constexpr bool kConverts = !std::is_void_v<Operand>;
  static constexpr int kSumGroups = kDownSumTeamWarps / 4;
  /// And one whose warps wait: for weights, for other CTAs.
  static constexpr int kThreads = (kDownSumProductGroups + kSumGroups + kConverts + 1) * 128;
  /// All together 480, as many as the kernel starts with.
  static constexpr int kProductRegisters = kConverts ? 88 : 128, kSumRegisters = 96,
                       kConvertRegisters = 80;
  static constexpr int kSums = kDownSumColumns / 2;
  using Products = Wgmma<kMmaType, kDownSumColumns>;
};

inline constexpr int kDownSumBlock = kDownSumWaveRows * kDownSumBlockBytes;
inline constexpr int kDownSumWaveBytes = kDownSumBlocks * kDownSumBlock;

/// Where nothing else is to be done, and others shall issue.
__device__ __forceinline__ void barrier_wait_idle(uint64_t* barrier, uint32_t parity) {
  while (!barrier_try_wait(barrier, parity)) __nanosleep(32);
}

struct alignas(16) DownSumWave {
  int32_t first_row, num_rows, expert;
  int32_t buffers;  ///< of weights until those of the wave that its warpgroup takes next
};
struct alignas(16) DownSumRow {
  float scale[kDownSumBlocks];
  float weight;  ///< of the routing
  float unused;
};
static_assert(sizeof(DownSumWave) == kDownSumWaveEntry && sizeof(DownSumRow) == kDownSumRowEntry);
struct alignas(16) DownSumMargin {
  float2 block_scale[kDownSumBlocks];  ///< of even and odd weight rows
  float channel_scale[kDownSumColumns];
  float bias[kDownSumColumns];
};
static_assert(sizeof(DownSumMargin) == kDownSumMarginBytes);

/// Where slab s's barrier is, and which of its phases.
struct DownSumPlace {
  int slot;
  uint32_t parity;
  __device__ explicit DownSumPlace(int slab)
      : slot(slab % kDownSumPlaces), parity(slab / kDownSumPlaces & 1) {}
};

/// A CTA's shared memory, and its part of the work.
struct DownSumCta {
  const DownSumParams& p;
  uint8_t *rows, *weights;
  DownSumMargin* margins;
  DownSumRow* row_facts;
  DownSumWave* waves;
  int32_t* sources;
  uint64_t* full;  ///< weights
  uint64_t* empty;
  uint64_t* writable;  ///< the slab's slot of the ring; this and the next ones by DownSumPlace
  uint64_t* computed;  ///< by this CTA
  uint64_t* ready;     ///< by all
  uint64_t* summed;    ///< by this CTA
  uint64_t* rows_full;
  int32_t num_waves = 0;

  __device__ DownSumCta(const DownSumParams& params, uint8_t* shared)
      : p(params),
        rows(shared),
        weights(shared + params.shared.weights),
        margins(reinterpret_cast<DownSumMargin*>(shared + params.shared.margins)),
        row_facts(reinterpret_cast<DownSumRow*>(shared + params.shared.row_facts)),
        waves(reinterpret_cast<DownSumWave*>(shared + params.shared.waves)),
        sources(reinterpret_cast<int32_t*>(shared + params.shared.sources)),
        full(reinterpret_cast<uint64_t*>(shared + params.shared.barriers)),
        empty(full + kDownSumMostBuffers),
        writable(empty + kDownSumMostBuffers),
        computed(writable + kDownSumPlaces),
        ready(computed + kDownSumPlaces),
        summed(ready + kDownSumPlaces),
        rows_full(summed + kDownSumPlaces) {}

  template <class Traits>
  __device__ void init_barriers(int num_tokens) const {
    for (int i = 0; i < kDownSumMostBuffers; ++i) {
      barrier_init(&full[i], Traits::kConverts ? 4 : 1);
      barrier_init(&empty[i], 4 * kDownSumProductGroups);
    }
    for (int i = 0; i < kDownSumPlaces; ++i) {
      barrier_init(&writable[i], 1);
      barrier_init(&computed[i], 4 * kDownSumProductGroups);
      barrier_init(&ready[i], 1);
      barrier_init(&summed[i], down_sum_team_warps(num_tokens));
    }
    barrier_init(rows_full, 1);
    fence_barrier_init();
  }
  /// Whether the routing's weights are part of the rows' scales: as in Fp4PrefillFacts.
  template <class Traits>
  __device__ bool weighs_rows() const {
    return Traits::kConverts && p.gemm.weight_after && p.gemm.bias == nullptr;
  }
  __device__ int num_slabs() const { return p.gemm.num_weight_rows / kDownSumColumns; }
  __device__ int num_rows() const { return num_waves * kDownSumWaveRows; }
  /// Whether wave w has weights of its own: those of another expert than the wave before it.
  __device__ bool begins_run(int w) const {
    return w == 0 || waves[w].expert != waves[w - 1].expert;
  }
  /// Runs of waves of one expert, at most 32.
  __device__ int num_runs() const {
    int count = 0;
    for (int w = 0; w < num_waves; ++w) count += begins_run(w) ? 1 : 0;
    return count;
  }
  __device__ int32_t expert_of_run(int run) const {
    for (int w = 0; w < num_waves; ++w) {
      if (begins_run(w) && run-- == 0) return waves[w].expert;
    }
    return 0;
  }
};

/// A buffer of weights: they follow each other slab by slab, expert by expert.
struct DownSumBuffer {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int by, int num_buffers) {
    slot += by;
    if (slot >= num_buffers) slot -= num_buffers, parity ^= 1;
  }
};

}  // namespace switchyard::cuda::sm90
