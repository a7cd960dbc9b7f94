// Times gate_up and down alone, and dense (ops::Experts), on the shapes that the kernels this
// project started from published, in one CUDA graph of calls with their own lists and weights,
// beside a plain read of the experts that the tokens chose. Sorted lists are made beforehand;
// rounding the input to the activation format is part of a stage.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/arguments.h"
#include "cli/bench_routing.h"
#include "cli/layer_cost.h"
#include "cli/synthetic.h"
#include "core/activation_format.h"
#include "core/expert_sort.h"
#include "core/math.h"
#include "cuda/check.h"
#include "gpu/timing.h"
#include "switchyard/models.h"
#include "switchyard/ops.h"

namespace switchyard::bench {
namespace {

using cuda::DeviceBuffer;
using nlohmann::json;

enum class Stage { kGateUp, kDown, kDense };
constexpr const char* name_of(Stage stage) {
  return stage == Stage::kGateUp ? "gate_up" : stage == Stage::kDown ? "down" : "dense";
}
/// Of an expert's three matrices.
constexpr int matrices_of(Stage stage) {
  return stage == Stage::kGateUp ? 2 : stage == Stage::kDown ? 1 : 3;
}

/// What one pull request timed: its shape, formats and token counts, and its own microseconds where
/// they survive (AMD MI350X and MI355X, 8 TB/s).
struct Published {
  const char* source;
  Stage stage;
  int64_t experts, top_k, hidden, inner;
  ActivationFormat activations;
  const char* tokens;
  std::vector<std::pair<int64_t, double>> us{};
  Format weights = Format::kMxfp4;
};
const Published kPublished[] = {
    {"FlyDSL #388, DeepSeek-R1 TP8",
     Stage::kGateUp,
     256,
     8,
     7168,
     256,
     ActivationFormat::kMxfp4,
     "1,8,64,1024,8192",
     {{1, 26.2}, {8, 31.0}, {8192, 348.8}}},
    {"FlyDSL #388, DeepSeek-R1 TP8",
     Stage::kDown,
     256,
     8,
     7168,
     256,
     ActivationFormat::kMxfp4,
     "1,8,64,1024,8192",
     {{8192, 534.8}}},
    {"FlyDSL #431, gpt-oss 3072", Stage::kDown, 128, 4, 3072, 3072, ActivationFormat::kNone,
     "1,4,8,64,256,1024"},
    {"FlyDSL #431, DeepSeek 1024", Stage::kDown, 384, 8, 7168, 1024, ActivationFormat::kNone,
     "1,4,8,64,256,1024"},
    {"FlyDSL #660, Kimi-K2.5", Stage::kDown, 385, 9, 7168, 512, ActivationFormat::kMxfp4,
     "4,8,16,32,64,128,256,16384"},
    // It says 256 experts and M = 32 .. 384; its times did not survive.
    {"TensorRT-LLM #12686, DeepSeek-R1 TP8",
     Stage::kDense,
     256,
     8,
     7168,
     256,
     ActivationFormat::kFp8Block128,
     "1,8,16,32,64,128,384",
     {},
     Format::kFp8E4m3},
    {"TensorRT-LLM #12686, DeepSeek-R1 TP8", Stage::kDense, 256, 8, 7168, 256,
     ActivationFormat::kFp8PerToken, "1,8,16,32,64,128,384"},
    {"TensorRT-LLM #12686, gpt-oss-120b", Stage::kDense, 128, 4, 2880, 2880,
     ActivationFormat::kFp8PerToken, "1,8,16,32,64,128,384"},
    {"TensorRT-LLM #12686, Qwen3-30B",
     Stage::kDense,
     128,
     8,
     2048,
     768,
     ActivationFormat::kNone,
     "1,8,16,32,64,128,384",
     {},
     Format::kBf16},
};

/// The sort's blocks: as tall as an expert's share of the rows, within what kernels have tiles for.
int64_t unit_of(const LayerSpec& spec, int64_t tokens) {
  const int64_t rows = tokens * spec.top_k / spec.num_experts;
  for (const int64_t unit : {8, 16, 32, 64}) {
    if (rows <= unit / 2) return unit;
  }
  return 128;
}

/// Calls of one stage: every one with its own lists and input.
class Calls {
 public:
  Calls(const std::vector<ops::Experts>& experts, const LayerSpec& spec, Stage stage,
        int64_t tokens, int64_t expert_bytes)
      : experts_(experts),
        spec_(spec),
        stage_(stage),
        tokens_(tokens),
        unit_(unit_of(spec, tokens)) {
    const double distinct = cli::expected_distinct_experts(spec, tokens);
    const int wanted = rotation(static_cast<int64_t>(distinct * static_cast<double>(expert_bytes)));
    const auto sets = static_cast<int>(experts.size());
    count_ = ceil_div(wanted, sets) * sets;
    capacity_ = sort_capacity(tokens, spec.top_k, spec.num_experts, unit_);
    const int64_t rows = stage == Stage::kDown ? tokens * spec.top_k : tokens;
    cols_ = stage == Stage::kDown ? spec.intermediate_size : spec.hidden_size;
    out_cols_ = stage == Stage::kGateUp ? spec.intermediate_size : spec.hidden_size;
    input_ = DeviceBuffer(align_up<int64_t>(rows * cols_ * 2, 256));
    fill_random(input_.data(), input_.bytes(), true, 2, nullptr);
    output_ = DeviceBuffer(tokens * spec.top_k * out_cols_ * 2);
    workspace_ =
        DeviceBuffer(std::max(experts.front().workspace_bytes(tokens, spec.top_k),
                              ops::sort_workspace_bytes(tokens, spec.top_k, spec.num_experts, unit_,
                                                        BackendKind::kCuda)));
    for (int i = 0; i < count_; ++i) lists_.push_back(make_lists(i));
  }
  int count() const { return count_; }
  int64_t unit() const { return unit_; }
  double distinct_experts() const { return distinct_ / count_; }

