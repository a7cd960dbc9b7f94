#pragma once
// Down and the sum over a token's slots as one kernel: a CTA keeps its rows in shared memory while
// the columns of the output pass, a slab at a time, through a ring that stays in the L2. Who owns
// which rows and tokens, where a sum lies, and who waits for whom.

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/grouped_gemm_config.h"
#include "core/host_device.h"
#include "core/math.h"

namespace switchyard {

inline constexpr int kDownSumWaveRows = 64;  ///< the M of one wgmma
/// Of a slab: a row's piece is then one line of the L2. With rows that stay, narrow slabs cost no
/// operand traffic, and the more of them fit the less anybody waits.
inline constexpr int kDownSumColumns = 64;
inline constexpr int kDownSumRowBytes = kDownSumColumns * 2;
inline constexpr int kDownSumBlockBytes = 128;   ///< of K, one swizzle atom
inline constexpr int kDownSumBlocks = 2;         ///< of K, zeros where it is shorter
inline constexpr int kDownSumSlots = 12;         ///< of a token that are loaded together
inline constexpr int kDownSumSourceSlots = 4;    ///< whose places are one load
inline constexpr int kDownSumProductGroups = 2;  ///< warpgroups that multiply
/// Of an expert's weights for a slab. A group gives one back before it waits for the next.
inline constexpr int kDownSumLeastBuffers = 2, kDownSumMostBuffers = 8;
/// Of the ring. A group tells of slabs without a wave of its own ahead of time, and a barrier
/// serves every kDownSumPlaces-th slab.
inline constexpr int kDownSumPlaces = 8;
inline constexpr int kDownSumMostSlots = kDownSumPlaces - kDownSumProductGroups;
/// Two take 690 us where three take 566 (R1 TP8, T = 8192).
inline constexpr int kDownSumLeastSlots = 3;

/// Warps that sum, in teams: with few tokens a team is small, and teams take slabs in turn, because
/// a slab's sum is all waiting for loads. A team has at least two rounds of four tokens per warp.
inline constexpr int kDownSumTeamWarps = 8;
SWITCHYARD_HOST_DEVICE constexpr int down_sum_team_warps(int tokens) {
  int warps = 1;
  while (warps < kDownSumTeamWarps && warps * 8 < tokens) warps *= 2;
  return warps;
}

/// Part `index` of `count` things dealt to `parts`, in order: no two parts differ by more than one.
struct DownSumShare {
  int32_t begin = 0, end = 0;
  SWITCHYARD_HOST_DEVICE constexpr int32_t size() const { return end - begin; }
  constexpr bool operator==(const DownSumShare&) const = default;
};
SWITCHYARD_HOST_DEVICE constexpr DownSumShare down_sum_share(int32_t count, int32_t parts,
                                                             int32_t index) {
  const auto at = [&](int32_t i) { return static_cast<int32_t>(int64_t{count} * i / parts); };
  return {at(index), at(index + 1)};
}

/// Index of the highest bit; `bits` is not 0.
SWITCHYARD_HOST_DEVICE constexpr int highest_bit(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return 31 - __clz(static_cast<int>(bits));
#else
  return 31 - std::countl_zero(bits);
#endif
}

/// Waves (64 rows of one expert) are dealt in order, to each CTA as many whole experts as it may
/// take, because an expert's weights are read by every CTA that has waves of it. One wave more than
/// equal shares have lets R1 TP8's T = 8192 (9 to 10) read them 256 times, not 387.
struct DownSumWaves {
  const uint32_t* first;  ///< a bit per wave: an expert's first. One word more than waves need
  int32_t count;
  int32_t most;  ///< of a CTA, at most 32; all together have room for all

