// Integer vectors for the packed GEMM: `vi` covers VC columns of a tile, 4 bytes of consecutive k in each 32-bit lane.
#pragma once

#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

#if defined(__AVX512F__)

constexpr int VC = 16;
typedef __m512i vi;
OCTAVO_INLINE vi vi_load(const void* p) { return _mm512_loadu_si512(p); }
OCTAVO_INLINE vi vi_set(int32_t x) { return _mm512_set1_epi32(x); }
OCTAVO_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
OCTAVO_INLINE vi vi_low_nibbles(vi a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
OCTAVO_INLINE vi vi_high_nibbles(vi a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
OCTAVO_INLINE vf vi_to_f32(vi a) { return _mm512_cvtepi32_ps(a); }
#if !defined(__AVX512VNNI__)
OCTAVO_INLINE vi vi_maddubs(vi u, vi s) { return _mm512_maddubs_epi16(u, s); }
OCTAVO_INLINE vi vi_add16(vi a, vi b) { return _mm512_add_epi16(a, b); }
OCTAVO_INLINE vi vi_widen(vi a) { return _mm512_madd_epi16(a, _mm512_set1_epi16(1)); }
OCTAVO_INLINE vi vi_flip(vi a) { return _mm512_xor_si512(a, _mm512_set1_epi8(-128)); }
OCTAVO_INLINE vi vi_abs8(vi a) { return _mm512_abs_epi8(a); }
OCTAVO_INLINE vi vi_sign8(vi a, vi by) { return _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(by), _mm512_setzero_si512(), a); }
#endif

#elif defined(__AVX2__)

constexpr int VC = 8;
typedef __m256i vi;
OCTAVO_INLINE vi vi_load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
OCTAVO_INLINE vi vi_set(int32_t x) { return _mm256_set1_epi32(x); }
OCTAVO_INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
OCTAVO_INLINE vi vi_low_nibbles(vi a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
OCTAVO_INLINE vi vi_high_nibbles(vi a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
OCTAVO_INLINE vf vi_to_f32(vi a) { return _mm256_cvtepi32_ps(a); }
OCTAVO_INLINE vi vi_maddubs(vi u, vi s) { return _mm256_maddubs_epi16(u, s); }
OCTAVO_INLINE vi vi_add16(vi a, vi b) { return _mm256_add_epi16(a, b); }
OCTAVO_INLINE vi vi_widen(vi a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }
OCTAVO_INLINE vi vi_flip(vi a) { return _mm256_xor_si256(a, _mm256_set1_epi8(-128)); }
OCTAVO_INLINE vi vi_abs8(vi a) { return _mm256_abs_epi8(a); }
OCTAVO_INLINE vi vi_sign8(vi a, vi by) { return _mm256_sign_epi8(a, by); }

#else

constexpr int VC = 4;
typedef int32_t vi __attribute__((vector_size(16)));
typedef int16_t vi16 __attribute__((vector_size(16)));
typedef uint8_t vu8 __attribute__((vector_size(16)));
OCTAVO_INLINE vi vi_load(const void* p) {
    vi a;
    memcpy(&a, p, 16);
    return a;
}
OCTAVO_INLINE vi vi_set(int32_t x) { return vi{x, x, x, x}; }
OCTAVO_INLINE vi vi_add(vi a, vi b) { return a + b; }
OCTAVO_INLINE vi vi_low_nibbles(vi a) { return a & 0x0f0f0f0f; }
OCTAVO_INLINE vi vi_high_nibbles(vi a) { return (a >> 4) & 0x0f0f0f0f; }
OCTAVO_INLINE vf vi_to_f32(vi a) { return __builtin_convertvector(a, vf); }
OCTAVO_INLINE vi vi_flip(vi a) { return a ^ int32_t(0x80808080u); }
// acc + the four products of each lane; both operands signed, |w| <= 128 and |a| <= 127.
OCTAVO_INLINE vi vi_dot(vi acc, vi w, vi a) {
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
    return (vi)vdotq_s32((int32x4_t)acc, (int8x16_t)w, (int8x16_t)a);
#else
    const vi16 w16 = (vi16)w, a16 = (vi16)a;
    const vi16 pair = ((w16 << 8) >> 8) * ((a16 << 8) >> 8) + (w16 >> 8) * (a16 >> 8);
    return acc + (((vi)pair << 16) >> 16) + ((vi)pair >> 16);
#endif
}

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

OCTAVO_INLINE vi vi_bcast4(const int8_t* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return vi_set(x);
}

constexpr int NV = int(16 / VC);  // vectors of a step
static_assert(VC == VW);

}  // namespace OCTAVO_ISA
}  // namespace octavo
