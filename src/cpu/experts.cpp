// Routed experts on the CPU: the forward of one layer and the public ops, put together from the
// steps.

#include "cpu/experts.h"

#include <algorithm>

#include "core/expert_sort.h"
#include "core/token_rows.h"
#include "cpu/experts_steps.h"
#include "cpu/plan_experts.h"
#include "cpu/rows.h"

namespace switchyard::cpu {
namespace {

/// Weights that become bf16 in scratch only are worth it from so many rows per expert (FP8, Gop/s
/// against f32 rows: 4 rows 96 to 108, 6 rows 118 to 112, 16 rows 166 to 112).
constexpr int64_t kMinRowsToDecodePairs = 6;

class CpuExperts final : public PackedExperts {
 public:
  explicit CpuExperts(ExpertPanels panels) : panels_(std::move(panels)) {}

  Executor* executor() const override { return panels_.executor.get(); }
  int64_t packed_bytes() const override {
    return panels_.gate_up.packed_bytes() + panels_.down.packed_bytes();
  }
  int64_t workspace_bytes(int64_t max_tokens, int64_t top_k) const override {
    return experts_workspace(panels_, max_tokens, top_k).bytes;
  }
  void plan(int64_t num_tokens, int64_t top_k, const MachineLimits& limits,
            Plan& plan) const override {
    plan_experts(panels_, num_tokens, top_k, limits, plan);
  }

  void run(const RunExpertsArgs& args, Workspace workspace, Stream) const override {
    const int64_t top_k = top_k_of(args.topk_ids);
    const int64_t num_tokens = rows_to_compute(args.num_tokens, args.hidden_states.extent(0));
    const ExpertsWorkspace layout = experts_workspace(panels_, num_tokens, top_k);
    for (int64_t first = 0; first < num_tokens; first += layout.pass_tokens) {
      const int64_t count = std::min(layout.pass_tokens, num_tokens - first);
      RunExpertsArgs part = args;
      part.hidden_states = rows_of(args.hidden_states, first, count);
      part.topk_ids = rows_of(args.topk_ids, first, count);
      part.topk_weights = rows_of(args.topk_weights, first, count);
      part.addend = rows_of(args.addend, first, count);
      part.output = rows_of(args.output, first, count);
      run_pass(part, top_k, layout, workspace);
    }
  }

  void gate_up(const ops::GateUpArgs& args, Workspace workspace, Stream) const override {
    const int64_t num_tokens = args.hidden_states.extent(0);
    const ExpertsWorkspace layout = experts_workspace(panels_, num_tokens, args.top_k);
    const bool weighted = panels_.spec.weight_position == WeightPosition::kInput;
    for_sorted_rows(args, num_tokens, layout.num_inputs, layout, workspace, [&](const Pass& pass) {
      auto* rows = layout.input_rows.in<uint8_t>(workspace);
      const auto* weights = layout.row_weights.in<float>(workspace);
      RowSource source{.input = args.hidden_states,
                       .row_index = pass.row_to_pair,
                       .divisor = static_cast<int32_t>(args.top_k)};
      const bool before_rounding = weighted && needs_rounding(panels_.gate_up.activation_format);
      if (before_rounding) source.weights = weights;
      prepare_rows(pass, panels_.gate_up, panels_.gate_up.rows, source, pass.num_rows, rows);
      cpu::gate_up(pass,
                   {.rows = rows,
                    .layout = &panels_.gate_up.rows,
                    .by_row = true,
                    .row_weights = weighted && !before_rounding ? weights : nullptr},
                   {.tensor = args.output});
    });
  }

