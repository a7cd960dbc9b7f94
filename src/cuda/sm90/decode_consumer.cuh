#pragma once
// The consumer of a lane of a decode kernel: one warpgroup, from the ring to the stored results.

#include "core/activation.h"
#include "cuda/sm90/decode_lane.cuh"
#include "cuda/sm90/decode_round.cuh"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda::sm90 {

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

}  // namespace switchyard::cuda::sm90
