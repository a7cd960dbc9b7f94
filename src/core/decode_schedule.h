#pragma once
// How few rows per expert are divided among a GPU: weights are the traffic, so every lane (a ring
// of shared memory and the consumer warpgroups that it feeds, its team) streams an equal share of
// them whatever the routing.
//
// A unit is a strip of weight rows, 64 for each of a team, x one chunk of K for one block of sorted
// rows. Units are a flat list: blocks of sorted rows, in each the strips of its expert's matrix, in
// each the chunks of K. Lanes have neighbouring ranges of U / P units or one more. A strip that
// lies in several lanes is cut: the sum of every chunk is a number of its own, chunks are added in
// k order by the lane that arrives last, so no bit depends on where the cuts are. Where whole
// strips divide well enough none is cut. With few strips, clusters take whole ones and cut them
// among their own lanes, whose sums meet in shared memory.

#include <cstdint>

#include "core/host_device.h"
#include "core/math.h"

namespace switchyard {

/// Weight rows of a warpgroup: M of its matrix instruction.
inline constexpr int32_t kDecodeRows = 64;
/// Rows of the sort's blocks that the kernels have tiles for.
inline constexpr int32_t kDecodeMaxUnit = 64;

/// How many units more than its share a CTA may have so that no strip is cut. A cut's end takes 3
/// us of storing, counting and adding, more with taller tiles, whose units are larger; and stores
/// cost the stream of weights several times their bytes (R1 TP8 FP8 without cuts, us: T = 8 90 to
/// 87, T = 16 146 to 141, where one CTA in two has a sixth more, T = 64 306 to 296).
SWITCHYARD_HOST_DEVICE constexpr int32_t decode_cut_units(int32_t team, int32_t share) {
  constexpr int32_t kLeast = 4, kPart = 6, kOfTeams = 2;
  return team == 1 ? (share / kPart > kLeast ? share / kPart : kLeast) : kOfTeams;
}

/// Warpgroups of a lane. They share the tokens of each step, which would else be as many bytes as
/// the weights from 32 rows on. With 8 rows both ways take the same time (R1 TP8, T = 64: 187 us),
/// and small units divide better.
SWITCHYARD_HOST_DEVICE constexpr int32_t decode_team(int32_t unit_size) {
  return unit_size <= 8 ? 1 : unit_size <= 32 ? 4 : 3;
}
/// Lanes of a CTA, one CTA per SM: as many as registers allow, because a warpgroup's waits are
/// hidden by the others.
SWITCHYARD_HOST_DEVICE constexpr int32_t decode_lanes(int32_t unit_size) {
  return unit_size <= 8 ? 4 : 1;
}

/// CTAs of a cluster.
inline constexpr int32_t kDecodeClusterCtas = 2;
/// Whole strips are cut all the same where that makes the longest lane so many times shorter (R1
/// TP8, T = 2: 14 chunks to 4, 34.2 to 33.1 us; gpt-oss-120b, T = 1: 6 to 3, 29.9 to 32.0).
inline constexpr int32_t kDecodeClusterGain = 3;
/// Tokens that a thread has sums of come in pairs; those of a cluster's cuts that exist.
SWITCHYARD_HOST_DEVICE constexpr int32_t decode_shared_pairs(int32_t expert_rows,
                                                             int32_t unit_size) {
  return ceil_div(expert_rows < unit_size ? expert_rows : unit_size, 2);
}
/// Bytes of a chunk's sums there.
SWITCHYARD_HOST_DEVICE constexpr int32_t decode_shared_sum_bytes(int32_t pairs) {
  return kDecodeRows * pairs * 2 * 4;
}

/// Consecutive chunks of one strip that one lane computes.
struct DecodeRun {
  int32_t block = 0, strip = 0;
  int32_t chunk_begin = 0, chunk_end = 0;
  bool whole = false;  ///< all of the strip's chunks
};

/// The lanes that share one strip.
struct DecodeOwners {
  int32_t first = 0, last = 0;
  SWITCHYARD_HOST_DEVICE constexpr int32_t count() const { return last - first + 1; }
};

/// The units of one lane: how many, and the first.
struct DecodeStart {
  int32_t left = 0;
  int32_t block = 0, strip = 0, chunk = 0;
};

struct DecodeSchedule {
  int32_t num_blocks = 0;  ///< of sorted rows
  int32_t num_strips = 0;  ///< of an expert's matrix
  int32_t num_chunks = 0;  ///< of K
  int32_t num_lanes = 0;
  int32_t num_ctas = 0;  ///< that the lanes are of
  /// Units that stay together: one, or a strip's.
  int32_t grain = 1;
  /// Grains of a lane, and lanes with one more, which come first. Divided once: a kernel begins
  /// with this.
  int32_t share = 0, longer = 0;
  /// Lanes of a cluster, if clusters take whole strips; the grains above are then theirs. Else 0.
  int32_t cluster_lanes = 0;