  void down(const ops::DownArgs& args, Workspace workspace, Stream) const override {
    const int64_t num_tokens = args.intermediate.extent(0);
    const ExpertsWorkspace layout = experts_workspace(panels_, num_tokens, args.top_k);
    const TensorView by_pair =
        TensorView::contiguous(args.intermediate.data, args.intermediate.type,
                               {num_tokens * args.top_k, panels_.down.num_inputs});
    for_sorted_rows(args, num_tokens, layout.pass_rows, layout, workspace, [&](const Pass& pass) {
      auto* rows = layout.intermediate_rows.in<uint8_t>(workspace);
      prepare_rows(pass, panels_.down, panels_.down.rows,
                   {.input = by_pair, .row_index = pass.row_to_pair}, pass.num_rows, rows);
      const bool weighted =
          !args.sorted_weights.empty() && panels_.spec.weight_position == WeightPosition::kOutput;
      cpu::down(pass, rows,
                {.weights = weighted ? layout.row_weights.in<float>(workspace) : nullptr,
                 .output = args.output,
                 .by_pair = true});
    });
  }

  /// Slices of top_k experts per token through run(), each added to the f32 sums of the one before,
  /// so that the sum ascends over the experts.
  void dense(const ops::DenseArgs& args, Workspace workspace, Stream) const override {
    const int64_t num_tokens = args.hidden_states.extent(0);
    const int64_t top_k = std::min(panels_.spec.top_k, panels_.num_experts);
    const ExpertsWorkspace layout = experts_workspace(panels_, num_tokens, top_k);
    for (int64_t first = 0; first < num_tokens; first += layout.pass_tokens) {
      const int64_t count = std::min(layout.pass_tokens, num_tokens - first);
      dense_pass(rows_of(args.hidden_states, first, count), rows_of(args.alpha, first, count),
                 rows_of(args.output, first, count), top_k, layout, workspace);
    }
  }

 private:
  void run_pass(const RunExpertsArgs& args, int64_t top_k, const ExpertsWorkspace& layout,
                Workspace workspace) const {
    const int64_t num_tokens = args.hidden_states.extent(0);
    const int32_t* ids = args.topk_ids.as<const int32_t>();
    if (ids == nullptr) {
      auto* zeros = layout.topk_ids.in<int32_t>(workspace);
      std::fill_n(zeros, num_tokens, 0);
      ids = zeros;
    }
    auto* expert_offsets = layout.expert_offsets.in<int32_t>(workspace);
    auto* row_to_pair = layout.row_to_pair.in<int32_t>(workspace);
    auto* pair_to_row = layout.pair_to_row.in<int32_t>(workspace);
    sort_pairs(ids, num_tokens, top_k, panels_.num_experts, expert_offsets, row_to_pair,
               pair_to_row);
    const Pass pass{.panels = &panels_,
                    .layout = &layout,
                    .workspace = workspace,
                    .top_k = top_k,
                    .num_rows = expert_offsets[panels_.num_experts],
                    .expert_offsets = expert_offsets,
                    .row_to_pair = row_to_pair};
    const auto* weights = args.topk_weights.as<const float>();
    const bool weight_input = panels_.spec.weight_position == WeightPosition::kInput;
    auto* input_rows = layout.input_rows.in<uint8_t>(workspace);
    auto* intermediate = layout.intermediate_rows.in<uint8_t>(workspace);

    const RowLayout input_layout = choose_input_layout(pass, args.hidden_states.type);
    prepare_input(pass, input_layout, args.hidden_states, weight_input ? weights : nullptr,
                  input_rows);
    const bool by_row = panels_.input_by_row();
    const bool rounded_with_weight = needs_rounding(panels_.gate_up.activation_format);
    cpu::gate_up(pass,
                 {.rows = input_rows,
                  .layout = &input_layout,
                  .by_row = by_row,
                  .row_weights = weight_input && !rounded_with_weight ? weights : nullptr,
                  .weight_index = row_to_pair},
                 {.rows = intermediate});
    cpu::down(pass, intermediate,
              {.pair_to_row = pair_to_row,
               .weights = weight_input ? nullptr : weights,
               .num_tokens = num_tokens,
               .addend = args.addend,
               .output = args.output});
  }

