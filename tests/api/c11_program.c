/* The C interface as a C11 program sees it: numbers against plain loops in double, every rule of
   the header, every null. Usage: api_c11 FIXTURES */

#include <math.h>
#include <pthread.h>  // not <threads.h>, which ThreadSanitizer does not follow
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <switchyard/c_api.h>

static int failures = 0;

static void expect(int holds, const char* text, int line) {
  if (holds) return;
  ++failures;
  printf("line %d: %s does not hold; last error \"%s\"\n", line, text, sy_last_error_message());
}
#define EXPECT(condition) expect((condition) != 0, #condition, __LINE__)

/* Status, and every word in the message. */
static void expect_error(sy_status status, sy_status expected, int line, int words, ...) {
  va_list list;
  if (status != expected) {
    ++failures;
    printf("line %d: status %s, expected %s; \"%s\"\n", line, sy_status_name(status),
           sy_status_name(expected), sy_last_error_message());
  }
  va_start(list, words);
  for (int i = 0; i < words; ++i) {
    const char* word = va_arg(list, const char*);
    if (strstr(sy_last_error_message(), word) != NULL) continue;
    ++failures;
    printf("line %d: \"%s\" is not in \"%s\"\n", line, word, sy_last_error_message());
  }
  va_end(list);
}
#define EXPECT_ERROR1(call, status, word) expect_error(call, status, __LINE__, 1, word)
#define EXPECT_ERROR2(call, status, a, b) expect_error(call, status, __LINE__, 2, a, b)

static sy_tensor tensor(void* data, sy_data_type type, int32_t rank, int64_t a, int64_t b,
                        int64_t c) {
  const sy_tensor t = {.data = data, .type = type, .rank = rank, .shape = {a, b, c}};
  return t;
}

/* ---- a SwiGLU layer with its own router, gate and up interleaved in one f32 tensor */

enum { kE = 3, kK = 2, kH = 20, kI = 12, kT = 5 };
static float router_weight[kE][kH], gate_up[kE][2 * kI][kH], down[kE][kH][kI], hidden[kT][kH];
static sy_layer_spec spec;
static sy_matrix router;
static sy_stacked_experts stacked;
static sy_weights weights;
/* The tensors are in host memory, also where there is a GPU. */
static const sy_layer_options on_cpu = {.struct_size = sizeof on_cpu, .backend = SY_BACKEND_CPU};

static float next_random(void) { /* in [-1, 1) */
  static uint32_t state = 12345;
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / 8388608.0f - 1.0f;
}
static void randomize(float* values, size_t count) {
  for (size_t i = 0; i < count; ++i) values[i] = next_random();
}

static void make_inputs(void) {
  randomize(&router_weight[0][0], kE * kH);
  randomize(&gate_up[0][0][0], kE * 2 * kI * kH);
  randomize(&down[0][0][0], kE * kH * kI);
  randomize(&hidden[0][0], kT * kH);
  EXPECT(sy_layer_spec_init(&spec, sizeof spec) == SY_OK);
  EXPECT(spec.struct_size == sizeof spec && spec.weight_format == SY_FORMAT_BF16);
  spec.num_experts = kE;
  spec.top_k = kK;
  spec.hidden_size = kH;
  spec.intermediate_size = kI;
  spec.weight_format = SY_FORMAT_F32;
  spec.activation_format = SY_ACTIVATIONS_NONE;
  router.struct_size = sizeof router;
  router.format = SY_FORMAT_F32;
  router.rows = kE;
  router.cols = kH;
  router.values = tensor(router_weight, SY_F32, 2, kE, kH, 0);
  stacked.struct_size = sizeof stacked;
  stacked.format = SY_FORMAT_F32;
  stacked.order = SY_GATE_UP_INTERLEAVED;
  stacked.gate_up = tensor(gate_up, SY_F32, 3, kE, 2 * kI, kH);
  stacked.down = tensor(down, SY_F32, 3, kE, kH, kI);
  weights.struct_size = sizeof weights;
  weights.stacked = &stacked;
  weights.router = &router;
}

