// Plans as text, and the H200's limits for machines that have none.

#include "switchyard/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/activation_format.h"

namespace switchyard {
namespace {

/// "850 B", "12.3 MB": at most four digits.
std::string bytes_text(double bytes) {
  if (bytes < 1e3) return fmt::format("{:.0f} B", bytes);
  if (bytes < 1e6) return fmt::format("{:.1f} KB", bytes / 1e3);
  if (bytes < 1e9) return fmt::format("{:.1f} MB", bytes / 1e6);
  return fmt::format("{:.2f} GB", bytes / 1e9);
}

std::string flops_text(double flops) {
  if (flops < 1e6) return fmt::format("{:.1f} K", flops / 1e3);
  if (flops < 1e9) return fmt::format("{:.1f} M", flops / 1e6);
  if (flops < 1e12) return fmt::format("{:.1f} G", flops / 1e9);
  return fmt::format("{:.2f} T", flops / 1e12);
}

std::string us_text(double us) { return us > 0 ? fmt::format("{:.1f}", us) : "-"; }

}  // namespace

ActivationFormat activations_on(BackendKind backend, const LayerSpec& spec) {
  return resolved_activation_format(spec, backend);
}

double Plan::predicted_us() const {
  double sum = 0;
  for (const PlanStep& step : steps) sum += step.predicted_us;
  return sum;
}

std::string Plan::explain() const {
  std::string text = fmt::format(
      "{} tokens on {} ({})\n{:.1f} distinct experts expected, workspace {}, predicted {} us\n\n",
      num_tokens, to_string(backend), device, expected_distinct_experts,
      bytes_text(static_cast<double>(workspace_bytes)), us_text(predicted_us()));
  size_t step_width = 4;
  size_t kernel_width = 6;
  for (const PlanStep& s : steps) {
    step_width = std::max(step_width, s.step.size());
    kernel_width = std::max(kernel_width, s.kernel.size());
  }
  const auto line = [&](const std::string& step, const std::string& kernel, const std::string& us,
                        const std::string& bytes, const std::string& flops,
                        const std::string& why) {
    text += fmt::format("{:<{}}  {:<{}}  {:>10}  {:>9}  {:>8}  {}\n", step, step_width, kernel,
                        kernel_width, us, bytes, flops, why);
  };
  line("step", "kernel", "us", "bytes", "FLOP", "why");
  for (const PlanStep& s : steps) {
    line(s.step, s.kernel, us_text(s.predicted_us), bytes_text(s.bytes), flops_text(s.flops),
         s.why);
  }
  if (!rejected.empty()) text += "\nnot taken:\n";
  for (const std::string& reason : rejected) text += "  " + reason + "\n";
  return text;
}

MachineLimits h200_limits() {
  // Measured on one H200, except fp32 and INT8, which are NVIDIA's data sheet.
  return {.backend = BackendKind::kCuda,
          .device = "NVIDIA H200 (typical)",
          .read_gbps = 4630,
          .copy_gbps = 4300,
          .f32_gflops = 67e3,
          .bf16_gflops = 807e3,
          .int8_gops = 1979e3,
          .fp8_gflops = 1522e3,
          .num_threads = 0};
}

}  // namespace switchyard
