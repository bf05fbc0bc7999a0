#include "kernels/linear_impl.h"

namespace octavo {
namespace OCTAVO_ISA {

namespace {

constexpr int kMaxRows = 6;

// R rows by C tiles: acc = fma(x, w, acc) over k = 0, 1, 2, ..., one chain an element.
template <int R, int C>
OCTAVO_INLINE void step(const float* x, int64_t ldx, const vf (*w)[NV], vf (*acc)[C][NV]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const vf b = vf_set(x[r * ldx]);
        for (int c = 0; c < C; ++c)
            for (int i = 0; i < NV; ++i) acc[r][c][i] = vf_fma(b, w[c][i], acc[r][c][i]);
    }
}

#if defined(__AVX512F__)
OCTAVO_INLINE vf pair_even(const uint8_t* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16)); }
OCTAVO_INLINE vf pair_odd(const uint8_t* p) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(int(0xffff0000u))));
}
#elif defined(__AVX2__)
OCTAVO_INLINE vf pair_even(const uint8_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)p), 16));
}
OCTAVO_INLINE vf pair_odd(const uint8_t* p) {
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i*)p), _mm256_set1_epi32(int(0xffff0000u))));
}
#else
OCTAVO_INLINE vf pair_even(const uint8_t* p) {
    vf_int v;
    memcpy(&v, p, 16);
    return (vf)(v << 16);
}
OCTAVO_INLINE vf pair_odd(const uint8_t* p) {
    vf_int v;
    memcpy(&v, p, 16);
    return (vf)(v & int32_t(0xffff0000u));
}
#endif

// VC float8 e4m3, each divided by kE4m3Factor.
OCTAVO_INLINE vf load_e4m3(const uint8_t* p) {
#if defined(__AVX512F__)
    const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(v, _mm256_set1_epi16(0x80)), 8);
    return _mm512_cvtph_ps(_mm256_or_si256(sign, _mm256_slli_epi16(_mm256_and_si256(v, _mm256_set1_epi16(0x7f)), 7)));
#elif defined(__AVX2__)
    const __m128i v = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i*)p));
    const __m128i sign = _mm_slli_epi16(_mm_and_si128(v, _mm_set1_epi16(0x80)), 8);
    return _mm256_cvtph_ps(_mm_or_si128(sign, _mm_slli_epi16(_mm_and_si128(v, _mm_set1_epi16(0x7f)), 7)));
#else
    const auto value = [&](int i) { return f16_to_f32(e4m3_bits(p[i])); };
    return vf{value(0), value(1), value(2), value(3)};
#endif
}

// A table of 16 floats, and the entries that VC pairs of nibbles name: the low ones, and the high ones.
struct Table {
#if defined(__AVX512F__)
    vf entries;
    explicit Table(const float* t) : entries(vf_load(t)) {}
    __attribute__((always_inline)) void look_up(const uint8_t* p, vf& low, vf& high) const {
        const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
        low = _mm512_permutexvar_ps(pairs, entries);  // it reads the lowest four bits
        high = _mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), entries);
    }
#elif defined(__AVX2__)
    vf first, second;
    explicit Table(const float* t) : first(vf_load(t)), second(vf_load(t + 8)) {}
    __attribute__((always_inline)) vf entry(__m256i index) const {
        const vf upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // bit 3 becomes the sign
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(first, index), _mm256_permutevar8x32_ps(second, index), upper);
    }
    __attribute__((always_inline)) void look_up(const uint8_t* p, vf& low, vf& high) const {
        const __m256i pairs = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
        low = entry(pairs);
        high = entry(_mm256_srli_epi32(pairs, 4));
    }
#else
    const float* entries;
    explicit Table(const float* t) : entries(t) {}
    __attribute__((always_inline)) void look_up(const uint8_t* p, vf& low, vf& high) const {
        low = vf{entries[p[0] & 15], entries[p[1] & 15], entries[p[2] & 15], entries[p[3] & 15]};
        high = vf{entries[p[0] >> 4], entries[p[1] >> 4], entries[p[2] >> 4], entries[p[3] >> 4]};
    }
#endif
};

