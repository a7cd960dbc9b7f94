#pragma once
// Where the intermediates of a forward lie in the caller's workspace.

#include <algorithm>

#include "core/workspace_layout.h"
#include "cpu/packed_experts.h"

namespace switchyard::cpu {

/// Rows of one expert that a gate_up item covers: enough that decoding a panel is 1 % of the work,
/// few enough that one busy expert feeds many threads.
inline constexpr int64_t kChunkRows = 192;
/// Rows worked off in one pass; bounds the workspace. From some 64 rows per expert on, reading the
/// weights once more per pass is hidden behind the arithmetic.
inline constexpr int64_t kMaxPassRows = 16384;

/// Scratch of one thread.
struct ThreadScratch {
  MultiplyScratch* multiply = nullptr;
  float* row = nullptr;       ///< one padded row of either stage
  float* gate = nullptr;      ///< [kChunkRows][32]
  float* up = nullptr;        ///< [kChunkRows][32]
  float* products = nullptr;  ///< [panels_of_pass][rows of a pass][32]
};
/// Rows of products that any pass has room for: 128 KiB. With 64, down took 128 rows one panel at a
/// time (57 GB/s, int8 9.3 instead of 8.9 ms, MXFP4 5.4 instead of 5.2).
inline constexpr int64_t kLeastProductRows = 1024;
/// Products of 32 columns, of all rows and panels of down, that threads share while they work
/// expert by expert: 1 MiB.
inline constexpr int64_t kMostSharedProducts = 8192;
/// Panels of down that a thread takes at a time, through the experts together: one panel each would
/// read all intermediate rows anew for 32 columns (Qwen3-30B bf16, T = 1024, one thread: 541 ms,
/// two 532, four 508, eight 505). Several threads never hold products of more panels than there
/// are.
inline int64_t panels_of_pass(const ExpertPanels& panels, int64_t num_rows) {
  constexpr int64_t kMost = 32, kLeast = 4;
  const int64_t share = panels.down.num_panels / panels.executor->num_threads();
  return std::clamp<int64_t>(kLeastProductRows / std::max<int64_t>(num_rows, 1),
                             std::clamp<int64_t>(share, 1, kLeast), kMost);
}

struct ExpertsWorkspace {
  int64_t pass_tokens = 0;
  int64_t pass_rows = 0;
  int64_t num_inputs = 0;  ///< packed input rows of a pass
  WorkspaceRegion expert_offsets, item_offsets, row_to_pair, pair_to_row, row_weights;
  WorkspaceRegion topk_ids, topk_weights, sums;  // dense
  WorkspaceRegion input_rows, intermediate_rows, shared_products;
  WorkspaceRegion threads;
  int64_t bytes = 0;
};

ExpertsWorkspace experts_workspace(const ExpertPanels& panels, int64_t max_tokens, int64_t top_k);
ThreadScratch thread_scratch(const ExpertPanels& panels, const ExpertsWorkspace& layout,
                             Workspace workspace, int thread);

}  // namespace switchyard::cpu
