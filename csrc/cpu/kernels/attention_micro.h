// The two inner products of attention, for a few query rows against one chunk of keys.
//
// A score is summed over the head dimension in its order, an output over the keys in theirs, one fused multiply-add at a
// time from zero: how many rows or tiles share a call changes nothing in any of them.
#pragma once

#include "kernels/cache.h"
#include "kernels/exp.h"
#include "kernels/float8.h"
#include "simd.h"

#include <utility>

namespace octavo {
namespace OCTAVO_ISA {

// Keys in a chunk. The context is split at multiples of it, counted from the sequence's first token.
constexpr int kChunk = 128;
constexpr int kChunkTiles = kChunk / kKeyTile;
// Vectors in a tile of 16 keys.
constexpr int kTileVectors = kKeyTile / VW;
// Accumulators that fit the registers, and the most rows that share a load.
constexpr int kAccumulators = VW == 16 ? 24 : 12;
constexpr int kMaxRows = VW == 16 ? 12 : VW == 8 ? 6 : 3;

constexpr int tiles_at_once(int rows) {
    const int n = kAccumulators / (rows * kTileVectors);
    return n < 1 ? 1 : n > 4 ? 4 : n;
}

// What caches hold. A cached value is kFactor times what a load gives; of kTileScales also times its key's scale.
struct InF32 {
    typedef float T;
    static constexpr float kFactor = 1.0f;
    static constexpr bool kTileScales = false;
    static vf load(const float* p) { return vf_load(p); }
};
struct InBF16 {
    typedef uint16_t T;
    static constexpr float kFactor = 1.0f;
    static constexpr bool kTileScales = false;
    static vf load(const uint16_t* p) { return vf_load_bf16(p); }
};
struct InF16 {
    typedef uint16_t T;
    static constexpr float kFactor = 1.0f;
    static constexpr bool kTileScales = false;
    static vf load(const uint16_t* p) { return vf_load_f16(p); }
};
struct InE4M3 {
    typedef uint8_t T;
    static constexpr float kFactor = kE4M3Factor;
    static constexpr bool kTileScales = false;
    static vf load(const uint8_t* p) { return vf_load_e4m3(p); }
};
struct InE5M2 {
    typedef uint8_t T;
    static constexpr float kFactor = 1.0f;
    static constexpr bool kTileScales = false;
    static vf load(const uint8_t* p) { return vf_load_e5m2(p); }
};
struct InI8 {
    typedef int8_t T;
    static constexpr float kFactor = 1.0f;
    static constexpr bool kTileScales = true;
    static vf load(const int8_t* p) { return vf_load_i8(p); }
};

// acc[r][i] += a[r] * b[i]. Of a and b the smaller is held in registers and the other one streams: with one accumulator
// spilled to memory, its store-to-load latency alone halved the speed of the loops below.
template <class In, int R, int NB, class A, class B>
OCTAVO_INLINE void outer_product(vf (&acc)[R][NB], const A& a, const B& b) {
    if constexpr (R < NB) {
        vf held[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) held[r] = vf_set(a(r));
#pragma GCC unroll 16
        for (int i = 0; i < NB; ++i) {
            const vf x = In::load(b(i));
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) acc[r][i] = vf_fma(held[r], x, acc[r][i]);
        }
    } else {
        vf held[NB];
#pragma GCC unroll 16
        for (int i = 0; i < NB; ++i) held[i] = In::load(b(i));
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const vf x = vf_set(a(r));
#pragma GCC unroll 16
            for (int i = 0; i < NB; ++i) acc[r][i] = vf_fma(x, held[i], acc[r][i]);
        }
    }
}

// Values whose cache lines are asked for together: two lines of float32, else one.
template <class T>
constexpr int kFetched = sizeof(T) == 1 ? 64 : 32;

// Asks for the cache lines of kFetched values from p on. The cache's blocks lie apart, so that no hardware prefetcher sees what comes
// next: while keys are read the values of the same tiles are asked for, and with them the next chunk's keys. They go to the
// second cache, because a chunk fills the first.
template <class T>
OCTAVO_INLINE void fetch(const T* p) {
    __builtin_prefetch(p, 0, 2);
    if constexpr (sizeof(T) == 4) __builtin_prefetch(p + 16, 0, 2);
}

// scores[r][16 t .. ] = sum over d of q[r][d] * tiles[t][d][..], for R rows and N tiles. `ahead` are tiles that will
// be read soon, if FETCH; dim is even.
template <class In, bool FETCH, int R, int N>
static inline void score_block(float* scores, const float* q, int dim, const typename In::T* const* tiles,
                               const typename In::T* const* ahead) {
    vf acc[R][N * kTileVectors];
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < N * kTileVectors; ++i) acc[r][i] = vf_zero();
    for (int d = 0; d < dim; d += 2) {
        if (FETCH && d * kKeyTile % kFetched<typename In::T> == 0)
            for (int i = 0; i < N; ++i) fetch(ahead[i] + d * kKeyTile);
#pragma GCC unroll 2
        for (int e = d; e < d + 2; ++e)
            outer_product<In>(acc, [&](int r) { return q[r * dim + e]; },
                              [&](int i) { return tiles[i / kTileVectors] + e * kKeyTile + i % kTileVectors * VW; });
    }
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < N * kTileVectors; ++i) vf_store(scores + r * kChunk + i * VW, acc[r][i]);
}

