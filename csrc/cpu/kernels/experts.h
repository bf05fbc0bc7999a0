// Of a mixture of experts: which of them a row goes to, and how their results become one. The products are linear().
#pragma once

#include "isa.h"

namespace octavo {

constexpr int kMaxExperts = 4096;

enum class ScoreKind : int { softmax = 0, sigmoid = 1, sparsemixer = 2 };

// ops/routing.py says what it means.
struct Routing {
    ScoreKind kind;
    bool renormalize;
    float factor;
    int num_groups, top_groups, group_best;
    float jitter;
};

struct RouteArgs {
    int32_t* ids;         // [rows][top_k], best first; equal values by id
    float* weights;       // [rows][top_k]
    const float* scores;  // [rows][num_experts]
    const float* bias;    // [num_experts] or null
    const float* scales;  // [num_experts] or null: an expert's weight is multiplied by its own in the end
    int64_t rows;
    int num_experts, top_k;
    Routing routing;
};

struct ExpertsKernels {
    void (*route)(const RouteArgs& args);
    // out[r] = the sum over j, in its order, of weights[r][j] * y[places[r][j]]; without weights (null) of the latter alone.
    void (*combine)(float* out, const float* y, const int32_t* places, const float* weights, int64_t rows, int top_k,
                    int64_t width);
    // residual[r] += sigmoid(gates[r]) * x[r].
    void (*add_gated)(float* residual, const float* x, const float* gates, int64_t rows, int64_t width);
};

OCTAVO_DECLARE_KERNELS(ExpertsKernels, experts_kernels)

}  // namespace octavo
