#include "kernels/activation.h"

#include "pool.h"
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

// Columns of one task.
constexpr int64_t kTaskColumns = 4096;

struct Silu {
    static vf of(vf g) { return vf_silu(g); }
};

// 0.5 (1 + tanh z) = 1 / (1 + e^(-2z)) with z = sqrt(2 / pi) (g + 0.044715 g^3).
struct GeluTanh {
    static vf of(vf g) {
        const vf cubic = vf_fma(vf_mul(vf_mul(g, g), vf_set(0.044715f)), g, g);
        return vf_div(g, vf_add(vf_set(1.0f), vf_exp(vf_mul(cubic, vf_set(-1.5957691216f)))));
    }
};

// 0.5 g (1 + erf(g / sqrt(2))), with erf from Abramowitz and Stegun 7.1.26, whose error is below 1.5e-7.
struct Gelu {
    static vf of(vf g) {
        const vf x = vf_mul(vf_abs(g), vf_set(0.70710678118f)), one = vf_set(1.0f);
        const vf t = vf_div(one, vf_fma(x, vf_set(0.3275911f), one));
        vf p = vf_fma(t, vf_set(1.061405429f), vf_set(-1.453152027f));
        p = vf_fma(p, t, vf_set(1.421413741f));
        p = vf_fma(p, t, vf_set(-0.284496736f));
        p = vf_mul(vf_fma(p, t, vf_set(0.254829592f)), t);
        const vf tail = vf_mul(p, vf_exp(vf_mul(vf_sub(vf_zero(), x), x)));  // 1 - erf(x)
        const vf both = vf_select_lt(g, vf_zero(), tail, vf_sub(vf_set(2.0f), tail));
        return vf_mul(vf_mul(g, vf_set(0.5f)), both);
    }
};

struct Relu {
    // The order of the arguments keeps a NaN.
    static vf of(vf g) { return vf_select_lt(g, vf_zero(), vf_zero(), g); }
};

struct QuickGelu {
    static vf of(vf g) { return vf_div(g, vf_add(vf_set(1.0f), vf_exp(vf_mul(g, vf_set(-1.702f))))); }
};

struct Relu2 {
    static vf of(vf g) {
        const vf positive = Relu::of(g);
        return vf_mul(positive, positive);
    }
};

// ap x^2 + x / 2 above zero, an (e^min(x, -1e-6) - 1 - x) + x / 2 below.
struct Xielu {
    vf ap, an;

    static float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

    explicit Xielu(const float* parameters)
        : ap(vf_set(softplus(parameters[0]))), an(vf_set(0.5f + softplus(parameters[1]))) {}

    vf operator()(vf x) const {
        const vf half = vf_mul(x, vf_set(0.5f)), limit = vf_set(-1e-6f);
        const vf above = vf_fma(vf_mul(ap, x), x, half);
        const vf z = vf_select_lt(x, limit, x, limit);
        const vf below = vf_fma(vf_sub(expm1_of(z), x), an, half);
        return vf_select_lt(vf_zero(), x, above, below);
    }

    // e^x - 1 for x < 0. Near zero the difference would lose its digits; there are those of the series.
    static vf expm1_of(vf x) {
        vf series = vf_fma(x, vf_set(1.0f / 720.0f), vf_set(1.0f / 120.0f));
        series = vf_fma(series, x, vf_set(1.0f / 24.0f));
        series = vf_fma(series, x, vf_set(1.0f / 6.0f));
        series = vf_fma(series, x, vf_set(0.5f));
        series = vf_fma(vf_mul(series, x), x, x);
        return vf_select_lt(x, vf_set(-0.25f), vf_sub(vf_exp(x), vf_set(1.0f)), series);
    }
};
// g sigmoid(1.702 g) (up + 1), where g is at most LIMIT and up within +-LIMIT: of GPT-OSS with 7, of Phi-3-small with 20. The
// order of the arguments keeps a NaN.
template <int LIMIT>
struct BoundedGate {
    static vf gated(vf g, vf up) {
        const vf limit = vf_set(float(LIMIT)), low = vf_set(float(-LIMIT)), one = vf_set(1.0f);
        const vf gate = vf_select_lt(limit, g, limit, g);
        const vf below = vf_select_lt(limit, up, limit, up), value = vf_select_lt(below, low, low, below);
        const vf share = vf_add(one, vf_exp(vf_mul(gate, vf_set(-1.702f))));
        return vf_mul(vf_div(gate, share), vf_add(value, one));
    }
};

