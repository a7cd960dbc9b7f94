#pragma once
// Every stored number format, bit-exact both ways, the same code on host and device. What could
// meet a subnormal float works on bits, so a thread's flush-to-zero mode cannot change a result.

#include <cstdint>
#include <cstring>

#include "core/host_device.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard {

SWITCHYARD_HOST_DEVICE constexpr uint32_t f32_bits(float value) {
  return __builtin_bit_cast(uint32_t, value);
}
SWITCHYARD_HOST_DEVICE constexpr float f32_from_bits(uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}
SWITCHYARD_HOST_DEVICE constexpr bool is_nan_bits(uint32_t bits) {
  return (bits & 0x7fffffffu) > 0x7f800000u;
}
inline constexpr uint32_t kQuietNanBits = 0x7fc00000u;

namespace detail {

/// Magnitude of a sign-less code [exponent | mantissa]; formats without room for subnormal floats.
template <int kMantissaBits, int kBias>
SWITCHYARD_HOST_DEVICE constexpr float decode_magnitude(uint32_t code) {
  constexpr uint32_t kRebias = 127 - kBias;
  if ((code >> kMantissaBits) == 0) {  // mantissa units of 2^(1 - bias - mantissa bits)
    return static_cast<float>(code) * f32_from_bits((kRebias + 1 - kMantissaBits) << 23);
  }
  return f32_from_bits((code << (23 - kMantissaBits)) + (kRebias << 23));
}

/// Nearest sign-less code, ties to even, of a magnitude given as float bits; not yet limited above.
template <int kMantissaBits, int kBias>
SWITCHYARD_HOST_DEVICE constexpr uint32_t encode_magnitude(uint32_t magnitude) {
  constexpr uint32_t kRebias = 127 - kBias;
  const uint32_t exponent = magnitude >> 23;
  if (exponent > kRebias) {
    constexpr int kShift = 23 - kMantissaBits;
    const uint32_t odd = (magnitude >> kShift) & 1u;
    return ((magnitude + ((1u << (kShift - 1)) - 1u) + odd) >> kShift) - (kRebias << kMantissaBits);
  }
  const uint32_t shift = 24 - kMantissaBits + kRebias - exponent;
  if (shift > 24) return 0;  // below half of the smallest subnormal
  const uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t odd = (significand >> shift) & 1u;
  return (significand + ((1u << (shift - 1)) - 1u) + odd) >> shift;
}

}  // namespace detail

// ---- 16 bit

SWITCHYARD_HOST_DEVICE constexpr float bf16_to_f32(uint16_t code) {
  return f32_from_bits(static_cast<uint32_t>(code) << 16);
}
/// Nearest, ties to even; overflows to infinity; NaN stays NaN, made quiet, payload cut.
SWITCHYARD_HOST_DEVICE constexpr uint16_t f32_to_bf16(float value) {
  const uint32_t bits = f32_bits(value);
  if (is_nan_bits(bits)) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

SWITCHYARD_HOST_DEVICE constexpr float f16_to_f32(uint16_t code) {
  const uint32_t sign = (code & 0x8000u) << 16;
  const uint32_t magnitude = code & 0x7fffu;
  if (magnitude >= 0x7c00u) return f32_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  return f32_from_bits(sign | f32_bits(detail::decode_magnitude<10, 15>(magnitude)));
}
/// Nearest, ties to even; overflows to infinity; NaN stays NaN, made quiet, payload cut.
SWITCHYARD_HOST_DEVICE constexpr uint16_t f32_to_f16(float value) {
  const uint32_t bits = f32_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  if (is_nan_bits(bits)) return static_cast<uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x3ffu));
  const uint32_t code = detail::encode_magnitude<10, 15>(bits & 0x7fffffffu);
  return static_cast<uint16_t>(sign | (code < 0x7c00u ? code : 0x7c00u));
}

// ---- 8 bit

inline constexpr float kFp8E4m3Max = 448.0f;

