#include "kernels/activation.h"

#include "pool.h"
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

// Columns of one task.
constexpr int64_t kTaskColumns = 4096;

struct Silu {
    static vf of(vf g) { return vf_div(g, vf_add(vf_set(1.0f), vf_exp(vf_sub(vf_zero(), g)))); }
};

// 0.5 (1 + tanh z) = 1 / (1 + e^(-2z)) with z = sqrt(2 / pi) (g + 0.044715 g^3).
struct GeluTanh {
    static vf of(vf g) {
        const vf cubic = vf_fma(vf_mul(vf_mul(g, g), vf_set(0.044715f)), g, g);
        return vf_div(g, vf_add(vf_set(1.0f), vf_exp(vf_mul(cubic, vf_set(-1.5957691216f)))));
    }
};

template <class Act>
static void act_mul_range(float* out, const float* gate, const float* up, int64_t count) {
    int64_t i = 0;
    for (; i + VW <= count; i += VW) vf_store(out + i, vf_mul(Act::of(vf_load(gate + i)), vf_load(up + i)));
    if (i < count) {
        const int n = int(count - i);
        vf_store_n(out + i, vf_mul(Act::of(vf_load_n(gate + i, n, 0.0f)), vf_load_n(up + i, n, 0.0f)), n);
    }
}

static void act_mul(float* out, const float* gate_up, int64_t rows, int64_t width, Activation kind) {
    // Narrow rows share a task, wide ones are cut.
    const int64_t pieces = (width + kTaskColumns - 1) / kTaskColumns;
    const int64_t rows_a_task = width < kTaskColumns ? kTaskColumns / width : 1;
    const int64_t row_tasks = (rows + rows_a_task - 1) / rows_a_task;
    parallel_for(row_tasks * pieces, [&](int64_t task, int) {
        const int64_t column = task % pieces * kTaskColumns;
        const int64_t count = width - column < kTaskColumns ? width - column : kTaskColumns;
        const int64_t first = task / pieces * rows_a_task;
        for (int64_t row = first; row < first + rows_a_task && row < rows; ++row) {
            const float* gate = gate_up + row * 2 * width + column;
            float* to = out + row * width + column;
            if (kind == Activation::silu) act_mul_range<Silu>(to, gate, gate + width, count);
            else act_mul_range<GeluTanh>(to, gate, gate + width, count);
        }
    });
}

extern const ActivationKernels activation_kernels = {act_mul};

}  // namespace OCTAVO_ISA
}  // namespace octavo
