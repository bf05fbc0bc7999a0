#include "kernels/linear.h"

#include "kernels/linear_impl.h"

namespace octavo {
namespace OCTAVO_ISA {

extern const LinearKernels linear_kernels = {kBlock, quantize_blocks, gemm_int, gemm_float, gather_row};

}  // namespace OCTAVO_ISA
}  // namespace octavo
