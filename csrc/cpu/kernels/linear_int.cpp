#include "kernels/linear_impl.h"

namespace octavo {
namespace OCTAVO_ISA {

namespace {

// A quad is a step of a tile's values: four consecutive k, in as many bits as the weight takes.
constexpr uint32_t kLowNibbles = 0x0f0f0f0fu, kLowBits = 0x7f7f7f7fu, kHighBits = 0x80808080u;

constexpr int64_t quad_bytes(int bits) { return 8 * bits; }

// What one load serves several quads with.
struct Loaded {
    vi nibbles, high;
};

// Quad q of the VC columns whose bytes begin at w, in a part of QUADS quads, which are taken in their order.
template <int BITS, int QUADS>
OCTAVO_INLINE vi load_quad(const uint8_t* w, int q, Loaded& loaded) {
    if constexpr (BITS == 8) return vi_load(w + 64 * q);
    if (q % 2 == 0) loaded.nibbles = vi_load(w + 32 * q);
    const vi low = vi_and(vi_shift(loaded.nibbles, q % 2 == 0 ? 0 : -4), kLowNibbles);
    if constexpr (BITS == 4) return low;
    constexpr int kHigh = BITS == 4 ? 1 : BITS - 4, kSharing = 8 / kHigh;
    if (q % kSharing == 0) loaded.high = vi_load(w + 32 * QUADS + 64 * (q / kSharing));
    constexpr uint32_t kAboveNibble = BITS == 5 ? 0x10101010u : 0x30303030u;
    return vi_or(low, vi_and(vi_shift(loaded.high, 4 - kHigh * (q % kSharing)), kAboveNibble));
}

// acc + the products of a quad.
template <int BITS>
OCTAVO_INLINE vi add_quad(vi acc, vi w, vi a) {
    if constexpr (BITS < 8 || kDot4) return vi_dot4(acc, w, a);
    return vi_dot4(vi_dot4(acc, vi_and(w, kLowBits), a), vi_and(w, kHighBits), a);
}

// d[r] = dot products over 4 * QUADS values of k, R rows; quad q of row r is at a + r * kActGroup + 4 * q.
template <int BITS, int R, int QUADS>
OCTAVO_INLINE void dot_part(const uint8_t* w, const int8_t* a, vi* d) {
    constexpr bool kPairs = BITS == 4 && !kDot4;
    Loaded loaded;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) d[r] = vi_zero();
    if constexpr ((BITS == 5 || BITS == 6) && !kDot4) {
#pragma GCC unroll 16
        for (int q = 0; q < QUADS; q += 2) {
            const vi v0 = load_quad<BITS, QUADS>(w, q, loaded), v1 = load_quad<BITS, QUADS>(w, q + 1, loaded);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                // 16 bits hold the sums of two quads: 4 * 63 * 127 < 2^15.
                const int8_t* x = a + r * kActGroup + 4 * q;
                d[r] = vi_add(d[r], vi_sum2(vi_add16(vi_dot2(v0, vi_bcast4(x)), vi_dot2(v1, vi_bcast4(x + 4)))));
                vi_pin(d[r]);
            }
        }
        return;
    }
#pragma GCC unroll 16
    for (int q = 0; q < QUADS; ++q) {
        const vi v = load_quad<BITS, QUADS>(w, q, loaded);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const vi x = vi_bcast4(a + r * kActGroup + 4 * q);
            // 16 bits hold the sums of a part's nibbles: 8 * 2 * 15 * 127 < 2^15.
            d[r] = kPairs ? vi_add16(d[r], vi_dot2(v, x)) : add_quad<BITS>(d[r], v, x);
            vi_pin(d[r]);
        }
    }
    if (kPairs)
        for (int r = 0; r < R; ++r) d[r] = vi_sum2(d[r]);
}

// The shape of a weight's parts, and where a part's scale and values are.
template <int BITS, bool HALF, bool MINS>
struct Parts {
    static constexpr int kQuads = HALF ? 4 : 8;
    static constexpr int64_t kBytesOfPart = kQuads * quad_bytes(BITS);
    int64_t header, per_group, unit_groups, unit_bytes;
    ScaleForm form;
    float zero;

    explicit Parts(const PackedMatrix& w)
        : header(w.header), per_group(HALF ? 1 : w.group / kActGroup), unit_groups(w.unit_groups),
          unit_bytes(w.unit_bytes), form(w.scales), zero(float(-w.zero)) {}

    // Scales, or mins, of the columns from `column` on in group g of a unit.
    template <bool OF_MINS>
    vf load(const uint8_t* unit, int64_t g, int64_t column) const {
        if (form == ScaleForm::f32) return vf_load((const float*)unit + (OF_MINS ? kTile : 0) + column);
        const uint16_t* halves = (const uint16_t*)unit + (OF_MINS ? kTile : 0) + column;
        if (form == ScaleForm::f16) return vf_load_f16(halves);
        const int8_t* steps = (const int8_t*)(unit + (MINS ? 4 : 2) * kTile) + ((OF_MINS ? unit_groups : 0) + g) * kTile + column;
        return vf_mul(vf_load_f16(halves), vf_load_i8(steps));
    }
    vf scale(const uint8_t* unit, int64_t g, int64_t column) const { return load<false>(unit, g, column); }
    vf min(const uint8_t* unit, int64_t g, vf scale, int64_t column) const {
        if constexpr (MINS) return load<true>(unit, g, column);
        return vf_mul(scale, vf_set(zero));
    }
};

