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
    // A subnormal is read as if it had the hidden bit, which the subtraction takes away again.
    const bool subnormal = magnitude < 0x400u;
    const bool top = magnitude >= 0x7c00u;  // infinity and NaN keep an exponent of all ones
    const uint32_t rebias = subnormal ? 113u << 23 : top ? 224u << 23 : 112u << 23;
    const uint32_t hidden = subnormal ? 113u << 23 : 0u;
    const float value = from_bits((magnitude << 13) + rebias) - from_bits(hidden);
    return from_bits(to_bits(value) | static_cast<uint32_t>(code & 0x8000u) << 16);
  }
};

// NOTE: float comparisons stop g++ from vectorising a loop; magnitudes compare as integers.
inline uint32_t limit(uint32_t magnitude, float max) {
  const auto bits = static_cast<int32_t>(magnitude);
  const auto max_bits = static_cast<int32_t>(to_bits(max));
  return static_cast<uint32_t>(bits < max_bits ? bits : max_bits);
}

/// Rounds |value| to a small float by adding a power of two whose last place is the element's: the
/// low bits of the sum are the significand in those units, and a carry moves to the next exponent.
template <int kMantissaBits, int kMinExponent>
inline uint32_t small_float_code(float value, float max) {
  const uint32_t limited = limit(to_bits(value) & kMagnitude, max);
  constexpr int32_t kLowest = (127 + kMinExponent) << 23;
  const auto exponent = static_cast<int32_t>(limited & 0x7f800000u);
  const auto quantum = static_cast<uint32_t>(exponent > kLowest ? exponent : kLowest);
  const uint32_t magic = quantum + (static_cast<uint32_t>(23 - kMantissaBits) << 23);
  const uint32_t significand = to_bits(from_bits(limited) + from_bits(magic)) - magic;
  return significand + ((quantum - static_cast<uint32_t>(kLowest)) >> (23 - kMantissaBits));
}

template <int kLimit>
inline uint32_t integer_code(float value) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  const uint32_t bits = to_bits(value);
  const float limited = from_bits(limit(bits & kMagnitude, kLimit) | (bits & ~kMagnitude));
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

// Inputs at a time, as floats on the stack: the costly loops are then long whatever the block size.
constexpr int64_t kPiece = 512;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/// Inputs [begin, begin + count) as quantisation sees them.
template <class Input>
void load_values(const QuantizeSegment& segment, int64_t begin, int64_t count, float* values) {
  const auto* input = static_cast<const typename Input::Stored*>(segment.input) + begin;
  for (int64_t i = 0; i < count; ++i) values[i] = Input::load(input[i]);
  if (segment.channel_scale == nullptr) return;
  const float* channel_scale = segment.channel_scale + begin;
  for (int64_t i = 0; i < count; ++i) values[i] = flush(values[i] * flush(channel_scale[i]));
}

/// for_each_block where begin is a multiple of kBlock: a loop over a block has a constant count.
template <int64_t kBlock, class Body>
inline void for_each_whole_block(int64_t begin, int64_t count, Body body) {
  const int64_t first = begin / kBlock;
  const int64_t num_whole = count / kBlock;
  for (int64_t i = 0; i < num_whole; ++i) body(first + i, i * kBlock, i * kBlock + kBlock);
  if (num_whole * kBlock < count) body(first + num_whole, num_whole * kBlock, count);
}

/// Calls body(block, begin, end) for the part of each block inside [begin, begin + count),
/// positions counted from begin, a multiple of kPiece.
template <class Body>
inline void for_each_block(const QuantizeSegment& segment, int64_t begin, int64_t count,
                           Body body) {
  static_assert(kPiece % 128 == 0);
  switch (segment.block) {
    case 16: return for_each_whole_block<16>(begin, count, body);
    case 32: return for_each_whole_block<32>(begin, count, body);
    case 128: return for_each_whole_block<128>(begin, count, body);
    default: break;
  }
  int64_t block = begin / segment.block;
  for (int64_t at = 0; at < count; ++block) {
    const int64_t end = smaller((block + 1) * segment.block - begin, count);
    body(block, at, end);
    at = end;
  }
}

template <class Input>
void amax(const QuantizeSegment& segment, uint32_t* amax_bits) {
  float values[kPiece];
  for (int64_t begin = 0; begin < segment.count; begin += kPiece) {
    const int64_t count = smaller(segment.count - begin, kPiece);
    load_values<Input>(segment, begin, count, values);
    for_each_block(segment, begin, count, [&](int64_t block, int64_t first, int64_t last) {
      // Magnitudes are below 2^31: signed maxima are the same and exist on more machines.
      auto largest = static_cast<int32_t>(amax_bits[block]);
      for (int64_t i = first; i < last; ++i) {
        const auto bits = static_cast<int32_t>(to_bits(values[i]) & kMagnitude);
        largest = bits > largest ? bits : largest;
      }
      amax_bits[block] = static_cast<uint32_t>(largest);
    });
  }
}

template <class Input, class Code>
void encode(const QuantizeSegment& segment, const float* inverses, uint8_t* codes) {
  float values[kPiece];
  uint8_t single[kPiece];
  for (int64_t begin = 0; begin < segment.count; begin += kPiece) {
    const int64_t count = smaller(segment.count - begin, kPiece);
    load_values<Input>(segment, begin, count, values);
    for_each_block(segment, begin, count, [&](int64_t block, int64_t first, int64_t last) {
      const float inverse = inverses[block];
      for (int64_t i = first; i < last; ++i) values[i] *= inverse;
    });
    for (int64_t i = 0; i < count; ++i) single[i] = static_cast<uint8_t>(Code::encode(values[i]));
    for_each_block(segment, begin, count, [&](int64_t block, int64_t first, int64_t last) {
      if (inverses[block] == 0.0f) {
        __builtin_memset(single + first, Code::kZero, static_cast<size_t>(last - first));
      }
    });
    if constexpr (Code::kPerByte == 1) {
      __builtin_memcpy(codes + begin, single, static_cast<size_t>(count));
    } else {
      if (count % 2 != 0) single[count] = Code::kZero;
      uint8_t* bytes = codes + begin / 2;
      for (int64_t i = 0; i < (count + 1) / 2; ++i) {
        uint16_t pair;  // a shape that vectorises
        __builtin_memcpy(&pair, single + 2 * i, sizeof(pair));
        bytes[i] = static_cast<uint8_t>(pair | pair >> 4);
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
