#pragma once
// Order statistics of samples.

#include <algorithm>
#include <cmath>
#include <vector>

namespace switchyard::cli {

/// Linear interpolation between the samples around `fraction` of the way from least to greatest.
inline double quantile(std::vector<double> samples, double fraction) {
  if (samples.empty()) return 0;
  std::sort(samples.begin(), samples.end());
  const double position = fraction * static_cast<double>(samples.size() - 1);
  const auto below = static_cast<size_t>(std::floor(position));
  const size_t above = std::min(below + 1, samples.size() - 1);
  return samples[below] +
         (position - static_cast<double>(below)) * (samples[above] - samples[below]);
}

inline double median(std::vector<double> samples) { return quantile(std::move(samples), 0.5); }

}  // namespace switchyard::cli
