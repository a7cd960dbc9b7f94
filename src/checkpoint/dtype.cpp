// The element types a safetensors header may name.

#include "checkpoint/dtype.h"

#include <array>

namespace switchyard {

namespace {

// The first row of a DataType is the name it is written with.
constexpr std::array<StoredType, 17> kStoredTypes{{
    {"BOOL", 8, DataType::kBool},
    {"U8", 8, DataType::kU8},
    {"I8", 8, DataType::kI8},
    {"F8_E5M2", 8, DataType::kF8E5m2},
    {"F8_E4M3", 8, DataType::kF8E4m3},
    {"F8_E8M0", 8, DataType::kF8E8m0},
    {"I16", 16, DataType::kI16},
    {"U16", 16, DataType::kI16},
    {"F16", 16, DataType::kF16},
    {"BF16", 16, DataType::kBf16},
    {"I32", 32, DataType::kI32},
    {"U32", 32, DataType::kU32},
    {"F32", 32, DataType::kF32},
    {"F64", 64, DataType::kF64},
    {"I64", 64, DataType::kI64},
    {"U64", 64, DataType::kI64},
    {"F4", 4, DataType::kU8},
}};

}  // namespace

std::optional<StoredType> stored_type(std::string_view name) {
  for (const StoredType& row : kStoredTypes) {
    if (row.name == name) return row;
  }
  return std::nullopt;
}

StoredType stored_type(DataType type) {
  for (const StoredType& row : kStoredTypes) {
    if (row.type == type) return row;
  }
  return {};
}

}  // namespace switchyard
