// What the machine can do at best at this level, for benchmarks: one thread's share of reading memory and of arithmetic.
#pragma once

#include "isa.h"

namespace octavo {

struct PeakKernels {
    // The sum of the 32-bit words of `bytes` bytes, a multiple of 256.
    int32_t (*read)(const void* memory, int64_t bytes);
    // `steps` times float_ops operations: independent fused multiply-adds, each counted as two.
    float (*multiply_add)(int64_t steps);
    // `steps` times int8_ops operations: dot products of bytes, each product and each sum counted.
    int32_t (*dot_int8)(int64_t steps);
    int64_t float_ops;
    int64_t int8_ops;
};

OCTAVO_DECLARE_KERNELS(PeakKernels, peak_kernels)

}  // namespace octavo
