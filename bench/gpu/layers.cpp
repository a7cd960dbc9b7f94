// Times whole layers of the built-in models, router logits in and combined output out: a CUDA graph
// of at least eight layers that have their own routing, beside a plain read of the same distinct
// bytes and the arithmetic at the machine's rate. Writes one JSON record; prints the same as a
// table.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "backend.h"
#include "cli/arguments.h"
#include "cli/bench_model.h"
#include "cli/bench_routing.h"
#include "cli/layer_cost.h"
#include "cli/synthetic.h"
#include "core/activation_format.h"
#include "core/math.h"
#include "gpu/timing.h"
#include "switchyard/models.h"

namespace switchyard::bench {
namespace {

using cuda::DeviceBuffer;
using nlohmann::json;

constexpr uint64_t kWeightSeed = 1;
constexpr double kGiB = 0x1p30;

struct Options {
  std::vector<std::string> models{"deepseek-r1-tp8", "gpt-oss-120b", "qwen3-235b-a22b-ep4",
                                  "deepseek-r1-ep8"};
  std::vector<std::string> formats{""};  ///< "": the model's own
  std::vector<std::string> activations{"auto"};
  std::string tokens = "1,8,64,256,512,1024,4096,8192,16384";
  double weights_gib = 4;
  int64_t weight_sets = 0;
  double budget_s = 0.25;
  bool generic = false;
  bool routed_only = false;
  bool from_hidden = false;
  int64_t group = 0;  ///< columns that share an INT4 scale; 0: the format's usual
  bool zero_points = false;
  int64_t shared = -1;  ///< intermediate size of the shared expert; -1: the model's
  std::string out;
};

/// Packed copies of one layer, so many that what a replay reads between two uses of one copy
/// exceeds the L2 many times.
cli::BenchModel pack_model(const ModelShape& shape, const LayerSpec& spec, const Options& options) {
  constexpr int64_t kMostSets = 8;
  constexpr double kColdBytes = kGiB;  // a layer of so much is cold again after one replay
  const cli::SyntheticLayer synthetic(shape, spec, kWeightSeed, options.zero_points);
  cli::BenchModel model;
  model.title = shape.name;
  model.spec = spec;
  model.expert_bytes = cli::expert_bytes(spec, shape.biases);
  model.shared_bytes = cli::stored_bytes_of_shared(synthetic.weights());
  const auto layer_bytes = static_cast<double>(spec.num_experts * model.expert_bytes);
  const int64_t sets =
      options.weight_sets > 0
          ? options.weight_sets
          : std::clamp<int64_t>(static_cast<int64_t>(options.weights_gib * kGiB / layer_bytes),
                                layer_bytes < kColdBytes ? 2 : 1, kMostSets);
  LayerOptions layer_options{.backend = BackendKind::kCuda};
  layer_options.generic_kernels = options.generic;
  std::vector<std::future<Layer>> packing;
  for (int64_t i = 0; i < sets; ++i) {
    packing.push_back(std::async(std::launch::async, [&] {
      return Layer::create(spec, synthetic.weights(), layer_options);
    }));
  }
  for (std::future<Layer>& layer : packing) model.layers.push_back(layer.get());
  return model;
}

/// Calls of one token count: every one with its own logits, input and output.
class Calls {
 public:
  Calls(const cli::BenchModel& model, int64_t tokens, bool from_hidden)
      : layers_(model.layers), spec_(model.spec), tokens_(tokens), from_hidden_(from_hidden) {
    const double experts = cli::expected_distinct_experts(spec_, tokens);
    const int wanted =
        rotation(static_cast<int64_t>(experts * static_cast<double>(model.expert_bytes)));
    const auto sets = static_cast<int>(layers_.size());
    count_ = (wanted + sets - 1) / sets * sets;
    logits_ = random(tokens * spec_.num_routed() * 4, false);
    hidden_ = random(tokens * spec_.hidden_size * 2, true);
    output_ = DeviceBuffer(count_ * tokens * spec_.hidden_size * 2);
    topk_ids_ = DeviceBuffer(count_ * tokens * spec_.top_k * 4);
    workspace_ = DeviceBuffer(layers_.front().workspace_bytes(tokens));
  }
  int count() const { return count_; }

