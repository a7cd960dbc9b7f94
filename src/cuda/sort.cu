// The sort contract of ops.h. One block for a decode batch; for more, a kernel that counts chunks
// of tokens and a kernel that places them. Both rank by bitmaps (core/sort_plan.h), so the order
// never depends on timing. Blocks after the sorting ones zero the output buffer meanwhile.

#include "core/expert_sort.h"
#include "cuda/launch.cuh"
#include "cuda/sort.h"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = static_cast<int>(kSortThreads);
constexpr int kPairs = static_cast<int>(kSortPairsPerThread);
constexpr int kWarps = kThreads / 32;
constexpr int kMaxExpertsPerThread = 4;   // kMaxExperts / kThreads
constexpr int32_t kOneBits = 0x3f800000;  // 1.0f
constexpr int kZeroVectorsPerThread = 8;

struct SortParams {
  SortJob job;
  uint16_t* counts;  // [num_chunks][count_stride]
  int32_t num_chunks, tokens_per_chunk, tokens_per_pass, bitmap_words, count_stride, num_partials;
  int32_t tail_begin;  // rows from here on are padding whatever the ids
};

/// The arrays that core/sort_plan.h sizes.
struct Shared {
  uint64_t* scan;        // [33]
  uint32_t* bitmaps;     // [E][bitmap_words]
  int32_t* cursor;       // [E] row of the expert's first pair of this pass
  int32_t* total;        // [E] rows of the whole batch
  int32_t* first_block;  // [E + 1]
  int32_t* local_id;     // [E] -1: masked out
  int32_t* repeated;     // [1] some token names an expert twice
  int32_t* partials;     // [2][num_partials][count_stride]
};

extern __shared__ uint64_t shared_memory[];

__device__ Shared carve(const SortParams& p) {
  Shared s;
  s.scan = shared_memory;
  s.repeated = reinterpret_cast<int32_t*>(s.scan + 33);
  s.bitmaps = reinterpret_cast<uint32_t*>(s.scan + 34);
  s.cursor = reinterpret_cast<int32_t*>(s.bitmaps + p.job.num_experts * p.bitmap_words);
  s.total = s.cursor + p.job.num_experts;
  s.local_id = s.total + p.job.num_experts;
  s.first_block = s.local_id + p.job.num_experts;
  s.partials = s.first_block + p.job.num_experts + 1;
  return s;
}

/// Ids and weights of the pairs of one pass; thread i holds pairs i, i + kThreads, ...
struct Pairs {
  int32_t id[kPairs];
  int32_t weight[kPairs];
};

__device__ Pairs load_pairs(const SortJob& job, int32_t begin, int32_t end, bool with_weights) {
  Pairs pairs;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int32_t pair = begin + i * kThreads + static_cast<int32_t>(threadIdx.x);
    pairs.id[i] = pair < end ? job.topk_ids[pair] : -1;
    pairs.weight[i] = kOneBits;
    if (with_weights && pair < end && job.topk_weights != nullptr) {
      pairs.weight[i] = job.topk_weights[pair];
    }
  }
  return pairs;
}

/// Experts [first, last) belong to this thread where experts are walked once.
struct ExpertRange {
  int first, last;
};
__device__ ExpertRange my_experts(const SortJob& job) {
  const int each = ceil_div(job.num_experts, kThreads);
  const int first = static_cast<int>(threadIdx.x) * each;
  return {first, min(first + each, job.num_experts)};
}
/// Bit j: expert first + j takes part.
__device__ uint32_t load_mask(const SortJob& job, ExpertRange mine) {
  uint32_t mask = 0;
#pragma unroll
  for (int j = 0; j < kMaxExpertsPerThread; ++j) {
    const int e = mine.first + j;
    if (e < mine.last && (job.expert_mask == nullptr || job.expert_mask[e] != 0)) mask |= 1u << j;
  }
  return mask;
}

