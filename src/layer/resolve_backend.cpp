#include "layer/resolve_backend.h"

#include <fmt/format.h>

#include "layer/check.h"
#include "layer/validate.h"

namespace switchyard {
namespace {

/// The backend of a kind, or null with the reason in `why`.
const Backend* find_backend(BackendKind kind, int device, std::string& why) {
  if (kind == BackendKind::kCuda && cuda_backend() == nullptr) {
    why = "this build has no CUDA";
    return nullptr;
  }
  const Backend& found = backend(kind);
  why = found.why_unavailable(device);
  return why.empty() ? &found : nullptr;
}

const Backend* find_backend(BackendKind kind, int device, std::span<const LayerSpec> specs,
                            std::string& why) {
  const Backend* found = find_backend(kind, device, why);
  for (size_t i = 0; found != nullptr && why.empty() && i < specs.size(); ++i)
    why = found->why_unsupported(specs[i]);
  return why.empty() ? found : nullptr;
}

}  // namespace

ResolvedBackend resolve_backend(std::span<const LayerSpec> specs, const LayerOptions& options) {
  ResolvedBackend result;
  std::string why;
  if (options.backend != BackendKind::kAuto) {
    result.backend = find_backend(options.backend, options.device, specs, why);
    if (result.backend != nullptr) return result;
    throw Error(ErrorCode::kUnsupported,
                fmt::format("backend is {}; {}", to_string(options.backend), why));
  }
  for (BackendKind kind : {BackendKind::kCuda, BackendKind::kCpu}) {
    result.backend = find_backend(kind, options.device, specs, why);
    if (result.backend != nullptr) return result;
    result.rejected.push_back(fmt::format("{}: {}", to_string(kind), why));
  }
  throw Error(ErrorCode::kUnsupported,
              fmt::format("backend is auto; no backend runs this layer ({})",
                          fmt::join(result.rejected, "; ")));
}

const Backend& backend_of(const ops::Execution& execution) {
  require(execution.backend >= BackendKind::kCpu && execution.backend <= BackendKind::kReference,
          "execution.backend is {}; an op needs cpu, cuda or reference",
          to_string(execution.backend));
  std::string why;
  if (const Backend* found = find_backend(execution.backend, execution.device, why)) return *found;
  throw Error(ErrorCode::kUnsupported,
              fmt::format("backend is {}; {}", to_string(execution.backend), why));
}

std::string why_unsupported(const LayerSpec& spec, BackendKind kind, int device) {
  validate_spec(spec);
  LayerOptions options;
  options.backend = kind;
  options.device = device;
  try {
    resolve_backend({&spec, 1}, options);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kUnsupported) return error.what();
    throw;
  }
  return {};
}

}  // namespace switchyard
