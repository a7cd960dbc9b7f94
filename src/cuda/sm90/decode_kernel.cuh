#pragma once
// GEMMs of few rows per expert: weights on the 64 rows of wgmma, tokens on its N columns, at the
// speed of a plain read of the weights (core/decode_schedule.h says how they are divided).
//
// A CTA has decode_lanes lanes. A lane is a team of consumer warpgroups, two producer warps and a
// ring: slots of one step of K, 64 weight rows for each of the team beside the tokens of a block.
// The producer streams weights before the previous kernel in the stream has ended if the lists are
// known by then.
//
// What arrives for a step, and how it becomes the A operand, is the Operand policy:
//
//   struct Operand {
//     static constexpr MmaType kMma;        // instruction; tokens are its element type
//     using Word;                           // of sums: float, or int32_t
//     static constexpr int kTokenBlocks;    // 128-byte blocks of a token row per step
//     static constexpr int kStepBytes;      // weights of a step: a multiple of 16
//     static constexpr int kChunkSteps;     // steps per chunk, whose sum is a number of its own
//     static constexpr bool kBlockScales;   // token scales per 128 columns, kTokenBlocks a step
//                                           // (see Step::scales)
//     static constexpr bool kRowBlockScales;  // and so have weights
//     struct Args;                          // trivially copyable part of the kernel's parameters
//     static constexpr bool kRowPairs;      // a thread's accumulators are rows 2 g, 2 g + 1 of 16,
//                                           // not g, g + 8
//     // One thread: starts copies of kStepBytes that complete on `full`; or of step_bytes(const
//     // Args&, int k_step), where the Operand has that.
//     static void load(const Args&, char* to, int expert, int row_block, int k_step,
//                      uint64_t* full);
//     static void prefetch(const Args&);  // optional: what load() will need
//     // Calls function(std::bool_constant), the kVariant of multiply() for these weights.
//     template <class Function> static void with_variant(const Args&, Function&&);
//     // The warpgroup: sum (+)= weights . tokens^T, finished on return (all reads of the slot
//     too). template <int kN, bool kVariant> static void multiply(const Step&, bool accumulate,
//     Word (&sum)[kN / 2]);
//     // Optional: how much the last step of K has if it is a short one, else 0; and its product.
//     static int tail_blocks(const Args&);
//     template <int kN> static void multiply_tail(const Args&, const Step&, int blocks,
//                                                 bool accumulate, Word (&sum)[kN / 2]);
//   };
//
// Scales per row (weights) and per row (tokens) are applied after the sum. Instantiate with
// launch_decode<Operand>.

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/sm90/decode_consumer.cuh"
#include "cuda/sm90/decode_producer.cuh"

