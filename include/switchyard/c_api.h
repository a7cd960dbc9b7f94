#ifndef SWITCHYARD_C_API_H
#define SWITCHYARD_C_API_H
/* The C interface, and the only ABI that is promised: C11, opaque handles, status codes, no
   exceptions.

   Rules. Every call returns sy_status unless it says otherwise; on failure nothing has happened,
   outputs are as they were, and sy_last_error_message() names the argument, its value and the rule.
   Every struct but sy_tensor begins with struct_size: set it to sizeof the struct, so that a
   program compiled today runs with a library that knows more fields. Zeroed fields mean "none" or
   the default unless an init function exists. Numbers in this header are never changed. Memory
   stays the caller's; the library keeps no pointer after a call returns, except where it says so.
 */

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SY_API __attribute__((visibility("default")))
#else
#define SY_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ---- */

typedef int32_t sy_status;
enum {
  SY_OK = 0,
  SY_INVALID_ARGUMENT = 1, /* an argument breaks a stated rule */
  SY_UNSUPPORTED = 2,      /* valid, but not by this build, backend or machine */
  SY_OUT_OF_MEMORY = 3,
  SY_DEVICE = 4,        /* no usable device, or it reported an error */
  SY_COMMUNICATION = 5, /* a peer rank failed */
  SY_INTERNAL = 6,      /* a bug of the library */
  SY_INVALID_FILE = 7   /* unreadable, truncated or contradictory */
};

#define SY_ABI_VERSION 1
/* Of the library in use; programs may compare it with SY_ABI_VERSION. */
SY_API int32_t sy_abi_version(void);
/* "0.1.0" */
SY_API const char* sy_version(void);
/* Of the last call on this thread that failed; "" before the first. Valid until the next failure
   on this thread. */
SY_API const char* sy_last_error_message(void);
/* "invalid argument", ...; "ok" for SY_OK, "unknown" for other numbers. */
SY_API const char* sy_status_name(sy_status status);

/* ---- tensors ---- */

typedef int32_t sy_data_type;
enum {
  SY_F32 = 0,
  SY_F16 = 1,
  SY_BF16 = 2,
  SY_F8_E4M3 = 3,
  SY_F8_E5M2 = 4,
  SY_F8_E8M0 = 5,
  SY_I8 = 6,
  SY_U8 = 7,
  SY_I32 = 8,
  SY_I64 = 9,
  SY_F64 = 10,
  SY_I16 = 11,
  SY_BOOL = 12,
  SY_U32 = 13
};

/* A view. Strides count elements; all zero means contiguous, row-major. A zeroed tensor is absent.
   This struct is frozen. */
typedef struct sy_tensor {
  void* data;
  sy_data_type type;
  int32_t rank; /* 0 to 4 */
  int64_t shape[4];
  int64_t strides[4];
} sy_tensor;

/* ---- the facts of a layer: T tokens, H hidden, I intermediate, E experts, K = top_k ---- */

typedef int32_t sy_format;
enum {
  SY_FORMAT_F32 = 0,
  SY_FORMAT_F16 = 1,
  SY_FORMAT_BF16 = 2,
  SY_FORMAT_FP8_E4M3 = 3,
  SY_FORMAT_FP8_E5M2 = 4,
  SY_FORMAT_INT8 = 5,
  SY_FORMAT_INT4 = 6,
  SY_FORMAT_MXFP4 = 7,
  SY_FORMAT_MXFP8 = 8,
  SY_FORMAT_NVFP4 = 9
};

typedef int32_t sy_activation_format;
enum {
  SY_ACTIVATIONS_AUTO = 0,
  SY_ACTIVATIONS_NONE = 1, /* nothing is rounded before the product */
  SY_ACTIVATIONS_INT8_BLOCK32 = 2,
  SY_ACTIVATIONS_INT8_PER_TOKEN = 3,
  SY_ACTIVATIONS_INT8_PER_SLOT = 4,
  SY_ACTIVATIONS_FP8_PER_TENSOR = 5,
  SY_ACTIVATIONS_FP8_PER_TOKEN = 6,
  SY_ACTIVATIONS_FP8_BLOCK128 = 7,
  SY_ACTIVATIONS_MXFP8 = 8,
  SY_ACTIVATIONS_MXFP4 = 9
};

