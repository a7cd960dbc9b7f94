#include "cli/bench_measure.h"

#include <algorithm>
#include <chrono>

#include "cli/bench_routing.h"
#include "cli/layer_cost.h"
#include "cli/load_layer.h"
#include "cli/random.h"
#include "cli/statistics.h"

namespace switchyard::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kRoutingSeed = 7;
constexpr uint64_t kInputSeed = 11;
constexpr double kMeterEveryUs = 4000;  // of timed calls: what a read may cost beside them
constexpr size_t kMinSamples = 3;
constexpr size_t kMaxSamples = 1000;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Random, never zeros: data changes the power, and so the clock, of a multiplier.
HostTensor random_hidden_states(int64_t tokens, int64_t hidden_size) {
  const HostTensor values(DataType::kF32, {tokens, hidden_size});
  Random random(kInputSeed);
  auto* out = values.as<float>();
  for (int64_t i = 0; i < tokens * hidden_size; ++i) out[i] = static_cast<float>(random.normal());
  return convert(values.view(), DataType::kBf16);
}

/// Routing of one call: made before the clock starts, chosen experts read after it stops.
struct Call {
  HostTensor router_logits;
  HostTensor input_ids;
  HostTensor topk_ids;
  Runner::Prepared prepared{};
};

bool on_gpu(const BenchModel& model) {
  return model.layers.front().backend() == BackendKind::kCuda;
}

class Loop {
 public:
  Loop(const BenchModel& model, int64_t tokens, const MeasureOptions& options)
      : model_(model),
        skew_(options.skew),
        read_meter_(options.read_meter),
        hidden_states_(random_hidden_states(tokens, model.spec.hidden_size)),
        output_(DataType::kBf16, {tokens, model.spec.hidden_size}),
        scratch_(make_scratch(model.layers.front(), tokens)),
        cache_(options.l3_bytes / std::max<int64_t>(model.expert_bytes, 1)) {
    for (const Layer& layer : model.layers) runners_.emplace_back(layer, scratch_);
    // Calls of one burst run back to back, as layers do in an engine, on at most 4 MiB of logits.
    // A graph has at least 8.
    constexpr int64_t kBurstBytes = 4 << 20;
    const int64_t logits_bytes = tokens * model.spec.num_experts * 4;
    const int64_t burst = std::clamp<int64_t>(kBurstBytes / logits_bytes, on_gpu(model) ? 8 : 1,
                                              on_gpu(model) ? 32 : 64);
    for (int64_t i = 0; i < burst; ++i) {
      calls_.push_back({HostTensor(DataType::kF32, {tokens, model.spec.num_routed()}),
                        HostTensor(DataType::kI64, {tokens}),
                        HostTensor(DataType::kI32, {tokens, model.spec.top_k}),
                        {}});
    }
  }

  void burst(Measurement& result, std::vector<double>& imbalances, double deadline_s,
             Clock::time_point start) {
    for (Call& call : calls_) draw(call);
    // The first call of a burst wakes the threads; where there is only one it is long enough not
    // to matter.
    if (calls_.size() > 1) forward(calls_[0]);
    double before = plain_read();
    double us_since_read = 0;
    size_t first = result.samples.size();  // without a read after it
    const auto read = [&] {
      const double after = plain_read();
      for (; first < result.samples.size(); ++first) {
        result.samples[first].read_gbps = (before + after) / 2;
      }
      before = after;
      us_since_read = 0;
    };
    for (Call& call : calls_) {
      const auto begin = Clock::now();
      const size_t layer = forward(call);
      const double us = seconds_since(begin) * 1e6;
      record(call, layer, us, result, imbalances);
      if ((us_since_read += us) >= kMeterEveryUs) read();
      if (result.samples.size() >= kMinSamples && seconds_since(start) > deadline_s) break;
    }
    if (first < result.samples.size()) read();
  }

  /// All calls in one CUDA graph, each on the next layer in turn.
  void graph(Measurement& result, std::vector<double>& imbalances, double budget_s) {
    for (Call& call : calls_) draw(call);
    const auto layer_of = [this](size_t i) { return i % model_.layers.size(); };
    const CallTimes times = time_calls(
        0, static_cast<int>(calls_.size()),
        [&](int i, Stream stream) {
          const auto at = static_cast<size_t>(i);
          model_.layers[layer_of(at)].forward(calls_[at].prepared.args, scratch_.workspace(),
                                              stream);
        },
        budget_s);
    result.single_us = times.single_us;
    for (size_t i = 0; i < calls_.size(); ++i) {
      record(calls_[i], layer_of(i), times.chain_us, result, imbalances);
    }
  }

  void warm_up() {
    draw(calls_[0]);
    for (size_t i = 0; i < runners_.size(); ++i) forward(calls_[0]);
  }
  double warm_fraction() const { return cache_.hit_fraction(); }

