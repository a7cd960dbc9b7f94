#pragma once
// GEMMs of few rows per expert: weights on the 64 rows of wgmma, tokens on its N columns, at the
// speed of a plain read of the weights (core/decode_schedule.h says how they are divided).
//
// A CTA has kDecodeLanes lanes. A lane is a consumer warpgroup, a producer warp and a ring: slots
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
//     // The warpgroup: sum (+)= weights . tokens^T, finished on return (all reads of the slot
//     too). template <int kN> static void multiply(const Args&, const Step&, bool accumulate, Word
//     (&sum)[kN / 2]);
//   };
//
// Scales per row (weights) and per row (tokens) are applied after the sum. Instantiate with
// launch_decode<Operand>.

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
};

inline constexpr int kWarpgroup = 128;
inline constexpr int kDecodeThreads = kDecodeLanes * (kWarpgroup + 32);

template <class Operand>
constexpr int scales_per_step(int unit_size) {
  return Operand::kBlockScales ? Operand::kTokenBlocks * (unit_size + 2) : 0;
}

/// Places of one lane in shared memory.
template <class Operand>
struct LaneMemory {
  char* ring;
  float* scales;
  float* tile;
  struct Row {
    int32_t pair;
    float weight, scale;
  } * table;  ///< of the block's rows
  uint64_t* full;
  uint64_t* empty;

  __device__ LaneMemory(char* memory, const DecodeShared& s, int lane)
      : ring(memory + lane * s.slots * s.slot_bytes),
        scales(reinterpret_cast<float*>(memory + s.scales + lane * s.slots * s.scale_bytes)),
        tile(reinterpret_cast<float*>(memory + s.tiles + lane * s.tile_bytes)),
        table(reinterpret_cast<Row*>(memory + s.tables + lane * s.table_bytes)),
        full(reinterpret_cast<uint64_t*>(memory + s.barriers) + lane * s.slots * 2),
        empty(full + s.slots) {}
};

__device__ inline DecodeSchedule schedule_of(const DecodeArgs& a) {
  return {.num_blocks = a.num_valid_ids[0] / a.unit_size,
          .row_blocks = ceil_div(a.num_rows, kDecodeRows),
          .num_chunks = a.steps.num_chunks(),
          .num_lanes = static_cast<int32_t>(gridDim.x) * kDecodeLanes};
}

/// Row of the input that holds the tokens of a sorted row, -1 for padding.
__device__ inline int32_t token_row(const DecodeArgs& a, int32_t packed) {
  const int32_t token = packed_token(packed);
  if (token >= a.num_tokens) return -1;
  return a.tokens_per_pair ? token * a.top_k + packed_slot(packed) : token;
}

// ---- producer: one warp

/// Brings the tokens of a block, 16 bytes a thread. Rows of padding stay as they are: a column of
/// the product depends on no other.
template <class Operand>
class TokenLoader {
 public:
  __device__ explicit TokenLoader(const DecodeArgs& args) : a_(args) {}

  __device__ void load(const LaneMemory<Operand>& memory, const DecodeShared& shared,
                       const DecodeWalk& walk) {
    if (walk.block != block_) enter_block(walk.block);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const uint32_t to = shared_address(memory.ring + walk.slot * shared.slot_bytes) +
                        static_cast<uint32_t>(shared.slot_bytes - shared.token_bytes);
    const int32_t column = walk.k_step() * Operand::kTokenBlocks * 128 + lane % 8 * 16;
    for (int first = 0; first < num_rows_; first += 4) {
      const int row = first + lane / 8;
      const int32_t source = __shfl_sync(~0u, row < 32 ? rows_[0] : rows_[1], row % 32);
      if (row >= num_rows_) continue;
      const char* from = static_cast<const char*>(a_.tokens) + source * a_.token_row_bytes + column;
      const uint32_t at = to + static_cast<uint32_t>(row * 128 + ((lane ^ row) % 8) * 16);
#pragma unroll
      for (int b = 0; b < Operand::kTokenBlocks; ++b) {
        async_copy_16(at + static_cast<uint32_t>(b * a_.unit_size * 128), from + b * 128,
                      column + b * 128 < a_.token_bytes);
      }
    }
    if constexpr (Operand::kBlockScales) load_scales(memory, shared, walk);
    async_copy_arrive(memory.full + walk.slot);
  }

