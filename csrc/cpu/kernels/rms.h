// Sums along one row, in an order of additions that depends on the width alone.
#pragma once

#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

static inline float mean_square(const float* x, int64_t width) {
    vf sums[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    int64_t i = 0;
    for (; i + 4 * VW <= width; i += 4 * VW)
        for (int j = 0; j < 4; ++j) {
            const vf a = vf_load(x + i + j * VW);
            sums[j] = vf_fma(a, a, sums[j]);
        }
    for (; i < width; i += VW) {
        const vf a = width - i >= VW ? vf_load(x + i) : vf_load_n(x + i, int(width - i), 0.0f);
        sums[0] = vf_fma(a, a, sums[0]);
    }
    return vf_sum(vf_add(vf_add(sums[0], sums[1]), vf_add(sums[2], sums[3]))) / float(width);
}

static inline float inverse_rms(const float* x, int64_t width, float eps) { return 1.0f / sqrtf(mean_square(x, width) + eps); }

// out = x * scale * weight. out may be x.
static inline void scale_row(float* out, const float* x, const float* weight, float scale, int64_t width) {
    const vf s = vf_set(scale);
    int64_t i = 0;
    for (; i + VW <= width; i += VW) vf_store(out + i, vf_mul(vf_mul(vf_load(x + i), s), vf_load(weight + i)));
    for (; i < width; ++i) out[i] = x[i] * scale * weight[i];
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
