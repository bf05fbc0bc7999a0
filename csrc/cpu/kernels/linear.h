// out[m, n] = sum over k of x[m, k] * w[n, k], with w packed in tiles of 16 columns n. x and out are f32.
//
// The law of these kernels: out[m, n] depends on row m of x and column n of w alone. Every element is one chain of
// operations over k, the same whatever the number of rows, and whichever rows and columns are computed beside it.
//
// A packed matrix is the same for all instruction-set levels. Tile t holds columns 16t .. 16t+15 (zeros past N).
//
//   integer  units along K, each a header with scales and mins (if any), then the values in parts of 32 k, or of 16 where
//            so many share a scale, and in steps of 4 k. Values of 8 bits take 64 bytes a step: byte 4c + i is column c at
//            k + i. Of fewer bits the low four put two steps into 64 bytes, the even step in the low nibbles, the odd one
//            in the high; what is above them follows behind the nibbles of a part, the bits of eight steps in 64 bytes if
//            it is one bit, those of four if two, the first step's lowest. A unit is a weight group, its header 16 scales
//            and 16 mins in f16 or f32; or, where scales have two levels, the groups of 256 k: 16 factors in f16, 16 of
//            the mins, then for each group 16 steps of the scales, then for each group those of the mins, int8, filled up
//            to 64 bytes. A scale or a min is the f32 product of its factor and its step, which is exact.
//   bf16     [ceil(K/2)][16][2]: pairs of k side by side
//   f16, f32 [K][16]
//   table    units of a weight group, each a header with 16 scales in f32, then codes of 4 bits: a byte of column c holds k in
//            its low nibble and k + 1 in the high one. A weight is the f32 product of the code's value and the scale.
//   e4m3     the same with a byte a code, a float8. The scales in the header are multiplied by 256, see e4m3_bits.
//   fixed    units of 128 values of K, or what is left of them, each a header with 16 scales in f32, then [k / 2][16][2] in 16
//            bits, K rounded up to a multiple of 16 with zeros. A weight is the product of its number and the scale.
//
// Integer weights (K below 2^21) meet activations of 8 bits, per row and group of 32 values of k. Where a group's largest value
// stands out from its row (kWideFactor), 8 bits would lose the others beside it: such a group is wide and has 15 bits, as
// 128 high + low. On a real model about a tenth of the groups are; the divergence of the model's distribution from float32's
// falls to a quarter of that with 8 bits alone.
//
// The integer dot products are exact. A part (a group of activations, or the 16 of them that share a weight's scale) adds, in
// this order and with these roundings,
//     acc = fma(float(dot of w and q), scale_w * scale_a, acc)       q: the 8 bits, of a wide group the high ones
//     acc = fma(min_w, sum_a, acc)                                   sum_a: of the part; min_w = -zero * scale_w without mins
// Where several parts share the weight's scale, it counts once for them:
//     s = fma(float(dot of w and q), scale_a, s), t = t + sum_a      from zero, over the parts
//     acc = fma(s, scale_w, acc), acc = fma(min_w, t, acc)
// and when all parts have passed, the wide groups' low bits follow in the order of k:
//     acc = fma(float(dot of w and low), (scale_w / 128) * scale_a, acc)
//
// Fixed weights meet activations in the same form. The numbers of a group are as large as its sums allow: their root of the sum
// of squares is at most kFixedNorm, so that by Cauchy and Schwarz no sum of a group's products, and no part of it, leaves 32
// bits. Where values lie about zero like a bell's, a step is the 4,000th part of their root mean square: some four times finer
// than the 11 bits of f16 (or tf32), at the rate of bf16. The dot product of a group is exact, and then
//     acc = fma(float(dot), scale_w * scale_a, acc)
#pragma once

#include "isa.h"

#include <cstddef>
#include <cstdint>

