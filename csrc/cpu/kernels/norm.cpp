#include "kernels/norm.h"

#include "kernels/rms.h"
#include "pool.h"

namespace octavo {
namespace OCTAVO_ISA {

// Floats that one task handles: below it the threads cost more than they bring.
constexpr int64_t kTaskFloats = 16384;

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

static void add(float* residual, const float* x, int64_t count) {
    parallel_for((count + kTaskFloats - 1) / kTaskFloats, [&](int64_t task, int) {
        const int64_t at = task * kTaskFloats, left = count - at;
        add_range(residual + at, x + at, left < kTaskFloats ? left : kTaskFloats);
    });
}

extern const NormKernels norm_kernels = {rms_norm, add_rms_norm, add};

}  // namespace OCTAVO_ISA
}  // namespace octavo
