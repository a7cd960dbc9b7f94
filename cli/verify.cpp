// switchyard verify: a backend against the double-precision reference on one layer of a checkpoint.

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/load_layer.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/table.h"
#include "cli/text.h"
#include "cli/verify_case.h"
#include "cli/verify_inputs.h"

namespace switchyard::cli {
namespace {

constexpr const char* kFooter =
    R"(For every kind of input: the experts' output against the reference (plain loops in double) fed with
the same choice of experts; the choice against logits in double; the same call twice, bit for bit;
single tokens against the batch, bit for bit. Errors are fractions of the reference's rms. The
bounds follow from the formats. Exit status 1 when anything fails.

Examples:
  switchyard verify ~/models/Qwen3-30B-A3B --layer 3
  switchyard verify model --layer 0 --tokens 64 --activations none
  switchyard verify model --layer 0 --backend cuda --json)";

struct Options {
  std::string directory;
  int64_t layer = 0;
  int64_t tokens = 16;
  uint64_t seed = 1;
  LayerFlags flags;
  bool json = false;
};

std::string mark(bool passed) {
  return passed ? colored(Color::kGreen, "ok") : colored(Color::kRed, "FAIL");
}

void print_table(const Options& options, const Layer& layer,
                 const std::vector<CaseResult>& results) {
  fmt::print("{} layer {}, {} on {}, {} tokens of each kind\n", options.directory, options.layer,
             to_string(layer.spec().weight_format), layer.plan(options.tokens).device,
             options.tokens);
  fmt::print("worst element as token / expert / expert-sorted row / column\n\n");
  Table table({{"input", Align::kLeft},
               {"type", Align::kLeft},
               {"rms error"},
               {"bound"},
               {"worst"},
               {"bound"},
               {"at"},
               {"error", Align::kLeft},
               {"routing", Align::kLeft},
               {"repeat", Align::kLeft},
               {"alone", Align::kLeft}});
  for (const CaseResult& r : results) {
    table.add_row(
        {r.name, to_string(r.type), fmt::format("{:.2e}", r.comparison.rms_error),
         fmt::format("{:.2e}", r.bound.rms), fmt::format("{:.2e}", r.comparison.worst_error),
         fmt::format("{:.2e}", r.bound.worst),
         fmt::format("{}/{}/{}/{}", r.worst.token, r.worst.expert, r.worst.row, r.worst.column),
         mark(r.comparison.within(r.bound)), mark(r.routing.empty()), mark(r.repeat.empty()),
         mark(r.batch.empty())});
  }
  fmt::print("{}\n", table.str());
  for (const CaseResult& r : results) {
    if (r.comparison.num_nan > 0) {
      fmt::print("{} ({}): {} values are NaN or infinite where the reference is finite\n", r.name,
                 to_string(r.type), r.comparison.num_nan);
    }
    for (const std::string& why : {r.routing, r.repeat, r.batch}) {
      if (!why.empty()) fmt::print("{} ({}): {}\n", r.name, to_string(r.type), why);
    }
  }
  for (const CaseResult& r : results) {
    const bool first_of_type =
        &r == &*std::find_if(results.begin(), results.end(),
                             [&r](const CaseResult& other) { return other.type == r.type; });
    if (first_of_type) fmt::print("bound, {}: {}\n", to_string(r.type), r.bound.derivation);
  }
}

void print_json(const Options& options, const Layer& layer, const std::vector<CaseResult>& results,
                bool passed) {
  Json report = new_report("verify");
  report["directory"] = options.directory;
  report["layer"] = options.layer;
  report["backend"] = to_string(layer.backend());
  report["device"] = layer.plan(options.tokens).device;
  report["tokens"] = options.tokens;
  report["seed"] = options.seed;
  report["spec"] = to_json(layer.spec());
  report["passed"] = passed;
  for (const CaseResult& r : results) {
    report["cases"].push_back({{"input", r.name},
                               {"type", to_string(r.type)},
                               {"passed", r.passed()},
                               {"rms_error", r.comparison.rms_error},
                               {"rms_bound", r.bound.rms},
                               {"worst_error", r.comparison.worst_error},
                               {"worst_bound", r.bound.worst},
                               {"num_nan", r.comparison.num_nan},
                               {"worst_token", r.worst.token},
                               {"worst_expert", r.worst.expert},
                               {"worst_row", r.worst.row},
                               {"worst_column", r.worst.column},
                               {"routing", r.routing},
                               {"repeat", r.repeat},
                               {"batch", r.batch}});
  }
  fmt::print("{}\n", report.dump(2));
}

int run(const Options& options) {
  check_range("--tokens", static_cast<double>(options.tokens), 1, 65536);
  const LayerOptions layer_options = options.flags.options();
  const Checkpoint checkpoint = Checkpoint::open(options.directory);
  check_is_moe_layer(checkpoint, options.layer);
  const LayerSpec spec = options.flags.apply(checkpoint.layer(options.layer).spec);
  const Weights weights = checkpoint.weights(options.layer);
  const Layer layer =
      create_layer(spec, weights, layer_options, fmt::format("layer {}", options.layer));
  LayerOptions reference_options;
  reference_options.backend = BackendKind::kReference;
  const Layer reference = create_layer(spec, weights, reference_options, "reference");

  const RouterTruth router(spec, weights.router);
  const std::vector<InputCase> inputs =
      make_input_cases(spec, router, options.tokens, options.seed);
  std::vector<CaseResult> results;
  {
    Progress progress("verifying");
    for (const InputCase& input : inputs) {
      progress.update(static_cast<int64_t>(results.size()), static_cast<int64_t>(inputs.size()));
      results.push_back(verify_case(layer, reference, router, input));
    }
  }
  const bool passed =
      std::all_of(results.begin(), results.end(), [](const CaseResult& r) { return r.passed(); });
  if (options.json) {
    print_json(options, layer, results, passed);
  } else {
    print_table(options, layer, results);
    fmt::print("{}\n",
               passed ? colored(Color::kGreen, "verified") : colored(Color::kRed, "MISMATCH"));
  }
  return passed ? kOk : kFailedCheck;
}

}  // namespace

Command add_verify(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("verify", "Compare a backend with the reference on a checkpoint's layer");
  command->footer(kFooter);
  auto options = std::make_shared<Options>();
  command->add_option("DIR", options->directory, "Model directory")->required();
  command->add_option("--layer", options->layer, "Layer index")->required();
  command->add_option("--tokens", options->tokens, "Tokens of each kind of input")
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Seed of the inputs")->capture_default_str();
  command->add_flag("--json", options->json, "Print JSON");
  add_layer_flags(*command, options->flags);
  return {command, [options] { return run(*options); }};
}

}  // namespace switchyard::cli
