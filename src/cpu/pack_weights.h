#pragma once
// A stored matrix to panels (core/weight_layout.h).

#include <cstdint>
#include <string>

#include "core/weight_layout.h"
#include "switchyard/weights.h"

namespace switchyard::cpu {

/// How a matrix is packed.
struct Packing {
  PanelLayout layout{};
  /// Stored as its exact f32 decoding, because no panel format holds it: actorder, scale blocks
  /// that are not 16 or a multiple of 32 columns, scaled floats. Correct, but 4 bytes per weight.
  bool decoded = false;
  bool operator==(const Packing&) const = default;
};

/// `integer`: activations will be int8, so that scales per 16 need fp4 values.
Packing choose_packing(const WeightMatrix& matrix, bool integer);

/// Whether the integer kernels can multiply this layout.
constexpr bool has_integer_kernels(const PanelLayout& layout) {
  return layout.values == PanelValues::kFp4 || layout.values == PanelValues::kInt4 ||
         layout.values == PanelValues::kInt8;
}

/// Writes panel `panel` (rows [32 * panel, ...)) to `out`. Throws Error naming `name` when a scale
/// or an FP8 value is not a finite number.
void pack_panel(const WeightMatrix& matrix, const Packing& packing, int64_t panel, uint8_t* out,
                const std::string& name);

}  // namespace switchyard::cpu
