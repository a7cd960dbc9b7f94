// What every command says about itself and to bad arguments.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "command.h"
#include "switchyard/models.h"
#include "tiny_model.h"

namespace switchyard::test {
namespace {

using ::testing::HasSubstr;

TEST(Help, ShowsExamplesForEveryCommand) {
  for (const std::string command : {"inspect", "run", "verify", "bench", "models"}) {
    const CommandResult result = run_cli({command, "--help"});
    EXPECT_EQ(result.status, 0);
    EXPECT_THAT(result.out, HasSubstr("Examples:\n  switchyard " + command));
    EXPECT_EQ(result.err, "");
  }
  const CommandResult result = run_cli({"--help"});
  EXPECT_EQ(result.status, 0);
  EXPECT_THAT(result.out, HasSubstr("Exit status:"));
}

TEST(Version, IsPrinted) {
  const CommandResult result = run_cli({"--version"});
  EXPECT_EQ(result.status, 0);
  EXPECT_THAT(result.out, ::testing::ContainsRegex("^[0-9]+\\.[0-9]+\\.[0-9]+"));
}

TEST(Usage, IsExitStatusTwoAndOneLine) {
  expect_refused({}, 2, {"subcommand", "switchyard --help"});
  expect_refused({"dance"}, 2, {"dance"});
  expect_refused({"run"}, 2, {"DIR", "switchyard run --help"});
  expect_refused({"run", "x", "--input", "a", "--output", "b"}, 2, {"--layer"});
  expect_refused({"run", "x", "--layer", "zero", "--input", "a", "--output", "b"}, 2,
                 {"--layer", "zero"});
  expect_refused({"bench", "--model", "qwen3-30b-a3b", "--frob"}, 2, {"--frob"});
  expect_refused({"bench"}, 2, {"--model"});
  expect_refused({"models", "extra"}, 2, {"extra"});
}

TEST(Bench, RefusesBadArgumentsBeforeItPacks) {
  const auto bench = [](std::vector<std::string> more) {
    more.insert(more.begin(), {"bench", "--model", "qwen3-30b-a3b"});
    return more;
  };
  expect_refused({"bench", "--model", "qwen3-31b"}, 2, {"qwen3-31b", "gpt-oss-20b"});
  expect_refused(bench({"--tokens", "1,x"}), 2, {"--tokens is '1,x'", "'x' is not a number"});
  expect_refused(bench({"--tokens", "0"}), 2, {"--tokens", "outside 1..16777215"});
  expect_refused(bench({"--tokens", "8..2"}), 2, {"runs downwards"});
  expect_refused(bench({"--format", "fp3"}), 2, {"fp3", "mxfp4"});
  expect_refused(bench({"--backend", "tpu"}), 2, {"--backend is 'tpu'", "reference"});
  expect_refused(bench({"--activations", "fp3"}), 2, {"fp3", "int8_block32"});
  expect_refused(bench({"--skew", "-1"}), 2, {"--skew is -1"});
  expect_refused(bench({"--threads", "-3"}), 2, {"--threads is -3"});
  expect_refused(bench({"--layers", "many"}), 2, {"--layers is 'many'", "auto"});
  expect_refused(bench({"--layers", "0"}), 2, {"--layers is '0'"});
  expect_refused(bench({"--layer", "3"}), 2, {"--layer is 3"});
  expect_refused(bench({"--json", "/absent/dir/x.json"}), 2, {"--json is /absent/dir/x.json"});
  // 10 TiB of weights: refused by arithmetic, not by the allocator.
  expect_refused({"bench", "--model", "kimi-k2", "--layers", "600"}, 5, {"--layers is 600", "TiB"});
}

TEST(Models, PrintsEveryShape) {
  const CommandResult table = run_cli({"models"});
  EXPECT_EQ(table.status, 0);
  const CommandResult json = run_cli({"models", "--json"});
  EXPECT_EQ(json.status, 0);
  const auto report = nlohmann::json::parse(json.out);
  EXPECT_EQ(report["schema_version"], 1);
  EXPECT_EQ(report["command"], "models");
  ASSERT_EQ(report["models"].size(), model_shapes().size());
  for (size_t i = 0; i < model_shapes().size(); ++i) {
    const ModelShape& shape = model_shapes()[i];
    EXPECT_THAT(table.out, HasSubstr("\n" + shape.name + " "));
    const auto& model = report["models"][i];
    EXPECT_EQ(model["name"], shape.name);
    EXPECT_EQ(model["selection_bias"], shape.selection_bias);
    EXPECT_EQ(model["spec"]["num_experts"], shape.spec.num_experts);
    EXPECT_EQ(model["spec"]["hidden_size"], shape.spec.hidden_size);
    EXPECT_EQ(model["spec"]["weight_format"], to_string(shape.spec.weight_format));
  }
}

}  // namespace
}  // namespace switchyard::test
