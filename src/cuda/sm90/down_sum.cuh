#pragma once
// Down and the sum over slots as one persistent kernel (core/down_sum_schedule.h). Warpgroups that
// multiply write a slab's products into a ring in the L2; others sum it, one slab behind, while the
// next one is multiplied. A CTA's rows stay in shared memory, so every weight is read once per
// CTA that has rows of its expert.

#include "cuda/combine.h"
#include "cuda/launch.cuh"
#include "cuda/slot_sum.cuh"
#include "cuda/sm90/down_sum_convert.cuh"
#include "cuda/sm90/global_counters.cuh"
#include "cuda/sm90/grouped_gemm_epilogue.cuh"

namespace switchyard::cuda::sm90 {

/// The CTA's waves: its share of all groups of 64 sorted rows that begin with a pair.
template <class Traits>
__device__ void find_waves(DownSumCta& cta) {
  const SortedRows& sorted = cta.p.gemm.sorted;
  const int thread = static_cast<int>(threadIdx.x);
  const int num_groups = sorted.num_valid[0] / kDownSumWaveRows;
  const int per_thread = ceil_div(num_groups, Traits::kThreads);
  const int first = min(thread * per_thread, num_groups);
  const int last = min(first + per_thread, num_groups);
  const auto used = [&](int group) {
    return is_pair(sorted.ids[group * kDownSumWaveRows], sorted.top_k);
  };
  const auto expert_of = [&](int group) {
    return sorted.experts[group * kDownSumWaveRows / sorted.block_rows];
  };
  int count = 0;
  for (int group = first; group < last; ++group) count += used(group) ? 1 : 0;
  int before = count;  // in this warp, then everywhere
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(~0u, before, step);
    if (thread % 32 >= step) before += below;
  }
  // Row facts are not yet in use.
  auto* of_warp = reinterpret_cast<int32_t*>(cta.row_facts);
  uint32_t* first_waves = reinterpret_cast<uint32_t*>(of_warp) + Traits::kThreads / 32;
  const int32_t most_waves = cta.p.most_waves * static_cast<int32_t>(gridDim.x);
  for (int i = thread; i < most_waves / 32 + 2; i += Traits::kThreads) first_waves[i] = 0;
  if (thread % 32 == 31) of_warp[thread / 32] = before;
  __syncthreads();
  before -= count;
  int total = 0;
  for (int warp = 0; warp < Traits::kThreads / 32; ++warp) {
    if (warp < thread / 32) before += of_warp[warp];
    total += of_warp[warp];
  }
  int wave = before;
  for (int group = first; group < last; ++group) {
    if (!used(group)) continue;
    if (group == 0 || expert_of(group) != expert_of(group - 1)) {
      atomicOr(&first_waves[wave / 32], 1u << wave % 32);
    }
    ++wave;
  }
  __syncthreads();
  if (thread == 0) {
    const auto parts = static_cast<int32_t>(gridDim.x);
    const DownSumWaves waves{first_waves, total,
                             DownSumWaves::most_of(total, parts, cta.p.most_waves)};
    *reinterpret_cast<DownSumShare*>(of_warp) =
        waves.share(parts, static_cast<int32_t>(blockIdx.x));
  }
  __syncthreads();
  const DownSumShare share = *reinterpret_cast<DownSumShare*>(of_warp);
  cta.num_waves = share.size();
  wave = before;
  for (int group = first; group < last; ++group) {
    if (!used(group)) continue;
    if (wave >= share.begin && wave < share.end) {
      cta.waves[wave - share.begin] = {group * kDownSumWaveRows, 0, expert_of(group), 0};
    }
    ++wave;
  }
  __syncthreads();
  if (thread < cta.num_waves) {
    int buffers = 0;
    for (int i = 1; i <= kDownSumProductGroups; ++i) {
      buffers += cta.begins_run((thread + i) % cta.num_waves) ? 1 : 0;
    }
    cta.waves[thread].buffers = buffers;
  }
}

