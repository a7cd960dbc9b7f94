// A config.json of arbitrary bytes, also against the tensors of a real layer.

#include <array>

#include "fuzz_layer.h"
#include "switchyard/error.h"

namespace {

using switchyard::CheckpointTensor;
using switchyard::DataType;
using switchyard::TensorView;

/// Two BF16 experts of [2, 4], a router, a bias.
const std::vector<CheckpointTensor>& layer_tensors() {
  alignas(8) static std::array<char, 64> zeros{};
  static const std::vector<CheckpointTensor> kTensors = [] {
    std::vector<CheckpointTensor> out;
    const auto add = [&out](const char* name, std::initializer_list<int64_t> shape) {
      const auto view = TensorView::contiguous(zeros.data(), DataType::kBf16, shape);
      out.push_back({.name = name,
                     .file = "fuzz",
                     .dtype = "BF16",
                     .view = view,
                     .bytes = 2 * view.num_elements()});
    };
    add("model.layers.1.mlp.experts.0.down_proj.weight", {4, 2});
    add("model.layers.1.mlp.experts.0.gate_proj.weight", {2, 4});
    add("model.layers.1.mlp.experts.0.up_proj.weight", {2, 4});
    add("model.layers.1.mlp.experts.1.down_proj.weight", {4, 2});
    add("model.layers.1.mlp.experts.1.gate_proj.weight", {2, 4});
    add("model.layers.1.mlp.experts.1.up_proj.weight", {2, 4});
    add("model.layers.1.mlp.gate.e_score_correction_bias", {2});
    add("model.layers.1.mlp.gate.weight", {2, 4});
    return out;
  }();
  return kTensors;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    switchyard::ModelConfig config = switchyard::parse_model_config(text, "fuzz");
    switchyard::merge_hf_quant_config(config, text, "fuzz");
    switchyard::fuzz::read_layers(config, layer_tensors());
  } catch (const switchyard::Error&) {
  }
  return 0;
}
