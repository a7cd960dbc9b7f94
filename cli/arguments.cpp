#include "cli/arguments.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <filesystem>

#include "switchyard/error.h"

namespace switchyard::cli {
namespace {

[[noreturn]] void bad_token_list(const std::string& text, const std::string& rule) {
  throw Error(ErrorCode::kInvalidArgument, fmt::format("--tokens is '{}'; {}", text, rule));
}

int64_t parse_count(const std::string& text, std::string_view item) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), value);
  if (error != std::errc() || end != item.data() + item.size()) {
    bad_token_list(text, fmt::format("'{}' is not a number; write e.g. 1,16,64 or 1..1024", item));
  }
  if (value < 1 || value > kMaxTokens) {
    bad_token_list(text, fmt::format("{} is outside 1..{}", value, kMaxTokens));
  }
  return value;
}

}  // namespace

std::vector<int64_t> parse_token_list(const std::string& text) {
  std::vector<int64_t> tokens;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view item = std::string_view(text).substr(begin, end - begin);
    const size_t dots = item.find("..");
    if (dots == std::string_view::npos) {
      tokens.push_back(parse_count(text, item));
    } else {
      const int64_t first = parse_count(text, item.substr(0, dots));
      const int64_t last = parse_count(text, item.substr(dots + 2));
      if (last < first) bad_token_list(text, fmt::format("range '{}' runs downwards", item));
      for (int64_t count = first; count <= last; count *= 2) tokens.push_back(count);
    }
    begin = end + 1;
  }
  return tokens;
}

BackendKind parse_backend(const std::string& text) {
  for (const BackendKind kind : std::array{BackendKind::kAuto, BackendKind::kCpu,
                                           BackendKind::kCuda, BackendKind::kReference}) {
    if (text == to_string(kind)) return kind;
  }
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("--backend is '{}'; one of auto, cpu, cuda, reference is needed", text));
}

LayerOptions LayerFlags::options() const {
  check_range("--threads", threads, 0, 4096);
  LayerOptions result;
  result.backend = parse_backend(backend);
  result.num_threads = threads;
  return result;
}

LayerSpec LayerFlags::apply(LayerSpec spec) const {
  spec.activation_format = activation_format_from_string(activations);
  return spec;
}

void add_layer_flags(CLI::App& command, LayerFlags& flags) {
  command.add_option("--backend", flags.backend, "auto, cpu, cuda or reference")
      ->capture_default_str();
  command
      .add_option("--activations", flags.activations,
                  "How activations are rounded where they meet the weights: auto, none, "
                  "int8_block32, ... (NVFP4 weights, too, to E4M3 where a Hopper GPU multiplies "
                  "them by fp8_per_token or fp8_per_tensor)")
      ->capture_default_str();
  command.add_option("--threads", flags.threads, "CPU threads; 0 = all cores")
      ->capture_default_str();
}

void check_range(const char* option, double value, double minimum, double maximum) {
  if (value >= minimum && value <= maximum) return;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("{} is {}; it must lie in [{}, {}]", option, value, minimum, maximum));
}

void check_output_directory(const char* option, const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const auto refuse = [&](const char* rule) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{} is {}; {}", option, path, rule));
  };
  if (path.empty() || fs::is_directory(path, error)) refuse("it must name a file");
  const fs::path parent = fs::absolute(path).parent_path();
  if (!fs::is_directory(parent, error)) refuse("its directory does not exist");
  if (access(parent.c_str(), W_OK) != 0) refuse("its directory cannot be written to");
}

}  // namespace switchyard::cli