namespace switchyard::cuda::sm90 {

/// Consumers, then the producers' warpgroups, which give registers to them.
template <int kN>
struct DecodeThreads {
  static constexpr int kLanes = decode_lanes(kN), kTeam = decode_team(kN);
  static constexpr int kConsumers = kLanes * kTeam * kWarpgroup;
  static constexpr int kProducers = align_up(kLanes * 2 * 32, kWarpgroup);
  static constexpr int kAll = kConsumers + kProducers;
  static constexpr int kAtStart = 65536 / kAll / 8 * 8;
  static constexpr int kProducerRegisters = kN <= 8 ? 48 : kN <= 32 ? 32 : 56;  // addresses of rows
  static constexpr int kConsumerRegisters =
      std::min((kAll * kAtStart - kProducers * kProducerRegisters) / kConsumers / 8 * 8, 232);
};

template <DecodeForm kForm, int kLanes, int kTeam, class Operand>
__device__ void init_barriers(const DecodeParams<Operand>& p, char* memory) {
  const auto thread = static_cast<int>(threadIdx.x);
  auto* barriers = reinterpret_cast<uint64_t*>(memory + p.shared.barriers);
  if (thread < kLanes * p.shared.slots * 2) {
    // Full: the announcement of weights and 32 threads' tokens. Empty: four warps of each member.
    barrier_init(barriers + thread, thread / p.shared.slots % 2 == 0 ? 33 : 4 * kTeam);
  }
  // Of strips that a cluster cuts: who finishes one announces the bytes.
  const int32_t strip_bytes = p.num_chunks * decode_shared_sum_bytes(p.shared.sum_pairs);
  if constexpr (kForm == DecodeForm::kSum) {
    // Of the choices' results: who adds them announces the bytes.
    if (thread == 0) barrier_init(reinterpret_cast<uint64_t*>(memory + p.shared.sums), 1);
    return fence_barrier_init();
  }
  if (thread * p.num_chunks < p.shared.num_sums) {
    barrier_init(reinterpret_cast<uint64_t*>(memory + p.shared.sums + thread * strip_bytes), 1);
  }
  fence_barrier_init();
}

template <class Operand, int kN, DecodeForm kForm>
__global__ void __launch_bounds__(DecodeThreads<kN>::kAll, 1)
    decode_kernel(const __grid_constant__ DecodeParams<Operand> p) {
  extern __shared__ __align__(1024) char shared_memory[];
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  using Threads = DecodeThreads<kN>;
  constexpr int kLanes = Threads::kLanes, kTeam = Threads::kTeam;
  constexpr int kConsumerWarps = Threads::kConsumers / 32;
  init_barriers<kForm, kLanes, kTeam>(p, shared_memory);
  const bool clusters =
      kForm == DecodeForm::kSum ? p.sum_ctas > 1 : kN <= 8 && p.shared.num_sums > 0;
  if (clusters) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
  const bool consumes = warp < kConsumerWarps;
  const int lane = consumes ? warp / (4 * kTeam) : (warp - kConsumerWarps) / 2;
  const int member = consumes ? warp / 4 % kTeam : 0;
  const LaneMemory memory(shared_memory, p.shared, lane, p.args.unit_size, member);
  if (!consumes) {
    give_registers<Threads::kProducerRegisters>();
    if (lane >= kLanes) return;
    if (warp % 2 != 0) {
      bring_tokens<kForm, Operand, kN>(p, memory, lane);
    } else {
      bring_weights<kForm>(p, memory, lane);
    }
  } else {
    take_registers<Threads::kConsumerRegisters>();
    if constexpr (kForm == DecodeForm::kSum) {
      Consumer<Operand> consumer(p, memory, walk_of<kForm>(p, memory, lane), member);
      wait_for_previous_kernel();
      let_next_kernel_start();
      return consumer.template run_sum<kN>(lane, first_strip<kForm>(p));
    }
    if (!divides_early(p.args)) wait_for_previous_kernel();
    wait_for_division(p, lane);
    if (!p.args.lists_ready) wait_for_previous_kernel();
    Consumer<Operand> consumer(p, memory, walk_of<kForm>(p, memory, lane), member);
    consumer.begin();
    if (p.args.lists_ready) wait_for_previous_kernel();
    // Not before: the next kernel may rely on everything that this one waited for.
    let_next_kernel_start();
    if constexpr (kForm == DecodeForm::kShort) {
      consumer.template run_short<kN>();
    } else {
      consumer.template run<kN>();
    }
  }
}

inline constexpr int32_t kSharedBytes = 227 * 1024;

/// Shared memory with room for the sums of strips that clusters cut, if they divide so few tokens
/// best; else as it is.
template <class Operand, int kN>
DecodeShared share_sums(const DecodeShared& plain, const DecodeArgs& args, int32_t num_strips,
                        int num_ctas) {
  constexpr int32_t kMostBytes = 48 * 1024, kLeastSlots = 2;  // rings shall not starve
  if (args.expert_rows == 0 || num_ctas % kDecodeClusterCtas != 0) return plain;
  const int32_t chunks = args.steps.num_chunks();
  const int32_t pairs = decode_shared_pairs(args.expert_rows, args.unit_size);
  // Every pair has a block of its own at most.
  const int64_t strips = int64_t{args.num_tokens} * args.top_k * num_strips;
  const int64_t sums = ceil_div<int64_t>(strips, num_ctas / kDecodeClusterCtas) * chunks;
  const int64_t bytes = sums * decode_shared_sum_bytes(pairs);
  if (bytes > kMostBytes) return plain;
  const auto num_sums = static_cast<int32_t>(sums);
  const DecodeSchedule schedule{args.num_tokens * args.top_k,
                                num_strips,
                                chunks,
                                num_ctas * decode_lanes(kN),
                                num_ctas,
                                decode_team(kN),
                                num_sums};
  if (schedule.cluster_lanes == 0) return plain;
  constexpr int32_t kAlignment = 16;
  DecodeShared shared =
      decode_shared(decode_lanes(kN), decode_team(kN), Operand::kStepBytes, Operand::kTokenBlocks,
                    scales_per_step<Operand>(args.unit_size), args.unit_size,
                    kSharedBytes - kAlignment - static_cast<int32_t>(bytes));
  if (shared.slots < kLeastSlots) return plain;
  shared.sums = align_up(shared.bytes, kAlignment);
  shared.num_sums = num_sums;
  shared.sum_pairs = pairs;
  shared.bytes = shared.sums + static_cast<int32_t>(bytes);
  return shared;
}

/// The rows of a single token, summed.
template <class Operand>
void launch_decode_sum(DecodeParams<Operand> params, int num_ctas, Stream stream) {
  constexpr int32_t kUnit = 8, kAlignment = 16;
  const DecodeArgs& args = params.args;
  if (!args.single_token || !args.lists_ready || args.unit_size != kUnit || !is_plain(args)) {
    throw Error(ErrorCode::kInternal, "no decode kernel sums these rows");
  }
  const int32_t bytes = kDecodeSumBarrierBytes + decode_sum_bytes(args.top_k);
  params.shared = decode_shared(decode_lanes(kUnit), decode_team(kUnit), Operand::kStepBytes,
                                Operand::kTokenBlocks, scales_per_step<Operand>(kUnit), kUnit,
                                kSharedBytes - kAlignment - bytes);
  params.shared.sums = align_up(params.shared.bytes, kAlignment);
  params.shared.bytes = params.shared.sums + bytes;
  params.sum_ctas = decode_sum_ctas(args.num_rows, num_ctas);
  launch(decode_kernel<Operand, kUnit, DecodeForm::kSum>,
         {.grid = static_cast<unsigned>(params.num_strips * params.sum_ctas),
          .block = DecodeThreads<kUnit>::kAll,
          .shared_bytes = params.shared.bytes,
          .overlap_previous = true,
          .cluster = static_cast<unsigned>(params.sum_ctas)},
         static_cast<cudaStream_t>(stream.handle), params);
}

/// For blocks of kN rows.
template <class Operand, int kN>
void launch_decode_tile(const typename Operand::Args& weights, const DecodeArgs& args, int num_ctas,
                        Stream stream) {
  constexpr int32_t kLanes = decode_lanes(kN), kTeam = decode_team(kN);
  const int32_t row_blocks = ceil_div(args.num_rows, kDecodeRows);
  DecodeParams<Operand> params{
      .weights = weights,
      .args = args,
      .shared =
          decode_shared(kLanes, kTeam, Operand::kStepBytes, Operand::kTokenBlocks,
                        scales_per_step<Operand>(args.unit_size), args.unit_size, kSharedBytes),
      .lanes = kLanes,
      .row_blocks = row_blocks,
      .num_strips = ceil_div(row_blocks, kTeam),
      .num_chunks = args.steps.num_chunks(),
      .sum_ctas = 0};
  if constexpr (kN <= 8) {
    if (args.sum.output != nullptr) return launch_decode_sum(params, num_ctas, stream);
    params.shared = share_sums<Operand, kN>(params.shared, args, params.num_strips, num_ctas);
  }
  const auto start = [&](auto kernel) {
    launch(kernel,
           {.grid = static_cast<unsigned>(num_ctas),
            .block = DecodeThreads<kN>::kAll,
            .shared_bytes = params.shared.bytes,
            .overlap_previous = true,
            .cluster = params.shared.num_sums > 0 ? unsigned{kDecodeClusterCtas} : 1},
           static_cast<cudaStream_t>(stream.handle), params);
  };
  constexpr int kMostShort = 16;  // rows whose outputs fit into registers
  if constexpr (kN <= kMostShort) {
    if (is_short<Operand>(weights, args))
      return start(decode_kernel<Operand, kN, DecodeForm::kShort>);
  }
  start(decode_kernel<Operand, kN, DecodeForm::kGeneral>);
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
