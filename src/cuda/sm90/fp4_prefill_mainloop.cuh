#pragma once
// The k loop of 4-bit weights times many rows. Weight rows lie on wgmma's M and come from
// registers, where a thread converts just the codes it multiplies; sorted rows lie on N. Three or
// four warpgroups of 64 weight rows share the rows of a tile: while one converts or takes its sums
// out, the others keep the matrix unit busy.

#include "cuda/sm90/fp4_prefill_producer.cuh"
#include "cuda/sm90/fp4_prefill_wgmma.cuh"

namespace switchyard::cuda::sm90 {

/// The k loop of one warpgroup: its 64 weight rows times the tile's rows.
template <class Traits>
struct Fp4PrefillConsumer {
  using Operand = typename Traits::Operand;
  using Sums = typename Traits::Sums;
  /// Those of the first kN rows.
  template <int kN>
  using Part = float[kN / 2];
  /// What the matrix unit sums of them.
  template <int kN>
  using Products = typename Operand::Word[kN / 2];
  /// Whether every instruction has scales of its own: of bytes, a half is a block of two groups.
  static constexpr bool kStepGroups = Traits::kStageBlocks == 2 && Operand::kGroups == 2;
  /// Operand A of two k-steps, 64 bytes of K: half a stage.
  using HalfOperand = uint32_t[2][4];

  const Fp4PrefillParams& p;
  const Fp4PrefillRing<Traits>& ring;
  const uint8_t* tables;  ///< of the operand, in shared memory: Fp8Table by scale byte
  float4* held;           ///< this thread's sums in shared memory, 128 apart
  int consumer;
  int thread;  ///< of the warpgroup
  RingPosition<Traits::kStages> at{};

  __device__ __forceinline__ void release(int slot) const {
    if (thread % 32 == 0) barrier_arrive(&ring.empty[slot]);
  }
  __device__ __forceinline__ void wait_full() const {
    barrier_wait(&ring.full[at.slot], at.parity);
    // Gathered rows were written by ordinary stores as far as wgmma is concerned.
    if constexpr (Traits::kGather) fence_async_shared();
  }
  /// Lets a tile's k blocks pass.
  __device__ void skip_tile() {
    for (int k = 0; k < p.num_k_blocks; ++k) {
      barrier_wait(&ring.full[at.slot], at.parity);
      release(at.slot);
      at.advance();
    }
  }

  /// This thread's codes of a stage, and the scales of its pair of rows.
  using Raw = typename Operand::Raw[Traits::kStageBlocks];
  __device__ __forceinline__ void load(Raw& raw) const {
    const uint8_t* stage =
        ring.weights + at.slot * Traits::kWeightStage + consumer * Traits::kConsumerStage;
#pragma unroll
    for (int i = 0; i < Traits::kStageBlocks; ++i) {
      raw[i] = Operand::load(stage + i * Traits::kBlockBytes, thread);
    }
  }
  /// From memory only where arithmetic is not exact: a chain of its loads would be as long as the
  /// products.
  template <bool kDeep>
  __device__ __forceinline__ Fp8Table table(uint32_t scales, int index) const {
    const uint32_t byte = permute_bytes(scales, 0, 0x4440u + static_cast<uint32_t>(index));
    if constexpr (!kDeep) return added_fp8_table(byte);
    const uint2 pair = *reinterpret_cast<const uint2*>(tables + byte);
    return {pair.x, pair.y};
  }
  template <int kHalf, bool kDeep>
  __device__ __forceinline__ void convert_half(const Raw& raw, HalfOperand& a) const {
    if constexpr (Operand::kTables) {
      const uint32_t(&w)[4] = raw[kHalf].words;
      const uint32_t scales = raw[kHalf].scales[0];
      convert_fp8(w[0], table<kDeep>(scales, 0), a[0][0], a[0][2]);
      convert_fp8(w[1], table<kDeep>(scales, 2), a[0][1], a[0][3]);
      convert_fp8(w[2], table<kDeep>(scales, 1), a[1][0], a[1][2]);
      convert_fp8(w[3], table<kDeep>(scales, 3), a[1][1], a[1][3]);
    } else if constexpr (Traits::kStageBlocks == 2) {
      const auto* scale_tables = reinterpret_cast<const Fp8Table*>(tables);
      Operand::convert_step(raw[kHalf], 0, a[0], scale_tables);
      Operand::convert_step(raw[kHalf], 1, a[1], scale_tables);
    } else {
      Operand::convert_step(raw[0], 2 * kHalf, a[0]);
      Operand::convert_step(raw[0], 2 * kHalf + 1, a[1]);
    }
  }
  __device__ __forceinline__ uint64_t rows_descriptor() const {
    return swizzled_128_descriptor(shared_address(ring.rows + at.slot * Traits::kRowStage));
  }
  template <int kN>
  __device__ __forceinline__ void multiply_half(Part<kN>& d, const HalfOperand& a, uint64_t b,
                                                bool accumulate) const {
    pin(d);
    wgmma_fence();
    Wgmma<Operand::kMma, kN>::rs(d, a[0], b, accumulate);
    Wgmma<Operand::kMma, kN>::rs(d, a[1], b + 2, true);  // descriptors count 16 bytes
    wgmma_commit();
    pin(d);
  }

