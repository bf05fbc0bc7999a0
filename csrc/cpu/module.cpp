// octavo._cpu: raw addresses and sizes in, results written to the caller's memory. Shapes and dtypes are checked by the
// Python side (octavo/ops); nothing here keeps a pointer after it returns, but for Program and
// LoraBank.
#include "pool.h"
#include "runtime.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace nb = nanobind;

NB_MODULE(_cpu, m) {
    octavo::init_isa();
    m.def("set_num_threads", &octavo::set_num_threads, nb::arg("n"), nb::call_guard<nb::gil_scoped_release>());
    m.def("num_threads", &octavo::num_threads);
    m.def("set_isa", &octavo::set_isa, nb::arg("name"));
    m.def("isa", &octavo::isa_name);
    m.def("available_isas", &octavo::available_isas);
    octavo::bind_linear(m);
    octavo::bind_step(m);
    octavo::bind_lora(m);
    octavo::bind_program(m);
    octavo::bind_peak(m);
}