enum { SY_SCORING_SOFTMAX = 0, SY_SCORING_SIGMOID = 1, SY_SCORING_SQRT_SOFTPLUS = 2 };
enum { SY_GROUP_SCORE_TOP2_SUM = 0, SY_GROUP_SCORE_MAX = 1 };

typedef struct sy_routing {
  size_t struct_size;
  int32_t scoring; /* SY_SCORING_* */
  int32_t renormalize;
  float renormalize_epsilon;
  int32_t num_groups;
  int32_t topk_groups;
  int32_t group_score; /* SY_GROUP_SCORE_* */
  float routed_scaling_factor;
  int32_t hash; /* experts come from tid2eid */
} sy_routing;
/* Writes struct_size and the defaults: softmax, renormalised, one group, factor 1. */
SY_API sy_status sy_routing_init(sy_routing* routing, size_t struct_size);

enum {
  SY_SWIGLU = 0,
  SY_SWIGLU_CLAMP = 1,
  SY_SWIGLU_OAI = 2,
  SY_GEGLU_TANH = 3,
  SY_GEGLU = 4,
  SY_SITU = 5,
  SY_RELU2 = 6 /* no gate matrix */
};

typedef struct sy_activation {
  size_t struct_size;
  int32_t kind;      /* SY_SWIGLU, ... */
  float alpha;       /* SY_SWIGLU_OAI */
  float limit;       /* SY_SWIGLU_CLAMP, SY_SWIGLU_OAI */
  float beta;        /* SY_SITU */
  float linear_beta; /* SY_SITU; 0 leaves the up half as it is */
} sy_activation;
/* SwiGLU; alpha 1.702, limit 7, beta 4, linear_beta 25. */
SY_API sy_status sy_activation_init(sy_activation* activation, size_t struct_size);

enum { SY_WEIGHT_ON_OUTPUT = 0, SY_WEIGHT_ON_INPUT = 1 };

typedef struct sy_layer_spec {
  size_t struct_size;
  int64_t num_experts;
  int64_t top_k;
  int64_t hidden_size;
  int64_t intermediate_size;
  int64_t latent_size;             /* width that routed experts see when it is not H; 0 = H */
  const sy_routing* routing;       /* null: the defaults */
  const sy_activation* activation; /* null: the defaults */
  int64_t shared_intermediate_size;
  int32_t shared_sigmoid_gate;
  int32_t weight_position;  /* SY_WEIGHT_ON_OUTPUT or SY_WEIGHT_ON_INPUT */
  int64_t num_fused_shared; /* trailing experts that every token takes; E and K count them */
  float fused_shared_weight;
  sy_format weight_format;
  int64_t weight_scale_block_rows; /* 0, 0: one scale per matrix; 1, 0: per output channel */
  int64_t weight_scale_block_cols;
  sy_activation_format activation_format;
  float latent_norm_epsilon;
} sy_layer_spec;
/* bf16 weights, weight on the output, fused_shared_weight 1, sizes 0. */
SY_API sy_status sy_layer_spec_init(sy_layer_spec* spec, size_t struct_size);

/* ---- weights ---- */

/* One stored matrix [rows = outputs, cols = inputs]. 4-bit values: [N, K/2] U8 or I8, or [N, K/8]
   I32, the lower column in the lower nibble. */
