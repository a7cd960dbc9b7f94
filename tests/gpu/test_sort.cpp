// The sort contract on the GPU: every output, bit for bit, against the reference, over poisoned
// memory; and the same from both paths where both are possible.

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "core/expert_sort.h"
#include "cuda/sort.h"
#include "gpu/device_tensor.h"
#include "reference/steps.h"
#include "support/random.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::DeviceTensor;
using test::Random;

struct Case {
  int64_t num_tokens, num_experts, top_k;
  int64_t unit_size = 32;
  double mask_ratio = -1;  // share of local experts; < 0: no mask
  int64_t num_local = -1;  // num_local_tokens; < 0: not given
  bool invalid_ids = false;
  bool one_expert = false;
  bool optional_outputs = true;
  int64_t extra_rows = 0;
};

std::string describe(const Case& c) {
  return "T " + std::to_string(c.num_tokens) + " E " + std::to_string(c.num_experts) + " K " +
         std::to_string(c.top_k) + " unit " + std::to_string(c.unit_size) + " mask " +
         std::to_string(c.mask_ratio) + " n " + std::to_string(c.num_local);
}

Buffer random_ids(Random& random, const Case& c) {
  Buffer ids(DataType::kI32, {c.num_tokens, c.top_k});
  std::vector<int32_t> experts(static_cast<size_t>(c.num_experts));
  std::iota(experts.begin(), experts.end(), 0);
  const int32_t bad[] = {-1, static_cast<int32_t>(c.num_experts), INT32_MIN, INT32_MAX};
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    for (int64_t k = 0; k < c.top_k; ++k) {
      const int64_t other = k + random.below(c.num_experts - k);
      std::swap(experts[static_cast<size_t>(k)], experts[static_cast<size_t>(other)]);
      int32_t id = experts[static_cast<size_t>(k)];
      if (c.invalid_ids && random.below(3) == 0) id = bad[random.below(4)];
      if (c.one_expert) id = k == 0 ? static_cast<int32_t>(c.num_experts - 1) : -1;
      ids.as<int32_t>()[t * c.top_k + k] = id;
    }
  }
  return ids;
}

constexpr int kNumOutputs = 8;

/// Inputs and poisoned outputs on the host, twice when the device has its own copies.
struct Problem {
  explicit Problem(const Case& c) {
    Random random(static_cast<uint64_t>(c.num_tokens * 131 + c.num_experts));
    const int64_t rows =
        max_padded_rows(c.num_tokens, c.top_k, c.num_experts, c.unit_size) + c.extra_rows;
    ids = random_ids(random, c);
    weights = Buffer(DataType::kF32, {c.num_tokens, c.top_k});
    for (int64_t i = 0; i < weights.size(); ++i) {
      weights.as<uint32_t>()[i] = static_cast<uint32_t>(random.bits());
    }
    outputs[0] = Buffer(DataType::kI32, {rows});
    outputs[1] = Buffer(DataType::kF32, {rows});
    outputs[2] = Buffer(DataType::kI32, {ceil_div(rows, c.unit_size)});
    outputs[3] = Buffer(DataType::kI32, {c.extra_rows % 2 == 0 ? 2 : 1});
    if (c.optional_outputs) {
      outputs[4] = Buffer(DataType::kBf16, {c.num_tokens, 72});
      outputs[5] = Buffer(DataType::kI32, {c.num_tokens, c.top_k});
      outputs[6] = Buffer(DataType::kI32, {rows});
      outputs[7] = Buffer(DataType::kI32, {c.num_tokens * c.top_k});
    }
    if (c.mask_ratio >= 0) {
      mask = Buffer(DataType::kI32, {c.num_experts});
      for (int64_t e = 0; e < c.num_experts; ++e) {
        mask.as<int32_t>()[e] = random.uniform() < c.mask_ratio ? 1 : 0;
      }
    }
    if (c.num_local >= 0) {
      num_local = Buffer::of(DataType::kI32, {1}, {static_cast<double>(c.num_local)});
    }
    args = {.topk_ids = ids,
            .topk_weights = weights,
            .num_experts = c.num_experts,
            .unit_size = c.unit_size,
            .expert_mask = mask,
            .num_local_tokens = num_local,
            .sorted_ids = outputs[0],
            .sorted_weights = outputs[1],
            .sorted_expert_ids = outputs[2],
            .num_valid_ids = outputs[3],
            .moe_buf = outputs[4],
            .local_topk_ids = outputs[5],
            .m_indices = outputs[6],
            .reverse_sorted = outputs[7]};
  }

  Buffer ids, weights, mask, num_local;
  Buffer outputs[kNumOutputs];
  ops::SortArgs args;
};

const char* const kOutputNames[kNumOutputs] = {
    "sorted_ids", "sorted_weights", "sorted_expert_ids", "num_valid_ids",
    "moe_buf",    "local_topk_ids", "m_indices",         "reverse_sorted"};

/// The problem's arguments with every tensor copied to the GPU.
struct OnDevice {
  explicit OnDevice(const Problem& p) : args(p.args) {
    TensorView* views[] = {&args.sorted_ids,    &args.sorted_weights, &args.sorted_expert_ids,
                           &args.num_valid_ids, &args.moe_buf,        &args.local_topk_ids,
                           &args.m_indices,     &args.reverse_sorted, &args.topk_ids,
                           &args.topk_weights,  &args.expert_mask,    &args.num_local_tokens};
    for (TensorView* view : views) {
      tensors.emplace_back(*view);
      *view = tensors.back().view();
    }
  }
  std::vector<DeviceTensor> tensors;
  ops::SortArgs args;
};

