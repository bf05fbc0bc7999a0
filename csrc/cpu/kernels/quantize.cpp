#include "kernels/linear_impl.h"

namespace octavo {
namespace OCTAVO_ISA {

namespace {

// Below this the quotient of the limit and the largest value may overflow; the group counts as zero.
constexpr float kTiny = 1e-30f;

// The largest absolute value of a group; adds its squares to `squares`.
OCTAVO_INLINE float group_limit(const float* x, vf& squares) {
    vf high = vf_zero();
    for (int i = 0; i < kActGroup; i += VW) {
        const vf v = vf_load(x + i);
        high = vf_max(high, vf_abs(v));
        squares = vf_fma(v, v, squares);
    }
    return vf_hmax(high);
}

// A group as bytes, and the sums of its halves.
struct Bytes {
    alignas(32) int8_t q[kActGroup];
    int32_t sums[2];
};

#if defined(__AVX2__)
OCTAVO_INLINE __m256i round_8(const float* x, __m256 inverse) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse)); }

// 16-bit values in the order of packs_epi32: 0-3 8-11 | 4-7 12-15 of each half.
OCTAVO_INLINE void round_group(const float* x, float inverse, __m256i* halves) {
    const __m256 s = _mm256_set1_ps(inverse);
    for (int h = 0; h < 2; ++h) halves[h] = _mm256_packs_epi32(round_8(x + 16 * h, s), round_8(x + 16 * h + 8, s));
}

OCTAVO_INLINE void to_bytes(const __m256i* halves, Bytes& to) {
    const __m256i mixed = _mm256_packs_epi16(halves[0], halves[1]);
    const __m256i q = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_store_si256((__m256i*)to.q, q);
    __m256i t = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q), _mm256_set1_epi16(1));
    t = _mm256_add_epi32(t, _mm256_shuffle_epi32(t, 0x4e));
    t = _mm256_add_epi32(t, _mm256_shuffle_epi32(t, 0xb1));
    to.sums[0] = _mm256_cvtsi256_si32(t);
    to.sums[1] = _mm256_extract_epi32(t, 4);
}

OCTAVO_INLINE void narrow(const float* x, float inverse, Bytes& high) {
    __m256i halves[2];
    round_group(x, inverse, halves);
    to_bytes(halves, high);
}

OCTAVO_INLINE void split(const float* x, float inverse, Bytes& high, Bytes& low) {
    __m256i whole[2], top[2];
    round_group(x, inverse, whole);
    for (int h = 0; h < 2; ++h) {
        top[h] = _mm256_srai_epi16(_mm256_add_epi16(whole[h], _mm256_set1_epi16(64)), 7);
        whole[h] = _mm256_sub_epi16(whole[h], _mm256_slli_epi16(top[h], 7));
    }
    to_bytes(top, high);
    to_bytes(whole, low);
}
#else
OCTAVO_INLINE void round_group(const float* x, float inverse, int32_t* to) {
    for (int i = 0; i < kActGroup; i += VW) {
        float t[VW];
        vf_store(t, vf_round(vf_mul(vf_load(x + i), vf_set(inverse))));
        for (int j = 0; j < VW; ++j) to[i + j] = int32_t(t[j]);
    }
}

OCTAVO_INLINE void to_bytes(const int32_t* values, Bytes& to) {
    to.sums[0] = to.sums[1] = 0;
    for (int i = 0; i < kActGroup; ++i) {
        to.q[i] = int8_t(values[i]);
        to.sums[i / 16] += values[i];
    }
}

OCTAVO_INLINE void narrow(const float* x, float inverse, Bytes& high) {
    int32_t values[kActGroup];
    round_group(x, inverse, values);
    to_bytes(values, high);
}

OCTAVO_INLINE void split(const float* x, float inverse, Bytes& high, Bytes& low) {
    int32_t values[kActGroup], top[kActGroup];
    round_group(x, inverse, values);
    for (int i = 0; i < kActGroup; ++i) {
        top[i] = (values[i] + 64) >> 7;
        values[i] -= top[i] * 128;
    }
    to_bytes(top, high);
    to_bytes(values, low);
}
#endif

// Row r of a block of R rows that begins at row0.
struct RowOfBlock {
    const QuantizedRows& dst;
    int64_t row0, r, R;

