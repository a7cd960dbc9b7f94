#pragma once
// What the threads of one lane of a decode kernel (decode_kernel.cuh) share: parameters, places in
// shared memory, the walk over the lane's units.

#include "core/expert_sort.h"
#include "cuda/sm90/decode_args.h"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace switchyard::cuda::sm90 {

/// What a decode kernel's sums are.
template <class Operand>
using Word = typename Operand::Word;

/// One slot of a ring as multiply() sees it.
struct Step {
  const char* weights;  ///< 1024-byte aligned
  uint32_t tokens;      ///< shared address of kTokenBlocks blocks [unit_size][128 bytes], swizzled
  uint32_t token_block_bytes;
  const float* scales;      ///< kBlockScales: of tokens, from block to block of 128 columns
  const float* row_scales;  ///< kRowBlockScales: of a gate row and an up row, as far apart
  int scale_stride;

  __device__ uint64_t token_descriptor(int block) const {
    return swizzled_128_descriptor(tokens + static_cast<uint32_t>(block) * token_block_bytes);
  }
};

template <class Operand>
struct DecodeParams {
  typename Operand::Args weights;
  DecodeArgs args;
  DecodeShared shared;
  int32_t lanes;                   ///< of a CTA
  int32_t row_blocks;              ///< of 64 rows, of an expert's matrix
  int32_t num_strips, num_chunks;  ///< as DecodeSchedule has them
  int32_t sum_ctas;                ///< decode_sum_ctas() where rows are summed
};

/// What a kernel is compiled for.
enum class DecodeForm {
  kGeneral,
  kShort,  ///< is_short()
  kSum,    ///< args.sum: is_plain() results of a single token, summed
};

inline constexpr int kWarpgroup = 128;

/// Scales of 128 columns of a slot: a block's tokens, then a gate row and an up row for each of the
/// team.
SWITCHYARD_HOST_DEVICE constexpr int scale_stride(int unit_size) {
  return unit_size + 2 * decode_team(unit_size);
}
template <class Operand>
constexpr int scales_per_step(int unit_size) {
  return Operand::kBlockScales ? Operand::kTokenBlocks * scale_stride(unit_size) : 0;
}

/// A row of the current block, as the epilogue needs it.
struct alignas(kDecodeRowBytes) DecodeRow {
  int32_t pair, input;
  float weight, scale;
};

/// Places of one lane in shared memory; table and notes are a warpgroup's own.
struct LaneMemory {
  char* ring;
  float* scales;
  float* factors;  ///< by strip: scales of its rows, then biases
  DecodeRow* table;
  int32_t* notes;
  uint64_t* full;
  uint64_t* empty;
  char* sums;  ///< of the CTA
  DecodeDivision* division;

  __device__ LaneMemory(char* memory, const DecodeShared& s, int lane, int unit_size,
                        int member = 0)
      : ring(memory + lane * s.slots * s.slot_bytes),
        scales(reinterpret_cast<float*>(memory + s.scales + lane * s.slots * s.scale_bytes)),
        factors(
            reinterpret_cast<float*>(memory + s.factors + lane * s.factor_strips * s.factor_bytes)),
        table(reinterpret_cast<DecodeRow*>(memory + s.tables +
                                           (lane * s.team + member) * s.table_bytes)),
        notes(reinterpret_cast<int32_t*>(table + unit_size)),
        full(reinterpret_cast<uint64_t*>(memory + s.barriers) + lane * s.slots * 2),
        empty(full + s.slots),
        sums(memory + s.sums),
        division(reinterpret_cast<DecodeDivision*>(memory + s.division) + lane) {}
};

/// Once divide() is done.
template <DecodeForm kForm, class Operand>
__device__ DecodeWalk walk_of(const DecodeParams<Operand>& p, const LaneMemory& memory, int lane) {
  if constexpr (kForm == DecodeForm::kSum) {
    return {decode_sum_start(static_cast<int32_t>(blockIdx.x), lane, p.sum_ctas, p.args.top_k,
                             p.num_chunks),
            p.args.steps, 1, p.num_chunks, p.shared.slots};
  }
  return {memory.division->start, p.args.steps, p.num_strips, p.num_chunks, p.shared.slots};
}
/// The strip that the walk takes for its first.
template <DecodeForm kForm, class Operand>
__device__ int32_t first_strip(const DecodeParams<Operand>& p) {
  if constexpr (kForm == DecodeForm::kSum) {
    return decode_sum_strip(static_cast<int32_t>(blockIdx.x), p.sum_ctas);
  }
  return 0;
}
/// Whether the work can be divided before the lists are there.
__device__ inline bool divides_early(const DecodeArgs& a) {
  return a.lists_ready || a.single_token;
}
/// Asks how long the lists are and divides them: by the weights' producer alone, because it is
/// long code, and cold (in all threads R1 TP8, T = 1: 28.9 us instead of 25.4).
template <class Operand>
__device__ void divide(const DecodeParams<Operand>& p, const LaneMemory& memory, int lane) {
  const int32_t unit_bits = __ffs(p.args.unit_size) - 1;
  const DecodeSchedule schedule{
      p.args.single_token ? p.args.top_k : p.args.num_valid_ids[0] >> unit_bits,
      p.num_strips,
      p.num_chunks,
      static_cast<int32_t>(gridDim.x) * p.lanes,
      static_cast<int32_t>(gridDim.x),
      p.shared.team,
      p.shared.num_sums};
  const DecodeStart start =
      schedule.start(schedule.lane_at(static_cast<int32_t>(blockIdx.x), lane));
  if (threadIdx.x % 32 == 0) *memory.division = {schedule, start};
  __syncwarp();
}
/// At its barrier: the weights' producer arrives, consumers and the tokens' producer wait.
template <class Operand>
__device__ int division_threads(const DecodeParams<Operand>& p) {
  return p.shared.team * kWarpgroup + 2 * 32;
}
inline constexpr int kDivisionBarrier = 12;  // others have the ones before
/// At which the lanes of a CTA meet where nothing is divided.
inline constexpr int kSumBarrier = kDivisionBarrier;
template <class Operand>
__device__ void wait_for_division(const DecodeParams<Operand>& p, int lane) {
  named_barrier(kDivisionBarrier + lane, division_threads(p));
}

/// Row of the input that holds the tokens of a sorted row, -1 for padding.
__device__ inline int32_t token_row(const DecodeArgs& a, int32_t packed) {
  const int32_t token = packed_token(packed);
  if (token >= a.num_tokens) return -1;
  return a.tokens_per_pair ? token * a.top_k + packed_slot(packed) : token;
}

/// A scale for each weight row, or null.
template <class Operand>
__device__ const float* per_row_scales(const DecodeArgs& a) {
  return Operand::kRowBlockScales ? nullptr : a.row_scales;
}

}  // namespace switchyard::cuda::sm90