/// S.1111.111 is NaN; there is no infinity.
SWITCHYARD_HOST_DEVICE constexpr float fp8_e4m3_to_f32(uint8_t code) {
  const uint32_t sign = (code & 0x80u) << 24;
  const uint32_t magnitude = code & 0x7fu;
  if (magnitude == 0x7fu) return f32_from_bits(sign | kQuietNanBits);
  return f32_from_bits(sign | f32_bits(detail::decode_magnitude<3, 7>(magnitude)));
}
/// Nearest, ties to even; beyond 448, infinity included, saturates to 448; NaN gives 0x7f.
SWITCHYARD_HOST_DEVICE constexpr uint8_t f32_to_fp8_e4m3(float value) {
  const uint32_t bits = f32_bits(value);
  if (is_nan_bits(bits)) return 0x7f;
  const uint32_t code = detail::encode_magnitude<3, 7>(bits & 0x7fffffffu);
  return static_cast<uint8_t>(((bits >> 24) & 0x80u) | (code < 0x7eu ? code : 0x7eu));
}

/// E5M2 is the upper byte of a half float, infinities and NaN included.
SWITCHYARD_HOST_DEVICE constexpr float fp8_e5m2_to_f32(uint8_t code) {
  return f16_to_f32(static_cast<uint16_t>(code << 8));
}

/// 2^(code - 127): 0 is 2^-127, a subnormal float; 255 is NaN.
SWITCHYARD_HOST_DEVICE constexpr float e8m0_to_f32(uint8_t code) {
  if (code == 255) return f32_from_bits(kQuietNanBits);
  return f32_from_bits(code == 0 ? 0x00400000u : static_cast<uint32_t>(code) << 23);
}

inline constexpr float kInt8Max = 127.0f;

/// Nearest, ties to even, limited to [-127, 127]; NaN gives 0.
SWITCHYARD_HOST_DEVICE constexpr int8_t f32_to_int8(float value) {
  if (!(value == value)) return 0;
  const float limited = value > kInt8Max ? kInt8Max : value < -kInt8Max ? -kInt8Max : value;
  // 1.5 * 2^23: the sum has units of 1, and its low bits are the integer.
  constexpr float kMagic = 12582912.0f;
  return static_cast<int8_t>(static_cast<int32_t>(f32_bits(limited + kMagic) - f32_bits(kMagic)));
}

// ---- 4 bit: the low four bits of the argument or result

inline constexpr float kFp4E2m1Max = 6.0f;

/// 0, .5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign.
SWITCHYARD_HOST_DEVICE constexpr float fp4_e2m1_to_f32(uint8_t nibble) {
  const uint32_t sign = (nibble & 8u) << 28;
  return f32_from_bits(sign | f32_bits(detail::decode_magnitude<1, 1>(nibble & 7u)));
}
/// Nearest, ties to even; beyond 6, infinity included, saturates to 6; NaN gives +6 as on NVIDIA.
SWITCHYARD_HOST_DEVICE constexpr uint8_t f32_to_fp4_e2m1(float value) {
  const uint32_t bits = f32_bits(value);
  if (is_nan_bits(bits)) return 7;
  const uint32_t code = detail::encode_magnitude<1, 1>(bits & 0x7fffffffu);
  return static_cast<uint8_t>(((bits >> 28) & 8u) | (code < 7u ? code : 7u));
}

inline constexpr float kInt4Max = 7.0f;
inline constexpr int kInt4ZeroPoint = 8;

SWITCHYARD_HOST_DEVICE constexpr float int4_to_f32(uint8_t nibble,
                                                   int zero_point = kInt4ZeroPoint) {
  return static_cast<float>(static_cast<int>(nibble & 15u) - zero_point);
}
/// Nearest, ties to even, limited to [-7, 7], stored plus 8; NaN gives 8 (zero).
SWITCHYARD_HOST_DEVICE constexpr uint8_t f32_to_int4(float value) {
  const float limited = value > kInt4Max ? kInt4Max : value < -kInt4Max ? -kInt4Max : value;
  return static_cast<uint8_t>(f32_to_int8(limited) + kInt4ZeroPoint);
}

