#include "kernels/norm.h"

#include "kernels/rms.h"
#include "pool.h"

namespace octavo {
namespace OCTAVO_ISA {

// Floats that one task handles: below it the threads cost more than they bring.
constexpr int64_t kTaskFloats = 16384;

// Of `match_rms`: what has next to no size is not blown up.
constexpr float kLeastSquare = 1e-5f;

static inline int64_t rows_per_task(int64_t width) { return width >= kTaskFloats ? 1 : kTaskFloats / width; }

static inline void add_range(float* residual, const float* x, int64_t count) {
    int64_t i = 0;
    for (; i + VW <= count; i += VW) vf_store(residual + i, vf_add(vf_load(residual + i), vf_load(x + i)));
    for (; i < count; ++i) residual[i] += x[i];
}

template <class F>
static void for_rows(int64_t rows, int64_t width, const F& each_row) {
    const int64_t step = rows_per_task(width);
    parallel_for((rows + step - 1) / step, [&](int64_t task, int) {
        const int64_t end = (task + 1) * step < rows ? (task + 1) * step : rows;
        for (int64_t row = task * step; row < end; ++row) each_row(row * width);
    });
}

static void rms_norm(float* out, const float* x, const float* weight, int64_t rows, int64_t width, float eps) {
    for_rows(rows, width, [&](int64_t at) {
        scale_row(out + at, x + at, weight, inverse_rms(x + at, width, eps), width);
    });
}

static void add_rms_norm(float* out, float* residual, const float* x, const float* weight, int64_t rows, int64_t width,
                         float eps) {
    for_rows(rows, width, [&](int64_t at) {
        add_range(residual + at, x + at, width);
        scale_row(out + at, residual + at, weight, inverse_rms(residual + at, width, eps), width);
    });
}

// The sum of f over a row's vectors, in an order that depends on the width alone; missing lanes are `fill`.
template <class F>
static inline float sum_of(const float* x, int64_t width, float fill, const F& f) {
    vf sums[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    int64_t i = 0;
    for (; i + 4 * VW <= width; i += 4 * VW)
        for (int j = 0; j < 4; ++j) sums[j] = vf_add(sums[j], f(vf_load(x + i + j * VW)));
    for (; i < width; i += VW)
        sums[0] = vf_add(sums[0], f(width - i >= VW ? vf_load(x + i) : vf_load_n(x + i, int(width - i), fill)));
    return vf_sum(vf_add(vf_add(sums[0], sums[1]), vf_add(sums[2], sums[3])));
}

static inline void layer_norm_row(float* out, const float* x, const float* weight, const float* bias, int64_t width, float eps) {
    const float mean = sum_of(x, width, 0.0f, [](vf a) { return a; }) / float(width);
    const vf m = vf_set(mean);
    const float squares = sum_of(x, width, mean, [m](vf a) { return vf_mul(vf_sub(a, m), vf_sub(a, m)); });
    const float inverse = 1.0f / sqrtf(squares / float(width) + eps);
    const vf s = vf_set(inverse);
    int64_t i = 0;
    for (; i + VW <= width; i += VW) {
        const vf y = vf_mul(vf_mul(vf_sub(vf_load(x + i), m), s), vf_load(weight + i));
        vf_store(out + i, bias ? vf_add(y, vf_load(bias + i)) : y);
    }
    for (; i < width; ++i) {
        const float y = (x[i] - mean) * inverse * weight[i];
        out[i] = bias ? y + bias[i] : y;
    }
}

static void layer_norm(float* out, const float* x, const float* weight, const float* bias, int64_t rows, int64_t width,
                       float eps) {
    for_rows(rows, width, [&](int64_t at) { layer_norm_row(out + at, x + at, weight, bias, width, eps); });
}

static void add_layer_norm(float* out, float* residual, const float* x, const float* weight, const float* bias, int64_t rows,
                           int64_t width, float eps) {
    for_rows(rows, width, [&](int64_t at) {
        add_range(residual + at, x + at, width);
        layer_norm_row(out + at, residual + at, weight, bias, width, eps);
    });
}

static void norm_parts(const NormPartsArgs& args) {
    for_rows(args.rows, args.row_width, [&](int64_t at) {
        for (int64_t part = 0; part < args.count; ++part) {
            float* x = args.x + at + args.first + part * args.width;
            const int64_t own = args.has_own ? part * args.width : 0;
            const float *weight = args.weight + own, *bias = args.bias ? args.bias + own : nullptr;
            if (args.is_layer_norm) layer_norm_row(x, x, weight, bias, args.width, args.eps);
            else scale_row(x, x, weight, inverse_rms(x, args.width, args.eps), args.width);
        }
    });
}

static void add(float* residual, const float* x, int64_t count) {
    parallel_for((count + kTaskFloats - 1) / kTaskFloats, [&](int64_t task, int) {
        const int64_t at = task * kTaskFloats, left = count - at;
        add_range(residual + at, x + at, left < kTaskFloats ? left : kTaskFloats);
    });
}

static void clip(float* x, int64_t count, float limit) {
    const vf low = vf_set(-limit), high = vf_set(limit);
    parallel_for((count + kTaskFloats - 1) / kTaskFloats, [&](int64_t task, int) {
        const int64_t end = (task + 1) * kTaskFloats < count ? (task + 1) * kTaskFloats : count;
        int64_t i = task * kTaskFloats;
        for (; i + VW <= end; i += VW) vf_store(x + i, vf_min(high, vf_max(low, vf_load(x + i))));
        for (; i < end; ++i) x[i] = x[i] < -limit ? -limit : x[i] > limit ? limit : x[i];
    });
}

static void multiply(float* x, const float* factors, bool has_one, int64_t rows, int64_t width) {
    for_rows(rows, width, [&](int64_t at) {
        float* row = x + at;
        const vf all = vf_set(factors[0]);
        int64_t i = 0;
        for (; i + VW <= width; i += VW) vf_store(row + i, vf_mul(vf_load(row + i), has_one ? all : vf_load(factors + i)));
        for (; i < width; ++i) row[i] *= factors[has_one ? 0 : i];
    });
}

static void match_rms(float* x, const float* to, int64_t rows, int64_t width) {
    for_rows(rows, width, [&](int64_t at) {
        const float least = mean_square(x + at, width), target = sqrtf(mean_square(to + at, width));
        const float size = sqrtf(least < kLeastSquare ? kLeastSquare : least);
        const vf t = vf_set(target), s = vf_set(size);
        int64_t i = at;
        for (; i + VW <= at + width; i += VW) vf_store(x + i, vf_div(vf_mul(vf_load(x + i), t), s));
        for (; i < at + width; ++i) x[i] = x[i] * target / size;
    });
}

static void cut_gates(float* x, int64_t rows, int64_t row_width, int64_t width, float deviations) {
    for_rows(rows, row_width, [&](int64_t at) {
        float* gates = x + at;
        const float mean = sum_of(gates, width, 0.0f, [](vf a) { return a; }) / float(width);
        const vf m = vf_set(mean);
        const float squares = sum_of(gates, width, mean, [m](vf a) { return vf_mul(vf_sub(a, m), vf_sub(a, m)); });
        const float cut = mean + sqrtf(squares / float(width)) * deviations;
        const vf c = vf_set(cut), zero = vf_zero();
        int64_t i = 0;
        for (; i + VW <= width; i += VW) {
            const vf above = vf_sub(vf_load(gates + i), c);
            vf_store(gates + i, vf_select_lt(above, zero, zero, above));  // keeps a NaN
        }
        for (; i < width; ++i) {
            const float above = gates[i] - cut;
            gates[i] = above < 0.0f ? 0.0f : above;
        }
    });
}

extern const NormKernels norm_kernels = {rms_norm, add_rms_norm, layer_norm, add_layer_norm, norm_parts,
                                         add,      clip,         multiply,   match_rms,      cut_gates};

}  // namespace OCTAVO_ISA
}  // namespace octavo
