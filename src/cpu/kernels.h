#pragma once
// The vector kernels of one ISA level as a table. Defines no functions: it is included by code
// compiled for different instruction sets.

#include <cstddef>
#include <cstdint>

#include "core/weight_layout.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard::cpu {

/// What packed int8 weights exceed the signed values by.
inline constexpr int32_t kInt8Offset = -128;

/// Columns are worked off in slabs, so that a decoded slab and its rows stay in the caches.
inline constexpr int kSlabBlocks = 32;

/// Panel values that are exact in bf16 and so can meet bf16 rows.
constexpr bool takes_bf16_rows(PanelValues values) {
  return values != PanelValues::kF32 && values != PanelValues::kF16;
}
/// Those of them that become pairs of bf16 in registers, without a pass through f32.
constexpr bool multiplies_pairs(PanelValues values) {
  return values == PanelValues::kBf16 || values == PanelValues::kFp4 ||
         values == PanelValues::kInt4;
}

/// How a row of activations lies in memory: f32 [padded columns]; or bf16 [padded columns], the two
/// of each pair swapped; or int8 [padded columns] followed by an f32 scale per 32 and an int32
/// correction per 32 (two when scales are per 16).
enum class RowValues { kF32, kBf16, kInt8 };
struct RowLayout {
  RowValues values = RowValues::kF32;
  bool half_blocks = false;  ///< corrections per 16 columns: weight scales are per 16
  int32_t num_blocks = 0;
  /// correction = offset * sum of the block's integers; where the kernels sum in words, of those at
  /// positions 0 and 1 of each four in its low word and of the rest in its high one.
  int32_t offset = 0;
  int64_t scales_offset = 0;
  int64_t corrections_offset = 0;
  int64_t words_offset = 0;  ///< of the integers as words (widen_block); 0: there are none
  int64_t row_bytes = 0;

  bool integer() const { return values == RowValues::kInt8; }
};

/// Scratch of one thread for multiply.
struct alignas(64) MultiplyScratch {
  float scales[kSlabBlocks * 2 * kPanelRows];
  int32_t zeros[kSlabBlocks * kPanelRows];
  uint8_t decoded[kSlabBlocks * kBlockCols * kPanelRows * sizeof(float)];
};

/// out[r][0..32) = one panel times row r, for all rows of a set.
struct MultiplyJob {
  const PanelLayout* layout = nullptr;
  const RowLayout* row_layout = nullptr;
  const uint8_t* panel = nullptr;
  const uint8_t* next = nullptr;  ///< the panel this thread will read afterwards, to be prefetched
  float global_scale = 1.0f;
  const uint8_t* rows = nullptr;
  const int32_t* row_index = nullptr;  ///< null: rows 0, 1, 2, ...
  int32_t row_divisor = 1;             ///< row r of the set is row row_index[r] / row_divisor
  int32_t num_rows = 0;
  float* out = nullptr;  ///< [num_rows][32]
  MultiplyScratch* scratch = nullptr;
};

/// Turns 32 gate and 32 up products of each row into 32 columns of the intermediate.
struct ActivateJob {
  const ActivationSpec* activation = nullptr;
  const float* gate = nullptr;            ///< [num_rows][32]; null when not gated
  const float* up = nullptr;              ///< [num_rows][32]
  const float* gate_bias = nullptr;       ///< [32] or null
  const float* up_bias = nullptr;         ///< [32] or null
  const float* row_weights = nullptr;     ///< multiply the products before the bias; null: 1
  const int32_t* weight_index = nullptr;  ///< of each row in row_weights; null: the row itself
  int32_t num_rows = 0;
  int32_t num_cols = kPanelRows;  ///< real ones; the rest become 0
  float* out = nullptr;           ///< [num_rows][32]
};

/// Columns [0, 32) of the weighted sum over a token's slots.
struct CombineJob {
  const float* products = nullptr;  ///< [rows][32]
  const int32_t* pair_to_row = nullptr;
  const float* weights = nullptr;  ///< by pair, or null: 1
  int64_t top_k = 0;
  int64_t num_tokens = 0;
  int32_t num_cols = kPanelRows;
  const uint8_t* addend = nullptr;  ///< f32, or null
  int64_t addend_stride = 0;        ///< bytes
  uint8_t* output = nullptr;
  int64_t output_stride = 0;  ///< bytes
  DataType output_type = DataType::kF32;
};

struct Kernels {
  const char* name = nullptr;
  int tile_rows_int = 0;  ///< rows of the register tile, for the plan
  int tile_rows_float = 0;
  bool bf16_rows = false;  ///< multiply takes them; the bits are those of f32 rows
  bool word_rows = false;  ///< multiply reads the words of integer rows that meet int8 weights
  void (*multiply)(const MultiplyJob& job) = nullptr;
  void (*activate)(const ActivateJob& job) = nullptr;
  void (*combine)(const CombineJob& job) = nullptr;
  /// Any float type to f32; `count` elements.
  void (*load_row)(const void* input, DataType type, int64_t count, float* out) = nullptr;
  void (*store_row)(const float* input, int64_t count, DataType type, void* out) = nullptr;
  /// f32 [num_blocks * 32] to the blocks [first_block, first_block + num_blocks) of an integer row.
  void (*quantize_blocks)(const float* input, const RowLayout& layout, int32_t first_block,
                          int32_t num_blocks, uint8_t* row) = nullptr;
  /// For measuring the machine: each returns something that depends on all it did.
  uint64_t (*stream_read)(const uint8_t* data, int64_t bytes) = nullptr;
  void (*stream_copy)(const uint8_t* data, int64_t bytes, uint8_t* out) = nullptr;
  float (*f32_fma)(int64_t iterations) = nullptr;     ///< kPeakChains * 2 * 16 FLOP each
  int32_t (*int8_dot)(int64_t iterations) = nullptr;  ///< kPeakChains * 2 * 64 ops each
  float (*bf16_dot)(int64_t iterations) =
      nullptr;  ///< kPeakChains * 2 * 32 each; null: no such code
};
inline constexpr int kPeakChains = 12;

/// Whether this CPU reads ahead of loads that advance by equal distances as fast as memory
/// delivers, so that software prefetches only disturb it.
bool hardware_reads_ahead();

/// Whether VDPBF16PS does its two products faster than two FMAs.
bool pairs_outrun_fmas();

const Kernels& kernels_avx2();
const Kernels& kernels_avx2_vnni();
const Kernels& kernels_avx512();
const Kernels& kernels_avx512_vnni();
const Kernels& kernels_avx512_bf16();
const Kernels& kernels_avx512_amx();
/// Whether VDPBF16PS does on this machine what f32 rows do: fma of the upper halves, then of the
/// lower ones, subnormals flushed. Needs the instruction.
bool bf16_dots_are_two_fmas();
/// Whether AMX tiles multiply as they should. Needs the instructions, and leave to use them.
bool amx_tiles_are_exact();

}  // namespace switchyard::cpu
