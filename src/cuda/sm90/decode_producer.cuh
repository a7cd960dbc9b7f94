#pragma once
// Producers of a lane of a decode kernel: a warp for weights, a warp for tokens.

#include "cuda/launch.cuh"
#include "cuda/sm90/decode_lane.cuh"
#include "cuda/sm90/decode_round.cuh"

namespace switchyard::cuda::sm90 {

/// Brings the tokens of a block, 16 bytes a thread, and their scales. Rows of padding stay as they
/// are: a column of the product depends on no other.
template <DecodeForm kForm, class Operand, int kN>
class TokenLoader {
 public:
  __device__ TokenLoader(const DecodeParams<Operand>& p, const LaneMemory& memory)
      : a_(p.args),
        shared_(p.shared),
        memory_(memory),
        lane_(static_cast<int>(threadIdx.x) % 32),
        first_strip_(first_strip<kForm>(p)) {}

  __device__ void load(const DecodeWalk& walk) {
    if (walk.block != block_) enter_block(walk.block);
    // Where K is one step, the slots soon hold the block's tokens all.
    const bool there = a_.steps.num_steps == 1 && loads_ >= walk.num_slots;
    ++loads_;
    if constexpr (kCanRound) {
      if (a_.token_maxima.bits != nullptr) {
        if (!there) round_tokens(walk);
        if constexpr (Operand::kRowBlockScales) load_row_scales(walk);
        async_copy_wait();
        fence_async_shared();
        return barrier_arrive(memory_.full + walk.slot);
      }
    }
    if (!there) copy_tokens(walk);
    if constexpr (Operand::kBlockScales) {
      if (!there) load_token_scales(walk);
    }
    if constexpr (Operand::kRowBlockScales) load_row_scales(walk);
    async_copy_arrive(memory_.full + walk.slot);
  }

