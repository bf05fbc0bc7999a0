// Integer vectors for the packed GEMM: `vi` covers VC columns of a tile, one in each 32-bit lane.
//
// A loaded vector holds 4 bytes (or 8 nibbles) of consecutive k in a lane; the dot product takes them two at a time, as
// 16-bit halves of the lane. A mask or a shift of those halves gives k + 0 and k + 2, or k + 1 and k + 3: activations are stored in that order.
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
OCTAVO_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
OCTAVO_INLINE vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
OCTAVO_INLINE vi vi_and(vi a, uint32_t mask) { return _mm512_and_si512(a, _mm512_set1_epi32(int(mask))); }
template <int N>
OCTAVO_INLINE vi vi_shift16(vi a) { return _mm512_srli_epi16(a, N); }
template <int N>
OCTAVO_INLINE vi vi_shift32(vi a) { return _mm512_srai_epi32(a, N); }
OCTAVO_INLINE vf vi_to_f32(vi a) { return _mm512_cvtepi32_ps(a); }
OCTAVO_INLINE vi vi_dot(vi w, vi a) { return _mm512_madd_epi16(w, a); }
#if defined(__AVX512VNNI__)
OCTAVO_INLINE vi vi_dot_add(vi acc, vi w, vi a) { return _mm512_dpwssd_epi32(acc, w, a); }
#else
OCTAVO_INLINE vi vi_dot_add(vi acc, vi w, vi a) { return _mm512_add_epi32(acc, _mm512_madd_epi16(w, a)); }
#endif

#elif defined(__AVX2__)

constexpr int VC = 8;
typedef __m256i vi;
OCTAVO_INLINE vi vi_load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
OCTAVO_INLINE void vi_store(void* p, vi a) { _mm256_storeu_si256((__m256i*)p, a); }
OCTAVO_INLINE vi vi_set(int32_t x) { return _mm256_set1_epi32(x); }
OCTAVO_INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
OCTAVO_INLINE vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
OCTAVO_INLINE vi vi_and(vi a, uint32_t mask) { return _mm256_and_si256(a, _mm256_set1_epi32(int(mask))); }
template <int N>
OCTAVO_INLINE vi vi_shift16(vi a) { return _mm256_srli_epi16(a, N); }
template <int N>
OCTAVO_INLINE vi vi_shift32(vi a) { return _mm256_srai_epi32(a, N); }
OCTAVO_INLINE vf vi_to_f32(vi a) { return _mm256_cvtepi32_ps(a); }
OCTAVO_INLINE vi vi_dot(vi w, vi a) { return _mm256_madd_epi16(w, a); }
OCTAVO_INLINE vi vi_dot_add(vi acc, vi w, vi a) { return _mm256_add_epi32(acc, _mm256_madd_epi16(w, a)); }

#else

constexpr int VC = 4;
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint16_t vu16 __attribute__((vector_size(16)));
OCTAVO_INLINE vi vi_load(const void* p) {
    vi a;
    memcpy(&a, p, 16);
    return a;
}
OCTAVO_INLINE void vi_store(void* p, vi a) { memcpy(p, &a, 16); }
OCTAVO_INLINE vi vi_set(int32_t x) { return vi{x, x, x, x}; }
OCTAVO_INLINE vi vi_add(vi a, vi b) { return a + b; }
OCTAVO_INLINE vi vi_sub(vi a, vi b) { return a - b; }
OCTAVO_INLINE vi vi_and(vi a, uint32_t mask) { return a & int32_t(mask); }
template <int N>
OCTAVO_INLINE vi vi_shift16(vi a) { return (vi)((vu16)a >> N); }
template <int N>
OCTAVO_INLINE vi vi_shift32(vi a) { return a >> N; }
OCTAVO_INLINE vf vi_to_f32(vi a) { return __builtin_convertvector(a, vf); }
// The sum of the two products of signed 16-bit halves in each lane.
OCTAVO_INLINE vi vi_dot(vi w, vi a) {
#if defined(__SSE2__)
    return (vi)_mm_madd_epi16((__m128i)w, (__m128i)a);
#else
    return ((w << 16) >> 16) * ((a << 16) >> 16) + (w >> 16) * (a >> 16);
#endif
}
OCTAVO_INLINE vi vi_dot_add(vi acc, vi w, vi a) { return acc + vi_dot(w, a); }

#endif

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

// Two activations in every lane.
OCTAVO_INLINE vi vi_bcast2(const int16_t* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return vi_set(x);
}

constexpr int NV = int(16 / VC);  // vectors of a step
static_assert(VC == VW);

}  // namespace OCTAVO_ISA
}  // namespace octavo