void expect_same(const OnDevice& device, const Problem& want) {
  for (int i = 0; i < kNumOutputs; ++i) {
    if (want.outputs[i].view().empty()) continue;
    const Buffer got = device.tensors[static_cast<size_t>(i)].fetch();
    const auto* a = reinterpret_cast<const uint8_t*>(got.view().data);
    const auto* b = reinterpret_cast<const uint8_t*>(want.outputs[i].view().data);
    const auto* end = a + got.bytes();
    const auto at = std::mismatch(a, end, b).first - a;
    ASSERT_EQ(at, got.bytes()) << kOutputNames[i] << " differs from byte " << at << " of "
                               << got.bytes();
  }
}

void run(const Case& c) {
  SCOPED_TRACE(describe(c));
  const Problem problem(c);
  const OnDevice device(problem);
  reference::sort(problem.args);
  const int64_t bytes =
      test::gpu().sort_workspace_bytes(c.num_tokens, c.top_k, c.num_experts, c.unit_size);
  const cuda::DeviceBuffer workspace = test::device_workspace(bytes);
  test::gpu().sort(device.args, test::on_gpu(&workspace));
  expect_same(device, problem);
}

TEST(GpuSort, SeedCases) {
  for (const int64_t t : {1, 4, 8, 16, 32, 64, 128, 512, 1024, 2048, 4096, 8192, 16384}) {
    run({t, 256, 8});
  }
  for (const Case& c : std::vector<Case>{
           {1, 32, 5},     {7, 32, 5},      {31, 64, 6},    {1, 8, 2},       {1, 257, 9},
           {16, 257, 9},   {16, 513, 9},    {8, 257, 9},    {1, 385, 7},     {16, 385, 7},
           {1, 513, 9},    {1, 128, 4},     {16, 129, 7},   {16, 161, 7},    {1024, 257, 9},
           {1024, 513, 9}, {16384, 257, 9}, {1024, 385, 7}, {16384, 385, 7}, {16384, 513, 9}}) {
    run(c);
  }
}

TEST(GpuSort, ExpertParallelMasks) {
  for (const double ratio : {0.0, 0.3, 0.5, 0.7, 1.0}) {
    for (const auto& [e, k] : {std::pair{256, 8}, {257, 9}, {513, 9}}) {
      for (const int64_t t : {16, 1024}) {
        run({.num_tokens = t, .num_experts = e, .top_k = k, .mask_ratio = ratio});
      }
    }
  }
}

TEST(GpuSort, ProductionModels) {
  const std::pair<int, int> models[] = {{256, 8}, {257, 9},  {384, 6},  {385, 9}, {896, 16},
                                        {128, 8}, {512, 10}, {513, 11}, {160, 8}, {161, 10},
                                        {129, 5}, {16, 1},   {8, 2}};
  for (const auto& [e, k] : models) {
    for (const int64_t t : {0, 1, 2, 33, 300}) {
      for (const int64_t unit : {16, 32, 64, 128}) run({t, e, k, unit});
    }
  }
  run({16384, 896, 16, 128});
  run({16384, 8, 2, 128});
  run({131072, 384, 8, 64});
}

TEST(GpuSort, DeviceSideTokenCount) {
  for (const int64_t t : {1, 40, 2000}) {
    for (const int64_t n : {int64_t{0}, int64_t{1}, t / 2, t - 1, t, t + 7}) {
      run({.num_tokens = t, .num_experts = 64, .top_k = 6, .num_local = n});
      run({.num_tokens = t,
           .num_experts = 64,
           .top_k = 6,
           .mask_ratio = 0.5,
           .num_local = n,
           .invalid_ids = true});
    }
  }
}

TEST(GpuSort, LopsidedAndInvalidIds) {
  for (const int64_t t : {1, 31, 32, 33, 64, 1500}) {
    for (const auto& [e, k] : {std::pair{1, 1}, {4, 4}, {257, 9}, {4096, 127}}) {
      for (const bool invalid : {false, true}) {
        run({.num_tokens = t,
             .num_experts = e,
             .top_k = k,
             .invalid_ids = invalid,
             .one_expert = !invalid});
        run({.num_tokens = t,
             .num_experts = e,
             .top_k = k,
             .unit_size = 1,
             .mask_ratio = 0.5,
             .invalid_ids = invalid});
      }
    }
  }
}

TEST(GpuSort, OutputsMayBeMissingOrLonger) {
  for (const int64_t t : {0, 5, 3000}) {
    run({.num_tokens = t, .num_experts = 32, .top_k = 5, .optional_outputs = false});
  }
  for (const int64_t extra : {1, 31, 32, 5000}) {
    run({.num_tokens = 17, .num_experts = 32, .top_k = 5, .extra_rows = extra});
  }
}

TEST(GpuSort, RepeatedIdKeepsItsFirstSlot) {
  // Not allowed by the contract; memory must stay safe and the result the same every time.
  for (const int64_t t : {40, 3000}) {
    Case c{.num_tokens = t, .num_experts = 16, .top_k = 4};
    Problem problem(c);
    Problem without(c);
    for (int64_t i = 0; i < t; ++i) {
      int32_t* row = problem.ids.as<int32_t>() + i * 4;
      row[2] = row[0];
      std::copy_n(row, 4, without.ids.as<int32_t>() + i * 4);
      without.ids.as<int32_t>()[i * 4 + 2] = -1;
    }
    const OnDevice device(problem);
    reference::sort(without.args);
    const cuda::DeviceBuffer workspace =
        test::device_workspace(test::gpu().sort_workspace_bytes(t, 4, 16, 32));
    test::gpu().sort(device.args, test::on_gpu(&workspace));
    expect_same(device, without);
  }
}

}  // namespace
}  // namespace switchyard
