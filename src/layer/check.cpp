#include "layer/check.h"

#include <algorithm>
#include <string>

namespace switchyard {
namespace {

std::string join(Extents extents) {
  std::string text;
  for (int64_t extent : extents) {
    if (!text.empty()) text += ", ";
    text += extent == kAnyExtent ? "any" : std::to_string(extent);
  }
  return "[" + text + "]";
}

std::string join(Types types) {
  std::string text;
  for (const DataType* type = types.begin(); type != types.end(); ++type) {
    if (type != types.begin()) text += type + 1 == types.end() ? " or " : ", ";
    text += to_string(*type);
  }
  return text;
}

}  // namespace

std::string describe_shape(const TensorView& tensor) {
  if (tensor.rank == 0 && tensor.empty()) return "empty";
  if (tensor.rank < 0 || tensor.rank > TensorView::kMaxRank)
    return fmt::format("of rank {}", tensor.rank);
  return fmt::format("[{}]",
                     fmt::join(tensor.shape.begin(), tensor.shape.begin() + tensor.rank, ", "));
}

void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  require(value >= low && value <= high, "{} is {}; it must be between {} and {}", name, value, low,
          high);
}

void check_shape(const char* name, const TensorView& tensor, Extents extents) {
  bool matches = tensor.rank == static_cast<int>(extents.size());
  for (int d = 0; matches && d < tensor.rank; ++d) {
    const int64_t wanted = extents.begin()[d];
    const int64_t extent = tensor.extent(d);
    matches = wanted == kAnyExtent ? extent >= 0 && extent <= kMaxExtent : extent == wanted;
  }
  if (!matches)
    reject("{} is {}; its shape must be {}", name, describe_shape(tensor), join(extents));
}

void check_type(const char* name, const TensorView& tensor, Types types) {
  if (std::find(types.begin(), types.end(), tensor.type) == types.end())
    reject("{} is {}; its type must be {}", name, to_string(tensor.type), join(types));
}

void check_tensor(const char* name, const TensorView& tensor, Types types, Extents extents) {
  check_shape(name, tensor, extents);
  check_type(name, tensor, types);
  if (tensor.num_elements() == 0) return;
  require(!tensor.empty(), "{} is null; it must point to {} elements", name, tensor.num_elements());
  require(tensor.is_contiguous(), "{} has strides [{}]; it must be contiguous", name,
          fmt::join(tensor.strides.begin(), tensor.strides.begin() + tensor.rank, ", "));
  const int64_t bytes = element_bytes(tensor.type);
  require(reinterpret_cast<uintptr_t>(tensor.data) % static_cast<uintptr_t>(bytes) == 0,
          "{} is at {}; it must be aligned to its element of {} bytes", name, fmt::ptr(tensor.data),
          bytes);
}

void check_optional(const char* name, const TensorView& tensor, Types types, Extents extents) {
  if (!tensor.empty()) check_tensor(name, tensor, types, extents);
}

void check_disjoint(const char* output_name, const TensorView& output, const char* other_name,
                    const TensorView& other) {
  if (output.empty() || other.empty()) return;
  const auto* a = output.as<const char>();
  const auto* b = other.as<const char>();
  const bool apart = a + output.num_elements() * element_bytes(output.type) <= b ||
                     b + other.num_elements() * element_bytes(other.type) <= a;
  require(apart, "{} is at {}; it must not overlap {}", output_name, fmt::ptr(output.data),
          other_name);
}

}  // namespace switchyard
