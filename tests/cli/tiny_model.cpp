#include "tiny_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

namespace switchyard::test {
namespace {

constexpr const char* kConfig = R"({
  "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
  "hidden_size": 72, "intermediate_size": 40, "num_hidden_layers": 1,
  "num_local_experts": 6, "num_experts_per_tok": 2, "vocab_size": 32, "torch_dtype": "bfloat16"
})";

double dot(const Buffer& matrix, int64_t row, const double* x, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += matrix.at(row * size + i) * x[i];
  return sum;
}

}  // namespace

TinyModel::TinyModel() : directory_(temp_.file("model")) {
  std::filesystem::create_directory(directory_);
  Random random(20);
  router_ = Buffer::normal(random, DataType::kBf16, {kExperts, kHidden}, 0.3);
  for (int64_t e = 0; e < kExperts; ++e) {
    experts_.push_back({Buffer::normal(random, DataType::kBf16, {kInner, kHidden}, 0.12),
                        Buffer::normal(random, DataType::kBf16, {kInner, kHidden}, 0.12),
                        Buffer::normal(random, DataType::kBf16, {kHidden, kInner}, 0.16)});
  }
  testing::write_text(directory_ + "/config.json", kConfig);
  rewrite([](std::vector<NamedTensor>&) {});
}

std::vector<NamedTensor> TinyModel::tensors() const {
  const std::string prefix = "model.layers.0.block_sparse_moe.";
  std::vector<NamedTensor> tensors{{prefix + "gate.weight", router_}};
  for (size_t e = 0; e < experts_.size(); ++e) {
    const std::string expert = fmt::format("{}experts.{}.", prefix, e);
    tensors.push_back({expert + "w1.weight", experts_[e].gate});
    tensors.push_back({expert + "w3.weight", experts_[e].up});
    tensors.push_back({expert + "w2.weight", experts_[e].down});
  }
  return tensors;
}

void TinyModel::rewrite(const std::function<void(std::vector<NamedTensor>&)>& change) const {
  std::vector<NamedTensor> all = tensors();
  change(all);
  save_safetensors(directory_ + "/model.safetensors", all);
}

TinyModel::Expected TinyModel::expected(const Buffer& hidden_states) const {
  Expected result;
  for (int64_t t = 0; t < hidden_states.view().extent(0); ++t) {
    std::vector<double> x;
    for (int64_t h = 0; h < kHidden; ++h) x.push_back(hidden_states.at(t * kHidden + h));
    std::vector<double> logits;
    for (int64_t e = 0; e < kExperts; ++e) logits.push_back(dot(router_, e, x.data(), kHidden));
    std::vector<int32_t> order(kExperts);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&logits](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    double norm = 0;
    for (int64_t k = 0; k < kTopK; ++k)
      norm += std::exp(logits[static_cast<size_t>(order[static_cast<size_t>(k)])]);
    std::vector<double> y(kHidden);
    for (int64_t k = 0; k < kTopK; ++k) {
      const auto e = static_cast<size_t>(order[static_cast<size_t>(k)]);
      const double weight = std::exp(logits[e]) / norm;
      std::vector<double> inner;
      for (int64_t i = 0; i < kInner; ++i) {
        const double g = dot(experts_[e].gate, i, x.data(), kHidden);
        inner.push_back(g / (1 + std::exp(-g)) * dot(experts_[e].up, i, x.data(), kHidden));
      }
      for (int64_t h = 0; h < kHidden; ++h) {
        y[static_cast<size_t>(h)] += weight * dot(experts_[e].down, h, inner.data(), kInner);
      }
      result.topk_ids.push_back(order[static_cast<size_t>(k)]);
      result.topk_weights.push_back(weight);
    }
    result.output.insert(result.output.end(), y.begin(), y.end());
  }
  return result;
}

}  // namespace switchyard::test
