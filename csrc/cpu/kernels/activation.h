// act_mul: out[r][i] = act(gate_up[r][i]) * gate_up[r][width + i]. act_times: out[r][i] = act(x[r][i]) * y[r][i], where rows of y
// lie y_stride apart. act: out[r][i] = act(x[r][i]); `parameters`: two of xielu,
// else null. swiglu_oai and gegelu, which are gated only: see ops/reference.py.
#pragma once

#include "isa.h"

namespace octavo {

enum class Activation : int {
    silu = 0, gelu_tanh = 1, gelu = 2, relu = 3, quick_gelu = 4, relu2 = 5, xielu = 6, swiglu_oai = 8,
    gegelu = 9
};

struct ActivationKernels {
    void (*act_mul)(float* out, const float* gate_up, int64_t rows, int64_t width, Activation kind);
    void (*act_times)(float* out, const float* x, const float* y, int64_t y_stride, int64_t rows, int64_t width, Activation kind);
    void (*act)(float* out, const float* x, int64_t rows, int64_t width, Activation kind, const float* parameters);
};

OCTAVO_DECLARE_KERNELS(ActivationKernels, activation_kernels)

}  // namespace octavo