/* out[t] of softmax, top-2, renormalise, SwiGLU experts; in double. */
static void expected_output(double out[kT][kH], int32_t ids[kT][kK]) {
  memset(out, 0, sizeof(double) * kT * kH);
  for (int t = 0; t < kT; ++t) {
    double logits[kE];
    for (int e = 0; e < kE; ++e) {
      logits[e] = 0;
      for (int h = 0; h < kH; ++h) logits[e] += (double)router_weight[e][h] * (double)hidden[t][h];
    }
    int lowest = 0; /* top 2 of 3: all but the lowest */
    for (int e = 1; e < kE; ++e) {
      if (logits[e] < logits[lowest]) lowest = e;
    }
    int a = lowest == 0 ? 1 : 0, b = lowest == 2 ? 1 : 2;
    if (logits[b] > logits[a]) {
      const int swap = a;
      a = b;
      b = swap;
    }
    ids[t][0] = a;
    ids[t][1] = b;
    for (int k = 0; k < kK; ++k) {
      const int e = ids[t][k];
      const double weight = exp(logits[e]) / (exp(logits[a]) + exp(logits[b]));
      double inner[kI];
      for (int i = 0; i < kI; ++i) {
        double g = 0, u = 0;
        for (int h = 0; h < kH; ++h) {
          g += (double)gate_up[e][2 * i][h] * (double)hidden[t][h];
          u += (double)gate_up[e][2 * i + 1][h] * (double)hidden[t][h];
        }
        inner[i] = g / (1 + exp(-g)) * u;
      }
      for (int h = 0; h < kH; ++h) {
        for (int i = 0; i < kI; ++i) out[t][h] += weight * (double)down[e][h][i] * inner[i];
      }
    }
  }
}

static void run_and_compare(const sy_layer* layer, int line) {
  static float output[kT][kH];
  static int32_t ids[kT][kK], expected_ids[kT][kK];
  static double expected[kT][kH];
  int64_t bytes = -1;
  memset(output, 0xff, sizeof output);
  const sy_forward_args args = {.struct_size = sizeof args,
                                .hidden_states = tensor(hidden, SY_F32, 2, kT, kH, 0),
                                .output = tensor(output, SY_F32, 2, kT, kH, 0),
                                .topk_ids_out = tensor(ids, SY_I32, 2, kT, kK, 0)};
  expect(sy_layer_workspace_bytes(layer, kT, &bytes) == SY_OK && bytes > 0, "workspace", line);
  void* workspace = aligned_alloc(SY_WORKSPACE_ALIGNMENT, (size_t)bytes);
  memset(workspace, 0xff, (size_t)bytes);
  expect(sy_layer_forward(layer, &args, workspace, bytes, NULL) == SY_OK, "forward", line);
  free(workspace);
  expected_output(expected, expected_ids);
  expect(memcmp(ids, expected_ids, sizeof ids) == 0, "routing", line);
  double worst = 0;
  for (int t = 0; t < kT; ++t) {
    for (int h = 0; h < kH; ++h) {
      const double error = fabs((double)output[t][h] - expected[t][h]);
      if (!(error <= worst)) worst = error;
    }
  }
  /* f32 sums of 32 terms of order 1 in two stages. */
  expect(worst < 3e-5, "output equals the loops in double", line);
}

static void test_layer(void) {
  sy_layer* layer = NULL;
  EXPECT(sy_layer_create(&spec, &weights, &on_cpu, &layer) == SY_OK);
  run_and_compare(layer, __LINE__);

  sy_layer_info info = {.struct_size = sizeof info};
  EXPECT(sy_layer_get_info(layer, &info) == SY_OK);
  EXPECT(info.num_experts == kE && info.top_k == kK && info.hidden_size == kH);
  EXPECT(info.intermediate_size == kI && info.weight_format == SY_FORMAT_F32 && info.hash == 0);
  EXPECT(info.backend == SY_BACKEND_CPU && info.packed_bytes >= (int64_t)sizeof gate_up);
  sy_layer_info part = {.struct_size = offsetof(sy_layer_info, hidden_size), .hidden_size = -7};
  EXPECT(sy_layer_get_info(layer, &part) == SY_OK);
  EXPECT(part.num_experts == kE && part.top_k == kK && part.hidden_size == -7);

  size_t length = 0, again = 0;
  EXPECT(sy_layer_explain(layer, kT, NULL, 0, &length) == SY_OK && length > 40);
  char* text = malloc(length + 1);
  EXPECT(sy_layer_explain(layer, kT, text, length + 1, &again) == SY_OK && again == length);
  EXPECT(strlen(text) == length && strstr(text, "gate_up") != NULL);
  char small[8];
  EXPECT(sy_layer_explain(layer, kT, small, sizeof small, &again) == SY_OK && again == length);
  EXPECT(strlen(small) == 7 && strncmp(small, text, 7) == 0);
  free(text);
  sy_layer_destroy(layer);
}

