// Times the prefill GEMMs of the built-in models under every tile that is compiled, beside what the
// cost model predicts for it and what the machine allows: gate and up, rows gathered and activated,
// and down. Tiles take turns, so that a slow moment of the machine meets all of them. Writes one
// JSON record; prints the same as a table and how far the model's choice is from the best tile,
// over batches that these kernels take. Then two layers' GEMMs in bursts from a cool start and
// sustained, beside the matrix units in the same protocol.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backend.h"
#include "core/activation_format.h"
#include "core/cost_model.h"
#include "core/expert_sort.h"
#include "core/kernel_family.h"
#include "cuda/check.h"
#include "cuda/matrix_rate.h"
#include "cuda/quantize.h"
#include "cuda/sm90/grouped_gemm.h"
#include "cuda/sort.h"
#include "gpu/timing.h"
#include "switchyard/calibrate.h"
#include "switchyard/models.h"

namespace switchyard::bench {
namespace {

using cuda::DeviceBuffer;
using cuda::StoredRows;
using cuda::WeightRows;
using nlohmann::json;
namespace sm90 = cuda::sm90;

struct Operands {
  const char* name;
  Format format;
  ActivationFormat activations;
  sm90::MatrixOperands matrix;
  bool weight_blocks = false;  ///< scales of 128 x 128
};
constexpr Operands kOperands[] = {
    {"bf16", Format::kBf16, ActivationFormat::kNone, sm90::MatrixOperands::kBf16},
    {"fp8_e4m3 {1,0} x fp8_per_token", Format::kFp8E4m3, ActivationFormat::kFp8PerToken,
     sm90::MatrixOperands::kE4m3},
    {"fp8_e4m3 {128,128} x fp8_block128", Format::kFp8E4m3, ActivationFormat::kFp8Block128,
     sm90::MatrixOperands::kE4m3, true},
    {"int8 {1,0} x int8_per_token", Format::kInt8, ActivationFormat::kInt8PerToken,
     sm90::MatrixOperands::kS8},
};

struct Options {
  std::vector<std::string> models;
  std::vector<std::string> rate_models{"deepseek-r1-ep8", "deepseek-r1-tp8"};
  int64_t rate_tokens = 8192;
  std::string only;  ///< "rates" or "tiles"
  std::string operands;
  std::vector<int64_t> tokens{1, 16, 64, 256, 1024, 4096, 16384};
  std::string out;
};

/// Rows of random numbers in a format, as the quantiser makes them.
struct Rows {
  DeviceBuffer values, scales;
  StoredRows stored;

  Rows(int64_t rows, int64_t cols, const Operands& operands, ActivationFormat activations) {
    const int64_t bytes = element_bits(operands.format) / 8;
    stored = {.format = operands.format, .row_bytes = cols * bytes};
    values = DeviceBuffer(rows * stored.row_bytes);
    stored.values = values.data();
    constexpr int64_t kSlab = int64_t{1} << 28;  // elements made at a time
    const int64_t slab_rows = std::max<int64_t>(kSlab / cols, 1);
    if (activations == ActivationFormat::kNone) {
      fill_random(values.data(), values.bytes(), true, 1, nullptr);
      return;
    }
    const ActivationStorage storage = activation_storage(activations);
    const int64_t groups = storage.scale_block.cols == 0 ? 1 : ceil_div<int64_t>(cols, 128);
    scales = DeviceBuffer(rows * groups * 4);
    stored.scale_kind = cuda::ScaleKind::kF32;
    stored.scales = scales.data();
    stored.num_groups = static_cast<int32_t>(groups);
    stored.group_size = static_cast<int32_t>(storage.scale_block.cols);
    const DeviceBuffer source(std::min(slab_rows, rows) * cols * 2);
    fill_random(source.data(), source.bytes(), true, 1, nullptr);
    for (int64_t first = 0; first < rows; first += slab_rows) {
      const int64_t count = std::min(slab_rows, rows - first);
      cuda::quantize({.input = source.data(),
                      .input_type = DataType::kBf16,
                      .num_input_rows = count,
                      .cols = cols,
                      .rows = {.limit = count},
                      .format = operands.format,
                      .scale_block = storage.scale_block,
                      .values = values.as<char>() + first * stored.row_bytes,
                      .value_row_bytes = stored.row_bytes,
                      .scales = scales.as<float>() + first * groups,
                      .scale_type = DataType::kF32},
                     {});
    }
  }
};

/// One GEMM's weights for all experts.
struct Weights {
  Rows rows;
  DeviceBuffer table;
  WeightRows weights;

