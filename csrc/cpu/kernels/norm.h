// RMS norm and layer norm of rows, and the residual sum before them. `out` may be the input.
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
};

OCTAVO_DECLARE_KERNELS(NormKernels, norm_kernels)

}  // namespace octavo
