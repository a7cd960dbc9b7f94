#pragma once
// From the sums of a tile of 4-bit weights to bf16 output rows. Of every 16 weight rows of a warp a
// thread (lane = 4 g + q) holds rows 2 g and 2 g + 1 - gate and up, or two neighbouring columns of
// the output - for sorted rows 2 q and 2 q + 1 of every group of eight. Output passes through
// shared memory, so that it leaves in whole rows.

#include "cuda/sm90/fp4_prefill_mainloop.cuh"
#include "cuda/sm90/grouped_gemm_epilogue.cuh"

namespace switchyard::cuda::sm90 {

/// Two or four 8 x 8 matrices of 16-bit elements, transposed: lane 8 i + r names row r of matrix i.
__device__ __forceinline__ void store_transposed(uint32_t to, const uint32_t (&words)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to),
               "r"(words[0]), "r"(words[1])
               : "memory");
}
__device__ __forceinline__ void store_transposed(uint32_t to, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

/// Said to be global memory, which the compiler cannot see of an address from shared memory.
__device__ __forceinline__ void store_global(void* to, const uint4& v) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

template <class Traits>
struct Fp4PrefillEnd {
  static constexpr int kRows = Traits::kTileRows;
  static constexpr int kGroups = kRows / 8;
  using Sums = typename Traits::Sums;  // [group][weight row of the pair][2]

  const Fp4PrefillParams& p;
  const Fp4PrefillFacts<Traits>& facts;
  uint8_t* output;  ///< shared memory of this consumer
  int consumer;
  int thread;
  float2 scale, bias;  ///< of the thread's two weight rows

  __device__ Fp4PrefillEnd(const Fp4PrefillParams& params, const Fp4PrefillFacts<Traits>& facts_,
                           uint8_t* output_, int consumer_, int thread_)
      : p(params),
        facts(facts_),
        output(output_),
        consumer(consumer_),
        thread(thread_),
        scale(of_weights(facts_.weight_scale)),
        bias(params.bias == nullptr ? float2{} : of_weights(facts_.bias)) {}
  __device__ __forceinline__ float2 of_weights(const float* per_row) const {
    return *reinterpret_cast<const float2*>(per_row + consumer * kFragmentRows + thread / 4 * 2);
  }
  __device__ __forceinline__ float2 of_rows(const float* per_row, int group) const {
    return *reinterpret_cast<const float2*>(per_row + group * 8 + thread % 4 * 2);
  }

  /// The threads of this consumer wait for each other.
  __device__ __forceinline__ void meet() const { named_barrier(1 + consumer, 128); }

  /// Scales and biases the sums of kCount groups of rows. What few layers have stays outside of
  /// the straight line: at every group its branches cost more than the arithmetic.
  template <int kCount>
  __device__ __forceinline__ void scale_groups(Sums& sums, int first) const {
    float2 factor[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) factor[j] = of_rows(facts.factor, first + j);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      float* s = &sums[4 * (first + j)];
      s[0] *= factor[j].x * scale.x, s[1] *= factor[j].y * scale.x;
      s[2] *= factor[j].x * scale.y, s[3] *= factor[j].y * scale.y;
    }
    if (p.bias == nullptr) return;
#pragma unroll
    for (int j = 0; j < kCount; ++j) factor[j] = of_rows(facts.after, first + j);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      float* s = &sums[4 * (first + j)];
      s[0] = (s[0] + bias.x) * factor[j].x, s[1] = (s[1] + bias.x) * factor[j].y;
      s[2] = (s[2] + bias.y) * factor[j].x, s[3] = (s[3] + bias.y) * factor[j].y;
    }
  }

  /// Copies kCount rows of kRowBytes, the first of them row `begin` of the tile, to their places.
  /// 16-byte chunk c of row r lies at swizzle(r, c).
  template <int kRowBytes, int kCount, class Swizzle>
  __device__ __forceinline__ void copy_out(int begin, int32_t column, Swizzle swizzle) const {
    constexpr int kChunks = kRowBytes / 16;
    constexpr int kPass = 128 / kChunks;
    constexpr int kPasses = ceil_div(kCount, kPass);
    const int chunk = thread % kChunks, first = thread / kChunks;
    const int32_t at = column + chunk * 8;
    uint16_t* to[kPasses];
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int r = i * kPass + first;
      to[i] = r < kCount ? facts.output[begin + r] : nullptr;
    }
    meet();
    uint4 values[kPasses];
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int r = min(i * kPass + first, kCount - 1);
      values[i] =
          *reinterpret_cast<const uint4*>(output + r * kRowBytes + (swizzle(r, chunk) << 4));
    }
    const bool in_row = at < p.num_columns;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      if (in_row && to[i] != nullptr) store_global(to[i] + at, values[i]);
    }
  }

  __device__ __forceinline__ int32_t weight_block() const {
    return facts.ticket.column * Traits::kConsumers + consumer;
  }

  __device__ void finish_gated(Sums& sums) const {
    constexpr int kRowBytes = kFragmentRows;  // 32 bf16
    const auto swizzle = [](int row, int chunk) { return chunk ^ (row / 2 % 4); };
    const int warp = thread / 32, lane = thread % 32;
    meet();  // the output before has left
    with_activation(p.activation_spec, p.curve, [&](auto activate) {
      const auto store = [&](int first, auto count) {
        constexpr int kCount = decltype(count)::value;
        uint32_t words[kCount];
        scale_groups<kCount>(sums, first);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float* s = &sums[4 * (first + i)];
          words[i] = pack_bf16(activate(s[0], s[2]), activate(s[1], s[3]));
        }
        const int row = first * 8 + lane % (kCount * 8);
        store_transposed(shared_address(output) +
                             static_cast<uint32_t>(row * kRowBytes + (swizzle(row, warp) << 4)),
                         words);
      };
#pragma unroll
      for (int j = 0; j + 4 <= kGroups; j += 4) store(j, std::integral_constant<int, 4>{});
      if constexpr (kGroups % 4 == 2) store(kGroups - 2, std::integral_constant<int, 2>{});
    });
    copy_out<kRowBytes, kRows>(0, weight_block() * (kFragmentRows / 2), swizzle);
  }

  __device__ void finish_rows(Sums& sums) const {
    constexpr int kRowBytes = 2 * kFragmentRows;
    constexpr int kPass = kRows <= 64 ? kRows : kRows / 2;
    static_assert(kPass * kRowBytes <= Traits::kOutputBytes);
    const auto swizzle = [](int row, int chunk) { return chunk ^ (row / 2 % 4 * 2); };
    const int pair = thread / 4, q = thread % 4;
    const int rows = facts.ticket.rows;
#pragma unroll
    for (int begin = 0; begin < kRows; begin += kPass) {
      if (begin >= rows) break;
      scale_groups<kPass / 8>(sums, begin / 8);
      if (p.square) {
#pragma unroll
        for (int i = begin / 2; i < (begin + kPass) / 2; ++i) {
          sums[i] = sums[i] < 0.0f ? 0.0f : sums[i] * sums[i];
        }
      }
      meet();  // the output before has left
#pragma unroll
      for (int j = 0; j < kPass / 8; ++j) {
        const float* s = &sums[4 * (begin / 8 + j)];
        // Of rows 2 q and 2 q + 1, which have the same swizzle.
        uint8_t* to =
            output + (j * 8 + q * 2) * kRowBytes + (swizzle(q * 2, pair / 4) << 4) + pair % 4 * 4;
        *reinterpret_cast<uint32_t*>(to) = pack_bf16(s[0], s[2]);
        *reinterpret_cast<uint32_t*>(to + kRowBytes) = pack_bf16(s[1], s[3]);
      }
      copy_out<kRowBytes, kPass>(begin, weight_block() * kFragmentRows, swizzle);
    }
  }

  __device__ void finish(Sums& sums) const {
    if constexpr (Traits::kEnd == TileEnd::kGated) {
      finish_gated(sums);
    } else {
      finish_rows(sums);
    }
  }
};

}  // namespace switchyard::cuda::sm90
