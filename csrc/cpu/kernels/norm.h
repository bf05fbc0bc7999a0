// RMS norm and layer norm of rows and of heads, the residual sum before them, bounds and factors. `out` may be the input.
#pragma once

#include "isa.h"

namespace octavo {

// Of each row `count` parts of `width` columns, from column `first` on, each normed by itself in place. `weight` and `bias`
// (null, or of layer norms) are one part's, for all, or if `has_own` those of each.
struct NormPartsArgs {
    float* x;
    int64_t rows, row_width, first, count, width;
    const float *weight, *bias;
    bool has_own;
    float eps;
    bool is_layer_norm;
};

struct NormKernels {
    void (*rms_norm)(float* out, const float* x, const float* weight, int64_t rows, int64_t width, float eps);
    void (*add_rms_norm)(float* out, float* residual, const float* x, const float* weight, int64_t rows, int64_t width,
                         float eps);
    // bias may be null.
    void (*layer_norm)(float* out, const float* x, const float* weight, const float* bias, int64_t rows, int64_t width,
                       float eps);
    void (*add_layer_norm)(float* out, float* residual, const float* x, const float* weight, const float* bias, int64_t rows,
                           int64_t width, float eps);
    void (*norm_parts)(const NormPartsArgs& args);
    void (*add)(float* residual, const float* x, int64_t count);
    void (*clip)(float* x, int64_t count, float limit);
    // x[r][i] *= factors[i], or all by factors[0].
    void (*multiply)(float* x, const float* factors, bool has_one, int64_t rows, int64_t width);
    // Rows of x are given the root mean squares of those of `to`.
    void (*match_rms)(float* x, const float* to, int64_t rows, int64_t width);
    // Of the first `width` columns of each row: what lies so many standard deviations above their mean, less that; else 0.
    void (*cut_gates)(float* x, int64_t rows, int64_t row_width, int64_t width, float deviations);
};

OCTAVO_DECLARE_KERNELS(NormKernels, norm_kernels)

}  // namespace octavo