  /// shared_sums: chunks whose sums fit a CTA's shared memory; 0 without clusters.
  SWITCHYARD_HOST_DEVICE constexpr DecodeSchedule(int32_t blocks, int32_t strips, int32_t chunks,
                                                  int32_t lanes, int32_t ctas, int32_t team = 1,
                                                  int32_t shared_sums = 0)
      : num_blocks(blocks),
        num_strips(strips),
        num_chunks(chunks),
        num_lanes(lanes),
        num_ctas(ctas) {
    if (num_units() == 0) return;
    const int32_t whole = ceil_div(num_blocks * num_strips, num_ctas) * num_chunks;
    const int32_t even = num_units() / num_ctas;
    if (whole <= even + decode_cut_units(team, even)) grain = num_chunks;
    if (shared_sums > 0 && num_chunks > 1) {
      const int32_t clusters = num_ctas / kDecodeClusterCtas;
      const int32_t lanes_each = num_lanes / clusters;
      const int32_t most = ceil_div(num_blocks * num_strips, clusters) * num_chunks;
      const bool cuts = grain == 1 || ceil_div(most, lanes_each) * kDecodeClusterGain <= num_chunks;
      if (cuts && most <= shared_sums) {
        cluster_lanes = lanes_each;
        grain = num_chunks;
        share = num_grains() / clusters;
        longer = num_grains() - share * clusters;
        return;
      }
    }
    share = num_grains() / used_lanes();
    longer = num_grains() - share * used_lanes();
  }
  /// A CTA's lane: neighbours are of one CTA, unless whole strips shall meet all CTAs.
  SWITCHYARD_HOST_DEVICE constexpr int32_t lane_at(int32_t cta, int32_t lane) const {
    return grain > 1 && cluster_lanes == 0 ? lane * num_ctas + cta
                                           : cta * (num_lanes / num_ctas) + lane;
  }
  SWITCHYARD_HOST_DEVICE constexpr int32_t num_grains() const {
    return grain == 1 ? num_units() : num_blocks * num_strips;
  }

