// gate_up, down and dense over packed CPU experts, and the linear layers, against the reference.
#include <fmt/format.h>

#include <cmath>

#include "steps/cpu_experts_fixture.h"

namespace switchyard::test {
namespace {

/// The sorted-ids form of a call's routing, by the CPU's own sort.
struct Sorted {
  Buffer ids, weights, expert_ids, num_valid;
  int64_t unit_size;

  Sorted(const LayerSpec& spec, const ExpertsCall& call, int64_t unit) : unit_size(unit) {
    const int64_t capacity =
        ops::sort_capacity(call.size(), spec.top_k, spec.num_experts, unit_size);
    ids = Buffer(DataType::kI32, {capacity});
    weights = Buffer(DataType::kF32, {capacity});
    expert_ids = Buffer(DataType::kI32, {capacity / unit_size});
    num_valid = Buffer(DataType::kI32, {2});
    cpu_backend().sort({.topk_ids = call.topk_ids,
                        .topk_weights = call.topk_weights,
                        .num_experts = spec.num_experts,
                        .unit_size = unit_size,
                        .sorted_ids = ids,
                        .sorted_weights = weights,
                        .sorted_expert_ids = expert_ids,
                        .num_valid_ids = num_valid},
                       {});
  }
  ops::GateUpArgs gate_up(const LayerSpec& spec, const TensorView& input,
                          const TensorView& output) const {
    return {.hidden_states = input,
            .sorted_ids = ids,
            .sorted_expert_ids = expert_ids,
            .num_valid_ids = num_valid,
            .sorted_weights = weights,
            .unit_size = unit_size,
            .top_k = spec.top_k,
            .output = output};
  }
  ops::DownArgs down(const LayerSpec& spec, const TensorView& input,
                     const TensorView& output) const {
    return {.intermediate = input,
            .sorted_ids = ids,
            .sorted_expert_ids = expert_ids,
            .num_valid_ids = num_valid,
            .sorted_weights = weights,
            .unit_size = unit_size,
            .top_k = spec.top_k,
            .output = output};
  }
};

/// [T, K, C] as [T * K, C].
TensorView flat(const Buffer& buffer) {
  const TensorView& view = buffer.view();
  return TensorView::contiguous(view.data, view.type,
                                {view.extent(0) * view.extent(1), view.extent(2)});
}

TensorView as_one_row(const Buffer& buffer) {
  return TensorView::contiguous(buffer.view().data, buffer.view().type, {1, buffer.size()});
}

TEST(CpuOps, GateUpAndDownMatchTheReferenceAndSkipWhatIsNotRouted) {
  Random random(41);
  for (const FormatCase& c : format_cases()) {
    for (const WeightPosition position : {WeightPosition::kOutput, WeightPosition::kInput}) {
      SCOPED_TRACE(fmt::format("{}, weight on {}", c.name,
                               position == WeightPosition::kInput ? "input" : "output"));
      LayerSpec spec = odd_spec(c.format, c.block);
      spec.weight_position = position;
      const BothBackends both(spec, {.matrix = c.matrix, .biases = true});
      ExpertsCall call = random_call(random, spec, 37, DataType::kBf16);
      call.topk_ids.set(5, -1);
      call.topk_ids.as<int32_t>()[60] = 6;  // one past the last expert
      const Sorted sorted(spec, call, 16);
      const Buffer input = Buffer::normal(random, DataType::kF32, {37, 3, spec.intermediate_size});
      const ErrorBound bound = error_bound(spec, BackendKind::kCpu, DataType::kF32);

      Buffer outputs[2][2];
      for (int b = 0; b < 2; ++b) {
        const PackedExperts& experts = b == 0 ? both.cpu() : both.reference();
        const GuardedMemory workspace(experts.workspace_bytes(37, spec.top_k));
        outputs[b][0] = Buffer(DataType::kF32, {37, 3, spec.intermediate_size});
        outputs[b][1] = Buffer(DataType::kF32, {37, 3, spec.hidden_size});
        experts.gate_up(sorted.gate_up(spec, call.hidden_states, outputs[b][0]),
                        workspace.workspace(), {});
        experts.down(sorted.down(spec, input, outputs[b][1]), workspace.workspace(), {});
        EXPECT_TRUE(workspace.canaries_intact());
      }
      for (int stage = 0; stage < 2; ++stage) {
        Buffer& output = outputs[0][stage];
        const int64_t cols = output.view().extent(2);
        for (const int64_t pair : {5, 60}) {
          EXPECT_TRUE(output.untouched(pair * cols, (pair + 1) * cols));
          for (int64_t i = pair * cols; i < (pair + 1) * cols; ++i) {
            output.set(i, 0);
            outputs[1][stage].set(i, 0);
          }
        }
        EXPECT_TRUE(within(flat(output), flat(outputs[1][stage]), bound));
      }
    }
  }
}

TEST(CpuOps, DenseSumsEveryExpertWithAlpha) {
  Random random(42);
  for (const FormatCase& c :
       {FormatCase{"bf16", Format::kBf16, {}}, FormatCase{"mxfp4", Format::kMxfp4, {1, 32}}}) {
    const LayerSpec spec = odd_spec(c.format, c.block);
    const BothBackends both(spec);
    const Buffer hidden = Buffer::normal(random, DataType::kBf16, {30, spec.hidden_size});
    Buffer alpha = Buffer::normal(random, DataType::kF32, {30, spec.num_experts});
    for (int64_t i = 0; i < alpha.size(); ++i) {
      const int64_t token = i / spec.num_experts;  // token 0: all; token 1: none; others: some
      if (token == 1 || (token > 1 && random.uniform() < 0.5)) alpha.set(i, 0);
    }
    Buffer outputs[2];
    for (int b = 0; b < 2; ++b) {
      const PackedExperts& experts = b == 0 ? both.cpu() : both.reference();
      const GuardedMemory workspace(experts.workspace_bytes(30, spec.top_k));
      outputs[b] = Buffer(DataType::kF32, {30, spec.hidden_size});
      experts.dense({.hidden_states = hidden, .alpha = alpha, .output = outputs[b]},
                    workspace.workspace(), {});
      EXPECT_TRUE(workspace.canaries_intact());
    }
    EXPECT_TRUE(
        within(outputs[0], outputs[1], error_bound(spec, BackendKind::kCpu, DataType::kF32)));
  }
}

TEST(CpuOps, LinearKeepsFloatProducts) {
  Random random(43);
  for (const FormatCase& c : format_cases()) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 200}, {40, 72}, {129, 64}}) {
      SCOPED_TRACE(fmt::format("{} [{}, {}]", c.name, rows, cols));
      MatrixOptions options = c.matrix;
      options.format = c.format;
      options.scale_block = c.block;
      const OwnedMatrix owned = random_matrix(random, rows, cols, options);
      const Buffer bias = Buffer::normal(random, DataType::kBf16, {rows});
      const auto on_cpu = cpu_backend().pack_linear(owned.matrix, bias, {});
      const auto exact = reference_backend().pack_linear(owned.matrix, bias, {});
      const Buffer input = Buffer::normal(random, DataType::kBf16, {700, cols});
      const Buffer addend = Buffer::normal(random, DataType::kF32, {700, rows});
      for (const LinearEpilogue epilogue : {LinearEpilogue::kNone, LinearEpilogue::kSigmoid}) {
        const auto run = [&](const PackedLinear& linear, int64_t num_tokens) {
          const GuardedMemory workspace(linear.workspace_bytes(num_tokens));
          Buffer output(DataType::kF32, {num_tokens, rows});
          const TensorView tokens =
              TensorView::contiguous(input.view().data, DataType::kBf16, {num_tokens, cols});
          linear.run({.input = tokens, .addend = addend, .epilogue = epilogue, .output = output},
                     workspace.workspace(), {});
          EXPECT_TRUE(workspace.canaries_intact());
          return output;
        };
        const Buffer output = run(*on_cpu, 700);
        // Errors count against the whole output: a single column has rows near zero.
        EXPECT_TRUE(within(as_one_row(output), as_one_row(run(*exact, 700)),
                           rounding_bound(cols, DataType::kF32)));
        for (const int64_t fewer : {0, 1, 5}) {
          const Buffer part = run(*on_cpu, fewer);
          for (int64_t i = 0; i < part.size(); ++i) ASSERT_EQ(part.at(i), output.at(i));
        }
      }
    }
  }
}

