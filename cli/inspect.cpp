// switchyard inspect: what the MoE layers of a model directory are, whether their tensors are
// complete, and what they will cost. Reads config.json and safetensors headers only.

#include <fmt/format.h>

#include <array>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/layer_cost.h"
#include "cli/load_layer.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/table.h"
#include "cli/text.h"
#include "switchyard/checkpoint.h"

namespace switchyard::cli {
namespace {

constexpr const char* kFooter =
    R"(Reads headers only, whatever the size of the model. Exit status 1 when a tensor of a MoE block is
missing or not understood.

Examples:
  switchyard inspect ~/models/Qwen3-30B-A3B
  switchyard inspect ~/models/gpt-oss-20b --layer 5
  switchyard inspect ~/models/gpt-oss-20b --json | jq '.groups[0].predictions')";

constexpr std::array<int64_t, 4> kRanks{1, 2, 4, 8};
constexpr std::array<int64_t, 5> kTokens{1, 8, 64, 1024, 8192};

struct Options {
  std::string directory;
  std::optional<int64_t> layer;
  bool json = false;
};

/// Layers that differ in nothing but their index.
struct Group {
  CheckpointLayer first;
  std::vector<int64_t> layers;
};

struct Limits {
  MachineLimits here;
  MachineLimits h200;
};

bool alike(const CheckpointLayer& a, const CheckpointLayer& b) {
  return a.coverage.complete() && b.coverage.complete() && a.family == b.family &&
         a.weight_format == b.weight_format && a.spec == b.spec &&
         a.expert_bytes == b.expert_bytes && a.other_bytes == b.other_bytes;
}

std::vector<Group> group_layers(const Checkpoint& checkpoint, const std::vector<int64_t>& layers) {
  std::vector<Group> groups;
  for (const int64_t index : layers) {
    CheckpointLayer layer = checkpoint.inspect(index);
    const auto same = std::find_if(groups.begin(), groups.end(), [&layer](const Group& group) {
      return alike(group.first, layer);
    });
    if (same != groups.end()) {
      same->layers.push_back(index);
    } else {
      groups.push_back({std::move(layer), {index}});
    }
  }
  return groups;
}

/// Weights of one layer on the fullest rank. Router and shared experts are whole on every rank.
struct RankMemory {
  int64_t ranks = 1;
  int64_t ep_experts = 0;
  double ep_bytes = 0;
  TensorParallelSplit tp{};
  double tp_bytes = 0;
};

RankMemory rank_memory(const CheckpointLayer& layer, int64_t ranks) {
  const LayerSpec& spec = layer.spec;
  RankMemory memory{.ranks = ranks, .tp = tensor_parallel_split(spec, ranks)};
  memory.ep_experts = (spec.num_experts + ranks - 1) / ranks;
  const auto expert = static_cast<double>(layer.expert_bytes);
  const auto other = static_cast<double>(layer.other_bytes);
  memory.ep_bytes = static_cast<double>(memory.ep_experts) * expert + other;
  // Undivided, the checkpoint's own bytes; a part is in proportion to its padded columns.
  const double part = ranks == 1 ? 1.0
                                 : static_cast<double>(memory.tp.padded_shard) /
                                       static_cast<double>(spec.intermediate_size);
  memory.tp_bytes = static_cast<double>(spec.num_experts) * expert * part + other;
  return memory;
}

struct Prediction {
  int64_t tokens = 0;
  double distinct_experts = 0;
  double bytes = 0;
  double flops = 0;
  Floor here;
  Floor h200;
};

Prediction predict(const CheckpointLayer& layer, int64_t tokens, const Limits& limits) {
  Prediction p;
  p.tokens = tokens;
  p.distinct_experts = expected_distinct_experts(layer.spec, tokens);
  p.bytes = p.distinct_experts * static_cast<double>(layer.expert_bytes) +
            static_cast<double>(layer.other_bytes);
  p.flops = expert_flops(layer.spec, tokens) + router_flops(layer.spec, tokens);
  p.here = time_floor(p.bytes, p.flops, layer.spec, limits.here);
  p.h200 = time_floor(p.bytes, p.flops, layer.spec, limits.h200);
  return p;
}

// --- JSON

Json json_of(const Coverage& coverage) {
  return {{"complete", coverage.complete()}, {"used", coverage.used},
          {"ignored", coverage.ignored},     {"ignored_names", coverage.ignored_names},
          {"unknown", coverage.unknown},     {"missing", coverage.missing}};
}

Json json_of(const Group& group, const Limits& limits) {
  const CheckpointLayer& layer = group.first;
  Json json{{"layers", group.layers},
            {"family", layer.family},
            {"prefix", layer.prefix},
            {"weight_format", layer.weight_format},
            {"spec", to_json(layer.spec)},
            {"expert_bytes", layer.expert_bytes},
            {"other_bytes", layer.other_bytes},
            {"layer_bytes", layer.spec.num_experts * layer.expert_bytes + layer.other_bytes},
            {"coverage", json_of(layer.coverage)}};
  if (!layer.coverage.complete()) return json;
  for (const int64_t ranks : kRanks) {
    const RankMemory memory = rank_memory(layer, ranks);
    json["memory_per_rank"].push_back({{"ranks", ranks},
                                       {"ep_experts", memory.ep_experts},
                                       {"ep_bytes", memory.ep_bytes},
                                       {"tp_intermediate_size", memory.tp.shard},
                                       {"tp_padded_intermediate_size", memory.tp.padded_shard},
                                       {"tp_granularity", memory.tp.granularity},
                                       {"tp_bytes", memory.tp_bytes}});
  }
  for (const int64_t tokens : kTokens) {
    const Prediction p = predict(layer, tokens, limits);
    json["predictions"].push_back({{"tokens", p.tokens},
                                   {"distinct_experts", p.distinct_experts},
                                   {"bytes", p.bytes},
                                   {"flops", p.flops},
                                   {"here_us", p.here.us},
                                   {"h200_us", p.h200.us}});
  }
  return json;
}

void print_json(const Options& options, const Checkpoint& checkpoint,
                const std::vector<Group>& groups, const Limits& limits) {
  Json report = new_report("inspect");
  report["directory"] = options.directory;
  report["model_type"] = checkpoint.model_type();
  report["num_hidden_layers"] = checkpoint.num_hidden_layers();
  report["moe_layers"] = checkpoint.moe_layers();
  report["limits"] = {{"here", to_json(limits.here)}, {"h200", to_json(limits.h200)}};
  report["groups"] = Json::array();
  for (const Group& group : groups) report["groups"].push_back(json_of(group, limits));
  fmt::print("{}\n", report.dump(2));
}

// --- text

void print_facts(const CheckpointLayer& layer) {
  const LayerSpec& spec = layer.spec;
  const Coverage& coverage = layer.coverage;
  const auto line = [](const char* name, const std::string& text) {
    fmt::print("  {:<15}{}\n", name, text);
  };
  line("tensors", fmt::format("{} ({}*)", layer.family, layer.prefix));
  line("coverage", fmt::format("{}: {} used, {} known and not needed",
                               coverage.complete() ? colored(Color::kGreen, "complete")
                                                   : colored(Color::kRed, "INCOMPLETE"),
                               coverage.used, coverage.ignored));
  if (!coverage.missing.empty()) {
    line("  missing",
         fmt::format("{}: {}", coverage.missing.size(), list_text(coverage.missing, 8)));
  }
  if (!coverage.unknown.empty()) {
    line("  unknown",
         fmt::format("{}: {}", coverage.unknown.size(), list_text(coverage.unknown, 8)));
  }
  std::string sizes = fmt::format("hidden {}, intermediate {}, {} experts", spec.hidden_size,
                                  spec.intermediate_size, spec.num_experts);
  if (spec.latent_size > 0) sizes += fmt::format(", experts see a latent of {}", spec.latent_size);
  line("sizes", sizes);
  line("routing", routing_text(spec));
  line("activation", activation_text(spec.activation));
  line("shared experts", shared_text(spec));
  const auto expert = static_cast<double>(layer.expert_bytes);
  const auto other = static_cast<double>(layer.other_bytes);
  line("weights", fmt::format("{}: {} per expert, {} per layer, of which {} are not routed",
                              layer.weight_format, bytes_text(expert),
                              bytes_text(static_cast<double>(spec.num_experts) * expert + other),
                              bytes_text(other)));
}

void print_memory(const Group& group) {
  const CheckpointLayer& layer = group.first;
  const auto num_layers = static_cast<double>(group.layers.size());
  Table table({{"ranks"},
               {"EP experts"},
               {"EP layer"},
               {"EP all layers"},
               {"TP inter"},
               {"TP layer"},
               {"TP all layers"},
               {"TP cut", Align::kLeft}});
  for (const int64_t ranks : kRanks) {
    const RankMemory memory = rank_memory(layer, ranks);
    const TensorParallelSplit& tp = memory.tp;
    std::string cut = "whole";
    if (ranks > 1) {
      cut = tp.on_block_boundaries()
                ? fmt::format("on boundaries of {}", tp.granularity)
                : fmt::format("padded to {}, blocks of {}", tp.padded_shard, tp.granularity);
      if (layer.spec.intermediate_size % ranks != 0) cut += ", uneven";
    }
    table.add_row({fmt::to_string(ranks), fmt::to_string(memory.ep_experts),
                   bytes_text(memory.ep_bytes), bytes_text(memory.ep_bytes * num_layers),
                   fmt::to_string(tp.shard), bytes_text(memory.tp_bytes),
                   bytes_text(memory.tp_bytes * num_layers), cut});
  }
  fmt::print("\n  Weights per rank, expert parallel (EP) and tensor parallel (TP)\n{}",
             table.str());
}

void print_predictions(const CheckpointLayer& layer, const Limits& limits) {
  Table table({{"tokens"},
               {"distinct experts"},
               {"weights read"},
               {"GFLOP"},
               {"here"},
               {"bound by", Align::kLeft},
               {"H200"},
               {"bound by", Align::kLeft}});
  const auto bound = [&layer](const Floor& floor, const MachineLimits& machine) {
    return floor.memory_bound
               ? std::string("memory")
               : fmt::format("{} arithmetic", arithmetic_peak(layer.spec, machine).name);
  };
  for (const int64_t tokens : kTokens) {
    const Prediction p = predict(layer, tokens, limits);
    table.add_row({fmt::to_string(tokens), fmt::format("{:.1f}", p.distinct_experts),
                   bytes_text(p.bytes), fmt::format("{:.3g}", p.flops * 1e-9), time_text(p.here.us),
                   bound(p.here, limits.here), time_text(p.h200.us), bound(p.h200, limits.h200)});
  }
  fmt::print("\n  Predicted time of a layer: the floor that memory and arithmetic set\n{}",
             table.str());
}

void print_text(const Checkpoint& checkpoint, const std::vector<Group>& groups,
                const Limits& limits) {
  const int64_t num_layers = checkpoint.num_hidden_layers();
  fmt::print("{}: {} layer{}, {} with a MoE block ({})\n", checkpoint.model_type(), num_layers,
             num_layers == 1 ? "" : "s", checkpoint.moe_layers().size(),
             ranges_text(checkpoint.moe_layers()));
  for (const Group& group : groups) {
    fmt::print("\nlayer{} {}\n", group.layers.size() > 1 ? "s" : "", ranges_text(group.layers));
    print_facts(group.first);
    if (!group.first.coverage.complete()) continue;
    print_memory(group);
    print_predictions(group.first, limits);
  }
  const auto machine = [](const char* name, const MachineLimits& m, const std::string& note) {
    fmt::print("{}: {}, reads {:.1f} GB/s, {}{}\n", name, m.device, m.read_gbps, note, "");
  };
  fmt::print("\n");
  machine("here", limits.here,
          fmt::format("f32 {:.0f} GFLOP/s, int8 {:.0f} Gop/s (measured now)",
                      limits.here.f32_gflops, limits.here.int8_gops));
  machine("H200", limits.h200,
          fmt::format("bf16 {:.0f} TFLOP/s, fp8 {:.0f} TFLOP/s (typical)",
                      limits.h200.bf16_gflops * 1e-3, limits.h200.fp8_gflops * 1e-3));
}

int run(const Options& options) {
  const Checkpoint checkpoint = Checkpoint::open(options.directory);
  if (options.layer) check_is_moe_layer(checkpoint, *options.layer);
  const std::vector<Group> groups = group_layers(
      checkpoint, options.layer ? std::vector<int64_t>{*options.layer} : checkpoint.moe_layers());
  const Limits limits{.here = measure_limits(), .h200 = h200_limits()};
  if (options.json) {
    print_json(options, checkpoint, groups, limits);
  } else {
    print_text(checkpoint, groups, limits);
  }
  const bool complete = std::all_of(groups.begin(), groups.end(), [](const Group& group) {
    return group.first.coverage.complete();
  });
  return complete ? kOk : kFailedCheck;
}

}  // namespace

Command add_inspect(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("inspect", "Show the MoE layers of a model directory and their cost");
  command->footer(kFooter);
  auto options = std::make_shared<Options>();
  command->add_option("DIR", options->directory, "Model directory")->required();
  command->add_option("--layer", options->layer, "Only this layer");
  command->add_flag("--json", options->json, "Print JSON");
  return {command, [options] { return run(*options); }};
}

}  // namespace switchyard::cli
