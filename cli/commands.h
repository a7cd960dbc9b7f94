#pragma once
// The subcommands. add_* declares the options; `run` is called once the command line is complete
// and returns the exit status.

#include <CLI/CLI.hpp>
#include <functional>

namespace switchyard::cli {

struct Command {
  CLI::App* app = nullptr;
  std::function<int()> run;
};

Command add_inspect(CLI::App& app);
Command add_run(CLI::App& app);
Command add_verify(CLI::App& app);
Command add_bench(CLI::App& app);
Command add_models(CLI::App& app);

/// Exit statuses; the numbers are part of the interface; main.cpp has those of errors.
inline constexpr int kOk = 0;
inline constexpr int kFailedCheck = 1;
inline constexpr int kUsage = 2;

}  // namespace switchyard::cli
