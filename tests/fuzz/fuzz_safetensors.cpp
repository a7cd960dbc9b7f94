// A safetensors file of arbitrary bytes: header, views, naming, formats, decoded weights.

#include <cstring>
#include <memory>

#include "checkpoint/safetensors_header.h"
#include "fuzz_layer.h"
#include "switchyard/error.h"

namespace {

/// Configs that leave the sizes to the tensors.
const switchyard::ModelConfig& config_for(size_t size) {
  static const switchyard::ModelConfig kConfigs[] = {
      switchyard::parse_model_config(
          R"({"model_type":"mixtral","num_experts_per_tok":1,"hidden_act":"silu"})", "a"),
      switchyard::parse_model_config(
          R"({"model_type":"gpt_oss","num_experts_per_tok":1,"hidden_act":"silu"})", "b"),
      switchyard::parse_model_config(
          R"({"model_type":"x","scoring_func":"sigmoid","norm_topk_prob":true,"hidden_act":"silu",
              "num_experts_per_tok":1,"quantization_config":{"quant_method":"gptq","bits":4}})",
          "c")};
  return kConfigs[size % 3];
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Its own allocation of exactly this size, aligned like a mapping.
  const std::unique_ptr<uint8_t[]> file(new uint8_t[size]);
  if (size > 0) std::memcpy(file.get(), data, size);
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(file.get()), size);
  try {
    const auto header = switchyard::parse_safetensors_header(bytes, "fuzz");
    switchyard::fuzz::read_layers(config_for(size),
                                  switchyard::list_tensors(header, bytes, "fuzz"));
  } catch (const switchyard::Error&) {
  }
  return 0;
}
