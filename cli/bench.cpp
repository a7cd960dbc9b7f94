// switchyard bench: the time of one layer on cold weights, beside what the machine allows.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "cli/arguments.h"
#include "cli/bench_calibrate.h"
#include "cli/bench_measure.h"
#include "cli/bench_model.h"
#include "cli/commands.h"
#include "cli/layer_cost.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/table.h"
#include "cli/text.h"

namespace switchyard::cli {
namespace {

constexpr const char* kFooter =
    R"(Times a whole forward, router logits in, combined output out. Every call has its own routing (fixed
seed) and runs on the next of several packed copies of the layer, so that its experts come from
memory and not from a cache; "warm" is the fraction of expert reads that the last-level cache may
have served all the same. GB/s counts each distinct expert once. The limit is the longer of bytes
over read bandwidth and FLOPs over arithmetic peak. The bandwidth is that of plain reads between the
calls ("read GB/s"), since neighbours of a virtual machine change it from one second to the next; the
peak is measured before and after the table.

On a GPU the calls of a token count are one CUDA graph, as an engine runs its layers; "alone" is one
call in a graph of its own, and "read us" a plain read of the same bytes timed the same way.

Examples:
  switchyard bench --model qwen3-30b-a3b --format mxfp4 --tokens 1,16,64..1024
  switchyard bench --model gpt-oss-20b --skew 1.1 --threads 1
  switchyard bench --model ~/models/gpt-oss-20b --layer 5 --json bench.json
  switchyard bench --calibrate --backend cuda --json limits.json)";

struct Options {
  BenchSource source;
  LayerFlags flags;
  std::string tokens = "1,4,16,64,256,1024";
  double skew = 0;
  std::string layers = "auto";
  double budget_s = 20;
  bool calibrate = false;
  std::string json;
};

/// Limits before and after the table; a neighbour on the machine shows as a difference.
struct LimitPair {
  Calibration before;
  Calibration after;

  /// The better of both: what the machine can do when nobody disturbs.
  Calibration best() const {
    Calibration best = before;
    MachineLimits& limits = best.limits;
    const MachineLimits& other = after.limits;
    limits.read_gbps = std::max(limits.read_gbps, other.read_gbps);
    limits.f32_gflops = std::max(limits.f32_gflops, other.f32_gflops);
    limits.bf16_gflops = std::max(limits.bf16_gflops, other.bf16_gflops);
    limits.int8_gops = std::max(limits.int8_gops, other.int8_gops);
    limits.fp8_gflops = std::max(limits.fp8_gflops, other.fp8_gflops);
    for (size_t i = 0; i < best.streams.size(); ++i) {
      best.streams[i].read_us = std::min(best.streams[i].read_us, after.streams[i].read_us);
    }
    return best;
  }
};

bool on_gpu(const BenchModel& model) {
  return model.layers.front().backend() == BackendKind::kCuda;
}

/// Why the figures cannot be trusted, or empty.
std::string why_noisy(const BenchModel& model, const std::vector<Measurement>& measurements,
                      const LimitPair& limits) {
  const auto differ = [](double a, double b) { return std::abs(a - b) > 0.15 * std::max(a, b); };
  const bool reads_once = on_gpu(model);  // else between the calls
  if ((reads_once && differ(limits.before.limits.read_gbps, limits.after.limits.read_gbps)) ||
      differ(arithmetic_peak(model.spec, limits.before.limits).gflops,
             arithmetic_peak(model.spec, limits.after.limits).gflops)) {
    return "the limits before and after differ by more than 15 %";
  }
  for (const Measurement& measurement : measurements) {
    const bool cold = measurement.warm_fraction < 0.05;
    if (cold && summarize(model, measurement, limits.best()).share > 1) {
      return fmt::format("{} tokens beat the limit, which must have been measured in a bad moment",
                         measurement.tokens);
    }
  }
  return "";
}

int64_t parse_num_layers(const std::string& text) {
  if (text == "auto") return 0;
  const bool number =
      !text.empty() && text.size() <= 4 &&
      std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  const int64_t value = number ? std::stoll(text) : 0;
  if (value < 1) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--layers is '{}'; auto or a number from 1 to 9999 is needed", text));
  }
  return value;
}

std::string kernel_of(const Plan& plan) {
  for (const PlanStep& step : plan.steps) {
    if (step.step == "gate_up" || step.step == "experts") return step.kernel;
  }
  return plan.steps.empty() ? "" : plan.steps.front().kernel;
}

