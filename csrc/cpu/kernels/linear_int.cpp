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

// Adds the dot products of part g (a group of activations, or half of one) to the sums: the operations of linear.h.
template <int R, bool HALF, bool MINS>
OCTAVO_INLINE void add_part(vf (*acc)[NV], vi (*d)[NV], const vf* ws, const vf* wm, const QuantizedRows& a, int64_t row,
                            int64_t g, int zero) {
    const int64_t ld = HALF ? 2 * a.groups : a.groups;
    const float* scale = a.scale + row * a.groups + (HALF ? g / 2 : g);
    const int32_t* sum = (HALF ? a.sum16 : a.sum) + row * ld + g;
    const float* fsum = (HALF ? a.fsum16 : a.fsum) + row * ld + g;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const vf as = vf_set(scale[r * a.groups]);
        if constexpr (!MINS) {
            const vi fix = vi_set(zero * sum[r * ld]);
            for (int i = 0; i < NV; ++i) d[r][i] = vi_sub(d[r][i], fix);
        }
        for (int i = 0; i < NV; ++i) acc[r][i] = vf_fma(vi_to_f32(d[r][i]), vf_mul(ws[i], as), acc[r][i]);
        if constexpr (MINS) {
            const vf fs = vf_set(fsum[r * ld]);
            for (int i = 0; i < NV; ++i) acc[r][i] = vf_fma(wm[i], fs, acc[r][i]);
        }
    }
}

// How far ahead of the dot products weights are asked for, in bytes.
constexpr int64_t kAhead = 4096;

// One tile by R rows.
template <Source S, int R, bool HALF, bool MINS>
static void tile_rows(const PackedMatrix& w, const uint8_t* tile, const QuantizedRows& a, int64_t row, float* out,
                      int64_t ldo, const float* bias, int64_t columns) {
    constexpr int PAIRS = HALF ? 8 : 16;
    constexpr int64_t kPairsBytes = S == kNibbles ? 16 * PAIRS : 32 * PAIRS;
    const bool wide = w.wide_scales;
    const int64_t header = wide ? 64 : 32;
    const int64_t groups = w.K / w.group, parts = HALF ? 1 : w.group / kActGroup;
    const int16_t* q = a.q + row * a.ldq;
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
            // The weights pass once, and a hardware prefetcher stops at every page.
            for (int64_t line = 0; line < kPairsBytes + 64; line += 64) __builtin_prefetch(tile + kAhead + line);
            vi d[R][NV];
            dot_group<S, R, PAIRS>(tile, q, a.ldq, d);
            add_part<R, HALF, MINS>(acc, d, ws, wm, a, row, g, w.zero);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) store_tile_row(out + r * ldo, acc[r], bias, columns);
}

// With many rows, a piece of a tile is widened once and stays in the first-level cache while they pass; the sums wait in
// memory from piece to piece.
constexpr int64_t kPieceK = 256, kPieceRows = 48, kPieceMin = 13;
constexpr int kWideRows = VC == 16 ? 12 : VC == 8 ? 6 : 2;

struct Piece {
    alignas(64) int16_t w[kPieceK * kTile];  // pairs of k, as load_pair gives them
    alignas(64) float scale[kPieceK / 16 * kTile], min[kPieceK / 16 * kTile];  // of each part
    alignas(64) float acc[kPieceRows * kTile];
    int64_t part0, parts;  // which parts of the tile these are
};

// Fills parts [part0, part0 + parts) of p.
template <Source S, bool HALF, bool MINS>
static void widen(const PackedMatrix& w, const uint8_t* tile, Piece& p) {
    constexpr int PAIRS = HALF ? 8 : 16;
    constexpr int64_t kPairsBytes = S == kNibbles ? 16 * PAIRS : 32 * PAIRS;
    const int64_t header = w.wide_scales ? 64 : 32, per_group = HALF ? 1 : w.group / kActGroup;
    for (int64_t b = 0; b < p.parts; ++b) {
        const int64_t part = p.part0 + b;
        const uint8_t* src = tile + part / per_group * w.group_bytes;
        vf s[NV];
        load_scales(src, w.wide_scales, s);
        for (int i = 0; i < NV; ++i) vf_store(p.scale + b * kTile + i * VC, s[i]);
        src += header;
        if constexpr (MINS) {
            load_scales(src, w.wide_scales, s);
            for (int i = 0; i < NV; ++i) vf_store(p.min + b * kTile + i * VC, s[i]);
            src += header;
        }
        src += part % per_group * kPairsBytes;
        vi raw[NV], v[NV];
        int16_t* dst = p.w + b * 2 * PAIRS * kTile;
#pragma GCC unroll 16
        for (int pair = 0; pair < PAIRS; ++pair) {
            load_pair<S>(src, pair, raw, v);
            for (int i = 0; i < NV; ++i) vi_store(dst + (pair * NV + i) * 2 * VC, v[i]);
        }
    }
}

