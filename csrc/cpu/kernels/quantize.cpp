#include "kernels/linear_impl.h"

namespace octavo {
namespace OCTAVO_ISA {

namespace {

// Below this the quotient 127 / amax may overflow; the group counts as zero.
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

#if defined(__AVX2__)
// 32 values to int8; the sums of the two halves.
OCTAVO_INLINE void group_round(const float* x, float inv, int8_t* q, int32_t* sums) {
    const __m256 s = _mm256_set1_ps(inv);
    __m256i v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), s));
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    const __m256i ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i*)q, ordered);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), ordered);
    __m256i t = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    t = _mm256_add_epi32(t, _mm256_shuffle_epi32(t, 0x4e));
    t = _mm256_add_epi32(t, _mm256_shuffle_epi32(t, 0xb1));
    sums[0] = _mm256_extract_epi32(t, 0);
    sums[1] = _mm256_extract_epi32(t, 4);
}
#else
OCTAVO_INLINE void group_round(const float* x, float inv, int8_t* q, int32_t* sums) {
    for (int h = 0; h < 2; ++h) {
        int32_t sum = 0;
        for (int i = 16 * h; i < 16 * h + 16; i += VW) {
            float t[VW];
            vf_store(t, vf_round(vf_mul(vf_load(x + i), vf_set(inv))));
            for (int j = 0; j < VW; ++j) {
                q[i + j] = int8_t(t[j]);
                sum += int32_t(t[j]);
            }
        }
        sums[h] = sum;
    }
}
#endif

OCTAVO_INLINE void quantize_group(const float* x, int64_t row, int64_t g, const QuantizedRows& dst) {
    int8_t* q = dst.q + row * dst.ldq + g * kActGroup;
    const int64_t at = row * dst.groups + g;
    float amax, scale = 0.0f;
    bool finite;
    int32_t sums[2] = {0, 0};
    group_limits(x, &amax, &finite);
    if (finite && amax >= kTiny) {
        scale = amax / 127.0f;
        group_round(x, 127.0f / amax, q, sums);
    } else {
        memset(q, 0, kActGroup);
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
