// One float vector type per instruction-set level, so that most kernels are written once.
//
// `vf` holds VW floats (16 with AVX-512, 8 with AVX2, 4 otherwise). All functions are static, in namespace
// octavo::OCTAVO_ISA. Reductions over the lanes have one fixed order. What is not said to be fused is not.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define OCTAVO_INLINE static inline __attribute__((always_inline))

namespace octavo {
namespace OCTAVO_ISA {

// Bit patterns.
OCTAVO_INLINE uint32_t f32_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
OCTAVO_INLINE float bits_f32(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}
OCTAVO_INLINE float bf16_to_f32(uint16_t h) { return bits_f32(uint32_t(h) << 16); }
// Nearest even; a NaN stays a NaN.
OCTAVO_INLINE uint16_t f32_to_bf16(float x) {
    const uint32_t u = f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 0x40u);
    return uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
#if defined(__AVX2__)
OCTAVO_INLINE float f16_to_f32(uint16_t h) { return _cvtsh_ss(h); }
OCTAVO_INLINE uint16_t f32_to_f16(float x) { return _cvtss_sh(x, 0); }
#elif defined(__aarch64__)
OCTAVO_INLINE float f16_to_f32(uint16_t h) {
    __fp16 v;
    memcpy(&v, &h, 2);
    return float(v);
}
OCTAVO_INLINE uint16_t f32_to_f16(float x) {
    const __fp16 v = __fp16(x);
    uint16_t h;
    memcpy(&h, &v, 2);
    return h;
}
#else
OCTAVO_INLINE float f16_to_f32(uint16_t h) {
    // Scaling by 2^112 moves the exponent's bias; subnormals come out right because the product is exact.
    const uint32_t sign = uint32_t(h & 0x8000u) << 16, body = uint32_t(h & 0x7fffu) << 13;
    if ((h & 0x7c00u) == 0x7c00u) return bits_f32(sign | 0x7f800000u | body);
    return bits_f32(sign | f32_bits(bits_f32(body) * bits_f32(0x77800000u)));
}
OCTAVO_INLINE uint16_t f32_to_f16(float x) {
    const uint32_t u = f32_bits(x), a = u & 0x7fffffffu;
    const uint16_t sign = uint16_t((u >> 16) & 0x8000u);
    if (a > 0x7f800000u) return sign | 0x7e00u;
    if (a >= 0x477ff000u) return sign | 0x7c00u;
    if (a < 0x38800000u) return sign | uint16_t(f32_bits(bits_f32(a) + 0.5f) - 0x3f000000u);
    return sign | uint16_t((a + 0xfffu + ((a >> 13) & 1u) - 0x38000000u) >> 13);
}
#endif

#if defined(__AVX512F__)

constexpr int VW = 16;
typedef __m512 vf;
OCTAVO_INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
OCTAVO_INLINE vf vf_zero() { return _mm512_setzero_ps(); }
OCTAVO_INLINE vf vf_load(const float* p) { return _mm512_loadu_ps(p); }
OCTAVO_INLINE void vf_store(float* p, vf a) { _mm512_storeu_ps(p, a); }
OCTAVO_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
OCTAVO_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
OCTAVO_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
OCTAVO_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
OCTAVO_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
OCTAVO_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
OCTAVO_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
OCTAVO_INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
OCTAVO_INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
OCTAVO_INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2^n for integral n in [-126, 127].
OCTAVO_INLINE vf vf_pow2i(vf n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
// Lane by lane a < b ? x : y (y where either is NaN).
OCTAVO_INLINE vf vf_select_lt(vf a, vf b, vf x, vf y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x); }
OCTAVO_INLINE bool vf_any_gt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
OCTAVO_INLINE vf vf_load_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
OCTAVO_INLINE vf vf_load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
OCTAVO_INLINE vf vf_load_i8(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))); }

#elif defined(__AVX2__)

