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

/// Of contiguous views.
bool overlap(const TensorView& a, const TensorView& b) {
  if (a.empty() || b.empty()) return false;
  const auto begin = [](const TensorView& v) { return reinterpret_cast<uintptr_t>(v.data); };
  const auto bytes = [](const TensorView& v) {
    return static_cast<uintptr_t>(v.num_elements() * element_bytes(v.type));
  };
  return begin(a) < begin(b) + bytes(b) && begin(b) < begin(a) + bytes(a);
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
  int64_t elements = 1;
  bool fits = true;
  for (int d = 0; matches && d < tensor.rank; ++d) {
    const int64_t wanted = extents.begin()[d];
    const int64_t extent = tensor.extent(d);
    matches = wanted == kAnyExtent ? extent >= 0 && extent <= kMaxExtent : extent == wanted;
    fits = fits && !__builtin_mul_overflow(elements, extent, &elements) && elements <= kMaxElements;
  }
  if (!matches)
    reject("{} is {}; its shape must be {}", name, describe_shape(tensor), join(extents));
  require(fits, "{} is {}; it must have at most 2^48 elements", name, describe_shape(tensor));
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

void check_disjoint(std::span<const NamedView> outputs, std::span<const NamedView> inputs) {
  const auto apart = [](const NamedView& output, const NamedView& other) {
    if (!overlap(output.view, other.view)) return;
    reject("{} is at {}; it must not overlap {}", output.name, fmt::ptr(output.view.data),
           other.name);
  };
  for (size_t i = 0; i < outputs.size(); ++i) {
    for (const NamedView& input : inputs) apart(outputs[i], input);
    for (size_t j = 0; j < i; ++j) apart(outputs[i], outputs[j]);
  }
}

}  // namespace switchyard