  /// Sums stay inside the matrix unit. A half is converted while the one before it is multiplied;
  /// that one's operand is free by then, and so is the stage before.
  template <int kN>
  __device__ __forceinline__ void accumulate(Part<kN>& sums) {
    HalfOperand low, high;
#pragma unroll 1
    for (int k = 0; k < p.num_k_blocks; ++k) {
      wait_full();
      const uint64_t b = rows_descriptor();
      Raw raw;
      load(raw);
      wgmma_wait<1>();
      convert_half<0, false>(raw, low);
      multiply_half<kN>(sums, low, b, true);
      wgmma_wait<1>();
      if (k != 0) release(at.slot == 0 ? Traits::kStages - 1 : at.slot - 1);
      convert_half<1, false>(raw, high);
      multiply_half<kN>(sums, high, b + 4, true);
      at.advance();
    }
    wgmma_wait<0>();
    pin(sums);
    release(at.slot == 0 ? Traits::kStages - 1 : at.slot - 1);
  }

  /// sums += part, times the rows' scales of the stage in `slot`.
  template <int kN>
  __device__ __forceinline__ void add_row_scaled(Part<kN>& sums, const Part<kN>& part,
                                                 int slot) const {
    const float* scales = ring.scales + slot * Traits::kTileRows + thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < kN / 2; i += 4) {
      const float2 scale = *reinterpret_cast<const float2*>(scales + 2 * i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[i + j] = fmaf(part[i + j], j % 2 == 0 ? scale.x : scale.y, sums[i + j]);
      }
    }
  }

  /// Of a thread's sums, those from here on are held.
  static constexpr int kFirstHeld = Traits::kTileRows / 2 - Traits::kHeldSums;
  template <int kN>
  __device__ __forceinline__ void add(Part<kN>& sums, const Part<kN>& part) const {
#pragma unroll
    for (int i = 0; i < kN / 2 && i < kFirstHeld; ++i) sums[i] += part[i];
#pragma unroll
    for (int i = kFirstHeld; i < kN / 2; i += 4) {
      float4& s = held[(i - kFirstHeld) / 4 * 128];
      float4 v = s;
      v.x += part[i], v.y += part[i + 1], v.z += part[i + 2], v.w += part[i + 3];
      s = v;
    }
  }
  __device__ __forceinline__ void clear_held() const {
#pragma unroll
    for (int i = 0; i < Traits::kHeldSums / 4; ++i) held[i * 128] = float4{};
  }
  __device__ __forceinline__ void fetch_held(Sums& sums) const {
#pragma unroll
    for (int i = 0; i < Traits::kHeldSums / 4; ++i) {
      const float4 v = held[i * 128];
      float* s = &sums[kFirstHeld + 4 * i];
      s[0] = v.x, s[1] = v.y, s[2] = v.z, s[3] = v.w;
    }
  }

