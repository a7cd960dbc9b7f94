// JSON from files we do not trust.

#include "checkpoint/json.h"

#include <fmt/format.h>

#include <unordered_set>
#include <vector>

#include "switchyard/error.h"

namespace switchyard {

namespace {

/// Follows the parser's events: one set of keys per open object, none per open array.
class StructureCheck {
 public:
  explicit StructureCheck(const std::string& source) : source_(source) {}

  bool operator()(int, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    switch (event) {
      case Event::object_start:
      case Event::array_start:
        if (open_.size() >= static_cast<size_t>(kMaxJsonDepth)) {
          throw Error(ErrorCode::kInvalidFile,
                      fmt::format("{}: JSON nesting is deeper than {}", source_, kMaxJsonDepth));
        }
        open_.emplace_back();
        break;
      case Event::object_end:
      case Event::array_end: open_.pop_back(); break;
      case Event::key: {
        const auto& key = parsed.get_ref<const std::string&>();
        if (!open_.back().insert(key).second) {
          throw Error(
              ErrorCode::kInvalidFile,
              fmt::format("{}: key '{}' occurs twice in one object", source_, printable(key)));
        }
        break;
      }
      case Event::value: break;
    }
    return true;
  }

 private:
  const std::string& source_;
  std::vector<std::unordered_set<std::string>> open_;
};

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& source) {
  // nlohmann takes a NUL as the end of the text and would ignore what follows.
  if (text.find('\0') != std::string_view::npos) {
    throw Error(ErrorCode::kInvalidFile, source + ": not valid JSON: it holds a NUL byte");
  }
  StructureCheck check(source);
  try {
    return nlohmann::json::parse(
        text.begin(), text.end(),
        [&check](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
          return check(depth, event, parsed);
        });
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorCode::kInvalidFile,
                fmt::format("{}: not valid JSON: {}", source, printable(e.what())));
  }
}

std::string printable(std::string_view name) {
  constexpr size_t kMaxBytes = 200;
  std::string out;
  for (const char c : name.substr(0, kMaxBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  if (name.size() > kMaxBytes) out += "...";
  return out;
}

}  // namespace switchyard
