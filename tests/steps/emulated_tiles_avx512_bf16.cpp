// The AMX level with its tile registers emulated, so that what is around them runs anywhere.
#include "cpu/isa_avx512_bf16.h"
#include "cpu/panel_multiply.h"
#include "steps/emulated_tiles.h"

namespace switchyard::cpu {
namespace {

struct EmulatedTiles {
  static void configure(int) {}
  static void release() {}
  static void multiply(const uint8_t* block, const int8_t* rows, int64_t row_bytes,
                       int32_t (*sums)[16][16]) {
    for (int output = 0; output < kPanelRows; ++output) {
      for (int row = 0; row < 16; ++row) {
        int32_t sum = 0;
        for (int c = 0; c < kBlockCols; ++c) {
          const auto weight = static_cast<int8_t>(block[(c / 4 * kPanelRows + output) * 4 + c % 4]);
          sum += weight * rows[row * row_bytes + c];
        }
        sums[output / 16][row][output % 16] = sum;
      }
    }
  }
};

struct Emulated : Avx512Bf16 {
  static constexpr bool kHasTiles = true;
  using Tiles = EmulatedTiles;
};

}  // namespace

void multiply_with_emulated_tiles(const MultiplyJob& job) { multiply<Emulated>(job); }

}  // namespace switchyard::cpu
