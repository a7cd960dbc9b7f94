// Stage 2 and the combination. Many rows: an item is some panels of 32 output columns over all
// experts, so that the weighted sum of a token needs neither atomics nor a pass over memory. Few
// rows: the weights as they lie in memory, then the sums of all columns.

#include "cpu/expert_items.h"

namespace switchyard::cpu {
namespace {

class Worker {
 public:
  Worker(const Pass& pass, const uint8_t* rows, const DownOutput& output,
         const ThreadScratch& scratch)
      : pass_(pass), stage_(pass.panels->down), rows_(rows), output_(output), scratch_(scratch) {}

  void run(int64_t first, int64_t count, int64_t next_panel) const {
    for (int64_t expert = next_active(0); expert < pass_.panels->num_experts;) {
      const int64_t following = next_active(expert + 1);
      for (int64_t i = 0; i < count; ++i) {
        const uint8_t* next = nullptr;
        if (i + 1 < count) {
          next = stage_.panel(expert, first + i + 1, 0);
        } else if (following < pass_.panels->num_experts) {
          next = stage_.panel(following, first, 0);
        } else if (next_panel >= 0) {
          next = stage_.panel(next_active(0), next_panel, 0);
        }
        multiply({.expert = expert,
                  .begin = pass_.expert_offsets[expert],
                  .count = pass_.rows_of(expert),
                  .panel = first + i},
                 products(i), next);
      }
      expert = following;
    }
    for (int64_t i = 0; i < count; ++i) finish(first + i, products(i));
  }

  /// An item's rows times its panel into their place among the `products` of all rows.
  void multiply(const ExpertItem& item, float* products, const uint8_t* next) const {
    MultiplyJob job{.layout = &stage_.packing.layout, .row_layout = &stage_.rows};
    job.panel = stage_.panel(item.expert, item.panel, 0);
    job.next = next;
    job.global_scale = stage_.global_scale(item.expert, 0);
    job.rows = rows_ + item.begin * stage_.rows.row_bytes;
    job.num_rows = static_cast<int32_t>(item.count);
    job.out = products + item.begin * kPanelRows;
    job.scratch = scratch_.multiply;
    pass_.panels->kernels->multiply(job);
    const float* bias = stage_.bias(item.expert, item.panel, 0);
    if (bias == nullptr) return;
    for (int64_t i = 0; i < job.num_rows * kPanelRows; ++i) job.out[i] += bias[i % kPanelRows];
  }

  /// Products of all rows [num_rows][32] to the output's columns of a panel.
  void finish(int64_t panel, float* products) const {
    output_.by_pair ? store_rows(panel, products) : combine(panel, products);
  }

 private:
  /// The first expert from `expert` on that has rows.
  int64_t next_active(int64_t expert) const {
    while (expert < pass_.panels->num_experts && pass_.rows_of(expert) == 0) ++expert;
    return expert;
  }

  float* products(int64_t i) const { return scratch_.products + i * pass_.num_rows * kPanelRows; }

  void combine(int64_t panel, const float* products) const {
    CombineJob job{.products = products, .pair_to_row = output_.pair_to_row};
    job.weights = output_.weights;
    job.top_k = pass_.top_k;
    job.num_tokens = output_.num_tokens;
    job.num_cols = static_cast<int32_t>(stage_.outputs_of_panel(panel));
    if (!output_.addend.empty()) {
      job.addend = output_.addend.as<uint8_t>() + panel * kPanelRows * 4;
      job.addend_stride = output_.addend.stride(0) * 4;
    }
    const int64_t element = element_bytes(output_.output.type);
    job.output = output_.output.as<uint8_t>() + panel * kPanelRows * element;
    job.output_stride = output_.output.stride(0) * element;
    job.output_type = output_.output.type;
    pass_.panels->kernels->combine(job);
  }

  void store_rows(int64_t panel, float* products) const {
    const int64_t element = element_bytes(output_.output.type);
    for (int64_t row = 0; row < pass_.num_rows; ++row) {
      float* product = products + row * kPanelRows;
      if (output_.weights != nullptr) {
        for (int c = 0; c < kPanelRows; ++c) product[c] *= output_.weights[row];
      }
      auto* to = output_.output.as<uint8_t>() +
                 (pass_.row_to_pair[row] * stage_.num_outputs + panel * kPanelRows) * element;
      pass_.panels->kernels->store_row(product, stage_.outputs_of_panel(panel), output_.output.type,
                                       to);
    }
  }

  const Pass& pass_;
  const PackedStage& stage_;
  const uint8_t* rows_;
  const DownOutput& output_;
  ThreadScratch scratch_;
};

/// Expert by expert: cut by columns, each thread's stream of weights would begin anew after some
/// 100 KiB (Qwen3-30B MXFP4, one token while the host gave 60 GB/s: 459 to 432 us).
void down_by_expert(const Pass& pass, const uint8_t* rows, const DownOutput& output) {
  const PackedStage& stage = pass.panels->down;
  Executor& executor = *pass.panels->executor;
  const ExpertItems items(pass, stage, pass.layout->item_offsets.in<int32_t>(pass.workspace));
  ShardedItems sharded(stage.num_shards(), executor.num_threads(),
                       [&](int64_t shard) { return items.count(shard); });
  auto* shared = pass.layout->shared_products.in<float>(pass.workspace);
  const auto products = [&](int64_t panel) { return shared + panel * pass.num_rows * kPanelRows; };
  run_on_all(executor, [&](int thread) {
    const Worker worker(pass, rows, output, pass.scratch(thread));
    ItemClaim claim(sharded, pass.panels->topology->current_node());
    for (ExpertItem item = items.at(claim.take(), {}); item.expert >= 0;) {
      const ExpertItem next = items.at(claim.take(), item);
      worker.multiply(item, products(item.panel),
                      next.expert < 0 ? nullptr : stage.panel(next.expert, next.panel, 0));
      item = next;
    }
  });
  const int64_t grain = ceil_div<int64_t>(stage.num_panels, executor.num_threads());
  parallel_for(executor, stage.num_panels, grain, [&](int64_t begin, int64_t end) {
    const Worker worker(pass, rows, output, {});
    for (int64_t panel = begin; panel < end; ++panel) worker.finish(panel, products(panel));
  });
}

void down_by_columns(const Pass& pass, const uint8_t* rows, const DownOutput& output) {
  const PackedStage& stage = pass.panels->down;
  ShardedItems sharded(stage.num_shards(), pass.panels->executor->num_threads(),
                       [&](int64_t shard) { return stage.panels_of_shard(shard); });
  const auto panel = [&](ItemClaim::Item item) {
    return item ? stage.first_panel(item.shard) + item.index : -1;
  };
  const int64_t most = panels_of_pass(*pass.panels, pass.num_rows);
  run_on_all(*pass.panels->executor, [&](int thread) {
    const Worker worker(pass, rows, output, pass.scratch(thread));
    ItemClaim claim(sharded, pass.panels->topology->current_node());
    while (const auto item = claim.take(most)) {
      worker.run(panel(item), item.count, panel(claim.peek()));
    }
  });
}

}  // namespace

void down(const Pass& pass, const uint8_t* rows, const DownOutput& output) {
  const bool few = pass.num_rows * pass.panels->down.num_panels <= kMostSharedProducts;
  few ? down_by_expert(pass, rows, output) : down_by_columns(pass, rows, output);
}

}  // namespace switchyard::cpu