// Keeps the compiler from replacing an address by a table of sums on the stack.
template <class T>
OCTAVO_INLINE void keep_register(T& x) {
    asm("" : "+r"(x));
}

// Adds a piece to the sums of R rows; row is the first of them, acc where its sums wait.
template <int R, bool HALF, bool MINS>
static void piece_rows(const Piece& p, const QuantizedRows& a, int64_t row, float* sums, int zero) {
    constexpr int PAIRS = HALF ? 8 : 16;
    const int16_t* w = p.w;
    // Three rows share an address register: base, base + ld, base + 2 ld.
    const int16_t* base[(R + 2) / 3];
    for (int r = 0; r < R; r += 3) base[r / 3] = a.q + (row + r) * a.ldq + p.part0 * 2 * PAIRS;
    int64_t ld = a.ldq;
    vf acc[R][NV];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < NV; ++i) acc[r][i] = vf_load(sums + r * kTile + i * VC);
    for (int64_t b = 0; b < p.parts; ++b, w += 2 * PAIRS * kTile) {
        vi d[R][NV];
        keep_register(ld);
        for (int r = 0; r < R; r += 3) keep_register(base[r / 3]);
#pragma GCC unroll 16
        for (int pair = 0; pair < PAIRS; ++pair) {
            vi v[NV];
            for (int i = 0; i < NV; ++i) v[i] = vi_load(w + (pair * NV + i) * 2 * VC);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const vi x = vi_bcast2(base[r / 3] + r % 3 * ld + 2 * pair);
                for (int i = 0; i < NV; ++i) {
                    d[r][i] = pair == 0 ? vi_dot(v[i], x) : vi_dot_add(d[r][i], v[i], x);
                    vi_pin(d[r][i]);
                }
            }
        }
        for (int r = 0; r < R; r += 3) base[r / 3] += 2 * PAIRS;
        vf ws[NV], wm[NV];
        for (int i = 0; i < NV; ++i) {
            ws[i] = vf_load(p.scale + b * kTile + i * VC);
            if constexpr (MINS) wm[i] = vf_load(p.min + b * kTile + i * VC);
        }
        add_part<R, HALF, MINS>(acc, d, ws, wm, a, row, p.part0 + b, zero);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < NV; ++i) vf_store(sums + r * kTile + i * VC, acc[r][i]);
}

// R rows at a time, then what is left with half as many, and so on.
template <int R, bool HALF, bool MINS>
static void piece_block(const Piece& p, const QuantizedRows& a, int64_t row, int64_t rows, float* sums, int zero) {
    for (; rows >= R; rows -= R, row += R, sums += R * kTile) piece_rows<R, HALF, MINS>(p, a, row, sums, zero);
    constexpr int kNext = R == 3 ? 2 : R / 2;
    if constexpr (R > 1)
        if (rows > 0) piece_block<kNext, HALF, MINS>(p, a, row, rows, sums, zero);
}

template <Source S, bool HALF, bool MINS>
static void tile_block(const PackedMatrix& w, const uint8_t* tile, const QuantizedRows& a, int64_t row, int64_t rows,
                       float* out, int64_t ldo, const float* bias, int64_t columns) {
    constexpr int64_t kPart = HALF ? 16 : 32;
    const int64_t parts = w.K / kPart;
    Piece p;
    memset(p.acc, 0, size_t(rows * kTile) * sizeof(float));
    for (p.part0 = 0; p.part0 < parts; p.part0 += kPieceK / kPart) {
        p.parts = parts - p.part0 < kPieceK / kPart ? parts - p.part0 : kPieceK / kPart;
        widen<S, HALF, MINS>(w, tile, p);
        piece_block<kWideRows, HALF, MINS>(p, a, row, rows, p.acc, w.zero);
    }
    for (int64_t r = 0; r < rows; ++r) {
        vf acc[NV];
        for (int i = 0; i < NV; ++i) acc[i] = vf_load(p.acc + r * kTile + i * VC);
        store_tile_row(out + r * ldo, acc, bias, columns);
    }
}

template <Source S, bool HALF, bool MINS>
static void gemm(const PackedMatrix& w, const QuantizedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
                 float* out, int64_t ldo) {
    for (int64_t t = tile0; t < tile1; ++t) {
        const uint8_t* tile = w.data + t * w.tile_bytes;
        const int64_t columns = w.N - t * kTile;
        const float* bias = w.bias ? w.bias + t * kTile : nullptr;
        float* o = out + t * kTile;
        int64_t m = row0;
        for (int64_t rows; (rows = row1 - m < kPieceRows ? row1 - m : kPieceRows) >= kPieceMin; m += rows)
            tile_block<S, HALF, MINS>(w, tile, a, m, rows, o + m * ldo, ldo, bias, columns);
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
