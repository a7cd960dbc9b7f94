// Routed experts, the two sorted stages and dense: every product in double, one row at a time.

#include <algorithm>
#include <vector>

#include "core/activation.h"
#include "core/activation_format.h"
#include "core/cost_model.h"
#include "core/expert_sort.h"
#include "core/weight_matrix.h"
#include "core/workspace_layout.h"
#include "reference/matrix.h"
#include "reference/steps.h"

namespace switchyard::reference {
namespace {

/// One (token, slot) and the expert it takes. Rows of the same expert are neighbours.
struct Row {
  int32_t expert;
  int32_t pair;
  float weight;
};

/// Where the intermediates of a call are; R rows, W = expert width, I = intermediate size.
struct Scratch {
  Row* rows;       // [R]
  double* input;   // [R, W], later the experts' outputs
  double* gate;    // [R, I]
  double* up;      // [R, I], later the activated product
  double* sums;    // [R, W] at most, one per token
  float* decoded;  // one row of a matrix
  float* floats;   // [R, max(W, I)], and the codes and scales they become
  std::byte* codes;
  std::byte* scales;
};

class Experts final : public PackedExperts {
 public:
  Experts(const LayerSpec& spec, const ExpertSource& source, const LayerOptions& options)
      : spec_(spec), activations_(resolved_activation_format(spec, BackendKind::kReference)) {
    for (int64_t e = 0; e < spec.num_experts; ++e) {
      const ExpertWeights expert = source.load(e);
      experts_.push_back({.gate = tensors_.keep(expert.gate),
                          .up = tensors_.keep(expert.up),
                          .down = tensors_.keep(expert.down),
                          .gate_bias = tensors_.keep(expert.gate_bias),
                          .up_bias = tensors_.keep(expert.up_bias),
                          .down_bias = tensors_.keep(expert.down_bias)});
      if (source.release) source.release(e);
      if (options.on_progress) options.on_progress(e + 1, spec.num_experts);
    }
  }

  int64_t packed_bytes() const override { return tensors_.bytes(); }

  int64_t workspace_bytes(int64_t max_tokens, int64_t top_k) const override {
    return carve(max_tokens * top_k, {}).second;
  }

  void plan(int64_t num_tokens, int64_t top_k, const MachineLimits& limits,
            Plan& plan) const override {
    const double touched = expected_distinct_experts(spec_.num_experts, top_k, num_tokens) /
                           static_cast<double>(spec_.num_experts);
    const double bytes = touched * static_cast<double>(tensors_.bytes());
    const double matrices = spec_.activation.gated() ? 3 : 2;
    const double flops = 2.0 * matrices * static_cast<double>(num_tokens * top_k) *
                         static_cast<double>(width() * inner());
    plan.steps.push_back({.step = "experts",
                          .kernel = "plain loops in double",
                          .why = "the oracle: decodes every row when it is used",
                          .bytes = bytes,
                          .flops = flops,
                          .predicted_us = predict_us(bytes, flops, limits.read_gbps,
                                                     limits.read_gbps > 0 ? kGflops : 0)});
  }

  void run(const RunExpertsArgs& args, Workspace workspace, Stream) const override {
    const bool every_token = args.topk_ids.empty();
    const int64_t top_k = every_token ? 1 : args.topk_ids.extent(1);
    const int64_t num_tokens = active_tokens(args.num_tokens, args.hidden_states.extent(0));
    const Scratch s = carve(args.hidden_states.extent(0) * top_k, workspace).first;
    int64_t num_rows = 0;
    for (int64_t pair = 0; pair < num_tokens * top_k; ++pair) {
      const int32_t expert = every_token ? 0 : args.topk_ids.as<const int32_t>()[pair];
      if (expert < 0 || expert >= spec_.num_experts) continue;
      const float weight =
          args.topk_weights.empty() ? 1.0f : args.topk_weights.as<const float>()[pair];
      s.rows[num_rows++] = {expert, static_cast<int32_t>(pair), weight};
    }
    std::sort(s.rows, s.rows + num_rows, [](const Row& a, const Row& b) {
      return a.expert != b.expert ? a.expert < b.expert : a.pair < b.pair;
    });
    for (int64_t i = 0; i < num_tokens * width(); ++i)
      s.sums[i] = args.addend.empty() ? 0.0 : load(args.addend, i);
    add_experts(args.hidden_states, top_k, num_rows, s);
    for (int64_t i = 0; i < num_tokens * width(); ++i) store(args.output, i, s.sums[i]);
  }