std::vector<Measurement> measure_all(const BenchModel& model, const std::vector<int64_t>& tokens,
                                     const Options& options, const Machine& machine) {
  const ReadMeter meter = on_gpu(model) ? ReadMeter{} : read_meter(options.flags.threads);
  const auto start = std::chrono::steady_clock::now();
  Progress progress("timing");
  std::vector<Measurement> measurements;
  for (size_t i = 0; i < tokens.size(); ++i) {
    progress.update(static_cast<int64_t>(i), static_cast<int64_t>(tokens.size()));
    const double spent =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    // What the short ones leave of the budget goes to the long ones.
    const double budget_s =
        std::max(options.budget_s - spent, 0.0) / static_cast<double>(tokens.size() - i);
    measurements.push_back(measure(model, tokens[i],
                                   {.skew = options.skew,
                                    .budget_s = budget_s,
                                    .l3_bytes = machine.l3_bytes,
                                    .read_meter = meter}));
  }
  return measurements;
}

void print_head(const BenchModel& model, const Options& options, const Machine& machine) {
  const LayerSpec& spec = model.spec;
  fmt::print("{}, {} ({})\n", model.title, to_string(spec.weight_format), scale_block_text(spec));
  fmt::print("  layer     hidden {}, intermediate {}, {}, {}\n", spec.hidden_size,
             spec.intermediate_size, routing_text(spec), activation_text(spec.activation));
  fmt::print("  weights   {} copies, {} packed in {:.1f} s; {} per expert\n", model.layers.size(),
             bytes_text(static_cast<double>(model.packed_bytes())), model.pack_seconds,
             bytes_text(static_cast<double>(model.expert_bytes)));
  fmt::print("  routing   {}, fixed seed\n",
             options.skew == 0 ? "uniform" : fmt::format("Zipf with exponent {}", options.skew));
  fmt::print("  machine   {}; {}\n\n", machine.cpu, model.layers.front().plan(1).device);
}

void print_results(const BenchModel& model, const std::vector<Measurement>& measurements,
                   const LimitPair& limits) {
  const bool gpu = on_gpu(model);
  Table table({{"tokens"},
               {"experts"},
               {"max/mean"},
               {gpu ? "us" : "median us"},
               {gpu ? "alone" : "p10"},
               {gpu ? "read us" : "p90"},
               {"GB/s"},
               {"read GB/s"},
               {"GFLOP/s"},
               {"limit us"},
               {"share"},
               {"bound by", Align::kLeft},
               {"warm"},
               {"calls"},
               {"kernel", Align::kLeft}});
  const Peak peak = arithmetic_peak(model.spec, limits.before.limits);
  for (const Measurement& measurement : measurements) {
    const Summary s = summarize(model, measurement, limits.best());
    const auto us = [gpu](double value) { return fmt::format("{:.{}f}", value, gpu ? 2 : 0); };
    table.add_row({fmt::to_string(measurement.tokens), fmt::format("{:.1f}", s.distinct_experts),
                   fmt::format("{:.1f}", measurement.imbalance), us(s.median_us),
                   us(gpu ? measurement.single_us : s.p10_us), us(gpu ? s.read_us : s.p90_us),
                   fmt::format("{:.1f}", s.gbps), fmt::format("{:.1f}", s.read_gbps),
                   fmt::format("{:.0f}", s.gflops), us(s.limit_us),
                   fmt::format("{:.0f} %", 100 * s.share), s.memory_bound ? "memory" : peak.name,
                   fmt::format("{:.0f} %", 100 * measurement.warm_fraction),
                   fmt::to_string(measurement.samples.size()), kernel_of(measurement.plan)});
  }
  fmt::print("{}\n", table.str());
  fmt::print(
      "limits measured before and after: read {:.1f} and {:.1f} GB/s, {} {:.0f} and {:.0f} G/s\n",
      limits.before.limits.read_gbps, limits.after.limits.read_gbps, peak.name, peak.gflops,
      arithmetic_peak(model.spec, limits.after.limits).gflops);
  const std::string noise = why_noisy(model, measurements, limits);
  if (!noise.empty()) {
    fmt::print("{}\n",
               colored(Color::kYellow,
                       "NOISY: " + noise + "; something else used this machine, measure again"));
  }
}