  SWITCHYARD_HOST_DEVICE constexpr int32_t num_units() const {
    return num_blocks * num_strips * num_chunks;
  }
  /// Lanes with work: none of them has an empty range. Not of clusters.
  SWITCHYARD_HOST_DEVICE constexpr int32_t used_lanes() const {
    return num_lanes < num_grains() ? num_lanes : num_grains();
  }
  /// First unit of a lane, and end of the one before; lanes past the used ones begin at the end.
  SWITCHYARD_HOST_DEVICE constexpr int32_t begin(int32_t lane) const {
    if (cluster_lanes > 0) {
      const int32_t cluster = lane / cluster_lanes;
      const int32_t first = begin_of_share(cluster);
      const int32_t units = begin_of_share(cluster + 1) - first;
      return first + (lane - cluster * cluster_lanes) * units / cluster_lanes;
    }
    if (lane >= used_lanes()) return num_units();
    return begin_of_share(lane);
  }
  SWITCHYARD_HOST_DEVICE constexpr int32_t lane_of(int32_t unit) const {
    if (cluster_lanes == 0) return share_of(unit);
    const int32_t cluster = share_of(unit);
    const int32_t first = begin_of_share(cluster);
    const int32_t units = begin_of_share(cluster + 1) - first;
    return cluster * cluster_lanes + ((unit - first + 1) * cluster_lanes - 1) / units;
  }
  SWITCHYARD_HOST_DEVICE constexpr DecodeStart start(int32_t lane) const {
    const int32_t unit = begin(lane);
    DecodeStart at{.left = begin(lane + 1) - unit};
    if (at.left == 0) return at;
    const int32_t strips = unit / num_chunks;
    at.block = strips / num_strips;
    at.strip = strips - at.block * num_strips;
    at.chunk = unit - strips * num_chunks;
    return at;
  }
  SWITCHYARD_HOST_DEVICE constexpr DecodeOwners owners(const DecodeRun& run) const {
    const int32_t first = (run.block * num_strips + run.strip) * num_chunks;
    return {lane_of(first), lane_of(first + num_chunks - 1)};
  }

