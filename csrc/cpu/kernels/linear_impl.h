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
void fix_rows(const float* x, int64_t ldx, int64_t K, int64_t block0, int64_t block1, const FixedRows& dst);
void gemm_fixed(const PackedMatrix& w, const FixedRows& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1, float* out,
                int64_t ldo);
void gather_row(const PackedMatrix& w, int64_t n, float scale, float* out);

// One vector of results to out, at most `columns` of them (none if there are none left).
OCTAVO_INLINE void store_columns(float* out, vf acc, const float* bias, int64_t columns) {
    const vf v = bias ? vf_add(acc, vf_load(bias)) : acc;
    if (columns >= VC) vf_store(out, v);
    else vf_store_n(out, v, int(columns));
}

// One row of a tile's results to out, at most `columns` of them.
OCTAVO_INLINE void store_tile_row(float* out, const vf* acc, const float* bias, int64_t columns) {
    for (int i = 0; i < NV; ++i) store_columns(out + i * VC, acc[i], bias ? bias + i * VC : nullptr, columns - i * VC);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
