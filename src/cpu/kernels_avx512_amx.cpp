// The kernels compiled for avx512_amx. Everything but the table has internal linkage.
#include "cpu/isa_avx512_amx.h"
#include "cpu/kernel_table.h"

namespace switchyard::cpu {

/// The int8 peak stays that of VPDPBUSD, so shares of it may exceed 1 here.
const Kernels& kernels_avx512_amx() {
  static const Kernels kernels = [] {
    Kernels table = kTable<Avx512Amx>;
    table.bf16_dot = kernels_avx512_bf16().bf16_dot;
    table.bf16_rows = kernels_avx512_bf16().bf16_rows;
    return table;
  }();
  return kernels;
}

bool amx_tiles_are_exact() {
  alignas(64) uint8_t block[kPanelRows * kBlockCols];
  alignas(64) int8_t rows[16][kBlockCols];
  alignas(64) int32_t sums[2][16][16];
  uint32_t state = 1;
  const auto random = [&state] { return (state = state * 1664525u + 1013904223u) >> 24; };
  for (uint8_t& byte : block) byte = static_cast<uint8_t>(random());
  for (auto& row : rows) {
    for (int8_t& value : row) value = static_cast<int8_t>(random());
  }
  AmxTiles::configure(16);
  AmxTiles::multiply(block, rows[0], kBlockCols, sums);
  AmxTiles::release();
  for (int output = 0; output < kPanelRows; ++output) {
    for (int row = 0; row < 16; ++row) {
      int32_t sum = 0;
      for (int c = 0; c < kBlockCols; ++c) {
        sum += static_cast<int8_t>(block[(c / 4 * kPanelRows + output) * 4 + c % 4]) * rows[row][c];
      }
      if (sums[output / 16][row][output % 16] != sum) return false;
    }
  }
  return true;
}

}  // namespace switchyard::cpu
