#pragma once
// What happens to rows between the products: conversion, quantisation, activation, the weighted
// sum. The exponential is a polynomial of our own, so that its bits are the same at every ISA
// level. Included only by kernels_*.cpp; internal linkage.

#include "cpu/kernels.h"

namespace switchyard::cpu {
namespace {

constexpr int kSignBit = static_cast<int>(0x80000000u);

/// exp(x) for x <= 0 (or NaN); 0 below -87, where the result would be subnormal.
template <class Isa>
SWITCHYARD_INLINE typename Isa::F exp_negative(typename Isa::F x) {
  using F = typename Isa::F;
  const auto n = Isa::to_int(Isa::mul(Isa::max(Isa::set(-87.0f), x), Isa::set(1.44269504f)));
  const F whole = Isa::to_float(n);
  F r = Isa::fma(whole, Isa::set(-0.693359375f), x);
  r = Isa::fma(whole, Isa::set(2.12194440e-4f), r);
  F p = Isa::set(1.9875691500e-4f);
  p = Isa::fma(p, r, Isa::set(1.3981999507e-3f));
  p = Isa::fma(p, r, Isa::set(8.3334519073e-3f));
  p = Isa::fma(p, r, Isa::set(4.1665795894e-2f));
  p = Isa::fma(p, r, Isa::set(1.6666665459e-1f));
  p = Isa::fma(p, r, Isa::set(5.0000001201e-1f));
  p = Isa::add(Isa::fma(p, Isa::mul(r, r), r), Isa::set(1.0f));
  const F scaled = Isa::as_float(Isa::add_int(Isa::as_int(p), Isa::template shift_left<23>(n)));
  return Isa::select_less(x, Isa::set(-87.0f), Isa::zero(), scaled);
}

template <class Isa>
SWITCHYARD_INLINE typename Isa::F minus_abs(typename Isa::F x) {
  return Isa::as_float(Isa::bit_or(Isa::as_int(x), Isa::set_int(kSignBit)));
}

template <class Isa>
SWITCHYARD_INLINE typename Isa::F sigmoid(typename Isa::F x) {
  const auto one = Isa::set(1.0f);
  const auto z = exp_negative<Isa>(minus_abs<Isa>(x));
  return Isa::div(Isa::select_less(x, Isa::zero(), z, one), Isa::add(one, z));
}

/// value * factor; a factor that reached 0 wins over an infinite value.
template <class Isa>
SWITCHYARD_INLINE typename Isa::F attenuate(typename Isa::F value, typename Isa::F factor) {
  return Isa::select_less(factor, Isa::set(0x1p-126f), Isa::zero(), Isa::mul(value, factor));
}

template <class Isa>
SWITCHYARD_INLINE typename Isa::F tanh(typename Isa::F x) {
  using F = typename Isa::F;
  const F one = Isa::set(1.0f);
  const F z = exp_negative<Isa>(Isa::mul(Isa::set(2.0f), minus_abs<Isa>(x)));
  const F large = Isa::div(Isa::sub(one, z), Isa::add(one, z));
  const F square = Isa::mul(x, x);
  F p = Isa::set(-5.70498872745e-3f);
  p = Isa::fma(p, square, Isa::set(2.06390887954e-2f));
  p = Isa::fma(p, square, Isa::set(-5.37397155531e-2f));
  p = Isa::fma(p, square, Isa::set(1.33314422036e-1f));
  p = Isa::fma(p, square, Isa::set(-3.33332819422e-1f));
  const F small = Isa::fma(Isa::mul(p, square), x, x);
  const F signed_large = Isa::select_less(x, Isa::zero(), Isa::sub(Isa::zero(), large), large);
  return Isa::select_less(Isa::set(-0.625f), minus_abs<Isa>(x), small, signed_large);
}

/// erfc(x) by Chebyshev fit, relative error below 1.2e-7 (the fit) + |x|^2 * 2^-24 (its exponent).
template <class Isa>
SWITCHYARD_INLINE typename Isa::F erfc(typename Isa::F x) {
  using F = typename Isa::F;
  constexpr float kFit[] = {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                            0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
  const F one = Isa::set(1.0f);
  const F t = Isa::div(one, Isa::fma(Isa::set(-0.5f), minus_abs<Isa>(x), one));
  F p = Isa::set(0.17087277f);
#pragma GCC unroll 9
  for (const float c : kFit) p = Isa::fma(p, t, Isa::set(c));
  const F minus_square = Isa::mul(minus_abs<Isa>(x), Isa::sub(Isa::zero(), minus_abs<Isa>(x)));
  const F positive = Isa::mul(t, exp_negative<Isa>(Isa::add(minus_square, p)));
  return Isa::select_less(x, Isa::zero(), Isa::sub(Isa::set(2.0f), positive), positive);
}

template <class Isa>
SWITCHYARD_INLINE typename Isa::F soft_clamp(typename Isa::F x, float bound) {
  return Isa::mul(Isa::set(bound), tanh<Isa>(Isa::div(x, Isa::set(bound))));
}

template <class Isa>
SWITCHYARD_INLINE typename Isa::F clamp(typename Isa::F x, float limit) {
  return Isa::max(Isa::set(-limit), Isa::min(Isa::set(limit), x));
}

/// core/activation.h in vectors.
template <class Isa>
SWITCHYARD_INLINE typename Isa::F apply(const ActivationSpec& spec, typename Isa::F gate,
                                        typename Isa::F up) {
  using F = typename Isa::F;
  switch (spec.kind) {
    case Activation::kSwiGlu: return Isa::mul(attenuate<Isa>(gate, sigmoid<Isa>(gate)), up);
    case Activation::kSwiGluClamp: {
      const F g = Isa::min(Isa::set(spec.limit), gate);
      return Isa::mul(attenuate<Isa>(g, sigmoid<Isa>(g)), clamp<Isa>(up, spec.limit));
    }
    case Activation::kSwiGluOai: {
      const F g = Isa::min(Isa::set(spec.limit), gate);
      const F factor = sigmoid<Isa>(Isa::mul(Isa::set(spec.alpha), g));
      return Isa::mul(attenuate<Isa>(g, factor),
                      Isa::add(clamp<Isa>(up, spec.limit), Isa::set(1.0f)));
    }
    case Activation::kGeGluTanh: {
      const F square = Isa::mul(Isa::mul(Isa::set(0.044715f), gate), gate);
      const F y = Isa::mul(Isa::mul(Isa::set(1.59576912f), gate), Isa::add(Isa::set(1.0f), square));
      return Isa::mul(attenuate<Isa>(gate, sigmoid<Isa>(y)), up);
    }
    case Activation::kGeGlu: {
      const F factor = Isa::mul(Isa::set(0.5f), erfc<Isa>(Isa::mul(gate, Isa::set(-0.707106781f))));
      return Isa::mul(attenuate<Isa>(gate, factor), up);
    }
    case Activation::kSiTu: {
      const F g = Isa::mul(soft_clamp<Isa>(gate, spec.beta), sigmoid<Isa>(gate));
      return Isa::mul(g, spec.linear_beta == 0.0f ? up : soft_clamp<Isa>(up, spec.linear_beta));
    }
    case Activation::kRelu2: {
      const F positive = Isa::max(Isa::zero(), up);
      return Isa::mul(positive, positive);
    }
  }
  return Isa::zero();
}

template <class Isa>
static void activate(const ActivateJob& job) {
  using F = typename Isa::F;
  for (int r = 0; r < job.num_rows; ++r) {
    const int32_t index = job.weight_index == nullptr ? r : job.weight_index[r];
    const F weight = Isa::set(job.row_weights == nullptr ? 1.0f : job.row_weights[index]);
    // The product of the row and its weight, then the bias: weight-on-input is linear up to here.
    const auto product = [&](const float* products, const float* bias, int c) {
      if (products == nullptr) return Isa::zero();
      const F sum = Isa::load(products + int64_t{r} * kPanelRows + c);
      const F base = bias == nullptr ? Isa::zero() : Isa::load(bias + c);
      return job.row_weights == nullptr ? Isa::add(sum, base) : Isa::fma(sum, weight, base);
    };
    float* out = job.out + int64_t{r} * kPanelRows;
    for (int c = 0; c < kPanelRows; c += Isa::kLanes) {
      const F gate = product(job.gate, job.gate_bias, c);
      const F up = product(job.up, job.up_bias, c);
      Isa::store(out + c, apply<Isa>(*job.activation, gate, up));
    }
    for (int c = job.num_cols; c < kPanelRows; ++c) out[c] = 0.0f;
  }
}

// ---- Conversion ----

template <class Isa>
SWITCHYARD_INLINE typename Isa::F load_any(const uint8_t* p, DataType type) {
  switch (type) {
    case DataType::kBf16: return Isa::as_float(Isa::template shift_left<16>(Isa::load_words(p)));
    case DataType::kF16: return Isa::load_halves(p);
    default: return Isa::load(reinterpret_cast<const float*>(p));
  }
}

/// Round to nearest even; a NaN keeps its upper bits and becomes quiet.
template <class Isa>
SWITCHYARD_INLINE typename Isa::I to_bf16(typename Isa::F x) {
  const auto bits = Isa::as_int(x);
  const auto odd = Isa::bit_and(Isa::template shift_right<16>(bits), Isa::set_int(1));
  const auto rounded =
      Isa::template shift_right<16>(Isa::add_int(bits, Isa::add_int(odd, Isa::set_int(0x7fff))));
  const auto quiet = Isa::bit_or(Isa::template shift_right<16>(bits), Isa::set_int(0x40));
  const auto magnitude = Isa::bit_and(bits, Isa::set_int(0x7fffffff));
  const auto above_infinity = Isa::to_float(Isa::sub_int(magnitude, Isa::set_int(0x7f800001)));
  return Isa::as_int(
      Isa::select_less(above_infinity, Isa::zero(), Isa::as_float(rounded), Isa::as_float(quiet)));
}

template <class Isa>
SWITCHYARD_INLINE void store_any(uint8_t* p, DataType type, typename Isa::F x) {
  switch (type) {
    case DataType::kBf16: return Isa::store_words(p, to_bf16<Isa>(x));
    case DataType::kF16: return Isa::store_halves(p, x);
    default: return Isa::store(reinterpret_cast<float*>(p), x);
  }
}

constexpr int64_t float_bytes(DataType type) { return type == DataType::kF32 ? 4 : 2; }

template <class Isa>
static void load_row(const void* input, DataType type, int64_t count, float* out) {
  const int64_t bytes = float_bytes(type);
  const auto* from = static_cast<const uint8_t*>(input);
  int64_t i = 0;
  for (; i + Isa::kLanes <= count; i += Isa::kLanes) {
    Isa::store(out + i, load_any<Isa>(from + i * bytes, type));
  }
  if (i == count) return;
  alignas(64) uint8_t tail[64] = {};
  alignas(64) float floats[16];
  __builtin_memcpy(tail, from + i * bytes, static_cast<size_t>((count - i) * bytes));
  Isa::store(floats, load_any<Isa>(tail, type));
  __builtin_memcpy(out + i, floats, static_cast<size_t>(count - i) * sizeof(float));
}

template <class Isa>
static void store_row(const float* input, int64_t count, DataType type, void* out) {
  const int64_t bytes = float_bytes(type);
  auto* to = static_cast<uint8_t*>(out);
  int64_t i = 0;
  for (; i + Isa::kLanes <= count; i += Isa::kLanes) {
    store_any<Isa>(to + i * bytes, type, Isa::load(input + i));
  }
  if (i == count) return;
  alignas(64) float floats[16] = {};
  alignas(64) uint8_t tail[64];
  __builtin_memcpy(floats, input + i, static_cast<size_t>(count - i) * sizeof(float));
  store_any<Isa>(tail, type, Isa::load(floats));
  __builtin_memcpy(to + i * bytes, tail, static_cast<size_t>((count - i) * bytes));
}

// ---- Quantisation ----

/// What RowLayout calls a correction, from the sums of its integers.
template <class Isa>
SWITCHYARD_INLINE int32_t correction(int offset, int first, int second) {
  if (!Isa::kWordCorrections) return offset * (first + second);
  // Wide bytes are split in nibbles, of which the upper one carries the offset.
  if (offset == kInt8Offset) offset /= 16;
  return (offset * first & 0xffff) |
         static_cast<int32_t>(static_cast<uint32_t>(offset * second) << 16);
}

/// core/block_quantize.h for kInt8 in vectors: scale = amax / 127, int8 = round(x / scale). The
/// maximum is taken over the bits, so that NaN and infinity win: such a block gets a NaN scale and
/// zero codes.
template <class Isa>
static void quantize_blocks(const float* input, const RowLayout& layout, int32_t first_block,
                            int32_t num_blocks, uint8_t* row) {
  using I = typename Isa::I;
  auto* values = reinterpret_cast<int8_t*>(row) + int64_t{first_block} * kBlockCols;
  auto* scales = reinterpret_cast<float*>(row + layout.scales_offset) + first_block;
  const int parts = layout.half_blocks ? 2 : 1;
  auto* corrections =
      reinterpret_cast<int32_t*>(row + layout.corrections_offset) + int64_t{first_block} * parts;
  for (int b = 0; b < num_blocks; ++b, input += kBlockCols, values += kBlockCols) {
    I largest = Isa::set_int(0);
    for (int i = 0; i < kBlockCols; i += Isa::kLanes) {
      const I bits = Isa::as_int(Isa::load(input + i));
      largest = Isa::max_int(largest, Isa::bit_and(bits, Isa::set_int(0x7fffffff)));
    }
    const int32_t bits = Isa::reduce_max(largest);
    float amax, scale;
    __builtin_memcpy(&amax, &bits, sizeof(amax));
    const bool finite = bits < 0x7f800000;
    scale = amax / 127.0f;
    if (scale < 0x1p-126f) scale = amax < 0x1p-126f ? 1.0f : 0x1p-126f;
    const typename Isa::F inverse = Isa::set(1.0f / scale);
    scales[b] = finite ? scale : __builtin_nanf("");
    for (int i = 0; i < kBlockCols; i += Isa::kLanes) {
      I q = Isa::to_int(Isa::mul(Isa::load(input + i), inverse));
      if (!finite) q = Isa::set_int(0);
      Isa::store_bytes(values + i, q);
    }
    if (layout.words_offset != 0) {
      widen_block(values, reinterpret_cast<int8_t*>(row) + layout.words_offset +
                              int64_t{first_block + b} * kBlockCols * 2);
    }
    const ByteSums first = sum_bytes(values), second = sum_bytes(values + kBlockCols / 2);
    if (layout.half_blocks) {
      corrections[2 * b] = correction<Isa>(layout.offset, first.first, first.second);
      corrections[2 * b + 1] = correction<Isa>(layout.offset, second.first, second.second);
    } else {
      corrections[b] =
          correction<Isa>(layout.offset, first.first + second.first, first.second + second.second);
    }
  }
}

// ---- Combination ----

template <class Isa>
static void combine(const CombineJob& job) {
  using F = typename Isa::F;
  constexpr int kVecs = kPanelRows / Isa::kLanes;
  alignas(64) float sums[kPanelRows];
  for (int64_t token = 0; token < job.num_tokens; ++token) {
    F sum[kVecs];
    for (int v = 0; v < kVecs; ++v) sum[v] = Isa::zero();
    if (job.addend != nullptr) {
      load_row<Isa>(job.addend + token * job.addend_stride, DataType::kF32, job.num_cols, sums);
      for (int c = job.num_cols; c < kPanelRows; ++c) sums[c] = 0.0f;
      for (int v = 0; v < kVecs; ++v) sum[v] = Isa::load(sums + v * Isa::kLanes);
    }
    for (int64_t pair = token * job.top_k; pair < (token + 1) * job.top_k; ++pair) {
      const int64_t row = job.pair_to_row[pair];
      if (row < 0) continue;
      const F weight = Isa::set(job.weights == nullptr ? 1.0f : job.weights[pair]);
      for (int v = 0; v < kVecs; ++v) {
        sum[v] =
            Isa::fma(weight, Isa::load(job.products + row * kPanelRows + v * Isa::kLanes), sum[v]);
      }
    }
    for (int v = 0; v < kVecs; ++v) Isa::store(sums + v * Isa::kLanes, sum[v]);
    store_row<Isa>(sums, job.num_cols, job.output_type, job.output + token * job.output_stride);
  }
}

// ---- The machine's limits ----

template <class Isa>
static uint64_t stream_read(const uint8_t* data, int64_t bytes) {
  using I = typename Isa::I;
  I sum[4] = {Isa::set_int(0), Isa::set_int(0), Isa::set_int(0), Isa::set_int(0)};
  for (int64_t i = 0; i + 4 * int64_t{sizeof(I)} <= bytes; i += 4 * int64_t{sizeof(I)}) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sum[j] = Isa::bit_or(sum[j], Isa::load_int(data + i + j * int64_t{sizeof(I)}));
    }
  }
  return static_cast<uint64_t>(
      Isa::reduce_add(Isa::bit_or(Isa::bit_or(sum[0], sum[1]), Isa::bit_or(sum[2], sum[3]))));
}

template <class Isa>
static void stream_copy(const uint8_t* data, int64_t bytes, uint8_t* out) {
  using I = typename Isa::I;
  for (int64_t i = 0; i + int64_t{sizeof(I)} <= bytes; i += int64_t{sizeof(I)}) {
    Isa::store_int(out + i, Isa::load_int(data + i));
  }
}

template <class Isa>
static float f32_fma(int64_t iterations) {
  constexpr int kRepeats = 16 / Isa::kLanes;
  typename Isa::F sums[kPeakChains];
  for (int i = 0; i < kPeakChains; ++i) sums[i] = Isa::set(static_cast<float>(i));
  auto x = Isa::set(0.5f);
  for (int64_t n = 0; n < iterations * kRepeats; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kPeakChains; ++i) sums[i] = Isa::fma(sums[i], x, x);
    asm volatile("" : "+v"(x));
  }
  float result[16];
  auto sum = sums[0];
  for (int i = 1; i < kPeakChains; ++i) sum = Isa::add(sum, sums[i]);
  Isa::store(result, sum);
  return result[0];
}

template <class Isa>
static int32_t int8_dot(int64_t iterations) {
  using Dot = typename Isa::template Dot<IntBytes::kNarrow>;
  constexpr int kRepeats = 16 / Isa::kLanes;
  constexpr int8_t kFour[4] = {1, 2, 3, 4};
  typename Dot::Acc sums[kPeakChains];
  for (int i = 0; i < kPeakChains; ++i) sums[i] = Dot::start(Isa::set_int(i));
  auto x = Dot::activation(kFour);
  for (int64_t n = 0; n < iterations * kRepeats; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kPeakChains; ++i) {
      Dot::step(sums[i], Dot::weight(x), x);
      asm volatile("" : "+v"(x));  // else AVX2 multiplies once for all chains
    }
  }
  uint32_t sum = 0;  // wraps; only there to be used
  for (int i = 0; i < kPeakChains; ++i) {
    sum += static_cast<uint32_t>(Isa::reduce_add(Dot::result(sums[i])));
  }
  return static_cast<int32_t>(sum);
}

}  // namespace
}  // namespace switchyard::cpu
