// The seeds of the fuzz targets are valid, so that fuzzing starts behind the checks; inputs that
// were once findings belong in the same folders.

#include <gtest/gtest.h>

#include <filesystem>

#include "checkpoint/mapped_file.h"
#include "checkpoint/safetensors_header.h"
#include "fuzz/fuzz_layer.h"
#include "switchyard/error.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
const fs::path kCorpus = fs::path(SWITCHYARD_SOURCE_DIR) / "tests/fuzz/corpus";

TEST(FuzzCorpus, SafetensorsSeedsDecodeToTheLastWeight) {
  int seeds = 0;
  for (const auto& entry : fs::directory_iterator(kCorpus / "safetensors")) {
    const std::string path = entry.path().string();
    SCOPED_TRACE(path);
    const bool gpt_oss = entry.path().filename() == "gpt_oss";
    const ModelConfig config = parse_model_config(
        gpt_oss ? R"({"model_type":"gpt_oss","num_experts_per_tok":1,"hidden_act":"silu"})"
                : R"({"model_type":"mixtral","num_experts_per_tok":1,"hidden_act":"silu"})",
        "config.json");
    const MappedFile file(path);
    const SafetensorsHeader header = parse_safetensors_header(file.bytes(), path);
    const auto tensors = list_tensors(header, file.bytes(), path);
    const TensorsByLayer layers = group_by_layer(tensors);
    ASSERT_EQ(layers.size(), 1u);
    const ResolvedLayer layer = resolve_layer(config, collect_layer(0, layers.at(0), 0));
    EXPECT_TRUE(layer.tensors.coverage.complete()) << describe(layer.tensors.coverage);
    EXPECT_NO_THROW(fuzz::load_all(layer));
    ++seeds;
  }
  EXPECT_GE(seeds, 9);
}

TEST(FuzzCorpus, ConfigSeedsParse) {
  int seeds = 0;
  for (const auto& entry : fs::directory_iterator(kCorpus / "config")) {
    SCOPED_TRACE(entry.path().string());
    const std::string text = read_text_file(entry.path().string(), 1 << 20);
    const ModelConfig config = parse_model_config(text, "config.json");
    EXPECT_NE(config.traits, nullptr) << config.model_type;
    EXPECT_TRUE(config.activation.has_value());
    ++seeds;
  }
  EXPECT_GE(seeds, 10);
}

}  // namespace
}  // namespace switchyard
