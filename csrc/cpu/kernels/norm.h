// RMS norm and layer norm of rows and of heads, the residual sum before them, and bounds. `out` may be the input.
#pragma once

#include "isa.h"

namespace octavo {

struct NormKernels {
    void (*rms_norm)(float* out, const float* x, const float* weight, int64_t rows, int64_t width, float eps);
    void (*add_rms_norm)(float* out, float* residual, const float* x, const float* weight, int64_t rows, int64_t width,
                         float eps);
    // bias may be null.
    void (*layer_norm)(float* out, const float* x, const float* weight, const float* bias, int64_t rows, int64_t width,
                       float eps);
    void (*add_layer_norm)(float* out, float* residual, const float* x, const float* weight, const float* bias, int64_t rows,
                           int64_t width, float eps);
    void (*add)(float* residual, const float* x, int64_t count);
    void (*clip)(float* x, int64_t count, float limit);
    // Each head of q and k in rows of q | k | v by its own weights: q_norm [num_heads][head_dim], k_norm the same of k.
    void (*head_norm)(float* qkv, const float* q_norm, const float* k_norm, int64_t rows, int num_heads, int num_kv_heads,
                      int head_dim, float eps, bool is_layer_norm);
};

OCTAVO_DECLARE_KERNELS(NormKernels, norm_kernels)

}  // namespace octavo