typedef struct sy_matrix {
  size_t struct_size;
  sy_format format;
  int64_t rows;
  int64_t cols;
  sy_tensor values;
  sy_tensor scales; /* 2-D, one per block; absent: all 1 */
  int64_t scale_block_rows;
  int64_t scale_block_cols;
  int64_t
      scale_row_begin;    /* row n of this matrix is row begin + n * step of what scales describe */
  int64_t scale_row_step; /* 0 = 1 */
  float global_scale;     /* multiplies; 0 = 1 */
  sy_tensor zero_points;  /* INT4: [N, groups] U8; absent: 8 */
  sy_tensor group_index;  /* INT4: [K] I32; absent: column / group size */
  sy_tensor smooth_scales; /* INT8: [K] F32 on the activation's channels; absent: none */
} sy_matrix;

/* Matrices may be null where the layer has none (gate of a non-gated activation). */
typedef struct sy_expert {
  size_t struct_size;
  const sy_matrix* gate; /* [I, H] */
  const sy_matrix* up;   /* [I, H] */
  const sy_matrix* down; /* [H, I] */
  sy_tensor gate_bias;
  sy_tensor up_bias;
  sy_tensor down_bias;
} sy_expert;

/* Experts one by one. What load leaves in *out must stay valid until release of that expert. load
   may be called from several threads; it returns SY_OK or stops the creation with its status. */
typedef struct sy_expert_source {
  size_t struct_size;
  int64_t num_experts;
  sy_status (*load)(void* context, int64_t expert, sy_expert* out); /* *out is zeroed, sized */
  void (*release)(void* context, int64_t expert);                   /* may be null */
  void* context;
} sy_expert_source;

enum { SY_GATE_UP_CONCATENATED = 0, SY_GATE_UP_INTERLEAVED = 1 };

/* Experts stacked in tensors: gate_up [E, 2I, H] (non-gated: [E, I, H]) and down [E, H, I], 4-bit
   values two or eight to a word along the last axis; scales 3-D with leading E, or absent. */
typedef struct sy_stacked_experts {
  size_t struct_size;
  sy_format format;
  int32_t order; /* SY_GATE_UP_* */
  int64_t scale_block_rows;
  int64_t scale_block_cols;
  sy_tensor gate_up;
  sy_tensor gate_up_scales;
  sy_tensor gate_up_bias; /* [E, 2I] */
  sy_tensor down;
  sy_tensor down_scales;
  sy_tensor down_bias;             /* [E, H] */
  sy_tensor gate_up_global_scales; /* NVFP4: F32 [E] or [E, 2] */
  sy_tensor down_global_scales;    /* NVFP4: F32 [E] */
  sy_tensor gate_up_zero_points;   /* INT4: U8 [E, 2I, groups] */
  sy_tensor down_zero_points;      /* INT4: U8 [E, H, groups] */
  sy_tensor gate_up_smooth_scales; /* INT8: F32 [E, H] */
  sy_tensor down_smooth_scales;    /* INT8: F32 [E, I] */
} sy_stacked_experts;

/* Exactly one of stacked and experts. */
typedef struct sy_weights {
  size_t struct_size;
  const sy_stacked_experts* stacked;
  const sy_expert_source* experts;
  const sy_matrix* router;    /* [E, H]; null when forward is given logits or ids */
  sy_tensor logit_bias;       /* [E], part of the logits */
  sy_tensor selection_bias;   /* [E], for selection only */
  sy_tensor per_expert_scale; /* [E], multiplies the final weights */
  sy_tensor tid2eid;          /* [vocabulary, K] I64 or I32, hash layers */
  sy_tensor input_norm_scale; /* [H], multiplies the RMS-normed router input */
  float input_norm_epsilon;
  const sy_expert* shared;      /* when shared_intermediate_size > 0 */
  const sy_matrix* shared_gate; /* [1, H], when shared_sigmoid_gate */
  const sy_matrix* latent_down; /* [L, H], when latent_size > 0 */
  sy_tensor latent_norm;        /* [L] or absent */
  const sy_matrix* latent_up;   /* [H, L] */
} sy_weights;

