// What the files of the linear kernels share; the table is in linear.cpp.
#pragma once

#include "kernels/intdot.h"
#include "kernels/linear.h"

namespace octavo {
namespace OCTAVO_ISA {

// Rows of a block: with a sum and a dot product each they fill the registers.
constexpr int kBlock = VC == 16 ? 12 : VC == 8 ? 6 : 4;

void quantize_blocks(const float* x, int64_t ldx, int64_t K, int64_t block0, int64_t block1, const QuantizedRows& dst);
void gemm_int(const PackedMatrix& w, const QuantizedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
              float* out, int64_t ldo);
void gemm_float(const PackedMatrix& w, const float* x, int64_t ldx, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
                float* out, int64_t ldo);
void round_bf16(const float* x, int64_t ldx, int64_t K, int64_t block0, int64_t block1, const Bf16Rows& dst);
void gemm_bf16(const PackedMatrix& w, const Bf16Rows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1, float* out,
               int64_t ldo);
void gather_row(const PackedMatrix& w, int64_t n, float scale, float* out);

// One row of a tile's results to out, at most `columns` of them.
OCTAVO_INLINE void store_tile_row(float* out, const vf* acc, const float* bias, int64_t columns) {
    vf v[NV];
    for (int i = 0; i < NV; ++i) v[i] = bias ? vf_add(acc[i], vf_load(bias + i * VC)) : acc[i];
    if (columns >= kTile) {
        for (int i = 0; i < NV; ++i) vf_store(out + i * VC, v[i]);
        return;
    }
    float t[kTile];
    for (int i = 0; i < NV; ++i) vf_store(t + i * VC, v[i]);
    for (int64_t i = 0; i < columns; ++i) out[i] = t[i];
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