/// Everything that stays: the rows, what belongs to them, and where a token's slots lie.
template <class Traits>
__device__ void load_share(const DownSumCta& cta, const DownSumShare& tokens) {
  const GroupedGemmParams& g = cta.p.gemm;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0 && cta.num_waves > 0) {
    barrier_expect(cta.rows_full, static_cast<uint32_t>(cta.num_waves * kDownSumWaveBytes));
    for (int i = 0; i < cta.num_waves * kDownSumBlocks; ++i) {
      tensor_load(cta.rows + i * kDownSumBlock, &g.row_map, i % kDownSumBlocks * kDownSumBlockBytes,
                  cta.waves[i / kDownSumBlocks].first_row, cta.rows_full);
    }
  }
  for (int r = thread; r < cta.num_rows(); r += Traits::kThreads) {  // whole warps
    DownSumWave& wave = cta.waves[r / kDownSumWaveRows];
    const int32_t row = wave.first_row + r % kDownSumWaveRows;
    const bool used = is_pair(g.sorted.ids[row], g.sorted.top_k);
    DownSumRow& facts = cta.row_facts[r];
    facts.weight = g.sorted.weights == nullptr ? 1.0f : g.sorted.weights[row];
    if constexpr (Traits::kScaling != Scaling::kNone) {
      const float* scales = g.row_scales + int64_t{row} * g.row_scale_stride;
      const int count = Traits::kScaling == Scaling::kBlock ? g.num_k_blocks : 1;
      for (int k = 0; k < kDownSumBlocks; ++k) {
        facts.scale[k] = k < count ? scales[k * g.row_scale_step] : 0.0f;
      }
    }
    if (cta.weighs_rows<Traits>()) facts.scale[0] *= facts.weight;
    const int count = __popc(__ballot_sync(~0u, used));
    if (thread % 32 == 0) atomicAdd(&wave.num_rows, count);
  }
  const int32_t top_k = cta.p.sum.top_k, stride = align_up(top_k, kDownSumSourceSlots);
  for (int i = thread; i < tokens.size() * stride; i += Traits::kThreads) {
    const int32_t slot = i % stride;
    const int32_t row =
        slot < top_k ? cta.p.pair_rows[(tokens.begin + i / stride) * top_k + slot] : -1;
    cta.sources[i] = row < 0 ? -1 : down_sum_place(row, 0) / 16;
  }
}

/// By one warp: the weights of every slab, once per expert. Its instructions follow each other at
/// latency, and it is what small batches wait for: so little as can be is done per buffer.
template <class Traits>
__device__ void load_slabs(const DownSumCta& cta, int lane) {
  if (cta.num_waves == 0) return;
  const GroupedGemmParams& g = cta.p.gemm;
  constexpr uint32_t kColumnBytes = kDownSumColumns * 4;
  const bool has_columns = g.channel_scales != nullptr || g.bias != nullptr;
  const auto bytes = static_cast<uint32_t>(kDownSumWaveBytes) +
                     (g.channel_scales == nullptr ? 0 : kColumnBytes) +
                     (g.bias == nullptr ? 0 : kColumnBytes);
  const uint64_t once = evict_first_policy();
  // Lane r knows the expert of run r, lanes 2 r and 2 r + 1 the scales of its two k blocks.
  const int num_runs = cta.num_runs();
  const int32_t my_expert = cta.expert_of_run(lane);
  const int32_t scaled_expert = cta.expert_of_run(lane / kDownSumBlocks);
  const int block = lane % kDownSumBlocks, tiles = ceil_div(g.num_weight_rows, 128);
  const bool scaled = Traits::kScaling == Scaling::kBlock && g.block_scales != nullptr &&
                      lane / kDownSumBlocks < num_runs && block < g.num_k_blocks;
  const auto* scales = reinterpret_cast<const float2*>(g.block_scales) +
                       int64_t{scaled_expert} * tiles * g.num_k_blocks + block;
  float2 scale{1.0f, 1.0f}, next_scale{1.0f, 1.0f};
  if (scaled) next_scale = scales[0];
  DownSumBuffer at;
  at.parity = 1;
  for (int slab = 0; slab < cta.num_slabs(); ++slab) {
    const int column = slab * kDownSumColumns;
    if (column % 128 == 0) {
      scale = next_scale;
      if (scaled) next_scale = scales[min(column / 128 + 1, tiles - 1) * g.num_k_blocks];
    }
#pragma unroll 1
    for (int run = 0; run < num_runs; ++run) {
      const int32_t expert = __shfl_sync(~0u, my_expert, run);
      DownSumMargin& margin = cta.margins[at.slot];
      uint64_t* full = &cta.full[at.slot];
      barrier_wait(&cta.empty[at.slot], at.parity);
      if (Traits::kScaling == Scaling::kBlock && lane / kDownSumBlocks == run) {
        margin.block_scale[block] = scale;
      }
      __syncwarp();
      if (lane == 0) {
        barrier_expect(full, bytes);
        uint8_t* weights = cta.weights + at.slot * kDownSumWaveBytes;
#pragma unroll
        for (int k = 0; k < kDownSumBlocks; ++k) {
          tensor_load(weights + k * kDownSumBlock, &g.weight_map, k * kDownSumBlockBytes, column,
                      expert, full, once);
        }
        if (has_columns) {
          const int64_t first = int64_t{expert} * g.num_weight_rows + column;
          if (g.channel_scales != nullptr) {
            bulk_load(margin.channel_scale, g.channel_scales + first, kColumnBytes, full);
          }
          if (g.bias != nullptr) bulk_load(margin.bias, g.bias + first, kColumnBytes, full);
        }
      }
      at.advance(1, cta.p.num_buffers);
    }
  }
}

