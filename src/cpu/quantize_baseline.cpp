#include "cpu/quantize-inl.h"

namespace switchyard::cpu {

constexpr QuantizeKernels kQuantizeBaseline = make_kernels();

}  // namespace switchyard::cpu