  void gate_up(const ops::GateUpArgs& args, Workspace workspace, Stream) const override {
    const int64_t num_tokens = args.hidden_states.extent(0);
    const Scratch s = carve(num_tokens * args.top_k, workspace).first;
    const int64_t num_rows = sorted_rows(args, num_tokens, s);
    gather(args.hidden_states, args.top_k, num_rows, s);
    gate_up_rows(num_rows, s);
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t i = 0; i < inner(); ++i) {
        store(args.output, s.rows[r].pair * inner() + i, s.up[r * inner() + i]);
      }
    }
  }

  void down(const ops::DownArgs& args, Workspace workspace, Stream) const override {
    const int64_t num_tokens = args.intermediate.extent(0);
    const Scratch s = carve(num_tokens * args.top_k, workspace).first;
    const int64_t num_rows = sorted_rows(args, num_tokens, s);
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t i = 0; i < inner(); ++i) {
        s.up[r * inner() + i] = load(args.intermediate, s.rows[r].pair * inner() + i);
      }
    }
    down_rows(num_rows, s);
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t c = 0; c < width(); ++c) {
        store(args.output, s.rows[r].pair * width() + c,
              output_weight(s.rows[r]) * s.input[r * width() + c]);
      }
    }
  }

  void dense(const ops::DenseArgs& args, Workspace workspace, Stream) const override {
    const int64_t num_tokens = args.hidden_states.extent(0);
    const Scratch s = carve(num_tokens, workspace).first;
    std::fill_n(s.sums, num_tokens * width(), 0.0);
    for (int32_t e = 0; e < spec_.num_experts; ++e) {
      int64_t num_rows = 0;
      for (int64_t t = 0; t < num_tokens; ++t) {
        const float alpha = args.alpha.as<const float>()[t * spec_.num_experts + e];
        if (alpha != 0.0f) s.rows[num_rows++] = {e, static_cast<int32_t>(t), alpha};
      }
      add_experts(args.hidden_states, 1, num_rows, s);
    }
    for (int64_t i = 0; i < num_tokens * width(); ++i) store(args.output, i, s.sums[i]);
  }

 private:
  static constexpr double kGflops = 0.75;  // one dependent addition per 4 cycles at 3 GHz

  int64_t width() const { return spec_.expert_width(); }
  int64_t inner() const { return spec_.intermediate_size; }
  bool weight_on_input() const { return spec_.weight_position == WeightPosition::kInput; }
  double output_weight(const Row& row) const {
    return weight_on_input() ? 1.0 : static_cast<double>(row.weight);
  }

  /// Pointers into the workspace for `num_rows` rows, and the bytes they end at.
  std::pair<Scratch, int64_t> carve(int64_t num_rows, Workspace workspace) const {
    const int64_t widest = std::max(width(), inner());
    WorkspaceCarver carver;
    const auto take = [&](int64_t bytes) {
      const WorkspaceRegion region = carver.take(bytes);
      return workspace.data == nullptr ? nullptr : region.in(workspace);
    };
    const int64_t rounded = activations_ == ActivationFormat::kNone ? 0 : num_rows * widest;
    Scratch s{};
    s.rows = static_cast<Row*>(take(num_rows * int64_t{sizeof(Row)}));
    s.input = static_cast<double*>(take(num_rows * width() * 8));
    s.gate = static_cast<double*>(take(num_rows * inner() * 8));
    s.up = static_cast<double*>(take(num_rows * inner() * 8));
    s.sums = static_cast<double*>(take(num_rows * width() * 8));
    s.decoded = static_cast<float*>(take(widest * 4));
    s.floats = static_cast<float*>(take(rounded * 4));
    s.codes = static_cast<std::byte*>(take(rounded));
    s.scales = static_cast<std::byte*>(take(rounded * 4));
    return {s, carver.bytes()};
  }

  /// Calls body(expert, first row, number of rows) for each expert that has rows.
  template <class Body>
  void for_each_expert(int64_t num_rows, const Scratch& s, Body body) const {
    for (int64_t first = 0, end = 0; first < num_rows; first = end) {
      while (end < num_rows && s.rows[end].expert == s.rows[first].expert) ++end;
      body(experts_[static_cast<size_t>(s.rows[first].expert)], first, end - first);
    }
  }

  /// Rows of the sorted contract: blocks of one expert, packed pairs, padding left out.
  template <class SortedArgs>
  int64_t sorted_rows(const SortedArgs& args, int64_t num_tokens, const Scratch& s) const {
    int64_t num_rows = 0;
    for (int64_t i = 0; i < args.num_valid_ids.template as<const int32_t>()[0]; ++i) {
      const int32_t packed = args.sorted_ids.template as<const int32_t>()[i];
      const int64_t token = packed_token(packed);
      const int64_t slot = packed_slot(packed);
      if (token >= num_tokens || slot >= args.top_k) continue;
      const float weight =
          args.sorted_weights.empty() ? 1.0f : args.sorted_weights.template as<const float>()[i];
      s.rows[num_rows++] = {args.sorted_expert_ids.template as<const int32_t>()[i / args.unit_size],
                            static_cast<int32_t>(token * args.top_k + slot), weight};
    }
    return num_rows;
  }

  /// sums[token] += weight * expert(hidden[token]) for every row.
  void add_experts(const TensorView& hidden, int64_t top_k, int64_t num_rows,
                   const Scratch& s) const {
    gather(hidden, top_k, num_rows, s);
    gate_up_rows(num_rows, s);
    down_rows(num_rows, s);
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t token = s.rows[r].pair / top_k;
      for (int64_t c = 0; c < width(); ++c)
        s.sums[token * width() + c] += output_weight(s.rows[r]) * s.input[r * width() + c];
    }
  }

  void gather(const TensorView& hidden, int64_t top_k, int64_t num_rows, const Scratch& s) const {
    for (int64_t r = 0; r < num_rows; ++r) {
      const double weight = weight_on_input() ? static_cast<double>(s.rows[r].weight) : 1.0;
      for (int64_t c = 0; c < width(); ++c)
        s.input[r * width() + c] = weight * load(hidden, s.rows[r].pair / top_k * width() + c);
    }
  }

  void gate_up_rows(int64_t num_rows, const Scratch& s) const {
    round_activations(num_rows, width(), &ExpertWeights::up, s.input, s);
    for_each_expert(num_rows, s, [&](const ExpertWeights& expert, int64_t first, int64_t count) {
      const double* x = s.input + first * width();
      double* gate = s.gate + first * inner();
      double* up = s.up + first * inner();
      if (spec_.activation.gated())
        multiply(expert.gate, expert.gate_bias, x, count, s.decoded, gate);
      multiply(expert.up, expert.up_bias, x, count, s.decoded, up);
      for (int64_t i = 0; i < count * inner(); ++i)
        up[i] = apply_activation(spec_.activation, spec_.activation.gated() ? gate[i] : 0.0, up[i]);
    });
  }

  void down_rows(int64_t num_rows, const Scratch& s) const {
    round_activations(num_rows, inner(), &ExpertWeights::down, s.up, s);
    for_each_expert(num_rows, s, [&](const ExpertWeights& expert, int64_t first, int64_t count) {
      multiply(expert.down, expert.down_bias, s.up + first * inner(), count, s.decoded,
               s.input + first * width());
    });
  }

  /// What quantised activations do to `data` [rows, cols] on its way into `matrix`: the channel
  /// scales of SmoothQuant, then the codes of ops::quantize, decoded.
  void round_activations(int64_t num_rows, int64_t cols, WeightMatrix ExpertWeights::*matrix,
                         double* data, const Scratch& s) const {
    for_each_expert(num_rows, s, [&](const ExpertWeights& expert, int64_t first, int64_t count) {
      const TensorView& smooth = (expert.*matrix).smooth_scales;
      for (int64_t i = 0; i < count * cols && !smooth.empty(); ++i)
        data[first * cols + i] *= load(smooth, i % cols);
    });
    if (activations_ == ActivationFormat::kNone || num_rows == 0) return;
    const auto [format, block] = activation_storage(activations_);
    const bool mx = format == Format::kMxfp4 || format == Format::kMxfp8;
    const DataType code_type = format == Format::kInt8    ? DataType::kI8
                               : format == Format::kMxfp4 ? DataType::kU8
                                                          : DataType::kF8E4m3;
    const WeightMatrix rounded = {
        .format = format,
        .rows = num_rows,
        .cols = cols,
        .values = TensorView::contiguous(
            s.codes, code_type,
            {num_rows, element_bits(format) == 4 ? ceil_div<int64_t>(cols, 2) : cols}),
        .scales = TensorView::contiguous(s.scales, mx ? DataType::kF8E8m0 : DataType::kF32,
                                         {scale_rows(block, num_rows), scale_cols(block, cols)}),
        .scale_block = block};
    std::copy_n(data, num_rows * cols, s.floats);
    quantize({.input = TensorView::contiguous(s.floats, DataType::kF32, {num_rows, cols}),
              .format = format,
              .scale_block = block,
              .values = rounded.values,
              .scales = rounded.scales});
    for (int64_t r = 0; r < num_rows; ++r) {
      decode_row(rounded, r, s.floats);
      std::copy_n(s.floats, cols, data + r * cols);
    }
  }

  LayerSpec spec_;
  ActivationFormat activations_;
  StoredTensors tensors_;
  std::vector<ExpertWeights> experts_;
};

}  // namespace

std::unique_ptr<PackedExperts> pack_experts(const LayerSpec& spec, const ExpertSource& source,
                                            const LayerOptions& options) {
  return std::make_unique<Experts>(spec, source, options);
}

}  // namespace switchyard::reference