/// The products of one warpgroup, which takes every kDownSumProductGroups-th item: in as many parts
/// as become sums where K is promoted. The order of sums is that of GroupedGemmConsumer, or
/// Fp4PrefillConsumer: the bits are the same.
template <class Traits>
struct DownSumProducts {
  using Mma = typename Traits::Products;
  using Accumulator = typename Mma::Accumulator;
  /// Of 32 bytes of K eight; E4M3 sums without block scales are promoted after 192 columns, where
  /// weights are converted after 512.
  static constexpr int kSplit =
      Traits::kConverts                                                       ? 8
      : Traits::kMma == MmaType::kE4m3 && Traits::kScaling != Scaling::kBlock ? 6
                                                                              : 4;
  using Parts = Accumulator[kSplit < 8 ? 2 : 1];
  using Sums = float[Traits::kSums];

  const DownSumCta& cta;
  uint64_t rows, weights;  ///< descriptors of the first ones

  __device__ explicit DownSumProducts(const DownSumCta& c)
      : cta(c),
        rows(swizzled_128_descriptor(shared_address(c.rows))),
        weights(swizzled_128_descriptor(shared_address(c.weights))) {}

  /// Of 32 bytes of K at a time, [kBegin, kEnd).
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void multiply(Accumulator& d, int wave, int buffer) const {
    const uint64_t a = rows + static_cast<uint32_t>(wave * (kDownSumWaveBytes / 16));
    const uint64_t b = weights + static_cast<uint32_t>(buffer * (kDownSumWaveBytes / 16));
    pin(d);
    wgmma_fence();
#pragma unroll
    for (int j = kBegin; j < kEnd; ++j) {
      const int at = j / 4 * (kDownSumBlock / 16) + j % 4 * 2;
      Mma::ss(d, a + at, b + at, j > kBegin);
    }
    wgmma_commit();
    pin(d);
  }
  __device__ __forceinline__ void start(Parts& part, int wave, int buffer) const {
    multiply<0, kSplit>(part[0], wave, buffer);
    if constexpr (kSplit < 8) multiply<kSplit, 8>(part[1], wave, buffer);
  }
  __device__ __forceinline__ void finish(Parts& part) const {
    wgmma_wait<0>();
    for (Accumulator& d : part) pin(d);
  }

