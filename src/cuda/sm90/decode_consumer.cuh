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

/// Results that need only factors.
SWITCHYARD_HOST_DEVICE inline bool is_plain(const DecodeArgs& a) {
  return !a.activate && !a.weight_before_bias && a.output_type == DataType::kF32 &&
         a.maxima.bits == nullptr;
}
/// Such results of a K that is one whole step.
template <class Operand>
bool is_short(const typename Operand::Args& weights, const DecodeArgs& a) {
  if constexpr (requires { Operand::tail_blocks(weights); }) {
    if (Operand::tail_blocks(weights) > 0) return false;
  }
  return a.steps.num_steps == 1 && is_plain(a);
}

template <class Operand>
class Consumer {
 public:
  /// member: of the lane's team. It has the row blocks team * strip + member.
  __device__ Consumer(const DecodeParams<Operand>& p, const LaneMemory& memory,
                      const DecodeWalk& walk, int member)
      : p_(p),
        a_(p.args),
        memory_(memory),
        member_(member),
        thread_(threadIdx.x % kWarpgroup),
        walk_(walk) {}

  /// Before run() and run_short(): reads the lists alone.
  __device__ void begin() {
    if (!walk_.done()) read_rows(walk_.block);
  }

  /// kN: rows of a block, whether they exist or not.
  template <int kN>
  __device__ void run() {
    if (!walk_.done()) read_scales();
    while (!walk_.done()) {
      const DecodeRun run = walk_.run();
      if (run.block != block_) {
        read_rows(run.block);
        read_scales();
      }
      row_block<kN>(run);
      walk_.pass(run.chunk_end - run.chunk_begin);
      if (++factors_at_ == p_.shared.factor_strips) factors_at_ = 0;
    }
  }

  /// The same where is_short(): a row block's end takes as long as its products, so nothing is
  /// decided there that a block of rows has in common.
  template <int kN>
  __device__ void run_short() {
    if (walk_.done()) return;
    read_scales();
    TokenOutput tokens[kN / 4];
    token_outputs<kN>(tokens);
    for (;;) {
      Sum<kN> sum;
      multiply_steps<kN>(1, sum);
      const int32_t row_block = walk_.strip * p_.shared.team + member_;
      const int32_t column = row_block * kDecodeRows;
      if (column + first_row() < a_.output_columns) {
        const RowFactors f = factors();
#pragma unroll
        for (int i = 0; i < kN / 4; ++i) {
          if (tokens[i].to == nullptr) continue;
          store_rows(tokens[i].to + column * 4, f, tokens[i].scale, tokens[i].weight,
                     sum[i / 2 * 4 + i % 2], sum[i / 2 * 4 + i % 2 + 2]);
        }
      }
      if (++factors_at_ == p_.shared.factor_strips) factors_at_ = 0;
      walk_.pass(1);
      if (walk_.done()) return;
      if (walk_.block == block_) continue;
      read_rows(walk_.block);
      read_scales();
      token_outputs<kN>(tokens);
    }
  }

