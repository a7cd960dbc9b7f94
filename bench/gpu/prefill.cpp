// Times the prefill GEMMs of the built-in models under every tile that is compiled, beside what the
// cost model predicts for it and what the machine allows: one launch of gate and up, rows gathered
// and activated, and one of down. Writes one JSON record; prints the same as a table and how far
// the model's choice is from the best tile.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "backend.h"
#include "core/activation_format.h"
#include "core/cost_model.h"
#include "core/expert_sort.h"
#include "core/grouped_gemm_cost.h"
#include "cuda/check.h"
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
  bool weight_blocks = false;  ///< scales of 128 x 128
};
constexpr Operands kOperands[] = {
    {"bf16", Format::kBf16, ActivationFormat::kNone},
    {"fp8_e4m3 {1,0} x fp8_per_token", Format::kFp8E4m3, ActivationFormat::kFp8PerToken},
    {"fp8_e4m3 {128,128} x fp8_block128", Format::kFp8E4m3, ActivationFormat::kFp8Block128, true},
    {"int8 {1,0} x int8_per_token", Format::kInt8, ActivationFormat::kInt8PerToken},
};

struct Options {
  std::vector<std::string> models;
  std::string operands;
  std::vector<int64_t> tokens{1, 16, 64, 256, 1024, 4096, 16384};
  int launches = 1;
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

/// Milliseconds between two events around `count` launches, per launch.
template <class F>
double time_us(int count, F launch) {
  cudaEvent_t begin, end;
  cuda::check(cudaEventCreate(&begin), "cudaEventCreate");
  cuda::check(cudaEventCreate(&end), "cudaEventCreate");
  launch();
  std::vector<float> times;
  for (int repeat = 0; repeat < 3; ++repeat) {
    cuda::check(cudaEventRecord(begin), "cudaEventRecord");
    for (int i = 0; i < count; ++i) launch();
    cuda::check(cudaEventRecord(end), "cudaEventRecord");
    cuda::check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float ms = 0;
    cuda::check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1000.0 / count;
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

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), machine_(measure_limits(BackendKind::kCuda)) {}

  void run(const ModelShape& shape, const Operands& operands) {
    const LayerSpec& spec = shape.spec;
    const int32_t halves = spec.activation.gated() ? 2 : 1;
    const Weights gate_up(spec.num_experts, halves * spec.intermediate_size, spec.expert_width(),
                          halves, operands);
    const Weights down(spec.num_experts, spec.expert_width(), spec.intermediate_size, 1, operands);
    for (const int64_t tokens : options_.tokens) {
      time_tokens(shape, operands, gate_up, down, tokens);
    }
  }
  json record() const { return {{"device", cuda_backend()->device_name({})}, {"results", rows_}}; }
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

  void time_tokens(const ModelShape& shape, const Operands& operands, const Weights& gate_up,
                   const Weights& down, int64_t tokens) {
    const LayerSpec& spec = shape.spec;
    const int num_sms = cuda::device_facts(0).num_sms;
    const Rows input(tokens, spec.expert_width(), operands, operands.activations);
    const sm90::Scaling scaling = sm90::scaling_of(input.stored, gate_up.weights);
    const auto work = [&](const WeightRows& weights, bool gathers) {
      return grouped_gemm_work(spec.num_experts, spec.top_k, tokens, weights.num_rows,
                               weights.rows.row_bytes, gathers, scaling == sm90::Scaling::kBlock);
    };
    GroupedGemmWork works[2] = {work(gate_up.weights, true), work(down.weights, false)};
    works[0].long_activation = is_long(spec.activation.kind);
    const std::vector<GroupedGemmConfig> configs = sm90::configs_of(operands.format, scaling);
    const GroupedGemmConfigs chosen = best_configs(configs, works[0], works[1], num_sms);
    std::vector<Run> runs;
    for (const GroupedGemmConfig& config : configs) {
      const auto us = [&](const GroupedGemmWork& w) {
        return grouped_gemm_clocks(config, w, num_sms) / gemm_cost::kMatrixClock * 1e6;
      };
      Run run;
      run.config = config;
      run.gate_up_predicted = us(works[0]);
      run.down_predicted = us(works[1]);
      time_config(spec, operands, gate_up, down, input, tokens, run);
      runs.push_back(run);
    }
    for (const Run& run : runs) add(shape, operands, tokens, run, chosen);
    compare(runs, chosen, fmt::format("{} {} T {}", shape.name, operands.name, tokens));
  }

  /// The chosen pair of tiles beside the best one that was measured.
  void compare(const std::vector<Run>& runs, const GroupedGemmConfigs& chosen,
               const std::string& which) {
    double best = 1e30, us = 0, predicted = 0;
    for (const Run& first : runs) {
      for (const Run& second : runs) {
        if (first.config.block_m % second.config.block_m != 0) continue;
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

  void time_config(const LayerSpec& spec, const Operands& operands, const Weights& gate_up,
                   const Weights& down, const Rows& input, int64_t tokens, Run& run) const {
    const GroupedGemmConfig& config = run.config;
    const int num_sms = cuda::device_facts(0).num_sms;
    const int64_t capacity = sort_capacity(tokens, spec.top_k, spec.num_experts, config.block_m);
    const std::vector<int32_t> host_ids = random_ids(tokens, spec.top_k, spec.num_experts);
    const DeviceBuffer ids(tokens * spec.top_k * 4), sorted(capacity * 4), weights(capacity * 4);
    const DeviceBuffer experts(capacity * 4), valid(8), counter(16);
    ids.copy_from_host(0, host_ids.data(), ids.bytes());
    const SortPlan plan = plan_sort(tokens, spec.top_k, spec.num_experts, config.block_m);
    const DeviceBuffer scratch(plan.workspace_bytes + 16);
    const auto num_blocks = static_cast<int32_t>(capacity / config.block_m);
    cuda::sort({.topk_ids = ids.as<const int32_t>(),
                .tokens = {.limit = tokens},
                .top_k = static_cast<int32_t>(spec.top_k),
                .num_experts = static_cast<int32_t>(spec.num_experts),
                .unit_size = config.block_m,
                .capacity = static_cast<int32_t>(capacity),
                .num_blocks = num_blocks,
                .num_valid = 1,
                .sorted_ids = sorted.as<int32_t>(),
                .sorted_weights = weights.as<int32_t>(),
                .sorted_expert_ids = experts.as<int32_t>(),
                .num_valid_ids = valid.as<int32_t>()},
               plan, scratch.data(), 0, {});
    const Rows hidden(capacity, spec.intermediate_size, operands, operands.activations);
    const DeviceBuffer intermediate(capacity * spec.intermediate_size * 2);
    const DeviceBuffer output(tokens * spec.top_k * spec.expert_width() * 2);
    sm90::GroupedGemmJob first{.sorted = {.ids = sorted.as<const int32_t>(),
                                          .experts = experts.as<const int32_t>(),
                                          .num_valid = valid.as<const int32_t>(),
                                          .weights = weights.as<const float>(),
                                          .num_blocks = num_blocks,
                                          .block_rows = config.block_m,
                                          .top_k = static_cast<int32_t>(spec.top_k)},
                               .tile_counter = counter.as<uint32_t>(),
                               .source = sm90::RowSource::kToken,
                               .input = input.stored,
                               .num_input_rows = tokens,
                               .weights = gate_up.weights,
                               .num_experts = spec.num_experts,
                               .block_scales = gate_up.table.as<const float>(),
                               .activation = &spec.activation,
                               .output = intermediate.data(),
                               .output_stride = spec.intermediate_size};
    sm90::GroupedGemmJob second = first;
    second.source = sm90::RowSource::kSorted;
    second.input = hidden.stored;
    second.num_input_rows = capacity;
    second.weights = down.weights;
    second.block_scales = down.table.as<const float>();
    second.activation = nullptr;
    second.output_per_pair = true;
    second.output = output.data();
    second.output_stride = spec.expert_width();
    const auto us = [&](const sm90::GroupedGemmJob& job) {
      const CUtensorMap map = sm90::weight_map(job.weights, spec.num_experts, config);
      return time_us(options_.launches, [&] {
        cuda::check(cudaMemsetAsync(counter.data(), 0, 16), "cudaMemsetAsync");
        sm90::grouped_gemm(job, config, map, num_sms, {});
      });
    };
    run.gate_up_us = us(first);
    run.down_us = us(second);
  }

  void add(const ModelShape& shape, const Operands& operands, int64_t tokens, const Run& run,
           const GroupedGemmConfigs& chosen) {
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
    const bool first = run.config == chosen.gate_up, second = run.config == chosen.down;
    rows_.push_back({{"model", shape.name},
                     {"operands", operands.name},
                     {"tokens", tokens},
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

  double peak_gflops(const Operands& operands) const {
    return operands.format == Format::kBf16   ? machine_.bf16_gflops
           : operands.format == Format::kInt8 ? machine_.int8_gops
                                              : machine_.fp8_gflops;
  }

  Options options_;
  MachineLimits machine_;
  json rows_ = json::array();
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
  app.add_option("--launches", options.launches, "timed together")->capture_default_str();
  app.add_option("--json", options.out, "where the record goes");
  CLI11_PARSE(app, argc, argv);
  try {
    Bench bench(options);
    for (const std::string& model : options.models) {
      for (const Operands& operands : kOperands) {
        if (std::string(operands.name).find(options.operands) == std::string::npos) continue;
        bench.run(switchyard::model_shape(model), operands);
      }
    }
    bench.print_summary();
    if (!options.out.empty()) std::ofstream(options.out) << bench.record().dump(1) << '\n';
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_prefill: {}\n", error.what());
    return 1;
  }
  return 0;
}