  void launch(int i, cudaStream_t stream) const {
    const Lists& l = lists_[static_cast<size_t>(i)];
    const ops::Experts& experts = experts_[static_cast<size_t>(i) % experts_.size()];
    const Workspace workspace{workspace_.data(), workspace_.bytes()};
    if (stage_ == Stage::kDense) {
      return experts.dense({.hidden_states = view(input_, DataType::kBf16, {tokens_, cols_}),
                            .alpha = view(l.weights, DataType::kF32, {tokens_, spec_.num_experts}),
                            .output = view(output_, DataType::kBf16, {tokens_, out_cols_})},
                           workspace, {stream});
    }
    const TensorView ids = view(l.ids, DataType::kI32, {capacity_});
    const TensorView expert_ids = view(l.experts, DataType::kI32, {capacity_ / unit_});
    const TensorView valid = view(l.valid, DataType::kI32, {2});
    const TensorView weights = view(l.weights, DataType::kF32, {capacity_});
    const TensorView output = view(output_, DataType::kBf16, {tokens_, spec_.top_k, out_cols_});
    if (stage_ == Stage::kGateUp) {
      return experts.gate_up({view(input_, DataType::kBf16, {tokens_, cols_}), ids, expert_ids,
                              valid, weights, unit_, spec_.top_k, output},
                             workspace, {stream});
    }
    experts.down({view(input_, DataType::kBf16, {tokens_, spec_.top_k, cols_}), ids, expert_ids,
                  valid, weights, unit_, spec_.top_k, output},
                 workspace, {stream});
  }

