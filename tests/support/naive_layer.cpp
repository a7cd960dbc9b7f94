#include "support/naive_layer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/weight_matrix.h"

namespace switchyard::test {
namespace {

using Vector = std::vector<double>;

double element(const TensorView& tensor, int64_t index) {
  return static_cast<double>(load_as_f32(tensor.data, tensor.type, index));
}

Vector row(const TensorView& tensor, int64_t r) {
  Vector out(static_cast<size_t>(tensor.extent(1)));
  for (size_t c = 0; c < out.size(); ++c)
    out[c] = element(tensor, r * tensor.extent(1) + static_cast<int64_t>(c));
  return out;
}

Vector apply(const WeightMatrix& m, const TensorView& bias, const Vector& x) {
  Vector out(static_cast<size_t>(m.rows), 0.0);
  for (int64_t n = 0; n < m.rows; ++n) {
    for (int64_t k = 0; k < m.cols; ++k) {
      const double smooth = m.smooth_scales.empty() ? 1.0 : element(m.smooth_scales, k);
      out[static_cast<size_t>(n)] += decode_element(m, n, k) * smooth * x[static_cast<size_t>(k)];
    }
    if (!bias.empty()) out[static_cast<size_t>(n)] += element(bias, n * bias.stride(0));
  }
  return out;
}

double logistic(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double activate(const ActivationSpec& a, double g, double u) {
  const double limit = static_cast<double>(a.limit);
  switch (a.kind) {
    case Activation::kSwiGlu: return g * logistic(g) * u;
    case Activation::kSwiGluClamp: {
      const double cut = std::min(g, limit);
      return cut * logistic(cut) * std::clamp(u, -limit, limit);
    }
    case Activation::kSwiGluOai: {
      const double cut = std::min(g, limit);
      return cut * logistic(static_cast<double>(a.alpha) * cut) *
             (std::clamp(u, -limit, limit) + 1.0);
    }
    case Activation::kGeGluTanh:
      return 0.5 * g *
             (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (g + 0.044715 * g * g * g))) * u;
    case Activation::kGeGlu: return 0.5 * g * (1.0 + std::erf(g / std::numbers::sqrt2)) * u;
    case Activation::kSiTu: {
      const double beta = static_cast<double>(a.beta);
      const double linear = static_cast<double>(a.linear_beta);
      const double up = linear == 0.0 ? u : linear * std::tanh(u / linear);
      return beta * std::tanh(g / beta) * logistic(g) * up;
    }
    case Activation::kRelu2: return u > 0 ? u * u : 0.0;
  }
  return NAN;
}

Vector run_expert(const LayerSpec& spec, const ExpertWeights& expert, const Vector& x) {
  const bool gated = spec.activation.gated();
  Vector h = apply(expert.up, expert.up_bias, x);
  const Vector gate = gated ? apply(expert.gate, expert.gate_bias, x) : h;
  for (size_t i = 0; i < h.size(); ++i) h[i] = activate(spec.activation, gate[i], h[i]);
  return apply(expert.down, expert.down_bias, h);
}

void add(Vector& sum, double weight, const Vector& term) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += weight * term[i];
}

Vector scaled(Vector x, double factor) {
  for (double& value : x) value *= factor;
  return x;
}

Vector normed(Vector x, const TensorView& scale, float epsilon) {
  double squares = 0;
  for (double value : x) squares += value * value;
  const double rms =
      std::sqrt(squares / static_cast<double>(x.size()) + static_cast<double>(epsilon));
  for (size_t i = 0; i < x.size(); ++i) x[i] *= element(scale, static_cast<int64_t>(i)) / rms;
  return x;
}

}  // namespace

Buffer naive_forward(const LayerSpec& spec, const Weights& weights, const TensorView& hidden,
                     const TensorView& topk_ids, const TensorView& topk_weights) {
  const int64_t num_tokens = hidden.extent(0);
  Buffer output(DataType::kF64, {num_tokens, spec.hidden_size});
  const bool on_input = spec.weight_position == WeightPosition::kInput;
  for (int64_t t = 0; t < num_tokens; ++t) {
    const Vector x = row(hidden, t);
    const Vector expert_input = spec.latent_size > 0 ? apply(weights.latent_down, {}, x) : x;
    Vector sum(expert_input.size(), 0.0);
    for (int64_t k = 0; k < spec.top_k; ++k) {
      const int32_t e = topk_ids.as<int32_t>()[t * spec.top_k + k];
      if (e < 0 || e >= spec.num_experts) continue;
      const double weight = element(topk_weights, t * spec.top_k + k);
      const ExpertWeights expert = weights.experts.load(e);
      const Vector input = on_input ? scaled(expert_input, weight) : expert_input;
      add(sum, on_input ? 1.0 : weight, run_expert(spec, expert, input));
    }
    if (spec.latent_size > 0) {
      if (!weights.latent_norm.empty())
        sum = normed(sum, weights.latent_norm, spec.latent_norm_epsilon);
      sum = apply(weights.latent_up, {}, sum);
    }
    if (spec.shared.intermediate_size > 0) {
      const double gate =
          spec.shared.sigmoid_gate ? logistic(apply(weights.shared_gate, {}, x)[0]) : 1.0;
      add(sum, gate, run_expert(spec, weights.shared, x));
    }
    std::copy(sum.begin(), sum.end(), output.as<double>() + t * spec.hidden_size);
  }
  return output;
}

Buffer naive_logits(const Weights& weights, const TensorView& hidden) {
  const RouterWeights& router = weights.router;
  Buffer logits(DataType::kF64, {hidden.extent(0), router.projection.rows});
  for (int64_t t = 0; t < hidden.extent(0); ++t) {
    Vector x = row(hidden, t);
    if (!router.input_norm_scale.empty())
      x = normed(x, router.input_norm_scale, router.input_norm_epsilon);
    const Vector l = apply(router.projection, {}, x);
    std::copy(l.begin(), l.end(), logits.as<double>() + t * router.projection.rows);
  }
  return logits;
}

}  // namespace switchyard::test
