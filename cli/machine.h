#pragma once
// What the reports say about this program and the machine it runs on.

#include <cstdint>
#include <string>

namespace switchyard::cli {

std::string version();  ///< "0.1.0"
std::string commit();   ///< `git describe` of the sources; empty outside a git work tree

struct Machine {
  std::string cpu;           ///< model name of the first core
  int num_cores = 0;         ///< that this process may use
  int64_t l3_bytes = 0;      ///< last-level cache that the first core sees; 0 = unknown
  int64_t memory_bytes = 0;  ///< of the machine, or of the control group when that is less
  int64_t available_memory_bytes = 0;  ///< not in use now
};
Machine this_machine();

}  // namespace switchyard::cli