namespace octavo {

constexpr int64_t kTile = 16;    // columns of a tile
constexpr int64_t kSuperGroup = 256;  // values along K that share the factors of their scales
constexpr int64_t kActGroup = 32;  // activations that share a scale
// Values along K of a part, where so many share a weight's scale.
constexpr int64_t part_values(int64_t group) { return group == 16 ? 16 : kActGroup; }
constexpr float kActLimit = 127.0f, kWideLimit = 127.0f * 128.0f + 63.0f;
constexpr int64_t kTableValues = 16;
// A float8 e4m3 as the bits of an f16 that is 256 times smaller: the same fields, with a bias of 15 in place of 7.
constexpr uint16_t e4m3_bits(uint8_t code) { return uint16_t((code & 0x80) << 8 | (code & 0x7f) << 7); }
constexpr float kE4m3Factor = 256.0f;
constexpr float kWideFactor = 6.0f;  // of the row's root mean square
constexpr int64_t kStep = 16;         // activations of 16 bits that lie together; K is rounded up to whole ones
constexpr int64_t kFixedGroup = 128;  // values along K that share a scale
// Rounding adds at most sqrt(128) / 2 to a norm, and (46000 + 6)^2 < 2^31.
constexpr float kFixedNorm = 46000.0f, kFixedLimit = 32767.0f;

enum class WeightKind : int { integer = 0, bf16 = 1, f16 = 2, f32 = 3, table = 4, e4m3 = 5, fixed = 6 };
enum class ScaleForm : int { f16 = 0, f32 = 1, two_level = 2 };

struct PackedMatrix {
    const uint8_t* data = nullptr;
    const float* bias = nullptr;  // padded to whole tiles, or null
    int64_t N = 0, K = 0, tiles = 0;
    int64_t tile_bytes = 0;
    WeightKind kind = WeightKind::f32;
    float table[kTableValues] = {};  // of kind table: what a code stands for
    // Integers only, and what comes in units: table and e4m3, whose groups are of any even size.
    int bits = 0;           // that a value takes: 4, 5 (in whole parts of 32), 6 or 8
    int zero = 0;           // w = scale * (u - zero); 0 with mins
    bool mins = false;      // w = scale * u + min
    ScaleForm scales = ScaleForm::f16;  // of the mins too
    int64_t group = 0;        // values along K that share a scale: 16 or a multiple of 32
    int64_t unit_groups = 1;  // groups in a unit
    int64_t header = 0;       // bytes before a unit's values
    int64_t unit_bytes = 0;
};

// Quantised activations, in blocks of `block` rows (the last may have fewer): a block of R rows that begins at row m has its
// arrays at m times the array's width, and in them R values side by side. K is rounded up to a multiple of 32 with zeros.
struct QuantizedRows {
    int8_t* q = nullptr;      // of a block: [groups][R][32]
    float* scale = nullptr;   // [groups][R]
    float* sum = nullptr;     // [groups][R] sum of a group's activations as they are quantised
    float* sum16 = nullptr;   // [2 groups][R] the same for halves of a group
    int8_t* low = nullptr;    // [rows, ldq], wide groups only
    uint32_t* wide = nullptr;     // [blocks][groups] groups that are wide in a row of the block: 65536 g + a bit for each row
    int32_t* num_wide = nullptr;  // [blocks] how many they are
    int64_t rows = 0, block = 0, ldq = 0, groups = 0;
};

// Activations rounded to bfloat16, in the same blocks: [ld / 16][R][16], K rounded up to a multiple of 16 with zeros.
struct Bf16Rows {
    uint16_t* x = nullptr;
    int64_t rows = 0, ld = 0;
};

// Activations in the fixed form, in the same blocks. K is rounded up to a multiple of kStep with zeros.
struct FixedRows {
    int16_t* q = nullptr;    // of a block: [ldq / 16][R][16]
    float* scale = nullptr;  // [groups][R]
    int64_t rows = 0, ldq = 0, groups = 0;
};

struct LinearKernels {
    int64_t block;  // rows of a block
    // Blocks [block0, block1) of x into dst. A row that holds a NaN or an infinity gets NaN scales.
    void (*quantize)(const float* x, int64_t ldx, int64_t K, int64_t block0, int64_t block1, const QuantizedRows& dst);
    // Columns of tiles [tile0, tile1), rows [row0, row1), whole blocks; out is the address of row 0, column 0 of this matrix.
    void (*gemm_int)(const PackedMatrix& w, const QuantizedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
                     float* out, int64_t ldo);
    void (*gemm_float)(const PackedMatrix& w, const float* x, int64_t ldx, int64_t row0, int64_t row1, int64_t tile0,
                       int64_t tile1, float* out, int64_t ldo);
    // For bfloat16 weights, where the level multiplies pairs of bfloat16; else null, and gemm_float takes them in f32.
    void (*round_bf16)(const float* x, int64_t ldx, int64_t K, int64_t block0, int64_t block1, const Bf16Rows& dst);
    void (*gemm_bf16)(const PackedMatrix& w, const Bf16Rows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
                      float* out, int64_t ldo);
    // Of a group that holds a NaN or an infinity the scale is NaN.
    void (*fix)(const float* x, int64_t ldx, int64_t K, int64_t block0, int64_t block1, const FixedRows& dst);
    void (*gemm_fixed)(const PackedMatrix& w, const FixedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
                       float* out, int64_t ldo);
    // out[k] = scale * w[n, k]; for integers the product with the weight's scale and the sum with its min are rounded apart.
    void (*gather_row)(const PackedMatrix& w, int64_t n, float scale, float* out);
};

OCTAVO_DECLARE_KERNELS(LinearKernels, linear_kernels)

}  // namespace octavo
