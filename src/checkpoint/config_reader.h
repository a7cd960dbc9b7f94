#pragma once
// Typed access to the keys of a config object. null counts as absent.

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/model_config.h"

namespace switchyard {

class ConfigReader {
 public:
  using Keys = std::initializer_list<const char*>;

  ConfigReader(const nlohmann::json& object, const std::string& source)
      : object_(object), source_(source) {}

  /// Null when absent.
  const nlohmann::json* find(const char* key) const;
  /// Models spell the same fact differently; two spellings that disagree are an error.
  std::optional<int64_t> integer(Keys keys, int64_t min, int64_t max) const;
  std::optional<double> number(Keys keys) const;
  std::optional<bool> boolean(Keys keys) const;
  std::optional<std::string> text(Keys keys) const;
  /// One integer, or a list of them with one per layer.
  PerLayer per_layer(Keys keys, int64_t min, int64_t max) const;
  std::optional<std::vector<int64_t>> integers(const char* key, int64_t min, int64_t max) const;
  std::optional<std::vector<std::string>> texts(const char* key) const;
  /// The object below `key`, when it is one.
  const nlohmann::json* object(const char* key) const;

  [[noreturn]] void fail(const char* key, const nlohmann::json& value,
                         const std::string& rule) const;

 private:
  int64_t checked(const char* key, const nlohmann::json& value, int64_t min, int64_t max) const;

  const nlohmann::json& object_;
  const std::string& source_;
};

}  // namespace switchyard
