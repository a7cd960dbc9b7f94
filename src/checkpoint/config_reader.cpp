// Typed access to the keys of a config object.

#include "checkpoint/config_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "checkpoint/json.h"
#include "switchyard/error.h"

namespace switchyard {

namespace {

/// A list longer than any model has layers would only waste memory.
constexpr size_t kMaxListItems = 65536;

/// The first value of `keys`, read by `read`; a later spelling must not contradict it.
template <class T, class Read>
std::optional<T> first_of(const ConfigReader& reader, ConfigReader::Keys keys, Read read) {
  std::optional<T> value;
  const char* decided = nullptr;
  for (const char* key : keys) {
    const nlohmann::json* item = reader.find(key);
    if (item == nullptr) continue;
    T next = read(key, *item);
    if (value && *value != next) {
      reader.fail(key, *item, fmt::format("must agree with '{}'", decided));
    }
    value = std::move(next);
    if (decided == nullptr) decided = key;
  }
  return value;
}

}  // namespace

void ConfigReader::fail(const char* key, const nlohmann::json& value,
                        const std::string& rule) const {
  const std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  throw Error(ErrorCode::kInvalidFile,
              fmt::format("{}: {} is {}; {}", source_, key, printable(text), rule));
}

const nlohmann::json* ConfigReader::find(const char* key) const {
  const auto at = object_.find(key);
  return at == object_.end() || at->is_null() ? nullptr : &*at;
}

int64_t ConfigReader::checked(const char* key, const nlohmann::json& value, int64_t min,
                              int64_t max) const {
  const bool fits =
      value.is_number_integer() &&
      !(value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) &&
      value.get<int64_t>() >= min && value.get<int64_t>() <= max;
  if (!fits) fail(key, value, fmt::format("must be an integer in [{}, {}]", min, max));
  return value.get<int64_t>();
}

std::optional<int64_t> ConfigReader::integer(Keys keys, int64_t min, int64_t max) const {
  return first_of<int64_t>(*this, keys, [&](const char* key, const nlohmann::json& value) {
    return checked(key, value, min, max);
  });
}

std::optional<double> ConfigReader::number(Keys keys) const {
  return first_of<double>(*this, keys, [&](const char* key, const nlohmann::json& value) {
    if (!value.is_number() || !std::isfinite(static_cast<float>(value.get<double>()))) {
      fail(key, value, "must be a number that fits float");
    }
    return value.get<double>();
  });
}

std::optional<bool> ConfigReader::boolean(Keys keys) const {
  return first_of<bool>(*this, keys, [&](const char* key, const nlohmann::json& value) {
    if (!value.is_boolean()) fail(key, value, "must be true or false");
    return value.get<bool>();
  });
}

std::optional<std::string> ConfigReader::text(Keys keys) const {
  return first_of<std::string>(*this, keys, [&](const char* key, const nlohmann::json& value) {
    if (!value.is_string()) fail(key, value, "must be a string");
    return value.get<std::string>();
  });
}

std::optional<std::vector<int64_t>> ConfigReader::integers(const char* key, int64_t min,
                                                           int64_t max) const {
  const nlohmann::json* list = find(key);
  if (list == nullptr) return std::nullopt;
  if (!list->is_array() || list->size() > kMaxListItems) fail(key, *list, "must be a list");
  std::vector<int64_t> out;
  for (const nlohmann::json& item : *list) out.push_back(checked(key, item, min, max));
  return out;
}

std::optional<std::vector<std::string>> ConfigReader::texts(const char* key) const {
  const nlohmann::json* list = find(key);
  if (list == nullptr) return std::nullopt;
  if (!list->is_array() || list->size() > kMaxListItems) fail(key, *list, "must be a list");
  std::vector<std::string> out;
  for (const nlohmann::json& item : *list) {
    if (!item.is_string()) fail(key, item, "must hold strings only");
    out.push_back(item.get<std::string>());
  }
  return out;
}

PerLayer ConfigReader::per_layer(Keys keys, int64_t min, int64_t max) const {
  std::string decided;
  const auto values = first_of<std::vector<int64_t>>(
      *this, keys, [&](const char* key, const nlohmann::json& value) {
        if (decided.empty()) decided = key;
        if (value.is_array()) {
          std::vector<int64_t> list = integers(key, min, max).value();
          // A list of equal values says no more than one value.
          const bool uniform =
              !list.empty() &&
              std::adjacent_find(list.begin(), list.end(), std::not_equal_to<>()) == list.end();
          if (uniform) return std::vector<int64_t>{list.front()};
          return list;
        }
        return std::vector<int64_t>{checked(key, value, min, max)};
      });
  return {.key = decided, .values = values.value_or(std::vector<int64_t>{})};
}

const nlohmann::json* ConfigReader::object(const char* key) const {
  const nlohmann::json* value = find(key);
  if (value != nullptr && !value->is_object()) fail(key, *value, "must be an object");
  return value;
}

}  // namespace switchyard
