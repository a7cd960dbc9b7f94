#pragma once
// Values of command line options. Every function throws Error{kInvalidArgument} that names the
// option, the value and the rule.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "switchyard/layer.h"

namespace switchyard::cli {

/// "1,2,4..4096": numbers and doubling ranges (4..20 is 4, 8, 16), each in [1, kMaxTokens].
std::vector<int64_t> parse_token_list(const std::string& text);

/// "auto", "cpu", "cuda" or "reference".
BackendKind parse_backend(const std::string& text);

/// Options that every command which makes a layer has.
struct LayerFlags {
  std::string backend = "auto";
  std::string activations = "auto";
  int threads = 0;

  LayerOptions options() const;
  /// `spec` with the activation format that was asked for.
  LayerSpec apply(LayerSpec spec) const;
};
void add_layer_flags(CLI::App& command, LayerFlags& flags);

/// Throws unless minimum <= value <= maximum.
void check_range(const char* option, double value, double minimum, double maximum);

/// Throws unless a file can be put at `path`. Asked before any work: an hour of packing must not
/// end in "no such directory".
void check_output_directory(const char* option, const std::string& path);

}  // namespace switchyard::cli
