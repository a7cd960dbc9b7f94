#pragma once
// GEMMs of few rows per expert: weights on the 64 rows of wgmma, tokens on its N columns, at the
// speed of a plain read of the weights (core/decode_schedule.h says how they are divided).
//
// A CTA has decode_lanes lanes. A lane is a consumer warpgroup, a producer warp and a ring: slots
// of one step of K, 64 weight rows beside the tokens of a block. The producer streams weights
// before the previous kernel in the stream has ended if the lists are known by then.
//
// What arrives for a step, and how it becomes the A operand, is the Operand policy:
//
//   struct Operand {
//     static constexpr MmaType kMma;        // instruction; tokens are its element type
//     static constexpr int kTokenBlocks;    // 128-byte blocks of a token row per step
//     static constexpr int kStepBytes;      // weights of a step: a multiple of 16
//     static constexpr int kChunkSteps;     // steps per chunk: its sum is promoted to 32 bits once
//     static constexpr bool kBlockScales;   // token and weight scales per 128 columns: a step has
//                                           // kTokenBlocks of each (see Step::scales)
//     struct Args;                          // trivially copyable part of the kernel's parameters
//     static constexpr bool kRowPairs;      // a thread's accumulators are rows 2 g, 2 g + 1 of 16,
//                                           // not g, g + 8
//     // One thread: starts copies of kStepBytes that complete on `full`; or of step_bytes(const
//     // Args&, int k_step), where the Operand has that.
//     static void load(const Args&, char* to, int expert, int row_block, int k_step,
//                      uint64_t* full);
//     static void prefetch(const Args&);  // optional: what load() will need
//     // The warpgroup: sum (+)= weights . tokens^T, finished on return (all reads of the slot
//     too). template <int kN> static void multiply(const Args&, const Step&, bool accumulate, Word
//     (&sum)[kN / 2]);
//   };
//
// Scales per row (weights) and per row (tokens) are applied after the sum. Instantiate with
// launch_decode<Operand>.

#include <algorithm>

#include "core/activation.h"
#include "core/expert_sort.h"
#include "cuda/launch.cuh"
#include "cuda/sm90/decode_args.h"
#include "cuda/sm90/decode_round.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/wgmma.cuh"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda::sm90 {

template <MmaType kType>
struct SumWord {
  using Type = float;
};
template <>
struct SumWord<MmaType::kS8> {
  using Type = int32_t;
};
/// What the matrix instruction accumulates in.
template <class Operand>
using Word = typename SumWord<Operand::kMma>::Type;

/// One slot of a ring as multiply() sees it.
struct Step {
  const char* weights;  ///< 1024-byte aligned
  uint32_t tokens;      ///< shared address of kTokenBlocks blocks [unit_size][128 bytes], swizzled
  uint32_t token_block_bytes;
  /// kBlockScales: [block of 128 columns][unit_size tokens, then gate row, up row]
  const float* scales;
  int unit_size;
  int k_step;

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
  int32_t row_blocks, num_chunks;  ///< as DecodeSchedule has them
};

inline constexpr int kWarpgroup = 128;

template <class Operand>
constexpr int scales_per_step(int unit_size) {
  return Operand::kBlockScales ? Operand::kTokenBlocks * (unit_size + 2) : 0;
}

/// A row of the current block, as the epilogue needs it.
struct alignas(kDecodeRowBytes) DecodeRow {
  int32_t pair;
  float weight, scale;
};

/// Places of one lane in shared memory.
struct LaneMemory {
  char* ring;
  float* scales;
  float* factors;  ///< by row block: scales of its rows, then biases
  DecodeRow* table;
  int32_t* notes;
  uint64_t* full;
  uint64_t* empty;

