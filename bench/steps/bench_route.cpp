// Routing on the CPU: tokens per second by routing method.

#include <benchmark/benchmark.h>

#include <random>
#include <vector>

#include "cpu/steps.h"
#include "switchyard/models.h"
#include "switchyard/ops.h"

namespace switchyard {
namespace {

void route(benchmark::State& state, const char* model) {
  const LayerSpec spec = model_shape(model).spec;
  const int64_t t = state.range(0);
  const int64_t e = spec.num_routed();
  const int64_t k = spec.routed_top_k();
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> logits(static_cast<size_t>(t * e)), bias(static_cast<size_t>(e));
  for (auto& x : logits) x = 2.0f * normal(random);
  for (auto& x : bias) x = 0.1f * normal(random);
  std::vector<int32_t> ids(static_cast<size_t>(t * k));
  std::vector<float> weights(ids.size());
  const ops::RouteArgs args{
      .router_logits = TensorView::contiguous(logits.data(), DataType::kF32, {t, e}),
      .selection_bias = spec.routing.scoring == Scoring::kSoftmax
                            ? TensorView{}
                            : TensorView::contiguous(bias.data(), DataType::kF32, {e}),
      .topk_ids = TensorView::contiguous(ids.data(), DataType::kI32, {t, k}),
      .topk_weights = TensorView::contiguous(weights.data(), DataType::kF32, {t, k})};
  for (auto _ : state) {
    cpu::route(spec.routing, args);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * t);
}

#define SWITCHYARD_BENCH_ROUTE(name, model) \
  BENCHMARK_CAPTURE(route, name, model)->Arg(1)->Arg(64)->Arg(16384)->UseRealTime()
SWITCHYARD_BENCH_ROUTE(softmax_128_8, "qwen3-30b-a3b");
SWITCHYARD_BENCH_ROUTE(grouped_sigmoid_256_8, "deepseek-r1");
SWITCHYARD_BENCH_ROUTE(sigmoid_512_22, "nemotron-3-super");
SWITCHYARD_BENCH_ROUTE(sqrt_softplus_256_6, "deepseek-v4-flash");
#undef SWITCHYARD_BENCH_ROUTE

}  // namespace
}  // namespace switchyard