 private:
  SWITCHYARD_HOST_DEVICE constexpr int32_t begin_of_share(int32_t at) const {
    return (at * share + (at < longer ? at : longer)) * grain;
  }
  SWITCHYARD_HOST_DEVICE constexpr int32_t share_of(int32_t unit) const {
    const int32_t at = unit / grain;
    const int32_t before = longer * (share + 1);  // grains of the longer lanes
    const bool in_longer = at < before;
    const int32_t lanes = (in_longer ? at : at - before) / (in_longer ? share + 1 : share);
    return in_longer ? lanes : longer + lanes;
  }
};

/// What a lane has to know.
struct DecodeDivision {
  DecodeSchedule schedule;
  DecodeStart start;
};

/// In a CTA of a cluster: where a strip's sums meet. One place for each chunk, of which that of
/// chunk 0, which needs none, has the barrier.
SWITCHYARD_HOST_DEVICE constexpr int32_t decode_shared_place(const DecodeSchedule& s,
                                                             const DecodeOwners& owners,
                                                             const DecodeRun& run) {
  const int32_t first = owners.first / s.cluster_lanes * s.cluster_lanes;  // lane
  return (run.block * s.num_strips + run.strip) * s.num_chunks - s.begin(first);
}

/// CTAs that share a strip where the rows of a single token are summed: the choices are divided
/// among their lanes, whose results meet in the shared memory of the first. 0: too many strips.
SWITCHYARD_HOST_DEVICE constexpr int32_t decode_sum_ctas(int32_t num_rows, int32_t num_ctas) {
  const int32_t strips = ceil_div(num_rows, kDecodeRows);
  return strips * 2 <= num_ctas ? 2 : strips <= num_ctas ? 1 : 0;
}
/// The strip of a CTA.
SWITCHYARD_HOST_DEVICE constexpr int32_t decode_sum_strip(int32_t cta, int32_t sum_ctas) {
  return sum_ctas == 1 ? cta : cta / 2;
}
/// The units of a lane: that strip, as if it were the only one, of some choices, which are blocks.
SWITCHYARD_HOST_DEVICE constexpr DecodeStart decode_sum_start(int32_t cta, int32_t lane,
                                                              int32_t sum_ctas, int32_t choices,
                                                              int32_t num_chunks) {
  const auto lanes = static_cast<uint32_t>(sum_ctas * decode_lanes(1));
  const int32_t rank = cta - decode_sum_strip(cta, sum_ctas) * sum_ctas;
  const auto at = static_cast<uint32_t>(rank * decode_lanes(1) + lane);
  const auto all = static_cast<uint32_t>(choices);
  const auto first = static_cast<int32_t>(at * all / lanes);
  const auto end = static_cast<int32_t>((at + 1) * all / lanes);
  return {.left = (end - first) * num_chunks, .block = first};
}
/// Bytes of the results of all choices for one strip, and of the barrier before them.
inline constexpr int32_t kDecodeSumBarrierBytes = 16;
SWITCHYARD_HOST_DEVICE constexpr int32_t decode_sum_bytes(int32_t choices) {
  return choices * decode_shared_sum_bytes(1);
}

/// Where the owners of a cut strip leave their sums: the first one its sum so far (as chunk 0),
/// the others every chunk by itself. No lane is the first owner of two cuts.
SWITCHYARD_HOST_DEVICE constexpr int64_t decode_partial_slot(int32_t num_chunks,
                                                             const DecodeOwners& owners,
                                                             int32_t chunk) {
  return static_cast<int64_t>(owners.first) * num_chunks + chunk;
}
/// warpgroups: of all lanes.
constexpr int64_t decode_partial_bytes(int64_t warpgroups, int64_t num_chunks, int64_t unit_size) {
  return warpgroups * num_chunks * kDecodeRows * unit_size * 4;
}

/// Rows per block of sorted rows: holds all rows of nearly every expert (mean + 2.4 sigma of a
/// Poisson), because each further block reads the expert's weights again.
constexpr int32_t decode_unit_size(int64_t num_tokens, int64_t top_k, int64_t num_experts) {
  const int64_t mean = ceil_div(num_tokens * top_k, num_experts);
  for (int32_t unit = 8; unit < kDecodeMaxUnit; unit *= 2) {
    const int64_t room = unit - mean;
    if (num_tokens <= unit || (room > 0 && room * room >= 6 * mean)) return unit;
  }
  return kDecodeMaxUnit;
}

/// Tokens of a pass where other kernels take what is more.
inline constexpr int64_t kDecodeMaxTokens = 256;
/// Tokens of a pass where none do: rows fill most of the largest tiles, since every pass reads all
/// weights again (Kimi-K2 INT4, T = 1024: 8 passes of 128 took 7.0 ms).
constexpr int64_t decode_pass_tokens(int64_t top_k, int64_t num_experts) {
  const int64_t tokens = kDecodeMaxUnit * 3 / 4 * num_experts / top_k;
  return tokens < kDecodeMaxTokens ? kDecodeMaxTokens : tokens;
}

/// K of one matrix as the ring sees it: steps (one stage of the ring) of a chunk (one sum).
struct DecodeSteps {
  int32_t num_steps = 0;
  int32_t chunk_steps = 0;
  SWITCHYARD_HOST_DEVICE constexpr int32_t num_chunks() const {
    return ceil_div(num_steps, chunk_steps);
  }
  SWITCHYARD_HOST_DEVICE constexpr int32_t steps_of(int32_t chunk) const {
    const int32_t left = num_steps - chunk * chunk_steps;
    return left < chunk_steps ? left : chunk_steps;
  }
};

/// One lane's walk over the stages of its ring, as producer and consumer both take it.
struct DecodeWalk {
  DecodeSteps steps{};
  int32_t num_strips = 0, num_chunks = 0;
  int32_t left = 0;  ///< units
  int32_t block = 0, strip = 0, chunk = 0, step = 0;
  int32_t slot = 0, num_slots = 1;
  uint32_t phase = 0;

