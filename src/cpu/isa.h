#pragma once
// Which instruction sets this machine has, and the kernels to use.

#include <string>

#include "cpu/kernels.h"

namespace switchyard::cpu {

/// Why no kernel can run here, or an empty string.
std::string why_no_kernels();
/// The kernels of level `name`; empty: SWITCHYARD_CPU_ISA if set, else the best this machine has.
/// Throws Error when there is no such level, or this machine lacks it.
const Kernels& select_kernels(const std::string& name);
/// "AVX-512 VNNI", ... for people.
std::string isa_label(const Kernels& kernels);

}  // namespace switchyard::cpu
