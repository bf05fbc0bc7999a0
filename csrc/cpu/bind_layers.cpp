#include "address.h"
#include "layer_stack.h"
#include "runtime.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <utility>
#include <vector>

namespace nb = nanobind;

namespace octavo {

namespace {

void add(LayerStack& self, const PackedLinear& qkv, const PackedLinear& o, const PackedLinear& gate_up,
         const PackedLinear& down, Address q_norm, Address k_norm, Address attn_post_norm, Address mlp_norm,
         Address mlp_post_norm, Address next_norm, Address cos_sin, int window) {
    self.add({&qkv, &o, &gate_up, &down, at<float>(q_norm), at<float>(k_norm), at<float>(attn_post_norm),
              at<float>(mlp_norm), at<float>(mlp_post_norm), at<float>(next_norm), at<float>(cos_sin), window});
}

void set_caches(LayerStack& self, const std::vector<std::pair<Address, Address>>& caches, int type, int block_size) {
    std::vector<LayerCache> found;
    for (const auto& [k, v] : caches) found.push_back({at<void>(k), at<void>(v)});
    self.set_caches(std::move(found), CacheType(type), block_size);
}

void run(const LayerStack& self, Address residual, Address normed, Address qkv, Address attn, Address block_out,
         Address gate_up, Address act, Address positions, Address slots, Address block_tables, int64_t block_table_stride,
         Address seq_lens, Address query_start_loc, int num_seqs, int64_t rows, Address needed, int64_t num_needed) {
    nb::gil_scoped_release release;
    self.run({at<float>(residual), at<float>(normed), at<float>(qkv), at<float>(attn), at<float>(block_out),
              at<float>(gate_up), at<float>(act), at<int32_t>(positions), at<int64_t>(slots), at<int32_t>(block_tables),
              block_table_stride, at<int32_t>(seq_lens), at<int32_t>(query_start_loc), num_seqs, rows,
              at<int64_t>(needed), num_needed});
}

}  // namespace

void bind_layers(nb::module_& m) {
    nb::class_<LayerStack>(m, "LayerStack")
        .def(
            "__init__",
            [](LayerStack* self, int64_t hidden, int64_t intermediate, int num_heads, int num_kv_heads, int head_dim,
               float eps, float attn_scale, float softcap, int activation) {
                new (self) LayerStack(
                    {hidden, intermediate, num_heads, num_kv_heads, head_dim, eps, attn_scale, softcap, Activation(activation)});
            },
            nb::arg("hidden"), nb::arg("intermediate"), nb::arg("num_heads"), nb::arg("num_kv_heads"), nb::arg("head_dim"),
            nb::arg("eps"), nb::arg("attn_scale"), nb::arg("softcap"), nb::arg("activation"))
        // The matrices stay alive as long as the stack; what the addresses stand for is the caller's to keep.
        .def("add", &add, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>())
        .def("set_caches", &set_caches)
        .def("run", &run);
}

}  // namespace octavo