/* ---- experts by callback, lent threads, progress */

static sy_matrix gates[kE], ups[kE], downs[kE];
static int releases, progress_calls, failing_expert;

static sy_matrix matrix(float* data, int64_t rows, int64_t cols, int64_t row_stride) {
  sy_matrix m = {.struct_size = sizeof m, .format = SY_FORMAT_F32, .rows = rows, .cols = cols};
  m.values = tensor(data, SY_F32, 2, rows, cols, 0);
  m.values.strides[0] = row_stride;
  m.values.strides[1] = 1;
  return m;
}
static sy_status load(void* context, int64_t expert, sy_expert* out) {
  if (context != &failing_expert || out->struct_size != sizeof *out) return SY_INTERNAL;
  if (expert == failing_expert) return SY_INVALID_FILE;
  gates[expert] = matrix(&gate_up[expert][0][0], kI, kH, 2 * kH);
  ups[expert] = matrix(&gate_up[expert][1][0], kI, kH, 2 * kH);
  downs[expert] = matrix(&down[expert][0][0], kH, kI, kI);
  out->gate = &gates[expert];
  out->up = &ups[expert];
  out->down = &downs[expert];
  return SY_OK;
}
static void release(void* context, int64_t expert) {
  EXPECT(context == &failing_expert && expert >= 0 && expert < kE);
  ++releases;
}
static void on_progress(void* context, int64_t done, int64_t total) {
  EXPECT(context == &progress_calls && done >= 1 && done <= total && total == kE);
  ++progress_calls;
}
static void run_in_turn(void* context, void (*fn)(void*, int), void* fn_context) {
  ++*(int*)context;
  for (int i = 2; i >= 0; --i) fn(fn_context, i);
}

static void test_callbacks(void) {
  int runs = 0;
  const sy_executor executor = {
      .struct_size = sizeof executor, .num_threads = 3, .run = run_in_turn, .context = &runs};
  const sy_layer_options options = {.struct_size = sizeof options,
                                    .backend = SY_BACKEND_CPU,
                                    .executor = &executor,
                                    .on_progress = on_progress,
                                    .progress_context = &progress_calls};
  const sy_expert_source source = {.struct_size = sizeof source,
                                   .num_experts = kE,
                                   .load = load,
                                   .release = release,
                                   .context = &failing_expert};
  sy_weights by_expert = weights;
  by_expert.stacked = NULL;
  by_expert.experts = &source;
  sy_layer* layer = NULL;
  failing_expert = -1;
  EXPECT(sy_layer_create(&spec, &by_expert, &options, &layer) == SY_OK);
  EXPECT(releases == kE && progress_calls == kE);
  runs = 0;
  run_and_compare(layer, __LINE__);
  EXPECT(runs > 0);
  sy_layer_destroy(layer);

  failing_expert = 1;
  layer = NULL;
  EXPECT_ERROR2(sy_layer_create(&spec, &by_expert, NULL, &layer), SY_INVALID_FILE, "load(1)",
                "returned 7");
  EXPECT(layer == NULL);
  failing_expert = -1;
  by_expert.stacked = &stacked;
  EXPECT_ERROR1(sy_layer_create(&spec, &by_expert, NULL, &layer), SY_INVALID_ARGUMENT,
                "both given");
  by_expert.stacked = NULL;
  by_expert.experts = NULL;
  EXPECT_ERROR1(sy_layer_create(&spec, &by_expert, NULL, &layer), SY_INVALID_ARGUMENT, "both null");
}

