#include "address.h"
#include "lora_bank.h"
#include "runtime.h"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <utility>
#include <vector>

namespace nb = nanobind;

namespace octavo {

namespace {

using Part = std::tuple<int64_t, int64_t, int, Address, Address, float>;  // the fields of LoraPart, in their order

void put(LoraBank& self, int slot, int type, const std::vector<Part>& parts, Address scale, Address shift) {
    std::vector<LoraPart> found;
    for (const auto& [first, columns, rank, a, b, scaling] : parts)
        found.push_back({first, columns, rank, at<void>(a), at<void>(b), scaling});
    self.put(slot, LoraType(type), std::move(found), at<float>(scale), at<float>(shift));
}

void add(const LoraBank& self, Address out, Address x, Address slots, int64_t rows) {
    nb::gil_scoped_release release;
    self.add(at<float>(out), at<float>(x), LoraPlan(at<int32_t>(slots), rows));
}

}  // namespace

void bind_lora(nb::module_& m) {
    nb::class_<LoraBank>(m, "LoraBank")
        .def(nb::init<int64_t, int64_t, int>(), nb::arg("N"), nb::arg("K"), nb::arg("num_slots"))
        .def("put", &put, nb::arg("slot"), nb::arg("type"), nb::arg("parts"), nb::arg("scale"), nb::arg("shift"))
        .def("clear", &LoraBank::clear, nb::arg("slot"))
        .def("add", &add, nb::arg("out"), nb::arg("x"), nb::arg("slots"), nb::arg("rows"))
        .def_prop_ro("N", &LoraBank::N)
        .def_prop_ro("K", &LoraBank::K);
}

}  // namespace octavo
