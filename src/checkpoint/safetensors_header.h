#pragma once
// The header of one safetensors file, checked completely before any tensor byte is looked at.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/dtype.h"
#include "switchyard/checkpoint.h"

namespace switchyard {

/// The format's own limit on the JSON header.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct HeaderTensor {
  std::string name;
  StoredType type{};
  std::vector<int64_t> shape{};  ///< in elements, as written
  int64_t begin = 0;             ///< bytes from the first tensor byte
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<HeaderTensor> tensors{};  ///< ascending `begin`; they tile the data without gaps
  int64_t data_begin = 0;               ///< bytes from the start of the file
};

/// `file` is the whole file; only its header is read. Throws Error{kInvalidFile} naming `path` and
/// the culprit.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file,
                                           const std::string& path);

/// The tensors of a parsed header as views into `file`.
std::vector<CheckpointTensor> list_tensors(const SafetensorsHeader& header,
                                           std::span<const std::byte> file,
                                           const std::string& path);

}  // namespace switchyard