  __device__ LaneMemory(char* memory, const DecodeShared& s, int lane, int unit_size)
      : ring(memory + lane * s.slots * s.slot_bytes),
        scales(reinterpret_cast<float*>(memory + s.scales + lane * s.slots * s.scale_bytes)),
        factors(reinterpret_cast<float*>(memory + s.factors +
                                         lane * s.factor_blocks * kDecodeFactorBytes)),
        table(reinterpret_cast<DecodeRow*>(memory + s.tables + lane * s.table_bytes)),
        notes(reinterpret_cast<int32_t*>(table + unit_size)),
        full(reinterpret_cast<uint64_t*>(memory + s.barriers) + lane * s.slots * 2),
        empty(full + s.slots) {}
};

template <class Operand>
__device__ DecodeSchedule schedule_of(const DecodeParams<Operand>& p) {
  const int32_t unit_bits = __ffs(p.args.unit_size) - 1;
  return {p.args.num_valid_ids[0] >> unit_bits, p.row_blocks, p.num_chunks,
          static_cast<int32_t>(gridDim.x) * p.lanes, static_cast<int32_t>(gridDim.x)};
}
/// The walk of this CTA's lane; reads the lists.
template <class Operand>
__device__ DecodeWalk walk_of(const DecodeParams<Operand>& p, int lane) {
  const DecodeSchedule schedule = schedule_of(p);
  return {schedule, p.args.steps, schedule.lane_at(static_cast<int32_t>(blockIdx.x), lane),
          p.shared.slots};
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
  return Operand::kBlockScales ? nullptr : a.row_scales;
}

// ---- producers: a warp for weights, a warp for tokens

/// Brings the tokens of a block, 16 bytes a thread, and their scales. Rows of padding stay as they
/// are: a column of the product depends on no other.
template <class Operand, int kN>
class TokenLoader {
 public:
  __device__ TokenLoader(const DecodeArgs& args, const DecodeShared& shared,
                         const LaneMemory& memory)
      : a_(args), shared_(shared), memory_(memory), lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void load(const DecodeWalk& walk) {
    if (walk.block != block_) enter_block(walk.block);
    // Where K is one step, the slots soon hold the block's tokens all.
    const bool there = a_.steps.num_steps == 1 && loads_ >= walk.num_slots;
    ++loads_;
    if constexpr (kCanRound) {
      if (a_.token_maxima.bits != nullptr) {
        if (!there) round_tokens(walk);
        if constexpr (Operand::kBlockScales) load_row_scales(walk);
        async_copy_wait();
        fence_async_shared();
        return barrier_arrive(memory_.full + walk.slot);
      }
    }
    if (!there) copy_tokens(walk);
    if constexpr (Operand::kBlockScales) {
      if (!there) load_token_scales(walk);
      load_row_scales(walk);
    }
    async_copy_arrive(memory_.full + walk.slot);
  }

  /// Reads the lists alone.
  __device__ void enter_block(int32_t block) {
    block_ = block;
    loads_ = 0;
    const int64_t expert = a_.sorted_expert_ids[block];
    if constexpr (Operand::kBlockScales) {
      row_scales_ = a_.row_scales + (expert * a_.num_rows + lane_ % 2) * a_.row_scale_groups;
    }
    num_rows_ = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = lane_ + 32 * i;
      rows_[i] = row < a_.unit_size ? token_row(a_, a_.sorted_ids[block * a_.unit_size + row]) : -1;
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
        memory_.scales + walk.slot * (shared_.scale_bytes / 4) + part / 8 * (a_.unit_size + 2);
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

  // Scales of the step's 128-column blocks: one per token, then those of the gate and up rows.
  __device__ void load_token_scales(const DecodeWalk& walk) const {
    const int width = a_.unit_size + 2;
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
        async_copy_4(to + static_cast<uint32_t>(b * width + row) * 4, from + group,
                     !per_block || group < a_.token_scale_groups);
      }
    }
  }
  __device__ void load_row_scales(const DecodeWalk& walk) const {
    const int width = a_.unit_size + 2;
    const uint32_t to =
        shared_address(memory_.scales) + static_cast<uint32_t>(walk.slot * shared_.scale_bytes);
    const int32_t first_block = walk.k_step() * Operand::kTokenBlocks;
    if (lane_ < 2 * Operand::kTokenBlocks) {
      const int32_t group = first_block + lane_ / 2;
      async_copy_4(to + static_cast<uint32_t>(lane_ / 2 * width + a_.unit_size + lane_ % 2) * 4,
                   row_scales_ +
                       static_cast<int64_t>(walk.row_block * kDecodeRows) * a_.row_scale_groups +
                       group,
                   group < a_.row_scale_groups);
    }
  }

  const DecodeArgs& a_;
  const DecodeShared& shared_;
  const LaneMemory& memory_;
  const int lane_;
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

