#include "cpu/experts_workspace.h"

#include <algorithm>

namespace switchyard::cpu {
namespace {

struct ThreadRegions {
  WorkspaceRegion multiply, row, gate, up, products;
  int64_t bytes = 0;
};

ThreadRegions thread_regions(const ExpertPanels& panels, int64_t pass_rows) {
  constexpr int64_t kFloat = sizeof(float);
  const int64_t blocks = std::max(panels.gate_up.rows.num_blocks, panels.down.rows.num_blocks);
  WorkspaceCarver carver;
  ThreadRegions regions;
  regions.multiply = carver.take(sizeof(MultiplyScratch));
  regions.row = carver.take(blocks * kBlockCols * kFloat);
  regions.gate = carver.take(kChunkRows * kPanelRows * kFloat);
  regions.up = carver.take(kChunkRows * kPanelRows * kFloat);
  const int64_t product_rows =
      std::max(pass_rows * panels_of_pass(panels, pass_rows), kLeastProductRows);
  regions.products = carver.take(product_rows * kPanelRows * kFloat);
  regions.bytes = carver.bytes();
  return regions;
}

}  // namespace

ExpertsWorkspace experts_workspace(const ExpertPanels& panels, int64_t max_tokens, int64_t top_k) {
  constexpr int64_t kInt = sizeof(int32_t);
  ExpertsWorkspace w;
  w.pass_tokens = std::clamp<int64_t>(kMaxPassRows / std::max<int64_t>(top_k, 1), 1,
                                      std::max<int64_t>(max_tokens, 1));
  w.pass_rows = w.pass_tokens * top_k;
  w.num_inputs = panels.input_by_row() ? w.pass_rows : w.pass_tokens;
  WorkspaceCarver carver;
  w.expert_offsets = carver.take((panels.num_experts + 1) * kInt);
  w.item_offsets = carver.take((panels.num_experts + 1) * kInt);
  w.row_to_pair = carver.take(w.pass_rows * kInt);
  w.pair_to_row = carver.take(w.pass_rows * kInt);
  w.row_weights = carver.take(w.pass_rows * kInt);
  w.topk_ids = carver.take(w.pass_rows * kInt);
  w.topk_weights = carver.take(w.pass_rows * kInt);
  w.sums = carver.take(w.pass_tokens * panels.down.num_outputs * kInt);
  w.input_rows = carver.take(w.num_inputs * panels.gate_up.rows.row_bytes);
  w.intermediate_rows = carver.take(w.pass_rows * panels.down.rows.row_bytes);
  w.shared_products =
      carver.take(std::min(w.pass_rows * panels.down.num_panels, kMostSharedProducts) * kPanelRows *
                  static_cast<int64_t>(sizeof(float)));
  w.threads =
      carver.take(panels.executor->num_threads() * thread_regions(panels, w.pass_rows).bytes);
  w.bytes = carver.bytes();
  return w;
}

ThreadScratch thread_scratch(const ExpertPanels& panels, const ExpertsWorkspace& layout,
                             Workspace workspace, int thread) {
  const ThreadRegions regions = thread_regions(panels, layout.pass_rows);
  Workspace own = layout.threads.of(workspace);
  own.data = static_cast<char*>(own.data) + thread * regions.bytes;
  return {.multiply = regions.multiply.in<MultiplyScratch>(own),
          .row = regions.row.in<float>(own),
          .gate = regions.gate.in<float>(own),
          .up = regions.up.in<float>(own),
          .products = regions.products.in<float>(own)};
}

}  // namespace switchyard::cpu
