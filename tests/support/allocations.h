#pragma once
// Counts operator new. A test that uses this replaces the operators for its whole executable.

#include <cstdint>

namespace switchyard::test {

/// Calls of operator new by any thread so far.
int64_t num_allocations();

}  // namespace switchyard::test