 private:
  __device__ void enter_block(int32_t block) {
    block_ = block;
    expert_ = a_.sorted_expert_ids[block];
    const int lane = static_cast<int>(threadIdx.x) % 32;
    num_rows_ = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = lane + 32 * i;
      rows_[i] = row < a_.unit_size ? token_row(a_, a_.sorted_ids[block * a_.unit_size + row]) : -1;
      num_rows_ += __popc(__ballot_sync(~0u, rows_[i] >= 0));
    }
  }

  /// Scales of the step's 128-column blocks: one per token, then those of the gate and up rows.
  __device__ void load_scales(const LaneMemory<Operand>& memory, const DecodeShared& shared,
                              const DecodeWalk& walk) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int width = a_.unit_size + 2;
    const uint32_t to =
        shared_address(memory.scales) + static_cast<uint32_t>(walk.slot * shared.scale_bytes);
    const int32_t first_block = walk.k_step() * Operand::kTokenBlocks;
    const float* row_scales = a_.row_scales + (static_cast<int64_t>(expert_) * a_.num_rows +
                                               walk.row_block * kDecodeRows) *
                                                  a_.row_scale_groups;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = lane + 32 * i;
      if (row >= num_rows_) continue;
      const bool per_block = a_.token_scale_groups > 1;
      const float* from = a_.token_scales + static_cast<int64_t>(rows_[i]) * a_.token_scale_groups;
      for (int b = 0; b < Operand::kTokenBlocks; ++b) {
        const int32_t group = per_block ? first_block + b : 0;
        async_copy_4(to + static_cast<uint32_t>(b * width + row) * 4, from + group,
                     !per_block || group < a_.token_scale_groups);
      }
    }
    if (lane < 2 * Operand::kTokenBlocks) {
      const int b = lane / 2;
      const int32_t group = first_block + b;
      async_copy_4(to + static_cast<uint32_t>(b * width + a_.unit_size + lane % 2) * 4,
                   row_scales + lane % 2 * a_.row_scale_groups + group,
                   group < a_.row_scale_groups);
    }
  }

  const DecodeArgs& a_;
  int32_t block_ = -1, expert_ = 0;
  int32_t rows_[2]{};
  int num_rows_ = 0;
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

template <class Operand>
__device__ void produce(const DecodeParams<Operand>& p, const LaneMemory<Operand>& memory,
                        int lane_id) {
  const DecodeArgs& a = p.args;
  const bool leader = threadIdx.x % 32 == 0;
  if (!a.lists_ready) wait_for_previous_kernel();
  DecodeWalk ahead(schedule_of(a), a.steps, lane_id, p.shared.slots);
  int32_t block = -1, expert = 0;
  const auto bring_weights = [&] {
    if (leader) {
      if (ahead.block != block) {
        block = ahead.block;
        expert = a.sorted_expert_ids[block];
      }
      uint64_t* full = memory.full + ahead.slot;
      barrier_expect(full, step_bytes<Operand>(p.weights, ahead.k_step()));
      Operand::load(p.weights, memory.ring + ahead.slot * p.shared.slot_bytes, expert,
                    ahead.row_block, ahead.k_step(), full);
    }
    ahead.advance();
  };
  DecodeWalk walk = ahead;
  int primed = 0;
  if (a.lists_ready) {
    for (; primed < p.shared.slots && !ahead.done(); ++primed) bring_weights();
    wait_for_previous_kernel();
  }
  TokenLoader<Operand> tokens(a);
  for (; !walk.done(); walk.advance()) {
    if (primed > 0) {
      --primed;
    } else {
      barrier_wait(memory.empty + walk.slot, walk.phase ^ 1);
      bring_weights();
    }
    tokens.load(memory, p.shared, walk);
  }
}

// ---- consumer: one warpgroup

/// Factors of the one or two weight rows whose results a thread finishes; loaded before the
/// multiplication, used after it.
struct RowFactors {
  float scale[2], bias[2];
};

