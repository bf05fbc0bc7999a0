// Integer vectors for the packed GEMM: `vi` covers VC columns of a tile, one in each 32-bit lane.
//
// A lane holds four values of consecutive k, a byte each: unsigned weights meet signed activations, and the four products
// are added to the lane (vi_dot4). Or it holds two of 16 bits, both signed (vi_pairs).
#pragma once

#include "simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace octavo {
namespace OCTAVO_ISA {

#if defined(__AVX512F__)

constexpr int VC = 16;
typedef __m512i vi;
OCTAVO_INLINE vi vi_load(const void* p) { return _mm512_loadu_si512(p); }
OCTAVO_INLINE void vi_store(void* p, vi a) { _mm512_storeu_si512(p, a); }
OCTAVO_INLINE vi vi_set(int32_t x) { return _mm512_set1_epi32(x); }
OCTAVO_INLINE vi vi_zero() { return _mm512_setzero_si512(); }
OCTAVO_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
OCTAVO_INLINE vi vi_and(vi a, uint32_t mask) { return _mm512_and_si512(a, _mm512_set1_epi32(int(mask))); }
OCTAVO_INLINE vf vi_to_f32(vi a) { return _mm512_cvtepi32_ps(a); }
#if defined(__AVX512VNNI__)
OCTAVO_INLINE vi vi_dot4(vi acc, vi w, vi a) { return _mm512_dpbusd_epi32(acc, w, a); }
OCTAVO_INLINE vi vi_pairs(vi acc, vi w, vi a) { return _mm512_dpwssd_epi32(acc, w, a); }
#else
OCTAVO_INLINE vi vi_pairs(vi acc, vi w, vi a) { return _mm512_add_epi32(acc, _mm512_madd_epi16(w, a)); }
OCTAVO_INLINE vi vi_dot2(vi w, vi a) { return _mm512_maddubs_epi16(w, a); }
OCTAVO_INLINE vi vi_add16(vi a, vi b) { return _mm512_add_epi16(a, b); }
OCTAVO_INLINE vi vi_sum2(vi a) { return _mm512_madd_epi16(a, _mm512_set1_epi16(1)); }
#endif

#elif defined(__AVX2__)

constexpr int VC = 8;
typedef __m256i vi;
OCTAVO_INLINE vi vi_load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
OCTAVO_INLINE void vi_store(void* p, vi a) { _mm256_storeu_si256((__m256i*)p, a); }
OCTAVO_INLINE vi vi_set(int32_t x) { return _mm256_set1_epi32(x); }
OCTAVO_INLINE vi vi_zero() { return _mm256_setzero_si256(); }
OCTAVO_INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
OCTAVO_INLINE vi vi_and(vi a, uint32_t mask) { return _mm256_and_si256(a, _mm256_set1_epi32(int(mask))); }
OCTAVO_INLINE vf vi_to_f32(vi a) { return _mm256_cvtepi32_ps(a); }
OCTAVO_INLINE vi vi_pairs(vi acc, vi w, vi a) { return _mm256_add_epi32(acc, _mm256_madd_epi16(w, a)); }
OCTAVO_INLINE vi vi_dot2(vi w, vi a) { return _mm256_maddubs_epi16(w, a); }
OCTAVO_INLINE vi vi_add16(vi a, vi b) { return _mm256_add_epi16(a, b); }
OCTAVO_INLINE vi vi_sum2(vi a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }

#else

constexpr int VC = 4;
typedef int32_t vi __attribute__((vector_size(16)));
typedef int16_t vi16 __attribute__((vector_size(16)));
OCTAVO_INLINE vi vi_load(const void* p) {
    vi a;
    memcpy(&a, p, 16);
    return a;
}
OCTAVO_INLINE void vi_store(void* p, vi a) { memcpy(p, &a, 16); }
OCTAVO_INLINE vi vi_set(int32_t x) { return vi{x, x, x, x}; }
OCTAVO_INLINE vi vi_zero() { return vi{0, 0, 0, 0}; }
OCTAVO_INLINE vi vi_add(vi a, vi b) { return a + b; }
OCTAVO_INLINE vi vi_and(vi a, uint32_t mask) { return a & int32_t(mask); }
OCTAVO_INLINE vf vi_to_f32(vi a) { return __builtin_convertvector(a, vf); }
OCTAVO_INLINE vi vi_dot4(vi acc, vi w, vi a) {
#if defined(__SSE2__)
    const vi16 even = ((vi16)a << 8) >> 8, odd = (vi16)a >> 8;
    const vi low = vi_and(w, 0x00ff00ffu), high = vi_and(w >> 8, 0x00ff00ffu);
    return acc + (vi)_mm_madd_epi16((__m128i)low, (__m128i)even) + (vi)_mm_madd_epi16((__m128i)high, (__m128i)odd);
#else
    for (int i = 0; i < 4; ++i) acc += ((w >> 8 * i) & 255) * ((a << (24 - 8 * i)) >> 24);
    return acc;
#endif
}
OCTAVO_INLINE vi vi_pairs(vi acc, vi w, vi a) {
#if defined(__SSE2__)
    return acc + (vi)_mm_madd_epi16((__m128i)w, (__m128i)a);
#else
    return acc + ((w << 16) >> 16) * ((a << 16) >> 16) + (w >> 16) * (a >> 16);
#endif
}

#endif

// How the dot products of bytes are built. Without an instruction for four of them two are added in 16 bits, which
// saturates: 8-bit weights have to be split.
#if defined(__AVX512VNNI__) || !defined(__AVX2__)
constexpr bool kDot4 = true;
// Never called; they let a kernel choose between the two ways without the preprocessor.
OCTAVO_INLINE vi vi_dot2(vi, vi) { return vi_zero(); }
OCTAVO_INLINE vi vi_add16(vi a, vi) { return a; }
OCTAVO_INLINE vi vi_sum2(vi a) { return a; }
#else
constexpr bool kDot4 = false;
OCTAVO_INLINE vi vi_dot4(vi acc, vi w, vi a) { return vi_add(acc, vi_sum2(vi_dot2(w, a))); }  // for 7-bit weights
#endif

OCTAVO_INLINE vi vi_or(vi a, vi b) { return a | b; }

// Left by n bits, or right if n is negative, in lanes of 32: what crosses a byte is for the caller to mask away.
OCTAVO_INLINE vi vi_shift(vi a, int n) {
    typedef uint32_t lanes __attribute__((vector_size(sizeof(vi))));
    return n >= 0 ? (vi)((lanes)a << n) : (vi)((lanes)a >> -n);
}

// Keeps a running sum in its register and in its order: GCC would otherwise gather the products of a whole unrolled group
// before it adds them, and spill them all.
OCTAVO_INLINE void vi_pin(vi& a) {
#if defined(__AVX512F__)
    asm("" : "+v"(a));
#elif defined(__AVX2__)
    asm("" : "+x"(a));
#else
    (void)a;
#endif
}

// Four bytes in every lane: as many activations, or two of 16 bits.
OCTAVO_INLINE vi vi_bcast4(const void* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return vi_set(x);
}

constexpr int NV = int(16 / VC);  // vectors of a tile's columns
static_assert(VC == VW);

}  // namespace OCTAVO_ISA
}  // namespace octavo