TEST(CpuPacking, ReportsEveryExpertAndReleasesIt) {
  const LayerSpec spec = odd_spec();
  const RandomWeights weights(spec);
  ExpertSource source = weights.weights().experts;
  std::vector<std::atomic<int>> balance(static_cast<size_t>(spec.num_experts));
  const auto load = source.load;
  source.load = [&](int64_t e) {
    ++balance[static_cast<size_t>(e)];
    return load(e);
  };
  source.release = [&](int64_t e) { --balance[static_cast<size_t>(e)]; };
  for (const int num_threads : {1, 2, 8}) {
    std::vector<int64_t> reported;
    LayerOptions options{.num_threads = num_threads};
    options.on_progress = [&](int64_t done, int64_t total) {
      EXPECT_EQ(total, spec.num_experts);
      reported.push_back(done);
    };
    cpu_backend().pack_experts(spec, source, options);
    EXPECT_EQ(reported, (std::vector<int64_t>{1, 2, 3, 4, 5, 6}));
    for (const auto& loads : balance) EXPECT_EQ(loads.load(), 0);
  }
}

TEST(CpuPacking, PassesOnWhatTheSourceThrowsAndReleases) {
  const LayerSpec spec = odd_spec();
  const RandomWeights weights(spec);
  ExpertSource source = weights.weights().experts;
  std::atomic<int> held{0};
  const auto load = source.load;
  source.load = [&](int64_t e) {
    if (e == 3) throw Error(ErrorCode::kInvalidFile, "expert 3 is missing");
    ++held;
    return load(e);
  };
  source.release = [&](int64_t) { --held; };
  for (const int num_threads : {1, 3, 8}) {
    try {
      cpu_backend().pack_experts(spec, source, {.num_threads = num_threads});
      FAIL() << "packed without expert 3";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidFile);
      EXPECT_STREQ(error.what(), "expert 3 is missing");
    }
    EXPECT_EQ(held.load(), 0);
  }
}