template <class Operand>
class Consumer {
 public:
  __device__ Consumer(const DecodeParams<Operand>& p, const LaneMemory<Operand>& memory,
                      int lane_id)
      : p_(p),
        a_(p.args),
        memory_(memory),
        lane_id_(lane_id),
        thread_(static_cast<int>(threadIdx.x) % kWarpgroup),
        gated_(p.args.activate && p.args.activation.gated()),
        walk_(schedule_of(p.args), p.args.steps, lane_id, p.shared.slots) {}

  template <int kMaxN>
  __device__ void run() {
    while (!walk_.done()) {
      const DecodeRun run = walk_.run();
      if (run.block != block_) enter_block(run.block);
      const RowFactors factors = load_factors(run.row_block);
      const auto row_block = [&]<int kN>() { this->template row_block<kN>(run, factors); };
      if (kMaxN == 8 || num_rows_ <= 8) {
        row_block.template operator()<8>();
      } else if (kMaxN == 16 || num_rows_ <= 16) {
        if constexpr (kMaxN >= 16) row_block.template operator()<16>();
      } else if (kMaxN == 32 || num_rows_ <= 32) {
        if constexpr (kMaxN >= 32) row_block.template operator()<32>();
      } else {
        if constexpr (kMaxN >= 64) row_block.template operator()<64>();
      }
    }
  }

 private:
  template <int kN>
  using Sum = Word<Operand>[kN / 2];

  __device__ void meet() const { named_barrier(1 + lane_id_ % kDecodeLanes, kWarpgroup); }

  __device__ void enter_block(int32_t block) {
    block_ = block;
    expert_ = a_.sorted_expert_ids[block];
    meet();  // everyone is done with the table of the last block
    bool used = false;
    if (thread_ < a_.unit_size) {
      const int32_t sorted_row = block * a_.unit_size + thread_;
      const int32_t packed = a_.sorted_ids[sorted_row];
      const int32_t row = token_row(a_, packed);
      used = row >= 0;
      if (used) {
        auto& entry = memory_.table[thread_];
        entry.pair = packed_token(packed) * a_.top_k + packed_slot(packed);
        entry.weight = a_.sorted_weights == nullptr ? 1.0f : a_.sorted_weights[sorted_row];
        entry.scale = Operand::kBlockScales || a_.token_scales == nullptr
                          ? 1.0f
                          : a_.token_scales[row * a_.token_scale_groups];
      }
    }
    // Rows of a block come first, so the count is where they end. The tile is free here.
    auto* counts = reinterpret_cast<int32_t*>(memory_.tile);
    const int count = __popc(__ballot_sync(~0u, used));
    if (thread_ % 32 == 0) counts[thread_ / 32] = count;
    meet();
    num_rows_ = counts[0] + counts[1];
    meet();
  }

  /// Outputs of a row block: 32 of a gated activation, else 64; this thread has one of them for
  /// every kWarpgroup / outputs-th token.
  __device__ int outputs() const { return gated_ ? kDecodeRows / 2 : kDecodeRows; }

  __device__ RowFactors load_factors(int32_t row_block) const {
    RowFactors f{{1.0f, 1.0f}, {0.0f, 0.0f}};
    const int per_output = gated_ ? 2 : 1;
    const int32_t row = row_block * kDecodeRows + thread_ % outputs() * per_output;
    for (int i = 0; i < per_output; ++i) {
      if (row + i >= a_.num_rows) break;
      const int64_t at = static_cast<int64_t>(expert_) * a_.num_rows + row + i;
      if (!Operand::kBlockScales && a_.row_scales != nullptr) f.scale[i] = a_.row_scales[at];
      if (a_.bias != nullptr) f.bias[i] = a_.bias[at];
    }
    return f;
  }

