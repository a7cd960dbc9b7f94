#include "command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>

namespace switchyard::test {
namespace {

constexpr unsigned kSecondsUntilKilled = 300;

std::string contents(std::FILE* file) {
  std::rewind(file);
  std::string text;
  char buffer[4096];
  for (size_t n = 0; (n = std::fread(buffer, 1, sizeof buffer, file)) > 0;) text.append(buffer, n);
  return text;
}

[[noreturn]] void become_cli(const std::vector<std::string>& arguments, const CommandLimits& limits,
                             std::FILE* out, std::FILE* err) {
  dup2(fileno(out), STDOUT_FILENO);
  dup2(fileno(err), STDERR_FILENO);
  if (limits.file_bytes >= 0) {
    const auto bytes = static_cast<rlim_t>(limits.file_bytes);
    const rlimit limit{bytes, bytes};
    setrlimit(RLIMIT_FSIZE, &limit);
    std::signal(SIGXFSZ, SIG_IGN);  // a full disk is an error of write, not a signal
  }
  alarm(kSecondsUntilKilled);
  std::vector<char*> argv{const_cast<char*>(SWITCHYARD_CLI)};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(SWITCHYARD_CLI, argv.data());
  _exit(127);
}

}  // namespace

CommandResult run_cli(const std::vector<std::string>& arguments, const CommandLimits& limits) {
  std::FILE* out = std::tmpfile();
  std::FILE* err = std::tmpfile();
  CommandResult result;
  const pid_t child = fork();
  if (child == 0) become_cli(arguments, limits, out, err);
  int status = 0;
  waitpid(child, &status, 0);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = contents(out);
  result.err = contents(err);
  std::fclose(out);
  std::fclose(err);
  return result;
}

void expect_refused(const std::vector<std::string>& arguments, int status,
                    const std::vector<std::string>& parts) {
  SCOPED_TRACE("switchyard " + ::testing::PrintToString(arguments));
  const CommandResult result = run_cli(arguments);
  EXPECT_EQ(result.status, status);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, ::testing::StartsWith("switchyard: "));
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  for (const std::string& part : parts) EXPECT_THAT(result.err, ::testing::HasSubstr(part));
}

}  // namespace switchyard::test