/* ---- layers ---- */

enum { SY_BACKEND_AUTO = 0, SY_BACKEND_CPU = 1, SY_BACKEND_CUDA = 2, SY_BACKEND_REFERENCE = 3 };

/* Lends the program's threads. run calls fn(fn_context, i) once for each i in [0, num_threads) and
   returns when all are done. */
typedef struct sy_executor {
  size_t struct_size;
  int32_t num_threads;
  void (*run)(void* context, void (*fn)(void* fn_context, int thread), void* fn_context);
  void* context;
} sy_executor;

typedef struct sy_layer_options {
  size_t struct_size;
  int32_t backend;             /* SY_BACKEND_* */
  int32_t device;              /* CUDA ordinal */
  int32_t num_threads;         /* CPU: 0 = all cores this process may use */
  const char* cpu_isa;         /* avx2[_vnni], avx512[_vnni|_bf16]; null = best */
  const sy_executor* executor; /* CPU: copied; its context must outlive the layer */
  void (*on_progress)(void* context, int64_t done, int64_t total);
  void* progress_context;
} sy_layer_options;

typedef struct sy_layer sy_layer;

/* Packs the weights; none of their memory is needed afterwards. options may be null. */
SY_API sy_status sy_layer_create(const sy_layer_spec* spec, const sy_weights* weights,
                                 const sy_layer_options* options, sy_layer** layer);
/* Of a model directory as Hugging Face writes it. */
SY_API sy_status sy_layer_create_from_checkpoint(const char* directory, int64_t layer_index,
                                                 const sy_layer_options* options, sy_layer** layer);
/* Null is fine. */
SY_API void sy_layer_destroy(sy_layer* layer);

typedef struct sy_layer_info {
  size_t struct_size;
  int64_t num_experts;
  int64_t top_k;
  int64_t hidden_size;
  int64_t intermediate_size;
  sy_format weight_format;
  int32_t hash;         /* forward needs input_ids */
  int32_t backend;      /* who computes: SY_BACKEND_* */
  int64_t packed_bytes; /* of the packed weights */
} sy_layer_info;
SY_API sy_status sy_layer_get_info(const sy_layer* layer, sy_layer_info* info);

SY_API sy_status sy_layer_workspace_bytes(const sy_layer* layer, int64_t max_tokens,
                                          int64_t* bytes);

#define SY_WORKSPACE_ALIGNMENT 256

/* Contiguous; the output must not overlap the inputs. */
typedef struct sy_forward_args {
  size_t struct_size;
  sy_tensor hidden_states; /* [T, H] F32, BF16 or F16 */
  sy_tensor output;        /* [T, H], same type; written completely */
  /* Routing: ids and weights, else logits, else the layer's own router. */
  sy_tensor topk_ids;         /* [T, K] I32; -1 and >= E are skipped */
  sy_tensor topk_weights;     /* [T, K] F32 */
  sy_tensor router_logits;    /* [T, E] F32, BF16 or F16 */
  sy_tensor input_ids;        /* [T] I32 or I64, hash layers */
  sy_tensor topk_ids_out;     /* optional copies of the routing used */
  sy_tensor topk_weights_out; /* */
  sy_tensor num_tokens;       /* optional [1] I32: only the first rows are computed */
} sy_forward_args;

/* workspace: at least sy_layer_workspace_bytes(T), aligned to SY_WORKSPACE_ALIGNMENT. stream: a
   cudaStream_t or null. Neither allocates nor locks; one layer may run on several threads with
   different workspaces. */
SY_API sy_status sy_layer_forward(const sy_layer* layer, const sy_forward_args* args,
                                  void* workspace, int64_t workspace_bytes, void* stream);

/* What forward will do and why, as text. *length is its full length without the final zero; at most
   capacity bytes are written, always ended by a zero. text may be null when capacity is 0. */
SY_API sy_status sy_layer_explain(const sy_layer* layer, int64_t num_tokens, char* text,
                                  size_t capacity, size_t* length);

