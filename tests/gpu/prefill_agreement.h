#pragma once
// A batch of many rows per expert by tuned kernels, by generic kernels and by the reference.

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "gpu/device_tensor.h"
#include "gpu/operands.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/random_weights.h"

namespace switchyard::test {

/// The layer's experts on the GPU by tuned and by generic kernels, and on the reference.
struct PrefillExperts {
  PrefillExperts(const LayerSpec& spec_, const Operands& operands, bool biases)
      : spec(spec_),
        weights(spec, {.seed = 11, .matrix = matrix_of(operands), .biases = biases}),
        tuned(gpu().pack_experts(spec, weights.weights().experts, {})),
        generic(gpu().pack_experts(spec, weights.weights().experts, {.generic_kernels = true})),
        reference(reference_backend().pack_experts(spec, weights.weights().experts, {})) {}
  LayerSpec spec;
  RandomWeights weights;
  std::unique_ptr<PackedExperts> tuned, generic, reference;
};

struct Batch {
  int64_t tokens;
  int64_t num_routed = -1;   ///< < 0: all
  int64_t only_expert = -1;  ///< >= 0: every token's
  bool addend = false;
  DataType output = DataType::kBf16;
  DataType hidden = DataType::kBf16;
};

inline Buffer run_on_gpu(const PackedExperts& experts, const RunExpertsArgs& args, int64_t top_k) {
  RunExpertsArgs on_device = args;
  std::vector<DeviceTensor> tensors;
  for (TensorView* view : {&on_device.output, &on_device.hidden_states, &on_device.topk_ids,
                           &on_device.topk_weights, &on_device.addend, &on_device.num_tokens}) {
    tensors.emplace_back(*view);
    *view = tensors.back().view();
  }
  const cuda::DeviceBuffer workspace =
      device_workspace(experts.workspace_bytes(args.hidden_states.extent(0), top_k));
  experts.run(on_device, workspace_of(workspace), {});
  return tensors[0].fetch();
}

/// With the reference, and with the generic kernels; `kernel` is what the plan must say.
inline void expect_agreement(const PrefillExperts& experts, const Batch& batch,
                             const char* kernel) {
  const LayerSpec& spec = experts.spec;
  SCOPED_TRACE(describe(spec, batch.tokens));
  Plan plan;
  experts.tuned->plan(batch.tokens, spec.top_k, {}, plan);
  bool uses_tuned = false;
  for (const PlanStep& step : plan.steps) uses_tuned |= step.kernel == kernel;
  ASSERT_TRUE(uses_tuned) << plan.explain();

  Random random(static_cast<uint64_t>(batch.tokens * 31 + spec.hidden_size));
  const int64_t width = spec.expert_width();
  const Buffer hidden = Buffer::normal(random, batch.hidden, {batch.tokens, width});
  Buffer ids = random_topk_ids(random, batch.tokens, spec.top_k, spec.num_experts);
  for (int64_t i = 0; i < ids.size(); ++i) {
    if (batch.only_expert >= 0) {  // and no other choice
      ids.as<int32_t>()[i] =
          i % spec.top_k == 0 ? static_cast<int32_t>(batch.only_expert) : int32_t{-1};
    }
    if (i % 13 == 5) ids.as<int32_t>()[i] = i % 2 == 0 ? -1 : 9999;
  }
  const Buffer weights = random_topk_weights(random, batch.tokens, spec.top_k);
  const Buffer extra = Buffer::normal(random, DataType::kF32, {batch.tokens, width});
  const Buffer count = Buffer::of(DataType::kI32, {1}, {static_cast<double>(batch.num_routed)});
  Buffer want(batch.output, {batch.tokens, width});
  RunExpertsArgs args{
      .hidden_states = hidden, .topk_ids = ids, .topk_weights = weights, .output = want};
  if (batch.addend) args.addend = extra;
  if (batch.num_routed >= 0) args.num_tokens = count;
  const Buffer poisoned(batch.output, {batch.tokens, width});
  RunExpertsArgs gpu_args = args;
  gpu_args.output = poisoned;
  const Buffer got = run_on_gpu(*experts.tuned, gpu_args, spec.top_k);
  const Buffer second = run_on_gpu(*experts.generic, gpu_args, spec.top_k);
  const GuardedMemory workspace(experts.reference->workspace_bytes(batch.tokens, spec.top_k));
  experts.reference->run(args, workspace.workspace(), {});

  const int64_t rows = batch.num_routed < 0 ? batch.tokens : batch.num_routed;
  EXPECT_TRUE(got.untouched(rows * width, got.size()));
  if (rows == 0) return;
  const auto head = [&](const Buffer& b) {
    return TensorView::contiguous(b.view().data, batch.output, {rows, width});
  };
  const ErrorBound bound = error_bound(spec, BackendKind::kCuda, batch.output);
  EXPECT_TRUE(within(head(got), head(want), bound, ids));
  EXPECT_TRUE(within(head(got), head(second), bound, ids)) << "against the generic kernels";
}

}  // namespace switchyard::test
