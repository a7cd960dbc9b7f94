#pragma once
// Memory for tests: owned, guarded on both sides, poisoned until written.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "support/random.h"
#include "switchyard/tensor.h"

namespace switchyard::test {

/// Bytes with a canary before and after; the payload starts on a kWorkspaceAlignment boundary and
/// is filled with kPoison, which reads as NaN in every float type.
class GuardedMemory {
 public:
  static constexpr std::byte kPoison{0xff};

  explicit GuardedMemory(int64_t bytes = 0);
  std::byte* data() const { return payload_; }
  int64_t bytes() const { return bytes_; }
  void poison();
  bool canaries_intact() const;
  /// No byte of [begin, end) has been written (or only with poison).
  bool untouched(int64_t begin, int64_t end) const;
  Workspace workspace() const { return {payload_, bytes_}; }

 private:
  struct Free {
    void operator()(std::byte* block) const;
  };
  std::unique_ptr<std::byte, Free> block_;
  std::byte* payload_ = nullptr;
  int64_t bytes_ = 0;
};

/// A contiguous tensor of its own memory. Poisoned unless made by one of the factories.
class Buffer {
 public:
  using Shape = std::vector<int64_t>;

  Buffer() = default;
  Buffer(DataType type, const Shape& shape);
  static Buffer zeros(DataType type, const Shape& shape);
  /// Normal values of the given standard deviation, rounded to a float type.
  static Buffer normal(Random& random, DataType type, const Shape& shape, double deviation = 1.0);
  /// The given values, converted to `type`.
  static Buffer of(DataType type, const Shape& shape, const std::vector<double>& values);
  Buffer clone() const;
  /// The same values in another float type.
  Buffer to(DataType type) const;

  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }  // NOLINT(google-explicit-constructor)
  template <class T>
  T* as() const {
    return view_.as<T>();
  }
  int64_t size() const { return view_.num_elements(); }
  int64_t bytes() const { return memory_.bytes(); }
  double at(int64_t index) const;
  void set(int64_t index, double value);
  void poison() { memory_.poison(); }
  bool canaries_intact() const { return memory_.canaries_intact(); }
  /// Elements [begin, end) have not been written.
  bool untouched(int64_t begin, int64_t end) const;
  bool untouched() const { return untouched(0, size()); }

 private:
  GuardedMemory memory_;
  TensorView view_{};
};

/// The bytes of two buffers are the same.
bool same_bits(const Buffer& a, const Buffer& b);

}  // namespace switchyard::test
