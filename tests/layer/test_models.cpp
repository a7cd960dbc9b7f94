// The model table: every row is a layer that could be created, names are unique, shards are parts.

#include <gtest/gtest.h>

#include <set>

#include "core/scale_layout.h"
#include "switchyard/layer.h"
#include "switchyard/models.h"

namespace switchyard {
namespace {

/// Stored bytes of one layer's routed experts, in GiB.
double routed_gib(const LayerSpec& spec) {
  const double matrices = spec.activation.gated() ? 3 : 2;
  const double weights = matrices * static_cast<double>(spec.expert_width()) *
                         static_cast<double>(spec.intermediate_size);
  const double scale_bits =
      spec.weight_format == Format::kMxfp4 || spec.weight_format == Format::kMxfp8 ? 8.0 / 32
      : spec.weight_format == Format::kInt4                                        ? 16.0 / 32
                                                                                   : 0.0;
  return static_cast<double>(spec.num_experts) * weights *
         (element_bits(spec.weight_format) + scale_bits) / 8 / (1 << 30);
}

TEST(Models, EveryShapeIsAValidLayerWithItsOwnName) {
  std::set<std::string> names;
  for (const ModelShape& shape : model_shapes()) {
    EXPECT_TRUE(names.insert(shape.name).second) << shape.name;
    EXPECT_EQ(why_unsupported(shape.spec, BackendKind::kReference), "") << shape.name;
    EXPECT_EQ(&model_shape(shape.name), &shape);
  }
}

/// Published sizes of a layer's routed experts, two digits each.
TEST(Models, LayersHaveTheirPublishedSizes) {
  const std::pair<const char*, double> sizes[] = {
      {"mixtral-8x7b", 2.62},      {"qwen3-30b-a3b", 1.12},
      {"qwen3-235b-a22b", 2.25},   {"qwen3-next-80b", 3.0},
      {"qwen3.5-397b", 6.0},       {"deepseek-r1", 10.5},
      {"deepseek-v4-flash", 3.19}, {"deepseek-v4-pro", 12.6},
      {"kimi-k2", 15.8},           {"kimi-k2-thinking", 8.9},
      {"kimi-k3", 14.6},           {"gpt-oss-120b", 1.58},
      {"gpt-oss-20b", 0.39},       {"glm-4.5", 7.0},
      {"glm-4.5-air", 4.1},        {"glm-5", 9.0},
      {"minimax-m2", 3.4},         {"minimax-m3", 7.0},
  };
  for (const auto& [name, gib] : sizes)
    EXPECT_NEAR(routed_gib(model_shape(name).spec), gib, 0.02 * gib + 0.05) << name;
}

TEST(Models, RoutersWithASelectionBias) {
  for (const char* name : {"deepseek-r1-tp8", "deepseek-r1-ep8", "kimi-k2", "minimax-m3-tp8",
                           "deepseek-v4-pro", "glm-4.5-air"}) {
    EXPECT_TRUE(model_shape(name).selection_bias) << name;
  }
  for (const char* name : {"qwen3-30b-a3b", "gpt-oss-120b", "llama-4-scout", "mixtral-8x7b"}) {
    EXPECT_FALSE(model_shape(name).selection_bias) << name;
  }
}

TEST(Models, ShardsDivideWhatTheySay) {
  const LayerSpec whole = model_shape("deepseek-r1").spec;
  const LayerSpec tensor = model_shape("deepseek-r1-tp8").spec;
  const LayerSpec experts = model_shape("deepseek-r1-ep8").spec;
  EXPECT_EQ(tensor.intermediate_size, 256);
  EXPECT_EQ(tensor.shared.intermediate_size, 256);
  EXPECT_EQ(tensor.num_experts, 256);
  EXPECT_EQ(tensor.routing, whole.routing);
  EXPECT_EQ(experts.num_experts, 32);
  EXPECT_EQ(experts.intermediate_size, whole.intermediate_size);
  EXPECT_EQ(experts.routing.num_groups, 1);
}

TEST(Models, WithFormatGivesTheFormatsUsualBlock) {
  const LayerSpec spec = model_shape("gpt-oss-120b").spec;
  for (Format format :
       {Format::kF32, Format::kF16, Format::kBf16, Format::kFp8E4m3, Format::kFp8E5m2,
        Format::kInt8, Format::kInt4, Format::kMxfp4, Format::kMxfp8, Format::kNvfp4}) {
    const LayerSpec other = with_format(spec, format);
    EXPECT_EQ(other.weight_format, format);
    EXPECT_EQ(why_unsupported(other, BackendKind::kReference), "") << to_string(format);
    EXPECT_EQ(with_format(other, Format::kMxfp4), spec);
    EXPECT_EQ(format_from_string(to_string(format)), format);
  }
  EXPECT_EQ(with_format(spec, Format::kFp8E4m3).weight_scale_block, (ScaleBlock{128, 128}));
  EXPECT_EQ(with_format(spec, Format::kNvfp4).weight_scale_block, (ScaleBlock{1, 16}));
}

}  // namespace
}  // namespace switchyard