  /// Where the share that begins at `begin` ends; `others` come after it.
  SWITCHYARD_HOST_DEVICE constexpr int32_t end_of(int32_t begin, int32_t others) const {
    if (count - begin <= most) return count;
    const int32_t next = begin + 1, word = next / 32, shift = next % 32;
    const uint64_t both = uint64_t{first[word + 1]} << 32 | first[word];
    const uint32_t bits = static_cast<uint32_t>(both >> shift) & ((uint32_t{2} << (most - 1)) - 1);
    if (bits == 0) return begin + most;
    const int32_t whole = next + highest_bit(bits);
    return count - whole <= others * most ? whole : begin + most;
  }
  SWITCHYARD_HOST_DEVICE static constexpr int32_t most_of(int32_t count, int32_t parts,
                                                          int32_t fit) {
    const int32_t wanted = ceil_div(count, parts) + 1;
    return wanted < fit ? wanted : fit;
  }
  SWITCHYARD_HOST_DEVICE constexpr DownSumShare share(int32_t parts, int32_t index) const {
    DownSumShare share;
    for (int32_t i = 0; i <= index; ++i) {
      share = {share.end, end_of(share.end, parts - 1 - i)};
    }
    return share;
  }
};

/// The most groups of 64 rows of one expert that hold a pair.
constexpr int64_t down_sum_max_waves(int64_t num_pairs, int64_t num_experts) {
  const int64_t used = std::min(num_pairs, num_experts);
  return (num_pairs + used * (kDownSumWaveRows - 1)) / kDownSumWaveRows;
}

/// wgmma's lanes hold columns 2 q and 2 q + 1 of every eight. A slab keeps them as they are: its
/// sums are an eighth of what is summed, so they are brought into order, not what they are made of.
/// 16 bytes `part` of a row are the pairs of columns 32 (part / 4) + 8 i + 2 (part % 4), i < 4; a
/// warp stores eight rows of four parts as 512 bytes in a row.
SWITCHYARD_HOST_DEVICE constexpr int32_t down_sum_place(int32_t row, int32_t part) {
  return row / 8 * (8 * kDownSumRowBytes) + part / 4 * 512 + row % 8 * 64 + part % 4 * 16;
}

/// Byte offsets into shared memory.
struct DownSumShared {
  int rows = 0, weights = 0;
  int margins = 0;    ///< of the weights: scales and bias
  int row_facts = 0;  ///< scales and weight of each
  int waves = 0;      ///< rows and expert of each
  int sources = 0;
  int barriers = 0;
  int bytes = 0;
};
/// At most so many waves, and slots of tokens, of a CTA.
struct DownSumSize {
  int waves = 0, sources = 0;
  int buffers = kDownSumLeastBuffers;
};
inline constexpr int kDownSumRowEntry = 16, kDownSumWaveEntry = 16;
inline constexpr int kDownSumMarginBytes = 2 * kDownSumColumns * 4 + kDownSumBlocks * 8;
inline constexpr int kDownSumBarriers = 2 * kDownSumMostBuffers + 4 * kDownSumPlaces + 1;
inline constexpr int kDownSumBufferBytes =
    kDownSumBlocks * kDownSumColumns * kDownSumBlockBytes + kDownSumMarginBytes;
SWITCHYARD_HOST_DEVICE constexpr DownSumShared down_sum_shared(const DownSumSize& size) {
  constexpr int kBlock = kDownSumWaveRows * kDownSumBlockBytes;
  constexpr int kSwizzleAlignment = 1024;
  const int rows = size.waves * kDownSumWaveRows;
  DownSumShared s;
  s.weights = size.waves * kDownSumBlocks * kBlock;
  s.margins = s.weights + size.buffers * kDownSumBlocks * kBlock;
  s.row_facts = s.margins + size.buffers * kDownSumMarginBytes;
  s.waves = s.row_facts + rows * kDownSumRowEntry;
  s.sources = s.waves + size.waves * kDownSumWaveEntry;
  s.barriers = s.sources + align_up(size.sources * 4, 16);
  s.bytes = s.barriers + kDownSumBarriers * 8 + kSwizzleAlignment;
  return s;
}

/// One batch. fits: its rows stay in shared memory.
struct DownSumPlan {
  bool fits = false;
  DownSumSize size{};
  int32_t num_slots = 0;
  int64_t slot_bytes = 0;
  int64_t num_slabs = 0;
  constexpr int64_t ring_bytes() const { return num_slots * slot_bytes; }
  constexpr int64_t counter_bytes() const { return align_up<int64_t>(2 * num_slabs * 4, 16); }
};
/// Of pairs. The L2 holds 50 MB, but what SMs of its other half read lies there twice: 34 MB went
/// to memory and back (616 us against 572 of T = 8192 in 25 MB); with less, slabs wait for each
/// other.
inline constexpr int64_t kDownSumRingBytes = int64_t{25} << 20;
/// Expert outputs from which on their way to memory and back costs more than waiting for others:
/// R1 TP8 takes 480 us with T = 1024 in slabs, 458 without.
inline constexpr int64_t kDownSumMinOutputBytes = int64_t{200} << 20;
/// The same of weights that are converted: 411 us against 440 of T = 4096, 306 against 268 of 2048.
inline constexpr int64_t kDownSumMinConvertedBytes = int64_t{400} << 20;

/// Of this batch and any with fewer pairs, which may have more slots.
constexpr int64_t down_sum_most_ring_bytes(int64_t num_pairs, int64_t num_experts) {
  constexpr int64_t kMostPadding = 192;
  return std::max(kDownSumRingBytes, kDownSumLeastSlots * num_pairs * kDownSumRowBytes) +
         kDownSumMostSlots * num_experts * kMostPadding * kDownSumRowBytes;
}

struct DownSumBatch {
  int64_t tokens = 0, top_k = 0, experts = 0;
  int64_t sorted_rows = 0;  ///< capacity
  int64_t row_bytes = 0;    ///< K
  int64_t columns = 0;
};
constexpr DownSumPlan plan_down_sum(const DownSumBatch& batch, int num_sms) {
  DownSumPlan plan;
  const int64_t pairs = batch.tokens * batch.top_k;
  if (pairs == 0 || batch.columns % kDownSumColumns != 0 ||
      batch.row_bytes > kDownSumBlocks * kDownSumBlockBytes) {
    return plan;
  }
  plan.size = {.waves = static_cast<int>(
                   ceil_div<int64_t>(down_sum_max_waves(pairs, batch.experts), num_sms)),
               .sources = static_cast<int>(ceil_div<int64_t>(batch.tokens, num_sms) *
                                           align_up<int64_t>(batch.top_k, kDownSumSourceSlots))};
  plan.num_slabs = batch.columns / kDownSumColumns;
  plan.slot_bytes = batch.sorted_rows * kDownSumRowBytes;
  plan.num_slots = static_cast<int32_t>(std::clamp<int64_t>(
      kDownSumRingBytes / (pairs * kDownSumRowBytes), kDownSumLeastSlots, kDownSumMostSlots));
  const int least = down_sum_shared(plan.size).bytes;
  plan.fits = least <= kSm90SharedBytes;
  plan.size.buffers = std::min(
      kDownSumMostBuffers,
      kDownSumLeastBuffers + static_cast<int>(kSm90SharedBytes - least) / kDownSumBufferBytes);
  return plan;
}

/// Expected time. R1 TP8 with FP8 weights on an H200 takes 247, 334 and 557 us (T = 2048, 4096 and
/// 8192).
constexpr double down_sum_us(const DownSumBatch& batch, int num_sms) {
  constexpr double kSlabUs = 0.82, kWaveUs = 0.475;
  const double waves = static_cast<double>(batch.tokens * batch.top_k) / kDownSumWaveRows +
                       static_cast<double>(batch.experts) / 2;  // each expert's last one is short
  return static_cast<double>(batch.columns / kDownSumColumns) *
         (kSlabUs + kWaveUs * waves / num_sms);
}

}  // namespace switchyard
