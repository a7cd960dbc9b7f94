// A token's result is the same bits alone and in any batch, for every number of threads, every
// executor and every instruction set; and a forward allocates nothing.
#include <fmt/format.h>

#include <cstring>
#include <thread>

#include "steps/cpu_experts_fixture.h"
#include "support/allocations.h"

namespace switchyard::test {
namespace {

std::vector<std::string> available_levels() {
  std::vector<std::string> levels;
  for (const char* level :
       {"avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx"}) {
    try {
      cpu_backend().device_name({.cpu_isa = level});
      levels.emplace_back(level);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    }
  }
  return levels;
}

/// The first `count` tokens of a call.
ExpertsCall first_tokens(const ExpertsCall& call, int64_t count) {
  const auto cut = [count](const Buffer& from) {
    const TensorView& view = from.view();
    Buffer to(view.type, {count, view.extent(1)});
    std::memcpy(to.as<char>(), from.as<char>(), static_cast<size_t>(to.bytes()));
    return to;
  };
  ExpertsCall part;
  part.hidden_states = cut(call.hidden_states);
  part.topk_ids = cut(call.topk_ids);
  part.topk_weights = cut(call.topk_weights);
  part.output_type = call.output_type;
  return part;
}

/// The same call with the same values in f32: bf16 hidden states may take kernels of their own.
ExpertsCall with_f32_hidden_states(const ExpertsCall& call) {
  ExpertsCall widened = first_tokens(call, call.size());
  widened.hidden_states =
      Buffer(DataType::kF32, {call.size(), call.hidden_states.view().extent(1)});
  for (int64_t i = 0; i < call.hidden_states.size(); ++i) {
    widened.hidden_states.set(i, call.hidden_states.at(i));
  }
  return widened;
}

/// Rows of `part` equal the first rows of `whole`.
bool rows_equal(const Buffer& part, const Buffer& whole) {
  return std::memcmp(part.as<char>(), whole.as<char>(), static_cast<size_t>(part.bytes())) == 0;
}

/// Runs the indices one after the other, last first.
class BackwardExecutor final : public Executor {
 public:
  int num_threads() const noexcept override { return 3; }
  void run(void (*fn)(void* context, int thread), void* context) override {
    for (int i = 2; i >= 0; --i) fn(context, i);
  }
};

TEST(CpuBits, SameForEveryBatchThreadCountAndInstructionSet) {
  const auto levels = available_levels();
  ASSERT_FALSE(levels.empty());
  BackwardExecutor backward;
  Random random(31);
  for (const FormatCase& c : format_cases()) {
    for (const ActivationFormat activations : {ActivationFormat::kAuto, ActivationFormat::kNone}) {
      SCOPED_TRACE(fmt::format("{}, activations {}", c.name, to_string(activations)));
      LayerSpec spec = odd_spec(c.format, c.block);
      spec.hidden_size = 72;  // 3 blocks, the last one partial
      spec.intermediate_size = 40;
      spec.activation_format = activations;
      const RandomWeights weights(spec, {.matrix = c.matrix});
      const bool as_given = activations == ActivationFormat::kNone;
      const ExpertsCall thousand =
          random_call(random, spec, 1000, as_given ? DataType::kBf16 : DataType::kF32);
      const ExpertsCall widened = with_f32_hidden_states(thousand);
      const ExpertsCall batch = first_tokens(thousand, 64);
      const ExpertsCall alone = first_tokens(thousand, 1);
      Buffer expected;
      for (const std::string& level : levels) {
        for (const int num_threads : {1, 2, 3, 8}) {
          SCOPED_TRACE(fmt::format("{} on {} threads", level, num_threads));
          LayerOptions options{.num_threads = num_threads, .cpu_isa = level};
          if (num_threads == 3) options.executor = &backward;
          const auto experts = cpu_backend().pack_experts(spec, weights.weights().experts, options);
          const Buffer whole = run_experts(*experts, spec, thousand);
          if (expected.view().empty()) expected = whole.clone();
          ASSERT_TRUE(same_bits(whole, expected));
          ASSERT_TRUE(rows_equal(run_experts(*experts, spec, batch), expected));
          ASSERT_TRUE(rows_equal(run_experts(*experts, spec, alone), expected));
          ASSERT_TRUE(same_bits(run_experts(*experts, spec, widened), expected));
        }
      }
    }
  }
}

TEST(CpuBits, DownByExpertHasTheBitsOfDownByColumns) {
  // Three panels: 900 tokens share their products, with several items per expert; 1000 do not.
  Random random(36);
  LayerSpec spec = odd_spec(Format::kMxfp4, {1, 32});
  spec.hidden_size = 72;
  spec.top_k = 3;
  const RandomWeights weights(spec, {.biases = true});
  const ExpertsCall call = random_call(random, spec, 1000, DataType::kBf16);
  for (const int num_threads : {1, 3}) {
    const auto experts =
        cpu_backend().pack_experts(spec, weights.weights().experts, {.num_threads = num_threads});
    const Buffer whole = run_experts(*experts, spec, call);
    for (const int64_t count : {1, 900}) {
      EXPECT_TRUE(rows_equal(run_experts(*experts, spec, first_tokens(call, count)), whole))
          << count << " tokens on " << num_threads << " threads";
    }
  }
}

TEST(CpuBits, LargestIntegerSumsAreExactOnEveryInstructionSet) {
  // Activations of +-127 under the largest codes of one sign: what 16-bit sums can just hold.
  Random random(35);
  const FormatCase cases[] = {{"mxfp4", Format::kMxfp4, {1, 32}},
                              {"nvfp4", Format::kNvfp4, {1, 16}},
                              {"int4", Format::kInt4, {1, 32}},
                              {"int4 zero points", Format::kInt4, {1, 32}, {.zero_points = true}},
                              {"int8", Format::kInt8, {1, 0}}};
  for (const FormatCase& c : cases) {
    LayerSpec spec = odd_spec(c.format, c.block);
    spec.activation = {.kind = Activation::kRelu2};  // no gate: sums reach the output as they are
    spec.activation_format = ActivationFormat::kInt8Block32;
    for (const int code : {0x00, 0x77, 0x7f, 0x80, 0xf0, 0xf7, 0xff}) {
      SCOPED_TRACE(fmt::format("{}, bytes of {:#04x}", c.name, code));
      RandomWeights weights(spec, {.matrix = c.matrix});
      for (int64_t e = 0; e < spec.num_experts; ++e) {
        const ExpertWeights& expert = weights.expert(e);
        for (const WeightMatrix* m : {&expert.up, &expert.down}) {
          const auto bytes = static_cast<size_t>(m->rows * m->cols * element_bits(c.format) / 8);
          std::memset(m->values.as<uint8_t>(), code, bytes);
          if (m->zero_points.empty()) continue;
          std::memset(m->zero_points.as<uint8_t>(), code == 0 ? 15 : 0,
                      static_cast<size_t>(m->zero_points.num_elements()));
        }
      }
      ExpertsCall call = random_call(random, spec, 40, DataType::kF32);
      for (int64_t i = 0; i < call.hidden_states.size(); ++i) {
        const int64_t token = i / spec.hidden_size, col = i % spec.hidden_size;
        const bool negative = token % 3 == 1 || (token % 3 == 2 && col % 4 >= 2);
        call.hidden_states.set(i, negative ? -1.0 : 1.0);
      }
      const auto exact = reference_backend().pack_experts(spec, weights.weights().experts, {});
      const Buffer truth = run_experts(*exact, spec, call);
      for (const std::string& level : available_levels()) {
        const auto experts =
            cpu_backend().pack_experts(spec, weights.weights().experts, {.cpu_isa = level});
        EXPECT_TRUE(within(run_experts(*experts, spec, call), truth,
                           error_bound(spec, BackendKind::kCpu, call.output_type), call.topk_ids))
            << level;
      }
    }
  }
}

TEST(CpuBits, EveryActivationOnEveryInstructionSet) {
  Random random(32);
  for (const Activation kind :
       {Activation::kSwiGlu, Activation::kSwiGluClamp, Activation::kSwiGluOai,
        Activation::kGeGluTanh, Activation::kGeGlu, Activation::kSiTu, Activation::kRelu2}) {
    SCOPED_TRACE(to_string(kind));
    LayerSpec spec = odd_spec(Format::kBf16, {});
    spec.activation.kind = kind;
    const RandomWeights weights(spec, {.biases = true});
    const ExpertsCall call = random_call(random, spec, 50, DataType::kF16);
    Buffer expected;
    for (const std::string& level : available_levels()) {
      const auto experts =
          cpu_backend().pack_experts(spec, weights.weights().experts, {.cpu_isa = level});
      const Buffer output = run_experts(*experts, spec, call);
      if (expected.view().empty()) expected = output.clone();
      EXPECT_TRUE(same_bits(output, expected)) << level;
    }
  }
}

TEST(CpuBits, ConcurrentForwardsShareOnePool) {
  Random random(33);
  const LayerSpec spec = odd_spec();
  const RandomWeights weights(spec);
  const auto experts =
      cpu_backend().pack_experts(spec, weights.weights().experts, {.num_threads = 4});
  std::vector<ExpertsCall> calls;
  std::vector<Buffer> expected;
  for (int i = 0; i < 4; ++i) {
    calls.push_back(random_call(random, spec, 10 + 30 * i, DataType::kBf16));
    expected.push_back(run_experts(*experts, spec, calls.back()));
  }
  std::vector<int> mismatches(4, 0);
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        for (int round = 0; round < 20; ++round) {
          mismatches[i] += !same_bits(run_experts(*experts, spec, calls[i]), expected[i]);
        }
      });
    }
  }
  EXPECT_EQ(mismatches, std::vector<int>(4, 0));
}