  /// Multiplies the ring's k block, whose codes are in `raw`, and fetches those of the next one
  /// under the products (5 % at 128 rows), if there are `more`; registers allow no more.
  template <int kN, bool kDeep>
  __device__ __forceinline__ void multiply_block(Part<kN>& part, Raw& raw, bool accumulate,
                                                 bool more) {
    HalfOperand low, high;
    const uint64_t b = rows_descriptor();
    convert_half<0, kDeep>(raw, low);
    multiply_half<kN>(part, low, b, accumulate);
    convert_half<1, kDeep>(raw, high);
    multiply_half<kN>(part, high, b + 4, true);
    at.advance();
    if (more) {
      wait_full();
      load(raw);
    }
    wgmma_wait<0>();
    pin(part);
  }
  /// Takes the sums out every kPromoteBlocks k blocks. Beside running products an instruction takes
  /// two clocks or more, so what a loop would decide per k block is decided once for all of them.
  template <int kN, bool kDeep>
  __device__ __forceinline__ void accumulate_promoted(Part<kN>& sums, Part<kN>& part) {
    constexpr int kBlocks = Traits::kPromoteBlocks;
    // No: but where the compiler knows that, it serialises the products.
    const bool kept = p.num_k_blocks < 0;
    Raw raw;
    wait_full();
    load(raw);
    const auto multiply = [&](bool accumulate, bool more) {
      const int slot = at.slot;
      multiply_block<kN, kDeep>(part, raw, accumulate, more);
      if constexpr (Traits::kRowScales) add_row_scaled<kN>(sums, part, slot);
      release(slot);
    };
    for (int left = p.num_k_blocks; left > 0; left -= kBlocks) {
      if (left >= kBlocks) {
#pragma unroll
        for (int k = 0; k < kBlocks; ++k)
          multiply(k == 0 ? kept : true, k + 1 < kBlocks || left > kBlocks);
      } else {
#pragma unroll 1
        for (int k = 0; k < left; ++k) multiply(k != 0, k + 1 < left);
      }
      if constexpr (!Traits::kRowScales) add<kN>(sums, part);
    }
  }