Json json_of(const BenchModel& model, const Measurement& measurement, const Calibration& machine) {
  const Summary s = summarize(model, measurement, machine);
  Json json{{"tokens", measurement.tokens},
            {"distinct_experts", s.distinct_experts},
            {"imbalance", measurement.imbalance},
            {"warm_fraction", measurement.warm_fraction},
            {"median_us", s.median_us},
            {"p10_us", s.p10_us},
            {"p90_us", s.p90_us},
            {"gbps", s.gbps},
            {"gflops", s.gflops},
            {"limit_us", s.limit_us},
            {"share", s.share},
            {"read_us", s.read_us},
            {"read_gbps", s.read_gbps},
            {"single_us", measurement.single_us},
            {"bound", s.memory_bound ? "memory" : arithmetic_peak(model.spec, machine.limits).name},
            {"kernel", kernel_of(measurement.plan)},
            {"workspace_bytes", measurement.plan.workspace_bytes}};
  for (const Sample& sample : measurement.samples) {
    json["samples_us"].push_back(sample.us);
    json["samples_distinct_experts"].push_back(sample.distinct_experts);
    json["samples_read_gbps"].push_back(sample.read_gbps);
  }
  return json;
}

void save_json(const Options& options, const BenchModel& model, const Machine& machine,
               const std::vector<Measurement>& measurements, const LimitPair& limits) {
  Json report = new_report("bench");
  report["machine"] = to_json(machine);
  report["model"] = options.source.model;
  report["title"] = model.title;
  report["spec"] = to_json(model.spec);
  report["backend"] = to_string(model.layers.front().backend());
  report["device"] = measurements.front().plan.device;
  report["skew"] = options.skew;
  report["num_layers"] = model.layers.size();
  report["packed_bytes"] = model.packed_bytes();
  report["expert_bytes"] = model.expert_bytes;
  report["shared_bytes"] = model.shared_bytes;
  report["pack_seconds"] = model.pack_seconds;
  report["limits"] = {{"before", to_json(limits.before.limits)},
                      {"after", to_json(limits.after.limits)}};
  report["limits_measured"] = true;
  const std::string noise = why_noisy(model, measurements, limits);
  report["noisy"] = !noise.empty();
  report["why_noisy"] = noise;
  for (const Measurement& measurement : measurements) {
    report["results"].push_back(json_of(model, measurement, limits.best()));
  }
  save_report(options.json, report);
}

/// Of where the layer runs; the reference has the CPU's.
Calibration current_limits(const BenchModel& model, const Options& options) {
  return calibrate(on_gpu(model) ? BackendKind::kCuda : BackendKind::kCpu, options.flags.threads);
}

int run(const Options& options) {
  if (!options.json.empty()) check_output_directory("--json", options.json);
  if (options.calibrate) return print_calibration(options.flags, options.json);
  if (options.source.model.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                "--model is missing; a built-in name or a model directory is needed");
  }
  const std::vector<int64_t> tokens = parse_token_list(options.tokens);
  const int64_t num_layers = parse_num_layers(options.layers);
  check_range("--skew", options.skew, 0, 10);
  check_range("--budget", options.budget_s, 0, 86400);
  const Machine machine = this_machine();
  const BenchModel model = make_bench_model(options.source, options.flags, num_layers, machine);
  print_head(model, options, machine);

  LimitPair limits;
  limits.before = current_limits(model, options);
  const std::vector<Measurement> measurements = measure_all(model, tokens, options, machine);
  limits.after = current_limits(model, options);
  print_results(model, measurements, limits);
  if (!options.json.empty()) save_json(options, model, machine, measurements, limits);
  return kOk;
}

}  // namespace

Command add_bench(CLI::App& app) {
  CLI::App* command = app.add_subcommand("bench", "Time a layer against this machine's limits");
  command->footer(kFooter);
  auto options = std::make_shared<Options>();
  command->add_option("--model", options->source.model, "Built-in name or model directory");
  command->add_flag("--calibrate", options->calibrate,
                    "Only measure this machine's limits; with --backend cuda the GPU's");
  command->add_option("--format", options->source.format,
                      "Weight format of a built-in model: bf16, fp8_e4m3, int8, int4, mxfp4, ... "
                      "(default: its own)");
  command->add_option("--layer", options->source.layer, "Layer of a model directory");
  command
      ->add_option("--tokens", options->tokens, "Token counts: 1,16,64 or doubling ranges 1..1024")
      ->capture_default_str();
  command->add_option("--skew", options->skew, "Zipf exponent of the experts' popularity")
      ->capture_default_str();
  command->add_option("--layers", options->layers, "Packed copies to rotate over: auto or a number")
      ->capture_default_str();
  command->add_option("--budget", options->budget_s, "Seconds to spend on timing")
      ->capture_default_str();
  command->add_option("--json", options->json, "Also write everything to this file");
  add_layer_flags(*command, options->flags);
  return {command, [options] { return run(*options); }};
}

}  // namespace switchyard::cli
