// The kernels compiled for avx512. Everything but the table has internal linkage.
#include "cpu/isa_avx512.h"
#include "cpu/kernel_table.h"

namespace switchyard::cpu {

const Kernels& kernels_avx512() { return kTable<Avx512>; }

}  // namespace switchyard::cpu