  /// Waits for part, the sums of group `group` of a block; sums += part times the group's scales.
  template <int kN>
  __device__ __forceinline__ void take_out(Part<kN>& sums, Products<kN>& part,
                                           const typename Operand::Scales& scales,
                                           int group) const {
    wgmma_wait<0>();
    pin(part);
    const float factor[] = {Operand::scale(scales, 0, group), Operand::scale(scales, 1, group)};
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      sums[i] = fmaf(static_cast<float>(part[i]), factor[i / 2 % 2], sums[i]);
    }
  }
  /// part = the first of the half's groups.
  template <int kN>
  __device__ __forceinline__ void multiply_group(Products<kN>& part, const HalfOperand& a,
                                                 uint64_t b, bool accumulate) const {
    pin(part);
    wgmma_fence();
    Wgmma<Operand::kMma, kN>::rs(part, a[0], b, accumulate);
    if constexpr (!kStepGroups) Wgmma<Operand::kMma, kN>::rs(part, a[1], b + 2, true);
    wgmma_commit();
    pin(part);
  }
  /// kStepGroups: takes that one out; part = the second.
  template <int kN>
  __device__ __forceinline__ void multiply_second(Part<kN>& sums, Products<kN>& part,
                                                  const HalfOperand& a, uint64_t b, bool kept,
                                                  const typename Operand::Scales& scales) const {
    take_out<kN>(sums, part, scales, 0);
    pin(part);
    wgmma_fence();
    Wgmma<Operand::kMma, kN>::rs(part, a[1], b + 2, kept);
    wgmma_commit();
    pin(part);
  }
  /// Takes the sum of every group of columns out, times its scale. The other half, or the next
  /// stage's first, is converted under the products.
  template <int kN>
  __device__ __forceinline__ void accumulate_scaled(Part<kN>& sums, Products<kN>& part) {
    constexpr int kLast = Traits::kStageBlocks - 1;
    constexpr bool kScaledHalves = kLast == 1 || Operand::kGroups == 2;
    // No: but where the compiler knows that, it serialises the products.
    const bool kept = p.num_k_blocks < 0;
    HalfOperand low, high;
    Raw raw;
    wait_full();
    load(raw);
    convert_half<0, false>(raw, low);
#pragma unroll 1
    for (int k = 0; k < p.num_k_blocks; ++k) {
      const uint64_t b = rows_descriptor();
      const int slot = at.slot;
      multiply_group<kN>(part, low, b, kept);
      convert_half<1, false>(raw, high);
      if constexpr (kStepGroups) multiply_second<kN>(sums, part, low, b, kept, raw[0].scales);
      if constexpr (kScaledHalves) take_out<kN>(sums, part, raw[0].scales, kStepGroups ? 1 : 0);
      multiply_group<kN>(part, high, b + 4, !kScaledHalves || kept);
      if constexpr (kStepGroups) {
        multiply_second<kN>(sums, part, high, b + 4, kept, raw[kLast].scales);
      }
      const typename Operand::Raw now = raw[kLast];
      at.advance();
      if (k + 1 < p.num_k_blocks) {
        wait_full();
        load(raw);
        if constexpr (!kScaledHalves) wgmma_wait<1>();  // low is free
        convert_half<0, false>(raw, low);
      }
      take_out<kN>(sums, part, now.scales, Operand::kGroups - 1);
      release(slot);
    }
  }

  template <int kN>
  __device__ __forceinline__ void multiply_rows(Sums& sums,
                                                [[maybe_unused]] Products<Traits::kTileRows>& part,
                                                int rows) {
    // Beside 80 rows of bf16 registers suffice for one more height.
    constexpr bool kFew = Traits::kTileRows == 80 && !Operand::kBytes;
    if constexpr (kN > (kFew ? 32 : Traits::kRowStep)) {
      // 48 rows save a tenth where sums are scaled; elsewhere little, and registers do not suffice.
      constexpr int kLess =
          kFew || (kN == 64 && !Operand::kScalesSums) ? 32 : kN - Traits::kRowStep;
      if (rows <= kLess) return multiply_rows<kLess>(sums, part, rows);
    }
    auto& of_rows = reinterpret_cast<Part<kN>&>(sums);
    if constexpr (Operand::kScalesSums) {
      accumulate_scaled<kN>(of_rows, reinterpret_cast<Products<kN>&>(part));
    } else if constexpr (!Operand::kBytes) {
      accumulate<kN>(of_rows);
    } else {
      accumulate_promoted<kN, false>(of_rows, reinterpret_cast<Part<kN>&>(part));
    }
  }
  __device__ __forceinline__ static void define(float& v) { asm volatile("" : "=f"(v)); }
  __device__ __forceinline__ static void define(int32_t& v) { asm volatile("" : "=r"(v)); }
  /// Of the first `rows` rows; the others' sums are anything.
  __device__ __forceinline__ void run(Sums& sums, int rows) {
    // Registers are defined once for all heights, or every height would have its own. Sums that the
    // first product sets instead of adding to zeros spilled 620 bytes.
    Products<Traits::kTileRows> part;
#pragma unroll
    for (int i = 0; i < Traits::kTileRows / 2; ++i) {
      sums[i] = 0.0f;
      if constexpr (Operand::kBytes || Operand::kScalesSums) define(part[i]);
    }
    clear_held();
    if (Operand::kTables && p.deep) {  // rare: at full height, which halves the code
      if constexpr (Operand::kTables) accumulate_promoted<Traits::kTileRows, true>(sums, part);
    } else {
      multiply_rows<Traits::kTileRows>(sums, part, rows);
    }
    fetch_held(sums);
  }
};

}  // namespace switchyard::cuda::sm90