TEST(CpuBits, RunAllocatesNothing) {
  Random random(34);
  for (const ActivationFormat activations :
       {ActivationFormat::kAuto, ActivationFormat::kNone, ActivationFormat::kFp8Block128}) {
    LayerSpec spec = odd_spec();
    spec.activation_format = activations;
    const RandomWeights weights(spec);
    const auto experts = cpu_backend().pack_experts(spec, weights.weights().experts, {});
    const ExpertsCall call = random_call(random, spec, 100, DataType::kBf16);
    const GuardedMemory workspace(experts->workspace_bytes(100, spec.top_k));
    const Buffer output(DataType::kBf16, {100, spec.hidden_size});
    const RunExpertsArgs args{.hidden_states = call.hidden_states,
                              .topk_ids = call.topk_ids,
                              .topk_weights = call.topk_weights,
                              .output = output};
    const int64_t before = num_allocations();
    experts->run(args, workspace.workspace(), {});
    EXPECT_EQ(num_allocations() - before, 0) << to_string(activations);
  }
}

TEST(CpuBits, UnknownOrMissingInstructionSetIsRefused) {
  try {
    cpu_backend().device_name({.cpu_isa = "avx3"});
    FAIL() << "accepted avx3";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(),
                 "cpu_isa is \"avx3\"; expected avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16 "
                 "or avx512_amx");
  }
}

}  // namespace
}  // namespace switchyard::test
