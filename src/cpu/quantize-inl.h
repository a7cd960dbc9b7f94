// The loops behind QuantizeKernels, written for the vectoriser. Included once by each
// quantize_<isa>.cpp; everything is internal to that file, so no instruction leaks to another
// level. Same bits as core/block_quantize.h (tests/steps/test_quantize.cpp): every operation is
// f32, rounded once, or on bits.

#include <cstddef>

#include "cpu/quantize_kernels.h"

namespace switchyard::cpu {
namespace {

constexpr uint32_t kMagnitude = 0x7fffffffu;

inline float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t to_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

/// Subnormals become zero whatever the thread's mode.
inline float flush(float value) {
  const uint32_t bits = to_bits(value);
  return from_bits((bits & kMagnitude) < 0x00800000u ? bits & 0x80000000u : bits);
}

struct F32Input {
  using Stored = float;
  static float load(Stored value) { return flush(value); }
};
struct Bf16Input {
  using Stored = uint16_t;
  static float load(Stored code) { return flush(from_bits(static_cast<uint32_t>(code) << 16)); }
};
struct F16Input {
  using Stored = uint16_t;
  static float load(Stored code) {
    const uint32_t magnitude = code & 0x7fffu;
    const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
    const uint32_t rebias = magnitude >= 0x7c00u ? 224u << 23 : 112u << 23;  // infinity stays one
    const uint32_t bits = magnitude < 0x400u ? to_bits(subnormal) : (magnitude << 13) + rebias;
    return from_bits(bits | static_cast<uint32_t>(code & 0x8000u) << 16);
  }
};

/// Rounds |value| to a small float by adding a power of two whose last place is the element's: the
/// low bits of the sum are the significand in those units, and a carry moves to the next exponent.
template <int kMantissaBits, int kMinExponent>
inline uint32_t small_float_code(float value, float max) {
  const uint32_t bits = to_bits(value);
  const float magnitude = from_bits(bits & kMagnitude);
  const float limited = magnitude < max ? magnitude : max;
  constexpr uint32_t kLowest = static_cast<uint32_t>(127 + kMinExponent) << 23;
  const uint32_t exponent = to_bits(limited) & 0x7f800000u;
  const uint32_t quantum = exponent > kLowest ? exponent : kLowest;
  const uint32_t magic = quantum + (static_cast<uint32_t>(23 - kMantissaBits) << 23);
  const uint32_t significand = to_bits(limited + from_bits(magic)) - magic;
  return significand + ((quantum - kLowest) >> (23 - kMantissaBits));
}

template <int kLimit>
inline uint32_t integer_code(float value) {
  constexpr float kMax = kLimit;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  const float below = value < kMax ? value : kMax;
  const float limited = below > -kMax ? below : -kMax;
  return to_bits(limited + kMagic) - to_bits(kMagic);
}

struct E4m3Code {
  static constexpr int kPerByte = 1;
  static constexpr uint8_t kZero = 0;
  static uint32_t encode(float value) {
    return small_float_code<3, -6>(value, 448.0f) | (to_bits(value) >> 24 & 0x80u);
  }
};
struct Int8Code {
  static constexpr int kPerByte = 1;
  static constexpr uint8_t kZero = 0;
  static uint32_t encode(float value) { return integer_code<127>(value); }
};
struct E2m1Code {
  static constexpr int kPerByte = 2;
  static constexpr uint8_t kZero = 0;
  static uint32_t encode(float value) {
    return small_float_code<1, 0>(value, 6.0f) | (to_bits(value) >> 28 & 8u);
  }
};
struct Int4Code {
  static constexpr int kPerByte = 2;
  static constexpr uint8_t kZero = 8;
  static uint32_t encode(float value) { return integer_code<7>(value) + 8; }
};

template <class Input>
void amax(const QuantizeSegment& segment, uint32_t* amax_bits) {
  const auto* input = static_cast<const typename Input::Stored*>(segment.input);
  for (int64_t begin = 0; begin < segment.count; begin += segment.block, ++amax_bits) {
    const int64_t rest = segment.count - begin;
    const int64_t end = begin + (rest < segment.block ? rest : segment.block);
    // Magnitudes are below 2^31: signed maxima are the same and exist on more machines.
    auto largest = static_cast<int32_t>(*amax_bits);
    auto raise = [&largest](float value) {
      const auto bits = static_cast<int32_t>(to_bits(value) & kMagnitude);
      largest = bits > largest ? bits : largest;
    };
    if (segment.channel_scale == nullptr) {
      for (int64_t i = begin; i < end; ++i) raise(Input::load(input[i]));
    } else {
      for (int64_t i = begin; i < end; ++i) {
        raise(flush(Input::load(input[i]) * flush(segment.channel_scale[i])));
      }
    }
    *amax_bits = static_cast<uint32_t>(largest);
  }
}

/// Codes of inputs [begin, end), one to a byte, all under one inverse.
template <class Input, class Code>
void encode_bytes(const QuantizeSegment& segment, int64_t begin, int64_t end, float inverse,
                  uint8_t* codes) {
  const auto* input = static_cast<const typename Input::Stored*>(segment.input);
  if (inverse == 0.0f) {
    __builtin_memset(codes, Code::kZero, static_cast<size_t>(end - begin));
  } else if (segment.channel_scale == nullptr) {
    for (int64_t i = begin; i < end; ++i) {
      codes[i - begin] = static_cast<uint8_t>(Code::encode(Input::load(input[i]) * inverse));
    }
  } else {
    for (int64_t i = begin; i < end; ++i) {
      const float value = flush(Input::load(input[i]) * flush(segment.channel_scale[i]));
      codes[i - begin] = static_cast<uint8_t>(Code::encode(value * inverse));
    }
  }
}

/// Codes of inputs [begin, end), one to a byte, each under its block's inverse.
template <class Input, class Code>
void encode_blocks(const QuantizeSegment& segment, int64_t begin, int64_t end,
                   const float* inverses, uint8_t* codes) {
  for (int64_t i = begin; i < end;) {
    const int64_t block = i / segment.block;
    const int64_t block_end = (block + 1) * segment.block;
    const int64_t stop = block_end < end ? block_end : end;
    encode_bytes<Input, Code>(segment, i, stop, inverses[block], codes + (i - begin));
    i = stop;
  }
}

template <class Input, class Code>
void encode(const QuantizeSegment& segment, const float* inverses, uint8_t* codes) {
  if constexpr (Code::kPerByte == 1) {
    encode_blocks<Input, Code>(segment, 0, segment.count, inverses, codes);
  } else {
    constexpr int64_t kPiece = 512;
    uint8_t single[kPiece];
    for (int64_t begin = 0; begin < segment.count; begin += kPiece) {
      const int64_t rest = segment.count - begin;
      const int64_t length = rest < kPiece ? rest : kPiece;
      encode_blocks<Input, Code>(segment, begin, begin + length, inverses, single);
      if (length % 2 != 0) single[length] = Code::kZero;
      uint8_t* bytes = codes + begin / 2;
      for (int64_t i = 0; i < (length + 1) / 2; ++i) {
        bytes[i] = static_cast<uint8_t>(single[2 * i] | single[2 * i + 1] << 4);
      }
    }
  }
}

template <class Input>
constexpr void set_input(QuantizeKernels& kernels, int type) {
  kernels.amax[type] = amax<Input>;
  kernels.encode[type][static_cast<int>(QuantizeCode::kE4m3)] = encode<Input, E4m3Code>;
  kernels.encode[type][static_cast<int>(QuantizeCode::kInt8)] = encode<Input, Int8Code>;
  kernels.encode[type][static_cast<int>(QuantizeCode::kE2m1)] = encode<Input, E2m1Code>;
  kernels.encode[type][static_cast<int>(QuantizeCode::kInt4)] = encode<Input, Int4Code>;
}

constexpr QuantizeKernels make_kernels() {
  QuantizeKernels kernels{};
  set_input<F32Input>(kernels, 0);
  set_input<F16Input>(kernels, 1);
  set_input<Bf16Input>(kernels, 2);
  return kernels;
}

}  // namespace
}  // namespace switchyard::cpu