template <class Act>
static inline vf gated(vf g, vf up) {
    if constexpr (requires { Act::gated(g, up); }) return Act::gated(g, up);
    else return vf_mul(Act::of(g), up);
}

// out = act(x), times `up` if there is one.
template <class Act, bool GATED>
static void act_range(float* out, const float* x, const float* up, int64_t count) {
    int64_t i = 0;
    for (; i + VW <= count; i += VW) {
        if constexpr (GATED) vf_store(out + i, gated<Act>(vf_load(x + i), vf_load(up + i)));
        else vf_store(out + i, Act::of(vf_load(x + i)));
    }
    if (i < count) {
        const int n = int(count - i);
        const vf last = vf_load_n(x + i, n, 0.0f);
        if constexpr (GATED) vf_store_n(out + i, gated<Act>(last, vf_load_n(up + i, n, 0.0f)), n);
        else vf_store_n(out + i, Act::of(last), n);
    }
}

template <bool GATED>
static void act_range(float* out, const float* x, const float* up, int64_t count, Activation kind) {
    switch (kind) {
        case Activation::silu: return act_range<Silu, GATED>(out, x, up, count);
        case Activation::gelu_tanh: return act_range<GeluTanh, GATED>(out, x, up, count);
        case Activation::gelu: return act_range<Gelu, GATED>(out, x, up, count);
        case Activation::relu: return act_range<Relu, GATED>(out, x, up, count);
        case Activation::quick_gelu: return act_range<QuickGelu, GATED>(out, x, up, count);
        case Activation::relu2: return act_range<Relu2, GATED>(out, x, up, count);
        case Activation::xielu: return;  // has parameters: `xielu_rows`
        case Activation::swiglu_oai:
            if constexpr (GATED) act_range<BoundedGate<7>, GATED>(out, x, up, count);
            return;
        case Activation::gegelu:
            if constexpr (GATED) act_range<BoundedGate<20>, GATED>(out, x, up, count);
            return;
    }
}

// Rows lie so many values apart. `up` counts only if GATED.
template <bool GATED>
static void act_rows(float* out, const float* x, int64_t x_stride, const float* up, int64_t up_stride, int64_t rows, int64_t width,
                     Activation kind) {
    // Narrow rows share a task, wide ones are cut.
    const int64_t pieces = (width + kTaskColumns - 1) / kTaskColumns;
    const int64_t rows_a_task = width < kTaskColumns ? kTaskColumns / width : 1;
    const int64_t row_tasks = (rows + rows_a_task - 1) / rows_a_task;
    parallel_for(row_tasks * pieces, [&](int64_t task, int) {
        const int64_t column = task % pieces * kTaskColumns;
        const int64_t count = width - column < kTaskColumns ? width - column : kTaskColumns;
        const int64_t first = task / pieces * rows_a_task;
        for (int64_t row = first; row < first + rows_a_task && row < rows; ++row) {
            const float *from = x + row * x_stride + column, *times = GATED ? up + row * up_stride + column : nullptr;
            act_range<GATED>(out + row * width + column, from, times, count, kind);
        }
    });
}

static void act_mul(float* out, const float* gate_up, int64_t rows, int64_t width, Activation kind) {
    act_rows<true>(out, gate_up, 2 * width, gate_up + width, 2 * width, rows, width, kind);
}

static void act_times(float* out, const float* x, const float* y, int64_t y_stride, int64_t rows, int64_t width, Activation kind) {
    act_rows<true>(out, x, width, y, y_stride, rows, width, kind);
}

static void xielu_rows(float* out, const float* x, int64_t count, const float* parameters) {
    const Xielu act(parameters);
    parallel_for((count + kTaskColumns - 1) / kTaskColumns, [&](int64_t task, int) {
        const int64_t end = (task + 1) * kTaskColumns < count ? (task + 1) * kTaskColumns : count;
        int64_t i = task * kTaskColumns;
        for (; i + VW <= end; i += VW) vf_store(out + i, act(vf_load(x + i)));
        if (i < end) vf_store_n(out + i, act(vf_load_n(x + i, int(end - i), 0.0f)), int(end - i));
    });
}

static void act(float* out, const float* x, int64_t rows, int64_t width, Activation kind, const float* parameters) {
    if (kind == Activation::xielu) return xielu_rows(out, x, rows * width, parameters);
    act_rows<false>(out, x, width, nullptr, 0, rows, width, kind);
}

extern const ActivationKernels activation_kernels = {act_mul, act_times, act};

}  // namespace OCTAVO_ISA
}  // namespace octavo