  /// `low`, `high`: this thread's row and the eighth after it.
  __device__ __forceinline__ static void combine(const Parts& part, const DownSumRow& low,
                                                 const DownSumRow& high,
                                                 const DownSumMargin& margin, Sums& sums) {
    if constexpr (Traits::kConverts) {  // rows' factors meet those of the columns first
#pragma unroll
      for (int i = 0; i < Traits::kSums; ++i) sums[i] = 0.0f + part[0][i];
    } else if constexpr (Traits::kScaling == Scaling::kBlock) {
      const float4 by = *reinterpret_cast<const float4*>(margin.block_scale);
      const float first[4] = {low.scale[0] * by.x, low.scale[0] * by.y, high.scale[0] * by.x,
                              high.scale[0] * by.y};
      const float second[4] = {low.scale[1] * by.z, low.scale[1] * by.w, high.scale[1] * by.z,
                               high.scale[1] * by.w};
#pragma unroll
      for (int i = 0; i < Traits::kSums; ++i) {
        sums[i] = fmaf(part[1][i], second[i % 4], fmaf(part[0][i], first[i % 4], 0.0f));
      }
    } else {
#pragma unroll
      for (int i = 0; i < Traits::kSums; ++i) {
        if constexpr (Traits::kMma == MmaType::kS8) {
          sums[i] = static_cast<float>(part[0][i] + part[1][i]);
        } else {
          sums[i] = (0.0f + part[0][i]) + part[1][i];
        }
      }
      by_rows(low.scale[0], high.scale[0], sums);
    }
  }
  __device__ __forceinline__ static void by_rows(float low, float high, Sums& sums) {
#pragma unroll
    for (int i = 0; i < Traits::kSums; ++i) sums[i] *= i / 2 % 2 == 0 ? low : high;
  }
};

/// What a layer may have for every column: a scale, a bias.
template <class Traits>
__device__ __forceinline__ void scale_columns(const GroupedGemmParams& p,
                                              const DownSumMargin& margin, int quad_lane,
                                              const DownSumRow& low, const DownSumRow& high,
                                              float (&sums)[Traits::kSums]) {
  const auto by_columns = [&](const float* of_column, auto f) {
#pragma unroll
    for (int j = 0; j < kDownSumColumns / 8; ++j) {
      const float2 v = *reinterpret_cast<const float2*>(of_column + 8 * j + 2 * quad_lane);
      f(sums[4 * j], v.x, low), f(sums[4 * j + 1], v.y, low);
      f(sums[4 * j + 2], v.x, high), f(sums[4 * j + 3], v.y, high);
    }
  };
  if constexpr (Traits::kConverts) {
    by_columns(margin.channel_scale,
               [](float& sum, float v, const DownSumRow& row) { sum *= row.scale[0] * v; });
  } else if (p.channel_scales != nullptr) {
    by_columns(margin.channel_scale, [](float& sum, float v, const DownSumRow&) { sum *= v; });
  }
  if (p.bias != nullptr) {
    by_columns(margin.bias, [](float& sum, float v, const DownSumRow&) { sum += v; });
  }
}

/// A wave's sums into the ring, 512 bytes of eight rows at a time. `slot`: this thread's place in
/// the wave's first eight rows.
template <class Traits>
__device__ __forceinline__ void store_products(uint8_t* slot, int rows_left,
                                               const float (&sums)[Traits::kSums]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (8 * h >= rows_left) break;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = 4 * (4 * half + j) + 2 * h;
        words[j] = pack_bf16(sums[i], sums[i + 1]);
      }
      *reinterpret_cast<uint4*>(slot + (2 * h + half) * 512) = {words[0], words[1], words[2],
                                                                words[3]};
    }
  }
}