template <class In, bool FETCH, int R>
static void score_rows(float* scores, const float* q, int dim, const typename In::T* const* tiles,
                       const typename In::T* const* ahead, int first, int end) {
    constexpr int N = tiles_at_once(R);
    int t = first;
    for (; t + N <= end; t += N) score_block<In, FETCH, R, N>(scores + t * kKeyTile, q, dim, tiles + t, ahead + t);
    for (; t < end; ++t) score_block<In, FETCH, R, 1>(scores + t * kKeyTile, q, dim, tiles + t, ahead + t);
}

// Where the values of a chunk lie: those of tile t at tiles[t], a key's row_stride after the last one's, and 16 dimensions
// (a panel) panel_stride after the 16 before.
template <class In>
struct Values {
    const typename In::T* const* tiles;
    int row_stride;
    int panel_stride;
    const typename In::T* const* ahead;  // tiles of the same size that will be read next, if FETCH
};

// acc[r][16 p ..] = sum over the keys first .. end of weights[r][key] * value[key][16 p ..], for R rows and N panels.
template <class In, bool FETCH, int R, int N>
static inline void weigh_block(float* acc_out, int acc_stride, const float* weights, const Values<In>& values, int panel,
                               int first, int end) {
    vf acc[R][N * kTileVectors];
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < N * kTileVectors; ++i) acc[r][i] = vf_zero();
    for (int t = first / kKeyTile; t * kKeyTile < end; ++t) {
        const int from = first > t * kKeyTile ? first - t * kKeyTile : 0;
        const int to = end < (t + 1) * kKeyTile ? end - t * kKeyTile : kKeyTile;
        const typename In::T* v = values.tiles[t] + int64_t(panel) * values.panel_stride + from * values.row_stride;
        const float* w = weights + t * kKeyTile;
        for (int key = from; key < to; ++key, v += values.row_stride) {
            if constexpr (FETCH) {  // with one panel at a time: the others come with the first
                constexpr int P = kFetched<typename In::T> / kKeyTile;
                for (int i = 0; i < N; i += P) fetch(values.ahead[t] + key * values.row_stride + (panel + i) / P * P * kKeyTile);
            }
            outer_product<In>(acc, [&](int r) { return w[r * kChunk + key]; },
                              [&](int i) { return v + i / kTileVectors * values.panel_stride + i % kTileVectors * VW; });
        }
    }
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < N * kTileVectors; ++i) vf_store(acc_out + r * acc_stride + i * VW, acc[r][i]);
}

template <class In, bool FETCH, int R>
static void weigh_rows(float* acc, int acc_stride, const float* weights, const Values<In>& values, int panel,
                       int panel_end, int first, int end) {
    constexpr int N = tiles_at_once(R);
    for (; panel + N <= panel_end; panel += N)
        weigh_block<In, FETCH, R, N>(acc + panel * kKeyTile, acc_stride, weights, values, panel, first, end);
    for (; panel < panel_end; ++panel)
        weigh_block<In, FETCH, R, 1>(acc + panel * kKeyTile, acc_stride, weights, values, panel, first, end);
}

// The lanes of a with bit S change places with the lanes of b without it.
template <int S, size_t... J>
OCTAVO_INLINE void exchange(vf& a, vf& b, std::index_sequence<J...>) {
    const vf low = __builtin_shufflevector(a, b, ((J & S) ? VW + J - S : J)...);
    b = __builtin_shufflevector(a, b, ((J & S) ? VW + J : J + S)...);
    a = low;
}

template <int S = VW / 2>
OCTAVO_INLINE void transpose_square(vf (&x)[VW]) {
#pragma GCC unroll 16
    for (int i = 0; i < VW; ++i)
        if (!(i & S)) exchange<S>(x[i], x[i | S], std::make_index_sequence<VW>{});
    if constexpr (S > 1) transpose_square<S / 2>(x);
}

// Rows of 16 keys [16][dim] to a tile [dim][16]; dim is a multiple of 16.
template <class In>
static void transpose_tile(float* out, const typename In::T* rows, int dim) {
    for (int d = 0; d < dim; d += VW)
        for (int key = 0; key < kKeyTile; key += VW) {
            vf x[VW];
#pragma GCC unroll 16
            for (int i = 0; i < VW; ++i) x[i] = In::load(rows + int64_t(key + i) * dim + d);
            transpose_square(x);
#pragma GCC unroll 16
            for (int i = 0; i < VW; ++i) vf_store(out + (d + i) * kKeyTile + key, x[i]);
        }
}

// Calls f with std::integral_constant-like R for rows in 1 .. kMaxRows.
template <int R>
struct Rows {
    static constexpr int count = R;
};

template <int R = 1, class F>
static inline void with_rows(int rows, const F& f) {
    if constexpr (R == kMaxRows) {
        f(Rows<R>{});
    } else {
        if (rows == R) f(Rows<R>{});
        else with_rows<R + 1>(rows, f);
    }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
