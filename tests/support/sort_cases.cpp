#include "support/sort_cases.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/expert_sort.h"
#include "support/random.h"

namespace switchyard::test {
namespace {

constexpr uint8_t kPoisonByte = 0x5a;  // neither -1 nor 0, which are valid contents

Buffer poisoned(DataType type, const Buffer::Shape& shape) {
  Buffer buffer(type, shape);
  std::memset(buffer.view().data, kPoisonByte, static_cast<size_t>(buffer.bytes()));
  return buffer;
}

/// Distinct experts per token by a partial shuffle, then what `kind` asks for.
Buffer random_ids(Random& random, const SortCase& c) {
  Buffer ids(DataType::kI32, {c.num_tokens, c.top_k});
  std::vector<int32_t> experts(static_cast<size_t>(c.num_experts));
  std::iota(experts.begin(), experts.end(), 0);
  const int32_t bad[] = {-1, static_cast<int32_t>(c.num_experts), INT32_MIN, INT32_MAX};
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    for (int64_t k = 0; k < c.top_k; ++k) {
      const int64_t other = k + random.below(c.num_experts - k);
      std::swap(experts[static_cast<size_t>(k)], experts[static_cast<size_t>(other)]);
      int32_t id = experts[static_cast<size_t>(k)];
      switch (c.ids) {
        case SortIds::kDistinct: break;
        case SortIds::kWithInvalid:
          if (random.below(3) == 0) id = bad[random.below(4)];
          break;
        case SortIds::kOneExpert: id = k == 0 ? static_cast<int32_t>(c.num_experts - 1) : -1; break;
        case SortIds::kAllInvalid: id = bad[random.below(4)]; break;
        case SortIds::kRepeated:
          id = static_cast<int32_t>(random.below(std::min<int64_t>(3, c.num_experts)));
      }
      ids.as<int32_t>()[t * c.top_k + k] = id;
    }
  }
  return ids;
}

}  // namespace

std::string describe(const SortCase& c) {
  return "T " + std::to_string(c.num_tokens) + " E " + std::to_string(c.num_experts) + " K " +
         std::to_string(c.top_k) + " unit " + std::to_string(c.unit_size) + " mask " +
         std::to_string(c.mask_ratio) + " n " + std::to_string(c.num_local) + " ids " +
         std::to_string(static_cast<int>(c.ids));
}

std::vector<SortCase> one_shot_sort_cases() {
  return {{1, 256, 8},
          {4, 256, 8},
          {8, 256, 8},
          {16, 256, 8},
          {32, 256, 8},
          {64, 256, 8},
          {1, 32, 5},
          {7, 32, 5},
          {31, 64, 6},
          {1, 8, 2},
          {1, 257, 9},
          {8, 257, 9},
          {16, 257, 9},
          {16, 513, 9},
          {1, 385, 7},
          {16, 385, 7},
          {1, 513, 9},
          {1, 128, 4},
          {16, 129, 7},
          {16, 161, 7},
          {64, 1024, 16},
          // One past what few tokens may be, and units that are no power of two.
          {65, 257, 9},
          {64, 257, 17},
          {64, 1025, 8},
          {33, 257, 9, 96},
          {64, 31, 31, 3},
          {64, 1024, 16, 1000},
          {64, 1024, 1, 1024},
          {3, 1024, 8, 1025}};
}

std::vector<SortCase> multi_phase_sort_cases() {
  return {{128, 256, 8},  {512, 256, 8},   {1024, 256, 8},  {2048, 256, 8},    {4096, 256, 8},
          {8192, 256, 8}, {16384, 256, 8}, {1024, 257, 9},  {1024, 513, 9},    {16384, 257, 9},
          {1024, 385, 7}, {16384, 385, 7}, {16384, 513, 9}, {16384, 8, 2, 128}};
}

std::vector<SortCase> masked_sort_cases() {
  std::vector<SortCase> cases;
  for (const double ratio : {0.0, 0.3, 0.5, 0.7, 1.0}) {
    for (const auto& [e, k] : {std::pair{256, 8}, {257, 9}, {513, 9}}) {
      for (const int64_t t : {16, 1024}) {
        cases.push_back({.num_tokens = t, .num_experts = e, .top_k = k, .mask_ratio = ratio});
      }
    }
  }
  return cases;
}

std::vector<SortCase> model_sort_cases() {
  const std::pair<int, int> models[] = {
      {256, 8},  {257, 9}, {384, 6}, {385, 7},  {384, 8}, {385, 9}, {896, 16}, {128, 8}, {512, 10},
      {513, 11}, {160, 8}, {161, 9}, {161, 10}, {128, 4}, {129, 5}, {256, 6},  {16, 1},  {8, 2}};
  std::vector<SortCase> cases;
  for (const auto& [e, k] : models) {
    for (const int64_t t : {0, 1, 2, 33, 300}) {
      for (const int64_t unit : {16, 32, 64, 128}) cases.push_back({t, e, k, unit});
    }
  }
  cases.push_back({16384, 896, 16, 128});
  cases.push_back({16384, 896, 16, 16});
  return cases;
}