  void launch(int i, cudaStream_t stream) const {
    const auto at = [&](const DeviceBuffer& memory, DataType type, int64_t width) {
      return TensorView::contiguous(memory.as<char>() + i * tokens_ * width * element_bytes(type),
                                    type, {tokens_, width});
    };
    layers_[static_cast<size_t>(i) % layers_.size()].forward(
        {.hidden_states = at(hidden_, DataType::kBf16, spec_.hidden_size),
         .output = at(output_, DataType::kBf16, spec_.hidden_size),
         .router_logits =
             from_hidden_ ? TensorView{} : at(logits_, DataType::kF32, spec_.num_routed()),
         .topk_ids_out = at(topk_ids_, DataType::kI32, spec_.top_k)},
        {workspace_.data(), workspace_.bytes()}, {stream});
  }
  /// Mean over the calls of experts that a token chose; after a launch of all.
  double distinct_experts() const {
    std::vector<int32_t> ids(static_cast<size_t>(topk_ids_.bytes() / 4));
    cuda::check(cudaMemcpy(ids.data(), topk_ids_.data(), static_cast<size_t>(topk_ids_.bytes()),
                           cudaMemcpyDeviceToHost),
                "cudaMemcpy");
    double sum = 0;
    for (int i = 0; i < count_; ++i) {
      const TensorView view = TensorView::contiguous(ids.data() + i * tokens_ * spec_.top_k,
                                                     DataType::kI32, {tokens_, spec_.top_k});
      sum += static_cast<double>(cli::distinct_experts(view, spec_.num_experts).size());
    }
    return sum / count_;
  }

 private:
  /// `count_` tensors of random numbers.
  DeviceBuffer random(int64_t bytes, bool bf16) const {
    DeviceBuffer memory(align_up<int64_t>(count_ * bytes, 256));
    fill_random(memory.data(), memory.bytes(), bf16, bf16 ? 2 : 3, nullptr);
    return memory;
  }

  const std::vector<Layer>& layers_;
  const LayerSpec& spec_;
  int64_t tokens_;
  bool from_hidden_;
  int count_ = 0;
  DeviceBuffer logits_, hidden_, output_, topk_ids_, workspace_;
};

std::string kernels_of(const Plan& plan) {
  std::string names;
  for (const PlanStep& step : plan.steps) {
    if (step.step != "gate_up" && step.step != "down" && step.step != "experts") continue;
    if (!names.empty()) names += " + ";
    names += step.kernel;
  }
  return names;
}

/// What --models names.
std::vector<const ModelShape*> shapes_of(const std::vector<std::string>& names) {
  constexpr double kMostBytes = 6 * kGiB;
  std::vector<const ModelShape*> shapes;
  if (names != std::vector<std::string>{"all"}) {
    for (const std::string& name : names) shapes.push_back(&model_shape(name));
    return shapes;
  }
  const auto bytes = [](const ModelShape* shape) {
    return shape->spec.num_experts * cli::expert_bytes(shape->spec, shape->biases);
  };
  for (const ModelShape& shape : model_shapes()) {
    if (static_cast<double>(bytes(&shape)) <= kMostBytes) shapes.push_back(&shape);
  }
  // A run cut short has seen most of them.
  std::stable_sort(shapes.begin(), shapes.end(),
                   [&](const ModelShape* a, const ModelShape* b) { return bytes(a) < bytes(b); });
  return shapes;
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), machine_(measure_limits(BackendKind::kCuda)) {}

  void run_model(const ModelShape& shape, const std::string& format,
                 const std::string& activations) {
    LayerSpec spec =
        format.empty() ? shape.spec : with_format(shape.spec, format_from_string(format));
    spec.activation_format = activation_format_from_string(activations);
    if (options_.group > 0) spec.weight_scale_block.cols = options_.group;
    spec.routing.hash = false;  // the logits decide
    if (options_.routed_only) spec.shared = {};
    if (options_.shared >= 0) spec.shared.intermediate_size = options_.shared;
    fmt::print("{} {}{}{} x {}\n", shape.name, to_string(spec.weight_format),
               options_.group > 0 ? fmt::format(" g{}", options_.group) : "",
               options_.zero_points ? " with zero points" : "",
               to_string(resolved_activation_format(spec, BackendKind::kCuda)));
    const cli::BenchModel model = pack_model(shape, spec, options_);
    for (const int64_t tokens : cli::parse_token_list(options_.tokens)) time_layer(model, tokens);
  }
  json record() const { return {{"device", cuda_backend()->device_name({})}, {"results", rows_}}; }

