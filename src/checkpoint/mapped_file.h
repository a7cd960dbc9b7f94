#pragma once
// A read-only memory mapping of one regular file.

#include <cstddef>
#include <span>
#include <string>

namespace switchyard {

class MappedFile {
 public:
  /// Throws Error{kInvalidFile} when the path is no readable regular file.
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
  bool contains(const void* address) const noexcept {
    return address >= data_ && address < data_ + size_;
  }
  /// Drops the whole pages inside the range from this process; a later read maps them again.
  void release(const void* begin, size_t size) const noexcept;
  /// Starts reading the range from disk.
  void will_need(const void* begin, size_t size) const noexcept;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// The whole text of a small file. Throws Error{kInvalidFile} beyond max_bytes.
std::string read_text_file(const std::string& path, size_t max_bytes);

}  // namespace switchyard
