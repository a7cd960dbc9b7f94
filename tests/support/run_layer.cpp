#include "support/run_layer.h"

#include "switchyard/models.h"

namespace switchyard::test {

std::vector<BackendKind> available_backends() {
  std::vector<BackendKind> kinds;
  const LayerSpec any{.num_experts = 2, .top_k = 1, .hidden_size = 64, .intermediate_size = 32};
  for (BackendKind kind : {BackendKind::kReference, BackendKind::kCpu})
    if (why_unsupported(any, kind).empty()) kinds.push_back(kind);
  return kinds;
}

LayerRun run_layer(const Layer& layer, const TensorView& hidden, ForwardArgs args) {
  const int64_t num_tokens = hidden.extent(0);
  LayerRun run{.output = Buffer(hidden.type, {num_tokens, layer.spec().hidden_size}),
               .topk_ids = Buffer(DataType::kI32, {num_tokens, layer.spec().top_k}),
               .topk_weights = Buffer(DataType::kF32, {num_tokens, layer.spec().top_k})};
  args.hidden_states = hidden;
  args.output = run.output;
  if (args.topk_ids.empty()) {
    args.topk_ids_out = run.topk_ids;
    args.topk_weights_out = run.topk_weights;
  }
  const GuardedMemory workspace(layer.workspace_bytes(num_tokens));
  layer.forward(args, workspace.workspace());
  EXPECT_TRUE(workspace.canaries_intact()) << "a write outside the workspace";
  EXPECT_TRUE(run.output.canaries_intact()) << "a write outside the output";
  EXPECT_TRUE(run.topk_ids.canaries_intact() && run.topk_weights.canaries_intact())
      << "a write outside the routing copies";
  return run;
}

Buffer random_input_ids(Random& random, int64_t num_tokens, int64_t vocabulary) {
  Buffer ids(DataType::kI64, {num_tokens});
  for (int64_t t = 0; t < num_tokens; ++t) ids.as<int64_t>()[t] = random.below(vocabulary);
  return ids;
}

}  // namespace switchyard::test
