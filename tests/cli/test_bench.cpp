// switchyard bench: a short run on a small shape, its JSON checked against itself.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "command.h"
#include "tiny_model.h"

namespace switchyard::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

TEST(Bench, TimesACheckpointAndSavesEverySample) {
  const TinyModel model;
  const std::string file = model.file("bench.json");
  const CommandResult result =
      run_cli({"bench", "--model", model.directory(), "--tokens", "1,3..6", "--backend", "cpu",
               "--layers", "3", "--budget", "0.5", "--json", file});
  ASSERT_EQ(result.status, 0) << result.err;
  for (const char* part :
       {"tokens", "median us", "p10", "p90", "GB/s", "share", "limits measured before and after"}) {
    EXPECT_THAT(result.out, HasSubstr(part));
  }
  const json report = json::parse(std::ifstream(file));
  EXPECT_EQ(report["schema_version"], 1);
  EXPECT_EQ(report["command"], "bench");
  EXPECT_EQ(report["num_layers"], 3);
  EXPECT_GT(report["machine"]["num_cores"], 0);
  EXPECT_EQ(report["limits_measured"], true);
  EXPECT_GT(report["limits"]["before"]["read_gbps"], 0);
  EXPECT_GT(report["limits"]["after"]["f32_gflops"], 0);
  const double expert_bytes = report["expert_bytes"];
  EXPECT_EQ(expert_bytes, 2 * 3 * 72 * 40);
  const std::vector<int64_t> tokens{1, 3, 6};
  ASSERT_EQ(report["results"].size(), tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const json& row = report["results"][i];
    EXPECT_EQ(row["tokens"], tokens[i]);
    std::vector<double> samples = row["samples_us"];
    ASSERT_GE(samples.size(), 3u);
    std::sort(samples.begin(), samples.end());
    EXPECT_GE(row["median_us"], samples.front());
    EXPECT_LE(row["median_us"], samples.back());
    EXPECT_LE(row["p10_us"], row["median_us"]);
    EXPECT_GE(row["p90_us"], row["median_us"]);
    for (const int64_t distinct : row["samples_distinct_experts"]) {
      EXPECT_GE(distinct, 2);
      EXPECT_LE(distinct, std::min<int64_t>(6, 2 * tokens[i]));
    }
    const double flops = static_cast<double>(tokens[i] * 2 * 2 * 3 * 72 * 40);
    EXPECT_NEAR(row["gflops"].get<double>() * row["median_us"].get<double>() * 1e3 / flops, 1,
                1e-9);
  }
  EXPECT_EQ(report["results"][0]["distinct_experts"], 2);
}

TEST(Bench, DrawsTheSameExpertsEveryTime) {
  const TinyModel model;
  const auto distinct = [&model](const std::string& skew) {
    const std::string file = model.file("bench.json");
    EXPECT_EQ(run_cli({"bench", "--model", model.directory(), "--tokens", "2", "--layers", "2",
                       "--budget", "0", "--skew", skew, "--json", file})
                  .status,
              0);
    const json counts = json::parse(std::ifstream(file))["results"][0]["samples_distinct_experts"];
    return std::vector<int>(counts.begin(), counts.begin() + 3);
  };
  EXPECT_EQ(distinct("0"), distinct("0"));
  // All but certain to choose the same two experts.
  EXPECT_EQ(distinct("10"), (std::vector<int>{2, 2, 2}));
}

TEST(Bench, RefusesAnotherFormatThanTheCheckpoints) {
  const TinyModel model;
  expect_refused({"bench", "--model", model.directory(), "--format", "mxfp4"}, 2,
                 {"--format is mxfp4", "are bf16"});
  expect_refused({"bench", "--model", model.directory(), "--layer", "4"}, 2, {"--layer is 4"});
}

}  // namespace
}  // namespace switchyard::test