// ---- E8M0 scales

/// Scale code of an MX block whose largest magnitude is amax; elements are E2M1 (kMxfp4, kNvfp4) or
/// E4M3 (any other format). Zero and everything below the range give 0 (2^-127); NaN and infinity
/// give 255. A float cannot reach the upper end: the largest gives 253.
SWITCHYARD_HOST_DEVICE constexpr uint8_t mx_scale_exponent(float amax, Format element,
                                                           ScaleRounding rounding) {
  const bool fp4 = element == Format::kMxfp4 || element == Format::kNvfp4;
  const uint32_t bits = f32_bits(amax) & 0x7fffffffu;
  if (bits >= 0x7f800000u) return 255;
  const uint32_t mantissa = bits & 0x7fffffu;
  uint32_t carries_from = 0x800000u;  // mantissas from here on take the next exponent
  switch (rounding) {
    case ScaleRounding::kDown: break;
    case ScaleRounding::kUp: carries_from = fp4 ? 0x400001u : 0x600001u; break;    // 1.5, 1.75
    case ScaleRounding::kEven: carries_from = fp4 ? 0x600000u : 0x780000u; break;  // 2 - ulp / 2
    case ScaleRounding::kCeil: carries_from = 1u; break;
  }
  const int max_exponent = fp4 ? 2 : 8;  // of the element's largest value
  // A subnormal amax has exponent field 0 here and lands below the range whatever the rounding.
  const int code = static_cast<int>(bits >> 23) - max_exponent + (mantissa >= carries_from ? 1 : 0);
  return static_cast<uint8_t>(code > 0 ? code : 0);
}

// ---- elements of a tensor, by type; host only

/// Element `index` of an array of `type`; unaligned arrays are fine. Integers and f64 are rounded
/// to f32.
inline float load_as_f32(const void* data, DataType type, int64_t index) {
  const char* at = static_cast<const char*>(data) + index * element_bytes(type);
  auto read = [at](auto value) {
    std::memcpy(&value, at, sizeof(value));
    return value;
  };
  switch (type) {
    case DataType::kF32: return read(float{});
    case DataType::kF16: return f16_to_f32(read(uint16_t{}));
    case DataType::kBf16: return bf16_to_f32(read(uint16_t{}));
    case DataType::kF8E4m3: return fp8_e4m3_to_f32(read(uint8_t{}));
    case DataType::kF8E5m2: return fp8_e5m2_to_f32(read(uint8_t{}));
    case DataType::kF8E8m0: return e8m0_to_f32(read(uint8_t{}));
    case DataType::kI8: return static_cast<float>(read(int8_t{}));
    case DataType::kBool:
    case DataType::kU8: return static_cast<float>(read(uint8_t{}));
    case DataType::kI16: return static_cast<float>(read(int16_t{}));
    case DataType::kI32: return static_cast<float>(read(int32_t{}));
    case DataType::kU32: return static_cast<float>(read(uint32_t{}));
    case DataType::kI64: return static_cast<float>(read(int64_t{}));
    case DataType::kF64: return static_cast<float>(read(double{}));
  }
  return f32_from_bits(kQuietNanBits);
}

/// Rounds `value` to element `index` of a floating-point array; an E8M0 array takes powers of two
/// and NaN. Other types are a caller's bug and are left untouched: callers have validated.
inline void store_f32(void* data, DataType type, int64_t index, float value) {
  char* at = static_cast<char*>(data) + index * element_bytes(type);
  auto write = [at](auto stored) { std::memcpy(at, &stored, sizeof(stored)); };
  switch (type) {
    case DataType::kF32: return write(value);
    case DataType::kF64: return write(static_cast<double>(value));
    case DataType::kF16: return write(f32_to_f16(value));
    case DataType::kBf16: return write(f32_to_bf16(value));
    case DataType::kF8E4m3: return write(f32_to_fp8_e4m3(value));
    case DataType::kF8E8m0: return write(static_cast<uint8_t>(f32_bits(value) >> 23));
    default: return;
  }
}

}  // namespace switchyard
