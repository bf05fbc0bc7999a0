#include "kernels/linear.h"

#include "kernels/linear_impl.h"

namespace octavo {
namespace OCTAVO_ISA {

#if defined(__AVX512BF16__)
extern const LinearKernels linear_kernels = {kBlock,    quantize_blocks, gemm_int,   gemm_float, round_bf16,
                                             gemm_bf16, fix_rows,        gemm_fixed, gather_row};
#else
extern const LinearKernels linear_kernels = {kBlock,  quantize_blocks, gemm_int,   gemm_float, nullptr,
                                             nullptr, fix_rows,        gemm_fixed, gather_row};
#endif

}  // namespace OCTAVO_ISA
}  // namespace octavo
