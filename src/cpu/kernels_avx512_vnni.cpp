// The kernels compiled for avx512_vnni. Everything but the table has internal linkage.
#include "cpu/isa_avx512_vnni.h"
#include "cpu/kernel_table.h"

namespace switchyard::cpu {

const Kernels& kernels_avx512_vnni() { return kTable<Avx512Vnni>; }

}  // namespace switchyard::cpu