__device__ void clear_bitmaps(const SortParams& p, const Shared& s) {
  if (threadIdx.x == 0) *s.repeated = 0;
  for (int i = threadIdx.x; i < p.job.num_experts * p.bitmap_words; i += kThreads) s.bitmaps[i] = 0;
}

/// A bit per token in the bitmap of each of its experts. Masked experts get bits too; nobody reads
/// them.
__device__ void set_bits(const SortParams& p, const Shared& s, const Pairs& pairs, int32_t begin,
                         int32_t end, int32_t first_token, int32_t num_tokens) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int32_t pair = begin + i * kThreads + static_cast<int32_t>(threadIdx.x);
    const int32_t id = pairs.id[i];
    if (pair >= end || id < 0 || id >= p.job.num_experts) continue;
    const int32_t token = pair / p.job.top_k;
    if (token >= num_tokens) continue;
    const int32_t bit = token - first_token;
    const uint32_t mask = 1u << (bit % 32);
    const uint32_t before = atomicOr(&s.bitmaps[id * p.bitmap_words + bit / 32], mask);
    if ((before & mask) != 0) *s.repeated = 1;
  }
}

__device__ int32_t count_bits(const SortParams& p, const Shared& s, int e) {
  int32_t count = 0;
  const uint32_t* words = s.bitmaps + e * p.bitmap_words;
  for (int w = 0; w < p.bitmap_words; ++w) count += __popc(words[w]);
  return count;
}

/// Sum over the threads before this one; every thread of the block takes part.
__device__ uint64_t exclusive_scan(uint64_t value, uint64_t* scratch) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  uint64_t sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t below = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    const uint64_t total = scratch[lane];
    uint64_t prefix = total;
#pragma unroll
    for (int step = 1; step < kWarps; step *= 2) {
      const uint64_t below = __shfl_up_sync(~0u, prefix, step);
      if (lane >= step) prefix += below;
    }
    scratch[lane] = prefix - total;
  }
  __syncthreads();
  return scratch[warp] + sum - value;
}

/// From total[e] (0 where masked) to first_block, local_id and, in cursor, the expert's first row.
__device__ void place_experts(const SortParams& p, const Shared& s, ExpertRange mine,
                              uint32_t mask) {
  constexpr int kLocalShift = 40;  // local experts above, blocks below: one scan serves both
  uint64_t sum = 0;
  for (int e = mine.first; e < mine.last; ++e) {
    sum += static_cast<uint64_t>(ceil_div(s.total[e], p.job.unit_size)) |
           static_cast<uint64_t>(mask >> (e - mine.first) & 1u) << kLocalShift;
  }
  uint64_t before = exclusive_scan(sum, s.scan);
  for (int e = mine.first; e < mine.last; ++e) {
    const bool local = (mask >> (e - mine.first) & 1u) != 0;
    const int32_t block = static_cast<int32_t>(before & ((uint64_t{1} << kLocalShift) - 1));
    s.first_block[e] = block;
    s.cursor[e] = block * p.job.unit_size;
    s.local_id[e] = local ? static_cast<int32_t>(before >> kLocalShift) : -1;
    const int32_t blocks = ceil_div(s.total[e], p.job.unit_size);
    before += static_cast<uint64_t>(blocks) | static_cast<uint64_t>(local) << kLocalShift;
    if (e + 1 == p.job.num_experts) s.first_block[e + 1] = block + blocks;
  }
}

__device__ void write_row(const SortJob& job, int32_t row, int32_t packed, int32_t weight) {
  job.sorted_ids[row] = packed;
  if (job.sorted_weights != nullptr) job.sorted_weights[row] = weight;
  if (job.m_indices != nullptr) job.m_indices[row] = packed_token(packed);
}

/// Whether an earlier slot of the token names the same expert. A row must not; when one does, the
/// first slot keeps its row and the others are skipped, as the bitmaps count them.
__device__ bool repeats(const SortJob& job, int32_t token, int32_t pair, int32_t id) {
  for (int32_t other = token * job.top_k; other < pair; ++other) {
    if (job.topk_ids[other] == id) return true;
  }
  return false;
}