 private:
  double plain_read() const { return read_meter_ ? read_meter_() : 0; }

  void draw(Call& call) {
    ++draw_;
    const uint64_t layer = draw_ % runners_.size();
    fill_router_logits(call.router_logits.view(), skew_, kRoutingSeed + layer,
                       kRoutingSeed + (draw_ << 20));
    Random random(draw_);
    for (int64_t t = 0; model_.vocab_size > 0 && t < call.input_ids.view().extent(0); ++t) {
      call.input_ids.as<int64_t>()[t] = random.below(model_.vocab_size);
    }
    call.prepared = runners_.front().prepare(
        {.hidden_states = hidden_states_.view(),
         .output = output_.view(),
         .router_logits = call.router_logits.view(),
         .input_ids = model_.spec.routing.hash ? call.input_ids.view() : TensorView{},
         .topk_ids_out = call.topk_ids.view()});
  }

  void record(const Call& call, size_t layer, double us, Measurement& result,
              std::vector<double>& imbalances) {
    Runner::fetch(call.prepared);
    const auto experts = distinct_experts(call.topk_ids.view(), model_.spec.num_experts);
    for (const int32_t expert : experts) cache_.read(static_cast<int64_t>(layer), expert);
    result.samples.push_back({.us = us, .distinct_experts = static_cast<int64_t>(experts.size())});
    imbalances.push_back(imbalance(call.topk_ids.view(), model_.spec.num_experts));
  }

  size_t forward(const Call& call) {
    const size_t layer = next_layer_;
    next_layer_ = (next_layer_ + 1) % runners_.size();
    runners_[layer].run(call.prepared);
    return layer;
  }

  const BenchModel& model_;
  double skew_;
  ReadMeter read_meter_;
  HostTensor hidden_states_;
  HostTensor output_;
  DeviceMemory scratch_;
  CacheModel cache_;
  std::vector<Runner> runners_;
  std::vector<Call> calls_;
  size_t next_layer_ = 0;
  uint64_t draw_ = 0;
};

}  // namespace

Measurement measure(const BenchModel& model, int64_t tokens, const MeasureOptions& options) {
  Measurement result;
  result.tokens = tokens;
  result.plan = model.layers.front().plan(tokens);
  const auto start = Clock::now();
  Loop loop(model, tokens, options);
  std::vector<double> imbalances;
  if (on_gpu(model)) {
    constexpr double kMostSeconds = 1;  // of replays; more would only warm the GPU
    loop.graph(result, imbalances, std::min(options.budget_s, kMostSeconds));
  } else {
    loop.warm_up();
    do {
      loop.burst(result, imbalances, options.budget_s, start);
    } while (result.samples.size() < kMinSamples ||
             (result.samples.size() < kMaxSamples && seconds_since(start) < options.budget_s));
  }
  result.warm_fraction = loop.warm_fraction();
  result.imbalance = median(imbalances);
  return result;
}

Summary summarize(const BenchModel& model, const Measurement& measurement,
                  const Calibration& machine) {
  const double flops = expert_flops(model.spec, measurement.tokens);
  const double peak_us = flops / (arithmetic_peak(model.spec, machine.limits).gflops * 1e3);
  std::vector<double> us;
  std::vector<double> gbps;
  std::vector<double> limit_us;
  std::vector<double> read_us;
  std::vector<double> read_gbps;
  std::vector<double> share;
  Summary summary;
  int64_t num_memory_bound = 0;
  for (const Sample& sample : measurement.samples) {
    const auto bytes =
        static_cast<double>(sample.distinct_experts * model.expert_bytes + model.shared_bytes);
    read_us.push_back(sample.read_gbps > 0 ? bytes / (sample.read_gbps * 1e3)
                                           : machine.read_us(bytes));
    read_gbps.push_back(bytes / (read_us.back() * 1e3));
    const double floor_us = std::max(read_us.back(), peak_us);
    us.push_back(sample.us);
    gbps.push_back(bytes / (sample.us * 1e3));
    limit_us.push_back(floor_us);
    share.push_back(floor_us / sample.us);
    num_memory_bound += read_us.back() >= peak_us ? 1 : 0;
    summary.distinct_experts += static_cast<double>(sample.distinct_experts);
  }
  const auto num_samples = static_cast<double>(measurement.samples.size());
  summary.distinct_experts /= num_samples;
  summary.median_us = median(us);
  summary.p10_us = quantile(us, 0.1);
  summary.p90_us = quantile(us, 0.9);
  summary.gbps = median(gbps);
  summary.gflops = flops / (summary.median_us * 1e3);
  summary.limit_us = median(limit_us);
  summary.share = median(share);
  summary.read_us = median(read_us);
  summary.read_gbps = median(read_gbps);
  summary.memory_bound = 2.0 * static_cast<double>(num_memory_bound) >= num_samples;
  return summary;
}

}  // namespace switchyard::cli