    void put(int64_t g, const Bytes& high, float scale, float sum0, float sum1, float sum) const {
        memcpy(dst.q + row0 * dst.ldq + (g * R + r) * kActGroup, high.q, kActGroup);
        dst.scale[row0 * dst.groups + g * R + r] = scale;
        dst.sum[row0 * dst.groups + g * R + r] = sum;
        float* halves = dst.sum16 + (row0 * dst.groups + g * R) * 2 + r;
        halves[0] = sum0;
        halves[R] = sum1;
    }
    void put_low(int64_t g, const Bytes& low) const { memcpy(dst.low + (row0 + r) * dst.ldq + g * kActGroup, low.q, kActGroup); }
};

// One group whose values are finite. True if it is wide.
OCTAVO_INLINE bool quantize_group(const float* x, float amax, float wide_above, int64_t g, const RowOfBlock& row) {
    Bytes high;
    if (amax < kTiny) {
        memset(&high, 0, sizeof high);
        row.put(g, high, 0.0f, 0.0f, 0.0f, 0.0f);
        return false;
    }
    if (!(amax > wide_above)) {
        narrow(x, kActLimit / amax, high);
        const float scale = amax / kActLimit;
        row.put(g, high, scale, scale * float(high.sums[0]), scale * float(high.sums[1]),
                scale * float(high.sums[0] + high.sums[1]));
        return false;
    }
    Bytes low;
    split(x, kWideLimit / amax, high, low);
    const float unit = amax / kWideLimit;
    const int32_t sums[2] = {high.sums[0] * 128 + low.sums[0], high.sums[1] * 128 + low.sums[1]};
    row.put(g, high, unit * 128.0f, unit * float(sums[0]), unit * float(sums[1]), unit * float(sums[0] + sums[1]));
    row.put_low(g, low);
    return true;
}

// Sees a row group by group; the last one may have to be filled up with zeros.
template <class F>
OCTAVO_INLINE void for_groups(const float* x, int64_t K, const F& each) {
    const int64_t whole = K / kActGroup;
    for (int64_t g = 0; g < whole; ++g) each(g, x + g * kActGroup);
    if (whole * kActGroup == K) return;
    alignas(64) float tail[kActGroup] = {};
    memcpy(tail, x + whole * kActGroup, size_t(K - whole * kActGroup) * sizeof(float));
    each(whole, tail);
}

static bool is_finite(const float* x, int64_t K) {
    for (int64_t k = 0; k < K; ++k)
        if (!(fabsf(x[k]) < INFINITY)) return false;
    return true;
}

// Marks the row in the masks of its wide groups.
static void quantize_row(const float* x, int64_t K, const RowOfBlock& row, uint32_t* wide) {
    float* scale = row.dst.scale + row.row0 * row.dst.groups + row.r;
    vf squares = vf_zero();
    for_groups(x, K, [&](int64_t g, const float* v) { scale[g * row.R] = group_limit(v, squares); });
    const float sum = vf_sum(squares);
    if (!(sum < INFINITY) && !is_finite(x, K)) {
        Bytes zeros = {};
        for (int64_t g = 0; g < row.dst.groups; ++g) row.put(g, zeros, bits_f32(0x7fc00000u), 0.0f, 0.0f, 0.0f);
        return;
    }
    // A sum that overflows makes no group wide.
    const float wide_above = kWideFactor * sqrtf(sum / float(K));
    for_groups(x, K, [&](int64_t g, const float* v) {
        if (quantize_group(v, scale[g * row.R], wide_above, g, row)) wide[g] |= 1u << row.r;
    });
}

}  // namespace

void quantize_blocks(const float* x, int64_t ldx, int64_t K, int64_t block0, int64_t block1, const QuantizedRows& dst) {
    for (int64_t block = block0; block < block1; ++block) {
        const int64_t row0 = block * kBlock, R = dst.rows - row0 < kBlock ? dst.rows - row0 : kBlock;
        uint32_t* wide = dst.wide + block * dst.groups;
        memset(wide, 0, size_t(dst.groups) * sizeof *wide);
        for (int64_t r = 0; r < R; ++r) quantize_row(x + (row0 + r) * ldx, K, {dst, row0, r, R}, wide);
        int32_t count = 0;
        for (int64_t g = 0; g < dst.groups; ++g)
            if (wide[g]) wide[count++] = uint32_t(g << 16) | wide[g];
        dst.num_wide[block] = count;
    }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
