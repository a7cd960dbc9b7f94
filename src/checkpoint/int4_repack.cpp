// INT4 packings of the wild -> one nibble order.

#include "checkpoint/int4_repack.h"

#include <algorithm>

#include "core/math.h"

namespace switchyard {

namespace {

/// In tiles of one cache line each way, because `out` is written across its rows.
template <class T>
void transpose(const T* in, int64_t rows, int64_t cols, T* out) {
  constexpr int64_t kTile = 16;
  for (int64_t row = 0; row < rows; row += kTile) {
    for (int64_t col = 0; col < cols; col += kTile) {
      for (int64_t c = col; c < std::min(col + kTile, cols); ++c) {
        for (int64_t r = row; r < std::min(row + kTile, rows); ++r) {
          out[c * rows + r] = in[r * cols + c];
        }
      }
    }
  }
}

uint8_t nibble(uint32_t word, int position) {
  return static_cast<uint8_t>(word >> (4 * position) & 15u);
}

}  // namespace

void transpose_elements(const void* in, int64_t element_bytes, int64_t rows, int64_t cols,
                        void* out) {
  switch (element_bytes) {
    case 1:
      return transpose(static_cast<const uint8_t*>(in), rows, cols, static_cast<uint8_t*>(out));
    case 2:
      return transpose(static_cast<const uint16_t*>(in), rows, cols, static_cast<uint16_t*>(out));
    default:
      return transpose(static_cast<const uint32_t*>(in), rows, cols, static_cast<uint32_t*>(out));
  }
}

void repack_awq(const uint32_t* in, int64_t rows, int64_t cols, uint8_t* out) {
  const int64_t words = rows / 8;
  for (int64_t word = 0; word < words; ++word) {
    for (int64_t pair = 0; pair < cols / 2; ++pair) {
      const uint32_t low = in[2 * pair * words + word];
      const uint32_t high = in[(2 * pair + 1) * words + word];
      for (int64_t n = 0; n < 8; ++n) {
        const int at = awq_nibble(n);
        out[(8 * word + n) * (cols / 2) + pair] =
            static_cast<uint8_t>(nibble(low, at) | nibble(high, at) << 4);
      }
    }
  }
}

void unpack_zero_points(const uint32_t* in, ZeroPointPacking packing, int64_t rows, int64_t groups,
                        uint8_t* out) {
  const int64_t words = ceil_div(rows, int64_t{8});
  for (int64_t row = 0; row < rows; ++row) {
    const int at = packing == ZeroPointPacking::kAwq ? awq_nibble(row) : static_cast<int>(row % 8);
    for (int64_t group = 0; group < groups; ++group) {
      const bool along_rows = packing == ZeroPointPacking::kAlongRows;
      const uint32_t word = in[along_rows ? row / 8 * groups + group : group * words + row / 8];
      // A zero point of 0 was stored as -1, so the sum wraps around in four bits.
      const int add = packing == ZeroPointPacking::kGptqMinusOne ? 1 : 0;
      out[row * groups + group] = static_cast<uint8_t>((nibble(word, at) + add) & 15);
    }
  }
}

}  // namespace switchyard
