// The CPU backend's routed experts against the reference: every format, scale form, activation and
// shape.
#include <fmt/format.h>

#include "steps/cpu_experts_fixture.h"

namespace switchyard::test {
namespace {

LayerSpec small_spec(Format format, ScaleBlock block) {
  LayerSpec spec{.num_experts = 6, .top_k = 3, .hidden_size = 200, .intermediate_size = 104};
  spec.weight_format = format;
  spec.weight_scale_block = block;
  return spec;
}

void expect_matches_reference(const LayerSpec& spec, const WeightsOptions& options,
                              const ExpertsCall& call, const std::string& what) {
  SCOPED_TRACE(what);
  const RandomWeights weights(spec, options);
  const auto on_cpu = cpu_backend().pack_experts(spec, weights.weights().experts, {});
  const auto exact = reference_backend().pack_experts(spec, weights.weights().experts, {});
  const Buffer output = run_experts(*on_cpu, spec, call);
  const Buffer expected = run_experts(*exact, spec, call);
  EXPECT_TRUE(within(output, expected, error_bound(spec, BackendKind::kCpu, call.output_type),
                     call.topk_ids));
}

struct FormatCase {
  const char* name;
  Format format;
  ScaleBlock block;
  MatrixOptions matrix{};
};

std::vector<FormatCase> format_cases() {
  return {
      {"f32", Format::kF32, {}},
      {"f16", Format::kF16, {}},
      {"bf16", Format::kBf16, {}},
      {"bf16 transposed", Format::kBf16, {}, {.transposed = true}},
      {"fp8 tensor", Format::kFp8E4m3, {0, 0}},
      {"fp8 channel", Format::kFp8E4m3, {1, 0}},
      {"fp8 128x128", Format::kFp8E4m3, {128, 128}},
      {"fp8 128x128 bf16 scales", Format::kFp8E4m3, {128, 128}, {.scale_type = DataType::kBf16}},
      {"fp8 transposed", Format::kFp8E4m3, {128, 128}, {.transposed = true}},
      {"fp8 odd block", Format::kFp8E4m3, {1, 24}},
      {"fp8 e5m2", Format::kFp8E5m2, {1, 0}},
      {"int8 channel", Format::kInt8, {1, 0}},
      {"int8 tensor", Format::kInt8, {0, 0}},
      {"int8 group 32", Format::kInt8, {1, 32}, {.scale_type = DataType::kF16}},
      {"int8 group 16", Format::kInt8, {1, 16}},
      {"int8 smooth", Format::kInt8, {1, 0}, {.smooth_scales = true}},
      {"int4 group 32", Format::kInt4, {1, 32}, {.scale_type = DataType::kBf16}},
      {"int4 group 128", Format::kInt4, {1, 128}, {.int32_words = true}},
      {"int4 zero points", Format::kInt4, {1, 32}, {.zero_points = true}},
      {"int4 zero points 128", Format::kInt4, {1, 128}, {.zero_points = true}},
      {"int4 actorder", Format::kInt4, {1, 32}, {.zero_points = true, .group_index = true}},
      {"mxfp4", Format::kMxfp4, {1, 32}},
      {"mxfp4 transposed words",
       Format::kMxfp4,
       {1, 32},
       {.transposed = true, .int32_words = true}},
      {"mxfp8", Format::kMxfp8, {1, 32}},
      {"nvfp4", Format::kNvfp4, {1, 16}, {.global_scale = 0.37f}},
  };
}

TEST(CpuExperts, EveryFormatMatchesTheReference) {
  Random random(11);
  for (const FormatCase& c : format_cases()) {
    for (const ActivationFormat activations : {ActivationFormat::kAuto, ActivationFormat::kNone}) {
      for (const int64_t num_tokens : {1, 2, 9, 40}) {
        LayerSpec spec = small_spec(c.format, c.block);
        spec.activation_format = activations;
        const ExpertsCall call = random_call(random, spec, num_tokens,
                                             num_tokens == 9 ? DataType::kF32 : DataType::kBf16);
        expect_matches_reference(spec, {.matrix = c.matrix}, call,
                                 fmt::format("{}, activations {}, {} tokens", c.name,
                                             to_string(activations), num_tokens));
      }
    }
  }
}

}  // namespace
}  // namespace switchyard::test