TEST(CpuPacking, PackedBytesAreStoredBytes) {
  LayerSpec spec{.num_experts = 2, .top_k = 1, .hidden_size = 1024, .intermediate_size = 512};
  const double weights = 2.0 * 3 * 1024 * 512;
  const std::pair<FormatCase, double> cases[] = {
      {{"mxfp4", Format::kMxfp4, {1, 32}}, 17.0 / 32},
      {{"nvfp4", Format::kNvfp4, {1, 16}}, 9.0 / 16},
      {{"int4", Format::kInt4, {1, 128}, {.scale_type = DataType::kBf16}}, 0.5 + 2.0 / 128},
      {{"int8", Format::kInt8, {1, 0}}, 1.0 + (4.0 / 1024 + 4.0 / 1024 + 4.0 / 512) / 3},
      {{"fp8", Format::kFp8E4m3, {128, 128}}, 1.0 + 4.0 / 128},
      {{"bf16", Format::kBf16, {}}, 2.0}};
  for (const auto& [c, bytes_per_weight] : cases) {
    spec.weight_format = c.format;
    spec.weight_scale_block = c.block;
    const RandomWeights random_weights(spec, {.matrix = c.matrix});
    const auto experts = cpu_backend().pack_experts(spec, random_weights.weights().experts, {});
    EXPECT_NEAR(static_cast<double>(experts->packed_bytes()) / weights, bytes_per_weight, 0.004)
        << c.name;
  }
}

TEST(CpuPlan, CountsBytesAndFlopsAndPredictsFromLimits) {
  LayerSpec spec{.num_experts = 8, .top_k = 2, .hidden_size = 128, .intermediate_size = 96};
  spec.weight_format = Format::kMxfp4;
  spec.weight_scale_block = {1, 32};
  const RandomWeights weights(spec);
  const auto experts = cpu_backend().pack_experts(spec, weights.weights().experts, {});
  const MachineLimits limits{.read_gbps = 30, .copy_gbps = 20, .f32_gflops = 200, .int8_gops = 900};
  Plan plan;
  experts->plan(64, 2, limits, plan);
  ASSERT_EQ(plan.steps.size(), 3u);
  double flops = 0;
  double bytes = 0;
  for (const PlanStep& step : plan.steps) {
    EXPECT_GT(step.predicted_us, 0) << step.step;
    flops += step.flops;
    bytes += step.bytes;
  }
  EXPECT_DOUBLE_EQ(flops, 2.0 * 64 * 2 * 3 * 128 * 96);
  EXPECT_GT(bytes, static_cast<double>(experts->packed_bytes()) * 0.99);
  EXPECT_NE(plan.steps[1].why.find("16.0 rows per expert"), std::string::npos);
}

TEST(CpuLimits, AreMeasuredAndPlausible) {
  const MachineLimits limits = measure_limits(BackendKind::kCpu, 2);
  EXPECT_EQ(limits.num_threads, 2);
  for (const double rate : {limits.read_gbps, limits.copy_gbps}) {
    EXPECT_GT(rate, 0.5);
    EXPECT_LT(rate, 5000);
  }
  EXPECT_GT(limits.f32_gflops, 2);
  EXPECT_GT(limits.int8_gops, limits.f32_gflops);
  EXPECT_THROW(measure_limits(BackendKind::kReference), Error);
}

TEST(CpuLimits, ReadMeterReadsAnywhereOfItsMemory) {
  const auto meter = read_meter(2);
  for (int i = 0; i < 40; ++i) {  // more parts than its memory has
    const double gbps = meter();
    EXPECT_GT(gbps, 0.1);
    EXPECT_LT(gbps, 5000);
  }
}

