#pragma once
// The one exception type of the library. Thrown by host code only, before any work starts.

#include <cstdint>
#include <stdexcept>
#include <string>

#include "switchyard/export.h"

namespace switchyard {

/// What a caller can do about a failure. Values are stable: the C ABI exposes them as sy_status.
enum class ErrorCode : int32_t {
  kInvalidArgument = 1,  ///< the caller passed something that breaks a stated rule
  kUnsupported = 2,      ///< a valid request that this build, backend or machine cannot serve
  kOutOfMemory = 3,      ///< an allocation failed
  kDevice = 4,           ///< no usable device, or the device reported an error
  kCommunication = 5,    ///< a peer rank failed
  kInternal = 6,         ///< our own bug
  kInvalidFile = 7,      ///< a file cannot be read, is truncated, or contradicts itself
};

/// Name of a code as it is written in messages, for example "invalid argument".
SWITCHYARD_EXPORT const char* to_string(ErrorCode code) noexcept;

/// Message form: "<argument> is <value>; <rule>".
class SWITCHYARD_EXPORT Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace switchyard