template <class Traits>
__device__ void multiply_slabs(const DownSumCta& cta, int warpgroup, int thread) {
  using Products = DownSumProducts<Traits>;
  const GroupedGemmParams& g = cta.p.gemm;
  const int lane = thread % 32;
  const int row = thread / 32 * 16 + lane / 4;
  const int num_slabs = cta.num_slabs(), num_waves = cta.num_waves;
  const int num_buffers = cta.p.num_buffers, num_slots = cta.p.num_slots;
  const bool has_columns = Traits::kConverts || g.channel_scales != nullptr || g.bias != nullptr;
  const bool weighs = g.weight_after && !cta.template weighs_rows<Traits>();
  if (num_waves == 0) return;
  const Products products(cta);
  typename Products::Parts part;
  typename Products::Sums sums;
  barrier_wait(cta.rows_full, 0);

  // This item, the buffer of its weights, and where its slab lies.
  int wave = 0, slab = 0, slot = 0;
  DownSumPlace place(0);
  DownSumBuffer at;
  uint8_t* ring = cta.p.ring + thread / 32 * 2048 + lane * 16;
  /// Gives a buffer back and waits for the one after it, if there is `more`.
  const auto next_buffer = [&](bool more) {
    if (lane == 0) barrier_arrive(&cta.empty[at.slot]);
    at.advance(1, num_buffers);
    if (more) barrier_wait(&cta.full[at.slot], at.parity);
  };
  /// To the next slab; this one has been written.
  const auto leave_slab = [&] {
    if (lane == 0) barrier_arrive(&cta.computed[place.slot]);
    place = DownSumPlace(++slab);
    ring += cta.p.slot_bytes;
    if (++slot == num_slots) {
      slot = 0;
      ring -= num_slots * cta.p.slot_bytes;
    }
  };
  barrier_wait(&cta.full[at.slot], at.parity);
  // A group's first wave is the warpgroup-th.
  for (int skipped = 0; skipped < warpgroup; ++skipped) {
    if (++wave == num_waves) {
      wave = 0;
      leave_slab();
      if (slab == num_slabs) return;
    }
    if (cta.begins_run(wave)) next_buffer(true);
  }
  products.start(part, wave, at.slot);
  products.finish(part);
  while (slab < num_slabs) {
    const DownSumWave facts = cta.waves[wave];
    const DownSumRow* row_facts = cta.row_facts + wave * kDownSumWaveRows + row;
    const DownSumRow low = row_facts[0], high = row_facts[8];
    const DownSumMargin& margin = cta.margins[at.slot];
    products.combine(part, low, high, margin, sums);
    if (has_columns) scale_columns<Traits>(g, margin, lane % 4, low, high, sums);
    __syncwarp();
    // The next item's products begin now: they run while this one's sums are stored. After the last
    // item they are made in vain, of what lies there.
    int next_wave = wave + kDownSumProductGroups, left = 0;
    for (; next_wave >= num_waves; next_wave -= num_waves) ++left;
    const bool more = slab + left < num_slabs;
#pragma unroll 1
    for (int n = facts.buffers; n > 0; n = more ? n - 1 : 0) next_buffer(more);
    products.start(part, next_wave, at.slot);
    if (weighs) products.by_rows(low.weight, high.weight, sums);
    barrier_wait(&cta.writable[place.slot], place.parity);
    store_products<Traits>(ring + facts.first_row * kDownSumRowBytes, facts.num_rows - row, sums);
    __syncwarp();
#pragma unroll 1
    for (; left > 0 && slab < num_slabs; --left) leave_slab();
    wave = next_wave;
    products.finish(part);
  }
}

/// Up to kDownSumSlots of a token's rows in a slab, 16 bytes of each by this thread, on their way.
struct DownSumPieces {
  uint4 raw[kDownSumSlots];
  uint32_t used;  ///< a bit per slot

  /// `slot`: this thread's place in the ring's first row. `sources`: where rows lie, in 16 bytes;
  /// < 0: none. `fours`: how many there are.
  __device__ __forceinline__ void load(const uint4* slot, const int4* sources, int fours) {
    used = 0;
#pragma unroll
    for (int i = 0; i < kDownSumSlots / 4; ++i) {
      if (i >= fours) break;
      const int4 four = sources[i];
      const int32_t source[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (source[j] < 0) continue;
        used |= 1u << (4 * i + j);
        raw[4 * i + j] = __ldcg(slot + static_cast<uint32_t>(source[j]));
      }
    }
  }
  __device__ __forceinline__ void add_to(float (&sum)[kVector]) const {
#pragma unroll
    for (int i = 0; i < kDownSumSlots; ++i) {
      float value[kVector];
      unpack_bf16(raw[i], value);
      if ((used >> i & 1) != 0) add_slot(1.0f, value, sum);
    }
  }
};

/// Sums of one slab, by 16 bytes of a row. Values stay in the order of down_sum_place() until the
/// end.
struct DownSumOutput {
  const CombineJob& job;
  int part;

