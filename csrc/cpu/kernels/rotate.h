// The rotation of one head, and the types that caches hold.
#pragma once

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
