#pragma once
// What may be drawn on a terminal: a progress bar on stderr and colours on stdout. Neither appears
// in a pipe; NO_COLOR (https://no-color.org) turns colours off.

#include <chrono>
#include <cstdint>
#include <string>

namespace switchyard::cli {

/// A bar on stderr, redrawn at most ten times a second and erased at the end. Silent unless stderr
/// is a terminal.
class Progress {
 public:
  explicit Progress(std::string label);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void update(int64_t done, int64_t total);

 private:
  void erase() noexcept;

  std::string label_;
  bool enabled_ = false;
  size_t drawn_width_ = 0;
  std::chrono::steady_clock::time_point next_draw_{};
};

enum class Color { kGreen, kRed, kYellow };
/// `text`, coloured when stdout takes colours.
std::string colored(Color color, const std::string& text);

}  // namespace switchyard::cli
