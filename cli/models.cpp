// switchyard models: the built-in production shapes.

#include "switchyard/models.h"

#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/report.h"
#include "cli/synthetic.h"
#include "cli/table.h"
#include "cli/text.h"

namespace switchyard::cli {
namespace {

constexpr const char* kFooter = R"(Examples:
  switchyard models
  switchyard models --json | jq -r '.models[].name'
  switchyard bench --model $(switchyard models --json | jq -r '.models[0].name'))";

void print_json() {
  Json report = new_report("models");
  for (const ModelShape& model : model_shapes()) {
    report["models"].push_back({{"name", model.name},
                                {"title", model.title},
                                {"note", model.note},
                                {"biases", model.biases},
                                {"selection_bias", model.selection_bias},
                                {"expert_bytes", expert_bytes(model.spec, model.biases)},
                                {"spec", to_json(model.spec)}});
  }
  fmt::print("{}\n", report.dump(2));
}

void print_table() {
  Table table({{"name", Align::kLeft},
               {"hidden"},
               {"inter"},
               {"experts"},
               {"top k"},
               {"shared"},
               {"activation", Align::kLeft},
               {"format", Align::kLeft},
               {"expert"},
               {"layer"},
               {"note", Align::kLeft}});
  for (const ModelShape& model : model_shapes()) {
    const LayerSpec& spec = model.spec;
    const auto bytes = static_cast<double>(expert_bytes(spec, model.biases));
    table.add_row({model.name, fmt::to_string(spec.hidden_size),
                   fmt::to_string(spec.intermediate_size), fmt::to_string(spec.num_experts),
                   fmt::to_string(spec.top_k), fmt::to_string(spec.shared.intermediate_size),
                   to_string(spec.activation.kind), to_string(spec.weight_format),
                   bytes_text(bytes), bytes_text(bytes * static_cast<double>(spec.num_experts)),
                   model.note});
  }
  fmt::print("{}", table.str());
}

}  // namespace

Command add_models(CLI::App& app) {
  CLI::App* command = app.add_subcommand("models", "List the built-in production shapes");
  command->footer(kFooter);
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Print JSON");
  return {command, [json] {
            *json ? print_json() : print_table();
            return kOk;
          }};
}

}  // namespace switchyard::cli