// How far ahead of the dot products weights are asked for, in bytes.
constexpr int64_t kAhead = 4096;

// One row's dot product with quads that lie in registers, in two chains.
template <int BITS, int QUADS>
OCTAVO_INLINE vi dot_row(const vi* w, const int8_t* a) {
    vi d[2] = {vi_zero(), vi_zero()};
#pragma GCC unroll 16
    for (int q = 0; q < QUADS; ++q) d[q % 2] = add_quad<BITS>(d[q % 2], w[q], vi_bcast4(a + 4 * q));
    return vi_add(d[0], d[1]);
}

// The low bits of the wide groups of a block, added to the sums that wait in memory.
template <int BITS, bool HALF, bool MINS>
static void add_low(const Parts<BITS, HALF, MINS>& parts, int64_t K, const uint8_t* tile, int64_t column,
                    const QuantizedRows& a, int64_t row0, int64_t rows, float (*sums)[VC]) {
    typedef Parts<BITS, HALF, MINS> P;
    constexpr int64_t kHalves = HALF ? 2 : 1, kValues = 4 * P::kQuads;
    const int64_t block = row0 / a.block;
    const uint32_t* wide = a.wide + block * a.groups;
    for (int32_t i = 0; i < a.num_wide[block]; ++i) {
        const int64_t group = wide[i] >> 16;
        const float* scale = a.scale + row0 * a.groups + group * rows;
        for (int64_t part = group * kHalves; part < (group + 1) * kHalves && part * kValues < K; ++part) {
            const int64_t at = part / parts.per_group, g = at % parts.unit_groups;
            const uint8_t* p = tile + at / parts.unit_groups * parts.unit_bytes;
            const vf ws = vf_mul(parts.scale(p, g, column), vf_set(1.0f / 128.0f));
            p += parts.header + (g * parts.per_group + part % parts.per_group) * P::kBytesOfPart + column * 4;
            const int8_t* low = a.low + row0 * a.ldq + part * kValues;
            vi w[P::kQuads];
            Loaded loaded;
#pragma GCC unroll 16
            for (int q = 0; q < P::kQuads; ++q) w[q] = load_quad<BITS, P::kQuads>(p, q, loaded);
            for (uint32_t left = wide[i] & 0xffff; left; left &= left - 1) {
                const int row = __builtin_ctz(left);
                const vi d = dot_row<BITS, P::kQuads>(w, low + row * a.ldq);
                vf_store(sums[row], vf_fma(vi_to_f32(d), vf_mul(ws, vf_set(scale[row])), vf_load(sums[row])));
            }
        }
    }
}

// Vectors of columns that a block of so many rows takes in one pass. With few rows a pass is a read of the weights: in two
// passes over a tile the memory would rest during the second. It is no part of the result.
constexpr int vectors_at_once(int rows) { return rows * NV <= kBlock ? NV : 1; }

// A group of weights that many parts share: its scale counts once, for the sum of them.
template <int BITS, int R, int C>
OCTAVO_INLINE void long_group(int64_t parts, const uint8_t* p, const int8_t* q, const float* scale, const float* sum,
                              const vf (&ws)[C], const vf (&wm)[C], vf (&acc)[C][R]) {
    constexpr int kQuads = 8;
    vf group[C][R];
    float sums[R];
#pragma GCC unroll 16
    for (int i = 0; i < C * R; ++i) group[i / R][i % R] = vf_zero();
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sums[r] = 0.0f;
    for (int64_t i = 0; i < parts; ++i, p += kQuads * quad_bytes(BITS), q += kActGroup * R, scale += R, sum += R) {
        for (int64_t line = 0; line < kQuads * quad_bytes(BITS); line += 64) __builtin_prefetch(p + kAhead + line);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            vi d[R];
            dot_part<BITS, R, kQuads>(p + c * VC * 4, q, d);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) group[c][r] = vf_fma(vi_to_f32(d[r]), vf_set(scale[r]), group[c][r]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) sums[r] += sum[r];
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            acc[c][r] = vf_fma(group[c][r], ws[c], acc[c][r]);
            acc[c][r] = vf_fma(wm[c], vf_set(sums[r]), acc[c][r]);
        }
}

