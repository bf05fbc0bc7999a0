// Float8 of caches: e4m3 (no infinity, largest value 448) and e5m2 (an f16 cut short, largest finite value 57344).
#pragma once

#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

// What loads of e4m3 give is so many times smaller: its fields are read as those of an f16, whose bias is 15 and not 7.
constexpr float kE4M3Factor = 256.0f;

// The magnitude of a finite float as a float8, to nearest even: MANTISSA bits of it, exponents from -BIAS + 1 on, below which
// steps are even.
template <int MANTISSA, int BIAS>
OCTAVO_INLINE uint32_t f8_magnitude(uint32_t a) {
    constexpr int kCut = 23 - MANTISSA;
    constexpr uint32_t kSmallestNormal = uint32_t(127 - BIAS + 1) << 23;
    // Of a float this large the last bit counts as much as one of the smallest float8.
    constexpr uint32_t kRounder = uint32_t(127 - BIAS + 1 + kCut) << 23;
    if (a < kSmallestNormal) return f32_bits(bits_f32(a) + bits_f32(kRounder)) - kRounder;
    return (a + ((1u << (kCut - 1)) - 1) + (a >> kCut & 1) - (uint32_t(127 - BIAS) << 23)) >> kCut;
}

// To nearest even. What is beyond the largest value becomes it; a NaN stays one.
template <int MANTISSA, int BIAS>
OCTAVO_INLINE uint8_t f32_to_f8(float x, float largest, uint32_t largest_code) {
    const uint32_t u = f32_bits(x), a = u & 0x7fffffffu, sign = u >> 24 & 0x80u;
    if (a > 0x7f800000u) return uint8_t(sign | 0x7fu);
    return uint8_t(sign | (a >= f32_bits(largest) ? largest_code : f8_magnitude<MANTISSA, BIAS>(a)));
}
OCTAVO_INLINE uint8_t f32_to_e4m3(float x) { return f32_to_f8<3, 7>(x, 448.0f, 0x7e); }
OCTAVO_INLINE uint8_t f32_to_e5m2(float x) { return f32_to_f8<2, 15>(x, 57344.0f, 0x7b); }

#if defined(__AVX512F__)
OCTAVO_INLINE vf vf_load_e5m2(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p)), 8));
}
// VW values, each divided by kE4M3Factor. A NaN is a NaN: the one code of all ones.
OCTAVO_INLINE vf vf_load_e4m3(const uint8_t* p) {
    const __m256i w = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)), 7);
    const __m256i v = _mm256_and_si256(w, _mm256_set1_epi16(int16_t(0xbfff))), nan = _mm256_set1_epi16(0x3f80);
    const __mmask16 is_nan = _mm256_cmpeq_epi16_mask(_mm256_and_si256(v, nan), nan);
    return _mm512_cvtph_ps(_mm256_mask_add_epi16(v, is_nan, v, _mm256_set1_epi16(0x4000)));
}
#elif defined(__AVX2__)
OCTAVO_INLINE vf vf_load_e5m2(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i*)p)), 8));
}
OCTAVO_INLINE vf vf_load_e4m3(const uint8_t* p) {
    const __m128i w = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)p)), 7);
    const __m128i v = _mm_and_si128(w, _mm_set1_epi16(int16_t(0xbfff))), nan = _mm_set1_epi16(0x3f80);
    const __m128i is_nan = _mm_cmpeq_epi16(_mm_and_si128(v, nan), nan);
    return _mm256_cvtph_ps(_mm_or_si128(v, _mm_and_si128(is_nan, _mm_set1_epi16(0x4000))));
}
#else
OCTAVO_INLINE vf vf_load_e5m2(const uint8_t* p) {
    const auto value = [&](int i) { return f16_to_f32(uint16_t(p[i] << 8)); };
    return vf{value(0), value(1), value(2), value(3)};
}
OCTAVO_INLINE vf vf_load_e4m3(const uint8_t* p) {
    const auto value = [&](int i) {
        const uint32_t magnitude = p[i] & 0x7fu;
        return f16_to_f32(uint16_t((p[i] & 0x80u) << 8 | (magnitude == 0x7f ? 0x7f80u : magnitude << 7)));
    };
    return vf{value(0), value(1), value(2), value(3)};
}
#endif

}  // namespace OCTAVO_ISA
}  // namespace octavo
