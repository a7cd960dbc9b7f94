#pragma once
// Which backend a layer runs on, and why the others do not.

#include <span>
#include <string>
#include <vector>

#include "backend.h"

namespace switchyard {

struct ResolvedBackend {
  const Backend* backend = nullptr;
  std::vector<std::string> rejected{};  ///< "cuda: no device", in order of preference
};

/// The backend that options name, or for kAuto the first of cuda and cpu that runs every spec.
/// Throws Error{kUnsupported} with the reasons when there is none.
ResolvedBackend resolve_backend(std::span<const LayerSpec> specs, const LayerOptions& options);

/// The backend of an op. Throws when it is kAuto or cannot run here.
const Backend& backend_of(const ops::Execution& execution);

}  // namespace switchyard
