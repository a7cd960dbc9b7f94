#pragma once
// Runs the switchyard binary as a user does.

#include <string>
#include <vector>

namespace switchyard::test {

struct CommandResult {
  int status = -1;  ///< exit status; 128 + signal when one ended it
  std::string out;
  std::string err;
};

/// Limits that the command runs under.
struct CommandLimits {
  long file_bytes = -1;  ///< largest file it may write; -1 = any
};

CommandResult run_cli(const std::vector<std::string>& arguments, const CommandLimits& limits = {});

/// Expects `status`, nothing on stdout, and one line "switchyard: ..." on stderr that holds every
/// one of `parts`.
void expect_refused(const std::vector<std::string>& arguments, int status,
                    const std::vector<std::string>& parts);

}  // namespace switchyard::test
