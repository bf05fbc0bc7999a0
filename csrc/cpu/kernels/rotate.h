// The rotation of one head, and how caches hold what becomes of it.
#pragma once

#include "kernels/cache.h"
#include "kernels/float8.h"
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

struct ToF32 {
    typedef float T;
    static T of(float x) { return x; }
};
struct ToBF16 {
    typedef uint16_t T;
    static T of(float x) { return f32_to_bf16(x); }
};
struct ToF16 {
    typedef uint16_t T;
    static T of(float x) { return f32_to_f16(x); }
};

struct ToE4M3 {
    typedef uint8_t T;
    static T of(float x) { return f32_to_e4m3(x); }
};
struct ToE5M2 {
    typedef uint8_t T;
    static T of(float x) { return f32_to_e5m2(x); }
};

// int8 of one key or value of a head: code d goes to codes[d * step], and what it is times to *scale. What is not finite makes
// all of it NaN.
static inline void store_i8(int8_t* codes, int step, float* scale, const float* x, int dim) {
    float high = 0.0f;
    bool is_finite = true;
    for (int d = 0; d < dim; ++d) {
        const float a = fabsf(x[d]);
        is_finite &= a < INFINITY;
        high = a > high ? a : high;
    }
    *scale = is_finite ? high / 127.0f : NAN;
    const float inverse = is_finite && *scale > 0.0f ? 127.0f / high : 0.0f;
    for (int d = 0; d < dim; ++d) codes[d * step] = is_finite ? int8_t(nearbyintf(x[d] * inverse)) : int8_t(0);
}

// Pairs are (x[i], x[i + half]).
static inline void rotate(float* x, const float* cos_sin, int half) {
    const float *cos = cos_sin, *sin = cos_sin + half;
    int i = 0;
    for (; i + VW <= half; i += VW) {
        const vf a = vf_load(x + i), b = vf_load(x + half + i), c = vf_load(cos + i), s = vf_load(sin + i);
        vf_store(x + i, vf_sub(vf_mul(a, c), vf_mul(b, s)));
        vf_store(x + half + i, vf_add(vf_mul(b, c), vf_mul(a, s)));
    }
    for (; i < half; ++i) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cos[i] - b * sin[i];
        x[half + i] = b * cos[i] + a * sin[i];
    }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
