#pragma once
// AVX-512 BF16 with AMX int8 tiles: 16 rows x 16 outputs x 32 columns per instruction. Run and
// tested on one Emerald Rapids; emulated in tests elsewhere.

#include "core/weight_layout.h"
#include "cpu/isa_avx512_bf16.h"

namespace switchyard::cpu {
namespace {

/// Tile registers: 0 and 1 sums of outputs 0..15 and 16..31, 2 activations, 3 and 4 weights.
struct AmxTiles {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, kBlockCols, 64, 64};
    uint8_t rows[16] = {16, 16, 16, kBlockCols / 4, kBlockCols / 4};
  };
  static_assert(sizeof(Config) == 64);

  /// For `rows` rows of activations, at most 16.
  SWITCHYARD_INLINE void configure(int rows) {
    Config config;
    config.rows[0] = config.rows[1] = config.rows[2] = static_cast<uint8_t>(rows);
    asm volatile("" : : "m"(config));  // g++ 12 thinks that 8 bytes are read
    _tile_loadconfig(&config);
  }
  SWITCHYARD_INLINE void release() { _tile_release(); }
  /// sums[half][row][output] of one block of weights in the layout of kInt8, but signed, exactly.
  SWITCHYARD_INLINE void multiply(const uint8_t* block, const int8_t* rows, int64_t row_bytes,
                                  int32_t (*sums)[16][16]) {
    constexpr int kUnitBytes = kPanelRows * 4;
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(2, rows, row_bytes);
    _tile_loadd(3, block, kUnitBytes);
    _tile_dpbssd(0, 2, 3);
    _tile_loadd(4, block + 64, kUnitBytes);
    _tile_dpbssd(1, 2, 4);
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
  }
};

struct Avx512Amx : Avx512Bf16 {
  static constexpr const char* kName = "avx512_amx";
  static constexpr bool kHasTiles = true;
  using Tiles = AmxTiles;
};

}  // namespace
}  // namespace switchyard::cpu
