#include "support/fixture.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

namespace switchyard::test {

namespace fs = std::filesystem;

fs::path fixture_folder() {
  const char* given = std::getenv("SWITCHYARD_FIXTURES");
  return given != nullptr ? fs::path(given) : fs::path(SWITCHYARD_SOURCE_DIR) / "fixtures";
}

std::vector<std::string> fixture_files() {
  const fs::path folder = fixture_folder();
  std::vector<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.path().filename().string().starts_with("expected")) {
      files.push_back(fs::relative(entry.path(), folder).string());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::string fixture_name(const std::string& file) {
  const std::string name = fs::path(file).parent_path().string();
  return file.find("_layer") != std::string::npos ? name + "_first_layer" : name;
}

Fixture::Fixture(const std::string& file)
    : expected(Safetensors::open((fixture_folder() / file).string())),
      checkpoint(Checkpoint::open((fixture_folder() / file).parent_path().string())),
      index(*expected.at("layer").view.as<int64_t>()),
      hidden_states(expected.at("hidden_states").view),
      output(expected.at("output").view),
      topk_ids(expected.at("topk_ids").view),
      topk_weights(expected.at("topk_weights").view) {
  if (const CheckpointTensor* ids = expected.find("input_ids")) input_ids = ids->view;
}

Buffer as_type(const TensorView& values, DataType type) {
  const float* f32 = values.as<float>();
  return Buffer::of(type, {values.extent(0), values.extent(1)},
                    std::vector<double>(f32, f32 + values.num_elements()));
}

}  // namespace switchyard::test
