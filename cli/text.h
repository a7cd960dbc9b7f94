#pragma once
// Numbers and enumerations as people read them.

#include <cstdint>
#include <string>
#include <vector>

#include "switchyard/layer_spec.h"

namespace switchyard::cli {

std::string bytes_text(double bytes);                            ///< "1.58 GiB", "512 B"
std::string time_text(double us);                                ///< "12.3 us", "4.56 ms", "1.2 s"
std::string ranges_text(const std::vector<int64_t>& ascending);  ///< "3-60,62"
/// At most `limit` items, then how many more.
std::string list_text(const std::vector<std::string>& items, size_t limit);

std::string routing_text(const LayerSpec& spec);  ///< "top 8 of 256, sigmoid, 4 of 8 groups, ..."
std::string activation_text(const ActivationSpec& spec);
std::string shared_text(const LayerSpec& spec);       ///< "none", "2048, sigmoid-gated", ...
std::string scale_block_text(const LayerSpec& spec);  ///< "per 1x32", "per channel", ...

}  // namespace switchyard::cli
