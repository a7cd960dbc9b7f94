// Sorting on the CPU, without the zeroing of an output: microseconds by tokens and experts.

#include <benchmark/benchmark.h>

#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "core/expert_sort.h"
#include "cpu/steps.h"
#include "switchyard/ops.h"

namespace switchyard {
namespace {

std::vector<int32_t> random_ids(int64_t num_tokens, int64_t num_experts, int64_t top_k) {
  std::mt19937 random(1);
  std::vector<int32_t> experts(static_cast<size_t>(num_experts)), ids;
  std::iota(experts.begin(), experts.end(), 0);
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (size_t k = 0; k < static_cast<size_t>(top_k); ++k) {
      std::swap(experts[k], experts[k + random() % (experts.size() - k)]);
      ids.push_back(experts[k]);
    }
  }
  return ids;
}

/// Arguments: T, E, K, unit size.
void sort(benchmark::State& state) {
  const int64_t t = state.range(0), e = state.range(1), k = state.range(2), unit = state.range(3);
  const std::vector<int32_t> ids = random_ids(t, e, k);
  const std::vector<float> weights(ids.size(), 0.125f);
  const int64_t rows = sort_capacity(t, k, e, unit);
  std::vector<int32_t> sorted_ids(static_cast<size_t>(rows));
  std::vector<float> sorted_weights(static_cast<size_t>(rows));
  std::vector<int32_t> sorted_expert_ids(static_cast<size_t>(rows / unit));
  std::vector<int32_t> num_valid_ids(2);
  const auto i32 = [](auto& values) {
    return TensorView::contiguous(values.data(), DataType::kI32, {std::ssize(values)});
  };
  const ops::SortArgs args{
      .topk_ids = TensorView::contiguous(ids.data(), DataType::kI32, {t, k}),
      .topk_weights = TensorView::contiguous(weights.data(), DataType::kF32, {t, k}),
      .num_experts = e,
      .unit_size = unit,
      .sorted_ids = i32(sorted_ids),
      .sorted_weights = TensorView::contiguous(sorted_weights.data(), DataType::kF32, {rows}),
      .sorted_expert_ids = i32(sorted_expert_ids),
      .num_valid_ids = i32(num_valid_ids)};
  for (auto _ : state) {
    cpu::sort(args);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * t * k);
}
BENCHMARK(sort)
    ->ArgNames({"T", "E", "K", "unit"})
    ->ArgsProduct({{1, 16, 64, 256, 1024, 4096, 16384}, {257}, {9}, {32}})
    ->ArgsProduct({{1, 256, 16384}, {385}, {7}, {32}})
    ->ArgsProduct({{1, 256, 16384}, {128}, {4}, {128}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace switchyard
