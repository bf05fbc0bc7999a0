#include "kernels/linear.h"
#include "runtime.h"

namespace octavo {

void bind_linear(nanobind::module_& m) {
    m.def("tile_columns", [] { return OCTAVO_KERNELS(linear_kernels).tile_columns; });
}

}  // namespace octavo
