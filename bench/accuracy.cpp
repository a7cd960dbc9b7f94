// What a layer loses to its formats: one random layer in f32, its weights quantised, and a
// backend's output held against the reference in double three times: with the same rounding of
// activations (what is left is arithmetic), with exact activations, and before any quantisation.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/host_tensor.h"
#include "cli/random.h"
#include "switchyard/switchyard.h"

namespace switchyard::bench {
namespace {

using cli::HostTensor;
using cli::Random;
using nlohmann::json;

constexpr int64_t kExperts = 8, kTopK = 2, kHidden = 1024, kInner = 512;

struct Case {
  const char* name;  ///< as users say it
  Format weights;
  ScaleBlock block;
  ActivationFormat activations;
};
constexpr Case kCases[] = {
    {"bf16", Format::kBf16, {}, ActivationFormat::kNone},
    {"W8A8, 128x128 by 1x128", Format::kFp8E4m3, {128, 128}, ActivationFormat::kFp8Block128},
    {"W8A8, channel by token", Format::kFp8E4m3, {1, 0}, ActivationFormat::kFp8PerToken},
    {"W8A8 INT8, channel by token", Format::kInt8, {1, 0}, ActivationFormat::kInt8PerToken},
    {"MXFP8", Format::kMxfp8, {1, 32}, ActivationFormat::kMxfp8},
    {"A16W4", Format::kMxfp4, {1, 32}, ActivationFormat::kNone},
    {"A8W4, per token", Format::kMxfp4, {1, 32}, ActivationFormat::kFp8PerToken},
    {"A8W4, 1x128", Format::kMxfp4, {1, 32}, ActivationFormat::kFp8Block128},
    {"A8W4, 1x32", Format::kMxfp4, {1, 32}, ActivationFormat::kMxfp8},
    {"A4W4", Format::kMxfp4, {1, 32}, ActivationFormat::kMxfp4},
    {"NVFP4 by bf16", Format::kNvfp4, {1, 16}, ActivationFormat::kNone},
    {"NVFP4 by FP8, per token", Format::kNvfp4, {1, 16}, ActivationFormat::kFp8PerToken},
};

HostTensor normal(Random& random, std::initializer_list<int64_t> shape, double deviation) {
  HostTensor tensor(DataType::kF32, shape);
  for (int64_t i = 0; i < tensor.view().num_elements(); ++i) {
    tensor.as<float>()[i] = static_cast<float>(deviation * random.normal());
  }
  return tensor;
}

/// A matrix with what its values and scales lie in.
struct Matrix {
  HostTensor values, scales;
  WeightMatrix view{};
};
Matrix quantised(const HostTensor& exact, const Case& c) {
  const int64_t rows = exact.view().extent(0), cols = exact.view().extent(1);
  Matrix m;
  m.view = {.format = c.weights, .rows = rows, .cols = cols};
  if (c.weights == Format::kF32 || c.weights == Format::kBf16) {
    m.values = c.weights == Format::kF32 ? exact : cli::convert(exact.view(), DataType::kBf16);
    m.view.values = m.values.view();
    return m;
  }
  const bool four_bits = element_bits(c.weights) == 4;
  const bool mx = c.weights == Format::kMxfp4 || c.weights == Format::kMxfp8;
  m.values = HostTensor(four_bits                    ? DataType::kU8
                        : c.weights == Format::kInt8 ? DataType::kI8
                                                     : DataType::kF8E4m3,
                        {rows, four_bits ? cols / 2 : cols});
  const auto blocks = [](int64_t extent, int64_t block) {
    return block == 0 ? 1 : (extent + block - 1) / block;
  };
  m.scales = HostTensor(mx                            ? DataType::kF8E8m0
                        : c.weights == Format::kNvfp4 ? DataType::kF8E4m3
                                                      : DataType::kF32,
                        {blocks(rows, c.block.rows), blocks(cols, c.block.cols)});
  // NVFP4's block scales are E4M3 numbers: this keeps them in the middle of their range.
  m.view.global_scale = c.weights == Format::kNvfp4 ? 0x1p-10f : 1.0f;
  ops::quantize({.input = exact.view(),
                 .format = c.weights,
                 .scale_block = c.block,
                 .global_scale = m.view.global_scale,
                 .values = m.values.view(),
                 .scales = m.scales.view()});
  m.view.values = m.values.view();
  m.view.scales = m.scales.view();
  m.view.scale_block = c.block;
  return m;
}

struct Expert {
  HostTensor gate, up, down;
};
class Problem {
 public:
  explicit Problem(int64_t tokens) : random_(7) {
    for (int64_t e = 0; e < kExperts; ++e) {
      experts_.push_back({normal(random_, {kInner, kHidden}, 1 / std::sqrt(double{kHidden})),
                          normal(random_, {kInner, kHidden}, 1 / std::sqrt(double{kHidden})),
                          normal(random_, {kHidden, kInner}, 1 / std::sqrt(double{kInner}))});
    }
    hidden_ = normal(random_, {tokens, kHidden}, 1);
    for (int64_t i = 0; i < tokens * kHidden; ++i) {  // a few loud channels, as real states have
      if (i % kHidden % 64 == 0) hidden_.as<float>()[i] *= 8;
    }
    hidden_ = cli::convert(cli::convert(hidden_.view(), DataType::kBf16).view(), DataType::kF32);
    logits_ = normal(random_, {tokens, kExperts}, 1);
  }