/// Scales and biases of a row block's rows, those that there are, with the first step.
template <class Operand>
class RowFactorLoader {
 public:
  __device__ RowFactorLoader(const DecodeArgs& a, int32_t expert, int32_t row_block)
      : scales_(per_row_scales<Operand>(a)),
        biases_(a.bias),
        first_(static_cast<int64_t>(expert) * a.num_rows + row_block * kDecodeRows),
        each_(static_cast<uint32_t>(min(kDecodeRows, a.num_rows - row_block * kDecodeRows)) * 4) {}
  __device__ uint32_t bytes() const {
    return (scales_ == nullptr ? 0 : each_) + (biases_ == nullptr ? 0 : each_);
  }
  __device__ void load(float* to, uint64_t* full) const {
    if (scales_ != nullptr) bulk_load(to, scales_ + first_, each_, full);
    if (biases_ != nullptr) bulk_load(to + kDecodeRows, biases_ + first_, each_, full);
  }

 private:
  const float* scales_;
  const float* biases_;
  int64_t first_;
  uint32_t each_;
};

/// One warp, of which a thread brings all weights of the lane.
template <class Operand>
__device__ void bring_weights(const DecodeParams<Operand>& p, const LaneMemory& memory, int lane) {
  const DecodeArgs& a = p.args;
  if constexpr (requires { Operand::prefetch(p.weights); }) Operand::prefetch(p.weights);
  if (!a.lists_ready) wait_for_previous_kernel();
  DecodeWalk walk = walk_of(p, lane);
  int32_t block = walk.block, row_block = -1, factors_at = 0;
  int32_t expert = walk.done() ? 0 : a.sorted_expert_ids[block];
  if (!a.lists_ready) producers_meet(lane);
  if (threadIdx.x % 32 != 0) return;
  for (; !walk.done(); walk.advance()) {
    if (walk.block != block) {
      block = walk.block;
      row_block = -1;
      expert = a.sorted_expert_ids[block];
    }
    const int k_step = walk.k_step();
    uint64_t* full = memory.full + walk.slot;
    barrier_wait(memory.empty + walk.slot, walk.phase ^ 1);
    const uint32_t bytes = step_bytes<Operand>(p.weights, k_step);
    if (walk.row_block != row_block) {
      row_block = walk.row_block;
      const RowFactorLoader<Operand> factors(a, expert, row_block);
      barrier_expect(full, bytes + factors.bytes());
      factors.load(memory.factors + factors_at * (kDecodeFactorBytes / 4), full);
      if (++factors_at == p.shared.factor_blocks) factors_at = 0;
    } else {
      barrier_expect(full, bytes);
    }
    Operand::load(p.weights, memory.ring + walk.slot * p.shared.slot_bytes, expert, walk.row_block,
                  k_step, full);
  }
}

