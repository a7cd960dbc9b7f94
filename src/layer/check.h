#pragma once
// The vocabulary of argument checks: each throws Error{kInvalidArgument, "argument is value; rule"}
// and formats nothing unless it does.

#include <fmt/format.h>

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>

#include "switchyard/error.h"
#include "switchyard/tensor.h"

namespace switchyard {

template <class... Args>
[[noreturn]] void reject(fmt::format_string<Args...> message, Args&&... args) {
  throw Error(ErrorCode::kInvalidArgument, fmt::format(message, std::forward<Args>(args)...));
}
template <class... Args>
void require(bool holds, fmt::format_string<Args...> message, Args&&... args) {
  if (!holds) reject(message, std::forward<Args>(args)...);
}

using Types = std::initializer_list<DataType>;
using Extents = std::initializer_list<int64_t>;
inline constexpr Types kFloats = {DataType::kF32, DataType::kBf16, DataType::kF16};
/// An extent that may be anything from 0 to kMaxExtent.
inline constexpr int64_t kAnyExtent = -1;
inline constexpr int64_t kMaxExtent = int64_t{1} << 31;
/// Of one tensor, so that no product of its extents and element size overflows.
inline constexpr int64_t kMaxElements = int64_t{1} << 48;

/// "[3, 7]", or "empty" for a view without data and rank.
std::string describe_shape(const TensorView& tensor);

void check_range(const char* name, int64_t value, int64_t low, int64_t high);
/// Rank and extents only.
void check_shape(const char* name, const TensorView& tensor, Extents extents);
void check_type(const char* name, const TensorView& tensor, Types types);
/// Shape, type, then contiguity, alignment to the element, and data unless there are no elements.
void check_tensor(const char* name, const TensorView& tensor, Types types, Extents extents);
/// The same when the view is not empty.
void check_optional(const char* name, const TensorView& tensor, Types types, Extents extents);
struct NamedView {
  const char* name;
  TensorView view;
};
/// No byte of an output belongs to an input or to another output. Empty views belong to nobody.
void check_disjoint(std::span<const NamedView> outputs, std::span<const NamedView> inputs);

}  // namespace switchyard
