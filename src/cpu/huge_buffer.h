#pragma once
// Memory for packed weights: zeroed, 2 MiB aligned, backed by huge pages where the system has them
// (5-9 % of read bandwidth when measured).

#include <cstdint>
#include <utility>

namespace switchyard::cpu {

class HugeBuffer {
 public:
  HugeBuffer() = default;
  /// Throws Error{kOutOfMemory}.
  explicit HugeBuffer(int64_t bytes);
  ~HugeBuffer();
  HugeBuffer(HugeBuffer&& other) noexcept { swap(other); }
  HugeBuffer& operator=(HugeBuffer&& other) noexcept {
    swap(other);
    return *this;
  }

  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void swap(HugeBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapping_, other.mapping_);
    std::swap(mapping_bytes_, other.mapping_bytes_);
  }

  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
  void* mapping_ = nullptr;
  int64_t mapping_bytes_ = 0;
};

}  // namespace switchyard::cpu