/// One warp: all tokens of the lane.
template <class Operand, int kN>
__device__ void bring_tokens(const DecodeParams<Operand>& p, const LaneMemory& memory, int lane) {
  const bool lists_ready = p.args.lists_ready;
  if (!lists_ready) wait_for_previous_kernel();
  TokenLoader<Operand, kN> tokens(p.args, p.shared, memory);
  DecodeWalk walk = walk_of(p, lane);
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

// ---- consumer: one warpgroup

/// Factors of the two weight rows that a thread accumulates.
struct RowFactors {
  float scale[2], bias[2];
};

template <class Operand>
class Consumer {
 public:
  __device__ Consumer(const DecodeParams<Operand>& p, const LaneMemory& memory, int lane)
      : p_(p),
        a_(p.args),
        memory_(memory),
        thread_(static_cast<int>(threadIdx.x) % kWarpgroup),
        gated_(p.args.activate && p.args.activation.gated()),
        walk_(walk_of(p, lane)) {
    if (!walk_.done()) read_rows(walk_.block);
  }

  /// kN: rows of a block, whether they exist or not.
  template <int kN>
  __device__ void run() {
    while (!walk_.done()) {
      const DecodeRun run = walk_.run();
      if (run.block != block_) read_rows(run.block);
      if (!scales_known_) read_scales();
      const bool finished = row_block<kN>(run);
      if (++factors_at_ == p_.shared.factor_blocks) factors_at_ = 0;
      if constexpr (kN > 8) {
        if (finished && a_.rounded.codes != nullptr) round_finished_group(run.row_block);
      }
    }
  }

 private:
  template <int kN>
  using Sum = Word<Operand>[kN / 2];

  __device__ void meet() const {
    named_barrier(1 + static_cast<int>(threadIdx.x) / kWarpgroup, kWarpgroup);
  }

  /// What the lists say of a block; its scales may not be there yet.
  __device__ void read_rows(int32_t block) {
    block_ = block;
    scales_known_ = false;
    expert_ = a_.sorted_expert_ids[block];
    meet();  // everyone is done with the table of the last block
    row_ = -1;
    if (thread_ < a_.unit_size) {
      const int32_t sorted_row = block * a_.unit_size + thread_;
      const int32_t packed = a_.sorted_ids[sorted_row];
      row_ = token_row(a_, packed);
      if (row_ >= 0) {
        DecodeRow& row = memory_.table[thread_];
        row.pair = packed_token(packed) * a_.top_k + packed_slot(packed);
        row.weight = a_.sorted_weights == nullptr ? 1.0f : a_.sorted_weights[sorted_row];
      }
    }
    // Rows of a block come first, so the count is where they end.
    const int count = __popc(__ballot_sync(~0u, row_ >= 0));
    if (thread_ % 32 == 0) memory_.notes[thread_ / 32] = count;
    meet();
    num_rows_ = memory_.notes[0] + memory_.notes[1];
    meet();
  }
  __device__ void read_scales() {
    scales_known_ = true;
    if (row_ >= 0) {
      float scale = 1.0f;  // block scales are applied while adding up
      if (!Operand::kBlockScales && a_.token_maxima.bits != nullptr) {
        scale = block_scale({.format = a_.token_maxima.format}, __ldcg(a_.token_maxima.bits + row_))
                    .stored;
      } else if (!Operand::kBlockScales && a_.token_scales != nullptr) {
        scale = a_.token_scales[row_ * a_.token_scale_groups];
      }
      memory_.table[thread_].scale = scale;
    }
    meet();
  }

  /// Of the thread's two rows in a row block: the first, and how far away the other is.
  static constexpr int kRowStep = Operand::kRowPairs ? 1 : 8;
  __device__ int first_row() const {
    return thread_ / 32 * 16 + thread_ % 32 / 4 * (Operand::kRowPairs ? 2 : 1);
  }

  __device__ RowFactors factors() const {
    RowFactors f{{1.0f, 1.0f}, {0.0f, 0.0f}};
    const float* from = memory_.factors + factors_at_ * (kDecodeFactorBytes / 4) + first_row();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (per_row_scales<Operand>(a_) != nullptr) f.scale[i] = from[i * kRowStep];
      if (a_.bias != nullptr) f.bias[i] = from[kDecodeRows + i * kRowStep];
    }
    return f;
  }

  /// The chunks of one run; whether the row block's results have been stored: if this lane has them
  /// all or comes last.
  template <int kN>
  __device__ bool row_block(const DecodeRun& run) {
    const DecodeOwners owners = run.whole ? DecodeOwners{} : walk_.schedule.owners(run);
    Sum<kN> total{};
    for (int32_t chunk = run.chunk_begin; chunk < run.chunk_end; ++chunk) {
      Sum<kN> sum;
      multiply_chunk<kN>(chunk, sum);
      if (run.chunk_begin == 0) {
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) total[i] += sum[i];
      } else {
        store_partial<kN>(owners, chunk, sum);
      }
    }
    if (!run.whole) {
      if (run.chunk_begin == 0) store_partial<kN>(owners, 0, total);
      if (!came_last(a_.counters + owners.first, owners.count())) return false;
      add_partials<kN>(run, owners, total);
    }
    finish<kN>(run.row_block, total);
    return true;
  }

  template <int kN>
  __device__ void multiply_chunk(int32_t chunk, Sum<kN>& sum) {
    const int32_t num_steps = a_.steps.steps_of(chunk);
    for (int32_t step = 0; step < num_steps; ++step) {
      // The same in all threads, as the compiler shall know: descriptors are in uniform registers.
      const int slot = __shfl_sync(~0u, walk_.slot, 0);
      barrier_wait(memory_.full + slot, walk_.phase);
      fence_async_shared();  // tokens came by cp.async
      const char* weights = memory_.ring + slot * p_.shared.slot_bytes;
      Operand::template multiply<kN>(
          p_.weights,
          {.weights = weights,
           .tokens = shared_address(weights) +
                     static_cast<uint32_t>(p_.shared.slot_bytes - p_.shared.token_bytes),
           .token_block_bytes = kN * 128,
           .scales = memory_.scales + slot * (p_.shared.scale_bytes / 4),
           .unit_size = kN,
           .k_step = walk_.k_step()},
          step != 0, sum);
      __syncwarp();
      if (thread_ % 32 == 0) barrier_arrive(memory_.empty + slot);
      walk_.advance();
    }
  }

  // ---- cut row blocks
  __device__ uint4* partial(const DecodeOwners& owners, int32_t chunk) const {
    const int64_t slot = decode_partial_slot(walk_.schedule, owners, chunk);
    return reinterpret_cast<uint4*>(a_.partials + slot * kDecodeRows * a_.unit_size) + thread_;
  }
  /// Four words a thread, threads side by side.
  template <int kN>
  __device__ void store_partial(const DecodeOwners& owners, int32_t chunk,
                                const Sum<kN>& sum) const {
    uint4* to = partial(owners, chunk);
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      uint4 words;
      memcpy(&words, sum + 4 * i, sizeof(words));
      to[i * kWarpgroup] = words;
    }
  }

  /// Whether the others of `count` warpgroups have been here before this one; then everything that
  /// they stored before is visible.
  __device__ bool came_last(uint32_t* counter, int32_t count) const {
    meet();
    if (thread_ == 0) {
      const bool last = acquire_release_add(counter, 1) == static_cast<uint32_t>(count) - 1;
      if (last) *counter = 0;
      memory_.notes[0] = last ? 1 : 0;
    }
    meet();
    const bool last = memory_.notes[0] != 0;
    meet();
    return last;
  }

  /// total = the first owner's sum + the other chunks in order, whoever computed them.
  template <int kN>
  __device__ void add_partials(const DecodeRun& run, const DecodeOwners& owners, Sum<kN>& total) {
    constexpr int kQuads = kN / 8;
    constexpr int kInFlight = 8 / kQuads;  // chunks: eight loads of a thread
    const DecodeSchedule& s = walk_.schedule;
    const int32_t first_unit = (run.block * s.row_blocks + run.row_block) * s.num_chunks;
    uint4 raw[kInFlight][kQuads];
    const auto load = [&](int32_t chunk, int c) {
      const uint4* from = partial(owners, chunk);
#pragma unroll
      for (int i = 0; i < kQuads; ++i) raw[c][i] = __ldcg(from + i * kWarpgroup);
    };
    load(0, 0);
    memcpy(total, raw[0], sizeof(total));
    const int32_t begin = s.begin(owners.first + 1) - first_unit;
#pragma unroll 1
    for (int32_t chunk = begin; chunk < s.num_chunks; chunk += kInFlight) {
#pragma unroll
      for (int c = 0; c < kInFlight; ++c) {
        if (chunk + c < s.num_chunks) load(chunk + c, c);
      }
#pragma unroll
      for (int c = 0; c < kInFlight; ++c) {
        if (chunk + c >= s.num_chunks) continue;
        Sum<kN> sum;
        memcpy(sum, raw[c], sizeof(sum));
#pragma unroll
        for (int j = 0; j < kN / 2; ++j) total[j] += sum[j];
      }
    }
  }

  // ---- results
  /// Outputs of a row block: 32 of a gated activation, else 64.
  __device__ int outputs() const { return gated_ ? kDecodeRows / 2 : kDecodeRows; }

  /// Scales, bias, activation, routing weight, from the registers of the sums: a thread has two
  /// rows of two tokens in every eight. One copy of the code, whatever it costs in moves: it runs
  /// once for each row block, cold.
  template <int kN>
  __device__ void finish(int32_t row_block, Sum<kN>& total) const {
    const RowFactors f = factors();
    if (!a_.activate && !a_.weight_before_bias && a_.output_type == DataType::kF32 &&
        a_.maxima.bits == nullptr) {
      return finish_plain<kN>(row_block, f, total);
    }
#pragma unroll 1
    for (int first = 0; first < num_rows_; first += 8) {
#pragma unroll 1
      for (int i = 0; i < 2 && first + i < num_rows_; ++i) {
        const int token = first + thread_ % 4 * 2 + i;
        const bool used = token < num_rows_;
        const DecodeRow row = memory_.table[used ? token : 0];
        float v[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          v[r] = static_cast<float>(total[2 * r]) * (f.scale[r] * row.scale);
          v[r] = a_.weight_before_bias ? v[r] * row.weight + f.bias[r] : v[r] + f.bias[r];
          total[2 * r] = total[2 * r + 1];
        }
        store_pair(row_block, row, used, v);
      }
      next_tokens<kN>(total);
    }
  }

  /// The end of down. With a short K that is most of what a row block costs.
  template <int kN>
  __device__ void finish_plain(int32_t row_block, const RowFactors& f, Sum<kN>& total) const {
    const int32_t column = row_block * kDecodeRows + first_row();
    float* output = static_cast<float*>(a_.output) + column;
#pragma unroll 1
    for (int first = thread_ % 4 * 2; first < num_rows_; first += 8) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (first + i >= num_rows_) break;
        const DecodeRow row = memory_.table[first + i];
        float* to = output + static_cast<int64_t>(row.pair) * a_.output_columns;
        float v[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          v[r] = static_cast<float>(total[i + 2 * r]) * (f.scale[r] * row.scale) + f.bias[r];
          v[r] *= row.weight;
        }
        // The number of outputs is a multiple of 16.
        if (Operand::kRowPairs) {
          if (column < a_.output_columns) *reinterpret_cast<float2*>(to) = float2{v[0], v[1]};
        } else {
          if (column < a_.output_columns) to[0] = v[0];
          if (column + kRowStep < a_.output_columns) to[kRowStep] = v[1];
        }
      }
      next_tokens<kN>(total);
    }
  }

  /// The next eight tokens come down: registers have no index at run time.
  template <int kN>
  __device__ static void next_tokens(Sum<kN>& total) {
#pragma unroll
    for (int i = 0; i + 4 < kN / 2; ++i) total[i] = total[i + 4];
  }

  /// The results of a thread's two rows for one token: one if they are gate and up.
  __device__ void store_pair(int32_t row_block, const DecodeRow& row, bool used,
                             const float (&v)[2]) const {
    float gate = 0.0f, up = v[0];
    int32_t column = row_block * outputs() + first_row();
    if (gated_) {
      column -= first_row() - first_row() / 2;
      gate = v[0], up = v[1];
      if constexpr (!Operand::kRowPairs) {
        // Gate and up are four lanes apart. The thread of the gate row finishes the first pair,
        // that of the up row the second.
        const bool is_gate = thread_ / 4 % 2 == 0;
        const float other = __shfl_xor_sync(~0u, is_gate ? v[1] : v[0], 4);
        if (is_gate) {
          up = other;
        } else {
          gate = other;
          column += kRowStep / 2;
        }
      }
    }
#pragma unroll 1
    for (int r = 0; r < (gated_ ? 1 : 2); ++r) {
      float value = a_.activate ? apply_activation(a_.activation, gate, up) : up;
      if (!a_.weight_before_bias) value *= row.weight;
      const bool exists = used && column < a_.output_columns;
      if (a_.maxima.bits != nullptr) value = note_maximum(row, column, exists, value);
      if (exists) {
        store_one(a_.output, a_.output_type,
                  static_cast<int64_t>(row.pair) * a_.output_columns + column, value);
      }
      up = v[1];
      column += kRowStep;
    }
  }

  /// The value as it will be rounded. Lanes with one token have neighbouring columns of one group.
  __device__ float note_maximum(const DecodeRow& row, int32_t column, bool exists,
                                float value) const {
    if (exists && a_.rounded_channels != nullptr) {
      value = flushed_product(
          value, a_.rounded_channels[static_cast<int64_t>(expert_) * a_.output_columns + column]);
    }
    uint32_t bits = exists ? __float_as_uint(value) & 0x7fffffffu : 0;
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) {
      bits = max(bits, __shfl_xor_sync(~0u, bits, lanes));
    }
    if (exists && thread_ % 32 < 4) {
      const int32_t group = a_.maxima.groups == 1 ? 0 : column / 128;
      atomicMax(a_.maxima.bits + row.pair * a_.maxima.groups + group, bits);
    }
    return value;
  }
  /// Rounds the group of columns that this row block belongs to, if it was the last missing one.
  __device__ void round_finished_group(int32_t row_block) const {
    const RoundedRows& to = a_.rounded;
    const int32_t group_columns = to.columns_of_group();
    const int32_t per_group = ceil_div(group_columns, outputs());
    const int32_t group = row_block / per_group;
    const int32_t groups = to.groups();
    const int32_t in_group = min(per_group, walk_.schedule.row_blocks - group * per_group);
    if (!came_last(a_.rounded_counters + block_ * groups + group, in_group)) return;
    const float* channels =
        a_.rounded_channels == nullptr
            ? nullptr
            : a_.rounded_channels + static_cast<int64_t>(expert_) * to.num_columns;
    // A warp per row, or all warps of them for rows that would keep one busy.
    const auto barrier = [this] { meet(); };
    const int warps = group_columns <= 1024 ? 1 : kWarpgroup / 32;
    const RoundingTeam<decltype(barrier)> team{thread_ % (warps * 32), warps,
                                               reinterpret_cast<float*>(memory_.notes), barrier};
    for (int row = thread_ / (warps * 32); row < num_rows_; row += kWarpgroup / 32 / warps) {
      round_group(to, a_.output, a_.output_type, memory_.table[row].pair, group, channels, team);
    }
  }

  const DecodeParams<Operand>& p_;
  const DecodeArgs& a_;
  const LaneMemory& memory_;
  const int thread_;
  const bool gated_;
  DecodeWalk walk_;
  int32_t block_ = -1, expert_ = 0;
  int32_t row_ = -1;  ///< of the input: this thread's of the block, or -1
  int32_t factors_at_ = 0;
  int num_rows_ = 0;
  bool scales_known_ = false;
};

