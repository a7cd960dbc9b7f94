// The CPU backend's routed experts against the reference: every format, scale form, activation and
// shape.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "steps/cpu_experts_fixture.h"

namespace switchyard::test {
namespace {

TEST(CpuExperts, EveryFormatMatchesTheReference) {
  Random random(11);
  for (const FormatCase& c : format_cases()) {
    for (const ActivationFormat activations : {ActivationFormat::kAuto, ActivationFormat::kNone}) {
      LayerSpec spec = odd_spec(c.format, c.block);
      spec.activation_format = activations;
      const BothBackends both(spec, {.matrix = c.matrix});
      // 40 tokens: 20 rows per expert, beyond the rows that are decoded in registers.
      for (const int64_t num_tokens : {0, 1, 2, 9, 40}) {
        const DataType type = num_tokens == 9 ? DataType::kF32 : DataType::kBf16;
        both.expect_same(random_call(random, spec, num_tokens, type),
                         fmt::format("{}, activations {}, {} tokens", c.name,
                                     to_string(activations), num_tokens));
      }
    }
  }
}

TEST(CpuExperts, SizesFromTinyToOneOffThePanel) {
  Random random(12);
  const std::pair<int64_t, int64_t> sizes[] = {{8, 8},   {32, 32}, {40, 72},  {72, 40},
                                               {31, 33}, {64, 96}, {192, 30}, {1408, 64}};
  for (const auto& [hidden, intermediate] : sizes) {
    for (const FormatCase& c :
         {FormatCase{"bf16", Format::kBf16, {}}, FormatCase{"int8", Format::kInt8, {1, 0}},
          FormatCase{"fp8", Format::kFp8E4m3, {128, 128}},
          FormatCase{"mxfp4", Format::kMxfp4, {1, 32}}}) {
      if (element_bits(c.format) == 4 && (hidden % 2 != 0 || intermediate % 2 != 0)) continue;
      LayerSpec spec = odd_spec(c.format, c.block);
      spec.hidden_size = hidden;
      spec.intermediate_size = intermediate;
      spec.activation_format = ActivationFormat::kNone;
      const BothBackends both(spec);
      both.expect_same(random_call(random, spec, 7, DataType::kF32),
                       fmt::format("{} {} x {}", c.name, hidden, intermediate));
    }
  }
}

TEST(CpuExperts, EveryActivationWithBiasesAndStorageOrder) {
  Random random(13);
  for (const Activation kind :
       {Activation::kSwiGlu, Activation::kSwiGluClamp, Activation::kSwiGluOai,
        Activation::kGeGluTanh, Activation::kGeGlu, Activation::kSiTu, Activation::kRelu2}) {
    for (const GateUpStorage storage :
         {GateUpStorage::kConcatenated, GateUpStorage::kInterleaved}) {
      for (const Format format : {Format::kBf16, Format::kMxfp4}) {
        LayerSpec spec =
            odd_spec(format, format == Format::kBf16 ? ScaleBlock{} : ScaleBlock{1, 32});
        spec.activation = {.kind = kind, .limit = 1.5f};
        const BothBackends both(spec, {.gate_up = storage, .biases = true});
        for (const int64_t num_tokens : {1, 30}) {
          both.expect_same(
              random_call(random, spec, num_tokens, DataType::kF32),
              fmt::format("{} of {}, {} tokens", to_string(kind), to_string(format), num_tokens));
        }
      }
    }
  }
}

TEST(CpuExperts, ExplicitActivationFormats) {
  Random random(14);
  for (const ActivationFormat activations :
       {ActivationFormat::kInt8Block32, ActivationFormat::kInt8PerToken,
        ActivationFormat::kInt8PerSlot, ActivationFormat::kFp8PerToken,
        ActivationFormat::kFp8Block128, ActivationFormat::kMxfp8, ActivationFormat::kMxfp4}) {
    for (const WeightPosition position : {WeightPosition::kOutput, WeightPosition::kInput}) {
      for (const bool smooth : {false, true}) {
        LayerSpec spec = odd_spec(Format::kInt8, {1, 0});
        spec.activation_format = activations;
        spec.weight_position = position;
        const BothBackends both(spec, {.matrix = {.smooth_scales = smooth}, .biases = true});
        both.expect_same(
            random_call(random, spec, 24, DataType::kF32),
            fmt::format("{}, weight on {}, smooth {}", to_string(activations),
                        position == WeightPosition::kInput ? "input" : "output", smooth));
      }
    }
  }
}

TEST(CpuExperts, RoutingFromEmptyToLopsided) {
  Random random(15);
  const LayerSpec spec = odd_spec();
  const BothBackends both(spec);
  ExpertsCall call = random_call(random, spec, 300, DataType::kF32);
  int32_t* ids = call.topk_ids.as<int32_t>();
  const auto fill = [&](auto id_of) {
    for (int64_t pair = 0; pair < call.topk_ids.size(); ++pair) ids[pair] = id_of(pair);
  };
  fill([](int64_t pair) { return pair % 3 == 0 ? 5 : -1; });
  both.expect_same(call, "one expert takes everything, in several chunks");
  fill([](int64_t pair) { return pair == 451 ? 2 : -1; });
  both.expect_same(call, "a single row");
  fill([](int64_t pair) {
    const int32_t choices[] = {-1, 0, 6, 3, 2000000000, -2000000000, 5};
    return choices[pair % 7];
  });
  both.expect_same(call, "ids out of range are skipped");
  fill([](int64_t) { return -1; });
  const Buffer nothing = run_experts(both.cpu(), spec, call);
  for (int64_t i = 0; i < nothing.size(); ++i) ASSERT_EQ(nothing.at(i), 0.0);
}

TEST(CpuExperts, AddendAndTokenCount) {
  Random random(16);
  const LayerSpec spec = odd_spec(Format::kBf16, {});
  const BothBackends both(spec);
  ExpertsCall call = random_call(random, spec, 20, DataType::kF32);
  const Buffer addend = Buffer::normal(random, DataType::kF32, {20, spec.hidden_size});
  call.addend = addend;
  both.expect_same(call, "addend");
  const Buffer full = run_experts(both.cpu(), spec, call);
  for (const double count : {0.0, 1.0, 13.0, 20.0, 99.0, -4.0}) {
    const Buffer num_tokens = Buffer::of(DataType::kI32, {1}, {count});
    call.num_tokens = num_tokens;
    const Buffer part = run_experts(both.cpu(), spec, call);
    const int64_t computed = std::clamp<int64_t>(static_cast<int64_t>(count), 0, 20) * 200;
    for (int64_t i = 0; i < computed; ++i) ASSERT_EQ(part.at(i), full.at(i));
    EXPECT_TRUE(part.untouched(computed, part.size()));
  }
}

TEST(CpuExperts, SharedExpertWithoutRouting) {
  Random random(17);
  LayerSpec spec = odd_spec(Format::kFp8E4m3, {128, 128});
  spec.num_experts = spec.top_k = 1;
  const BothBackends both(spec);
  ExpertsCall call = random_call(random, spec, 11, DataType::kBf16);
  call.topk_ids = {};
  call.topk_weights = {};
  both.expect_same(call, "every token takes expert 0 with weight 1");
}

TEST(CpuExperts, MorePairsThanOnePass) {
  Random random(18);
  LayerSpec spec = odd_spec(Format::kInt8, {1, 0});
  spec.hidden_size = 32;
  spec.intermediate_size = 32;
  const BothBackends both(spec);
  both.expect_same(random_call(random, spec, 6000, DataType::kBf16), "18000 pairs");
}

TEST(CpuExperts, NotANumberStaysInItsToken) {
  Random random(19);
  for (const FormatCase& c :
       {FormatCase{"bf16", Format::kBf16, {}}, FormatCase{"mxfp4", Format::kMxfp4, {1, 32}}}) {
    const LayerSpec spec = odd_spec(c.format, c.block);
    const BothBackends both(spec);
    ExpertsCall call = random_call(random, spec, 9, DataType::kF32);
    const Buffer clean = run_experts(both.cpu(), spec, call);
    call.hidden_states.set(4 * spec.hidden_size + 77, std::nan(""));
    const Buffer output = run_experts(both.cpu(), spec, call);
    for (int64_t i = 0; i < output.size(); ++i) {
      if (i / spec.hidden_size == 4) {
        ASSERT_TRUE(std::isnan(output.at(i))) << c.name;
      } else {
        ASSERT_EQ(output.at(i), clean.at(i)) << c.name;
      }
    }
  }
}

TEST(CpuExperts, ScalesOfEveryExponentStayExact) {
  // E8M0 from 2^-127 on: subnormal products count as zero, everything else must be right.
  Random random(20);
  LayerSpec spec = odd_spec();
  spec.activation_format = ActivationFormat::kNone;
  RandomWeights weights(spec);
  for (int64_t e = 0; e < spec.num_experts; ++e) {
    const ExpertWeights& expert = weights.expert(e);
    for (const WeightMatrix* m : {&expert.gate, &expert.up, &expert.down}) {
      auto* codes = m->scales.as<uint8_t>();
      for (int64_t i = 0; i < m->scales.num_elements(); ++i) {
        if (i % 5 == 0) codes[i] = static_cast<uint8_t>(random.below(40));
      }
    }
  }
  const auto on_cpu = cpu_backend().pack_experts(spec, weights.weights().experts, {});
  const auto exact = reference_backend().pack_experts(spec, weights.weights().experts, {});
  const ExpertsCall call = random_call(random, spec, 12, DataType::kF32);
  EXPECT_TRUE(within(run_experts(*on_cpu, spec, call), run_experts(*exact, spec, call),
                     error_bound(spec, BackendKind::kCpu, DataType::kF32), call.topk_ids));
}

}  // namespace
}  // namespace switchyard::test