/// Every pair of the pass to its row: cursor plus the tokens before it that chose the same expert.
__device__ void scatter_pairs(const SortParams& p, const Shared& s, const Pairs& pairs,
                              int32_t begin, int32_t end, int32_t first_token, int32_t num_tokens) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int32_t pair = begin + i * kThreads + static_cast<int32_t>(threadIdx.x);
    if (pair >= end) continue;
    const int32_t id = pairs.id[i];
    const int32_t token = pair / p.job.top_k;
    bool chosen = id >= 0 && id < p.job.num_experts && token < num_tokens;
    if (chosen && *s.repeated != 0) chosen = !repeats(p.job, token, pair, id);
    const int32_t local_id = chosen ? s.local_id[id] : -1;
    int32_t row = -1;
    if (local_id >= 0) {
      const int32_t bit = token - first_token;
      const uint32_t* words = s.bitmaps + id * p.bitmap_words;
      row = s.cursor[id] + __popc(words[bit / 32] & ((1u << (bit % 32)) - 1u));
      for (int w = 0; w < bit / 32; ++w) row += __popc(words[w]);
      write_row(p.job, row, pack_pair(token, pair - token * p.job.top_k), pairs.weight[i]);
    }
    if (p.job.local_topk_ids != nullptr) p.job.local_topk_ids[pair] = local_id;
    if (p.job.reverse_sorted != nullptr) p.job.reverse_sorted[pair] = row;
  }
}

/// Block ids and padding rows of experts warp, warp + step, ...
__device__ void finish_experts(const SortParams& p, const Shared& s, int warp, int step) {
  const int lane = threadIdx.x % 32;
  const int32_t padding = pack_pair(p.job.tokens.limit, p.job.top_k);
  for (int e = warp; e < p.job.num_experts; e += step) {
    const int32_t first = s.first_block[e];
    const int32_t last = s.first_block[e + 1];
    for (int b = first + lane; b < last; b += 32) p.job.sorted_expert_ids[b] = s.local_id[e];
    for (int r = first * p.job.unit_size + s.total[e] + lane; r < last * p.job.unit_size; r += 32) {
      write_row(p.job, r, padding, 0);
    }
  }
}

/// Padding rows [begin, end) and blocks [first_block, num_blocks), by threads thread, thread +
/// step...
__device__ void fill_tail(const SortJob& job, int32_t begin, int32_t end, int32_t first_block,
                          int32_t thread, int32_t step) {
  const int32_t padding = pack_pair(job.tokens.limit, job.top_k);
  for (int32_t r = begin + thread; r < end; r += step) write_row(job, r, padding, 0);
  for (int32_t b = first_block + thread; b < job.num_blocks; b += step) {
    job.sorted_expert_ids[b] = -1;
  }
}

__device__ void write_num_valid(const SortJob& job, int32_t num_blocks, int32_t num_tokens) {
  job.num_valid_ids[0] = num_blocks * job.unit_size;
  if (job.num_valid > 1) job.num_valid_ids[1] = num_tokens;
}

/// Blocks beside the sorting ones: each zeroes its share.
__device__ void zero_share(const SortJob& job, int32_t block, int32_t num_blocks) {
  auto* vectors = static_cast<uint4*>(job.zeroed);
  const int64_t count = job.zeroed_bytes / 16;
  const int64_t step = static_cast<int64_t>(num_blocks) * kThreads;
  int64_t i = static_cast<int64_t>(block) * kThreads + threadIdx.x;
  for (; i + (kZeroVectorsPerThread - 1) * step < count; i += kZeroVectorsPerThread * step) {
#pragma unroll
    for (int j = 0; j < kZeroVectorsPerThread; ++j) vectors[i + j * step] = uint4{0, 0, 0, 0};
  }
  for (; i < count; i += step) vectors[i] = uint4{0, 0, 0, 0};
}

