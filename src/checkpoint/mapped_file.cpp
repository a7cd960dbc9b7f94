// A read-only memory mapping of one regular file.

#include "checkpoint/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "switchyard/error.h"

namespace switchyard {

namespace {

[[noreturn]] void fail(const std::string& path, const char* action) {
  throw Error(ErrorCode::kInvalidFile,
              fmt::format("{}: cannot {}: {}", path, action, std::strerror(errno)));
}

uintptr_t page_bytes() { return static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  // O_NONBLOCK: a FIFO in the directory must not hang the open.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail(path, "open");
  struct stat info {};
  void* mapping = nullptr;
  int error = ::fstat(fd, &info) == 0 ? 0 : errno;
  const bool regular = error == 0 && S_ISREG(info.st_mode);
  if (regular && info.st_size > 0) {
    mapping = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapping == MAP_FAILED) error = errno;
  }
  ::close(fd);
  if (error != 0) {
    errno = error;
    fail(path, "map");
  }
  if (!regular) throw Error(ErrorCode::kInvalidFile, path + ": not a regular file");
  data_ = static_cast<const std::byte*>(mapping);
  size_ = static_cast<size_t>(info.st_size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release(const void* begin, size_t size) const noexcept {
  const uintptr_t page = page_bytes();
  const size_t skip = (page - reinterpret_cast<uintptr_t>(begin) % page) % page;
  if (size < skip + page) return;
  char* first = static_cast<char*>(const_cast<void*>(begin)) + skip;
  ::madvise(first, (size - skip) / page * page, MADV_DONTNEED);
}

void MappedFile::will_need(const void* begin, size_t size) const noexcept {
  const size_t before = reinterpret_cast<uintptr_t>(begin) % page_bytes();
  char* first = static_cast<char*>(const_cast<void*>(begin)) - before;
  ::madvise(first, before + size, MADV_WILLNEED);
}

std::string read_text_file(const std::string& path, size_t max_bytes) {
  const MappedFile file(path);
  if (file.bytes().size() > max_bytes) {
    throw Error(ErrorCode::kInvalidFile, fmt::format("{}: file size is {} bytes; at most {}", path,
                                                     file.bytes().size(), max_bytes));
  }
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

}  // namespace switchyard
