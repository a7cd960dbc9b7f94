// Stage 1: gate and up products of 32 columns of the intermediate, activation, and the rows of
// stage 2.

#include <cstring>

#include "cpu/expert_items.h"

namespace switchyard::cpu {
namespace {

/// Neighbouring items of few rows whose products are made before any is activated: each pause lets
/// the hardware's stream of weights run dry (one Zen 4 core, MXFP4, one row: 20 % slower without).
constexpr int64_t kBatchRows = 24;

class Worker {
 public:
  Worker(const Pass& pass, const GateUpInput& input, const GateUpOutput& output,
         const ThreadScratch& scratch)
      : pass_(pass),
        stage_(pass.panels->gate_up),
        input_(input),
        output_(output),
        scratch_(scratch) {}

  /// Products of an item, in rows [first, first + item.count) of the scratch.
  void multiply(const ExpertItem& item, const ExpertItem& next, int64_t first) const {
    const bool gated = stage_.num_matrices == 2;
    const uint8_t* after = next.expert < 0 ? nullptr : stage_.panel(next.expert, next.panel, 0);
    const uint8_t* up = stage_.panel(item.expert, item.panel, gated ? 1 : 0);
    if (gated) multiply_panel(item, 0, up, scratch_.gate + first * kPanelRows);
    multiply_panel(item, gated ? 1 : 0, after, scratch_.up + first * kPanelRows);
  }

  void finish(const ExpertItem& item, int64_t first) const {
    float* products = scratch_.up + first * kPanelRows;
    activate(item, scratch_.gate + first * kPanelRows, products);
    store(item, products);
  }

 private:
  void multiply_panel(const ExpertItem& item, int matrix, const uint8_t* next, float* out) const {
    MultiplyJob job{.layout = &stage_.packing.layout, .row_layout = input_.layout};
    job.panel = stage_.panel(item.expert, item.panel, matrix);
    job.next = next;
    job.global_scale = stage_.global_scale(item.expert, matrix);
    job.rows = input_.rows;
    if (input_.by_row) {
      job.rows += item.begin * input_.layout->row_bytes;
    } else {
      job.row_index = pass_.row_to_pair + item.begin;
      job.row_divisor = static_cast<int32_t>(pass_.top_k);
    }
    job.num_rows = static_cast<int32_t>(item.count);
    job.out = out;
    job.scratch = scratch_.multiply;
    pass_.panels->kernels->multiply(job);
  }

  /// In place, over the up products.
  void activate(const ExpertItem& item, const float* gate, float* up) const {
    const bool gated = stage_.num_matrices == 2;
    ActivateJob job{.activation = &pass_.panels->spec.activation};
    job.gate = gated ? gate : nullptr;
    job.up = up;
    job.gate_bias = gated ? stage_.bias(item.expert, item.panel, 0) : nullptr;
    job.up_bias = stage_.bias(item.expert, item.panel, gated ? 1 : 0);
    job.row_weights = input_.row_weights;
    if (input_.row_weights != nullptr && input_.weight_index == nullptr) {
      job.row_weights += item.begin;
    }
    job.weight_index = input_.weight_index == nullptr ? nullptr : input_.weight_index + item.begin;
    job.num_rows = static_cast<int32_t>(item.count);
    job.num_cols = static_cast<int32_t>(stage_.outputs_of_panel(item.panel));
    job.out = up;
    pass_.panels->kernels->activate(job);
  }

  void store(const ExpertItem& item, float* products) const {
    const Kernels& kernels = *pass_.panels->kernels;
    const PackedStage& next_stage = pass_.panels->down;
    const RowLayout& layout = next_stage.rows;
    const int64_t cols = stage_.outputs_of_panel(item.panel);
    const float* smooth = next_stage.smooth_scale(item.expert);
    for (int64_t r = 0; r < item.count; ++r) {
      float* block = products + r * kPanelRows;
      const int64_t row = item.begin + r;
      if (output_.rows == nullptr) {
        const TensorView& tensor = output_.tensor;
        auto* to = tensor.as<uint8_t>() + (int64_t{pass_.row_to_pair[row]} * stage_.num_outputs +
                                           item.panel * kPanelRows) *
                                              element_bytes(tensor.type);
        kernels.store_row(block, cols, tensor.type, to);
        continue;
      }
      uint8_t* to = output_.rows + row * layout.row_bytes;
      if (layout.integer()) {
        for (int64_t c = 0; smooth != nullptr && c < cols; ++c) {
          block[c] *= smooth[item.panel * kPanelRows + c];
        }
        kernels.quantize_blocks(block, layout, static_cast<int32_t>(item.panel), 1, to);
      } else {
        std::memcpy(to + item.panel * kPanelRows * int64_t{sizeof(float)}, block,
                    kPanelRows * sizeof(float));
      }
    }
  }

  const Pass& pass_;
  const PackedStage& stage_;
  const GateUpInput& input_;
  const GateUpOutput& output_;
  ThreadScratch scratch_;
};

/// What rounding needs whole rows for happens after the last panel has been written.
void finish_rows(const Pass& pass, uint8_t* rows) {
  const PackedStage& stage = pass.panels->down;
  const bool rounds = needs_rounding(stage.activation_format);
  if (stage.rows.integer() || (!rounds && stage.smooth_scales.empty())) return;
  parallel_for(*pass.panels->executor, pass.num_rows, 8, [&](int64_t begin, int64_t end) {
    int64_t expert = 0;
    for (int64_t row = begin; row < end; ++row) {
      while (pass.expert_offsets[expert + 1] <= row) ++expert;
      uint8_t* at = rows + row * stage.rows.row_bytes;
      finish_row(*pass.panels->kernels, stage.smooth_scale(expert), stage.activation_format,
                 stage.num_inputs, stage.rows, reinterpret_cast<float*>(at), at);
    }
  });
}

}  // namespace

void gate_up(const Pass& pass, const GateUpInput& input, const GateUpOutput& output) {
  const ExpertItems items(pass, pass.panels->gate_up,
                          pass.layout->item_offsets.in<int32_t>(pass.workspace));
  ShardedItems sharded(pass.panels->gate_up.num_shards(), pass.panels->executor->num_threads(),
                       [&](int64_t shard) { return items.count(shard); });
  run_on_all(*pass.panels->executor, [&](int thread) {
    const Worker worker(pass, input, output, pass.scratch(thread));
    ItemClaim claim(sharded, pass.panels->topology->current_node());
    ExpertItem batch[kBatchRows];
    for (ExpertItem next = items.at(claim.take(), {}); next.expert >= 0;) {
      int64_t count = 0;
      int64_t rows = 0;
      do {
        const ExpertItem item = batch[count++] = next;
        next = items.at(claim.take(), item);
        worker.multiply(item, next, rows);
        rows += item.count;
      } while (next.expert >= 0 && rows + next.count <= kBatchRows);
      rows = 0;
      for (int64_t i = 0; i < count; rows += batch[i++].count) worker.finish(batch[i], rows);
    }
  });
  if (output.rows != nullptr) finish_rows(pass, output.rows);
}

}  // namespace switchyard::cpu
