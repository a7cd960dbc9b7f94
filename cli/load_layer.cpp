#include "cli/load_layer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "cli/progress.h"
#include "cli/text.h"

namespace switchyard::cli {
namespace {

constexpr int kDevice = 0;
constexpr TensorView ForwardArgs::*kInputs[] = {
    &ForwardArgs::hidden_states, &ForwardArgs::topk_ids,  &ForwardArgs::topk_weights,
    &ForwardArgs::router_logits, &ForwardArgs::input_ids, &ForwardArgs::num_tokens};
constexpr TensorView ForwardArgs::*kOutputs[] = {&ForwardArgs::output, &ForwardArgs::topk_ids_out,
                                                 &ForwardArgs::topk_weights_out};

}  // namespace

void check_is_moe_layer(const Checkpoint& checkpoint, int64_t index) {
  const auto& layers = checkpoint.moe_layers();
  if (std::binary_search(layers.begin(), layers.end(), index)) return;
  throw Error(ErrorCode::kInvalidArgument,
              layers.empty() ? fmt::format("--layer is {}; this model has no MoE layers", index)
                             : fmt::format("--layer is {}; the MoE layers are {}", index,
                                           ranges_text(layers)));
}

Layer create_layer(const LayerSpec& spec, const Weights& weights, LayerOptions options,
                   const std::string& label) {
  Progress progress(label);
  options.on_progress = [&progress](int64_t done, int64_t total) { progress.update(done, total); };
  return Layer::create(spec, weights, options);
}

DeviceMemory make_scratch(const Layer& layer, int64_t max_tokens) {
  const int64_t bytes = layer.workspace_bytes(max_tokens);
  if (layer.backend() == BackendKind::kCuda) {
    const std::vector<std::byte> nan_bits(static_cast<size_t>(bytes), std::byte{0xff});
    return {layer.backend(), kDevice, bytes, nan_bits.data()};
  }
  DeviceMemory scratch(layer.backend(), kDevice, bytes);
  if (bytes > 0) std::memset(scratch.data(), 0xff, static_cast<size_t>(bytes));
  return scratch;
}

Runner::Prepared Runner::prepare(const ForwardArgs& host_args) const {
  Prepared prepared{.args = host_args};
  if (layer_->backend() != BackendKind::kCuda) return prepared;
  const auto stage = [&](TensorView& view) {
    if (view.empty()) return;
    prepared.memory.emplace_back(layer_->backend(), kDevice,
                                 view.num_elements() * element_bytes(view.type), view.data);
    view.data = prepared.memory.back().data();
  };
  for (const auto input : kInputs) stage(prepared.args.*input);
  for (const auto output : kOutputs) {
    TensorView& view = prepared.args.*output;
    if (!view.empty()) prepared.outputs.emplace_back(prepared.memory.size(), view.data);
    stage(view);
  }
  return prepared;
}

void Runner::run(const Prepared& prepared) const {
  layer_->forward(prepared.args, scratch_->workspace());
  synchronize(layer_->backend(), kDevice);
}

void Runner::fetch(const Prepared& prepared) {
  for (const auto& [index, host] : prepared.outputs) prepared.memory[index].copy_to(host);
}

}  // namespace switchyard::cli
