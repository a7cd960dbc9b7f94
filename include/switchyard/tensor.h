#pragma once
// Non-owning views of the caller's memory, and the names of what it holds.

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "switchyard/export.h"

namespace switchyard {

/// Type of one stored element. 4-bit values travel as kU8 (or kI32) words; Format says what they
/// mean.
enum class DataType : int32_t {
  kF32 = 0,
  kF16 = 1,
  kBf16 = 2,
  kF8E4m3 = 3,
  kF8E5m2 = 4,
  kF8E8m0 = 5,
  kI8 = 6,
  kU8 = 7,
  kI32 = 8,
  kI64 = 9,
  kF64 = 10,
  kI16 = 11,
  kBool = 12,
  kU32 = 13,
};

/// Bytes of one element.
constexpr int64_t element_bytes(DataType type) noexcept {
  switch (type) {
    case DataType::kI64:
    case DataType::kF64: return 8;
    case DataType::kF32:
    case DataType::kI32:
    case DataType::kU32: return 4;
    case DataType::kF16:
    case DataType::kBf16:
    case DataType::kI16: return 2;
    default: return 1;
  }
}

/// "bf16", "f8_e4m3", ...
SWITCHYARD_EXPORT const char* to_string(DataType type) noexcept;

/// Pointer, element type, shape and strides (in elements). Owns nothing; an empty view has data ==
/// nullptr.
struct TensorView {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;
  DataType type = DataType::kF32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> strides{};

  /// A contiguous row-major view.
  static constexpr TensorView contiguous(void* data, DataType type,
                                         std::initializer_list<int64_t> shape) {
    TensorView view{.data = data, .type = type, .rank = static_cast<int>(shape.size())};
    int i = 0;
    for (int64_t extent : shape) view.shape[static_cast<size_t>(i++)] = extent;
    int64_t stride = 1;
    for (int d = view.rank - 1; d >= 0; --d) {
      view.strides[static_cast<size_t>(d)] = stride;
      stride *= view.shape[static_cast<size_t>(d)];
    }
    return view;
  }
  /// The same over read-only memory; the library never writes through an input.
  static constexpr TensorView contiguous(const void* data, DataType type,
                                         std::initializer_list<int64_t> shape) {
    return contiguous(const_cast<void*>(data), type, shape);
  }

  constexpr bool empty() const { return data == nullptr; }
  constexpr int64_t extent(int dim) const { return shape[static_cast<size_t>(dim)]; }
  constexpr int64_t stride(int dim) const { return strides[static_cast<size_t>(dim)]; }
  constexpr int64_t num_elements() const {
    int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= shape[static_cast<size_t>(d)];
    return n;
  }
  constexpr bool is_contiguous() const {
    int64_t expected = 1;
    for (int d = rank - 1; d >= 0; --d) {
      if (extent(d) != 1 && stride(d) != expected) return false;
      expected *= extent(d);
    }
    return true;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

/// A cudaStream_t, or empty for the CPU and for the default stream. Keeps CUDA out of this header.
struct Stream {
  void* handle = nullptr;
};

/// Scratch memory of the caller, aligned to kWorkspaceAlignment.
struct Workspace {
  void* data = nullptr;
  int64_t bytes = 0;
};
inline constexpr int64_t kWorkspaceAlignment = 256;

/// Who computes.
enum class BackendKind : int32_t {
  kAuto = 0,       ///< cuda when a supported GPU and layer allow it, else cpu
  kCpu = 1,        ///< x86-64, AVX2 or better
  kCuda = 2,       ///< NVIDIA GPU
  kReference = 3,  ///< plain loops in double: the oracle
};

/// "auto", "cpu", "cuda", "reference".
SWITCHYARD_EXPORT const char* to_string(BackendKind kind) noexcept;

}  // namespace switchyard