/* ---- wrong arguments */

static void test_nulls(void) {
  sy_layer* layer = NULL;
  int64_t number = 0;
  size_t length = 0;
  const sy_status invalid = SY_INVALID_ARGUMENT;
  EXPECT_ERROR2(sy_routing_init(NULL, sizeof(sy_routing)), invalid, "routing", "null");
  EXPECT_ERROR1(sy_activation_init(NULL, sizeof(sy_activation)), invalid, "null");
  EXPECT_ERROR1(sy_layer_spec_init(NULL, sizeof(sy_layer_spec)), invalid, "null");
  EXPECT_ERROR1(sy_quantize_args_init(NULL, sizeof(sy_quantize_args)), invalid, "null");
  EXPECT_ERROR1(sy_layer_create(NULL, &weights, NULL, &layer), invalid, "spec is null");
  EXPECT_ERROR1(sy_layer_create(&spec, NULL, NULL, &layer), invalid, "weights is null");
  EXPECT_ERROR1(sy_layer_create(&spec, &weights, NULL, NULL), invalid, "layer is null");
  EXPECT_ERROR1(sy_layer_create_from_checkpoint(NULL, 0, NULL, &layer), invalid, "directory");
  EXPECT_ERROR1(sy_layer_create_from_checkpoint("/", 0, NULL, NULL), invalid, "layer is null");
  EXPECT_ERROR1(sy_layer_get_info(NULL, NULL), invalid, "layer is null");
  EXPECT_ERROR1(sy_layer_workspace_bytes(NULL, 1, &number), invalid, "layer is null");
  EXPECT_ERROR1(sy_layer_forward(NULL, NULL, NULL, 0, NULL), invalid, "layer is null");
  EXPECT_ERROR1(sy_layer_explain(NULL, 1, NULL, 0, &length), invalid, "layer is null");
  EXPECT_ERROR1(sy_route(NULL, NULL, NULL), invalid, "args is null");
  EXPECT_ERROR1(sy_sort(NULL, NULL), invalid, "args is null");
  EXPECT_ERROR1(sy_sort_capacity(1, 1, 1, 1, NULL), invalid, "capacity is null");
  EXPECT_ERROR1(sy_sort_workspace_bytes(1, 1, 1, 1, SY_BACKEND_CPU, NULL), invalid, "bytes");
  EXPECT_ERROR1(sy_quantize(NULL, NULL), invalid, "args is null");
  sy_layer_destroy(NULL);

  EXPECT(sy_layer_create(&spec, &weights, &on_cpu, &layer) == SY_OK);
  EXPECT_ERROR1(sy_layer_get_info(layer, NULL), invalid, "info is null");
  EXPECT_ERROR1(sy_layer_workspace_bytes(layer, 1, NULL), invalid, "bytes is null");
  EXPECT_ERROR1(sy_layer_workspace_bytes(layer, -1, &number), invalid, "-1");
  EXPECT_ERROR1(sy_layer_forward(layer, NULL, NULL, 0, NULL), invalid, "args is null");
  EXPECT_ERROR1(sy_layer_explain(layer, 1, NULL, 5, &length), invalid, "text is null");
  EXPECT_ERROR1(sy_layer_explain(layer, 1, NULL, 0, NULL), invalid, "length is null");
  sy_layer_destroy(layer);
}

