#pragma once
// The definition of quantisation: the scale of a block from its largest magnitude, and the code of
// a value. All in f32, one rounding per operation, so that every backend gives the same bits;
// subnormal inputs count as zero, so that a flush-to-zero mode does not change them either.

#include <cstdint>

#include "core/host_device.h"
#include "core/number_formats.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard {

inline constexpr uint32_t kMinNormalBits = 0x00800000u;  // 2^-126
inline constexpr uint32_t kInfinityBits = 0x7f800000u;

/// What decides a scale besides the numbers.
struct BlockQuantization {
  Format format = Format::kFp8E4m3;  ///< kFp8E4m3, kInt8, kInt4, kMxfp4, kMxfp8 or kNvfp4
  ScaleRounding rounding = ScaleRounding::kUp;  ///< kMxfp4, kMxfp8
  bool power_of_two_scales = false;             ///< kFp8E4m3
  DataType scale_type = DataType::kF32;         ///< as stored; kBf16 rounds the scale before use
  float global_scale = 1.0f;                    ///< kNvfp4
};

struct BlockScale {
  float stored;   ///< the scale as its stored type decodes, global_scale not included
  float inverse;  ///< what values are multiplied with before rounding; 0: every code is zero
};

SWITCHYARD_HOST_DEVICE constexpr float flush_subnormal(float value) {
  const uint32_t bits = f32_bits(value);
  return (bits & kInfinityBits) != 0 ? value : f32_from_bits(bits & 0x80000000u);
}
/// An input as quantisation sees it. Multiplying by a channel scale of 1 changes nothing.
SWITCHYARD_HOST_DEVICE constexpr float quantizer_input(float value, float channel_scale) {
  return flush_subnormal(flush_subnormal(value) * flush_subnormal(channel_scale));
}

namespace detail {

/// amax over the format's largest value, not below 2^-126; 1 for a block of zeros.
SWITCHYARD_HOST_DEVICE constexpr BlockScale linear_scale(const BlockQuantization& how, float amax) {
  if (amax == 0.0f) return {1.0f, 1.0f};
  if (how.power_of_two_scales && how.format == Format::kFp8E4m3) {
    const uint8_t code = mx_scale_exponent(amax, how.format, ScaleRounding::kUp);
    const float scale = e8m0_to_f32(code > 0 ? code : 1);
    return {scale, 1.0f / scale};
  }
  const float max = how.format == Format::kInt8   ? kInt8Max
                    : how.format == Format::kInt4 ? kInt4Max
                                                  : kFp8E4m3Max;
  float scale = amax / max;
  if (!(scale >= f32_from_bits(kMinNormalBits))) scale = f32_from_bits(kMinNormalBits);
  if (how.scale_type == DataType::kBf16) scale = bf16_to_f32(f32_to_bf16(scale));
  return {scale, 1.0f / scale};
}

/// The E4M3 scale nearest to amax / 6 once global_scale is taken out.
SWITCHYARD_HOST_DEVICE constexpr BlockScale nvfp4_scale(float global_scale, float amax) {
  const float stored = fp8_e4m3_to_f32(f32_to_fp8_e4m3(amax / (kFp4E2m1Max * global_scale)));
  const float scale = stored * global_scale;
  return {stored, scale >= f32_from_bits(kMinNormalBits) ? 1.0f / scale : 0.0f};
}

}  // namespace detail

/// Scale of a block from the bits of its largest |quantizer_input|. Bits, because an integer
/// maximum lets NaN and infinity win: such a block gets a NaN scale and zero codes, and decodes to
/// NaN.
SWITCHYARD_HOST_DEVICE constexpr BlockScale block_scale(const BlockQuantization& how,
                                                        uint32_t amax_bits) {
  if (amax_bits >= kInfinityBits) return {f32_from_bits(kQuietNanBits), 0.0f};
  const float amax = f32_from_bits(amax_bits < kMinNormalBits ? 0u : amax_bits);
  switch (how.format) {
    case Format::kMxfp4:
    case Format::kMxfp8: {
      const uint8_t code = mx_scale_exponent(amax, how.format, how.rounding);
      return {e8m0_to_f32(code), f32_from_bits((254u - code) << 23)};  // code <= 253: normal
    }
    case Format::kNvfp4: return detail::nvfp4_scale(how.global_scale, amax);
    default: return detail::linear_scale(how, amax);
  }
}

/// Code of a zero; also what fills the unused half of the last byte of an odd row.
SWITCHYARD_HOST_DEVICE constexpr uint8_t zero_code(Format format) {
  return format == Format::kInt4 ? kInt4ZeroPoint : 0;
}

/// Code of an input under a block's scale; the low four bits for a 4-bit format.
SWITCHYARD_HOST_DEVICE constexpr uint8_t quantize_value(Format format, float input,
                                                        const BlockScale& scale) {
  if (scale.inverse == 0.0f) return zero_code(format);
  const float value = input * scale.inverse;
  switch (format) {
    case Format::kInt8: return static_cast<uint8_t>(f32_to_int8(value));
    case Format::kInt4: return f32_to_int4(value);
    case Format::kMxfp4:
    case Format::kNvfp4: return f32_to_fp4_e2m1(value);
    default: return f32_to_fp8_e4m3(value);
  }
}

}  // namespace switchyard