  /// bf16 rows take half the time per product and give the same bits.
  RowLayout choose_input_layout(const Pass& pass, DataType type) const {
    const PackedStage& stage = panels_.gate_up;
    if (type != DataType::kBf16 || !panels_.takes_bf16_input()) return stage.rows;
    const PanelLayout& layout = stage.packing.layout;
    if (!multiplies_pairs(layout.values) || layout.zero_points) {
      int64_t num_active = 0;
      for (int64_t e = 0; e < panels_.num_experts; ++e) num_active += pass.rows_of(e) != 0;
      if (pass.num_rows < kMinRowsToDecodePairs * num_active) return stage.rows;
    }
    return row_layout(layout, RowValues::kBf16);
  }

  void prepare_input(const Pass& pass, const RowLayout& layout, const TensorView& hidden_states,
                     const float* weights, uint8_t* rows) const {
    RowSource source{.input = hidden_states};
    if (!panels_.input_by_row()) {
      prepare_rows(pass, panels_.gate_up, layout, source, hidden_states.extent(0), rows);
      return;
    }
    source.row_index = pass.row_to_pair;
    source.divisor = static_cast<int32_t>(pass.top_k);
    if (needs_rounding(panels_.gate_up.activation_format)) {
      source.weights = weights;
      source.weight_index = pass.row_to_pair;
    }
    prepare_rows(pass, panels_.gate_up, layout, source, pass.num_rows, rows);
  }

  /// The rows of a sorted-ids list, in passes of at most max_rows: a few experts each, so that
  /// their weights are read once all the same. Args: GateUpArgs or DownArgs.
  template <class Args, class Body>
  void for_sorted_rows(const Args& args, int64_t num_tokens, int64_t max_rows,
                       const ExpertsWorkspace& layout, Workspace workspace, Body&& body) const {
    auto* offsets = layout.expert_offsets.template in<int32_t>(workspace);
    auto* row_to_pair = layout.row_to_pair.template in<int32_t>(workspace);
    auto* row_weights = layout.row_weights.template in<float>(workspace);
    const int64_t num_positions = args.num_valid_ids.template as<const int32_t>()[0];
    const auto* ids = args.sorted_ids.template as<const int32_t>();
    const auto* experts = args.sorted_expert_ids.template as<const int32_t>();
    const auto* weights = args.sorted_weights.template as<const float>();
    for (int64_t position = 0; position < num_positions;) {
      int64_t num_rows = 0;
      int64_t last_expert = 0;  // offsets are complete up to and including this one's begin
      offsets[0] = 0;
      for (; position < num_positions && num_rows < max_rows; ++position) {
        const int64_t expert = experts[position / args.unit_size];
        const int64_t token = packed_token(ids[position]);
        const int64_t slot = packed_slot(ids[position]);
        if (token >= num_tokens || slot >= args.top_k || expert < 0 ||
            expert >= panels_.num_experts) {
          continue;
        }
        if (expert < last_expert) break;  // not ascending: the rest in another pass
        while (last_expert < expert) offsets[++last_expert] = static_cast<int32_t>(num_rows);
        row_to_pair[num_rows] = static_cast<int32_t>(token * args.top_k + slot);
        row_weights[num_rows] = weights == nullptr ? 1.0f : weights[position];
        ++num_rows;
      }
      while (last_expert < panels_.num_experts) {
        offsets[++last_expert] = static_cast<int32_t>(num_rows);
      }
      body(Pass{.panels = &panels_,
                .layout = &layout,
                .workspace = workspace,
                .top_k = args.top_k,
                .num_rows = num_rows,
                .expert_offsets = offsets,
                .row_to_pair = row_to_pair});
    }
  }