  /// The chunks of one run: the row block's results if this lane has them all or comes last.
  template <int kN>
  __device__ void row_block(const DecodeRun& run, const RowFactors& factors) {
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
      if (!came_last(a_.counters + owners.first, owners.count())) return;
      add_partials<kN>(run, owners, total);
    }
#pragma unroll
    for (int first = 0; first < kN; first += kDecodeTileTokens) {
      store_tile<kN>(first, total);
      meet();
      const int count = min(num_rows_ - first, kDecodeTileTokens);
      if (count > 0) finish(run.row_block, first, count, factors);
      meet();
    }
    if (a_.rounded.codes != nullptr) round_finished_group(run.row_block);
  }

  template <int kN>
  __device__ void multiply_chunk(int32_t chunk, Sum<kN>& sum) {
    const int32_t num_steps = a_.steps.steps_of(chunk);
    for (int32_t step = 0; step < num_steps; ++step) {
      const int slot = walk_.slot;
      barrier_wait(memory_.full + slot, walk_.phase);
      fence_async_shared();  // tokens came by cp.async
      const char* weights = memory_.ring + slot * p_.shared.slot_bytes;
      Operand::template multiply<kN>(
          p_.weights,
          {.weights = weights,
           .tokens = shared_address(weights) +
                     static_cast<uint32_t>(p_.shared.slot_bytes - p_.shared.token_bytes),
           .token_block_bytes = static_cast<uint32_t>(a_.unit_size) * 128,
           .scales = memory_.scales + slot * (p_.shared.scale_bytes / 4),
           .unit_size = a_.unit_size,
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

  /// Whether all but this warpgroup of `count` have arrived; then everything they stored before is
  /// visible. The tile is free before and after.
  __device__ bool came_last(uint32_t* counter, int32_t count) const {
    meet();
    auto* answer = reinterpret_cast<int32_t*>(memory_.tile);
    if (thread_ == 0) {
      const bool last = acquire_release_add(counter, 1) == static_cast<uint32_t>(count) - 1;
      if (last) *counter = 0;
      *answer = last ? 1 : 0;
    }
    meet();
    const bool last = *answer != 0;
    meet();
    return last;
  }

  /// total = the first owner's sum + the other chunks in order, whoever computed them.
  template <int kN>
  __device__ void add_partials(const DecodeRun& run, const DecodeOwners& owners, Sum<kN>& total) {
    constexpr int kQuads = kN / 8;
    constexpr int kInFlight = 8 / kQuads;  // chunks: eight loads of a thread
    const DecodeSchedule& s = walk_.schedule;
    const int64_t first_unit =
        (static_cast<int64_t>(run.block) * s.row_blocks + run.row_block) * s.num_chunks;
    uint4 raw[kInFlight][kQuads];
    const auto load = [&](int32_t chunk, int c) {
      const uint4* from = partial(owners, chunk);
#pragma unroll
      for (int i = 0; i < kQuads; ++i) raw[c][i] = __ldcg(from + i * kWarpgroup);
    };
    load(0, 0);
    memcpy(total, raw[0], sizeof(total));
    const auto begin = static_cast<int32_t>(s.begin(owners.first + 1) - first_unit);
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
  /// tile[token - first][row] of kDecodeTileTokens tokens.
  template <int kN>
  __device__ void store_tile(int first, const Sum<kN>& total) const {
    const int row = thread_ / 32 * 16 + thread_ % 32 / 4 * (Operand::kRowPairs ? 2 : 1);
    const int token = thread_ % 4 * 2;
    float* to = memory_.tile + token * kDecodeTilePitch + row;
    asm volatile("" : "+l"(to));  // else the compiler keeps all addresses over the whole loop
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      const int at = i / 4 * 8 + i % 2 - first;
      if (at < 0 || at >= kDecodeTileTokens) continue;
      to[at * kDecodeTilePitch + i / 2 % 2 * (Operand::kRowPairs ? 1 : 8)] =
          static_cast<float>(total[i]);
    }
  }

  __device__ void finish(int32_t row_block, int first, int count, const RowFactors& f) const {
    const int width = outputs();
    const int output = thread_ % width;
    const int32_t column = row_block * width + output;
    if (column >= a_.output_columns) return;
    for (int token = thread_ / width; token < count; token += kWarpgroup / width) {
      const auto& entry = memory_.table[first + token];
      const float* sums = memory_.tile + token * kDecodeTilePitch;
      const auto value = [&](int row, int i) {
        const float v = sums[row] * (f.scale[i] * entry.scale);
        return a_.weight_before_bias ? v * entry.weight + f.bias[i] : v + f.bias[i];
      };
      float result;
      if (gated_) {
        result = apply_activation(a_.activation, value(2 * output, 0), value(2 * output + 1, 1));
      } else {
        result = value(output, 0);
        if (a_.activate) result = apply_activation(a_.activation, 0.0f, result);
      }
      if (!a_.weight_before_bias) result *= entry.weight;
      store_one(a_.output, a_.output_type,
                static_cast<int64_t>(entry.pair) * a_.output_columns + column, result);
    }
  }

  /// Rounds the group of columns that this row block belongs to, if it was the last missing one.
  __device__ void round_finished_group(int32_t row_block) const {
    const RoundedRows& to = a_.rounded;
    const int32_t group_columns = to.group_columns == 0 ? to.num_columns : to.group_columns;
    const int32_t per_group = ceil_div(group_columns, outputs());
    const int32_t group = row_block / per_group;
    const int32_t groups = ceil_div(to.num_columns, group_columns);
    const int32_t in_group = min(per_group, walk_.schedule.row_blocks - group * per_group);
    if (!came_last(a_.rounded_counters + block_ * groups + group, in_group)) return;
    const float* channels =
        a_.rounded_channels == nullptr
            ? nullptr
            : a_.rounded_channels + static_cast<int64_t>(expert_) * to.num_columns;
    for (int row = thread_ / 32; row < num_rows_; row += kWarpgroup / 32) {
      round_group(to, a_.output, a_.output_type, memory_.table[row].pair, group, channels);
    }
  }

  const DecodeParams<Operand>& p_;
  const DecodeArgs& a_;
  const LaneMemory<Operand>& memory_;
  const int lane_id_;
  const int thread_;
  const bool gated_;
  DecodeWalk walk_;
  int32_t block_ = -1, expert_ = 0;
  int num_rows_ = 0;
};

// ---- the kernel

/// kMaxN = 8: small enough that a CTA of the next kernel fits beside it and streams its weights.
template <class Operand, int kMaxN>
__global__ void __launch_bounds__(kDecodeThreads, kMaxN == 8 ? 2 : 1)
    decode_kernel(const __grid_constant__ DecodeParams<Operand> p) {
  extern __shared__ __align__(1024) char shared_memory[];
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  constexpr int kConsumerWarps = kDecodeLanes * 4;
  if (threadIdx.x == 0) {
    auto* barriers = reinterpret_cast<uint64_t*>(shared_memory + p.shared.barriers);
    for (int i = 0; i < kDecodeLanes * p.shared.slots * 2; ++i) {
      // Full: the leader's announcement and every producer thread's copies. Empty: four warps.
      barrier_init(barriers + i, i / p.shared.slots % 2 == 0 ? 33 : 4);
    }
    fence_barrier_init();
  }
  __syncthreads();
  const int lane = warp < kConsumerWarps ? warp / 4 : warp - kConsumerWarps;
  const int lane_id = static_cast<int>(blockIdx.x) * kDecodeLanes + lane;
  const LaneMemory<Operand> memory(shared_memory, p.shared, lane);
  if (warp >= kConsumerWarps) return produce(p, memory, lane_id);
  wait_for_previous_kernel();
  // Not before: the next kernel may rely on everything that this one waited for.
  let_next_kernel_start();
  Consumer<Operand>(p, memory, lane_id).template run<kMaxN>();
}

/// 227 KB of an SM, or half of it beside another CTA (1 KB of each is the system's).
inline constexpr int32_t kSharedAlone = 227 * 1024;
inline constexpr int32_t kSharedBeside = 113 * 1024;

template <class Operand>
void launch_decode(const typename Operand::Args& weights, const DecodeArgs& args, int num_ctas,
                   Stream stream) {
  const bool small = args.unit_size <= 8;
  const DecodeParams<Operand> params{
      .weights = weights,
      .args = args,
      .shared = decode_shared(kDecodeLanes, Operand::kStepBytes, Operand::kTokenBlocks,
                              scales_per_step<Operand>(args.unit_size), args.unit_size,
                              small ? kSharedBeside : kSharedAlone)};
  launch(small ? decode_kernel<Operand, 8> : decode_kernel<Operand, kDecodeMaxUnit>,
         {.grid = static_cast<unsigned>(num_ctas),
          .block = kDecodeThreads,
          .shared_bytes = params.shared.bytes,
          .overlap_previous = true},
         static_cast<cudaStream_t>(stream.handle), params);
}

}  // namespace switchyard::cuda::sm90
