#include "cpu/plan_experts.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/cost_model.h"
#include "cpu/isa.h"

namespace switchyard::cpu {
namespace {

// Shares of the measured limits that a layer reaches: medians of results/cpu (EPYC Zen 4, 2
// threads), over its rows of up to 16 tokens (0.61 to 0.98), of 256 and 1024 tokens with int8
// (0.59 to 0.69) and of 1024 tokens with f32 products. The bf16 share is that of bench_steps'
// panels, 16 and 64 rows, in L2. A bf16 layer, whose down has f32 rows, then takes 1.06 times what
// is predicted, FP8 1.15.
constexpr double kReadShare = 0.89;
constexpr double kIntegerShare = 0.67;
constexpr double kFloatShare = 0.80;
constexpr double kPairShare = 0.90;

const char* values_name(PanelValues values) {
  switch (values) {
    case PanelValues::kFp4: return "fp4";
    case PanelValues::kInt4: return "int4";
    case PanelValues::kInt8: return "int8";
    case PanelValues::kFp8E4m3: return "fp8_e4m3";
    case PanelValues::kFp8E5m2: return "fp8_e5m2";
    case PanelValues::kBf16: return "bf16";
    case PanelValues::kF16: return "f16";
    case PanelValues::kF32: return "f32";
  }
  return "";
}

/// How the rows of one expert meet a panel.
std::string regime(const PackedStage& stage, const Kernels& kernels, double rows) {
  const int tile = stage.rows.integer() ? kernels.tile_rows_int : kernels.tile_rows_float;
  const std::string each = fmt::format("{:.1f} rows per expert", rows);
  if (rows < 1.5) return each + ": one stream through registers";
  if (rows <= tile) return fmt::format("{} of {}: decoded once in registers", each, tile);
  return fmt::format("{}: slabs of {} columns in tiles of {}", each, kSlabBlocks * kBlockCols,
                     tile);
}

/// What the rows of a stage are when hidden states are bf16.
RowValues row_values(const ExpertPanels& panels, const PackedStage& stage) {
  return &stage == &panels.gate_up && panels.takes_bf16_input() ? RowValues::kBf16
                                                                : stage.rows.values;
}

std::string kernel_name(const PackedStage& stage, RowValues rows, const Kernels& kernels) {
  return fmt::format("{}_{}_x_{}", kernels.name, values_name(stage.packing.layout.values),
                     rows == RowValues::kInt8   ? "int8"
                     : rows == RowValues::kBf16 ? "bf16"
                                                : "f32");
}

std::string arithmetic(const PackedStage& stage, RowValues rows) {
  if (stage.packing.decoded)
    return "weights kept as exact f32 (no panel format holds their scales)";
  if (stage.rows.integer()) return "int8 activations per 32, exact int32 products";
  if (needs_rounding(stage.activation_format)) {
    return fmt::format("activations rounded to {}, f32 products",
                       to_string(stage.activation_format));
  }
  if (rows == RowValues::kBf16) return "bf16 hidden states as given, two products at a time";
  return "activations as given, f32 products";
}

void add_stage(const char* name, const ExpertPanels& panels, const PackedStage& stage,
               double distinct, double rows, double row_bytes, const MachineLimits& limits,
               Plan& plan) {
  const double rows_per_expert = distinct > 0 ? rows / distinct : 0;
  const RowValues values = row_values(panels, stage);
  PlanStep step{.step = name, .kernel = kernel_name(stage, values, *panels.kernels)};
  step.why = fmt::format("{}; {}", regime(stage, *panels.kernels, rows_per_expert),
                         arithmetic(stage, values));
  step.bytes = distinct * static_cast<double>(stage.expert_bytes()) + row_bytes;
  step.flops = 2.0 * rows * static_cast<double>(stage.num_matrices) *
               static_cast<double>(stage.num_outputs) * static_cast<double>(stage.num_inputs);
  const double peak = values == RowValues::kInt8   ? limits.int8_gops * kIntegerShare
                      : values == RowValues::kBf16 ? limits.bf16_gflops * kPairShare
                                                   : limits.f32_gflops * kFloatShare;
  step.predicted_us = predict_us(step.bytes, step.flops, limits.read_gbps * kReadShare, peak);
  plan.steps.push_back(std::move(step));
}

}  // namespace

void plan_experts(const ExpertPanels& panels, int64_t num_tokens, int64_t top_k,
                  const MachineLimits& limits, Plan& plan) {
  const double tokens = static_cast<double>(num_tokens);
  const double rows = tokens * static_cast<double>(top_k);
  const double distinct = expected_distinct_experts(panels.num_experts, top_k, num_tokens);
  const RowLayout& input = panels.gate_up.rows;
  const double input_bytes =
      (panels.input_by_row() ? rows : tokens) *
      (static_cast<double>(input.row_bytes) + 2.0 * static_cast<double>(panels.gate_up.num_inputs));
  plan.steps.push_back({.step = "sort, quantize",
                        .kernel = input.integer() ? "int8_block32" : "f32_rows",
                        .why = panels.input_by_row() ? "once per (token, slot)" : "once per token",
                        .bytes = input_bytes,
                        .predicted_us = predict_us(input_bytes, 0, limits.copy_gbps, 0)});
  const double intermediate_bytes = rows * static_cast<double>(panels.down.rows.row_bytes);
  add_stage("gate_up", panels, panels.gate_up, distinct, rows, intermediate_bytes, limits, plan);
  const double output_bytes = tokens * 2.0 * static_cast<double>(panels.down.num_outputs);
  add_stage("down, combine", panels, panels.down, distinct, rows, intermediate_bytes + output_bytes,
            limits, plan);
}

}  // namespace switchyard::cpu