 private:
  struct Lists {
    DeviceBuffer ids{}, weights{}, experts{}, valid{};  // dense: its alphas are `weights`
  };
  static TensorView view(const DeviceBuffer& memory, DataType type,
                         std::initializer_list<int64_t> shape) {
    return TensorView::contiguous(memory.data(), type, shape);
  }
  /// Of tokens that choose at random.
  Lists make_lists(int call) {
    const ops::Execution gpu{.backend = BackendKind::kCuda,
                             .workspace = {workspace_.data(), workspace_.bytes()}};
    const int64_t pairs = tokens_ * spec_.top_k;
    const DeviceBuffer logits(align_up<int64_t>(tokens_ * spec_.num_experts * 4, 256));
    const DeviceBuffer ids(pairs * 4), weights(pairs * 4);
    fill_random(logits.data(), logits.bytes(), false, static_cast<uint64_t>(call) + 3, nullptr);
    const TensorView chosen = view(ids, DataType::kI32, {tokens_, spec_.top_k});
    const TensorView shares = view(weights, DataType::kF32, {tokens_, spec_.top_k});
    ops::route({.scoring = Scoring::kSoftmax},
               {.router_logits = view(logits, DataType::kF32, {tokens_, spec_.num_experts}),
                .topk_ids = chosen,
                .topk_weights = shares},
               gpu);
    std::vector<int32_t> host(static_cast<size_t>(pairs));
    cuda::check(cudaMemcpy(host.data(), ids.data(), host.size() * 4, cudaMemcpyDeviceToHost),
                "cudaMemcpy");
    const TensorView on_host =
        TensorView::contiguous(host.data(), DataType::kI32, {tokens_, spec_.top_k});
    distinct_ += static_cast<double>(cli::distinct_experts(on_host, spec_.num_experts).size());
    if (stage_ == Stage::kDense) return {.weights = alphas(host, weights)};
    Lists l{DeviceBuffer(capacity_ * 4), DeviceBuffer(capacity_ * 4),
            DeviceBuffer(capacity_ / unit_ * 4), DeviceBuffer(8)};
    ops::sort({.topk_ids = chosen,
               .topk_weights = shares,
               .num_experts = spec_.num_experts,
               .unit_size = unit_,
               .sorted_ids = view(l.ids, DataType::kI32, {capacity_}),
               .sorted_weights = view(l.weights, DataType::kF32, {capacity_}),
               .sorted_expert_ids = view(l.experts, DataType::kI32, {capacity_ / unit_}),
               .num_valid_ids = view(l.valid, DataType::kI32, {2})},
              gpu);
    return l;
  }
  /// [T, E]: the shares at the places of `ids`, 0 elsewhere.
  DeviceBuffer alphas(const std::vector<int32_t>& ids, const DeviceBuffer& shares) const {
    std::vector<float> share(ids.size());
    cuda::check(cudaMemcpy(share.data(), shares.data(), share.size() * 4, cudaMemcpyDeviceToHost),
                "cudaMemcpy");
    std::vector<float> alpha(static_cast<size_t>(tokens_ * spec_.num_experts));
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto token = static_cast<int64_t>(i) / spec_.top_k;
      alpha[static_cast<size_t>(token * spec_.num_experts + ids[i])] = share[i];
    }
    DeviceBuffer on_device(static_cast<int64_t>(alpha.size() * 4));
    on_device.copy_from_host(0, alpha.data(), on_device.bytes());
    return on_device;
  }

  const std::vector<ops::Experts>& experts_;
  const LayerSpec& spec_;
  Stage stage_;
  int64_t tokens_, unit_, capacity_ = 0, cols_ = 0, out_cols_ = 0;
  int count_ = 0;
  double distinct_ = 0;
  DeviceBuffer input_, output_, workspace_;
  std::vector<Lists> lists_;
};

class Bench {
 public:
  Bench(double budget_s, bool generic) : budget_s_(budget_s), generic_(generic) {}