  void dense_pass(const TensorView& hidden_states, const TensorView& alpha,
                  const TensorView& output, int64_t top_k, const ExpertsWorkspace& layout,
                  Workspace workspace) const {
    const int64_t num_tokens = hidden_states.extent(0);
    const int64_t width = panels_.down.num_outputs;
    RunExpertsArgs args{.hidden_states = hidden_states};
    args.topk_ids =
        TensorView::contiguous(layout.topk_ids.in(workspace), DataType::kI32, {num_tokens, top_k});
    args.topk_weights = TensorView::contiguous(layout.topk_weights.in(workspace), DataType::kF32,
                                               {num_tokens, top_k});
    args.output =
        TensorView::contiguous(layout.sums.in(workspace), DataType::kF32, {num_tokens, width});
    int64_t skip = 0;
    do {
      choose_slice(alpha, skip, args.topk_ids, args.topk_weights);
      run_pass(args, top_k, layout, workspace);
      args.addend = args.output;
      skip += top_k;
    } while (any_left(alpha, skip));
    for (int64_t t = 0; t < num_tokens; ++t) {
      panels_.kernels->store_row(
          args.output.as<const float>() + t * width, width, output.type,
          output.as<char>() + t * output.stride(0) * element_bytes(output.type));
    }
  }

  /// Used experts [skip, skip + K) of each token, ascending; -1 where there are fewer.
  void choose_slice(const TensorView& alpha, int64_t skip, const TensorView& ids,
                    const TensorView& weights) const {
    const int64_t top_k = ids.extent(1);
    for (int64_t t = 0; t < alpha.extent(0); ++t) {
      const float* row = alpha.as<const float>() + t * alpha.stride(0);
      int32_t* out = ids.as<int32_t>() + t * top_k;
      std::fill_n(out, top_k, -1);
      int64_t used = 0;
      for (int64_t e = 0; e < panels_.num_experts; ++e) {
        if (row[e] == 0.0f) continue;
        const int64_t slot = used++ - skip;
        if (slot < 0 || slot >= top_k) continue;
        out[slot] = static_cast<int32_t>(e);
        weights.as<float>()[t * top_k + slot] = row[e];
      }
    }
  }

  bool any_left(const TensorView& alpha, int64_t skip) const {
    for (int64_t t = 0; t < alpha.extent(0); ++t) {
      const float* row = alpha.as<const float>() + t * alpha.stride(0);
      const auto used =
          std::count_if(row, row + panels_.num_experts, [](float a) { return a != 0.0f; });
      if (used > skip) return true;
    }
    return false;
  }

  ExpertPanels panels_;
};

}  // namespace

void prepare_rows(const Pass& pass, const PackedStage& stage, const RowLayout& layout,
                  const RowSource& source, int64_t num_rows, uint8_t* out) {
  // About 8 KiB of input each: less is done before another thread is awake.
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(stage.num_inputs, 1));
  const int64_t num_items = ceil_div(num_rows, grain);
  std::atomic<int64_t> counter{0};
  const auto work = [&](int thread) {
    const ThreadScratch scratch = pass.scratch(thread);
    for (int64_t item; (item = counter.fetch_add(1)) < num_items;) {
      int64_t expert = 0;
      for (int64_t row = item * grain; row < std::min(num_rows, (item + 1) * grain); ++row) {
        const float* smooth = nullptr;
        if (!stage.smooth_scales.empty()) {
          while (pass.expert_offsets[expert + 1] <= row) ++expert;
          smooth = stage.smooth_scale(expert);
        }
        prepare_row(*pass.panels->kernels, source, row, smooth, stage.activation_format, layout,
                    scratch.row, out + row * layout.row_bytes);
      }
    }
  };
  if (num_items > 1) {
    run_on_all(*pass.panels->executor, work);
  } else {
    const FlushSubnormals flush;
    work(0);
  }
}

std::unique_ptr<PackedExperts> make_experts(const LayerSpec& spec, const ExpertSource& source,
                                            const LayerOptions& options,
                                            const NumaTopology& topology) {
  return std::make_unique<CpuExperts>(pack_experts(spec, source, options, topology));
}

}  // namespace switchyard::cpu
