#pragma once
// ik_llama.cpp's fork of ggml, on its fast path: weights in the row-interleaved types that its
// option -rtr repacks them to, gate and up in one operation (-fmoe), and the weighted sum in one.

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>

#include <stdexcept>
#include <string>

namespace peer {

inline std::string name() { return "ik_llama.cpp's ggml"; }

inline ggml_backend_t make_backend(int threads) {
  ggml_backend_t backend = ggml_backend_cpu_init();
  if (backend == nullptr) throw std::runtime_error("ggml has no CPU backend here");
  ggml_backend_cpu_set_n_threads(backend, threads);
  return backend;
}

/// BF16_R16 has kernels for AVX-512 BF16 only.
inline ggml_type weight_type(const std::string& format) {
  if (format == "mxfp4") return GGML_TYPE_MXFP4_R8;
  if (format == "int8") return GGML_TYPE_Q8_0_R8;
  return __builtin_cpu_supports("avx512bf16") ? GGML_TYPE_BF16_R16 : GGML_TYPE_BF16;
}

inline ggml_backend_buffer_type_t weight_buffer(ggml_backend_t backend, ggml_type) {
  return ggml_backend_get_default_buffer_type(backend);
}

inline ggml_tensor* experts(ggml_context* context, ggml_tensor* gate, ggml_tensor* up,
                            ggml_tensor* down, ggml_tensor* x, ggml_tensor* ids,
                            ggml_tensor* slots) {
  ggml_tensor* h = ggml_moe_up_gate(context, up, gate, x, ids, GGML_UNARY_OP_SILU);
  return ggml_mul_multi_add(context, ggml_mul_mat_id(context, down, h, ids), slots);
}

}  // namespace peer
