#pragma once
// One MoE call on packed experts of any backend, over poisoned memory.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"
#include "support/compare.h"
#include "support/random_weights.h"

namespace switchyard::test {

/// Input and routing of one call.
struct ExpertsCall {
  Buffer hidden_states;
  Buffer topk_ids;
  Buffer topk_weights;
  TensorView addend{};
  TensorView num_tokens{};
  DataType output_type = DataType::kF32;

  int64_t size() const { return hidden_states.view().extent(0); }
};

inline ExpertsCall random_call(Random& random, const LayerSpec& spec, int64_t num_tokens,
                               DataType type) {
  ExpertsCall call;
  call.hidden_states = Buffer::normal(random, type, {num_tokens, spec.expert_width()});
  call.topk_ids = random_topk_ids(random, num_tokens, spec.top_k, spec.num_experts);
  call.topk_weights = random_topk_weights(random, num_tokens, spec.top_k);
  call.output_type = type;
  return call;
}

/// Runs with a poisoned workspace and output and checks that nothing outside them was written.
inline Buffer run_experts(const PackedExperts& experts, const LayerSpec& spec,
                          const ExpertsCall& call) {
  const GuardedMemory workspace(experts.workspace_bytes(call.size(), spec.top_k));
  Buffer output(call.output_type, {call.size(), spec.expert_width()});
  experts.run({.hidden_states = call.hidden_states,
               .topk_ids = call.topk_ids,
               .topk_weights = call.topk_weights,
               .addend = call.addend,
               .num_tokens = call.num_tokens,
               .output = output},
              workspace.workspace(), {});
  EXPECT_TRUE(workspace.canaries_intact());
  EXPECT_TRUE(output.canaries_intact());
  return output;
}

/// The same weights packed for the CPU and for the reference.
class BothBackends {
 public:
  explicit BothBackends(const LayerSpec& spec, const WeightsOptions& options = {})
      : spec_(spec),
        weights_(spec, options),
        cpu_(cpu_backend().pack_experts(spec, weights_.weights().experts, {})),
        reference_(reference_backend().pack_experts(spec, weights_.weights().experts, {})) {}

  const PackedExperts& cpu() const { return *cpu_; }
  const PackedExperts& reference() const { return *reference_; }

  void expect_same(const ExpertsCall& call, const std::string& what) const {
    SCOPED_TRACE(what);
    const Buffer output = run_experts(*cpu_, spec_, call);
    const Buffer expected = run_experts(*reference_, spec_, call);
    EXPECT_TRUE(within(output, expected, error_bound(spec_, BackendKind::kCpu, call.output_type),
                       call.topk_ids));
  }

 private:
  LayerSpec spec_;
  RandomWeights weights_;
  std::unique_ptr<PackedExperts> cpu_;
  std::unique_ptr<PackedExperts> reference_;
};

/// A way to store weights, under the name the test prints.
struct FormatCase {
  const char* name;
  Format format;
  ScaleBlock block;
  MatrixOptions matrix{};
};

inline std::vector<FormatCase> format_cases() {
  return {
      {"f32", Format::kF32, {}},
      {"f16", Format::kF16, {}},
      {"bf16", Format::kBf16, {}},
      {"bf16 transposed", Format::kBf16, {}, {.transposed = true}},
      {"fp8 tensor", Format::kFp8E4m3, {0, 0}},
      {"fp8 channel", Format::kFp8E4m3, {1, 0}},
      {"fp8 128x128", Format::kFp8E4m3, {128, 128}},
      {"fp8 128x128 bf16 scales", Format::kFp8E4m3, {128, 128}, {.scale_type = DataType::kBf16}},
      {"fp8 transposed", Format::kFp8E4m3, {128, 128}, {.transposed = true}},
      {"fp8 odd block", Format::kFp8E4m3, {1, 24}},
      {"fp8 e5m2", Format::kFp8E5m2, {1, 0}},
      {"int8 channel", Format::kInt8, {1, 0}},
      {"int8 tensor", Format::kInt8, {0, 0}},
      {"int8 group 32", Format::kInt8, {1, 32}, {.scale_type = DataType::kF16}},
      {"int8 group 16", Format::kInt8, {1, 16}},
      {"int8 smooth", Format::kInt8, {1, 0}, {.smooth_scales = true}},
      {"int4 group 32", Format::kInt4, {1, 32}, {.scale_type = DataType::kBf16}},
      {"int4 group 128", Format::kInt4, {1, 128}, {.int32_words = true}},
      {"int4 zero points", Format::kInt4, {1, 32}, {.zero_points = true}},
      {"int4 zero points 128", Format::kInt4, {1, 128}, {.zero_points = true}},
      {"int4 actorder", Format::kInt4, {1, 32}, {.zero_points = true, .group_index = true}},
      {"mxfp4", Format::kMxfp4, {1, 32}},
      {"mxfp4 transposed", Format::kMxfp4, {1, 32}, {.transposed = true, .int32_words = true}},
      {"mxfp8", Format::kMxfp8, {1, 32}},
      {"nvfp4", Format::kNvfp4, {1, 16}, {.global_scale = 0.37f}},
  };
}

/// Sizes that are no multiples of a panel, a block or each other.
inline LayerSpec odd_spec(Format format = Format::kMxfp4, ScaleBlock block = {1, 32}) {
  LayerSpec spec{.num_experts = 6, .top_k = 3, .hidden_size = 200, .intermediate_size = 104};
  spec.weight_format = format;
  spec.weight_scale_block = block;
  return spec;
}

}  // namespace switchyard::test
