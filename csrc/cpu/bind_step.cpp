#include "runtime.h"

namespace octavo {

void bind_step(nanobind::module_&) {}

}  // namespace octavo
