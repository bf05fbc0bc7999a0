#include "address.h"
#include "block_format.h"
#include "packed_linear.h"
#include "runtime.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <new>
#include <utility>

namespace nb = nanobind;

namespace octavo {

void bind_linear(nb::module_& m) {
    using Unlocked = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<BlockFormat>(m, "BlockFormat")
        .def(
            "__init__",
            [](BlockFormat* self, int64_t block_values, int64_t block_bytes,
               const std::vector<std::array<int64_t, 5>>& given, uint8_t flip, std::vector<uint8_t> table) {
                std::vector<Fields> fields;
                for (const auto& [offset, bytes, width, bits, shift] : given)
                    fields.push_back({offset, bytes, width, int(bits), int(shift)});
                new (self) BlockFormat(block_values, block_bytes, std::move(fields), flip, std::move(table));
            },
            nb::arg("block_values"), nb::arg("block_bytes"), nb::arg("fields"), nb::arg("flip"), nb::arg("table"))
        .def("row_bytes", &BlockFormat::row_bytes, nb::arg("K"))
        .def(
            "unpack",
            [](const BlockFormat& self, Address values, Address data, Address rows, int64_t N, int64_t K) {
                self.unpack(at<uint8_t>(values), at<const uint8_t>(data), at<const int64_t>(rows), N, K);
            },
            nb::arg("values"), nb::arg("data"), nb::arg("rows"), nb::arg("N"), nb::arg("K"), Unlocked());
    nb::class_<PackedLinear>(m, "PackedLinear")
        .def(nb::init<int64_t>(), nb::arg("K"))
        .def(
            "add_int",
            [](PackedLinear& self, Address values, const BlockFormat* format, Address rows, int64_t N, int bits,
               int64_t group, int form, Address scales, Address mins, Address factors, Address min_factors, int zero,
               Address bias) {
                self.add_int({at<const uint8_t>(values), format, at<const int64_t>(rows)}, N, bits, group,
                             {static_cast<ScaleForm>(form), at<const void>(scales), at<const void>(mins),
                              at<const void>(factors), at<const void>(min_factors)},
                             zero, at<const float>(bias));
            },
            nb::arg("values"), nb::arg("format").none(), nb::arg("rows"), nb::arg("N"), nb::arg("bits"), nb::arg("group"),
            nb::arg("form"), nb::arg("scales"), nb::arg("mins"), nb::arg("factors"), nb::arg("min_factors"),
            nb::arg("zero"), nb::arg("bias"), Unlocked())
        .def(
            "add_float",
            [](PackedLinear& self, Address weights, int64_t N, int kind, Address bias) {
                self.add_float(at<const void>(weights), N, static_cast<WeightKind>(kind), at<const float>(bias));
            },
            nb::arg("weights"), nb::arg("N"), nb::arg("kind"), nb::arg("bias"), Unlocked())
        .def(
            "add_fixed",
            [](PackedLinear& self, Address weights, int64_t N, Address bias) {
                self.add_fixed(at<const float>(weights), N, at<const float>(bias));
            },
            nb::arg("weights"), nb::arg("N"), nb::arg("bias"), Unlocked())
        .def(
            "add_table",
            [](PackedLinear& self, Address codes, int64_t N, int64_t group, Address scales, Address table, Address bias) {
                self.add_table(at<const uint8_t>(codes), N, group, at<const float>(scales), at<const float>(table),
                               at<const float>(bias));
            },
            nb::arg("codes"), nb::arg("N"), nb::arg("group"), nb::arg("scales"), nb::arg("table"), nb::arg("bias"), Unlocked())
        .def(
            "set_order", [](PackedLinear& self, Address order) { self.set_order(at<const int64_t>(order)); },
            nb::arg("order"))
        .def(
            "linear",
            [](const PackedLinear& self, Address out, int64_t ldo, Address x, int64_t ldx, int64_t M) {
                self.linear(at<float>(out), ldo, at<const float>(x), ldx, M);
            },
            nb::arg("out"), nb::arg("ldo"), nb::arg("x"), nb::arg("ldx"), nb::arg("M"), Unlocked())
        .def(
            "gather",
            [](const PackedLinear& self, Address out, int64_t ldo, Address ids, int64_t M, float scale) {
                self.gather(at<float>(out), ldo, at<const int32_t>(ids), M, scale);
            },
            nb::arg("out"), nb::arg("ldo"), nb::arg("ids"), nb::arg("M"), nb::arg("scale"), Unlocked())
        .def_prop_ro("N", &PackedLinear::N)
        .def_prop_ro("K", &PackedLinear::K)
        .def_prop_ro("nbytes", &PackedLinear::nbytes);
}

}  // namespace octavo
