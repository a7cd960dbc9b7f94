// switchyard run: one MoE block of a checkpoint over hidden states from a file, to a file.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>
#include <filesystem>
#include <memory>

#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/host_tensor.h"
#include "cli/load_layer.h"
#include "cli/text.h"

namespace switchyard::cli {
namespace {

constexpr const char* kFooter =
    R"(IN holds hidden_states [T, H] (F32, BF16 or F16) and, for hash layers, input_ids [T] (I64 or I32).
OUT gets output [T, H] in the type of hidden_states; with --dump also topk_ids [T, K] (I32) and
topk_weights [T, K] (F32). OUT appears complete or not at all.

Examples:
  switchyard run ~/models/gpt-oss-20b --layer 0 --input in.safetensors --output out.safetensors
  switchyard run model --layer 3 --input in.safetensors --output out.safetensors --dump
  switchyard run model --layer 3 --input in.safetensors --output ref.safetensors --backend reference)";

struct Options {
  std::string directory;
  int64_t layer = 0;
  std::string input;
  std::string output;
  LayerFlags flags;
  bool dump = false;
};

struct Inputs {
  HostTensor hidden_states;
  HostTensor input_ids;  ///< empty view unless the file has them
};

std::string shape_text(const TensorView& view) {
  return fmt::format("[{}]", fmt::join(view.shape.begin(), view.shape.begin() + view.rank, ", "));
}

[[noreturn]] void bad_input(const std::string& path, const std::string& what) {
  throw Error(ErrorCode::kInvalidArgument, fmt::format("--input {}: {}", path, what));
}

/// Copies out of the file: its data need not be aligned.
HostTensor copy_of(const CheckpointTensor& tensor) {
  const TensorView& view = tensor.view;
  HostTensor copy = view.rank == 2 ? HostTensor(view.type, {view.extent(0), view.extent(1)})
                                   : HostTensor(view.type, {view.extent(0)});
  if (tensor.bytes > 0) {
    std::memcpy(copy.view().data, view.data, static_cast<size_t>(tensor.bytes));
  }
  return copy;
}

const CheckpointTensor& checked_hidden_states(const Safetensors& file, const std::string& path,
                                              int64_t hidden_size) {
  const CheckpointTensor* tensor = file.find("hidden_states");
  if (tensor == nullptr) bad_input(path, "hidden_states is missing");
  const TensorView& view = tensor->view;
  if (tensor->dtype != "F32" && tensor->dtype != "BF16" && tensor->dtype != "F16") {
    bad_input(path, fmt::format("hidden_states is {}; F32, BF16 or F16 is needed", tensor->dtype));
  }
  if (view.rank != 2 || view.extent(1) != hidden_size || view.extent(0) > kMaxTokens) {
    bad_input(path, fmt::format("hidden_states is {}; [T, {}] with T <= {} is needed",
                                shape_text(view), hidden_size, kMaxTokens));
  }
  return *tensor;
}

const CheckpointTensor* checked_input_ids(const Safetensors& file, const std::string& path,
                                          int64_t num_tokens, bool needed) {
  const CheckpointTensor* tensor = file.find("input_ids");
  if (tensor == nullptr) {
    if (needed) bad_input(path, "input_ids is missing; this layer chooses experts by token id");
    return nullptr;
  }
  const TensorView& view = tensor->view;
  if (tensor->dtype != "I64" && tensor->dtype != "I32") {
    bad_input(path, fmt::format("input_ids is {}; I64 or I32 is needed", tensor->dtype));
  }
  if (view.rank != 1 || view.extent(0) != num_tokens) {
    bad_input(path, fmt::format("input_ids is {}; [{}] is needed, one per row of hidden_states",
                                shape_text(view), num_tokens));
  }
  return tensor;
}

Inputs read_inputs(const std::string& path, const LayerSpec& spec) {
  const Safetensors file = Safetensors::open(path);
  for (const CheckpointTensor& tensor : file.tensors()) {
    if (tensor.name != "hidden_states" && tensor.name != "input_ids") {
      bad_input(path, fmt::format("'{}' is not understood; hidden_states and input_ids are",
                                  tensor.name));
    }
  }
  const CheckpointTensor& hidden = checked_hidden_states(file, path, spec.hidden_size);
  const CheckpointTensor* ids =
      checked_input_ids(file, path, hidden.view.extent(0), spec.routing.hash);
  Inputs inputs{.hidden_states = copy_of(hidden), .input_ids = {}};
  if (ids != nullptr && spec.routing.hash) inputs.input_ids = copy_of(*ids);
  return inputs;
}

void check_output_path(const std::string& output, const std::string& input) {
  check_output_directory("--output", output);
  std::error_code error;
  if (std::filesystem::equivalent(output, input, error)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--output is {}; it must not be the input", output));
  }
}

int run(const Options& options) {
  const LayerOptions layer_options = options.flags.options();
  check_output_path(options.output, options.input);
  const Checkpoint checkpoint = Checkpoint::open(options.directory);
  check_is_moe_layer(checkpoint, options.layer);
  const LayerSpec spec = options.flags.apply(checkpoint.layer(options.layer).spec);
  const Inputs inputs = read_inputs(options.input, spec);

  const Layer layer = create_layer(spec, checkpoint.weights(options.layer), layer_options,
                                   fmt::format("layer {}", options.layer));
  const int64_t num_tokens = inputs.hidden_states.view().extent(0);
  const HostTensor output(inputs.hidden_states.view().type, {num_tokens, spec.hidden_size});
  const HostTensor topk_ids(DataType::kI32, {num_tokens, spec.top_k});
  const HostTensor topk_weights(DataType::kF32, {num_tokens, spec.top_k});
  ForwardArgs args{.hidden_states = inputs.hidden_states.view(),
                   .output = output.view(),
                   .input_ids = inputs.input_ids.view()};
  if (options.dump) {
    args.topk_ids_out = topk_ids.view();
    args.topk_weights_out = topk_weights.view();
  }
  const DeviceMemory scratch = make_scratch(layer, num_tokens);
  Runner(layer, scratch).forward(args);

  std::vector<NamedTensor> results{{"output", output.view()}};
  if (options.dump) {
    results.push_back({"topk_ids", topk_ids.view()});
    results.push_back({"topk_weights", topk_weights.view()});
  }
  save_safetensors(options.output, results);
  fmt::print("layer {}: {} tokens x {} ({}) on {}, {} packed -> {}\n", options.layer, num_tokens,
             spec.hidden_size, to_string(output.view().type), layer.plan(num_tokens).device,
             bytes_text(static_cast<double>(layer.packed_bytes())), options.output);
  return kOk;
}

}  // namespace

Command add_run(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("run", "Compute one MoE block over hidden states in a file");
  command->footer(kFooter);
  auto options = std::make_shared<Options>();
  command->add_option("DIR", options->directory, "Model directory")->required();
  command->add_option("--layer", options->layer, "Layer index")->required();
  command->add_option("--input", options->input, "Safetensors file with hidden_states")->required();
  command->add_option("--output", options->output, "Safetensors file to write")->required();
  command->add_flag("--dump", options->dump, "Also write topk_ids and topk_weights");
  add_layer_flags(*command, options->flags);
  return {command, [options] { return run(*options); }};
}

}  // namespace switchyard::cli
