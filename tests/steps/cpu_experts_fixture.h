#pragma once
// One MoE call on packed experts of any backend, over poisoned memory.

#include <gtest/gtest.h>

#include "backend.h"
#include "support/compare.h"
#include "support/random_weights.h"

namespace switchyard::test {

/// Input and routing of one call.
struct ExpertsCall {
  Buffer hidden_states;
  Buffer topk_ids;
  Buffer topk_weights;
  Buffer addend;  ///< or empty
  DataType output_type = DataType::kF32;
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
  const int64_t num_tokens = call.hidden_states.view().extent(0);
  const GuardedMemory workspace(experts.workspace_bytes(num_tokens, spec.top_k));
  Buffer output(call.output_type, {num_tokens, spec.expert_width()});
  experts.run({.hidden_states = call.hidden_states,
               .topk_ids = call.topk_ids,
               .topk_weights = call.topk_weights,
               .addend = call.addend,
               .output = output},
              workspace.workspace(), {});
  EXPECT_TRUE(workspace.canaries_intact());
  EXPECT_TRUE(output.canaries_intact());
  return output;
}

}  // namespace switchyard::test
