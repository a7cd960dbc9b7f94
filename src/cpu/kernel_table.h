#pragma once
// The table of one ISA level, from the templates.
// Included only by kernels_*.cpp; internal linkage.

#include "cpu/panel_multiply.h"
#include "cpu/row_kernels.h"

namespace switchyard::cpu {
namespace {

template <class Isa>
constexpr Kernels kTable{
    .name = Isa::kName,
    .tile_rows_int = Isa::kTileRowsInt,
    .tile_rows_float = Isa::kTileRowsFloat,
    .bf16_rows = Isa::kPairProducts,
    .word_rows = Isa::kWordCorrections,
    .multiply = &multiply<Isa>,
    .activate = &activate<Isa>,
    .combine = &combine<Isa>,
    .load_row = &load_row<Isa>,
    .store_row = &store_row<Isa>,
    .quantize_blocks = &quantize_blocks<Isa>,
    .stream_read = &stream_read<Isa>,
    .stream_copy = &stream_copy<Isa>,
    .f32_fma = &f32_fma<Isa>,
    .int8_dot = &int8_dot<Isa>,
};

}  // namespace
}  // namespace switchyard::cpu
