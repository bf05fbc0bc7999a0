#include "kernels/linear_impl.h"

// GEMM of 16-bit fixed-point weights and activations, with a scale for every 128 values of k.

namespace octavo {
namespace OCTAVO_ISA {

namespace {

constexpr int kVectors = int(kFixedGroup) / VW;  // of a group of floats
constexpr int kPairs = int(kStep) / 2;
// Below this the quotient of the limit and the largest value may overflow; the group counts as zero.
constexpr float kTiny = 1e-30f;

// VW values that 16 bits hold, rounded to the nearest.
OCTAVO_INLINE void store_i16(int16_t* to, vf a) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
#elif defined(__AVX2__)
    const __m256i v = _mm256_cvtps_epi32(a);
    _mm_storeu_si128((__m128i*)to, _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
#else
    float t[VW];
    vf_store(t, vf_round(a));
    for (int i = 0; i < VW; ++i) to[i] = int16_t(t[i]);
#endif
}

// One group of `count` floats, a multiple of kStep; 16 numbers each go to q + i * step. Returns the scale.
OCTAVO_INLINE float fix_group(const float* x, int count, int16_t* q, int64_t step) {
    const int vectors = count / VW;
    vf v[kVectors], high = vf_zero(), squares = vf_zero();
    for (int i = 0; i < vectors; ++i) {
        v[i] = vf_load(x + i * VW);
        high = vf_max(high, vf_abs(v[i]));
    }
    const float limit = vf_hmax(high), up = limit < kTiny ? 0.0f : kFixedLimit / limit;
    for (int i = 0; i < vectors; ++i) {
        v[i] = vf_mul(v[i], vf_set(up));
        squares = vf_fma(v[i], v[i], squares);
    }
    const float norm = sqrtf(vf_sum(squares));
    const bool is_finite = norm < INFINITY;  // not if any value is a NaN, or an infinity times zero
    const float down = is_finite && norm > kFixedNorm ? kFixedNorm / norm : 1.0f;
    constexpr int kInStep = int(kStep) / VW;
    for (int i = 0; i < vectors; ++i)
        store_i16(q + i / kInStep * step + i % kInStep * VW, is_finite ? vf_mul(v[i], vf_set(down)) : vf_zero());
    if (!is_finite) return bits_f32(0x7fc00000u);
    return up == 0.0f ? 0.0f : limit / (kFixedLimit * down);
}

// R rows of a block by the columns of a vector.
template <int R>
static void block_columns(const uint8_t* tile, int64_t column, const FixedRows& a, int64_t row0, float* out,
                          int64_t ldo, const float* bias, int64_t columns) {
    // The sums are exact: with few rows several of them go side by side.
    constexpr int kChains = R == 1 ? 4 : R <= 3 ? 2 : 1;
    const int16_t* q = a.q + row0 * a.ldq;
    const float* scale = a.scale + row0 * a.groups;
    const uint8_t* p = tile + column * 4;
    vf acc[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r] = vf_zero();
    for (int64_t k = 0; k < a.ldq; k += kFixedGroup, scale += R) {
        const vf ws = vf_load((const float*)p);
        p += 4 * kTile;
        vi d[kChains][R];
#pragma GCC unroll 16
        for (int i = 0; i < kChains * R; ++i) d[i / R][i % R] = vi_zero();
        const int64_t end = k + kFixedGroup < a.ldq ? k + kFixedGroup : a.ldq;
        for (int64_t at = k; at < end; at += kStep, q += kStep * R, p += 4 * kTile * kPairs)
#pragma GCC unroll 8
            for (int i = 0; i < kPairs; ++i) {
                const vi v = vi_load(p + 4 * kTile * i);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    vi& sum = d[i % kChains][r];
                    sum = vi_pairs(sum, v, vi_bcast4(q + kStep * r + 2 * i));
                    vi_pin(sum);
                }
            }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            for (int i = 1; i < kChains; ++i) d[0][r] = vi_add(d[0][r], d[i][r]);
            acc[r] = vf_fma(vi_to_f32(d[0][r]), vf_mul(ws, vf_set(scale[r])), acc[r]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store_columns(out + r * ldo, acc[r], bias, columns);
}

// Finds the block's number of rows among 1 .. kBlock.
template <int R = kBlock>
static void block_of(int64_t rows, const uint8_t* tile, int64_t column, const FixedRows& a, int64_t row0,
                     float* out, int64_t ldo, const float* bias, int64_t columns) {
    if (rows == R) return block_columns<R>(tile, column, a, row0, out, ldo, bias, columns);
    if constexpr (R > 1) block_of<R - 1>(rows, tile, column, a, row0, out, ldo, bias, columns);
}

}  // namespace

void fix_rows(const float* x, int64_t ldx, int64_t K, int64_t block0, int64_t block1, const FixedRows& dst) {
    for (int64_t row0 = block0 * kBlock; row0 < block1 * kBlock && row0 < dst.rows; row0 += kBlock) {
        const int64_t R = dst.rows - row0 < kBlock ? dst.rows - row0 : kBlock, step = kStep * R;
        for (int64_t r = 0; r < R; ++r) {
            const float* row = x + (row0 + r) * ldx;
            int16_t* q = dst.q + row0 * dst.ldq + r * kStep;
            float* scale = dst.scale + row0 * dst.groups + r;
            int64_t k = 0;
            for (; k + kFixedGroup <= K; k += kFixedGroup, scale += R) *scale = fix_group(row + k, kFixedGroup, q + k * R, step);
            if (k == K) continue;
            alignas(64) float tail[kFixedGroup] = {};
            memcpy(tail, row + k, size_t(K - k) * sizeof(float));
            *scale = fix_group(tail, int(dst.ldq - k), q + k * R, step);
        }
    }
}

void gemm_fixed(const PackedMatrix& w, const FixedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1, float* out,
                int64_t ldo) {
    for (int64_t t = tile0; t < tile1; ++t)
        for (int64_t row = row0; row < row1; row += kBlock)
            for (int64_t column = 0; column < kTile && t * kTile + column < w.N; column += VC) {
                const int64_t at = t * kTile + column;
                block_of(row1 - row < kBlock ? row1 - row : kBlock, w.data + t * w.tile_bytes, column, a, row,
                         out + row * ldo + at, ldo, w.bias ? w.bias + at : nullptr, w.N - at);
            }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