/// Runs everything on the calling thread and counts what it was given.
class CountingExecutor final : public Executor {
 public:
  int num_threads() const noexcept override { return 2; }
  void run(void (*fn)(void* context, int thread), void* context) override {
    ++num_runs;
    fn(context, 1);
    fn(context, 0);
  }
  int num_runs = 0;
};

TEST(CpuOps, StepsRunOnTheGivenExecutor) {
  constexpr int64_t kTokens = 1024, kExperts = 64, kTopK = 4, kHidden = 256;
  Random random(45);
  CountingExecutor executor;
  const auto runs_of = [&](const auto& step) {
    const int before = executor.num_runs;
    step(ops::Execution{.executor = &executor});
    return executor.num_runs - before;
  };
  const Buffer logits = Buffer::normal(random, DataType::kF32, {kTokens, kExperts});
  const Buffer ids(DataType::kI32, {kTokens, kTopK});
  const Buffer weights(DataType::kF32, {kTokens, kTopK});
  EXPECT_GT(runs_of([&](const ops::Execution& where) {
              ops::route({}, {.router_logits = logits, .topk_ids = ids, .topk_weights = weights},
                         where);
            }),
            0);
  const int64_t capacity = ops::sort_capacity(kTokens, kTopK, kExperts, 32);
  const Buffer sorted_ids(DataType::kI32, {capacity});
  const Buffer sorted_weights(DataType::kF32, {capacity});
  const Buffer expert_ids(DataType::kI32, {capacity / 32});
  const Buffer num_valid(DataType::kI32, {2});
  const Buffer moe_buf(DataType::kF32, {kTokens, kHidden});
  EXPECT_GT(runs_of([&](const ops::Execution& where) {
              ops::sort({.topk_ids = ids,
                         .topk_weights = weights,
                         .num_experts = kExperts,
                         .unit_size = 32,
                         .sorted_ids = sorted_ids,
                         .sorted_weights = sorted_weights,
                         .sorted_expert_ids = expert_ids,
                         .num_valid_ids = num_valid,
                         .moe_buf = moe_buf},
                        where);
            }),
            0);
  const Buffer input = Buffer::normal(random, DataType::kBf16, {kTokens, kHidden});
  const Buffer codes(DataType::kI8, {kTokens, kHidden});
  const Buffer scales(DataType::kF32, {kTokens, kHidden / 32});
  EXPECT_GT(runs_of([&](const ops::Execution& where) {
              ops::quantize({.input = input,
                             .format = Format::kInt8,
                             .scale_block = {1, 32},
                             .values = codes,
                             .scales = scales},
                            where);
            }),
            0);
}

TEST(CpuOps, LayerRoutesOnItsExecutor) {
  LayerSpec spec = odd_spec();
  spec.num_experts = 64;
  const RandomWeights weights(spec);
  CountingExecutor executor;
  const Layer layer =
      Layer::create(spec, weights.weights(), {.backend = BackendKind::kCpu, .executor = &executor});
  const Layer other = Layer::create(spec, weights.weights(), {.backend = BackendKind::kCpu});
  constexpr int64_t kTokens = 600;
  Random random(46);
  const Buffer x = Buffer::normal(random, DataType::kF32, {kTokens, spec.hidden_size});
  const Buffer logits = Buffer::normal(random, DataType::kF32, {kTokens, spec.num_experts});
  const auto forward = [&](const Layer& on, bool routed, const Buffer& ids, const Buffer& chosen) {
    const GuardedMemory workspace(on.workspace_bytes(kTokens));
    Buffer y(DataType::kF32, {kTokens, spec.hidden_size});
    ForwardArgs args{.hidden_states = x, .output = y};
    if (routed) {
      args.topk_ids = ids;
      args.topk_weights = chosen;
    } else {
      args.router_logits = logits;
      args.topk_ids_out = ids;
      args.topk_weights_out = chosen;
    }
    on.forward(args, workspace.workspace());
    return y;
  };
  const Buffer ids(DataType::kI32, {kTokens, spec.top_k});
  const Buffer chosen(DataType::kF32, {kTokens, spec.top_k});
  const Buffer with_routing = forward(layer, false, ids, chosen);
  const int num_runs = executor.num_runs;
  const Buffer without_routing = forward(layer, true, ids, chosen);
  const int num_runs_routed = executor.num_runs - num_runs;
  EXPECT_TRUE(same_bits(with_routing, without_routing));
  EXPECT_TRUE(same_bits(with_routing, forward(other, false, ids, chosen)));
  executor.num_runs = 0;
  forward(layer, false, ids, chosen);
  EXPECT_EQ(executor.num_runs, num_runs_routed + 1);  // route: one more
}

}  // namespace
}  // namespace switchyard::test
