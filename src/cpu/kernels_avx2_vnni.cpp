// The kernels compiled for avx2_vnni. Everything but the table has internal linkage.
#include "cpu/isa_avx2_vnni.h"
#include "cpu/kernel_table.h"

namespace switchyard::cpu {

const Kernels& kernels_avx2_vnni() { return kTable<Avx2Vnni>; }

}  // namespace switchyard::cpu
