#pragma once
// JSON for machines. Keys are stable: kSchemaVersion says which set.

#include <nlohmann/json.hpp>
#include <string>

#include "cli/machine.h"
#include "switchyard/layer_spec.h"
#include "switchyard/plan.h"

namespace switchyard::cli {

using Json = nlohmann::ordered_json;

// Raised when a key is renamed, removed or changes its meaning; new keys do not raise it.
inline constexpr int kSchemaVersion = 1;

/// A report with the head that all share: schema_version, command, version, commit.
Json new_report(const char* command);
/// Written beside `path` and renamed, so that a reader never sees half a file.
void save_report(const std::string& path, const Json& report);

Json to_json(const Machine& machine);
Json to_json(const MachineLimits& limits);
Json to_json(const LayerSpec& spec);

}  // namespace switchyard::cli
