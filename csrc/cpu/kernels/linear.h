#pragma once
#include "isa.h"
namespace octavo {
struct LinearKernels {
    int64_t tile_columns;
};
OCTAVO_DECLARE_KERNELS(LinearKernels, linear_kernels)
}  // namespace octavo