 private:
  void time_layer(const cli::BenchModel& model, int64_t tokens) {
    const LayerSpec& spec = model.spec;
    const Calls calls(model, tokens, options_.from_hidden);
    const Timing timing = time_graph([&](int i, cudaStream_t stream) { calls.launch(i, stream); },
                                     calls.count(), options_.budget_s);
    const double distinct = calls.distinct_experts();
    // Weights once, and what goes in and out; not the intermediates.
    const double router_bytes =
        options_.from_hidden ? 2.0 * static_cast<double>(spec.num_routed() * spec.hidden_size) : 0;
    const double bytes =
        distinct * static_cast<double>(model.expert_bytes) + router_bytes +
        static_cast<double>(model.shared_bytes) +
        static_cast<double>(tokens * (4 * spec.hidden_size + 4 * spec.num_routed()));
    const double flops = cli::expert_flops(spec, tokens) +
                         (options_.from_hidden ? cli::router_flops(spec, tokens) : 0);
    const double read_us = limits_.read_us(static_cast<int64_t>(bytes));
    const double flop_us = flops / cli::arithmetic_peak(spec, machine_).gflops * 1e-3;
    const double limit_us = std::max(read_us, flop_us);
    const std::string kernels = kernels_of(model.layers.front().plan(tokens));
    rows_.push_back(
        {{"model", model.title},
         {"weights", to_string(spec.weight_format)},
         {"activations", to_string(resolved_activation_format(spec, BackendKind::kCuda))},
         {"group", spec.weight_scale_block.cols},
         {"zero_points", options_.zero_points},
         {"from_hidden", options_.from_hidden},
         {"tokens", tokens},
         {"us", timing.chain_us},
         {"single_us", timing.single_us},
         {"layers", calls.count()},
         {"weight_sets", model.layers.size()},
         {"distinct_experts", distinct},
         {"bytes", bytes},
         {"flops", flops},
         {"read_us", read_us},
         {"flop_us", flop_us},
         {"share_of_limit", limit_us / timing.chain_us},
         {"kernels", kernels}});
    fmt::print(
        "  T {:5}  {:9.2f} us {:9.2f} single  experts {:5.1f}  read {:8.2f} us  flop {:8.2f} us  "
        "{:3.0f} %  {:5.0f} GB/s {:6.1f} TFLOP/s  {}\n",
        tokens, timing.chain_us, timing.single_us, distinct, read_us, flop_us,
        100 * limit_us / timing.chain_us, bytes / timing.chain_us * 1e-3,
        flops / timing.chain_us * 1e-6, kernels);
    std::fflush(stdout);
  }

  Options options_;
  MachineLimits machine_;
  Limits limits_;
  json rows_ = json::array();
};

}  // namespace
}  // namespace switchyard::bench

int main(int argc, char** argv) {
  using namespace switchyard::bench;
  CLI::App app{"Times whole layers of the built-in models beside the limits of this GPU"};
  Options options;
  app.add_option("--models", options.models,
                 "built-in names (switchyard models), or all: those of at most 6 GiB")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--formats", options.formats, "weight formats (default: the model's own)")
      ->delimiter(',');
  app.add_option("--activations", options.activations, "auto, none, fp8_block128, ...")
      ->delimiter(',');
  app.add_option("--tokens", options.tokens)->capture_default_str();
  app.add_option("--group", options.group, "columns that share a scale (INT4: 32, 64, 128 ...)");
  app.add_flag("--zero-points", options.zero_points, "INT4 groups have zero points of their own");
  app.add_option("--weights-gib", options.weights_gib,
                 "packed copies of a layer that fit into this: at most 8, 2 of a layer below 1 GiB")
      ->capture_default_str();
  app.add_option("--weight-sets", options.weight_sets, "exactly so many packed copies");
  app.add_option("--budget", options.budget_s, "seconds of replays per row")->capture_default_str();
  app.add_flag("--generic", options.generic, "only the generic kernels");
  app.add_flag("--routed-only", options.routed_only, "without the shared experts");
  app.add_option("--shared", options.shared,
                 "intermediate size of the shared experts (default: the model's)");
  app.add_flag("--from-hidden", options.from_hidden, "the layer's router makes the logits");
  app.add_option("--json", options.out, "where the record goes");
  CLI11_PARSE(app, argc, argv);
  try {
    static_cast<void>(switchyard::cuda::device_facts(0));  // says so when there is no GPU
    Bench bench(options);
    for (const switchyard::ModelShape* shape : shapes_of(options.models)) {
      for (const std::string& format : options.formats) {
        for (const std::string& activations : options.activations) {
          bench.run_model(*shape, format, activations);
          if (!options.out.empty()) std::ofstream(options.out) << bench.record().dump(1) << '\n';
        }
      }
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_layers: {}\n", error.what());
    return 1;
  }
  return 0;
}
