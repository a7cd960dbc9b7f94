// Stage 2 and the combination: an item is one panel of 32 output columns over all experts, so that
// the weighted sum of a token needs neither atomics nor a pass over memory. Neighbouring panels of
// few rows go through the experts together, because a panel of an expert may be only 13 KiB.

#include "cpu/experts_steps.h"

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
        multiply(expert, first + i, products(i), next);
      }
      expert = following;
    }
    for (int64_t i = 0; i < count; ++i) {
      output_.by_pair ? store_rows(first + i, products(i)) : combine(first + i, products(i));
    }
  }

 private:
  /// The first expert from `expert` on that has rows.
  int64_t next_active(int64_t expert) const {
    while (expert < pass_.panels->num_experts && pass_.rows_of(expert) == 0) ++expert;
    return expert;
  }

  float* products(int64_t i) const { return scratch_.products + i * pass_.num_rows * kPanelRows; }

  void multiply(int64_t expert, int64_t panel, float* products, const uint8_t* next) const {
    const int64_t begin = pass_.expert_offsets[expert];
    MultiplyJob job{.layout = &stage_.packing.layout, .row_layout = &stage_.rows};
    job.panel = stage_.panel(expert, panel, 0);
    job.next = next;
    job.global_scale = stage_.global_scale(expert, 0);
    job.rows = rows_ + begin * stage_.rows.row_bytes;
    job.num_rows = static_cast<int32_t>(pass_.rows_of(expert));
    job.out = products + begin * kPanelRows;
    job.scratch = scratch_.multiply;
    pass_.panels->kernels->multiply(job);
    const float* bias = stage_.bias(expert, panel, 0);
    if (bias == nullptr) return;
    for (int64_t i = 0; i < job.num_rows * kPanelRows; ++i) job.out[i] += bias[i % kPanelRows];
  }

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

}  // namespace

void down(const Pass& pass, const uint8_t* rows, const DownOutput& output) {
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

}  // namespace switchyard::cpu