__global__ void __launch_bounds__(kThreads) sort_one_shot_kernel(const SortParams p) {
  const SortJob& job = p.job;
  if (blockIdx.x > 0) {
    const int helper = static_cast<int>(blockIdx.x) - 1;
    const int num_helpers = static_cast<int>(gridDim.x) - 1;
    fill_tail(job, p.tail_begin, job.capacity, job.num_blocks,
              helper * kThreads + static_cast<int>(threadIdx.x), num_helpers * kThreads);
    zero_share(job, helper, num_helpers);
    return;
  }
  const Shared s = carve(p);
  const int32_t end = static_cast<int32_t>(job.tokens.limit) * job.top_k;
  const Pairs pairs = load_pairs(job, 0, end, true);
  const int32_t num_tokens = static_cast<int32_t>(job.tokens.value());
  const ExpertRange mine = my_experts(job);
  const uint32_t mask = load_mask(job, mine);
  clear_bitmaps(p, s);
  __syncthreads();
  set_bits(p, s, pairs, 0, end, 0, num_tokens);
  __syncthreads();
  for (int e = mine.first; e < mine.last; ++e) {
    s.total[e] = (mask >> (e - mine.first) & 1u) != 0 ? count_bits(p, s, e) : 0;
  }
  place_experts(p, s, mine, mask);
  __syncthreads();
  scatter_pairs(p, s, pairs, 0, end, 0, num_tokens);
  finish_experts(p, s, static_cast<int>(threadIdx.x) / 32, kWarps);
  const int32_t num_blocks = s.first_block[job.num_experts];
  fill_tail(job, num_blocks * job.unit_size, p.tail_begin, num_blocks,
            static_cast<int32_t>(threadIdx.x), kThreads);
  if (threadIdx.x == 0) write_num_valid(job, num_blocks, num_tokens);
}

/// Tokens [begin, end) of a chunk, pass by pass.
struct Pass {
  int32_t first_token, pair_begin, pair_end;
};
__device__ Pass pass_at(const SortParams& p, int32_t token, int32_t chunk_end) {
  const int32_t last = min(token + p.tokens_per_pass, chunk_end);
  return {token, token * p.job.top_k, last * p.job.top_k};
}

__global__ void __launch_bounds__(kThreads) sort_count_kernel(const SortParams p) {
  let_next_kernel_start();
  const SortJob& job = p.job;
  const Shared s = carve(p);
  const int32_t chunk_begin = static_cast<int32_t>(blockIdx.x) * p.tokens_per_chunk;
  const int32_t chunk_end =
      min(chunk_begin + p.tokens_per_chunk, static_cast<int32_t>(job.tokens.limit));
  const ExpertRange mine = my_experts(job);
  const uint32_t mask = load_mask(job, mine);
  int32_t counts[kMaxExpertsPerThread] = {};
  for (int32_t token = chunk_begin; token < chunk_end; token += p.tokens_per_pass) {
    const Pass pass = pass_at(p, token, chunk_end);
    const Pairs pairs = load_pairs(job, pass.pair_begin, pass.pair_end, false);
    const int32_t num_tokens = static_cast<int32_t>(job.tokens.value());
    clear_bitmaps(p, s);
    __syncthreads();
    set_bits(p, s, pairs, pass.pair_begin, pass.pair_end, token, num_tokens);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kMaxExpertsPerThread; ++j) {
      if (mine.first + j < mine.last && (mask >> j & 1u) != 0) {
        counts[j] += count_bits(p, s, mine.first + j);
      }
    }
    __syncthreads();
  }
  uint16_t* row = p.counts + static_cast<int64_t>(blockIdx.x) * p.count_stride;
#pragma unroll
  for (int j = 0; j < kMaxExpertsPerThread; ++j) {
    if (mine.first + j < mine.last) row[mine.first + j] = static_cast<uint16_t>(counts[j]);
  }
  if (threadIdx.x == 0 && job.num_experts < p.count_stride) row[job.num_experts] = 0;
}

