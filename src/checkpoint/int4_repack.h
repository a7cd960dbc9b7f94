#pragma once
// INT4 packings of the wild -> one nibble order: element k of row n in byte k / 2, the lower k in
// the lower nibble; one zero point per byte.

#include <cstdint>

namespace switchyard {

/// [rows, cols] elements of 1, 2 or 4 bytes -> [cols, rows].
void transpose_elements(const void* in, int64_t element_bytes, int64_t rows, int64_t cols,
                        void* out);

/// Position of column `n` among the eight nibbles of an AWQ word (0 2 4 6 1 3 5 7 stored in order).
constexpr int awq_nibble(int64_t n) {
  const int within = static_cast<int>(n % 8);
  return within % 2 == 0 ? within / 2 : 4 + within / 2;
}

/// AWQ qweight [cols, rows / 8] -> [rows, cols / 2] bytes.
void repack_awq(const uint32_t* in, int64_t rows, int64_t cols, uint8_t* out);

enum class ZeroPointPacking {
  kAlongRows,     ///< [rows / 8, groups]: compressed-tensors
  kGptq,          ///< [groups, rows / 8]
  kGptqMinusOne,  ///< the same, holding zero point - 1
  kAwq,           ///< [groups, rows / 8] in AWQ's order
};
/// -> [rows, groups] bytes.
void unpack_zero_points(const uint32_t* in, ZeroPointPacking packing, int64_t rows, int64_t groups,
                        uint8_t* out);

}  // namespace switchyard