constexpr int VW = 8;
typedef __m256 vf;
OCTAVO_INLINE vf vf_set(float x) { return _mm256_set1_ps(x); }
OCTAVO_INLINE vf vf_zero() { return _mm256_setzero_ps(); }
OCTAVO_INLINE vf vf_load(const float* p) { return _mm256_loadu_ps(p); }
OCTAVO_INLINE void vf_store(float* p, vf a) { _mm256_storeu_ps(p, a); }
OCTAVO_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
OCTAVO_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
OCTAVO_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
OCTAVO_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
OCTAVO_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
OCTAVO_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
OCTAVO_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
OCTAVO_INLINE vf vf_abs(vf a) { return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }
OCTAVO_INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
OCTAVO_INLINE vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
OCTAVO_INLINE vf vf_pow2i(vf n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
OCTAVO_INLINE vf vf_select_lt(vf a, vf b, vf x, vf y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
OCTAVO_INLINE bool vf_any_gt(vf a, vf b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
OCTAVO_INLINE vf vf_load_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
OCTAVO_INLINE vf vf_load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
OCTAVO_INLINE vf vf_load_i8(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }

#else

constexpr int VW = 4;
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vf_int __attribute__((vector_size(16)));
OCTAVO_INLINE vf vf_set(float x) { return vf{x, x, x, x}; }
OCTAVO_INLINE vf vf_zero() { return vf{0, 0, 0, 0}; }
OCTAVO_INLINE vf vf_load(const float* p) {
    vf a;
    memcpy(&a, p, 16);
    return a;
}
OCTAVO_INLINE void vf_store(float* p, vf a) { memcpy(p, &a, 16); }
OCTAVO_INLINE vf vf_add(vf a, vf b) { return a + b; }
OCTAVO_INLINE vf vf_sub(vf a, vf b) { return a - b; }
OCTAVO_INLINE vf vf_mul(vf a, vf b) { return a * b; }
OCTAVO_INLINE vf vf_div(vf a, vf b) { return a / b; }
#if defined(__aarch64__)
OCTAVO_INLINE vf vf_fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
// This level has no fused multiply-add: two roundings.
OCTAVO_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
#endif
OCTAVO_INLINE vf vf_blend(vf_int mask, vf x, vf y) { return (vf)((mask & (vf_int)x) | (~mask & (vf_int)y)); }
OCTAVO_INLINE vf vf_max(vf a, vf b) { return vf_blend(a > b, a, b); }
OCTAVO_INLINE vf vf_min(vf a, vf b) { return vf_blend(a < b, a, b); }
OCTAVO_INLINE vf vf_abs(vf a) { return (vf)((vf_int)a & 0x7fffffff); }
OCTAVO_INLINE vf vf_sqrt(vf a) { return vf{sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
// Nearest even for |a| < 2^22, which is all that exp and the quantiser ask for.
OCTAVO_INLINE vf vf_round(vf a) {
    const vf magic = vf_set(12582912.0f);
    return (a + magic) - magic;
}
OCTAVO_INLINE vf vf_pow2i(vf n) { return (vf)((__builtin_convertvector(n, vf_int) + 127) << 23); }
OCTAVO_INLINE vf vf_select_lt(vf a, vf b, vf x, vf y) { return vf_blend(a < b, x, y); }
OCTAVO_INLINE bool vf_any_gt(vf a, vf b) {
    const vf_int m = a > b;
    return (m[0] | m[1] | m[2] | m[3]) != 0;
}
OCTAVO_INLINE vf vf_load_bf16(const uint16_t* p) { return vf{bf16_to_f32(p[0]), bf16_to_f32(p[1]), bf16_to_f32(p[2]), bf16_to_f32(p[3])}; }
OCTAVO_INLINE vf vf_load_f16(const uint16_t* p) { return vf{f16_to_f32(p[0]), f16_to_f32(p[1]), f16_to_f32(p[2]), f16_to_f32(p[3])}; }
OCTAVO_INLINE vf vf_load_i8(const int8_t* p) { return vf{float(p[0]), float(p[1]), float(p[2]), float(p[3])}; }

#endif

// The first n (0 <= n < VW) floats; the other lanes are `fill` and are neither read nor written.
OCTAVO_INLINE vf vf_load_n(const float* p, int n, float fill) {
    float t[VW];
    for (int i = 0; i < VW; ++i) t[i] = i < n ? p[i] : fill;
    return vf_load(t);
}
OCTAVO_INLINE void vf_store_n(float* p, vf a, int n) {
    float t[VW];
    vf_store(t, a);
    for (int i = 0; i < n; ++i) p[i] = t[i];
}

// Lane reductions: halves are added pairwise, the upper half to the lower one, until a lane is left.
#if defined(__AVX2__)
OCTAVO_INLINE float vf_sum4(__m128 a) {
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps(a, a, 1)));
}
OCTAVO_INLINE float vf_hmax4(__m128 a) {
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps(a, a, 1)));
}
OCTAVO_INLINE __m128 vf_halves(__m256 a, __m128 (*op)(__m128, __m128)) {
    return op(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}
OCTAVO_INLINE __m128 add4(__m128 a, __m128 b) { return _mm_add_ps(a, b); }
OCTAVO_INLINE __m128 max4(__m128 a, __m128 b) { return _mm_max_ps(a, b); }
#if defined(__AVX512F__)
OCTAVO_INLINE __m256 vf_upper(vf a) { return _mm512_extractf32x8_ps(a, 1); }
OCTAVO_INLINE float vf_sum(vf a) { return vf_sum4(vf_halves(_mm256_add_ps(_mm512_castps512_ps256(a), vf_upper(a)), add4)); }
OCTAVO_INLINE float vf_hmax(vf a) { return vf_hmax4(vf_halves(_mm256_max_ps(_mm512_castps512_ps256(a), vf_upper(a)), max4)); }
#else
OCTAVO_INLINE float vf_sum(vf a) { return vf_sum4(vf_halves(a, add4)); }
OCTAVO_INLINE float vf_hmax(vf a) { return vf_hmax4(vf_halves(a, max4)); }
#endif
#else
OCTAVO_INLINE float vf_sum(vf a) {
    a = vf{a[0] + a[2], a[1] + a[3], 0, 0};
    return a[0] + a[1];
}
OCTAVO_INLINE float vf_hmax(vf a) {
    float high = a[0];
    for (int i = 1; i < VW; ++i) high = high > a[i] ? high : a[i];
    return high;
}
#endif

// e^x within 2 ulp. 0 below -87.3, +inf above 88.7; a NaN gives a NaN.
OCTAVO_INLINE vf vf_exp(vf x) {
    const vf lo = vf_set(-87.33654f), hi = vf_set(88.72283f);
    const vf c = vf_min(hi, vf_max(lo, x));
    const vf n = vf_round(vf_mul(c, vf_set(1.44269504f)));
    vf r = vf_fma(n, vf_set(-0.693359375f), c);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set(1.0f));
    // 2^n in two factors: n reaches 128 just below the overflow.
    const vf half = vf_round(vf_mul(n, vf_set(0.5f)));
    vf y = vf_mul(vf_mul(p, vf_pow2i(half)), vf_pow2i(vf_sub(n, half)));
    y = vf_select_lt(x, lo, vf_zero(), y);
    y = vf_select_lt(hi, x, vf_set(INFINITY), y);
    // x - x is 0 for every finite x and NaN for a NaN; the infinities were decided above.
    return vf_select_lt(vf_abs(x), vf_set(INFINITY), y, vf_select_lt(vf_zero(), x, vf_set(INFINITY), vf_select_lt(x, vf_zero(), vf_zero(), x)));
}

// x sigmoid(x).
OCTAVO_INLINE vf vf_silu(vf x) { return vf_div(x, vf_add(vf_set(1.0f), vf_exp(vf_sub(vf_zero(), x)))); }

}  // namespace OCTAVO_ISA
}  // namespace octavo