static void test_wrong_structs(void) {
  sy_layer* layer = NULL;
  sy_layer_spec bad = spec;
  bad.struct_size = 0;
  EXPECT_ERROR1(sy_layer_create(&bad, &weights, NULL, &layer), SY_INVALID_ARGUMENT,
                "spec.struct_size is 0");
  /* A newer program: extra bytes are fine while they are zero. */
  struct {
    sy_layer_spec spec;
    int64_t newer;
  } extended = {.spec = spec};
  extended.spec.struct_size = sizeof extended;
  EXPECT(sy_layer_create(&extended.spec, &weights, &on_cpu, &layer) == SY_OK);
  sy_layer_destroy(layer);
  layer = NULL;
  extended.newer = 3;
  EXPECT_ERROR1(sy_layer_create(&extended.spec, &weights, NULL, &layer), SY_UNSUPPORTED,
                "spec.struct_size");
  /* An older program: what it does not know has its default. */
  sy_routing older;
  EXPECT(sy_routing_init(&older, sizeof older) == SY_OK);
  older.struct_size = offsetof(sy_routing, renormalize);
  older.renormalize = 0;
  older.num_groups = -5;
  bad = spec;
  bad.routing = &older;
  EXPECT(sy_layer_create(&bad, &weights, &on_cpu, &layer) == SY_OK);
  run_and_compare(layer, __LINE__);
  sy_layer_destroy(layer);
  layer = NULL;

  bad = spec;
  bad.top_k = kE + 1;
  EXPECT_ERROR2(sy_layer_create(&bad, &weights, NULL, &layer), SY_INVALID_ARGUMENT, "top_k", "4");
  bad = spec;
  bad.weight_format = 99;
  EXPECT_ERROR2(sy_layer_create(&bad, &weights, NULL, &layer), SY_INVALID_ARGUMENT, "weight_format",
                "99");
  sy_routing routing;
  EXPECT(sy_routing_init(&routing, sizeof routing) == SY_OK && routing.renormalize == 1);
  routing.scoring = -1;
  bad = spec;
  bad.routing = &routing;
  EXPECT_ERROR2(sy_layer_create(&bad, &weights, NULL, &layer), SY_INVALID_ARGUMENT,
                "routing.scoring", "-1");
  sy_stacked_experts wrong = stacked;
  sy_weights with_wrong = weights;
  with_wrong.stacked = &wrong;
  wrong.gate_up.rank = 9;
  EXPECT_ERROR2(sy_layer_create(&spec, &with_wrong, NULL, &layer), SY_INVALID_ARGUMENT,
                "gate_up.rank", "9");
  wrong = stacked;
  wrong.down.shape[2] = -1;
  EXPECT_ERROR2(sy_layer_create(&spec, &with_wrong, NULL, &layer), SY_INVALID_ARGUMENT, "down",
                "-1");
  wrong = stacked;
  wrong.down.shape[0] = wrong.down.shape[1] = wrong.down.shape[2] = INT64_C(1) << 40;
  EXPECT_ERROR1(sy_layer_create(&spec, &with_wrong, NULL, &layer), SY_INVALID_ARGUMENT, "down");
  wrong = stacked;
  wrong.gate_up.type = 77;
  EXPECT_ERROR2(sy_layer_create(&spec, &with_wrong, NULL, &layer), SY_INVALID_ARGUMENT, "gate_up",
                "77");
  sy_layer_options options = {.struct_size = sizeof options, .backend = 42};
  EXPECT_ERROR2(sy_layer_create(&spec, &weights, &options, &layer), SY_INVALID_ARGUMENT,
                "options.backend", "42");
  EXPECT(layer == NULL);
}

static void test_wrong_forward(void) {
  sy_layer* layer = NULL;
  float output[kT][kH];
  int64_t bytes = 0;
  for (int i = 0; i < kT * kH; ++i) (&output[0][0])[i] = 7.0f;
  EXPECT(sy_layer_create(&spec, &weights, &on_cpu, &layer) == SY_OK);
  EXPECT(sy_layer_workspace_bytes(layer, kT, &bytes) == SY_OK);
  char* workspace = aligned_alloc(SY_WORKSPACE_ALIGNMENT, (size_t)bytes + SY_WORKSPACE_ALIGNMENT);
  sy_forward_args args = {.struct_size = sizeof args,
                          .hidden_states = tensor(hidden, SY_F32, 2, kT, kH, 0),
                          .output = tensor(output, SY_F32, 2, kT, kH, 0)};
  EXPECT_ERROR1(sy_layer_forward(layer, &args, workspace, bytes - 1, NULL), SY_INVALID_ARGUMENT,
                "workspace");
  EXPECT_ERROR1(sy_layer_forward(layer, &args, workspace + 4, bytes, NULL), SY_INVALID_ARGUMENT,
                "workspace");
  EXPECT_ERROR1(sy_layer_forward(layer, &args, NULL, bytes, NULL), SY_INVALID_ARGUMENT,
                "workspace");
  args.hidden_states.shape[1] = kH - 1;
  EXPECT_ERROR1(sy_layer_forward(layer, &args, workspace, bytes, NULL), SY_INVALID_ARGUMENT,
                "hidden_states");
  args.hidden_states = args.output;
  EXPECT_ERROR1(sy_layer_forward(layer, &args, workspace, bytes, NULL), SY_INVALID_ARGUMENT,
                "output");
  for (int i = 0; i < kT * kH; ++i) EXPECT((&output[0][0])[i] == 7.0f);
  free(workspace);
  sy_layer_destroy(layer);
}

