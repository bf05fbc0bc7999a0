#include "kernels/linear_impl.h"

// GEMM of bfloat16 weights with activations rounded to bfloat16, where the processor multiplies pairs of them.
//
// An element is one chain over the pairs of k; how many rows and tiles share the registers has no part in it.

namespace octavo {
namespace OCTAVO_ISA {

#if defined(__AVX512BF16__)

namespace {

constexpr int kPairs = int(kStep) / 2;

// R rows of a block by C tiles.
template <int R, int C>
static void block_tiles(const PackedMatrix& w, int64_t tile, const Bf16Rows& a, int64_t row0, float* out, int64_t ldo) {
    const uint8_t* p = w.data + tile * w.tile_bytes;
    const uint16_t* x = a.x + row0 * a.ld;
    const int64_t pairs = (w.K + 1) / 2;
    __m512 acc[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = _mm512_setzero_ps();
    const auto add_pair = [&](int i) __attribute__((always_inline)) {
        __m512bh v[C];
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) v[c] = (__m512bh)_mm512_loadu_si512(p + 64 * i + c * w.tile_bytes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            int32_t pair;
            memcpy(&pair, x + kStep * r + 2 * i, 4);
            const __m512bh b = (__m512bh)_mm512_set1_epi32(pair);
            for (int c = 0; c < C; ++c) acc[r][c] = _mm512_dpbf16_ps(acc[r][c], b, v[c]);
        }
    };
    int64_t k = 0;
    for (; k + kPairs <= pairs; k += kPairs, p += 64 * kPairs, x += kStep * R)
#pragma GCC unroll 8
        for (int i = 0; i < kPairs; ++i) add_pair(i);
    for (int i = 0; k + i < pairs; ++i) add_pair(i);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) {
            const int64_t column = (tile + c) * kTile;
            store_tile_row(out + r * ldo + column, &acc[r][c], w.bias ? w.bias + column : nullptr, w.N - column);
        }
}

// Tiles side by side, so that few rows still give enough independent chains.
constexpr int tiles_beside(int rows) { return rows >= 5 ? 2 : rows >= 3 ? 4 : 8; }

template <int R>
static void block_of(int64_t rows, const PackedMatrix& w, int64_t tile0, int64_t tile1, const Bf16Rows& a, int64_t row0,
                     float* out, int64_t ldo) {
    if (rows == R) {
        constexpr int C = tiles_beside(R);
        int64_t t = tile0;
        for (; t + C <= tile1; t += C) block_tiles<R, C>(w, t, a, row0, out, ldo);
        for (; t < tile1; ++t) block_tiles<R, 1>(w, t, a, row0, out, ldo);
        return;
    }
    if constexpr (R > 1) block_of<R - 1>(rows, w, tile0, tile1, a, row0, out, ldo);
}

}  // namespace

void round_bf16(const float* x, int64_t ldx, int64_t K, int64_t block0, int64_t block1, const Bf16Rows& dst) {
    for (int64_t row0 = block0 * kBlock; row0 < block1 * kBlock && row0 < dst.rows; row0 += kBlock) {
        const int64_t R = dst.rows - row0 < kBlock ? dst.rows - row0 : kBlock;
        for (int64_t r = 0; r < R; ++r) {
            const float* src = x + (row0 + r) * ldx;
            uint16_t* to = dst.x + row0 * dst.ld + kStep * r;
            for (int64_t k = 0; k < K; k += kStep) {
                const __m512 v = K - k >= kStep ? _mm512_loadu_ps(src + k) : vf_load_n(src + k, int(K - k), 0.0f);
                _mm256_storeu_si256((__m256i*)(to + k * R), (__m256i)_mm512_cvtneps_pbh(v));
            }
        }
    }
}

void gemm_bf16(const PackedMatrix& w, const Bf16Rows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1, float* out,
               int64_t ldo) {
    // A few tiles stay in the cache while all rows pass.
    const int64_t step = row1 - row0 <= kBlock ? tile1 - tile0 : 2;
    for (int64_t t = tile0; t < tile1; t += step)
        for (int64_t row = row0; row < row1; row += kBlock)
            block_of<kBlock>(row1 - row < kBlock ? row1 - row : kBlock, w, t, t + step < tile1 ? t + step : tile1, a, row,
                             out + row * ldo, ldo);
}

#endif

}  // namespace OCTAVO_ISA
}  // namespace octavo
