#include "cpu/quantize-inl.h"

namespace switchyard::cpu {

constexpr QuantizeKernels kQuantizeAvx2 = make_kernels();

}  // namespace switchyard::cpu