  /// Reads the lists alone.
  __device__ void enter_block(int32_t block) {
    block_ = block;
    loads_ = 0;
    const int64_t expert = a_.sorted_expert_ids[block];
    if constexpr (Operand::kRowBlockScales) {
      row_scales_ = a_.row_scales + expert * a_.num_rows * a_.row_scale_groups;
    }
    num_rows_ = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = lane_ + 32 * i;
      if constexpr (kForm == DecodeForm::kSum) {
        rows_[i] = row > 0 ? -1 : a_.tokens_per_pair ? block : 0;
      } else {
        rows_[i] =
            row < a_.unit_size ? token_row(a_, a_.sorted_ids[block * a_.unit_size + row]) : -1;
      }
      num_rows_ += __popc(__ballot_sync(~0u, rows_[i] >= 0));
    }
    // A row is brought by eight threads, four rows at a time; the last four may be fewer.
    const auto row_chunks = static_cast<uint32_t>(a_.token_row_bytes / 16);
    const int32_t any = max(__shfl_sync(~0u, rows_[0], 0), 0);
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
      const int32_t row = __shfl_sync(~0u, rows_[i / 8], (lane_ / 8 + 4 * i) % 32);
      from_[i] = static_cast<uint32_t>(row < 0 ? any : row) * row_chunks;
    }
  }

 private:
  static constexpr int kRows = kN <= 32 ? 1 : 2;  // of a thread
  static constexpr int kTeam = decode_team(kN);
  static constexpr int kScaleStride = scale_stride(kN);
  static constexpr bool kCanRound = kN <= 8 && Operand::kMma != MmaType::kBf16;

  __device__ void copy_tokens(const DecodeWalk& walk) const {
    const uint32_t to =
        shared_address(memory_.ring) + static_cast<uint32_t>((walk.slot + 1) * shared_.slot_bytes -
                                                             shared_.token_bytes + lane_ / 8 * 128);
    const uint32_t even = to + static_cast<uint32_t>((lane_ ^ lane_ / 8) % 8 * 16);
    const uint32_t odd = to + static_cast<uint32_t>((lane_ ^ (lane_ / 8 + 4)) % 8 * 16);
    const int32_t column = walk.k_step() * Operand::kTokenBlocks * 128 + lane_ % 8 * 16;
    const char* tokens = static_cast<const char*>(a_.tokens) + column;
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
      if (4 * i >= num_rows_) break;
      const char* from = tokens + uint64_t{from_[i]} * 16;
#pragma unroll
      for (int b = 0; b < Operand::kTokenBlocks; ++b) {
        async_copy_16((i % 2 == 0 ? even : odd) + static_cast<uint32_t>(i * 512 + b * kN * 128),
                      from + b * 128, column + b * 128 < a_.token_bytes);
      }
    }
  }

  /// f32 tokens: a lane rounds 16 columns of a row at a time.
  __device__ void round_tokens(const DecodeWalk& walk) const {
    constexpr int kLanesOfRow = Operand::kTokenBlocks * 8;
    static_assert(kLanesOfRow <= 32);
    const RowMaxima& maxima = a_.token_maxima;
    const int part = lane_ % kLanesOfRow;
    const int32_t column = (walk.k_step() * kLanesOfRow + part) * 16;
    const bool exists = column < a_.token_bytes;
    char* to = memory_.ring + (walk.slot + 1) * shared_.slot_bytes - shared_.token_bytes +
               part / 8 * a_.unit_size * 128;
    float* scales =
        memory_.scales + walk.slot * (shared_.scale_bytes / 4) + part / 8 * kScaleStride;
    for (int first = 0; first < num_rows_; first += 32 / kLanesOfRow) {
      const int row = first + lane_ / kLanesOfRow;
      const int32_t source = __shfl_sync(~0u, rows_[0], row % 32);
      if (row >= num_rows_) continue;
      uint4 codes{0, 0, 0, 0};
      BlockScale scale{1.0f, 0.0f};
      if (exists) {
        const auto* from = reinterpret_cast<const float4*>(
            static_cast<const char*>(a_.tokens) + source * a_.token_row_bytes + column * 4);
        const float4 v[4] = {__ldcg(from), __ldcg(from + 1), __ldcg(from + 2), __ldcg(from + 3)};
        const int32_t group = maxima.groups == 1 ? 0 : column / 128;
        scale = block_scale({.format = maxima.format},
                            __ldcg(maxima.bits + source * maxima.groups + group));
        codes = {four_codes(maxima.format, v[0], scale.inverse),
                 four_codes(maxima.format, v[1], scale.inverse),
                 four_codes(maxima.format, v[2], scale.inverse),
                 four_codes(maxima.format, v[3], scale.inverse)};
      }
      *reinterpret_cast<uint4*>(to + row * 128 + (part ^ row) % 8 * 16) = codes;
      if (Operand::kBlockScales && part % 8 == 0) scales[row] = scale.stored;
    }
  }

  __device__ void load_token_scales(const DecodeWalk& walk) const {
    const uint32_t to =
        shared_address(memory_.scales) + static_cast<uint32_t>(walk.slot * shared_.scale_bytes);
    const int32_t first_block = walk.k_step() * Operand::kTokenBlocks;
    const bool per_block = a_.token_scale_groups > 1;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = lane_ + 32 * i;
      if (row >= num_rows_) continue;
      const float* from = a_.token_scales + static_cast<int64_t>(rows_[i]) * a_.token_scale_groups;
#pragma unroll
      for (int b = 0; b < Operand::kTokenBlocks; ++b) {
        const int32_t group = per_block ? first_block + b : 0;
        async_copy_4(to + static_cast<uint32_t>(b * kScaleStride + row) * 4, from + group,
                     !per_block || group < a_.token_scale_groups);
      }
    }
  }
  __device__ void load_row_scales(const DecodeWalk& walk) const {
    constexpr int kScales = 2 * kTeam;  // of a block of 128 columns
    static_assert(kScales * Operand::kTokenBlocks <= 32 || !Operand::kRowBlockScales);
    const uint32_t to =
        shared_address(memory_.scales) + static_cast<uint32_t>(walk.slot * shared_.scale_bytes);
    if (lane_ < kScales * Operand::kTokenBlocks) {
      const int32_t group = walk.k_step() * Operand::kTokenBlocks + lane_ / kScales;
      const int scale = lane_ % kScales;
      const int32_t row =
          ((first_strip_ + walk.strip) * kTeam + scale / 2) * kDecodeRows + scale % 2;
      async_copy_4(to + static_cast<uint32_t>(lane_ / kScales * kScaleStride + kN + scale) * 4,
                   row_scales_ + static_cast<int64_t>(row) * a_.row_scale_groups + group,
                   group < a_.row_scale_groups && row < a_.num_rows);
    }
  }

  const DecodeArgs& a_;
  const DecodeShared& shared_;
  const LaneMemory& memory_;
  const int lane_;
  const int32_t first_strip_;
  int32_t block_ = -1;
  int32_t loads_ = 0;  ///< of the block
  int32_t rows_[kRows]{};
  uint32_t from_[kN / 4];  ///< the thread's part of rows, in 16 bytes from the tokens on
  int num_rows_ = 0;
  const float* row_scales_ = nullptr;
};

/// kStepBytes, or what the Operand says of this step.
template <class Operand>
__device__ uint32_t step_bytes(const typename Operand::Args& weights, int k_step) {
  if constexpr (requires { Operand::step_bytes(weights, k_step); }) {
    return Operand::step_bytes(weights, k_step);
  } else {
    return Operand::kStepBytes;
  }
}

