#pragma once
// The steps over packed experts. One forward is
//   sort, prepare rows | gate_up: items (expert, rows, panel) | down + combine: items (panel)
// with a barrier at each bar. Threads claim items; no result depends on which thread did what.

#include <atomic>

#include "cpu/experts_workspace.h"
#include "cpu/thread_pool.h"

namespace switchyard::cpu {

/// One pass: what to compute with, and the rows grouped by expert.
struct Pass {
  const ExpertPanels* panels = nullptr;
  const ExpertsWorkspace* layout = nullptr;
  Workspace workspace{};
  int64_t top_k = 0;
  int64_t num_rows = 0;
  const int32_t* expert_offsets = nullptr;  ///< [E + 1]
  const int32_t* row_to_pair = nullptr;     ///< [num_rows]

  int64_t rows_of(int64_t expert) const {
    return expert_offsets[expert + 1] - expert_offsets[expert];
  }
  ThreadScratch scratch(int thread) const {
    return thread_scratch(*panels, *layout, workspace, thread);
  }
};

/// Rows [0, num_rows) of `source` in `layout`, for `stage`. With smooth scales, packed
/// row r belongs to the expert whose sorted rows include it.
void prepare_rows(const Pass& pass, const PackedStage& stage, const RowLayout& layout,
                  const RowSource& source, int64_t num_rows, uint8_t* out);

/// Where the rows that gate_up multiplies lie.
struct GateUpInput {
  const uint8_t* rows = nullptr;
  const RowLayout* layout = nullptr;
  bool by_row = false;                    ///< one per sorted row; else one per token
  const float* row_weights = nullptr;     ///< multiply the products (weight on the input), or null
  const int32_t* weight_index = nullptr;  ///< of each sorted row in row_weights; null: the row
};
/// Where the intermediate goes: rows for `down`, or a tensor [T, K, I] by pair.
struct GateUpOutput {
  uint8_t* rows = nullptr;
  TensorView tensor{};
};
void gate_up(const Pass& pass, const GateUpInput& input, const GateUpOutput& output);

/// The weighted sum over slots into the columns of output [T, W], or single rows into [T, K, W] by
/// pair.
struct DownOutput {
  const int32_t* pair_to_row = nullptr;
  const float* weights = nullptr;  ///< by pair (sum) or sorted row (single rows); null: 1
  int64_t num_tokens = 0;
  TensorView addend{};
  TensorView output{};
  bool by_pair = false;
};
void down(const Pass& pass, const uint8_t* rows, const DownOutput& output);

}  // namespace switchyard::cpu
