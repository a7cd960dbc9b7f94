#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace switchyard::cli {
namespace {

bool is_terminal(int file_descriptor) {
  const char* term = std::getenv("TERM");
  return isatty(file_descriptor) == 1 && term != nullptr && std::string_view(term) != "dumb";
}

bool colors_wanted() {
  const char* no_color = std::getenv("NO_COLOR");
  return is_terminal(STDOUT_FILENO) && (no_color == nullptr || *no_color == '\0');
}

}  // namespace

Progress::Progress(std::string label)
    : label_(std::move(label)), enabled_(is_terminal(STDERR_FILENO)) {}

Progress::~Progress() { erase(); }

void Progress::update(int64_t done, int64_t total) {
  constexpr int64_t kBarWidth = 30;
  const auto now = std::chrono::steady_clock::now();
  if (!enabled_ || total <= 0 || (now < next_draw_ && done < total)) return;
  next_draw_ = now + std::chrono::milliseconds(100);
  const int64_t filled = kBarWidth * done / total;
  const std::string line = fmt::format("{} [{:#<{}}{:.<{}}] {}/{}", label_, "", filled, "",
                                       kBarWidth - filled, done, total);
  erase();
  fmt::print(stderr, "{}", line);
  std::fflush(stderr);
  drawn_width_ = line.size();
}

// Blanks instead of an escape sequence: works on every terminal. fprintf, because fmt may throw.
void Progress::erase() noexcept {
  if (drawn_width_ == 0) return;
  std::fprintf(stderr, "\r%*s\r", static_cast<int>(drawn_width_), "");
  std::fflush(stderr);
  drawn_width_ = 0;
}

std::string colored(Color color, const std::string& text) {
  static const bool enabled = colors_wanted();
  if (!enabled) return text;
  const int code = color == Color::kGreen ? 32 : color == Color::kRed ? 31 : 33;
  return fmt::format("\x1b[{}m{}\x1b[0m", code, text);
}

}  // namespace switchyard::cli
