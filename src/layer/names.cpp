// The names of every public enumerator: one table per enum, read in both directions.

#include <fmt/format.h>

#include <array>
#include <string>
#include <utility>

#include "switchyard/error.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard {
namespace {

template <class Enum>
using Name = std::pair<Enum, const char*>;

constexpr std::array kErrorCodes = {
    Name<ErrorCode>{ErrorCode::kInvalidArgument, "invalid argument"},
    Name<ErrorCode>{ErrorCode::kUnsupported, "unsupported"},
    Name<ErrorCode>{ErrorCode::kOutOfMemory, "out of memory"},
    Name<ErrorCode>{ErrorCode::kDevice, "device error"},
    Name<ErrorCode>{ErrorCode::kCommunication, "communication error"},
    Name<ErrorCode>{ErrorCode::kInternal, "internal error"},
    Name<ErrorCode>{ErrorCode::kInvalidFile, "invalid file"},
};
constexpr std::array kDataTypes = {
    Name<DataType>{DataType::kF32, "f32"},        Name<DataType>{DataType::kF16, "f16"},
    Name<DataType>{DataType::kBf16, "bf16"},      Name<DataType>{DataType::kF8E4m3, "f8_e4m3"},
    Name<DataType>{DataType::kF8E5m2, "f8_e5m2"}, Name<DataType>{DataType::kF8E8m0, "f8_e8m0"},
    Name<DataType>{DataType::kI8, "i8"},          Name<DataType>{DataType::kU8, "u8"},
    Name<DataType>{DataType::kI32, "i32"},        Name<DataType>{DataType::kI64, "i64"},
    Name<DataType>{DataType::kF64, "f64"},        Name<DataType>{DataType::kI16, "i16"},
    Name<DataType>{DataType::kBool, "bool"},      Name<DataType>{DataType::kU32, "u32"},
};
constexpr std::array kBackends = {
    Name<BackendKind>{BackendKind::kAuto, "auto"},
    Name<BackendKind>{BackendKind::kCpu, "cpu"},
    Name<BackendKind>{BackendKind::kCuda, "cuda"},
    Name<BackendKind>{BackendKind::kReference, "reference"},
};
constexpr std::array kFormats = {
    Name<Format>{Format::kF32, "f32"},          Name<Format>{Format::kF16, "f16"},
    Name<Format>{Format::kBf16, "bf16"},        Name<Format>{Format::kFp8E4m3, "fp8_e4m3"},
    Name<Format>{Format::kFp8E5m2, "fp8_e5m2"}, Name<Format>{Format::kInt8, "int8"},
    Name<Format>{Format::kInt4, "int4"},        Name<Format>{Format::kMxfp4, "mxfp4"},
    Name<Format>{Format::kMxfp8, "mxfp8"},      Name<Format>{Format::kNvfp4, "nvfp4"},
};
constexpr std::array kActivationFormats = {
    Name<ActivationFormat>{ActivationFormat::kAuto, "auto"},
    Name<ActivationFormat>{ActivationFormat::kNone, "none"},
    Name<ActivationFormat>{ActivationFormat::kInt8Block32, "int8_block32"},
    Name<ActivationFormat>{ActivationFormat::kInt8PerToken, "int8_per_token"},
    Name<ActivationFormat>{ActivationFormat::kInt8PerSlot, "int8_per_slot"},
    Name<ActivationFormat>{ActivationFormat::kFp8PerTensor, "fp8_per_tensor"},
    Name<ActivationFormat>{ActivationFormat::kFp8PerToken, "fp8_per_token"},
    Name<ActivationFormat>{ActivationFormat::kFp8Block128, "fp8_block128"},
    Name<ActivationFormat>{ActivationFormat::kMxfp8, "mxfp8"},
    Name<ActivationFormat>{ActivationFormat::kMxfp4, "mxfp4"},
};
constexpr std::array kScorings = {
    Name<Scoring>{Scoring::kSoftmax, "softmax"},
    Name<Scoring>{Scoring::kSigmoid, "sigmoid"},
    Name<Scoring>{Scoring::kSqrtSoftplus, "sqrt_softplus"},
};
constexpr std::array kActivations = {
    Name<Activation>{Activation::kSwiGlu, "swiglu"},
    Name<Activation>{Activation::kSwiGluClamp, "swiglu_clamp"},
    Name<Activation>{Activation::kSwiGluOai, "swiglu_oai"},
    Name<Activation>{Activation::kGeGluTanh, "geglu_tanh"},
    Name<Activation>{Activation::kGeGlu, "geglu"},
    Name<Activation>{Activation::kSiTu, "situ"},
    Name<Activation>{Activation::kRelu2, "relu2"},
};

template <class Enum, size_t kSize>
const char* name_of(const std::array<Name<Enum>, kSize>& names, Enum value) noexcept {
  for (const auto& [candidate, name] : names)
    if (candidate == value) return name;
  return "?";
}

template <class Enum, size_t kSize>
Enum value_of(const std::array<Name<Enum>, kSize>& names, const char* argument,
              const std::string& text) {
  std::string accepted;
  for (const auto& [value, name] : names) {
    if (text == name) return value;
    accepted += accepted.empty() ? name : std::string(", ") + name;
  }
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("{} is '{}'; it must be one of {}", argument, text, accepted));
}

}  // namespace

const char* to_string(ErrorCode code) noexcept { return name_of(kErrorCodes, code); }
const char* to_string(DataType type) noexcept { return name_of(kDataTypes, type); }
const char* to_string(BackendKind kind) noexcept { return name_of(kBackends, kind); }
const char* to_string(Format format) noexcept { return name_of(kFormats, format); }
const char* to_string(ActivationFormat format) noexcept {
  return name_of(kActivationFormats, format);
}
const char* to_string(Scoring scoring) noexcept { return name_of(kScorings, scoring); }
const char* to_string(Activation activation) noexcept { return name_of(kActivations, activation); }

Format format_from_string(const std::string& name) {
  return value_of(kFormats, "format", name == "fp8" ? "fp8_e4m3" : name);  // the usual short form
}
ActivationFormat activation_format_from_string(const std::string& name) {
  return value_of(kActivationFormats, "activation format", name);
}

}  // namespace switchyard
