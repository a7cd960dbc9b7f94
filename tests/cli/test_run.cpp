// switchyard run: numbers against a block computed here in double, and every kind of bad input.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "command.h"
#include "core/number_formats.h"
#include "switchyard/checkpoint.h"
#include "tiny_model.h"

namespace switchyard::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class Run : public ::testing::Test {
 protected:
  std::vector<std::string> arguments(std::vector<std::string> more = {}) const {
    std::vector<std::string> all{"run",   model_.directory(), "--layer", "0", "--input",
                                 input(), "--output",         output()};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  std::string input() const { return model_.file("in.safetensors"); }
  std::string output() const { return model_.file("out.safetensors"); }

  Buffer random_input(DataType type, int64_t num_tokens) const {
    Random random(31);
    Buffer x = Buffer::normal(random, type, {num_tokens, TinyModel::kHidden});
    save_safetensors(input(), {{"hidden_states", x}});
    return x;
  }
  void expect_refused_input(const std::vector<std::string>& parts) const {
    expect_refused(arguments(), 2, parts);
    EXPECT_FALSE(fs::exists(output()));
  }

  TinyModel model_;
};

/// rms(output - expected) / rms(expected).
double relative_error(const TensorView& output, const std::vector<double>& expected) {
  double errors = 0;
  double squares = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    const double got = load_as_f32(output.data, output.type, at);
    errors += (got - expected[i]) * (got - expected[i]);
    squares += expected[i] * expected[i];
  }
  return std::sqrt(errors / squares);
}

std::vector<double> as_doubles(const CheckpointTensor& tensor) {
  std::vector<double> values;
  for (int64_t i = 0; i < tensor.view.num_elements(); ++i) {
    values.push_back(load_as_f32(tensor.view.data, tensor.view.type, i));
  }
  return values;
}

struct RunCase {
  const char* backend;
  DataType type;
  double bound;  ///< rounding of the output: bf16 2^-8, f16 2^-11 of a value, a third of it in rms
};
void PrintTo(const RunCase& run, std::ostream* out) {
  *out << run.backend << " " << to_string(run.type);
}
class RunOn : public Run, public ::testing::WithParamInterface<RunCase> {};