// A block of R rows by vectors of columns, from `column` on of a tile.
template <int BITS, bool HALF, bool MINS, int R>
static void block_columns(const PackedMatrix& w, const uint8_t* tile, int64_t column, const QuantizedRows& a, int64_t row0,
                          float* out, int64_t ldo, const float* bias, int64_t columns) {
    typedef Parts<BITS, HALF, MINS> P;
    constexpr int C = vectors_at_once(R);
    const P parts(w);
    const int64_t groups = w.K / w.group;
    const int8_t* q = a.q + row0 * a.ldq;
    const float* scale = a.scale + row0 * a.groups;
    const float* sum = HALF ? a.sum16 + row0 * 2 * a.groups : a.sum + row0 * a.groups;
    const uint8_t *unit = tile, *p = tile + parts.header;
    vf acc[C][R], ws[C], wm[C];
#pragma GCC unroll 16
    for (int i = 0; i < C * R; ++i) acc[i / R][i % R] = vf_zero();
    for (int64_t wg = 0, g = 0; wg < groups; ++wg) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            ws[c] = parts.scale(unit, g, column + c * VC);
            wm[c] = parts.min(unit, g, ws[c], column + c * VC);
        }
        if (!HALF && parts.per_group > 1) {
            long_group<BITS, R>(parts.per_group, p + column * 4, q, scale, sum, ws, wm, acc);
            p += P::kBytesOfPart * parts.per_group;
            q += kActGroup * R * parts.per_group;
            scale += R * parts.per_group;
            sum += R * parts.per_group;
        } else {
            // The weights pass once, and a hardware prefetcher stops at every page.
            for (int64_t line = 0; line < P::kBytesOfPart + 64; line += 64) __builtin_prefetch(p + kAhead + line);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
                vi d[R];
                dot_part<BITS, R, P::kQuads>(p + (column + c * VC) * 4, q, d);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    acc[c][r] = vf_fma(vi_to_f32(d[r]), vf_mul(ws[c], vf_set(scale[r])), acc[c][r]);
                    acc[c][r] = vf_fma(wm[c], vf_set(sum[r]), acc[c][r]);
                }
            }
            p += P::kBytesOfPart;
            sum += R;
            if (HALF && wg % 2 == 0) {
                q += kActGroup / 2;
            } else {
                q += HALF ? kActGroup * R - kActGroup / 2 : kActGroup * R;
                scale += R;
            }
        }
        if (++g == parts.unit_groups) g = 0, unit = p, p += parts.header;
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
        const int at = c * VC;
        if (a.num_wide[row0 / a.block] > 0) {
            alignas(64) float sums[R][VC];
            for (int r = 0; r < R; ++r) vf_store(sums[r], acc[c][r]);
            add_low(parts, w.K, tile, column + at, a, row0, R, sums);
            for (int r = 0; r < R; ++r) acc[c][r] = vf_load(sums[r]);
        }
        for (int r = 0; r < R; ++r) store_columns(out + r * ldo + at, acc[c][r], bias ? bias + at : nullptr, columns - at);
    }
}

// Finds the block's number of rows among 1 .. kBlock.
template <int BITS, bool HALF, bool MINS, int R = kBlock>
static void block_of(int64_t rows, const PackedMatrix& w, const uint8_t* tile, int64_t column, const QuantizedRows& a,
                     int64_t row0, float* out, int64_t ldo, const float* bias, int64_t columns) {
    if (rows == R) return block_columns<BITS, HALF, MINS, R>(w, tile, column, a, row0, out, ldo, bias, columns);
    if constexpr (R > 1) block_of<BITS, HALF, MINS, R - 1>(rows, w, tile, column, a, row0, out, ldo, bias, columns);
}

template <int BITS, bool HALF, bool MINS>
static void gemm(const PackedMatrix& w, const QuantizedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
                 float* out, int64_t ldo) {
    for (int64_t t = tile0; t < tile1; ++t)
        for (int64_t row = row0; row < row1; row += kBlock) {
            const int64_t rows = row1 - row < kBlock ? row1 - row : kBlock, step = vectors_at_once(int(rows)) * VC;
            for (int64_t column = 0; column < kTile && t * kTile + column < w.N; column += step) {
                const int64_t at = t * kTile + column;
                block_of<BITS, HALF, MINS>(rows, w, w.data + t * w.tile_bytes, column, a, row, out + row * ldo + at, ldo,
                                        w.bias ? w.bias + at : nullptr, w.N - at);
            }
        }
}

typedef decltype(&gemm<8, false, false>) Gemm;

template <int BITS, bool HALF>
static Gemm gemm_of(const PackedMatrix& w) {
    return w.mins ? gemm<BITS, HALF, true> : gemm<BITS, HALF, false>;
}

}  // namespace

void gemm_int(const PackedMatrix& w, const QuantizedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
              float* out, int64_t ldo) {
    const bool half = w.group == 16;
    const Gemm run = w.bits == 4   ? (half ? gemm_of<4, true>(w) : gemm_of<4, false>(w))
                     : w.bits == 5 ? gemm_of<5, false>(w)
                     : w.bits == 6 ? (half ? gemm_of<6, true>(w) : gemm_of<6, false>(w))
                                   : (half ? gemm_of<8, true>(w) : gemm_of<8, false>(w));
    run(w, a, row0, row1, tile0, tile1, out, ldo);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