/// total[e] over all chunks; cursor[e] over the chunks before `chunk`.
__device__ void add_up_chunks(const SortParams& p, const Shared& s, int32_t chunk) {
  const int words = p.count_stride / 2;
  const int part = static_cast<int>(threadIdx.x) / words;
  const int32_t plane = p.num_partials * p.count_stride;
  if (part < p.num_partials) {
    const int column_step = p.num_partials == 1 ? kThreads : words;
    for (int w = static_cast<int>(threadIdx.x) - part * words; w < words; w += column_step) {
      const auto* counts = reinterpret_cast<const uint32_t*>(p.counts) + w;
      uint2 all{0, 0};
      uint2 before{0, 0};
#pragma unroll 8
      for (int c = part; c < p.num_chunks; c += p.num_partials) {
        const uint32_t two = __ldcg(counts + static_cast<int64_t>(c) * words);
        const uint32_t low = two & 0xffffu;
        const uint32_t high = two >> 16;
        all.x += low;
        all.y += high;
        before.x += c < chunk ? low : 0u;
        before.y += c < chunk ? high : 0u;
      }
      const int at = part * p.count_stride + 2 * w;
      s.partials[at] = static_cast<int32_t>(all.x);
      s.partials[at + 1] = static_cast<int32_t>(all.y);
      s.partials[plane + at] = static_cast<int32_t>(before.x);
      s.partials[plane + at + 1] = static_cast<int32_t>(before.y);
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e < p.job.num_experts; e += kThreads) {
    int32_t total = 0;
    int32_t before = 0;
    for (int i = 0; i < p.num_partials; ++i) {
      total += s.partials[i * p.count_stride + e];
      before += s.partials[plane + i * p.count_stride + e];
    }
    s.total[e] = total;
    s.partials[e] = before;  // only this thread reads or writes column e from here on
  }
  __syncthreads();
}

__device__ void place_chunk(const SortParams& p, const Shared& s, Pairs pairs, int32_t chunk_begin,
                            int32_t chunk_end, int32_t num_tokens) {
  for (int32_t token = chunk_begin; token < chunk_end; token += p.tokens_per_pass) {
    const Pass pass = pass_at(p, token, chunk_end);
    if (token != chunk_begin) {
      pairs = load_pairs(p.job, pass.pair_begin, pass.pair_end, true);
      clear_bitmaps(p, s);
      __syncthreads();
    }
    set_bits(p, s, pairs, pass.pair_begin, pass.pair_end, token, num_tokens);
    __syncthreads();
    scatter_pairs(p, s, pairs, pass.pair_begin, pass.pair_end, token, num_tokens);
    if (token + p.tokens_per_pass >= chunk_end) return;
    __syncthreads();
    for (int e = threadIdx.x; e < p.job.num_experts; e += kThreads)
      s.cursor[e] += count_bits(p, s, e);
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) sort_place_kernel(const SortParams p) {
  const SortJob& job = p.job;
  const int32_t chunk = static_cast<int32_t>(blockIdx.x);
  if (chunk >= p.num_chunks) {
    zero_share(job, chunk - p.num_chunks, static_cast<int32_t>(gridDim.x) - p.num_chunks);
    wait_for_previous_kernel();
    return;
  }
  const Shared s = carve(p);
  const int32_t chunk_begin = chunk * p.tokens_per_chunk;
  const int32_t chunk_end =
      min(chunk_begin + p.tokens_per_chunk, static_cast<int32_t>(job.tokens.limit));
  // Everything that does not need the counts comes before the wait.
  const Pass first = pass_at(p, chunk_begin, chunk_end);
  const Pairs pairs = load_pairs(job, first.pair_begin, first.pair_end, true);
  const int32_t num_tokens = static_cast<int32_t>(job.tokens.value());
  const ExpertRange mine = my_experts(job);
  const uint32_t mask = load_mask(job, mine);
  clear_bitmaps(p, s);
  wait_for_previous_kernel();
  add_up_chunks(p, s, chunk);
  place_experts(p, s, mine, mask);
  __syncthreads();
  for (int e = threadIdx.x; e < job.num_experts; e += kThreads) s.cursor[e] += s.partials[e];
  __syncthreads();
  place_chunk(p, s, pairs, chunk_begin, chunk_end, num_tokens);
  const int32_t thread = chunk * kThreads + static_cast<int32_t>(threadIdx.x);
  finish_experts(p, s, thread / 32, p.num_chunks * kWarps);
  const int32_t num_blocks = s.first_block[job.num_experts];
  fill_tail(job, num_blocks * job.unit_size, job.capacity, num_blocks, thread,
            p.num_chunks * kThreads);
  if (thread == 0) write_num_valid(job, num_blocks, num_tokens);
}

/// Nothing to sort: everything is padding.
__global__ void sort_nothing_kernel(const SortParams p) {
  fill_tail(p.job, 0, p.job.capacity, 0,
            static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x),
            static_cast<int32_t>(gridDim.x * blockDim.x));
  zero_share(p.job, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(gridDim.x));
  if (blockIdx.x == 0 && threadIdx.x == 0) write_num_valid(p.job, 0, 0);
}

/// Blocks that zero or fill beside the sorting ones; two per SM saturate the memory.
int64_t num_helpers(const SortJob& job, int64_t extra_rows, int num_sms) {
  const int64_t vectors = job.zeroed_bytes / 16 + extra_rows / 4;
  const int64_t useful = ceil_div<int64_t>(vectors, 2 * kThreads);
  return useful < 2 * num_sms ? useful : 2 * num_sms;
}

}  // namespace

