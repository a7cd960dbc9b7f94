// switchyard inspect: facts, memory and predictions of a checkpoint whose numbers are known.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "command.h"
#include "tiny_model.h"

namespace switchyard::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr int64_t kExpertBytes = 2 * 3 * TinyModel::kHidden * TinyModel::kInner;
constexpr int64_t kRouterBytes = 2 * TinyModel::kExperts * TinyModel::kHidden;

TEST(Inspect, ReportsTheLayerInJson) {
  const TinyModel model;
  const CommandResult result = run_cli({"inspect", model.directory(), "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_EQ(report["schema_version"], 1);
  EXPECT_EQ(report["model_type"], "mixtral");
  EXPECT_EQ(report["moe_layers"], json({0}));
  ASSERT_EQ(report["groups"].size(), 1u);
  const json& group = report["groups"][0];
  EXPECT_EQ(group["layers"], json({0}));
  EXPECT_EQ(group["expert_bytes"], kExpertBytes);
  EXPECT_EQ(group["other_bytes"], kRouterBytes);
  EXPECT_EQ(group["layer_bytes"], 6 * kExpertBytes + kRouterBytes);
  EXPECT_EQ(group["spec"]["num_experts"], 6);
  EXPECT_EQ(group["spec"]["top_k"], 2);
  EXPECT_EQ(group["spec"]["hidden_size"], 72);
  EXPECT_EQ(group["spec"]["intermediate_size"], 40);
  EXPECT_EQ(group["spec"]["weight_format"], "bf16");
  EXPECT_EQ(group["coverage"]["complete"], true);
  EXPECT_EQ(group["coverage"]["used"], 1 + 3 * 6);
}

TEST(Inspect, DividesMemoryOverRanks) {
  const TinyModel model;
  const json group =
      json::parse(run_cli({"inspect", model.directory(), "--json"}).out)["groups"][0];
  const auto& ranks = group["memory_per_rank"];
  ASSERT_EQ(ranks.size(), 4u);
  const int64_t experts[] = {6, 3, 2, 1};
  const int64_t inner[] = {40, 20, 10, 5};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(ranks[i]["ranks"], 1 << i);
    EXPECT_EQ(ranks[i]["ep_experts"], experts[i]);
    EXPECT_DOUBLE_EQ(ranks[i]["ep_bytes"],
                     static_cast<double>(experts[i] * kExpertBytes + kRouterBytes));
    EXPECT_EQ(ranks[i]["tp_intermediate_size"], inner[i]);
    EXPECT_DOUBLE_EQ(ranks[i]["tp_bytes"],
                     static_cast<double>(6 * kExpertBytes * inner[i] / 40 + kRouterBytes));
  }
}

TEST(Inspect, PredictsFromDistinctExpertsAndFlops) {
  const TinyModel model;
  const json report = json::parse(run_cli({"inspect", model.directory(), "--json"}).out);
  for (const json& p : report["groups"][0]["predictions"]) {
    const double tokens = p["tokens"];
    const double distinct = 6 * (1 - std::pow(1 - 2.0 / 6, tokens));
    const double bytes = distinct * kExpertBytes + kRouterBytes;
    const double flops = tokens * 2 * (2 * 3 * 72 * 40 + 6 * 72);
    EXPECT_NEAR(p["distinct_experts"], distinct, 1e-9);
    EXPECT_NEAR(p["bytes"], bytes, 1e-3);
    EXPECT_NEAR(p["flops"], flops, 1e-3);
    const json& here = report["limits"]["here"];
    const double peak =
        std::max(here["f32_gflops"].get<double>(), here["bf16_gflops"].get<double>());
    const double us =
        std::max(bytes / (here["read_gbps"].get<double>() * 1e3), flops / (peak * 1e3));
    EXPECT_NEAR(p["here_us"].get<double>() / us, 1, 1e-6);
    EXPECT_GT(p["h200_us"], 0);
    EXPECT_LT(p["h200_us"], p["here_us"]);
  }
}

TEST(Inspect, PrintsOneScreen) {
  const TinyModel model;
  const CommandResult result = run_cli({"inspect", model.directory(), "--layer", "0"});
  ASSERT_EQ(result.status, 0) << result.err;
  for (const char* part : {"mixtral", "complete: 19 used", "hidden 72, intermediate 40, 6 experts",
                           "top 2 of 6", "swiglu", "bf16", "EP", "TP", "H200", "GB/s"}) {
    EXPECT_THAT(result.out, HasSubstr(part));
  }
  EXPECT_THAT(result.out, ::testing::Not(HasSubstr("\x1b")));  // not a terminal: no colours
  EXPECT_EQ(result.err, "");
}

TEST(Inspect, ShowsIncompleteLayersAndFails) {
  const TinyModel model;
  model.rewrite([](std::vector<NamedTensor>& tensors) {
    tensors.back().name = "model.layers.0.block_sparse_moe.experts.5.w9.weight";  // was w2
  });
  const CommandResult text = run_cli({"inspect", model.directory()});
  EXPECT_EQ(text.status, 1);
  EXPECT_THAT(text.out, HasSubstr("INCOMPLETE"));
  EXPECT_THAT(text.out, HasSubstr("experts.5.w9.weight"));
  EXPECT_THAT(text.out, HasSubstr("experts.5.w2.weight"));
  const CommandResult result = run_cli({"inspect", model.directory(), "--json"});
  EXPECT_EQ(result.status, 1);
  const json coverage = json::parse(result.out)["groups"][0]["coverage"];
  EXPECT_EQ(coverage["complete"], false);
  EXPECT_EQ(coverage["unknown"].size(), 1u);
  EXPECT_EQ(coverage["missing"].size(), 1u);
}

TEST(Inspect, RefusesWhatIsNoModel) {
  const TinyModel model;
  expect_refused({"inspect", model.file("absent")}, 2, {"absent"});
  expect_refused({"inspect", model.directory(), "--layer", "7"}, 2,
                 {"--layer is 7", "the MoE layers are 0"});
  testing::write_text(model.directory() + "/config.json", "{");
  expect_refused({"inspect", model.directory()}, 2, {"config.json"});
}

}  // namespace
}  // namespace switchyard::test
