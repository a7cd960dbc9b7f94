#pragma once
// The commands' random numbers: a seed gives the same bits on every machine and standard library.

#include <cmath>
#include <cstdint>
#include <numbers>

namespace switchyard::cli {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  /// 64 random bits (SplitMix64).
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  /// In (0, 1): neither its logarithm nor that logarithm's is infinite.
  double uniform() { return (static_cast<double>(bits() >> 12) + 0.5) * 0x1p-52; }
  /// In [0, count).
  int64_t below(int64_t count) {
    return static_cast<int64_t>(bits() % static_cast<uint64_t>(count));
  }
  double normal() {
    return std::sqrt(-2 * std::log(uniform())) * std::cos(2 * std::numbers::pi * uniform());
  }

 private:
  uint64_t state_;
};

}  // namespace switchyard::cli
