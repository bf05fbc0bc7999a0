#include "kernels/linear_impl.h"

namespace octavo {
namespace OCTAVO_ISA {

namespace {

// How a step's values lie in memory.
enum Source { kNibbles, kBytes };

constexpr uint32_t kLowNibbles = 0x000f000fu, kLowBytes = 0x00ff00ffu;

// Pair p of a group: two of its values along k, widened to 16 bits. Pairs come in the order of the activations.
template <Source S>
OCTAVO_INLINE void load_pair(const uint8_t* w, int p, vi* raw, vi* v) {
    const int per_load = S == kNibbles ? 4 : 2;
    for (int i = 0; i < NV; ++i) {
        if (p % per_load == 0) raw[i] = vi_load(w + 64 * (p / per_load) + i * 4 * VC);
        if constexpr (S == kBytes)
            v[i] = p % 2 == 0 ? vi_and(raw[i], kLowBytes) : vi_shift16<8>(raw[i]);
        else
            v[i] = p % 4 == 0   ? vi_and(raw[i], kLowNibbles)
                   : p % 4 == 1 ? vi_and(vi_shift16<8>(raw[i]), kLowNibbles)
                   : p % 4 == 2 ? vi_and(vi_shift16<4>(raw[i]), kLowNibbles)
                                : vi_shift16<12>(raw[i]);
    }
}

// d[r][i] = dot products over 2 * PAIRS values of k, R rows. They fit: 32 * 255 * 32767 < 2^31.
template <Source S, int R, int PAIRS>
OCTAVO_INLINE void dot_group(const uint8_t* w, const int16_t* a, int64_t lda, vi (*d)[NV]) {
    vi raw[NV], v[NV];
#pragma GCC unroll 16
    for (int p = 0; p < PAIRS; ++p) {
        load_pair<S>(w, p, raw, v);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const vi b = vi_bcast2(a + r * lda + 2 * p);
            for (int i = 0; i < NV; ++i) {
                d[r][i] = p == 0 ? vi_dot(v[i], b) : vi_dot_add(d[r][i], v[i], b);
                vi_pin(d[r][i]);
            }
        }
    }
}

OCTAVO_INLINE void load_scales(const uint8_t* p, bool wide, vf* s) {
    for (int i = 0; i < NV; ++i)
        s[i] = wide ? vf_load((const float*)p + i * VC) : vf_load_f16((const uint16_t*)p + i * VC);
}

// One tile by R rows.
template <Source S, int R, bool HALF, bool MINS>
static void tile_rows(const PackedMatrix& w, const uint8_t* tile, const QuantizedRows& a, int64_t row,
                      float* out, int64_t ldo, const float* bias, int64_t columns) {
    constexpr int PAIRS = HALF ? 8 : 16;
    constexpr int64_t kPairsBytes = S == kNibbles ? 16 * PAIRS : 32 * PAIRS;
    const bool wide = w.wide_scales;
    const int64_t header = wide ? 64 : 32;
    const int64_t groups = w.K / w.group, parts = HALF ? 1 : w.group / kActGroup;
    const int16_t* q = a.q + row * a.ldq;
    const float* scale = a.scale + row * a.groups;
    const int64_t ld = HALF ? 2 * a.groups : a.groups;
    const int32_t* sum = (HALF ? a.sum16 : a.sum) + row * ld;
    const float* fsum = (HALF ? a.fsum16 : a.fsum) + row * ld;
    vf acc[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < NV; ++i) acc[r][i] = vf_zero();
    int64_t g = 0;
    for (int64_t wg = 0; wg < groups; ++wg) {
        vf ws[NV], wm[NV];
        load_scales(tile, wide, ws);
        tile += header;
        if constexpr (MINS) {
            load_scales(tile, wide, wm);
            tile += header;
        }
        for (int64_t part = 0; part < parts; ++part, ++g, tile += kPairsBytes, q += 2 * PAIRS) {
            vi d[R][NV];
            dot_group<S, R, PAIRS>(tile, q, a.ldq, d);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const vf as = vf_set(scale[r * a.groups + (HALF ? g / 2 : g)]);
                if constexpr (!MINS) {
                    const vi fix = vi_set(w.zero * sum[r * ld + g]);
                    for (int i = 0; i < NV; ++i) d[r][i] = vi_sub(d[r][i], fix);
                }
                for (int i = 0; i < NV; ++i) acc[r][i] = vf_fma(vi_to_f32(d[r][i]), vf_mul(ws[i], as), acc[r][i]);
                if constexpr (MINS) {
                    const vf fs = vf_set(fsum[r * ld + g]);
                    for (int i = 0; i < NV; ++i) acc[r][i] = vf_fma(wm[i], fs, acc[r][i]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) store_tile_row(out + r * ldo, acc[r], bias, columns);
}

template <Source S, bool HALF, bool MINS>
static void gemm(const PackedMatrix& w, const QuantizedRows& a, int64_t row0, int64_t row1, int64_t tile0,
                 int64_t tile1, float* out, int64_t ldo) {
    for (int64_t t = tile0; t < tile1; ++t) {
        const uint8_t* tile = w.data + t * w.tile_bytes;
        const int64_t columns = w.N - t * kTile;
        const float* bias = w.bias ? w.bias + t * kTile : nullptr;
        float* o = out + t * kTile;
        int64_t m = row0;
        for (; m + 4 <= row1; m += 4) tile_rows<S, 4, HALF, MINS>(w, tile, a, m, o + m * ldo, ldo, bias, columns);
        if (row1 - m == 3) tile_rows<S, 3, HALF, MINS>(w, tile, a, m, o + m * ldo, ldo, bias, columns);
        if (row1 - m == 2) tile_rows<S, 2, HALF, MINS>(w, tile, a, m, o + m * ldo, ldo, bias, columns);
        if (row1 - m == 1) tile_rows<S, 1, HALF, MINS>(w, tile, a, m, o + m * ldo, ldo, bias, columns);
    }
}

template <Source S>
static void gemm_source(const PackedMatrix& w, const QuantizedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
                        float* out, int64_t ldo) {
    const bool half = w.group == 16;
    auto* const run = half ? (w.mins ? gemm<S, true, true> : gemm<S, true, false>)
                           : (w.mins ? gemm<S, false, true> : gemm<S, false, false>);
    run(w, a, row0, row1, tile0, tile1, out, ldo);
}

}  // namespace

void gemm_int(const PackedMatrix& w, const QuantizedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
              float* out, int64_t ldo) {
    auto* const run = w.kind == WeightKind::int4 ? gemm_source<kNibbles> : gemm_source<kBytes>;
    run(w, a, row0, row1, tile0, tile1, out, ldo);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