  SWITCHYARD_HOST_DEVICE constexpr DecodeWalk(const DecodeStart& start, const DecodeSteps& k,
                                              int32_t strips, int32_t chunks, int32_t slots)
      : steps(k),
        num_strips(strips),
        num_chunks(chunks),
        left(start.left),
        block(start.block),
        strip(start.strip),
        chunk(start.chunk),
        num_slots(slots) {}
  /// What the lane computes of the current strip, from the current chunk on. No division: the
  /// kernels ask once per strip.
  SWITCHYARD_HOST_DEVICE constexpr DecodeRun run() const {
    const bool to_the_end = left >= num_chunks - chunk;
    return {.block = block,
            .strip = strip,
            .chunk_begin = chunk,
            .chunk_end = to_the_end ? num_chunks : chunk + left,
            .whole = chunk == 0 && to_the_end};
  }
  SWITCHYARD_HOST_DEVICE constexpr bool done() const { return left == 0; }
  /// In steps from column 0.
  SWITCHYARD_HOST_DEVICE constexpr int32_t k_step() const {
    return chunk * steps.chunk_steps + step;
  }
  SWITCHYARD_HOST_DEVICE constexpr void advance() {
    next_slot();
    if (++step < steps.steps_of(chunk)) return;
    step = 0;
    pass(1);
  }
  /// advance() in two parts: who takes a whole run counts its slots, then its units.
  SWITCHYARD_HOST_DEVICE constexpr void next_slot() {
    if (++slot == num_slots) slot = 0, phase ^= 1;
  }
  SWITCHYARD_HOST_DEVICE constexpr void pass(int32_t units) {
    left -= units;
    chunk += units;
    if (chunk < num_chunks) return;
    chunk = 0;
    if (++strip < num_strips) return;
    strip = 0;
    ++block;
  }
};

/// Shared memory of one CTA, in bytes from its 1024-byte aligned start.
struct DecodeShared {
  int32_t team = 1;
  int32_t slots = 0;  ///< of one lane's ring
  int32_t slot_bytes = 0, step_bytes = 0, token_bytes = 0, scale_bytes = 0;
  int32_t scales = 0, factors = 0, tables = 0, barriers = 0;
  int32_t division = 0;       ///< a DecodeDivision of each lane
  int32_t factor_strips = 0;  ///< strips of a lane whose factors are there
  int32_t factor_bytes = 0;   ///< of a strip
  int32_t table_bytes = 0;    ///< of a warpgroup
  int32_t bytes = 0;
  /// Sums of a cluster's cuts, in what the ring leaves; none: no clusters.
  int32_t sums = 0, num_sums = 0;
  int32_t sum_pairs = 0;
};

/// What a lane notes about each row of a block, and words in which its threads tell each other.
inline constexpr int32_t kDecodeRowBytes = 16;
inline constexpr int32_t kDecodeNoteBytes = 16;
/// Scale and bias of each of 64 weight rows.
inline constexpr int32_t kDecodeFactorBytes = 2 * kDecodeRows * 4;

/// Room for weights (step_bytes for each of a team) and tokens (blocks of 128 bytes, K-major) of as
/// many steps as fit.
SWITCHYARD_HOST_DEVICE constexpr DecodeShared decode_shared(int32_t lanes, int32_t team,
                                                            int32_t step_bytes,
                                                            int32_t token_blocks,
                                                            int32_t scales_per_step,
                                                            int32_t unit_size, int32_t capacity) {
  DecodeShared s;
  s.team = team;
  s.step_bytes = step_bytes;
  s.token_bytes = token_blocks * 128 * unit_size;
  s.slot_bytes = align_up(team * step_bytes, 1024) + s.token_bytes;
  s.scale_bytes = scales_per_step * 4;
  s.factor_bytes = team * kDecodeFactorBytes;
  s.table_bytes = unit_size * kDecodeRowBytes + kDecodeNoteBytes;
  constexpr int32_t kBarriers = 16;  // full and empty of a slot
  constexpr auto kDivision = static_cast<int32_t>(sizeof(DecodeDivision));
  const int32_t room = capacity / lanes - kDivision - team * s.table_bytes - s.factor_bytes -
                       2 * kBarriers;  // align_up of factors
  s.slots = room / (s.slot_bytes + s.scale_bytes + s.factor_bytes + kBarriers);
  // A strip whose slot is free again may still be in its end.
  s.factor_strips = s.slots + 1;
  const int32_t all = lanes * s.slots;
  s.scales = all * s.slot_bytes;
  s.factors = align_up(s.scales + all * s.scale_bytes, 16);
  s.tables = s.factors + lanes * s.factor_strips * s.factor_bytes;
  s.barriers = s.tables + lanes * team * s.table_bytes;
  s.division = s.barriers + all * kBarriers;
  s.bytes = s.division + lanes * kDivision;
  return s;
}

}  // namespace switchyard
