#include "cpu/numa.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace switchyard::cpu {
namespace {

/// Nodes of a list such as "0-3"; 1 where there are gaps or the file is missing.
int count_nodes() {
  std::ifstream file("/sys/devices/system/node/online");
  int first = 0, last = 0;
  char dash = 0;
  std::string rest;
  if (!(file >> first >> dash >> last) || first != 0 || dash != '-' || file >> rest) return 1;
  return std::clamp(last + 1, 1, kMaxNodes);
}

int node_of_this_thread() {
  unsigned cpu = 0, node = 0;
  if (getcpu(&cpu, &node) != 0) return 0;
  return static_cast<int>(node % kMaxNodes);
}

/// By the system call itself: libnuma would be a dependency for this one line.
void prefer_node(void* data, int64_t bytes, int node) {
  constexpr int kPreferred = 1;  // MPOL_PREFERRED: other nodes when this one is full
  const unsigned long mask = 1ul << node;
  syscall(SYS_mbind, data, static_cast<unsigned long>(bytes), kPreferred, &mask, sizeof(mask) * 8ul,
          0ul);
}

}  // namespace

const NumaTopology& system_topology() {
  static const NumaTopology topology{
      .num_nodes = count_nodes(), .current_node = node_of_this_thread, .place = prefer_node};
  return topology;
}

}  // namespace switchyard::cpu