  /// A single token's blocks, whose results are summed in order: DecodeForm::kSum. Nothing about
  /// its rows has to be read but their factors.
  template <int kN>
  __device__ void run_sum(int lane, int32_t strip) {
    auto* sums = reinterpret_cast<float*>(memory_.sums + kDecodeSumBarrierBytes);
    const bool adds = lane == 0 && blockIdx.x % static_cast<uint32_t>(p_.sum_ctas) == 0;
    const int32_t column = strip * kDecodeRows + static_cast<int32_t>(thread_);
    const bool has_column = adds && thread_ < kDecodeRows && column < a_.output_columns;
    float result = 0.0f;
    if (has_column && a_.sum.addend != nullptr) result = a_.sum.addend[column];
    TokenFactors next = walk_.done() ? TokenFactors{} : token_factors(walk_.block);
    while (!walk_.done()) {
      const int32_t block = walk_.block;
      const TokenFactors row = next;
      if (walk_.left > p_.num_chunks) next = token_factors(block + 1);
      Sum<kN> total{};
      for (int32_t chunk = 0; chunk < p_.num_chunks; ++chunk) {
        Sum<kN> sum;
        multiply_chunk<kN>(chunk, sum);
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) total[i] += sum[i];
      }
      if (first_token() == 0) {
        float v[2];
        row_values(factors(), row.scale, row.weight, total[0], total[2], v);
        give_values(sums + (block * kSumThreads + static_cast<int32_t>(thread_ / 4)) * 4, v);
      }
      walk_.pass(p_.num_chunks);
      if (++factors_at_ == p_.shared.factor_strips) factors_at_ = 0;
    }
    if (!wait_for_values(adds) || !has_column) return;
    const float* from = sums + sum_at(static_cast<int32_t>(thread_));
#pragma unroll 4
    for (int32_t k = 0; k < a_.top_k; ++k) result += from[k * kSumThreads * 4];
    store_one(a_.sum.output, a_.sum.output_type, column, result);
  }

 private:
  template <int kN>
  using Sum = Word<Operand>[kN / 2];

  __device__ void meet() const {
    named_barrier(1 + static_cast<int>(threadIdx.x) / kWarpgroup, kWarpgroup);
  }
  __device__ bool gated() const { return a_.activate && a_.activation.gated(); }

  /// What the lists say of a block; its scales may not be there yet.
  __device__ void read_rows(int32_t block) {
    block_ = block;
    meet();  // everyone is done with the table of the last block
    bool exists = false;
    const auto at = static_cast<int32_t>(thread_);
    if (at < a_.unit_size) {
      const int32_t sorted_row = block * a_.unit_size + at;
      const int32_t packed = a_.sorted_ids[sorted_row];
      const int32_t input = token_row(a_, packed);
      exists = input >= 0;
      if (exists) {
        memory_.table[thread_] = {
            .pair = packed_token(packed) * a_.top_k + packed_slot(packed),
            .input = input,
            .weight = a_.sorted_weights == nullptr ? 1.0f : a_.sorted_weights[sorted_row],
            .scale = 1.0f};
      }
    }
    // Rows of a block come first, so the count is where they end.
    const int count = __popc(__ballot_sync(~0u, exists));
    if (thread_ % 32 == 0) memory_.notes[thread_ / 32] = count;
    meet();
    num_rows_ = memory_.notes[0] + memory_.notes[1];
    meet();
  }
  /// Block scales are applied while adding up.
  __device__ void read_scales() const {
    if (!Operand::kBlockScales && static_cast<int32_t>(thread_) < num_rows_) {
      DecodeRow& row = memory_.table[thread_];
      row.scale = token_scale(row.input);
    }
    meet();
  }

  struct TokenFactors {
    float scale = 1.0f, weight = 1.0f;
  };
  /// Of a single token's block.
  __device__ TokenFactors token_factors(int32_t block) const {
    TokenFactors f;
    if (a_.sorted_weights != nullptr) f.weight = a_.sorted_weights[block * a_.unit_size];
    if constexpr (!Operand::kBlockScales) f.scale = token_scale(a_.tokens_per_pair ? block : 0);
    return f;
  }
  /// Of an input row.
  __device__ float token_scale(int32_t input) const {
    if (a_.token_maxima.bits != nullptr) {
      return block_scale({.format = a_.token_maxima.format}, __ldcg(a_.token_maxima.bits + input))
          .stored;
    }
    return a_.token_scales == nullptr ? 1.0f : a_.token_scales[input * a_.token_scale_groups];
  }

  /// Of the thread's two rows in a row block: the first, and how far away the other is.
  static constexpr int kRowStep = Operand::kRowPairs ? 1 : 8;
  __device__ int first_row() const {
    return static_cast<int>(thread_ / 32 * 16 + thread_ % 32 / 4 * (Operand::kRowPairs ? 2 : 1));
  }

  /// Of every eight, the first of the thread's two.
  __device__ int first_token() const { return static_cast<int>(thread_ % 4 * 2); }

  __device__ RowFactors factors() const {
    RowFactors f{{1.0f, 1.0f}, {0.0f, 0.0f}};
    const float* from = memory_.factors + factors_at_ * (p_.shared.factor_bytes / 4) +
                        member_ * kDecodeRows + first_row();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (per_row_scales<Operand>(a_) != nullptr) f.scale[i] = from[i * kRowStep];
      if (a_.bias != nullptr) f.bias[i] = from[p_.shared.team * kDecodeRows + i * kRowStep];
    }
    return f;
  }

  /// Where the thread's first row of row block 0 goes for one token, and the token's factors.
  struct TokenOutput {
    char* to;  ///< or null
    float scale, weight;
  };
  template <int kN>
  __device__ void token_outputs(TokenOutput (&tokens)[kN / 4]) const {
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
      const int token = i / 2 * 8 + first_token() + i % 2;
      const DecodeRow row = memory_.table[token];
      const int64_t first = static_cast<int64_t>(row.pair) * a_.output_columns + first_row();
      tokens[i] = {.to = token < num_rows_ ? static_cast<char*>(a_.output) + first * 4 : nullptr,
                   .scale = row.scale,
                   .weight = row.weight};
    }
  }
  __device__ static void row_values(const RowFactors& f, float scale, float weight,
                                    Word<Operand> first, Word<Operand> second, float (&v)[2]) {
    v[0] = static_cast<float>(first), v[1] = static_cast<float>(second);
#pragma unroll
    for (int r = 0; r < 2; ++r) v[r] = (v[r] * (f.scale[r] * scale) + f.bias[r]) * weight;
  }
  /// A thread's two rows for one token.
  __device__ static void store_rows(char* output, const RowFactors& f, float scale, float weight,
                                    Word<Operand> first, Word<Operand> second) {
    auto* to = reinterpret_cast<float*>(output);
    float v[2];
    row_values(f, scale, weight, first, second, v);
    if (Operand::kRowPairs) {
      *reinterpret_cast<float2*>(to) = float2{v[0], v[1]};
    } else {
      to[0] = v[0];
      to[kRowStep] = v[1];
    }
  }

  /// The chunks of one run, and the results if this lane has them all or comes last.
  template <int kN>
  __device__ void row_block(const DecodeRun& run) {
    const int32_t row_block = run.strip * p_.shared.team + member_;
    // The last strip of a matrix may have fewer row blocks than the team members.
    if (row_block >= p_.row_blocks) return skip(run);
    DecodeOwners owners;
    int32_t second = 0;  // owner's first chunk
    SharedSums shared{};
    if (!run.whole) {
      const DecodeSchedule& schedule = memory_.division->schedule;
      owners = schedule.owners(run);
      second = schedule.begin(owners.first + 1) -
               (run.block * p_.num_strips + run.strip) * p_.num_chunks;
      if (kN <= 8 && schedule.cluster_lanes > 0) shared = shared_sums(schedule, owners, run);
    }
    Sum<kN> total{};
    for (int32_t chunk = run.chunk_begin; chunk < run.chunk_end; ++chunk) {
      Sum<kN> sum;
      multiply_chunk<kN>(chunk, sum);
      if (run.chunk_begin == 0) {
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) total[i] += sum[i];
      } else if (kN <= 8 && shared.sum_bytes > 0) {
        share_sum<kN>(shared, chunk, sum);
      } else {
        store_partial<kN>(owners, chunk, sum);
      }
    }
    if (kN <= 8 && shared.sum_bytes > 0) {
      if (run.chunk_begin > 0) return;
      add_shared<kN>(shared, second, total);
    } else if (!run.whole) {
      if (run.chunk_begin == 0) store_partial<kN>(owners, 0, total);
      if (!came_last(a_.counters + own(owners.first), owners.count())) return;
      add_partials<kN>(owners, second, total);
    }
    finish<kN>(row_block, total);
  }
  __device__ void skip(const DecodeRun& run) {
    for (int32_t chunk = run.chunk_begin; chunk < run.chunk_end; ++chunk) {
      for (int32_t step = a_.steps.steps_of(chunk); step > 0; --step) {
        barrier_wait(memory_.full + walk_.slot, walk_.phase);
        leave_slot();
      }
    }
  }
  __device__ void leave_slot() {
    __syncwarp();
    if (thread_ % 32 == 0) barrier_arrive(memory_.empty + walk_.slot);
    walk_.next_slot();
  }

  template <int kN>
  __device__ void multiply_chunk(int32_t chunk, Sum<kN>& sum) {
    int32_t num_steps = a_.steps.steps_of(chunk);
    if constexpr (requires { Operand::tail_blocks(p_.weights); }) {
      // The end of K: a step of its own kind.
      const int tail = chunk + 1 == p_.num_chunks ? Operand::tail_blocks(p_.weights) : 0;
      if (tail > 0) --num_steps;
      multiply_steps<kN>(num_steps, sum);
      if (tail == 0) return;
      const Step step = next_step<kN>();
      Operand::template multiply_tail<kN>(p_.weights, step, tail, num_steps > 0, sum);
      leave_slot();
    } else {
      multiply_steps<kN>(num_steps, sum);
    }
  }
  template <int kN>
  __device__ void multiply_steps(int32_t num_steps, Sum<kN>& sum) {
    Operand::with_variant(p_.weights, [&](auto variant) {
      for (int32_t i = 0; i < num_steps; ++i) {
        const Step step = next_step<kN>();
        Operand::template multiply<kN, variant()>(step, i > 0, sum);
        leave_slot();
      }
    });
  }
  /// Waits for it.
  template <int kN>
  __device__ Step next_step() const {
    const char* at = memory_.ring + walk_.slot * p_.shared.slot_bytes;
    const auto tokens = static_cast<uint32_t>(p_.shared.slot_bytes - p_.shared.token_bytes);
    const float* scales = memory_.scales + walk_.slot * (p_.shared.scale_bytes / 4);
    const Step step{.weights = at + member_ * p_.shared.step_bytes,
                    // The same in all threads, as the compiler shall know: descriptors are in
                    // uniform registers.
                    .tokens = __shfl_sync(~0u, shared_address(at) + tokens, 0),
                    .token_block_bytes = kN * 128,
                    .scales = scales,
                    .row_scales = scales + kN + 2 * member_,
                    .scale_stride = scale_stride(kN)};
    barrier_wait(memory_.full + walk_.slot, walk_.phase);
    fence_async_shared();  // tokens came by cp.async
    return step;
  }

  // ---- strips that a cluster's lanes cut: the lane with chunk 0 finishes, the others send
  struct SharedSums {
    uint32_t address;   ///< of the strip's sums, in the cluster
    const char* local;  ///< the same of the lane that finishes
    int32_t sum_bytes;  ///< of a chunk, or 0
  };
  __device__ SharedSums shared_sums(const DecodeSchedule& s, const DecodeOwners& owners,
                                    const DecodeRun& run) const {
    const int32_t sum_bytes = decode_shared_sum_bytes(p_.shared.sum_pairs);
    const char* at = memory_.sums + decode_shared_place(s, owners, run) * sum_bytes;
    const int32_t rank = owners.first % s.cluster_lanes / p_.lanes;
    return {shared_address_in(at, static_cast<uint32_t>(rank)), at, sum_bytes};
  }
  /// Where in a chunk's sums the thread's are, or -1: its tokens do not exist.
  __device__ int32_t shared_at() const {
    const int32_t pairs = p_.shared.sum_pairs, pair = static_cast<int32_t>(thread_ % 4);
    return pair < pairs ? (static_cast<int32_t>(thread_ / 4) * pairs + pair) * 16 : -1;
  }
  template <int kN>
  __device__ void share_sum(const SharedSums& s, int32_t chunk, const Sum<kN>& sum) const {
    const int32_t at = shared_at();
    if (at < 0) return;
    uint4 words;
    memcpy(&words, sum, sizeof(words));
    cluster_store4(s.address + static_cast<uint32_t>(chunk * s.sum_bytes + at), words, s.address);
  }
  /// total += the chunks from `begin` on, in order.
  template <int kN>
  __device__ void add_shared(const SharedSums& s, int32_t begin, Sum<kN>& total) const {
    auto* barrier = reinterpret_cast<uint64_t*>(const_cast<char*>(s.local));
    if (thread_ == 0) {
      barrier_expect(barrier, static_cast<uint32_t>((p_.num_chunks - begin) * s.sum_bytes));
    }
    barrier_wait(barrier, 0);
    const int32_t at = shared_at();
    if (at < 0) return;
#pragma unroll 4
    for (int32_t chunk = begin; chunk < p_.num_chunks; ++chunk) {
      const auto words = *reinterpret_cast<const uint4*>(s.local + chunk * s.sum_bytes + at);
      Word<Operand> sum[4];
      memcpy(sum, &words, sizeof(sum));
#pragma unroll
      for (int j = 0; j < 4; ++j) total[j] += sum[j];
    }
  }

  // ---- strips of a single token, whose choices are summed by the first lane of their CTAs
  // A thread of four has the token's results: 16 bytes, of which it has two words.
  static constexpr int kSumThreads = kDecodeRows / 2;
  __device__ static int32_t sum_at(int32_t row) {
    return Operand::kRowPairs ? row / 2 * 4 + row % 2 : (row / 16 * 8 + row % 8) * 4 + row % 16 / 8;
  }
  __device__ void give_values(float* to, const float (&v)[2]) const {
    const uint4 words{__float_as_uint(v[0]), __float_as_uint(v[1]), 0, 0};
    if (p_.sum_ctas == 1) {
      *reinterpret_cast<uint4*>(to) = words;
    } else {
      cluster_store4(shared_address_in(to, 0), words, shared_address_in(memory_.sums, 0));
    }
  }
  /// For who adds them; false for the others.
  __device__ bool wait_for_values(bool adds) const {
    if (p_.sum_ctas == 1) {
      constexpr int kThreads = decode_lanes(1) * kWarpgroup;
      adds ? named_barrier(kSumBarrier, kThreads) : named_barrier_arrive(kSumBarrier, kThreads);
      return adds;
    }
    if (!adds) return false;
    auto* barrier = reinterpret_cast<uint64_t*>(memory_.sums);
    if (thread_ == 0) barrier_expect(barrier, static_cast<uint32_t>(decode_sum_bytes(a_.top_k)));
    barrier_wait(barrier, 0);
    return true;
  }

  // ---- strips that any lanes cut
  /// This member's of what lanes have one of each.
  template <class Index>
  __device__ Index own(Index lanes) const {
    return lanes * p_.shared.team + member_;
  }
  __device__ uint4* partial(const DecodeOwners& owners, int32_t chunk) const {
    const int64_t slot = own(decode_partial_slot(p_.num_chunks, owners, chunk));
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

  /// total = the first owner's sum + the other chunks, from `begin` on, in order, whoever computed
  /// them.
  template <int kN>
  __device__ void add_partials(const DecodeOwners& owners, int32_t begin, Sum<kN>& total) const {
    constexpr int kQuads = kN / 8;
    constexpr int kInFlight = 8 / kQuads;  // chunks: eight loads of a thread
    const int32_t num_chunks = p_.num_chunks;
    uint4 raw[kInFlight][kQuads];
    const auto load = [&](int32_t chunk, int c) {
      const uint4* from = partial(owners, chunk);
#pragma unroll
      for (int i = 0; i < kQuads; ++i) raw[c][i] = __ldcg(from + i * kWarpgroup);
    };
    load(0, 0);
    memcpy(total, raw[0], sizeof(total));
#pragma unroll 1
    for (int32_t chunk = begin; chunk < num_chunks; chunk += kInFlight) {
#pragma unroll
      for (int c = 0; c < kInFlight; ++c) {
        if (chunk + c < num_chunks) load(chunk + c, c);
      }
#pragma unroll
      for (int c = 0; c < kInFlight; ++c) {
        if (chunk + c >= num_chunks) continue;
        Sum<kN> sum;
        memcpy(sum, raw[c], sizeof(sum));
#pragma unroll
        for (int j = 0; j < kN / 2; ++j) total[j] += sum[j];
      }
    }
  }

  // ---- results
  /// Outputs of a row block: 32 of a gated activation, else 64.
  __device__ int outputs() const { return gated() ? kDecodeRows / 2 : kDecodeRows; }

  /// Scales, bias, activation, routing weight, from the registers of the sums: a thread has two
  /// rows of two tokens in every eight. One copy of the code, whatever it costs in moves: it runs
  /// once for each row block, cold.
  template <int kN>
  __device__ void finish(int32_t row_block, Sum<kN>& total) const {
    const RowFactors f = factors();
    if (is_plain(a_)) return finish_plain<kN>(row_block, f, total);
#pragma unroll 1
    for (int first = 0; first < num_rows_; first += 8) {
#pragma unroll 1
      for (int i = 0; i < 2 && first + i < num_rows_; ++i) {
        const int token = first + first_token() + i;
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

  /// The end of down. With a short K that is most of what a row block costs: no loops.
  template <int kN>
  __device__ void finish_plain(int32_t row_block, const RowFactors& f, const Sum<kN>& total) const {
    const int32_t column = row_block * kDecodeRows + first_row();
    // The number of outputs is a multiple of 16.
    const int rows = column < a_.output_columns ? num_rows_ - first_token() : 0;
    char* output = static_cast<char*>(a_.output) + column * sizeof(float);
    const auto row_bytes = static_cast<uint32_t>(a_.output_columns) * 4;
    const DecodeRow* table = memory_.table + first_token();
#pragma unroll
    for (int first = 0; first < kN; first += 8) {
      if (first >= num_rows_) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (first + i >= rows) continue;
        const DecodeRow row = table[first + i];
        store_rows(output + static_cast<uint64_t>(static_cast<uint32_t>(row.pair)) * row_bytes, f,
                   row.scale, row.weight, total[first / 2 + i], total[first / 2 + i + 2]);
      }
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
    if (gated()) {
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
    for (int r = 0; r < (gated() ? 1 : 2); ++r) {
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
      const int64_t expert = a_.sorted_expert_ids[block_];
      value = flushed_product(value, a_.rounded_channels[expert * a_.output_columns + column]);
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

  const DecodeParams<Operand>& p_;
  const DecodeArgs& a_;
  const LaneMemory& memory_;
  const int member_;
  const uint32_t thread_;
  DecodeWalk walk_;  ///< at a run; its slot is the next
  int32_t block_ = -1;
  int32_t factors_at_ = 0;
  int num_rows_ = 0;
};

}  // namespace switchyard::cuda::sm90