template <WeightKind T, int R, int C>
static void tile_rows(const PackedMatrix& w, const uint8_t* tile, const float* x, int64_t ldx, float* out, int64_t ldo,
                      const float* bias, int64_t columns) {
    const int64_t K = w.K, next = w.tile_bytes;
    vf acc[R][C][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c)
            for (int i = 0; i < NV; ++i) acc[r][c][i] = vf_zero();
    vf v[C][NV];
    if constexpr (T == WeightKind::bf16) {
        int64_t k = 0;
        for (; k + 2 <= K; k += 2) {
            const uint8_t* p = tile + 32 * k;
            for (int c = 0; c < C; ++c)
                for (int i = 0; i < NV; ++i) v[c][i] = pair_even(p + c * next + i * 4 * VC);
            step<R, C>(x + k, ldx, v, acc);
            for (int c = 0; c < C; ++c)
                for (int i = 0; i < NV; ++i) v[c][i] = pair_odd(p + c * next + i * 4 * VC);
            step<R, C>(x + k + 1, ldx, v, acc);
        }
        if (k < K) {
            for (int c = 0; c < C; ++c)
                for (int i = 0; i < NV; ++i) v[c][i] = pair_even(tile + 32 * k + c * next + i * 4 * VC);
            step<R, C>(x + k, ldx, v, acc);
        }
    } else if constexpr (T == WeightKind::table || T == WeightKind::e4m3) {
        const Table table(w.table);
        const uint8_t* unit = tile;
        for (int64_t k0 = 0; k0 < K; k0 += w.group, unit += w.unit_bytes) {
            vf scale[C][NV], v1[C][NV];
            for (int c = 0; c < C; ++c)
                for (int i = 0; i < NV; ++i) scale[c][i] = vf_load((const float*)(unit + c * next) + i * VC);
            const uint8_t* p = unit + w.header;
            for (int64_t k = k0; k < k0 + w.group; k += 2, p += T == WeightKind::table ? kTile : 2 * kTile) {
                for (int c = 0; c < C; ++c)
                    for (int i = 0; i < NV; ++i) {
                        const uint8_t* codes = p + c * next + i * VC;
                        if constexpr (T == WeightKind::table) {
                            table.look_up(codes, v[c][i], v1[c][i]);
                        } else {
                            v[c][i] = load_e4m3(codes);
                            v1[c][i] = load_e4m3(codes + kTile);
                        }
                        v[c][i] = vf_mul(v[c][i], scale[c][i]);
                        v1[c][i] = vf_mul(v1[c][i], scale[c][i]);
                    }
                step<R, C>(x + k, ldx, v, acc);
                step<R, C>(x + k + 1, ldx, v1, acc);
            }
        }
    } else {
        for (int64_t k = 0; k < K; ++k) {
            for (int c = 0; c < C; ++c)
                for (int i = 0; i < NV; ++i)
                    v[c][i] = T == WeightKind::f16 ? vf_load_f16((const uint16_t*)(tile + c * next) + k * kTile + i * VC)
                                                   : vf_load((const float*)(tile + c * next) + k * kTile + i * VC);
            step<R, C>(x + k, ldx, v, acc);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c)
            store_tile_row(out + r * ldo + c * kTile, acc[r][c], bias ? bias + c * kTile : nullptr, columns - c * kTile);
}

// Tiles side by side, so that few rows still give enough independent chains. It is no part of the result.
template <int R>
struct Columns {
    static constexpr int tiles = R == 1 ? 4 : R == 2 ? 2 : VC == 16 ? 2 : 1;
};

template <WeightKind T, int R>
static void row_block(const PackedMatrix& w, const float* x, int64_t ldx, int64_t tile0, int64_t tile1, float* out, int64_t ldo) {
    constexpr int C = Columns<R>::tiles;
    int64_t t = tile0;
    for (; t + C <= tile1; t += C)
        tile_rows<T, R, C>(w, w.data + t * w.tile_bytes, x, ldx, out + t * kTile, ldo, w.bias ? w.bias + t * kTile : nullptr,
                           w.N - t * kTile);
    if constexpr (C > 1)
        for (; t < tile1; ++t)
            tile_rows<T, R, 1>(w, w.data + t * w.tile_bytes, x, ldx, out + t * kTile, ldo,
                               w.bias ? w.bias + t * kTile : nullptr, w.N - t * kTile);
}

template <WeightKind T>
static void gemm(const PackedMatrix& w, const float* x, int64_t ldx, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
                 float* out, int64_t ldo) {
    // Two tiles at a time stay in the cache while all rows pass.
    const int64_t step_tiles = row1 - row0 <= 2 ? tile1 - tile0 : 2;
    for (int64_t t = tile0; t < tile1; t += step_tiles) {
        const int64_t end = t + step_tiles < tile1 ? t + step_tiles : tile1;
        int64_t m = row0;
        for (; m + kMaxRows <= row1; m += kMaxRows) row_block<T, kMaxRows>(w, x + m * ldx, ldx, t, end, out + m * ldo, ldo);
        const float* xm = x + m * ldx;
        float* om = out + m * ldo;
        switch (row1 - m) {
            case 5: row_block<T, 5>(w, xm, ldx, t, end, om, ldo); break;
            case 4: row_block<T, 4>(w, xm, ldx, t, end, om, ldo); break;
            case 3: row_block<T, 3>(w, xm, ldx, t, end, om, ldo); break;
            case 2: row_block<T, 2>(w, xm, ldx, t, end, om, ldo); break;
            case 1: row_block<T, 1>(w, xm, ldx, t, end, om, ldo); break;
            default: break;
        }
    }
}

}  // namespace

void gemm_float(const PackedMatrix& w, const float* x, int64_t ldx, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
                float* out, int64_t ldo) {
    auto* const run = w.kind == WeightKind::bf16    ? gemm<WeightKind::bf16>
                      : w.kind == WeightKind::f16   ? gemm<WeightKind::f16>
                      : w.kind == WeightKind::table ? gemm<WeightKind::table>
                      : w.kind == WeightKind::e4m3  ? gemm<WeightKind::e4m3>
                                                    : gemm<WeightKind::f32>;
    run(w, x, ldx, row0, row1, tile0, tile1, out, ldo);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
