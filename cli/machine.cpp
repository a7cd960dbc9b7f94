#include "cli/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "build_version.h"

namespace switchyard::cli {
namespace {

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

int num_usable_cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

int64_t l3_cache_bytes() {
  std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
  int64_t size = 0;
  char unit = '\0';
  file >> size >> unit;
  return unit == 'K' ? size << 10 : unit == 'M' ? size << 20 : size;
}

int64_t total_memory_bytes() {
  int64_t bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  std::ifstream group("/sys/fs/cgroup/memory.max");
  int64_t group_bytes = 0;
  if (group >> group_bytes) bytes = std::min(bytes, group_bytes);  // "max" does not parse
  return bytes;
}

int64_t available_memory_bytes() {
  std::ifstream file("/proc/meminfo");
  int64_t kib = 0;
  for (std::string key, rest; file >> key >> kib && std::getline(file, rest);) {
    if (key == "MemAvailable:") return kib << 10;
  }
  return total_memory_bytes();
}

}  // namespace

std::string version() { return SWITCHYARD_VERSION; }
std::string commit() { return SWITCHYARD_COMMIT; }

Machine this_machine() {
  return {.cpu = cpu_name(),
          .num_cores = num_usable_cores(),
          .l3_bytes = l3_cache_bytes(),
          .memory_bytes = total_memory_bytes(),
          .available_memory_bytes = std::min(available_memory_bytes(), total_memory_bytes())};
}

}  // namespace switchyard::cli