  Weights(int64_t experts, int64_t num_rows, int64_t cols, int32_t halves, const Operands& operands)
      : rows(experts * num_rows, cols, operands,
             operands.format == Format::kBf16   ? ActivationFormat::kNone
             : operands.format == Format::kInt8 ? ActivationFormat::kInt8PerToken
                                                : ActivationFormat::kFp8PerToken) {
    weights.rows = rows.stored;
    weights.expert_bytes = num_rows * rows.stored.row_bytes;
    weights.num_rows = static_cast<int32_t>(num_rows);
    weights.num_cols = static_cast<int32_t>(cols);
    weights.halves = halves;
    if (operands.weight_blocks) {
      weights.rows.num_groups = static_cast<int32_t>(ceil_div<int64_t>(cols, 128));
      weights.rows.group_size = 128;
      const int64_t count = sm90::block_scale_count(weights, experts);
      table = DeviceBuffer(align_up<int64_t>(count * 4, 256));
      fill_random(table.data(), table.bytes(), false, 2, nullptr);
    }
  }
};

struct Layer {
  Weights gate_up, down;

  Layer(const LayerSpec& spec, const Operands& operands)
      : gate_up(spec.num_experts, halves(spec) * spec.intermediate_size, spec.expert_width(),
                halves(spec), operands),
        down(spec.num_experts, spec.expert_width(), spec.intermediate_size, 1, operands) {}
  static int32_t halves(const LayerSpec& spec) { return spec.activation.gated() ? 2 : 1; }
};

/// Microseconds per launch of `count` between two events.
template <class F>
double events_us(int count, F launch) {
  cudaEvent_t begin, end;
  cuda::check(cudaEventCreate(&begin), "cudaEventCreate");
  cuda::check(cudaEventCreate(&end), "cudaEventCreate");
  cuda::check(cudaEventRecord(begin), "cudaEventRecord");
  for (int i = 0; i < count; ++i) launch();
  cuda::check(cudaEventRecord(end), "cudaEventRecord");
  cuda::check(cudaEventSynchronize(end), "cudaEventSynchronize");
  float ms = 0;
  cuda::check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return static_cast<double>(ms) * 1000.0 / count;
}
double median(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[(times.size() - 1) / 2];
}
template <class F>
double time_us(F launch) {
  launch();
  std::vector<double> times;
  for (int repeat = 0; repeat < 3; ++repeat) times.push_back(events_us(1, launch));
  return median(times);
}

/// Matrix work is bound by power: what a cool GPU does for tens of milliseconds it does not do for
/// seconds, so a rate says how it was measured.
struct Rates {
  double burst = 0;      ///< kBurstLaunches after kRest of idleness
  double sustained = 0;  ///< as many after kWarmUpUs of the same

  Rates tflops(double flops) const { return {flops / burst * 1e-6, flops / sustained * 1e-6}; }
};
constexpr int kBurstLaunches = 12;
constexpr std::chrono::milliseconds kRest{300};
constexpr double kWarmUpUs = 300e3;
/// Microseconds of `launches` at a time, per launch.
template <class F>
Rates time_rates(int launches, F launch) {
  launch();
  cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  std::this_thread::sleep_for(kRest);
  Rates us;
  us.burst = events_us(launches, launch);
  events_us(static_cast<int>(kWarmUpUs / us.burst), launch);
  us.sustained = events_us(launches, launch);
  return us;
}

std::vector<int32_t> random_ids(int64_t tokens, int64_t top_k, int64_t experts) {
  std::mt19937 random(1);
  std::vector<int32_t> all(static_cast<size_t>(experts)), ids;
  for (size_t e = 0; e < all.size(); ++e) all[e] = static_cast<int32_t>(e);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < top_k; ++k) {  // the first top_k of a shuffle
      const auto i = static_cast<size_t>(k);
      std::swap(all[i], all[i + random() % (all.size() - i)]);
      ids.push_back(all[i]);
    }
  }
  return ids;
}

/// A batch's sorted rows, its intermediates and both GEMMs' jobs.
struct Batch {
  DeviceBuffer sorted, sorted_weights, experts, valid, counter, intermediate, scales, output;
  Rows hidden;
  sm90::GroupedGemmJob gate_up, down;
  int64_t num_experts;

  Batch(const LayerSpec& spec, const Operands& operands, const Layer& layer, const Rows& input,
        int64_t tokens, int32_t unit)
      : Batch(spec, operands, layer, input, tokens, unit,
              sort_capacity(tokens, spec.top_k, spec.num_experts, unit)) {}