  void run(const Published& p) {
    ModelShape shape{.name = p.source,
                     .spec = {.num_experts = p.experts,
                              .top_k = p.top_k,
                              .hidden_size = p.hidden,
                              .intermediate_size = p.inner}};
    shape.spec = with_format(shape.spec, p.weights);
    shape.spec.activation_format = p.activations;
    fmt::print("{}, {} of E {} K {} H {} I {}, {} x {}\n", p.source, name_of(p.stage), p.experts,
               p.top_k, p.hidden, p.inner, to_string(p.weights), to_string(p.activations));
    const cli::SyntheticLayer synthetic(shape, shape.spec, 1);
    std::vector<ops::Experts> experts;
    LayerOptions options{.backend = BackendKind::kCuda};
    options.generic_kernels = generic_;
    for (int i = 0; i < kWeightSets; ++i) {
      experts.push_back(ops::Experts::create(shape.spec, synthetic.weights().experts, options));
    }
    const int64_t bytes = cli::expert_bytes(shape.spec, false) * matrices_of(p.stage) / 3;
    for (const int64_t tokens : cli::parse_token_list(p.tokens)) {
      time_stage(p, shape.spec, experts, tokens, bytes);
    }
  }
  json record() const { return {{"results", rows_}}; }

 private:
  static constexpr int kWeightSets = 2;

  void time_stage(const Published& p, const LayerSpec& spec,
                  const std::vector<ops::Experts>& experts, int64_t tokens, int64_t expert_bytes) {
    const Calls calls(experts, spec, p.stage, tokens, expert_bytes);
    const Timing timing = time_graph([&](int i, cudaStream_t stream) { calls.launch(i, stream); },
                                     calls.count(), budget_s_);
    const double bytes = calls.distinct_experts() * static_cast<double>(expert_bytes);
    const double read_us = limits_.read_us(static_cast<int64_t>(bytes));
    const double flops =
        2.0 * static_cast<double>(tokens * p.top_k * p.hidden * p.inner) * matrices_of(p.stage);
    const bool dense = p.stage == Stage::kDense;
    json row{{"source", p.source},
             {"stage", name_of(p.stage)},
             {"weights", to_string(p.weights)},
             {"activations", to_string(p.activations)},
             {"tokens", tokens},
             {"unit_size", dense ? json("") : json(calls.unit())},
             {"us", timing.chain_us},
             {"single_us", timing.single_us},
             {"read_us", read_us},
             {"flops", flops}};
    std::string theirs;
    for (const auto& [published_tokens, us] : p.us) {
      if (published_tokens != tokens) continue;
      row["published_us"] = us;
      theirs = fmt::format("  published {:.1f}", us);
    }
    rows_.push_back(row);
    fmt::print(
        "  T {:5}  {:8.2f} us {:8.2f} single  read {:8.2f} us {:4.0f} %  {:7.1f} TFLOP/s{}{}\n",
        tokens, timing.chain_us, timing.single_us, read_us, 100 * read_us / timing.chain_us,
        flops / timing.chain_us * 1e-6, dense ? "" : fmt::format("  blocks of {}", calls.unit()),
        theirs);
    std::fflush(stdout);
  }

  double budget_s_;
  bool generic_;
  Limits limits_;
  json rows_ = json::array();
};

}  // namespace
}  // namespace switchyard::bench

int main(int argc, char** argv) {
  using namespace switchyard::bench;
  CLI::App app{
      "Times gate_up and down alone, and dense, on the shapes of the kernels this project started "
      "from"};
  double budget_s = 0.1;
  bool generic = false;
  std::string only, out;
  app.add_option("--only", only, "rows whose source contains this");
  app.add_option("--budget", budget_s, "seconds of replays per row")->capture_default_str();
  app.add_flag("--generic", generic, "only the generic kernels");
  app.add_option("--json", out, "where the record goes");
  CLI11_PARSE(app, argc, argv);
  try {
    static_cast<void>(switchyard::cuda::device_facts(0));  // says so when there is no GPU
    Bench bench(budget_s, generic);
    for (const Published& published : kPublished) {
      if (std::string(published.source).find(only) == std::string::npos) continue;
      bench.run(published);
      if (!out.empty()) std::ofstream(out) << bench.record().dump(1) << '\n';
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_stages: {}\n", error.what());
    return 1;
  }
  return 0;
}