/* ---- checkpoints */

static void test_checkpoint(const char* fixtures) {
  sy_layer* layer = NULL;
  char path[4096];
  snprintf(path, sizeof path, "%s/qwen3_moe", fixtures);
  EXPECT(sy_layer_create_from_checkpoint(path, 1, &on_cpu, &layer) == SY_OK);
  sy_layer_info info = {.struct_size = sizeof info};
  EXPECT(sy_layer_get_info(layer, &info) == SY_OK && info.weight_format == SY_FORMAT_BF16);
  sy_layer_destroy(layer);
  layer = NULL;
  EXPECT_ERROR1(sy_layer_create_from_checkpoint(path, 0, NULL, &layer), SY_INVALID_ARGUMENT, "0");
  EXPECT_ERROR1(sy_layer_create_from_checkpoint("/nowhere/at/all", 0, NULL, &layer),
                SY_INVALID_FILE, "/nowhere/at/all");
  EXPECT(layer == NULL);
}

/* ---- ops */

static void test_ops(void) {
  /* Experts by descending logit; weights softmax over the chosen. */
  float logits[2][4] = {{0, 3, 1, 2}, {5, 5, 5, 4}};
  int32_t ids[2][2];
  float topk_weights[2][2];
  sy_route_args route = {.struct_size = sizeof route,
                         .router_logits = tensor(logits, SY_F32, 2, 2, 4, 0),
                         .topk_ids = tensor(ids, SY_I32, 2, 2, 2, 0),
                         .topk_weights = tensor(topk_weights, SY_F32, 2, 2, 2, 0)};
  EXPECT(sy_route(NULL, &route, NULL) == SY_OK);
  EXPECT(ids[0][0] == 1 && ids[0][1] == 3 && ids[1][0] == 0 && ids[1][1] == 1);
  EXPECT(fabs((double)topk_weights[0][0] - exp(1.0) / (1 + exp(1.0))) < 1e-6);
  EXPECT(fabs((double)topk_weights[1][1] - 0.5) < 1e-6);
  route.router_logits.type = SY_I32;
  EXPECT_ERROR1(sy_route(NULL, &route, NULL), SY_INVALID_ARGUMENT, "router_logits");

  int64_t capacity = 0, bytes = -1;
  EXPECT(sy_sort_capacity(2, 2, 4, 2, &capacity) == SY_OK && capacity >= 8);
  EXPECT(sy_sort_workspace_bytes(2, 2, 4, 2, SY_BACKEND_AUTO, &bytes) == SY_OK && bytes >= 0);
  int32_t sorted_ids[64], sorted_experts[64], num_valid[2];
  float sorted_weights[64];
  void* workspace = aligned_alloc(SY_WORKSPACE_ALIGNMENT, (size_t)bytes / 256 * 256 + 256);
  const sy_execution execution = {
      .struct_size = sizeof execution, .workspace = workspace, .workspace_bytes = bytes};
  const sy_sort_args sort = {
      .struct_size = sizeof sort,
      .topk_ids = tensor(ids, SY_I32, 2, 2, 2, 0),
      .topk_weights = tensor(topk_weights, SY_F32, 2, 2, 2, 0),
      .num_experts = 4,
      .unit_size = 2,
      .sorted_ids = tensor(sorted_ids, SY_I32, 1, capacity, 0, 0),
      .sorted_weights = tensor(sorted_weights, SY_F32, 1, capacity, 0, 0),
      .sorted_expert_ids = tensor(sorted_experts, SY_I32, 1, capacity / 2, 0, 0),
      .num_valid_ids = tensor(num_valid, SY_I32, 1, 2, 0, 0)};
  EXPECT(capacity <= 64 && sy_sort(&sort, &execution) == SY_OK);
  /* Expert 0: token 1 slot 0. Expert 1: token 0 slot 0, token 1 slot 1. Expert 3: token 0 slot 1.
   */
  const int32_t pad = 2 << 24 | 2;
  EXPECT(num_valid[0] == 6 && num_valid[1] == 2);
  EXPECT(sorted_experts[0] == 0 && sorted_experts[1] == 1 && sorted_experts[2] == 3);
  EXPECT(sorted_ids[0] == 1 && sorted_ids[1] == pad && sorted_ids[2] == 0);
  EXPECT(sorted_ids[3] == (1 << 24 | 1) && sorted_ids[4] == 1 << 24 && sorted_ids[5] == pad);
  EXPECT(sorted_weights[2] == topk_weights[0][0] && sorted_weights[5] == 0.0f);
  free(workspace);

  float input[2][32] = {{0}};
  int8_t codes[2][32];
  float scales[2][1];
  input[0][3] = -254.0f;
  input[0][4] = 3.0f; /* 1.5 steps: to even, 2 */
  sy_quantize_args quantize;
  EXPECT(sy_quantize_args_init(&quantize, sizeof quantize) == SY_OK);
  EXPECT(quantize.rounding == SY_SCALE_UP && quantize.global_scale == 1.0f);
  quantize.input = tensor(input, SY_F32, 2, 2, 32, 0);
  quantize.format = SY_FORMAT_INT8;
  quantize.scale_block_rows = 1;
  quantize.scale_block_cols = 32;
  quantize.values = tensor(codes, SY_I8, 2, 2, 32, 0);
  quantize.scales = tensor(scales, SY_F32, 2, 2, 1, 0);
  EXPECT(sy_quantize(&quantize, NULL) == SY_OK);
  EXPECT(scales[0][0] == 2.0f && scales[1][0] == 1.0f);
  EXPECT(codes[0][3] == -127 && codes[0][4] == 2 && codes[1][0] == 0);
  quantize.format = SY_FORMAT_FP8_E5M2;
  EXPECT_ERROR1(sy_quantize(&quantize, NULL), SY_INVALID_ARGUMENT, "format");
}