TEST_P(RunOn, EqualsTheBlockInDouble) {
  const auto [backend, type, bound] = GetParam();
  const Buffer x = random_input(type, 9);
  const CommandResult result = run_cli(arguments({"--backend", backend, "--dump"}));
  ASSERT_EQ(result.status, 0) << result.err;
  const TinyModel::Expected expected = model_.expected(x);
  const Safetensors file = Safetensors::open(output());
  ASSERT_EQ(file.tensors().size(), 3u);
  const TensorView y = file.at("output").view;
  EXPECT_EQ(y.type, type);
  EXPECT_EQ(y.rank, 2);
  EXPECT_EQ(y.extent(0), 9);
  EXPECT_EQ(y.extent(1), TinyModel::kHidden);
  EXPECT_LT(relative_error(y, expected.output), bound);
  const TensorView ids = file.at("topk_ids").view;
  ASSERT_EQ(file.at("topk_ids").dtype, "I32");
  EXPECT_THAT(std::vector<int32_t>(ids.as<int32_t>(), ids.as<int32_t>() + ids.num_elements()),
              ::testing::ElementsAreArray(expected.topk_ids));
  EXPECT_EQ(file.at("topk_weights").dtype, "F32");
  EXPECT_LT(relative_error(file.at("topk_weights").view, expected.topk_weights), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Backends, RunOn,
                         ::testing::Values(RunCase{"cpu", DataType::kF32, 2e-6},
                                           RunCase{"cpu", DataType::kBf16, 2e-3},
                                           RunCase{"cpu", DataType::kF16, 2.5e-4},
                                           RunCase{"auto", DataType::kBf16, 2e-3},
                                           RunCase{"reference", DataType::kF32, 2e-7},
                                           RunCase{"reference", DataType::kBf16, 2e-3}),
                         [](const auto& test) {
                           return std::string(test.param.backend) + "_" +
                                  to_string(test.param.type);
                         });

/// The reference against transformers' own block, through files alone. int8 activations have their
/// own tests (test_fixtures); here the plumbing is on trial, hash layers' input_ids included.
TEST_F(Run, ReproducesTheOutputOfTransformers) {
  for (const std::string name :
       {"mixtral", "deepseek_v3", "gpt_oss_mxfp4", "llama4", "nemotron_h"}) {
    const std::string fixture = SWITCHYARD_SOURCE_DIR "/fixtures/" + name;
    const Safetensors truth = Safetensors::open(fixture + "/expected.safetensors");
    save_safetensors(input(), {{"hidden_states", truth.at("hidden_states").view}});
    const std::string layer = std::to_string(truth.at("layer").view.as<int64_t>()[0]);
    const CommandResult result = run_cli({"run", fixture, "--layer", layer, "--input", input(),
                                          "--output", output(), "--backend", "reference"});
    ASSERT_EQ(result.status, 0) << result.err;
    EXPECT_LT(relative_error(Safetensors::open(output()).at("output").view,
                             as_doubles(truth.at("output"))),
              1e-5)
        << name;
  }
}

TEST_F(Run, PassesTokenIdsToHashLayers) {
  const std::string fixture = SWITCHYARD_SOURCE_DIR "/fixtures/deepseek_v4";
  const Safetensors truth = Safetensors::open(fixture + "/expected_layer0.safetensors");
  const std::vector<std::string> command{"run",       fixture,     "--layer",  "0",
                                         "--input",   input(),     "--output", output(),
                                         "--backend", "reference", "--dump"};
  save_safetensors(input(), {{"hidden_states", truth.at("hidden_states").view},
                             {"input_ids", truth.at("input_ids").view}});
  const CommandResult result = run_cli(command);
  ASSERT_EQ(result.status, 0) << result.err;
  const Safetensors file = Safetensors::open(output());
  EXPECT_LT(relative_error(file.at("output").view, as_doubles(truth.at("output"))), 1e-5);
  for (int64_t t = 0; t < 7; ++t) {
    const auto row = [t](const Safetensors& from) {
      const auto* ids = from.at("topk_ids").view.as<int32_t>() + t * 2;
      return std::set<int32_t>(ids, ids + 2);
    };
    EXPECT_EQ(row(file), row(truth)) << t;
  }
  save_safetensors(input(), {{"hidden_states", truth.at("hidden_states").view}});
  expect_refused(command, 2, {"input_ids is missing", "by token id"});
}

TEST_F(Run, WithoutDumpWritesTheOutputOnly) {
  random_input(DataType::kF32, 2);
  ASSERT_EQ(run_cli(arguments()).status, 0);
  const Safetensors file = Safetensors::open(output());
  ASSERT_EQ(file.tensors().size(), 1u);
  EXPECT_EQ(file.tensors()[0].name, "output");
}

TEST_F(Run, NoTokensGiveAnEmptyOutput) {
  random_input(DataType::kBf16, 0);
  const CommandResult result = run_cli(arguments({"--dump"}));
  ASSERT_EQ(result.status, 0) << result.err;
  const Safetensors file = Safetensors::open(output());
  EXPECT_EQ(file.at("output").view.extent(0), 0);
  EXPECT_EQ(file.at("output").view.extent(1), TinyModel::kHidden);
  EXPECT_EQ(file.at("output").dtype, "BF16");
  EXPECT_EQ(file.at("topk_ids").view.extent(1), TinyModel::kTopK);
}

TEST_F(Run, AcceptsDataThatIsNotAligned) {
  // A header of odd length puts every value on an odd address.
  const Buffer x = random_input(DataType::kF32, 3);
  const std::string data(x.as<char>(), static_cast<size_t>(x.bytes()));
  std::string header = R"({"hidden_states":{"dtype":"F32","shape":[3,72],"data_offsets":[0,864]}})";
  if (header.size() % 2 == 0) header += ' ';
  std::string file = testing::raw_safetensors(header, 0) + data;
  testing::write_text(input(), file);
  const CommandResult result = run_cli(arguments());
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_LT(
      relative_error(Safetensors::open(output()).at("output").view, model_.expected(x).output),
      2e-6);
}

TEST_F(Run, RefusesWrongInputTensors) {
  Random random(1);
  const Buffer x = Buffer::normal(random, DataType::kF32, {3, TinyModel::kHidden});
  const auto with = [this](const std::vector<NamedTensor>& tensors) {
    save_safetensors(input(), tensors);
  };
  with({{"hidden", x}});
  expect_refused_input({"in.safetensors", "'hidden' is not understood", "hidden_states"});
  with({{"hidden_states", x}, {"attention_mask", x}});
  expect_refused_input({"'attention_mask' is not understood"});
  with({});
  expect_refused_input({"hidden_states is missing"});
  with({{"hidden_states", Buffer::zeros(DataType::kI32, {3, TinyModel::kHidden})}});
  expect_refused_input({"hidden_states is I32", "F32, BF16 or F16"});
  with({{"hidden_states", Buffer::zeros(DataType::kF32, {3, 71})}});
  expect_refused_input({"hidden_states is [3, 71]", "[T, 72]"});
  with({{"hidden_states", Buffer::zeros(DataType::kF32, {72})}});
  expect_refused_input({"hidden_states is [72]", "[T, 72]"});
  with({{"hidden_states", x}, {"input_ids", Buffer::zeros(DataType::kF32, {3})}});
  expect_refused_input({"input_ids is F32", "I64 or I32"});
  with({{"hidden_states", x}, {"input_ids", Buffer::zeros(DataType::kI64, {4})}});
  expect_refused_input({"input_ids is [4]", "[3]"});
}

TEST_F(Run, RefusesFilesThatCannotBeRead) {
  expect_refused_input({"in.safetensors"});  // missing
  testing::write_text(input(), "short");
  expect_refused_input({"in.safetensors"});
  random_input(DataType::kF32, 8);
  fs::resize_file(input(), fs::file_size(input()) - 100);
  expect_refused_input({"in.safetensors"});
  testing::write_text(input(), testing::raw_safetensors("{not json", 64));
  expect_refused_input({"in.safetensors"});
}

TEST_F(Run, RefusesWrongModelsAndLayers) {
  random_input(DataType::kF32, 1);
  expect_refused(
      {"run", model_.file("absent"), "--layer", "0", "--input", input(), "--output", output()}, 2,
      {"absent"});
  expect_refused(
      {"run", model_.directory(), "--layer", "1", "--input", input(), "--output", output()}, 2,
      {"--layer is 1", "the MoE layers are 0"});
  expect_refused(arguments({"--backend", "tpu"}), 2, {"--backend is 'tpu'"});
  model_.rewrite([](std::vector<NamedTensor>& tensors) { tensors.pop_back(); });
  expect_refused(arguments(), 2, {"experts.5.w2.weight"});
  fs::resize_file(model_.directory() + "/model.safetensors", 3000);
  expect_refused(arguments(), 2, {"model.safetensors"});
}

TEST_F(Run, WithoutADeviceCudaIsRefused) {
  random_input(DataType::kF32, 1);
  const CommandResult result = run_cli(arguments({"--backend", "cuda"}));
  if (result.status == 0) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_TRUE(result.status == 3 || result.status == 4) << result.status;
  EXPECT_THAT(result.err, ::testing::StartsWith("switchyard: "));
  EXPECT_FALSE(fs::exists(output()));
}

TEST_F(Run, RefusesOutputPathsBeforeItComputes) {
  random_input(DataType::kF32, 1);
  const auto run_to = [this](const std::string& path) {
    return std::vector<std::string>{"run",   model_.directory(), "--layer", "0", "--input",
                                    input(), "--output",         path};
  };
  expect_refused(run_to(model_.file("absent/out.safetensors")), 2,
                 {"--output", "directory does not exist"});
  expect_refused(run_to(model_.directory()), 2, {"--output", "must name a file"});
  expect_refused(run_to(input()), 2, {"--output", "must not be the input"});
}

std::string contents(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

TEST_F(Run, FailedWriteLeavesTheOldOutputAndNothingElse) {
  random_input(DataType::kF32, 200);
  testing::write_text(output(), "precious");
  const CommandResult result = run_cli(arguments(), {.file_bytes = 16384});
  EXPECT_EQ(result.status, 2) << result.err;
  EXPECT_THAT(result.err, HasSubstr("out.safetensors"));
  EXPECT_EQ(contents(output()), "precious");
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(model_.outside())) {
    names.push_back(entry.path().filename());
  }
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("model", "in.safetensors", "out.safetensors"));
}

TEST_F(Run, GivesTheSameBytesOnEveryNumberOfThreads) {
  random_input(DataType::kBf16, 33);
  std::vector<std::string> files;
  for (const std::string threads : {"1", "2", "5"}) {
    ASSERT_EQ(run_cli(arguments({"--threads", threads, "--dump"})).status, 0);
    files.push_back(contents(output()));
  }
  EXPECT_EQ(files[0], files[1]);
  EXPECT_EQ(files[0], files[2]);
}

}  // namespace
}  // namespace switchyard::test
