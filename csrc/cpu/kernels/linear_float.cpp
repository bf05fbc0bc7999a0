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
    auto* const run = w.kind == WeightKind::bf16  ? gemm<WeightKind::bf16>
                      : w.kind == WeightKind::f16 ? gemm<WeightKind::f16>
                                                  : gemm<WeightKind::f32>;
    run(w, x, ldx, row0, row1, tile0, tile1, out, ldo);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
