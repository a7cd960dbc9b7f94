#pragma once
// Tensors and scratch that the commands own, in host memory.

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>

#include "switchyard/tensor.h"

namespace switchyard::cli {

/// Zeroed, aligned to kWorkspaceAlignment, never null (so that a view of 0 tokens is not "absent").
class HostBuffer {
 public:
  HostBuffer() = default;
  explicit HostBuffer(int64_t bytes);
  void* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }
  Workspace workspace() const { return {.data = data(), .bytes = bytes_}; }

 private:
  struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<void, Free> data_;
  int64_t bytes_ = 0;
};

/// A contiguous row-major tensor.
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
  HostBuffer buffer_;
  TensorView view_{};
};

/// Rows [begin, begin + count) of a contiguous tensor.
TensorView rows_of(const TensorView& tensor, int64_t begin, int64_t count);
/// A copy in another type; f32, bf16 and f16, [T, C].
HostTensor convert(const TensorView& tensor, DataType type);
/// True when both hold the same bits.
bool same_bits(const TensorView& a, const TensorView& b);

}  // namespace switchyard::cli