// ---- the kernel

/// Consumers, then the producers' warpgroups, which give registers to them.
template <int kN>
struct DecodeThreads {
  static constexpr int kLanes = decode_lanes(kN);
  static constexpr int kConsumers = kLanes * kWarpgroup;
  static constexpr int kProducers = align_up(kLanes * 2 * 32, kWarpgroup);
  static constexpr int kAll = kConsumers + kProducers;
  static constexpr int kAtStart = 65536 / kAll / 8 * 8;
  static constexpr int kProducerRegisters = kN <= 16 ? 40 : 56;  // addresses of rows
  static constexpr int kConsumerRegisters =
      std::min((kAll * kAtStart - kProducers * kProducerRegisters) / kConsumers / 8 * 8, 232);
};

template <class Operand, int kN>
__global__ void __launch_bounds__(DecodeThreads<kN>::kAll, 1)
    decode_kernel(const __grid_constant__ DecodeParams<Operand> p) {
  extern __shared__ __align__(1024) char shared_memory[];
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  using Threads = DecodeThreads<kN>;
  constexpr int kLanes = Threads::kLanes;
  constexpr int kConsumerWarps = kLanes * 4;
  if (threadIdx.x == 0) {
    auto* barriers = reinterpret_cast<uint64_t*>(shared_memory + p.shared.barriers);
    for (int i = 0; i < kLanes * p.shared.slots * 2; ++i) {
      // Full: the announcement of weights and 32 threads' tokens. Empty: four warps.
      barrier_init(barriers + i, i / p.shared.slots % 2 == 0 ? 33 : 4);
    }
    fence_barrier_init();
  }
  __syncthreads();
  const int lane = warp < kConsumerWarps ? warp / 4 : (warp - kConsumerWarps) / 2;
  const LaneMemory memory(shared_memory, p.shared, lane, p.args.unit_size);
  if (warp >= kConsumerWarps) {
    give_registers<Threads::kProducerRegisters>();
    if (lane >= kLanes) return;
    if (warp % 2 != 0) {
      bring_tokens<Operand, kN>(p, memory, lane);
    } else {
      bring_weights(p, memory, lane);
    }
  } else {
    take_registers<Threads::kConsumerRegisters>();
    if (!p.args.lists_ready) wait_for_previous_kernel();
    Consumer<Operand> consumer(p, memory, lane);
    if (p.args.lists_ready) wait_for_previous_kernel();
    // Not before: the next kernel may rely on everything that this one waited for.
    let_next_kernel_start();
    consumer.template run<kN>();
  }
}