  /// gate_up's output becomes E4M3 with a scale per 128 columns, as down reads it.
  void round_intermediate() { gate_up.output_scales = scales.as<float>(); }
  auto launcher(const sm90::GroupedGemmJob& job, const GroupedGemmConfig& config) const {
    return [this, &job, config, map = sm90::weight_map(job.weights, num_experts, config)] {
      cuda::check(cudaMemsetAsync(counter.data(), 0, 16), "cudaMemsetAsync");
      sm90::grouped_gemm(job, config, map, cuda::device_facts(0).num_sms, {});
    };
  }

 private:
  Batch(const LayerSpec& spec, const Operands& operands, const Layer& layer, const Rows& input,
        int64_t tokens, int32_t unit, int64_t capacity)
      : sorted(capacity * 4),
        sorted_weights(capacity * 4),
        experts(capacity * 4),
        valid(8),
        counter(16),
        intermediate(capacity * spec.intermediate_size * 2),
        scales(capacity * ceil_div<int64_t>(spec.intermediate_size, 128) * 4),
        output(tokens * spec.top_k * spec.expert_width() * 2),
        hidden(capacity, spec.intermediate_size, operands, operands.activations),
        num_experts(spec.num_experts) {
    const std::vector<int32_t> host_ids = random_ids(tokens, spec.top_k, spec.num_experts);
    const DeviceBuffer ids(tokens * spec.top_k * 4);
    ids.copy_from_host(0, host_ids.data(), ids.bytes());
    const SortPlan plan = plan_sort(tokens, spec.top_k, spec.num_experts, unit);
    const DeviceBuffer scratch(plan.workspace_bytes + 16);
    const auto num_blocks = static_cast<int32_t>(capacity / unit);
    cuda::sort({.topk_ids = ids.as<const int32_t>(),
                .tokens = {.limit = tokens},
                .top_k = static_cast<int32_t>(spec.top_k),
                .num_experts = static_cast<int32_t>(spec.num_experts),
                .unit_size = unit,
                .capacity = static_cast<int32_t>(capacity),
                .num_blocks = num_blocks,
                .num_valid = 1,
                .sorted_ids = sorted.as<int32_t>(),
                .sorted_weights = sorted_weights.as<int32_t>(),
                .sorted_expert_ids = experts.as<int32_t>(),
                .num_valid_ids = valid.as<int32_t>()},
               plan, scratch.data(), 0, {});
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // ids and scratch end here
    gate_up = {.sorted = {.ids = sorted.as<const int32_t>(),
                          .experts = experts.as<const int32_t>(),
                          .num_valid = valid.as<const int32_t>(),
                          .weights = sorted_weights.as<const float>(),
                          .num_blocks = num_blocks,
                          .block_rows = unit,
                          .top_k = static_cast<int32_t>(spec.top_k)},
               .tile_counter = counter.as<uint32_t>(),
               .source = sm90::RowSource::kToken,
               .input = input.stored,
               .num_input_rows = tokens,
               .weights = layer.gate_up.weights,
               .num_experts = spec.num_experts,
               .block_scales = layer.gate_up.table.as<const float>(),
               .activation = &spec.activation,
               .output = intermediate.data(),
               .output_stride = spec.intermediate_size};
    down = gate_up;
    down.source = sm90::RowSource::kSorted;
    down.input = hidden.stored;
    down.num_input_rows = capacity;
    down.weights = layer.down.weights;
    down.block_scales = layer.down.table.as<const float>();
    down.activation = nullptr;
    down.output_per_pair = true;
    down.output = output.data();
    down.output_stride = spec.expert_width();
  }
};

/// What the cost model makes of a batch.
struct Choice {
  std::vector<GroupedGemmConfig> configs;
  LayerGemmWork work;
  GroupedGemmConfigs chosen;
  bool is_decode = false;  ///< a layer would take the kernels of few rows

