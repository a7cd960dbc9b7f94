#pragma once
// One panel of 32 outputs times any number of rows. Every output element is one definition whatever
// the tile and the instruction set, so its bits depend on neither:
//   integer rows    acc = fma(float(exact int32 sum of 32 products) * weight scale, row scale, acc)
//                   without the weight scale where int8 has one per output, which follows at the
//                   end
//   scaled weights  chain = fma(value, x, chain) over 32 columns; acc = fma(chain, scale, acc)
//   plain floats    acc = fma(value, x, acc)
// in ascending column order (16 in place of 32 where scales are per 16).
// Included only by kernels_*.cpp; internal linkage.

#include "cpu/panel_float.h"
#include "cpu/panel_int.h"

namespace switchyard::cpu {
namespace {

/// What scales are multiplied with besides the matrix's own global scale.
constexpr float scale_factor(PanelValues values, bool integer) {
  if (values == PanelValues::kFp4 && integer) return 0.5f;  // codes were doubled
  if (values == PanelValues::kFp8E4m3) return 256.0f;       // decoded 2^-8 too small
  return 1.0f;
}

static void aim_prefetch(const MultiplyJob& job, Slab& slab) {
  const PanelLayout& layout = *job.layout;
  const uint8_t* next = job.next == nullptr ? job.panel : job.next;
  const bool one_integer_row = job.row_layout->integer() && job.num_rows == 1;
  const bool by_hardware = one_integer_row && layout.scales_in_blocks && hardware_reads_ahead();
  if (by_hardware && next == job.panel + layout.panel_bytes) {
    slab.ahead = slab.beyond = nullptr;
    return;
  }
  int64_t distance = prefetch_bytes(layout.values, one_integer_row);
  if (shares_prefetches(job)) {
    const int blocks = layout.num_blocks < kSlabBlocks ? layout.num_blocks : kSlabBlocks;
    distance = int64_t{blocks} * layout.block_bytes;
    slab.near = false;
  }
  const int64_t start = int64_t{slab.first_block} * layout.block_bytes + distance;
  const int64_t left = layout.panel_bytes - layout.values_offset - start;
  slab.ahead = by_hardware ? nullptr : job.panel + layout.values_offset + start;
  slab.beyond = next + start - (layout.panel_bytes - layout.values_offset) + layout.values_offset;
  slab.switch_at = left <= 0 ? 0 : static_cast<int>(left / layout.block_bytes);
  const auto lines = static_cast<int>(layout.values_offset / kLineBytes);
  slab.ahead_step = layout.block_bytes;
  slab.header_lines = (lines + layout.num_blocks - 1) / layout.num_blocks;
  slab.header_blocks = lines == 0 ? 0 : (lines + slab.header_lines - 1) / slab.header_lines;
  slab.header_blocks -= slab.first_block;
  slab.header = next + int64_t{slab.first_block} * slab.header_lines * kLineBytes;
}

template <class Isa>
static void multiply(const MultiplyJob& job) {
  const PanelLayout& layout = *job.layout;
  const bool integer = job.row_layout->integer();
  const float factor = job.global_scale * scale_factor(layout.values, integer);
  Slab slab;
  slab.half_scales = layout.scale_cols < kBlockCols;
  slab.end_block = layout.num_blocks;
  slab.scales = job.scratch->scales;
  slab.scale_step = layout.num_scales > 1 ? kPanelRows : 0;
  slab.zeros = job.scratch->zeros;
  for (int first = 0; first < layout.num_blocks; first += kSlabBlocks) {
    slab.first_block = first;
    slab.num_blocks =
        layout.num_blocks - first < kSlabBlocks ? layout.num_blocks - first : kSlabBlocks;
    slab.values = job.panel + layout.values_offset + int64_t{first} * layout.block_bytes;
    slab.block_bytes = layout.block_bytes;
    aim_prefetch(job, slab);
    if (layout.scales_in_blocks) {
      slab.codes = slab.values + scale_location(layout, 0, 0);
      slab.code_step = layout.block_bytes;
      slab.factor = factor;
    } else if (has_scales(layout.values)) {
      if (slab.scale_step != 0 || first == 0) {
        const int count = slab.scale_step == 0 ? 1 : slab.num_blocks;
        expand_scales<Isa>(layout, job.panel, first, count, factor, job.scratch->scales);
      }
      if (layout.zero_points || (!integer && has_zeros(layout.values))) {
        expand_zeros<Isa>(layout, job.panel, first, slab.num_blocks,
                          layout.values == PanelValues::kInt8 ? 128 : 8, integer,
                          job.scratch->zeros);
      }
    }
    switch (job.row_layout->values) {
      case RowValues::kInt8: int_values<Isa>(job, slab, first == 0); break;
      case RowValues::kBf16: pair_values<Isa>(job, slab, first == 0); break;
      case RowValues::kF32: float_values<Isa>(job, slab, first == 0); break;
    }
  }
}

}  // namespace
}  // namespace switchyard::cpu