/* ---- the steps as operations of their own ---- */

typedef struct sy_execution {
  size_t struct_size;
  int32_t backend; /* SY_BACKEND_*; auto means CPU here */
  int32_t device;
  void* stream;
  void* workspace;
  int64_t workspace_bytes;
} sy_execution;

typedef struct sy_route_args {
  size_t struct_size;
  sy_tensor router_logits;    /* [T, E] F32, BF16 or F16 */
  sy_tensor logit_bias;       /* [E] */
  sy_tensor selection_bias;   /* [E] F32 */
  sy_tensor per_expert_scale; /* [E] F32 */
  sy_tensor input_ids;        /* [T], hash layers */
  sy_tensor tid2eid;          /* [vocabulary, K], hash layers */
  int64_t num_fused_shared;
  float fused_shared_weight;
  sy_tensor num_tokens;   /* [1] I32 or absent */
  sy_tensor topk_ids;     /* out [T, K] I32 */
  sy_tensor topk_weights; /* out [T, K] F32 */
} sy_route_args;
/* routing and execution may be null: the defaults, on the CPU. */
SY_API sy_status sy_route(const sy_routing* routing, const sy_route_args* args,
                          const sy_execution* execution);

/* A packed id is slot << 24 | token; padding is K << 24 | T. */
typedef struct sy_sort_args {
  size_t struct_size;
  sy_tensor topk_ids;     /* [T, K] I32 */
  sy_tensor topk_weights; /* [T, K] F32 */
  int64_t num_experts;
  int64_t unit_size;           /* rows of a block */
  sy_tensor expert_mask;       /* [E] I32, 1 = local; absent: all */
  sy_tensor num_local_tokens;  /* [1] I32; absent: T */
  sy_tensor sorted_ids;        /* out [capacity] I32 */
  sy_tensor sorted_weights;    /* out [capacity] F32 */
  sy_tensor sorted_expert_ids; /* out [capacity / unit] I32 */
  sy_tensor num_valid_ids;     /* out [2] or [1] I32: padded rows, tokens */
  sy_tensor moe_buf;           /* zero-filled when given */
  sy_tensor local_topk_ids;    /* out [T, K] I32 or absent */
  sy_tensor m_indices;         /* out [capacity] I32 or absent */
  sy_tensor reverse_sorted;    /* out [T * K] I32 or absent */
} sy_sort_args;
SY_API sy_status sy_sort_capacity(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                                  int64_t unit_size, int64_t* capacity);
SY_API sy_status sy_sort_workspace_bytes(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                                         int64_t unit_size, int32_t backend, int64_t* bytes);
SY_API sy_status sy_sort(const sy_sort_args* args, const sy_execution* execution);

enum { SY_SCALE_DOWN = 0, SY_SCALE_UP = 1, SY_SCALE_EVEN = 2, SY_SCALE_CEIL = 3 };

typedef struct sy_quantize_args {
  size_t struct_size;
  sy_tensor input;         /* [M, C] F32, BF16 or F16 */
  sy_tensor row_index;     /* [R] I32 or absent; out of range gives zeros */
  sy_tensor channel_scale; /* [C] F32 or absent: multiplies the input first */
  sy_format format;
  int32_t rounding; /* SY_SCALE_*, MX formats */
  int64_t scale_block_rows;
  int64_t scale_block_cols;
  int32_t power_of_two_scales; /* FP8 */
  float global_scale;          /* NVFP4 */
  sy_tensor values;            /* out */
  sy_tensor scales;            /* out */
} sy_quantize_args;
/* FP8 per 1x128, scales rounded up. */
SY_API sy_status sy_quantize_args_init(sy_quantize_args* args, size_t struct_size);
SY_API sy_status sy_quantize(const sy_quantize_args* args, const sy_execution* execution);

#ifdef __cplusplus
}
#endif
#endif
