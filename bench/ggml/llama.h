#pragma once
// llama.cpp's ggml: its CPU backend through the public API, as llama.cpp builds the block of routed
// experts. MXFP4 lies in the repacked buffer where there is one; Q8_0 and BF16 have none on x86.

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>

#include <cstring>
#include <stdexcept>
#include <string>

namespace peer {

inline std::string name() { return std::string("ggml ") + ggml_version(); }

inline ggml_backend_t make_backend(int threads) {
  ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  ggml_backend_load_all();
  ggml_backend_t backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
  if (backend == nullptr) throw std::runtime_error("ggml has no CPU backend here");
  ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
  if (const auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
          ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"))) {
    set_threads(backend, threads);
  }
  return backend;
}

inline ggml_type weight_type(const std::string& format) {
  return format == "mxfp4" ? GGML_TYPE_MXFP4 : format == "int8" ? GGML_TYPE_Q8_0 : GGML_TYPE_BF16;
}

inline ggml_backend_buffer_type_t weight_buffer(ggml_backend_t backend, ggml_type type) {
  ggml_backend_dev_t device = ggml_backend_get_device(backend);
  const auto extra =
      reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
          ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
  ggml_backend_buffer_type_t* types =
      type != GGML_TYPE_MXFP4 || extra == nullptr ? nullptr : extra(device);
  for (; types != nullptr && *types != nullptr; ++types) {
    if (std::strstr(ggml_backend_buft_name(*types), "REPACK") != nullptr) return *types;
  }
  return ggml_backend_get_default_buffer_type(backend);
}

/// Three mul_mat_id, swiglu, weighting, the sum over slots.
inline ggml_tensor* experts(ggml_context* context, ggml_tensor* gate, ggml_tensor* up,
                            ggml_tensor* down, ggml_tensor* x, ggml_tensor* ids,
                            ggml_tensor* slots) {
  ggml_tensor* h = ggml_swiglu_split(context, ggml_mul_mat_id(context, gate, x, ids),
                                     ggml_mul_mat_id(context, up, x, ids));
  ggml_tensor* each = ggml_mul(context, ggml_mul_mat_id(context, down, h, ids), slots);
  ggml_tensor* sum = nullptr;
  for (int64_t k = 0; k < each->ne[1]; ++k) {
    ggml_tensor* slot = ggml_view_2d(context, each, each->ne[0], each->ne[2], each->nb[2],
                                     static_cast<size_t>(k) * each->nb[1]);
    sum = sum == nullptr ? slot : ggml_add(context, sum, slot);
  }
  return sum;
}

}  // namespace peer