  /// rounds: gate_up's kernel may round the intermediate.
  Choice(const LayerSpec& spec, const Operands& operands, const Layer& layer, const Rows& input,
         int64_t tokens, bool rounds = false) {
    const sm90::Scaling scaling = sm90::scaling_of(input.stored, layer.gate_up.weights);
    work = layer_gemm_work(spec, spec.top_k, tokens, operands.format,
                           scaling == sm90::Scaling::kBlock, rounds);
    configs = sm90::configs_of(operands.format, scaling);
    const int num_sms = cuda::device_facts(0).num_sms;
    chosen = best_configs(configs, work, num_sms);
    const auto matrix = [&](const WeightRows& w) {
      return LayerMatrix{
          .loop = operands.format == Format::kBf16 ? DecodeLoop::kBf16 : DecodeLoop::kBytes,
          .weight_rows = w.num_rows,
          .token_row_bytes = w.rows.row_bytes,
          .expert_bytes = static_cast<double>(w.expert_bytes)};
    };
    const bool quantizes = operands.activations != ActivationFormat::kNone;
    const double us = prefill_steps_us(quantizes) +
                      grouped_gemm_us(chosen.gate_up, work.gate_up, num_sms) +
                      grouped_gemm_us(chosen.down, work.down, num_sms);
    is_decode = decodes({spec.num_experts, spec.top_k, tokens}, matrix(layer.gate_up.weights),
                        matrix(layer.down.weights), us, num_sms);
  }
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), machine_(measure_limits(BackendKind::kCuda)) {}

  /// Every tile at every batch.
  void run_tiles(const ModelShape& shape, const Operands& operands) {
    const LayerSpec& spec = shape.spec;
    const Layer layer(spec, operands);
    for (const int64_t tokens : options_.tokens) {
      time_tokens(shape, operands, layer, tokens);
    }
  }
  /// Both GEMMs of a layer, as the plan would run them, in a burst and sustained.
  void run_rates(const ModelShape& shape, const Operands& operands) {
    const LayerSpec& spec = shape.spec;
    const int64_t tokens = options_.rate_tokens;
    const Layer layer(spec, operands);
    const Rows input(tokens, spec.expert_width(), operands, operands.activations);
    const bool may_round =
        operands.activations == ActivationFormat::kFp8Block128 &&
        sm90::rounds_output(sm90::Scaling::kBlock, spec.activation, spec.intermediate_size);
    const GroupedGemmConfigs tiles = Choice(spec, operands, layer, input, tokens, may_round).chosen;
    Batch batch(spec, operands, layer, input, tokens, tiles.sort_unit());
    const bool rounds = may_round && holds_gated_scale(tiles.gate_up);
    if (rounds) batch.round_intermediate();
    const double flops = 2.0 * static_cast<double>(tokens * spec.top_k) *
                         static_cast<double>(spec.expert_width() * spec.intermediate_size);
    add_rates(shape, operands, rounds ? "gate_up, rounded" : "gate_up", batch, batch.gate_up,
              tiles.gate_up, flops * layer.gate_up.weights.halves);
    add_rates(shape, operands, "down", batch, batch.down, tiles.down, flops);
  }
  json record() const {
    return {{"device", cuda_backend()->device_name({})}, {"rates", rates_}, {"results", rows_}};
  }
  void print_summary() const {
    fmt::print("model's choice against the best tile: worst {:.3f} ({}), mean {:.3f}\n", worst_,
               worst_case_, count_ == 0 ? 1.0 : sum_ / count_);
    fmt::print("predicted / measured, chosen tiles: {:.2f} to {:.2f}\n", least_, most_);
  }

 private:
  struct Run {
    GroupedGemmConfig config{};
    double gate_up_us = 0, down_us = 0, gate_up_predicted = 0, down_predicted = 0;
  };

  void time_tokens(const ModelShape& shape, const Operands& operands, const Layer& layer,
                   int64_t tokens) {
    const LayerSpec& spec = shape.spec;
    const int num_sms = cuda::device_facts(0).num_sms;
    const Rows input(tokens, spec.expert_width(), operands, operands.activations);
    const Choice choice(spec, operands, layer, input, tokens);
    std::vector<Run> runs;
    std::vector<Batch> batches;
    for (const GroupedGemmConfig& config : choice.configs) {
      const auto us = [&](const GroupedGemmWork& w) {
        return grouped_gemm_clocks(config, w, num_sms) / gemm_cost::kMatrixClock * 1e6;
      };
      runs.push_back({.config = config,
                      .gate_up_predicted = us(choice.work.gate_up),
                      .down_predicted = us(choice.work.down)});
      batches.emplace_back(spec, operands, layer, input, tokens, config.block_m);
    }
    time_in_turns(batches, runs);
    for (const Run& run : runs) add(shape, operands, tokens, run, choice);
    if (choice.is_decode) return;
    compare(runs, choice.chosen, fmt::format("{} {} T {}", shape.name, operands.name, tokens));
  }

  /// The chosen pair of tiles beside the best one that was measured.
  void compare(const std::vector<Run>& runs, const GroupedGemmConfigs& chosen,
               const std::string& which) {
    double best = 1e30, us = 0, predicted = 0;
    for (const Run& first : runs) {
      for (const Run& second : runs) {
        if (GroupedGemmConfigs{first.config, second.config}.sort_unit() > kMaxSortUnit) continue;
        const double both = first.gate_up_us + second.down_us;
        best = std::min(best, both);
        if (first.config == chosen.gate_up && second.config == chosen.down) {
          us = both;
          predicted = first.gate_up_predicted + second.down_predicted;
        }
      }
    }
    if (us / best > worst_) worst_ = us / best, worst_case_ = which;
    sum_ += us / best;
    ++count_;
    least_ = std::min(least_, predicted / us);
    most_ = std::max(most_, predicted / us);
  }

  /// Short launches more often, so that one slow moment does not count.
  static void time_in_turns(const std::vector<Batch>& batches, std::vector<Run>& runs) {
    constexpr double kUsPerTile = 4000;
    constexpr int kFewest = 2, kMost = 9;
    std::vector<std::vector<double>> gate_up(runs.size()), down(runs.size());
    const auto turn = [&](bool counts) {
      double us = 0;
      for (size_t i = 0; i < runs.size(); ++i) {
        const double first = events_us(1, batches[i].launcher(batches[i].gate_up, runs[i].config));
        const double second = events_us(1, batches[i].launcher(batches[i].down, runs[i].config));
        if (counts) gate_up[i].push_back(first), down[i].push_back(second);
        us += first + second;
      }
      return us;
    };
    turn(false);
    const double us = turn(true);
    const int turns = std::clamp(
        static_cast<int>(kUsPerTile * static_cast<double>(runs.size()) / us), kFewest, kMost);
    for (int i = 1; i < turns; ++i) turn(true);
    for (size_t i = 0; i < runs.size(); ++i) {
      runs[i].gate_up_us = median(gate_up[i]);
      runs[i].down_us = median(down[i]);
    }
  }

  void add(const ModelShape& shape, const Operands& operands, int64_t tokens, const Run& run,
           const Choice& choice) {
    const LayerSpec& spec = shape.spec;
    const double matrix = 2.0 * static_cast<double>(tokens * spec.top_k) *
                          static_cast<double>(spec.expert_width() * spec.intermediate_size);
    const double first_flops = matrix * (spec.activation.gated() ? 2 : 1);
    const double experts = expected_distinct_experts(spec.num_experts, spec.top_k, tokens);
    // Weights once, or the products.
    const auto share = [&](double flops, double us) {
      const double bytes = experts * flops / (2.0 * static_cast<double>(tokens * spec.top_k)) *
                           element_bits(operands.format) / 8;
      return std::max(bytes / machine_.read_gbps, flops / peak_gflops(operands)) * 1e-3 / us;
    };
    const double first_share = share(first_flops, run.gate_up_us);
    const double second_share = share(matrix, run.down_us);
    const auto tflops = [](double flops, double us) { return flops / us * 1e-6; };
    const bool first = run.config == choice.chosen.gate_up;
    const bool second = run.config == choice.chosen.down;
    rows_.push_back({{"model", shape.name},
                     {"operands", operands.name},
                     {"tokens", tokens},
                     {"decode", choice.is_decode},
                     {"block_m", run.config.block_m},
                     {"block_n", run.config.block_n},
                     {"gate_up_chosen", first},
                     {"down_chosen", second},
                     {"gate_up_us", run.gate_up_us},
                     {"gate_up_predicted_us", run.gate_up_predicted},
                     {"gate_up_share", first_share},
                     {"down_us", run.down_us},
                     {"down_predicted_us", run.down_predicted},
                     {"down_share", second_share}});
    fmt::print(
        "{:20} {:34} T {:5}  {:3} x {:3}  gate_up {:8.1f} us ({:8.1f} predicted) {:5.0f} TFLOP/s "
        "{:3.0f} % {}  down {:8.1f} us ({:8.1f}) {:5.0f} TFLOP/s {:3.0f} % {}\n",
        shape.name, operands.name, tokens, run.config.block_m, run.config.block_n, run.gate_up_us,
        run.gate_up_predicted, tflops(first_flops, run.gate_up_us), 100 * first_share,
        first ? '*' : ' ', run.down_us, run.down_predicted, tflops(matrix, run.down_us),
        100 * second_share, second ? '*' : ' ');
    std::fflush(stdout);
  }

  void add_rates(const ModelShape& shape, const Operands& operands, const char* gemm,
                 const Batch& batch, const sm90::GroupedGemmJob& job,
                 const GroupedGemmConfig& config, double flops) {
    const Rates us = time_rates(kBurstLaunches, batch.launcher(job, config));
    const Rates tflops = us.tflops(flops);
    const Rates& peak = matrix_rates(operands.matrix, us.burst * kBurstLaunches);
    rates_.push_back({{"model", shape.name},
                      {"operands", operands.name},
                      {"tokens", options_.rate_tokens},
                      {"gemm", gemm},
                      {"block_m", config.block_m},
                      {"block_n", config.block_n},
                      {"burst_us", us.burst},
                      {"burst_tflops", tflops.burst},
                      {"burst_peak_tflops", peak.burst},
                      {"sustained_us", us.sustained},
                      {"sustained_tflops", tflops.sustained},
                      {"sustained_peak_tflops", peak.sustained}});
    fmt::print(
        "{:16} {:34} {:17} {:3} x {:3}  burst {:7.1f} us {:5.0f} TFLOP/s of {:5.0f} ({:3.0f} %)  "
        "sustained {:7.1f} us {:5.0f} of {:5.0f} ({:3.0f} %)\n",
        shape.name, operands.name, gemm, config.block_m, config.block_n, us.burst, tflops.burst,
        peak.burst, 100 * tflops.burst / peak.burst, us.sustained, tflops.sustained, peak.sustained,
        100 * tflops.sustained / peak.sustained);
    std::fflush(stdout);
  }

  /// Of the bare matrix units, in bursts as long as the first GEMM's of these operands.
  const Rates& matrix_rates(sm90::MatrixOperands operands, double burst_us) {
    const auto [at, fresh] = peaks_.try_emplace(operands);
    if (!fresh) return at->second;
    const DeviceBuffer sink(4);
    double flops = 0;
    const auto launch = [&] {
      flops =
          sm90::launch_matrix_rate(operands, sink.as<float>(), cuda::device_facts(0).num_sms, {});
    };
    const double us = time_us(launch);
    return at->second =
               time_rates(std::max(1, static_cast<int>(burst_us / us)), launch).tflops(flops);
  }

  double peak_gflops(const Operands& operands) const {
    return operands.format == Format::kBf16   ? machine_.bf16_gflops
           : operands.format == Format::kInt8 ? machine_.int8_gops
                                              : machine_.fp8_gflops;
  }

  Options options_;
  MachineLimits machine_;
  json rows_ = json::array(), rates_ = json::array();
  std::map<sm90::MatrixOperands, Rates> peaks_;
  double worst_ = 0, sum_ = 0, least_ = 1e9, most_ = 0;
  int count_ = 0;
  std::string worst_case_;
};

}  // namespace
}  // namespace switchyard::bench

