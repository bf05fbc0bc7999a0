#include "kernels/linear.h"
#include "simd.h"
namespace octavo {
namespace OCTAVO_ISA {
extern const LinearKernels linear_kernels = {16};
}
}
