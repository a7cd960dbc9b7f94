// The switchyard command: parses, runs one subcommand, turns every failure into one line on stderr
// and a documented exit status.

#include <fmt/format.h>

#include <cstdio>
#include <new>
#include <vector>

#include "cli/commands.h"
#include "cli/machine.h"
#include "switchyard/error.h"

namespace switchyard::cli {
namespace {

constexpr const char* kFooter = R"(Exit status:
  0  success
  1  a check failed: verify found a mismatch, inspect found missing or unknown tensors
  2  wrong usage, an invalid argument, or an invalid file
  3  a valid request that this build or machine cannot serve
  4  no usable device
  5  out of memory
  6  a peer rank failed
  7  an error inside switchyard

Examples:
  switchyard inspect ~/models/Qwen3-30B-A3B
  switchyard run ~/models/Qwen3-30B-A3B --layer 3 --input in.safetensors --output out.safetensors
  switchyard verify ~/models/Qwen3-30B-A3B --layer 3
  switchyard bench --model gpt-oss-20b --tokens 1,16,64
`switchyard COMMAND --help` has more of each.
)";

int exit_status(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kInvalidFile: return kUsage;
    case ErrorCode::kUnsupported: return 3;
    case ErrorCode::kDevice: return 4;
    case ErrorCode::kOutOfMemory: return 5;
    case ErrorCode::kCommunication: return 6;
    case ErrorCode::kInternal: break;
  }
  return 7;
}

/// CLI11's texts span lines; ours are one.
std::string one_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

void print_error(const std::string& message) {
  fmt::print(stderr, "switchyard: {}\n", one_line(message));
}

int report_parse_error(const CLI::App& app, const std::vector<Command>& commands,
                       const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
  std::string help = "switchyard --help";
  for (const Command& command : commands) {
    if (command.app->parsed()) help = fmt::format("switchyard {} --help", command.app->get_name());
  }
  std::string what = one_line(error.what());
  // CLI11 checks for a missing command before it looks at the word in its place.
  if (app.get_subcommands().empty() && !app.remaining().empty()) {
    const std::string word = app.remaining().front();
    what = fmt::format("'{}' is not {}", word, word[0] == '-' ? "an option" : "a command");
  }
  print_error(fmt::format("{} (see {})", what, help));
  return kUsage;
}

int run_command(const std::vector<Command>& commands) {
  try {
    for (const Command& command : commands) {
      if (command.app->parsed()) return command.run();
    }
    return kUsage;  // unreachable: CLI11 requires a subcommand
  } catch (const Error& error) {
    print_error(error.what());
    return exit_status(error.code());
  } catch (const std::bad_alloc&) {
    print_error("out of memory");
    return exit_status(ErrorCode::kOutOfMemory);
  } catch (const std::exception& error) {
    print_error(fmt::format("internal error: {}", error.what()));
    return exit_status(ErrorCode::kInternal);
  }
}

int main_of(int argc, char** argv) {
  CLI::App app{"Mixture-of-experts layers: look into, run, check and time them.", "switchyard"};
  app.require_subcommand(1);
  app.set_version_flag("--version",
                       commit().empty() ? version() : fmt::format("{} ({})", version(), commit()));
  app.footer(kFooter);
  const std::vector<Command> commands{add_inspect(app), add_run(app), add_verify(app),
                                      add_bench(app), add_models(app)};
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return report_parse_error(app, commands, error);
  }
  return run_command(commands);
}

}  // namespace
}  // namespace switchyard::cli

int main(int argc, char** argv) { return switchyard::cli::main_of(argc, argv); }
