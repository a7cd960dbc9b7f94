// The shipped fixtures on the GPU: from the checkpoint to the output of the transformers package's
// own MoE block, in every weight format. What was measured goes into the record.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "gpu/device_tensor.h"
#include "support/fixture.h"
#include "switchyard/layer.h"
#include "switchyard/verify.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::DeviceTensor;
using test::Fixture;

/// rms distance from what transformers computed, which is checked against the formats' bound.
double rms_error(const Fixture& fixture, const LayerSpec& spec, DataType type) {
  const Layer layer = Layer::create(spec, fixture.checkpoint.weights(fixture.index),
                                    {.backend = BackendKind::kCuda});
  const int64_t tokens = fixture.topk_ids.extent(0);
  const DeviceTensor x(test::as_type(fixture.hidden_states, type)), input_ids(fixture.input_ids),
      y(Buffer(type, {tokens, spec.hidden_size}));
  const cuda::DeviceBuffer workspace = test::device_workspace(layer.workspace_bytes(tokens));
  layer.forward({.hidden_states = x, .output = y, .input_ids = input_ids},
                test::workspace_of(workspace));
  const Comparison comparison = compare(y.fetch(), fixture.output);
  const ErrorBound bound = error_bound(layer.spec(), BackendKind::kCuda, type);
  EXPECT_EQ(comparison.num_nan, 0);
  EXPECT_LT(comparison.rms_error, bound.rms) << bound.derivation;
  return comparison.rms_error;
}

TEST(GpuFixtures, ComputeWhatTransformersDoes) {
  for (const std::string& file : test::fixture_files()) {
    const std::string name = test::fixture_name(file);
    SCOPED_TRACE(name);
    const Fixture fixture(file);
    LayerSpec spec = fixture.checkpoint.layer(fixture.index).spec;
    const double own = rms_error(fixture, spec, DataType::kBf16);
    spec.activation_format = ActivationFormat::kNone;
    const double f32 = rms_error(fixture, spec, DataType::kF32);
    const double bf16 = rms_error(fixture, spec, DataType::kBf16);
    EXPECT_LT(f32, 2e-6);
    const std::string line = fmt::format("{:.1e} {:.1e} {:.1e}", f32, bf16, own);
    RecordProperty(name, line);
    std::puts(fmt::format("{:<24} f32, bf16, bf16 with own activations: {}", name, line).c_str());
  }
}

}  // namespace
}  // namespace switchyard
