#include "packed_linear.h"
#include "runtime.h"

namespace nb = nanobind;

namespace octavo {

namespace {

template <class T>
T* address(uintptr_t p) {
    return reinterpret_cast<T*>(p);
}

}  // namespace

void bind_linear(nb::module_& m) {
    using Unlocked = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<PackedLinear>(m, "PackedLinear")
        .def(nb::init<int64_t>(), nb::arg("K"))
        .def(
            "add_int",
            [](PackedLinear& self, uintptr_t values, int64_t N, int bits, int64_t group, uintptr_t scales, uintptr_t mins,
               bool wide, int zero, uintptr_t bias) {
                self.add_int(address<const uint8_t>(values), N, bits, group, address<const void>(scales),
                             address<const void>(mins), wide, zero, address<const float>(bias));
            },
            nb::arg("values"), nb::arg("N"), nb::arg("bits"), nb::arg("group"), nb::arg("scales"), nb::arg("mins"),
            nb::arg("wide"), nb::arg("zero"), nb::arg("bias"), Unlocked())
        .def(
            "add_float",
            [](PackedLinear& self, uintptr_t weights, int64_t N, int kind, uintptr_t bias) {
                self.add_float(address<const void>(weights), N, static_cast<WeightKind>(kind), address<const float>(bias));
            },
            nb::arg("weights"), nb::arg("N"), nb::arg("kind"), nb::arg("bias"), Unlocked())
        .def(
            "linear",
            [](const PackedLinear& self, uintptr_t out, int64_t ldo, uintptr_t x, int64_t ldx, int64_t M) {
                self.linear(address<float>(out), ldo, address<const float>(x), ldx, M);
            },
            nb::arg("out"), nb::arg("ldo"), nb::arg("x"), nb::arg("ldx"), nb::arg("M"), Unlocked())
        .def(
            "gather",
            [](const PackedLinear& self, uintptr_t out, int64_t ldo, uintptr_t ids, int64_t M, float scale) {
                self.gather(address<float>(out), ldo, address<const int32_t>(ids), M, scale);
            },
            nb::arg("out"), nb::arg("ldo"), nb::arg("ids"), nb::arg("M"), nb::arg("scale"), Unlocked())
        .def_prop_ro("N", &PackedLinear::N)
        .def_prop_ro("K", &PackedLinear::K)
        .def_prop_ro("nbytes", &PackedLinear::nbytes);
}

}  // namespace octavo
