/* Two experts of four numbers each, from raw tensors, through the C interface. Expert 0 doubles,
   expert 1 negates; the caller routes. Prints the output. */

#include <stdio.h>
#include <stdlib.h>
#include <switchyard/c_api.h>

enum { kExperts = 2, kTokens = 3, kTopK = 1, kHidden = 4, kInner = 4 };

static void check(sy_status status) {
  if (status == SY_OK) return;
  fprintf(stderr, "%s: %s\n", sy_status_name(status), sy_last_error_message());
  exit(1);
}

int main(void) {
  /* ReLU^2 experts: down . max(0, up . x)^2, with up the identity. */
  float up[kExperts][kInner][kHidden] = {{{0}}}, down[kExperts][kHidden][kInner] = {{{0}}};
  for (int i = 0; i < kHidden; ++i) {
    up[0][i][i] = up[1][i][i] = 1.0f;
    down[0][i][i] = 2.0f;
    down[1][i][i] = -1.0f;
  }

  sy_activation activation;
  check(sy_activation_init(&activation, sizeof activation));
  activation.kind = SY_RELU2;
  sy_layer_spec spec;
  check(sy_layer_spec_init(&spec, sizeof spec));
  spec.num_experts = kExperts;
  spec.top_k = kTopK;
  spec.hidden_size = kHidden;
  spec.intermediate_size = kInner;
  spec.activation = &activation;
  spec.weight_format = SY_FORMAT_F32;
  spec.activation_format = SY_ACTIVATIONS_NONE;

  const sy_stacked_experts stacked = {
      .struct_size = sizeof stacked,
      .format = SY_FORMAT_F32,
      .gate_up = {.data = up, .type = SY_F32, .rank = 3, .shape = {kExperts, kInner, kHidden}},
      .down = {.data = down, .type = SY_F32, .rank = 3, .shape = {kExperts, kHidden, kInner}}};
  const sy_weights weights = {.struct_size = sizeof weights, .stacked = &stacked};
  sy_layer* layer = NULL;
  const sy_layer_options options = {.struct_size = sizeof options, .backend = SY_BACKEND_CPU};
  check(sy_layer_create(&spec, &weights, &options, &layer));

  float x[kTokens][kHidden] = {{1, 2, 3, 4}, {1, 2, 3, 4}, {-1, 5, 0, 1}};
  float y[kTokens][kHidden];
  int32_t ids[kTokens][kTopK] = {{0}, {1}, {0}};
  float gates[kTokens][kTopK] = {{1}, {1}, {0.5f}};
  const sy_forward_args args = {
      .struct_size = sizeof args,
      .hidden_states = {.data = x, .type = SY_F32, .rank = 2, .shape = {kTokens, kHidden}},
      .output = {.data = y, .type = SY_F32, .rank = 2, .shape = {kTokens, kHidden}},
      .topk_ids = {.data = ids, .type = SY_I32, .rank = 2, .shape = {kTokens, kTopK}},
      .topk_weights = {.data = gates, .type = SY_F32, .rank = 2, .shape = {kTokens, kTopK}}};
  int64_t bytes = 0;
  check(sy_layer_workspace_bytes(layer, kTokens, &bytes));
  void* workspace = aligned_alloc(SY_WORKSPACE_ALIGNMENT, (size_t)bytes);
  check(sy_layer_forward(layer, &args, workspace, bytes, NULL));

  for (int t = 0; t < kTokens; ++t) printf("%g %g %g %g\n", y[t][0], y[t][1], y[t][2], y[t][3]);
  free(workspace);
  sy_layer_destroy(layer);
  return 0;
}
