// The sort contract on the GPU: every output, bit for bit, against the reference, over poisoned
// memory.

#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "gpu/device_tensor.h"
#include "reference/steps.h"
#include "support/sort_cases.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::DeviceTensor;
using test::SortCase;
using test::SortProblem;

struct Output {
  const char* name;
  TensorView ops::SortArgs::*view;
};
constexpr Output kOutputs[] = {{"sorted_ids", &ops::SortArgs::sorted_ids},
                               {"sorted_weights", &ops::SortArgs::sorted_weights},
                               {"sorted_expert_ids", &ops::SortArgs::sorted_expert_ids},
                               {"num_valid_ids", &ops::SortArgs::num_valid_ids},
                               {"moe_buf", &ops::SortArgs::moe_buf},
                               {"local_topk_ids", &ops::SortArgs::local_topk_ids},
                               {"m_indices", &ops::SortArgs::m_indices},
                               {"reverse_sorted", &ops::SortArgs::reverse_sorted}};

/// Sorts copies of `args` on the GPU, and `problem` with the reference.
void compare(ops::SortArgs args, const SortProblem& problem) {
  std::vector<DeviceTensor> tensors;
  const auto copy = [&](TensorView& view) {
    tensors.emplace_back(view);
    view = tensors.back().view();
  };
  for (const Output& output : kOutputs) copy(args.*output.view);
  for (TensorView* input :
       {&args.topk_ids, &args.topk_weights, &args.expert_mask, &args.num_local_tokens}) {
    copy(*input);
  }
  reference::sort(problem.args);
  const SortCase& c = problem.c;
  const cuda::DeviceBuffer workspace = test::device_workspace(
      test::gpu().sort_workspace_bytes(c.num_tokens, c.top_k, c.num_experts, c.unit_size));
  test::gpu().sort(args, test::on_gpu(&workspace));
  for (size_t i = 0; i < std::size(kOutputs); ++i) {
    const TensorView& want = problem.args.*kOutputs[i].view;
    if (want.empty()) continue;
    const Buffer got = tensors[i].fetch();
    const auto* a = reinterpret_cast<const uint8_t*>(got.view().data);
    const auto* b = reinterpret_cast<const uint8_t*>(want.data);
    const auto at = std::mismatch(a, a + got.bytes(), b).first - a;
    ASSERT_EQ(at, got.bytes()) << kOutputs[i].name << " differs from byte " << at << " of "
                               << got.bytes();
  }
}

void run(const std::vector<SortCase>& cases) {
  for (const SortCase& c : cases) {
    SCOPED_TRACE(describe(c));
    const SortProblem problem(c);
    compare(problem.args, problem);
  }
}

TEST(GpuSort, OneShotCases) { run(test::one_shot_sort_cases()); }
TEST(GpuSort, MultiPhaseCases) { run(test::multi_phase_sort_cases()); }
TEST(GpuSort, ExpertParallelMasks) { run(test::masked_sort_cases()); }
TEST(GpuSort, ProductionModels) { run(test::model_sort_cases()); }
TEST(GpuSort, DeviceSideTokenCount) { run(test::counted_sort_cases()); }
TEST(GpuSort, LopsidedInvalidAndRepeatedIds) { run(test::unusual_sort_cases()); }
TEST(GpuSort, OutputsMayBeMissingOrLonger) { run(test::output_sort_cases()); }
TEST(GpuSort, SeveralPassesPerChunk) {
  run({{131072, 384, 8, 64},
       {140000, 2048, 4, 16},
       {.num_tokens = 90000,
        .num_experts = 257,
        .top_k = 9,
        .mask_ratio = 0.5,
        .ids = test::SortIds::kWithInvalid},
       {.num_tokens = 70000, .num_experts = 64, .top_k = 6, .ids = test::SortIds::kRepeated}});
}

TEST(GpuSort, FewTokensNameAnExpertTwice) {
  // Only some chunks and passes have such a token; the others keep counting bits.
  for (const auto& [t, e, k] : {std::tuple{40, 16, 4}, {3000, 257, 9}, {131072, 384, 8}}) {
    SortProblem problem({.num_tokens = t, .num_experts = e, .top_k = k, .mask_ratio = 0.7});
    for (int64_t token = 7; token < t; token += 1 + t / 5) {
      int32_t* row = problem.ids.as<int32_t>() + token * k;
      row[k - 1] = row[2] = row[0];
    }
    SCOPED_TRACE(describe(problem.c));
    compare(problem.args, problem);
  }
}

TEST(GpuSort, NumValidIdsMayBeOne) {
  SortProblem problem({.num_tokens = 5, .num_experts = 32, .top_k = 5});
  Buffer one(DataType::kI32, {1});
  problem.args.num_valid_ids = one;
  compare(problem.args, problem);
}

}  // namespace
}  // namespace switchyard
