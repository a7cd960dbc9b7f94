// The kernels compiled for avx2. Everything but the table has internal linkage.
#include "cpu/isa_avx2.h"
#include "cpu/kernel_table.h"

namespace switchyard::cpu {

const Kernels& kernels_avx2() { return kTable<Avx2>; }

}  // namespace switchyard::cpu
