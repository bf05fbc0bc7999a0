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

// The first of the highest values but those of the `count` experts that were taken.
static inline int best_of(const float* values, int num_experts, const int32_t* taken, int count) {
    int best = -1;
    for (int e = 0; e < num_experts; ++e)
        if (!is_chosen(taken, count, e) && (best < 0 || values[e] > values[best])) best = e;
    return best;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

static inline float highest(const float* x, int count) {
    float high = x[0];
    for (int i = 1; i < count; ++i) high = x[i] > high ? x[i] : high;
    return high;
}

// What a group is worth: its best value, or the sum of its two best.
static float worth(const float* values, int count, int num_best) {
    int32_t best[2];
    float sum = 0.0f;
    for (int i = 0; i < num_best; ++i) {
        best[i] = best_of(values, count, best, i);
        sum += values[best[i]];
    }
    return sum;
}

// Probabilities plus the bias; -inf in the groups that cannot be chosen.
static void make_values(const RouteArgs& args, const float* scores, float* values) {
    const Routing& routing = args.routing;
    const int count = args.num_experts, group = count / routing.num_groups;
    if (routing.kind == ScoreKind::sigmoid) {
        for (int e = 0; e < count; ++e) values[e] = sigmoid(scores[e]);
    } else {
        const float high = highest(scores, count);
        float total = 0.0f;
        for (int e = 0; e < count; ++e) total += values[e] = expf(scores[e] - high);
        for (int e = 0; e < count; ++e) values[e] /= total;
    }
    if (args.bias)
        for (int e = 0; e < count; ++e) values[e] += args.bias[e];
    if (routing.num_groups == 1) return;
    float worths[kMaxExperts];
    int32_t open[kMaxExperts];
    for (int g = 0; g < routing.num_groups; ++g) worths[g] = worth(values + g * group, group, routing.group_best);
    for (int j = 0; j < routing.top_groups; ++j) open[j] = best_of(worths, routing.num_groups, open, j);
    for (int g = 0; g < routing.num_groups; ++g)
        if (!is_chosen(open, routing.top_groups, g))
            for (int e = g * group; e < (g + 1) * group; ++e) values[e] = -INFINITY;
}

static void softmax_weights(const RouteArgs& args, const float* scores, const int32_t* ids, float* weights) {
    const bool is_plain = !args.bias && args.routing.num_groups == 1;  // then the first was chosen for its score
    const float high = is_plain ? scores[ids[0]] : highest(scores, args.num_experts);
    float total = 0.0f;
    for (int j = 0; j < args.top_k; ++j) weights[j] = expf(scores[ids[j]] - high);
    if (args.routing.renormalize)
        for (int j = 0; j < args.top_k; ++j) total += weights[j];
    else
        for (int e = 0; e < args.num_experts; ++e) total += expf(scores[e] - high);
    for (int j = 0; j < args.top_k; ++j) weights[j] /= total;
}

static void sigmoid_weights(const RouteArgs& args, const float* scores, const int32_t* ids, float* weights) {
    float total = 1e-20f;
    for (int j = 0; j < args.top_k; ++j) total += weights[j] = sigmoid(scores[ids[j]]);
    if (args.routing.renormalize)
        for (int j = 0; j < args.top_k; ++j) weights[j] /= total;
}

static void sparsemixer_weights(const RouteArgs& args, const float* scores, const int32_t* ids, float* weights) {
    for (int j = 0; j < args.top_k; ++j) {
        const float best = scores[ids[j]];
        float total = 0.0f;
        for (int e = 0; e < args.num_experts; ++e) {
            const float size = fabsf(scores[e]), scale = size > best ? size : best;
            const bool is_far = (best - scores[e]) / scale > 2.0f * args.routing.jitter;
            if (!is_far && !is_chosen(ids, j, e)) total += expf(scores[e] - best);
        }
        weights[j] = 1.0f / total;
    }
}

static void route_row(const RouteArgs& args, int64_t row) {
    const Routing& routing = args.routing;
    const float* scores = args.scores + row * args.num_experts;
    int32_t* ids = args.ids + row * args.top_k;
    float* weights = args.weights + row * args.top_k;
    float own[kMaxExperts];
    const float* values = scores;
    if (args.bias || routing.num_groups > 1) make_values(args, scores, own), values = own;
    for (int j = 0; j < args.top_k; ++j) ids[j] = best_of(values, args.num_experts, ids, j);
    switch (routing.kind) {
        case ScoreKind::softmax: softmax_weights(args, scores, ids, weights); break;
        case ScoreKind::sigmoid: sigmoid_weights(args, scores, ids, weights); break;
        case ScoreKind::sparsemixer: sparsemixer_weights(args, scores, ids, weights); break;
    }
    if (routing.factor != 1.0f)
        for (int j = 0; j < args.top_k; ++j) weights[j] *= routing.factor;
    if (args.scales)
        for (int j = 0; j < args.top_k; ++j) weights[j] *= args.scales[ids[j]];
}

static void route(const RouteArgs& args) {
    const int64_t step = args.num_experts < kTaskScores ? kTaskScores / args.num_experts : 1;
    parallel_for((args.rows + step - 1) / step, [&](int64_t task, int) {
        for (int64_t row = task * step; row < (task + 1) * step && row < args.rows; ++row) route_row(args, row);
    });
}

template <bool WEIGHTED>
static void combine_row(float* out, const float* y, const int32_t* places, const float* weights, int top_k, int64_t width) {
    int64_t i = 0;
    for (; i + VW <= width; i += VW) {
        const auto term = [&](int j) {
            const vf value = vf_load(y + places[j] * width + i);
            return WEIGHTED ? vf_mul(vf_set(weights[j]), value) : value;
        };
        vf sum = term(0);
        for (int j = 1; j < top_k; ++j) sum = vf_add(sum, term(j));
        vf_store(out + i, sum);
    }
    for (; i < width; ++i) {
        const auto term = [&](int j) { return (WEIGHTED ? weights[j] : 1.0f) * y[places[j] * width + i]; };
        float sum = term(0);
        for (int j = 1; j < top_k; ++j) sum += term(j);
        out[i] = sum;
    }
}

static void combine(float* out, const float* y, const int32_t* places, const float* weights, int64_t rows, int top_k,
                    int64_t width) {
    const int64_t floats = width * top_k, step = floats < kTaskFloats ? kTaskFloats / floats : 1;
    parallel_for((rows + step - 1) / step, [&](int64_t task, int) {
        for (int64_t row = task * step; row < (task + 1) * step && row < rows; ++row)
            if (weights) combine_row<true>(out + row * width, y, places + row * top_k, weights + row * top_k, top_k, width);
            else combine_row<false>(out + row * width, y, places + row * top_k, nullptr, top_k, width);
    });
}

static void add_gated(float* residual, const float* x, const float* gates, int64_t rows, int64_t width) {
    const int64_t step = width < kTaskFloats ? kTaskFloats / width : 1;
    parallel_for((rows + step - 1) / step, [&](int64_t task, int) {
        for (int64_t row = task * step; row < (task + 1) * step && row < rows; ++row) {
            float* sum = residual + row * width;
            const float *added = x + row * width, gate = sigmoid(gates[row]);
            int64_t i = 0;
            for (; i + VW <= width; i += VW) vf_store(sum + i, vf_add(vf_load(sum + i), vf_mul(vf_set(gate), vf_load(added + i))));
            for (; i < width; ++i) sum[i] += gate * added[i];
        }
    });
}

extern const ExpertsKernels experts_kernels = {route, combine, add_gated};

}  // namespace OCTAVO_ISA
}  // namespace octavo
