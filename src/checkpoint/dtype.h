#pragma once
// The element types a safetensors header may name.

#include <optional>
#include <string_view>

#include "switchyard/tensor.h"

namespace switchyard {

/// One dtype of the format. Unsigned types without a DataType of their own travel in the signed one
/// of the same width; F4 travels as pairs in kU8.
struct StoredType {
  std::string_view name;
  int bits = 0;
  DataType type = DataType::kU8;
};

/// Empty when the name is not known.
std::optional<StoredType> stored_type(std::string_view name);
/// How save_safetensors writes elements of this type.
StoredType stored_type(DataType type);

}  // namespace switchyard
