#pragma once
// The shipped fixtures (fixtures/README.md): tiny checkpoints with what transformers computed.

#include <filesystem>
#include <string>
#include <vector>

#include "support/buffer.h"
#include "switchyard/checkpoint.h"

namespace switchyard::test {

/// SWITCHYARD_FIXTURES, or where the sources were when this was compiled.
std::filesystem::path fixture_folder();
/// Expected files, relative to the folder: a fixture has one per layer that is checked.
std::vector<std::string> fixture_files();
/// A word for such a file.
std::string fixture_name(const std::string& file);

/// One fixture opened, with what transformers computed for one of its layers.
struct Fixture {
  explicit Fixture(const std::string& file);

  Safetensors expected;
  Checkpoint checkpoint;
  int64_t index;
  TensorView hidden_states, output, topk_ids, topk_weights, input_ids{};
};

/// f32 values in another type.
Buffer as_type(const TensorView& values, DataType type);

}  // namespace switchyard::test
