#pragma once
// JSON from files we do not trust: bounded depth, no duplicate keys, typed errors.

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace switchyard {

/// Deepest nesting accepted; config.json of the largest models needs 8.
inline constexpr int kMaxJsonDepth = 64;

/// Throws Error{kInvalidFile} starting with `source` for malformed text, a key that occurs twice in
/// one object, or nesting beyond kMaxJsonDepth.
nlohmann::json parse_json(std::string_view text, const std::string& source);

/// A name from a file as it may appear in a message: control characters escaped, at most 200 bytes.
std::string printable(std::string_view name);

}  // namespace switchyard
