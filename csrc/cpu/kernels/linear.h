// out[m, n] = sum over k of x[m, k] * w[n, k], with w packed in tiles of 16 columns n. x and out are f32.
//
// The law of these kernels: out[m, n] depends on row m of x and column n of w alone. Every element is one chain of
// operations over k, the same whatever the number of rows, and whichever rows and columns are computed beside it.
//
// A packed matrix is the same for all instruction-set levels. Tile t holds columns 16t .. 16t+15 (zeros past N).
//
//   integer  per weight group along K: 16 scales, 16 mins (if any), then the values in steps of 4 k, 64 bytes a step:
//            byte 4c + i is column c at k + i. Four-bit values put two steps into 64 bytes: the even step in the low
//            nibbles, the odd one in the high.
//   bf16     [ceil(K/2)][16][2]: pairs of k side by side
//   f16, f32 [K][16]
//
// Integer weights meet activations that are quantised to 16 bits, per row and 32 values of k: 8 bits would move the logits
// of a small model by tenths, 12 are enough to lose nothing. The integer dot products are exact; a group adds, in this order
// and with these roundings,
//     acc = fma(float(dot - zero * sum_a), scale_w * scale_a, acc)
//     acc = fma(min_w, scale_a * sum_a, acc)                                 if the weight has mins
#pragma once

#include "isa.h"

#include <cstddef>
#include <cstdint>

namespace octavo {

constexpr int64_t kTile = 16;    // columns of a tile
constexpr int64_t kActGroup = 32;  // activations that share a scale
constexpr float kActLimit = 32767.0f;

enum class WeightKind : int { int4 = 0, int8 = 1, bf16 = 2, f16 = 3, f32 = 4 };

struct PackedMatrix {
    const uint8_t* data = nullptr;
    const float* bias = nullptr;  // padded to whole tiles, or null
    int64_t N = 0, K = 0, tiles = 0;
    int64_t tile_bytes = 0;
    WeightKind kind = WeightKind::f32;
    // Integer kinds only.
    int bits = 0;           // values are below 2**bits
    int zero = 0;           // w = scale * (u - zero); 0 with mins
    bool mins = false;      // w = scale * u + min
    bool wide_scales = false;  // f32 scales and mins, else f16
    int64_t group = 0;      // values along K that share a scale: 16 or a multiple of 32
    int64_t group_bytes = 0;
};

// Rows of quantised activations; K is rounded up to a multiple of 32 with zeros.
struct QuantizedRows {
    int16_t* q = nullptr;     // [rows, ldq], each four values in the order 0 2 1 3
    float* scale = nullptr;   // [rows, groups]
    int32_t* sum = nullptr;   // [rows, groups] sum of q
    float* fsum = nullptr;    // [rows, groups] scale * sum
    int32_t* sum16 = nullptr;  // [rows, 2 * groups] the same for halves of a group
    float* fsum16 = nullptr;
    int64_t ldq = 0, groups = 0;
};

struct LinearKernels {
    // Rows [row0, row1) of x into dst. A group that holds a NaN or an infinity gets a NaN scale, so that its row is NaN.
    void (*quantize)(const float* x, int64_t ldx, int64_t K, int64_t row0, int64_t row1, const QuantizedRows& dst);
    // Columns of tiles [tile0, tile1), rows [row0, row1); out is the address of row 0, column 0 of this matrix.
    void (*gemm_int)(const PackedMatrix& w, const QuantizedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
                     float* out, int64_t ldo);
    void (*gemm_float)(const PackedMatrix& w, const float* x, int64_t ldx, int64_t row0, int64_t row1, int64_t tile0,
                       int64_t tile1, float* out, int64_t ldo);
    // out[k] = scale * w[n, k]; for integers the product with the weight's scale and the sum with its min are rounded apart.
    void (*gather_row)(const PackedMatrix& w, int64_t n, float scale, float* out);
};

OCTAVO_DECLARE_KERNELS(LinearKernels, linear_kernels)

}  // namespace octavo
