#include "kernels/experts.h"

#include "pool.h"
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int64_t kTaskScores = 4096;
constexpr int64_t kTaskFloats = 16384;

static inline bool is_chosen(const int32_t* ids, int count, int expert) {
    for (int j = 0; j < count; ++j)
        if (ids[j] == expert) return true;
    return false;
}

static void route_row(const RouteArgs& args, int64_t row) {
    const float* scores = args.scores + row * args.num_experts;
    int32_t* ids = args.ids + row * args.top_k;
    float* weights = args.weights + row * args.top_k;
    for (int j = 0; j < args.top_k; ++j) {
        int best = -1;
        for (int e = 0; e < args.num_experts; ++e)
            if (!is_chosen(ids, j, e) && (best < 0 || scores[e] > scores[best])) best = e;
        ids[j] = best;
    }
    const float high = scores[ids[0]];
    float total = 0.0f;
    for (int j = 0; j < args.top_k; ++j) weights[j] = expf(scores[ids[j]] - high);
    if (args.renormalize)
        for (int j = 0; j < args.top_k; ++j) total += weights[j];
    else
        for (int e = 0; e < args.num_experts; ++e) total += expf(scores[e] - high);
    for (int j = 0; j < args.top_k; ++j) weights[j] /= total;
}

static void route(const RouteArgs& args) {
    const int64_t step = args.num_experts < kTaskScores ? kTaskScores / args.num_experts : 1;
    parallel_for((args.rows + step - 1) / step, [&](int64_t task, int) {
        for (int64_t row = task * step; row < (task + 1) * step && row < args.rows; ++row) route_row(args, row);
    });
}

static void combine_row(float* out, const float* y, const int32_t* places, const float* weights, int top_k, int64_t width) {
    int64_t i = 0;
    for (; i + VW <= width; i += VW) {
        vf sum = vf_mul(vf_set(weights[0]), vf_load(y + places[0] * width + i));
        for (int j = 1; j < top_k; ++j)
            sum = vf_add(sum, vf_mul(vf_set(weights[j]), vf_load(y + places[j] * width + i)));
        vf_store(out + i, sum);
    }
    for (; i < width; ++i) {
        float sum = weights[0] * y[places[0] * width + i];
        for (int j = 1; j < top_k; ++j) sum += weights[j] * y[places[j] * width + i];
        out[i] = sum;
    }
}

static void combine(float* out, const float* y, const int32_t* places, const float* weights, int64_t rows, int top_k,
                    int64_t width) {
    const int64_t floats = width * top_k, step = floats < kTaskFloats ? kTaskFloats / floats : 1;
    parallel_for((rows + step - 1) / step, [&](int64_t task, int) {
        for (int64_t row = task * step; row < (task + 1) * step && row < rows; ++row)
            combine_row(out + row * width, y, places + row * top_k, weights + row * top_k, top_k, width);
    });
}

extern const ExpertsKernels experts_kernels = {route, combine};

}  // namespace OCTAVO_ISA
}  // namespace octavo
