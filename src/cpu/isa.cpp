#include "cpu/isa.h"

#include <cpuid.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

#include "switchyard/error.h"

namespace switchyard::cpu {
namespace {

struct Level {
  const char* name;
  const char* label;
  bool available;
  const Kernels& (*kernels)();
  bool by_name_only = false;
};

/// clang 14 does not know "f16c" as a name for __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

/// AVX-VNNI; compilers gave it a name for __builtin_cpu_supports only later.
bool has_avx_vnni() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 1u << 4) != 0;
}

/// AMX int8 tiles that this process may use: Linux gives their registers on request only.
bool has_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kTileAndInt8 = 3u << 24;
  return (edx & kTileAndInt8) == kTileAndInt8 &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 && amx_tiles_are_exact();
}

/// Ascending. AMX runs, but its sums per 32 columns leave it no gain: on an Emerald Rapids a layer
/// of 1024 tokens takes 141 to 144 ms with it and 101 to 158 with VNNI. The builtin asks CPUID and,
/// for the register state, XGETBV.
const std::array<Level, 6>& levels() {
  static const std::array<Level, 6> all = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi2") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const bool bf16 = vnni && __builtin_cpu_supports("avx512vbmi") &&
                      __builtin_cpu_supports("avx512bf16") && bf16_dots_are_two_fmas();
    return std::array<Level, 6>{
        Level{"avx2", "AVX2", avx2, &kernels_avx2},
        Level{"avx2_vnni", "AVX2 VNNI", avx2 && has_avx_vnni(), &kernels_avx2_vnni},
        Level{"avx512", "AVX-512", avx512, &kernels_avx512},
        Level{"avx512_vnni", "AVX-512 VNNI", vnni, &kernels_avx512_vnni},
        Level{"avx512_bf16", "AVX-512 VNNI BF16", bf16, &kernels_avx512_bf16},
        Level{"avx512_amx", "AVX-512 VNNI BF16 AMX", bf16 && has_amx(), &kernels_avx512_amx, true}};
  }();
  return all;
}

bool is_amd() {
  static const bool amd = [] {
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") != 0;
  }();
  return amd;
}

}  // namespace

/// Measured on Zen 4 only; on an Emerald Rapids software prefetches were worth 25 to 35 %.
bool hardware_reads_ahead() { return is_amd(); }

/// Zen 4 does two FMAs' work in the time of one; an Emerald Rapids in that of four (88 and 172
/// GFLOP/s per core; bf16 layers of 1024 tokens 433 ms with it, 328 without).
bool pairs_outrun_fmas() { return is_amd(); }

std::string why_no_kernels() {
  if (levels()[0].available) return {};
  return "this CPU lacks AVX2, FMA, F16C or BMI2; the cpu backend needs them";
}

const Kernels& select_kernels(const std::string& name) {
  std::string wish = name;
  if (const char* from_environment = std::getenv("SWITCHYARD_CPU_ISA");
      wish.empty() && from_environment != nullptr) {
    wish = from_environment;
  }
  if (const std::string why = why_no_kernels(); !why.empty()) {
    throw Error(ErrorCode::kUnsupported, "backend is cpu; " + why);
  }
  const Level* best = nullptr;
  for (const Level& level : levels()) {
    if (wish == level.name && !level.available) {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("cpu_isa is {}; this CPU does not have it", wish));
    }
    if (level.available && (wish == level.name || (wish.empty() && !level.by_name_only))) {
      best = &level;
    }
  }
  if (best == nullptr) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format(
            "cpu_isa is \"{}\"; expected avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16 or "
            "avx512_amx",
            wish));
  }
  return best->kernels();
}

std::string isa_label(const Kernels& kernels) {
  for (const Level& level : levels()) {
    if (&level.kernels() == &kernels) return level.label;
  }
  return kernels.name;
}

}  // namespace switchyard::cpu