  __device__ __forceinline__ void transpose(float (&v)[kVector]) const {
    uint32_t words[2][4];
#pragma unroll
    for (int i = 0; i < kVector; ++i) words[i % 2][i / 2] = __float_as_uint(v[i]);
    transpose_quads(words, part % 4);
#pragma unroll
    for (int i = 0; i < kVector; ++i) v[i] = __uint_as_float(words[i % 2][i / 2]);
  }
  __device__ __forceinline__ void begin(bool exists, int64_t at, float (&sum)[kVector]) const {
#pragma unroll
    for (float& s : sum) s = 0.0f;
    if (job.addend == nullptr) return;
    if (exists) load_vector(job.addend, job.addend_type, at, at + kVector, true, sum);
    transpose(sum);
  }
  __device__ __forceinline__ void store(bool exists, int64_t at, float (&sum)[kVector]) const {
    if (job.output_type == DataType::kBf16) {
      uint32_t words[1][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[0][i] = pack_bf16(sum[2 * i], sum[2 * i + 1]);
      transpose_quads(words, part % 4);
      auto* to = reinterpret_cast<uint4*>(static_cast<uint16_t*>(job.output) + at);
      if (exists) *to = {words[0][0], words[0][1], words[0][2], words[0][3]};
      return;
    }
    transpose(sum);
    if (exists) store_vector(job.output, job.output_type, at, at + kVector, true, sum);
  }
};

/// By kDownSumTeamWarps warps, a team of them per slab. `warp`: of those.
__device__ inline void sum_slabs(const DownSumCta& cta, const DownSumShare& tokens, int warp,
                                 int lane) {
  constexpr int kLanes = kDownSumRowBytes / 16, kTokens = 32 / kLanes, kFours = kDownSumSlots / 4;
  const int team_warps = down_sum_team_warps(tokens.size());
  const int at_once = team_warps * kTokens, part = lane % kLanes;
  const int mine = warp % team_warps * kTokens + lane / kLanes;
  const int fours = ceil_div(cta.p.sum.top_k, kDownSumSourceSlots);  // of a token
  const DownSumOutput output{cta.p.sum, part};
  // Threads without a token do what the last one does, and do not store it.
  const auto sources = [&](int first) {
    const int i = min(first + mine, tokens.size() - 1);
    return reinterpret_cast<const int4*>(cta.sources) + i * fours;
  };
  for (int slab = warp / team_warps; slab < cta.num_slabs();
       slab += kDownSumTeamWarps / team_warps) {
    const DownSumPlace place(slab);
    const int64_t at = tokens.begin * cta.p.sum.width + slab * kDownSumColumns + part * kVector;
    const auto* slot =
        reinterpret_cast<const uint4*>(cta.p.ring + slab % cta.p.num_slots * cta.p.slot_bytes) +
        down_sum_place(0, part) / 16;
    barrier_wait_idle(&cta.ready[place.slot], place.parity);
    DownSumPieces pieces;
    if (tokens.size() > 0) pieces.load(slot, sources(0), fours);
#pragma unroll 1
    for (int first = 0; first < tokens.size(); first += at_once) {
      const bool exists = first + mine < tokens.size();
      const int64_t place_of = at + (first + mine) * cta.p.sum.width;
      float sum[kVector];
      output.begin(exists, place_of, sum);
#pragma unroll 1
      for (int four = kFours; four < fours; four += kFours) {
        pieces.add_to(sum);
        pieces.load(slot, sources(first) + four, fours - four);
      }
      pieces.add_to(sum);
      // The next ones are on their way while these are stored.
      if (first + at_once < tokens.size()) pieces.load(slot, sources(first + at_once), fours);
      output.store(exists, place_of, sum);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&cta.summed[place.slot]);
  }
}

/// Tells other CTAs, slab by slab, what this one has written. One that writes nothing waits for the
/// slot nevertheless: nobody may be more slabs ahead than there are barriers.
__device__ inline void announce_computed(const DownSumCta& cta) {
  uint64_t* const awaited = cta.num_waves > 0 ? cta.computed : cta.writable;
  for (int slab = 0; slab < cta.num_slabs(); ++slab) {
    const DownSumPlace place(slab);
    barrier_wait_idle(&awaited[place.slot], place.parity);
    release_add(cta.p.computed + slab, 1);
  }
}
__device__ inline void announce_summed(const DownSumCta& cta) {
  for (int slab = 0; slab < cta.num_slabs(); ++slab) {
    const DownSumPlace place(slab);
    barrier_wait_idle(&cta.summed[place.slot], place.parity);
    release_add(cta.p.summed + slab, 1);
  }
}
/// Waits for what all have written, so that it may be summed, and summed, so that the slot may be
/// written again: two lanes, whose loads are one instruction.
__device__ inline void watch_all(const DownSumCta& cta, int lane) {
  const int ahead = lane == 0 ? 0 : cta.p.num_slots;
  const uint32_t* counters = lane == 0 ? cta.p.computed : cta.p.summed;
  uint64_t* barriers = lane == 0 ? cta.ready : cta.writable;
  for (int slab = 0; slab < ahead; ++slab) barrier_arrive(&barriers[slab]);
  for (int slab = 0; slab + ahead < cta.num_slabs();) {
    if (acquire_load(counters + slab) != gridDim.x) continue;
    barrier_arrive(&barriers[DownSumPlace(slab + ahead).slot]);
    ++slab;
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    sm90_down_sum_kernel(const __grid_constant__ DownSumParams p) {
  extern __shared__ uint8_t unaligned[];
  constexpr uint32_t kAlignment = 1024;
  uint8_t* shared = unaligned + (kAlignment - shared_address(unaligned) % kAlignment) % kAlignment;
  DownSumCta cta(p, shared);
  const DownSumShare tokens =
      down_sum_share(static_cast<int32_t>(p.sum.tokens.value()), static_cast<int32_t>(gridDim.x),
                     static_cast<int32_t>(blockIdx.x));
  if (threadIdx.x == 0) cta.init_barriers<Traits>(tokens.size());
  find_waves<Traits>(cta);
  load_share<Traits>(cta, tokens);
  __syncthreads();
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  const int thread = static_cast<int>(threadIdx.x) % 128;
  if (warpgroup < kDownSumProductGroups) {
    take_registers<Traits::kProductRegisters>();
    multiply_slabs<Traits>(cta, warpgroup, thread);
  } else if (warpgroup < kDownSumProductGroups + Traits::kSumGroups) {
    take_registers<Traits::kSumRegisters>();
    sum_slabs(cta, tokens, static_cast<int>(threadIdx.x) / 32 - kDownSumProductGroups * 4,
              thread % 32);
  } else if (Traits::kConverts && warpgroup == kDownSumProductGroups + Traits::kSumGroups) {
    give_registers<Traits::kConvertRegisters>();
    if constexpr (Traits::kConverts) convert_slabs<Traits>(cta, thread);
  } else {
    give_registers<32>();
    const int lane = thread % 32;
    switch (__shfl_sync(~0u, thread / 32, 0)) {
      case 0:
        if constexpr (!Traits::kConverts) load_slabs<Traits>(cta, lane);
        return;
      case 1:
        if (lane == 0) announce_computed(cta);
        return;
      case 2:
        if (lane == 0) announce_summed(cta);
        return;
      default:
        if (lane < 2) watch_all(cta, lane);
    }
  }
}

/// CTAs wait for each other, so all of them must run at once, one per SM: a cooperative launch
/// starts with all or waits, whatever runs in other streams.
template <class Traits>
void launch_down_sum(DownSumParams params, int num_blocks, Stream stream) {
  const auto kernel = sm90_down_sum_kernel<Traits>;
  const int bytes = params.shared.bytes;
  allow_shared_bytes(kernel, bytes);
  void* arguments[] = {&params};
  check(cudaLaunchCooperativeKernel(kernel, dim3(static_cast<unsigned>(num_blocks)),
                                    dim3(Traits::kThreads), arguments, static_cast<size_t>(bytes),
                                    static_cast<cudaStream_t>(stream.handle)),
        "kernel launch");
}

}  // namespace switchyard::cuda::sm90
