#include "cli/report.h"

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "switchyard/error.h"

namespace switchyard::cli {

Json new_report(const char* command) {
  return {{"schema_version", kSchemaVersion},
          {"command", command},
          {"version", version()},
          {"commit", commit()}};
}

void save_report(const std::string& path, const Json& report) {
  const std::string temporary = fmt::format("{}.{}.tmp", path, getpid());
  std::ofstream file(temporary);
  file << report.dump(2) << "\n";
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(temporary, path, error);
  if (!file || error) {
    std::filesystem::remove(temporary, error);
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--json is {}; it must be a path that can be written", path));
  }
}

Json to_json(const Machine& machine) {
  return {{"cpu", machine.cpu},
          {"num_cores", machine.num_cores},
          {"l3_bytes", machine.l3_bytes},
          {"memory_bytes", machine.memory_bytes}};
}

Json to_json(const MachineLimits& limits) {
  return {{"backend", to_string(limits.backend)}, {"device", limits.device},
          {"num_threads", limits.num_threads},    {"read_gbps", limits.read_gbps},
          {"copy_gbps", limits.copy_gbps},        {"f32_gflops", limits.f32_gflops},
          {"bf16_gflops", limits.bf16_gflops},    {"fp8_gflops", limits.fp8_gflops},
          {"int8_gops", limits.int8_gops}};
}

Json to_json(const LayerSpec& spec) {
  const RoutingSpec& routing = spec.routing;
  return {{"num_experts", spec.num_experts},
          {"top_k", spec.top_k},
          {"hidden_size", spec.hidden_size},
          {"intermediate_size", spec.intermediate_size},
          {"latent_size", spec.latent_size},
          {"routing",
           {{"scoring", to_string(routing.scoring)},
            {"renormalize", routing.renormalize},
            {"num_groups", routing.num_groups},
            {"topk_groups", routing.topk_groups},
            {"group_score", routing.group_score == GroupScore::kMax ? "max" : "top2_sum"},
            {"routed_scaling_factor", routing.routed_scaling_factor},
            {"hash", routing.hash},
            {"weight_on_input", spec.weight_position == WeightPosition::kInput}}},
          {"activation", to_string(spec.activation.kind)},
          {"shared_intermediate_size", spec.shared.intermediate_size},
          {"shared_sigmoid_gate", spec.shared.sigmoid_gate},
          {"num_fused_shared", spec.num_fused_shared},
          {"weight_format", to_string(spec.weight_format)},
          {"weight_scale_block", {spec.weight_scale_block.rows, spec.weight_scale_block.cols}},
          {"activation_format", to_string(spec.activation_format)}};
}

}  // namespace switchyard::cli
