#include "kernels/linear_impl.h"

namespace octavo {
namespace OCTAVO_ISA {

namespace {

// How a step's values lie in memory, and so how many steps may be summed in 16 bits before they must be widened
// (2 products of at most (2^bits - 1) * 127 each a step): 8 steps of 4 bits, 4 of 5, 2 of 6; 8 bits are made signed.
enum Source { kNibbles, kBytes5, kBytes6, kBytes8 };

template <Source S>
struct Steps {
    static constexpr int sum16 = S == kBytes5 ? 4 : S == kBytes6 ? 2 : S == kBytes8 ? 1 : 8;
};

#if defined(__AVX512VNNI__)
// Unsigned by signed straight into 32 bits, whatever the bits.
constexpr bool kFlipped = false;
template <Source S>
OCTAVO_INLINE vi dot_step(vi acc, vi w, vi a) { return _mm512_dpbusd_epi32(acc, w, a); }
#elif defined(__AVX2__)
constexpr bool kFlipped = true;
#else
constexpr bool kFlipped = true;
template <Source S>
OCTAVO_INLINE vi dot_step(vi acc, vi w, vi a) { return vi_dot(acc, S == kBytes8 ? vi_flip(w) : w, a); }
#endif

// The values of step s (and of s + 1, for nibbles) of a group.
template <Source S>
OCTAVO_INLINE void load_step(const uint8_t* w, int s, vi* raw, vi* v) {
    if constexpr (S == kNibbles) {
        for (int i = 0; i < NV; ++i) {
            if (s % 2 == 0) raw[i] = vi_load(w + 32 * s + i * 4 * VC);
            v[i] = s % 2 == 0 ? vi_low_nibbles(raw[i]) : vi_high_nibbles(raw[i]);
        }
    } else {
        for (int i = 0; i < NV; ++i) v[i] = vi_load(w + 64 * s + i * 4 * VC);
    }
}

// d[r][i] = dot products of STEPS steps, R rows.
template <Source S, int R, int STEPS>
OCTAVO_INLINE void dot_group(const uint8_t* w, const int8_t* a, int64_t lda, vi (*d)[NV]) {
    vi raw[NV], v[NV];
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
    if constexpr (S == kBytes8) {
#pragma GCC unroll 8
        for (int s = 0; s < STEPS; ++s) {
            load_step<S>(w, s, raw, v);
            vi u[NV];
            for (int i = 0; i < NV; ++i) {
                v[i] = vi_flip(v[i]);
                u[i] = vi_abs8(v[i]);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const vi b = vi_bcast4(a + r * lda + 4 * s);
                for (int i = 0; i < NV; ++i) {
                    const vi p = vi_widen(vi_maddubs(u[i], vi_sign8(b, v[i])));
                    d[r][i] = s == 0 ? p : vi_add(d[r][i], p);
                    vi_pin(d[r][i]);
                }
            }
        }
    } else {
        constexpr int L = Steps<S>::sum16 < STEPS ? Steps<S>::sum16 : STEPS;
        vi h[R][NV];
#pragma GCC unroll 8
        for (int s = 0; s < STEPS; ++s) {
            load_step<S>(w, s, raw, v);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const vi b = vi_bcast4(a + r * lda + 4 * s);
                for (int i = 0; i < NV; ++i) {
                    const vi p = vi_maddubs(v[i], b);
                    h[r][i] = s % L == 0 ? p : vi_add16(h[r][i], p);
                    vi_pin(h[r][i]);
                    if (s % L == L - 1) d[r][i] = s < L ? vi_widen(h[r][i]) : vi_add(d[r][i], vi_widen(h[r][i]));
                }
            }
        }
    }
#else
#pragma GCC unroll 8
    for (int s = 0; s < STEPS; ++s) {
        load_step<S>(w, s, raw, v);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const vi b = vi_bcast4(a + r * lda + 4 * s);
            for (int i = 0; i < NV; ++i) d[r][i] = dot_step<S>(s == 0 ? vi_set(0) : d[r][i], v[i], b);
        }
    }
#endif
}

OCTAVO_INLINE void load_scales(const uint8_t* p, bool wide, vf* s) {
    for (int i = 0; i < NV; ++i)
        s[i] = wide ? vf_load((const float*)p + i * VC) : vf_load_f16((const uint16_t*)p + i * VC);
}

// One tile by R rows. MINS and OFFSET say which of the two corrections the weight needs.
template <Source S, int R, bool HALF, bool MINS>
static void tile_rows(const PackedMatrix& w, int offset, const uint8_t* tile, const QuantizedRows& a, int64_t row,
                      float* out, int64_t ldo, const float* bias, int64_t columns) {
    constexpr int STEPS = HALF ? 4 : 8;
    constexpr int64_t kStepsBytes = S == kNibbles ? 32 * STEPS : 64 * STEPS;
    const bool wide = w.wide_scales;
    const int64_t header = wide ? 64 : 32;
    const int64_t groups = w.K / w.group, parts = HALF ? 1 : w.group / kActGroup;
    const int8_t* q = a.q + row * a.ldq;
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
        for (int64_t part = 0; part < parts; ++part, ++g, tile += kStepsBytes, q += 4 * STEPS) {
            vi d[R][NV];
            dot_group<S, R, STEPS>(tile, q, a.ldq, d);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const vf as = vf_set(scale[r * a.groups + (HALF ? g / 2 : g)]);
                if constexpr (!MINS || S == kBytes8) {
                    const vi fix = vi_set(offset * sum[r * ld + g]);
                    for (int i = 0; i < NV; ++i) d[r][i] = vi_add(d[r][i], fix);
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
static void gemm(const PackedMatrix& w, int offset, const QuantizedRows& a, int64_t row0, int64_t row1, int64_t tile0,
                 int64_t tile1, float* out, int64_t ldo) {
    for (int64_t t = tile0; t < tile1; ++t) {
        const uint8_t* tile = w.data + t * w.tile_bytes;
        const int64_t columns = w.N - t * kTile;
        const float* bias = w.bias ? w.bias + t * kTile : nullptr;
        float* o = out + t * kTile;
        int64_t m = row0;
        for (; m + 4 <= row1; m += 4) tile_rows<S, 4, HALF, MINS>(w, offset, tile, a, m, o + m * ldo, ldo, bias, columns);
        if (row1 - m == 3) tile_rows<S, 3, HALF, MINS>(w, offset, tile, a, m, o + m * ldo, ldo, bias, columns);
        if (row1 - m == 2) tile_rows<S, 2, HALF, MINS>(w, offset, tile, a, m, o + m * ldo, ldo, bias, columns);
        if (row1 - m == 1) tile_rows<S, 1, HALF, MINS>(w, offset, tile, a, m, o + m * ldo, ldo, bias, columns);
    }
}

template <Source S>
static void gemm_source(const PackedMatrix& w, const QuantizedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
                        float* out, int64_t ldo) {
    // What must be added to the values as they enter the dot product to make them u - zero.
    const int offset = (S == kBytes8 && kFlipped ? 128 : 0) - w.zero;
    const bool half = w.group == 16;
    auto* const run = half ? (w.mins ? gemm<S, true, true> : gemm<S, true, false>)
                           : (w.mins ? gemm<S, false, true> : gemm<S, false, false>);
    run(w, offset, a, row0, row1, tile0, tile1, out, ldo);
}

}  // namespace

void gemm_int(const PackedMatrix& w, const QuantizedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
              float* out, int64_t ldo) {
    auto* const run = w.kind == WeightKind::int4 ? gemm_source<kNibbles>
                      : w.bits <= 5              ? gemm_source<kBytes5>
                      : w.bits == 6              ? gemm_source<kBytes6>
                                                 : gemm_source<kBytes8>;
    run(w, a, row0, row1, tile0, tile1, out, ldo);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