/* ---- messages */

static void* on_other_thread(void* ok) {
  const int empty_before = sy_last_error_message()[0] == '\0';
  (void)sy_sort_capacity(1, 1, 1, 1, NULL);
  *(int*)ok = empty_before && strstr(sy_last_error_message(), "capacity") != NULL;
  return NULL;
}

static void test_messages(void) {
  EXPECT(sy_abi_version() == SY_ABI_VERSION && strchr(sy_version(), '.') != NULL);
  EXPECT(strcmp(sy_status_name(SY_OK), "ok") == 0);
  EXPECT(strcmp(sy_status_name(SY_INVALID_ARGUMENT), "invalid argument") == 0);
  EXPECT(strcmp(sy_status_name(SY_INVALID_FILE), "unknown") != 0);
  EXPECT(strcmp(sy_status_name(8), "unknown") == 0 && strcmp(sy_status_name(-1), "unknown") == 0);
  (void)sy_route(NULL, NULL, NULL);
  pthread_t thread;
  int ok = 0;
  EXPECT(pthread_create(&thread, NULL, on_other_thread, &ok) == 0);
  EXPECT(pthread_join(thread, NULL) == 0 && ok);
  EXPECT(strstr(sy_last_error_message(), "args") != NULL);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  EXPECT(sy_last_error_message()[0] == '\0');
  make_inputs();
  test_layer();
  test_callbacks();
  test_nulls();
  test_wrong_structs();
  test_wrong_forward();
  test_checkpoint(argv[1]);
  test_ops();
  test_messages();
  printf(failures == 0 ? "all held\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