/// The first tokens are asked for before the first weights, which keep the memory busy for the
/// time of several such loads.
__device__ inline void producers_meet(int lane) {
  constexpr int kFirstBarrier = 8;  // consumers have the ones before
  named_barrier(kFirstBarrier + lane, 2 * 32);
}

/// Scales and biases of a strip's rows, those that there are, with the first step.
template <class Operand>
class RowFactorLoader {
 public:
  __device__ RowFactorLoader(const DecodeArgs& a, int32_t expert, int32_t strip, int32_t team)
      : scales_(per_row_scales<Operand>(a)),
        biases_(a.bias),
        rows_(team * kDecodeRows),
        first_(static_cast<int64_t>(expert) * a.num_rows + strip * rows_),
        each_(static_cast<uint32_t>(min(rows_, a.num_rows - strip * rows_)) * 4) {}
  __device__ uint32_t bytes() const {
    return (scales_ == nullptr ? 0 : each_) + (biases_ == nullptr ? 0 : each_);
  }
  __device__ void load(float* to, uint64_t* full) const {
    if (scales_ != nullptr) bulk_load(to, scales_ + first_, each_, full);
    if (biases_ != nullptr) bulk_load(to + rows_, biases_ + first_, each_, full);
  }

 private:
  const float* scales_;
  const float* biases_;
  int32_t rows_;
  int64_t first_;
  uint32_t each_;
};

/// One warp, of which a thread brings all weights of the lane.
template <DecodeForm kForm, class Operand>
__device__ void bring_weights(const DecodeParams<Operand>& p, const LaneMemory& memory, int lane) {
  const DecodeArgs& a = p.args;
  if constexpr (requires { Operand::prefetch(p.weights); }) Operand::prefetch(p.weights);
  if constexpr (kForm != DecodeForm::kSum) {
    if (!divides_early(a)) wait_for_previous_kernel();
    divide(p, memory, lane);
    named_barrier_arrive(kDivisionBarrier + lane, division_threads(p));
  }
  if (!a.lists_ready) wait_for_previous_kernel();
  DecodeWalk walk = walk_of<kForm>(p, memory, lane);
  int32_t block = walk.block, strip = -1, factors_at = 0, row_blocks = 0;
  int32_t expert = walk.done() ? 0 : a.sorted_expert_ids[block];
  if (!a.lists_ready) producers_meet(lane);
  if (threadIdx.x % 32 != 0) return;
  for (; !walk.done(); walk.advance()) {
    if (walk.block != block) {
      block = walk.block;
      strip = -1;
      expert = a.sorted_expert_ids[block];
    }
    const int k_step = walk.k_step();
    uint64_t* full = memory.full + walk.slot;
    barrier_wait(memory.empty + walk.slot, walk.phase ^ 1);
    const uint32_t bytes = step_bytes<Operand>(p.weights, k_step);
    const int32_t first = (first_strip<kForm>(p) + walk.strip) * p.shared.team;
    if (walk.strip != strip) {
      strip = walk.strip;
      row_blocks = min(p.shared.team, p.row_blocks - first);
      const RowFactorLoader<Operand> factors(a, expert, first_strip<kForm>(p) + strip,
                                             p.shared.team);
      barrier_expect(full, row_blocks * bytes + factors.bytes());
      factors.load(memory.factors + factors_at * (p.shared.factor_bytes / 4), full);
      if (++factors_at == p.shared.factor_strips) factors_at = 0;
    } else {
      barrier_expect(full, row_blocks * bytes);
    }
    char* to = memory.ring + walk.slot * p.shared.slot_bytes;
#pragma unroll 1
    for (int32_t i = 0; i < row_blocks; ++i, to += p.shared.step_bytes) {
      Operand::load(p.weights, to, expert, first + i, k_step, full);
    }
  }
}

/// One warp: all tokens of the lane.
template <DecodeForm kForm, class Operand, int kN>
__device__ void bring_tokens(const DecodeParams<Operand>& p, const LaneMemory& memory, int lane) {
  const bool lists_ready = p.args.lists_ready;
  if constexpr (kForm != DecodeForm::kSum) {
    if (!divides_early(p.args)) wait_for_previous_kernel();
    wait_for_division(p, lane);
  }
  if (!lists_ready) wait_for_previous_kernel();
  TokenLoader<kForm, Operand, kN> tokens(p, memory);
  DecodeWalk walk = walk_of<kForm>(p, memory, lane);
  if (!walk.done()) tokens.enter_block(walk.block);
  if (lists_ready) wait_for_previous_kernel();
  if (!walk.done()) {
    tokens.load(walk);  // the slot is empty
    walk.advance();
  }
  if (!lists_ready) producers_meet(lane);
  for (; !walk.done(); walk.advance()) {
    barrier_wait(memory.empty + walk.slot, walk.phase ^ 1);
    tokens.load(walk);
  }
}

}  // namespace switchyard::cuda::sm90