std::vector<SortCase> counted_sort_cases() {
  std::vector<SortCase> cases;
  for (const int64_t t : {1, 40, 2000}) {
    for (const int64_t n : {int64_t{0}, int64_t{1}, t / 2, t - 1, t, t + 7}) {
      cases.push_back({.num_tokens = t, .num_experts = 64, .top_k = 6, .num_local = n});
      cases.push_back({.num_tokens = t,
                       .num_experts = 64,
                       .top_k = 6,
                       .mask_ratio = 0.5,
                       .num_local = n,
                       .ids = SortIds::kWithInvalid});
    }
  }
  return cases;
}

std::vector<SortCase> unusual_sort_cases() {
  std::vector<SortCase> cases;
  for (const SortIds ids :
       {SortIds::kWithInvalid, SortIds::kOneExpert, SortIds::kAllInvalid, SortIds::kRepeated}) {
    for (const int64_t t : {1, 31, 32, 33, 64, 1500}) {
      for (const auto& [e, k] : {std::pair{1, 1}, {4, 4}, {257, 9}, {4096, 127}}) {
        cases.push_back({.num_tokens = t, .num_experts = e, .top_k = k, .ids = ids});
        cases.push_back({.num_tokens = t,
                         .num_experts = e,
                         .top_k = k,
                         .unit_size = 1,
                         .mask_ratio = 0.5,
                         .ids = ids});
      }
    }
  }
  return cases;
}

std::vector<SortCase> output_sort_cases() {
  std::vector<SortCase> cases;
  for (const int64_t t : {0, 5, 3000}) {
    cases.push_back({.num_tokens = t, .num_experts = 32, .top_k = 5, .optional_outputs = false});
  }
  // The classic capacity is no multiple of a block.
  for (const int64_t extra : {1, 31, 32, 5000}) {
    cases.push_back({.num_tokens = 17, .num_experts = 32, .top_k = 5, .extra_rows = extra});
  }
  return cases;
}

SortProblem::SortProblem(const SortCase& shape) : c(shape) {
  Random random(static_cast<uint64_t>(c.num_tokens * 131 + c.num_experts));
  const int64_t num_pairs = c.num_tokens * c.top_k;
  const int64_t rows =
      max_padded_rows(c.num_tokens, c.top_k, c.num_experts, c.unit_size) + c.extra_rows;
  ids = random_ids(random, c);
  weights = Buffer(DataType::kF32, {c.num_tokens, c.top_k});
  for (int64_t i = 0; i < num_pairs; ++i) {  // any bits, NaNs included
    weights.as<uint32_t>()[i] = static_cast<uint32_t>(random.bits());
  }
  sorted_ids = poisoned(DataType::kI32, {rows});
  sorted_weights = poisoned(DataType::kF32, {rows});
  sorted_expert_ids = poisoned(DataType::kI32, {ceil_div(rows, c.unit_size)});
  num_valid_ids = poisoned(DataType::kI32, {2});
  args = {.topk_ids = ids,
          .topk_weights = weights,
          .num_experts = c.num_experts,
          .unit_size = c.unit_size,
          .sorted_ids = sorted_ids,
          .sorted_weights = sorted_weights,
          .sorted_expert_ids = sorted_expert_ids,
          .num_valid_ids = num_valid_ids};
  if (c.mask_ratio >= 0) {
    mask = Buffer(DataType::kI32, {c.num_experts});
    for (int64_t e = 0; e < c.num_experts; ++e) {
      mask.as<int32_t>()[e] = random.uniform() < c.mask_ratio ? 1 : 0;
    }
    args.expert_mask = mask;
  }
  if (c.num_local >= 0) {
    num_local = Buffer::of(DataType::kI32, {1}, {static_cast<double>(c.num_local)});
    args.num_local_tokens = num_local;
  }
  moe_buf = poisoned(DataType::kBf16, {c.num_tokens, 72});
  local_topk_ids = poisoned(DataType::kI32, {c.num_tokens, c.top_k});
  m_indices = poisoned(DataType::kI32, {rows});
  reverse_sorted = poisoned(DataType::kI32, {num_pairs});
  if (c.optional_outputs) {
    args.moe_buf = moe_buf;
    args.local_topk_ids = local_topk_ids;
    args.m_indices = m_indices;
    args.reverse_sorted = reverse_sorted;
  }
}

int64_t SortProblem::num_routed() const {
  return c.num_local < 0 ? c.num_tokens : std::min(c.num_local, c.num_tokens);
}

}  // namespace switchyard::test
