#pragma once
// Tensors that the commands own, in host memory.

#include <cstdint>
#include <initializer_list>
#include <memory>

#include "switchyard/device_memory.h"
#include "switchyard/tensor.h"

namespace switchyard::cli {

/// A contiguous row-major tensor, zeroed; a copy shares the memory. With 0 tokens its data is not
/// null, so that its view is not "absent".
class HostTensor {
 public:
  HostTensor() = default;
  HostTensor(DataType type, std::initializer_list<int64_t> shape);
  const TensorView& view() const { return view_; }
  int64_t bytes() const { return view_.num_elements() * element_bytes(view_.type); }
  template <class T>
  T* as() const {
    return view_.as<T>();
  }

 private:
  std::shared_ptr<DeviceMemory> memory_;
  TensorView view_{};
};

/// Rows [begin, begin + count) of a contiguous tensor.
TensorView rows_of(const TensorView& tensor, int64_t begin, int64_t count);
/// A copy in another type; f32, bf16 and f16, [T, C].
HostTensor convert(const TensorView& tensor, DataType type);
/// True when both hold the same bits.
bool same_bits(const TensorView& a, const TensorView& b);

}  // namespace switchyard::cli