  /// The layer's output in f32; hidden states of `type`, which holds them exactly.
  std::vector<double> run(Case c, BackendKind backend, DataType type) const {
    std::vector<std::vector<Matrix>> stored;
    for (const Expert& e : experts_) {
      stored.push_back({quantised(e.gate, c), quantised(e.up, c), quantised(e.down, c)});
    }
    const LayerSpec spec{.num_experts = kExperts,
                         .top_k = kTopK,
                         .hidden_size = kHidden,
                         .intermediate_size = kInner,
                         .weight_format = c.weights,
                         .weight_scale_block = c.block,
                         .activation_format = c.activations};
    Weights weights;
    weights.experts.num_experts = kExperts;
    weights.experts.load = [&](int64_t e) {
      const std::vector<Matrix>& m = stored[static_cast<size_t>(e)];
      return ExpertWeights{.gate = m[0].view, .up = m[1].view, .down = m[2].view};
    };
    const Layer layer = Layer::create(spec, weights, {.backend = backend});
    const int64_t tokens = hidden_.view().extent(0);
    const HostTensor input = cli::convert(hidden_.view(), type);
    const HostTensor output(type, {tokens, kHidden});
    const DeviceMemory x(backend, 0, input.bytes(), input.view().data);
    const DeviceMemory logits(backend, 0, logits_.bytes(), logits_.view().data);
    const DeviceMemory y(backend, 0, output.bytes()),
        scratch(backend, 0, layer.workspace_bytes(tokens));
    layer.forward({.hidden_states = TensorView::contiguous(x.data(), type, {tokens, kHidden}),
                   .output = TensorView::contiguous(y.data(), type, {tokens, kHidden}),
                   .router_logits =
                       TensorView::contiguous(logits.data(), DataType::kF32, {tokens, kExperts})},
                  scratch.workspace());
    y.copy_to(output.view().data);
    const HostTensor wide = cli::convert(output.view(), DataType::kF32);
    return {wide.as<float>(), wide.as<float>() + wide.view().num_elements()};
  }

 private:
  Random random_;
  std::vector<Expert> experts_;
  HostTensor hidden_, logits_;
};

double rms(const std::vector<double>& got, const std::vector<double>& want) {
  double distance = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    distance += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  return std::sqrt(distance / size);
}

json measure(BackendKind backend, const std::vector<int64_t>& token_counts) {
  json rows = json::array();
  fmt::print("{:28} {:>5}  {:>9}  {:>16}  {:>12}  {:>13}\n", "", "T", "same rounding",
             "exact activations", "unquantised", "weights alone");
  for (const int64_t tokens : token_counts) {
    const Problem problem(tokens);
    const Case exact{"", Format::kF32, {}, ActivationFormat::kNone};
    const std::vector<double> truth = problem.run(exact, BackendKind::kReference, DataType::kF32);
    for (const Case& c : kCases) {
      Case weights_only = c;
      weights_only.activations = ActivationFormat::kNone;
      const auto stored = problem.run(weights_only, BackendKind::kReference, DataType::kF32);
      const auto rounded = problem.run(c, BackendKind::kReference, DataType::kF32);
      const auto ours = problem.run(c, backend, DataType::kBf16);
      const json row{{"case", c.name},
                     {"weights", to_string(c.weights)},
                     {"activations", to_string(c.activations)},
                     {"tokens", tokens},
                     {"same_rounding", rms(ours, rounded)},
                     {"exact_activations", rms(ours, stored)},
                     {"unquantised", rms(ours, truth)},
                     {"weights_alone", rms(stored, truth)}};
      fmt::print("{:28} {:5}  {:13.2e}  {:17.2e}  {:12.2e}  {:13.2e}\n", c.name, tokens,
                 row["same_rounding"].get<double>(), row["exact_activations"].get<double>(),
                 row["unquantised"].get<double>(), row["weights_alone"].get<double>());
      std::fflush(stdout);
      rows.push_back(row);
    }
  }
  return {{"backend", to_string(backend)}, {"results", rows}};
}

}  // namespace
}  // namespace switchyard::bench

int main(int argc, char** argv) {
  using namespace switchyard;
  CLI::App app{"What a layer loses to its formats: relative rms against references in double"};
  std::string backend = "cpu", out;
  std::vector<int64_t> tokens{64, 288};  // few and many rows per expert
  app.add_option("--backend", backend)
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--tokens", tokens)->delimiter(',')->capture_default_str();
  app.add_option("--json", out, "where the record goes");
  CLI11_PARSE(app, argc, argv);
  try {
    const auto record =
        bench::measure(backend == "cuda" ? BackendKind::kCuda : BackendKind::kCpu, tokens);
    if (!out.empty()) std::ofstream(out) << record.dump(1) << '\n';
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_accuracy: {}\n", error.what());
    return 1;
  }
  return 0;
}