int main(int argc, char** argv) {
  using namespace switchyard::bench;
  CLI::App app{"Times the prefill GEMMs under every compiled tile beside the cost model"};
  Options options;
  for (const switchyard::ModelShape& shape : switchyard::model_shapes()) {
    options.models.push_back(shape.name);
  }
  app.add_option("--models", options.models, "built-in names (default: all)")->delimiter(',');
  app.add_option("--operands", options.operands, "only operands whose name contains this");
  app.add_option("--tokens", options.tokens)->delimiter(',')->capture_default_str();
  app.add_option("--rate-models", options.rate_models, "timed in bursts and sustained")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--only", options.only)->check(CLI::IsMember({"rates", "tiles"}));
  app.add_option("--json", options.out, "where the record goes");
  CLI11_PARSE(app, argc, argv);
  try {
    Bench bench(options);
    const auto for_each = [&](const std::vector<std::string>& models, auto run) {
      for (const std::string& model : models) {
        for (const Operands& operands : kOperands) {
          if (std::string(operands.name).find(options.operands) == std::string::npos) continue;
          (bench.*run)(switchyard::model_shape(model), operands);
        }
      }
    };
    if (options.only != "tiles") for_each(options.rate_models, &Bench::run_rates);
    if (options.only != "rates") {
      for_each(options.models, &Bench::run_tiles);
      bench.print_summary();
    }
    if (!options.out.empty()) std::ofstream(options.out) << bench.record().dump(1) << '\n';
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_prefill: {}\n", error.what());
    return 1;
  }
  return 0;
}
