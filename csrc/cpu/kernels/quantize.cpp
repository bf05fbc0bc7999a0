#include "kernels/linear_impl.h"

namespace octavo {
namespace OCTAVO_ISA {

namespace {

// Below this the quotient 32767 / amax may overflow; the group counts as zero.
constexpr float kTiny = 1e-30f;

OCTAVO_INLINE void group_limits(const float* x, float* amax, bool* finite) {
    vf m = vf_zero(), z = vf_zero();
    for (int i = 0; i < kActGroup; i += VW) {
        const vf v = vf_load(x + i);
        m = vf_max(m, vf_abs(v));
        z = vf_add(z, vf_mul(v, vf_zero()));  // a NaN or an infinity leaves a NaN
    }
    const float zero = vf_sum(z);
    *amax = vf_hmax(m);
    *finite = zero == zero;
}

// 32 values to 16 bits, each four in the order 0 2 1 3; the sums of the two halves.
#if defined(__AVX2__)
OCTAVO_INLINE void group_round(const float* x, float inv, int16_t* q, int32_t* sums) {
    const __m256 s = _mm256_set1_ps(inv);
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                           0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    for (int h = 0; h < 2; ++h) {
        const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 16 * h), s));
        const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 16 * h + 8), s));
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        _mm256_storeu_si256((__m256i*)(q + 16 * h), _mm256_shuffle_epi8(packed, order));
        const __m256i pairs = _mm256_add_epi32(a, b);
        __m128i t = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
        sums[h] = _mm_cvtsi128_si32(t);
    }
}
#else
OCTAVO_INLINE void group_round(const float* x, float inv, int16_t* q, int32_t* sums) {
    constexpr int order[4] = {0, 2, 1, 3};
    for (int h = 0; h < 2; ++h) {
        int32_t sum = 0;
        for (int i = 16 * h; i < 16 * h + 16; i += VW) {
            float t[VW];
            vf_store(t, vf_round(vf_mul(vf_load(x + i), vf_set(inv))));
            for (int j = 0; j < VW; ++j) {
                q[i + j / 4 * 4 + order[j % 4]] = int16_t(t[j]);
                sum += int32_t(t[j]);
            }
        }
        sums[h] = sum;
    }
}
#endif

OCTAVO_INLINE void quantize_group(const float* x, int64_t row, int64_t g, const QuantizedRows& dst) {
    int16_t* q = dst.q + row * dst.ldq + g * kActGroup;
    const int64_t at = row * dst.groups + g;
    float amax, scale = 0.0f;
    bool finite;
    int32_t sums[2] = {0, 0};
    group_limits(x, &amax, &finite);
    if (finite && amax >= kTiny) {
        scale = amax / kActLimit;
        group_round(x, kActLimit / amax, q, sums);
    } else {
        memset(q, 0, kActGroup * sizeof(int16_t));
        if (!finite) scale = bits_f32(0x7fc00000u);
    }
    dst.scale[at] = scale;
    dst.sum[at] = sums[0] + sums[1];
    dst.fsum[at] = scale * float(sums[0] + sums[1]);
    for (int h = 0; h < 2; ++h) {
        dst.sum16[2 * at + h] = sums[h];
        dst.fsum16[2 * at + h] = scale * float(sums[h]);
    }
}

}  // namespace

void quantize_rows(const float* x, int64_t ldx, int64_t K, int64_t row0, int64_t row1, const QuantizedRows& dst) {
    const int64_t whole = K / kActGroup;
    for (int64_t row = row0; row < row1; ++row) {
        const float* src = x + row * ldx;
        for (int64_t g = 0; g < whole; ++g) quantize_group(src + g * kActGroup, row, g, dst);
        if (whole < dst.groups) {
            float tail[kActGroup] = {};
            memcpy(tail, src + whole * kActGroup, size_t(K - whole * kActGroup) * sizeof(float));
            quantize_group(tail, row, whole, dst);
        }
    }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
