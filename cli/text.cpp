#include "cli/text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>

namespace switchyard::cli {

std::string bytes_text(double bytes) {
  constexpr std::array kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < kUnits.size(); ++unit) bytes /= 1024;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.2f} {}", bytes, kUnits[unit]);
}

std::string time_text(double us) {
  if (us < 10) return fmt::format("{:.2f} us", us);
  if (us < 1e3) return fmt::format("{:.1f} us", us);
  if (us < 1e6) return fmt::format("{:.2f} ms", us * 1e-3);
  return fmt::format("{:.2f} s", us * 1e-6);
}

std::string ranges_text(const std::vector<int64_t>& ascending) {
  std::string text;
  for (size_t begin = 0; begin < ascending.size();) {
    size_t end = begin + 1;
    while (end < ascending.size() && ascending[end] == ascending[end - 1] + 1) ++end;
    if (!text.empty()) text += ",";
    text += end - begin == 1 ? fmt::format("{}", ascending[begin])
                             : fmt::format("{}-{}", ascending[begin], ascending[end - 1]);
    begin = end;
  }
  return text;
}

std::string list_text(const std::vector<std::string>& items, size_t limit) {
  const size_t shown = std::min(items.size(), limit);
  std::string text = fmt::format(
      "{}", fmt::join(items.begin(), items.begin() + static_cast<std::ptrdiff_t>(shown), ", "));
  if (shown < items.size()) text += fmt::format(" and {} more", items.size() - shown);
  return text;
}

std::string routing_text(const LayerSpec& spec) {
  const RoutingSpec& routing = spec.routing;
  std::string text = fmt::format("top {} of {}", spec.routed_top_k(), spec.num_routed());
  if (routing.hash) text += ", experts from tid2eid[input_id]";
  text += fmt::format(", {}", to_string(routing.scoring));
  if (routing.num_groups > 1) {
    text += fmt::format(", {} of {} groups by {}", routing.topk_groups, routing.num_groups,
                        routing.group_score == GroupScore::kMax ? "best score" : "two best scores");
  }
  text += routing.renormalize ? ", renormalized" : ", not renormalized";
  if (routing.routed_scaling_factor != 1.0f) {
    text += fmt::format(", times {}", routing.routed_scaling_factor);
  }
  if (spec.weight_position == WeightPosition::kInput) text += ", weight on the expert's input";
  return text;
}

std::string activation_text(const ActivationSpec& spec) {
  std::string name = to_string(spec.kind);
  switch (spec.kind) {
    case Activation::kSwiGluClamp: return fmt::format("{} (limit {})", name, spec.limit);
    case Activation::kSwiGluOai:
      return fmt::format("{} (alpha {}, limit {})", name, spec.alpha, spec.limit);
    case Activation::kSiTu:
      return fmt::format("{} (beta {}, linear_beta {})", name, spec.beta, spec.linear_beta);
    default: return name;
  }
}

std::string shared_text(const LayerSpec& spec) {
  std::string text = "none";
  if (spec.shared.intermediate_size > 0) {
    text = fmt::format("{}{}", spec.shared.intermediate_size,
                       spec.shared.sigmoid_gate ? ", sigmoid-gated" : "");
  }
  if (spec.num_fused_shared > 0) {
    const std::string fused = fmt::format("{} fused as routed slots, weight {}",
                                          spec.num_fused_shared, spec.fused_shared_weight);
    text = text == "none" ? fused : text + "; " + fused;
  }
  return text;
}

std::string scale_block_text(const LayerSpec& spec) {
  const ScaleBlock block = spec.weight_scale_block;
  if (element_bits(spec.weight_format) >= 16) return "no scales";
  if (block == ScaleBlock{0, 0}) return "scale per tensor";
  if (block.cols == 0)
    return block.rows == 1 ? "scale per channel" : fmt::format("scale per {} rows", block.rows);
  return fmt::format("scale per {}x{}", block.rows, block.cols);
}

}  // namespace switchyard::cli