void sort(const SortJob& job, const SortPlan& plan, void* scratch, int device, Stream stream) {
  const DeviceFacts& facts = device_facts(device);
  const auto cuda_stream = static_cast<cudaStream_t>(stream.handle);
  SortParams p{.job = job,
               .counts = static_cast<uint16_t*>(scratch),
               .num_chunks = static_cast<int32_t>(plan.num_chunks),
               .tokens_per_chunk = static_cast<int32_t>(plan.tokens_per_chunk),
               .tokens_per_pass = static_cast<int32_t>(plan.tokens_per_pass),
               .bitmap_words = static_cast<int32_t>(plan.bitmap_words),
               .count_stride = static_cast<int32_t>(sort_count_stride(job.num_experts)),
               .num_partials = static_cast<int32_t>(sort_num_partials(job.num_experts)),
               .tail_begin = job.capacity};
  const auto blocks = [](int64_t count) { return dim3(static_cast<unsigned>(count)); };
  if (job.tokens.limit == 0) {
    const int64_t helpers = num_helpers(job, job.capacity, facts.num_sms);
    launch(sort_nothing_kernel, {.grid = blocks(helpers < 1 ? 1 : helpers), .block = kThreads},
           cuda_stream, p);
    return;
  }
  if (plan.path == SortPath::kOneShot) {
    const int64_t used =
        max_padded_rows(job.tokens.limit, job.top_k, job.num_experts, job.unit_size);
    const int64_t helpers =
        num_helpers(job, used < job.capacity ? job.capacity - used : 0, facts.num_sms);
    if (helpers > 0 && used < job.capacity) p.tail_begin = static_cast<int32_t>(used);
    launch(sort_one_shot_kernel,
           {.grid = blocks(1 + helpers), .block = kThreads, .shared_bytes = plan.shared_bytes},
           cuda_stream, p);
    return;
  }
  launch(sort_count_kernel,
         {.grid = blocks(plan.num_chunks), .block = kThreads, .shared_bytes = plan.shared_bytes},
         cuda_stream, p);
  launch(sort_place_kernel,
         {.grid = blocks(plan.num_chunks + num_helpers(job, 0, facts.num_sms)),
          .block = kThreads,
          .shared_bytes = plan.shared_bytes,
          .overlap_previous = facts.capability >= 90},
         cuda_stream, p);
}

}  // namespace switchyard::cuda