inline constexpr int32_t kSharedBytes = 227 * 1024;

/// For blocks of kN rows.
template <class Operand, int kN>
void launch_decode_tile(const typename Operand::Args& weights, const DecodeArgs& args, int num_ctas,
                        Stream stream) {
  constexpr int32_t kLanes = decode_lanes(kN);
  const DecodeParams<Operand> params{
      .weights = weights,
      .args = args,
      .shared =
          decode_shared(kLanes, Operand::kStepBytes, Operand::kTokenBlocks,
                        scales_per_step<Operand>(args.unit_size), args.unit_size, kSharedBytes),
      .lanes = kLanes,
      .row_blocks = ceil_div(args.num_rows, kDecodeRows),
      .num_chunks = args.steps.num_chunks()};
  launch(decode_kernel<Operand, kN>,
         {.grid = static_cast<unsigned>(num_ctas),
          .block = DecodeThreads<kN>::kAll,
          .shared_bytes = params.shared.bytes,
          .overlap_previous = true},
         static_cast<cudaStream_t>(stream.handle), params);
}

template <class Operand>
void launch_decode(const typename Operand::Args& weights, const DecodeArgs& args, int num_ctas,
                   Stream stream) {
  switch (args.unit_size) {
    case 8: return launch_decode_tile<Operand, 8>(weights, args, num_ctas, stream);
    case 16: return launch_decode_tile<Operand, 16>(weights, args, num_ctas, stream);
    case 32: return launch_decode_tile<Operand, 32>(weights, args, num_ctas, stream);
    case kDecodeMaxUnit: return launch_decode_tile<Operand, 64>(weights, args, num_ctas, stream);
    default: throw Error(ErrorCode::kInternal, "no decode kernel for these blocks of rows");
  }
}

}  // namespace switchyard::cuda::sm90
