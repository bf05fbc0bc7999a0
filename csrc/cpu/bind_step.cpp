// Bindings of everything in a step but the linear layers.
#include "address.h"
#include "bind_routing.h"
#include "kernels/activation.h"
#include "kernels/altup.h"
#include "kernels/attention.h"
#include "kernels/causal_conv.h"
#include "kernels/experts.h"
#include "kernels/forbid.h"
#include "kernels/latent.h"
#include "kernels/gated_delta.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/selective_scan.h"
#include "kernels/sampling.h"
#include "runtime.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>
#include <vector>

namespace nb = nanobind;

namespace octavo {

namespace {

void rms_norm(Address out, Address x, Address weight, int64_t rows, int64_t width, float eps) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(norm_kernels).rms_norm(at<float>(out), at<float>(x), at<float>(weight), rows, width, eps);
}

void add_rms_norm(Address out, Address residual, Address x, Address weight, int64_t rows, int64_t width, float eps) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(norm_kernels)
        .add_rms_norm(at<float>(out), at<float>(residual), at<float>(x), at<float>(weight), rows, width, eps);
}

void layer_norm(Address out, Address x, Address weight, Address bias, int64_t rows, int64_t width, float eps) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(norm_kernels)
        .layer_norm(at<float>(out), at<float>(x), at<float>(weight), at<float>(bias), rows, width, eps);
}

void add_layer_norm(Address out, Address residual, Address x, Address weight, Address bias, int64_t rows, int64_t width,
                    float eps) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(norm_kernels)
        .add_layer_norm(at<float>(out), at<float>(residual), at<float>(x), at<float>(weight), at<float>(bias), rows, width,
                        eps);
}

void route(Address ids, Address weights, Address scores, Address bias, Address scales, int64_t rows, int num_experts, int top_k,
           const RoutingTuple& routing) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(experts_kernels)
        .route({at<int32_t>(ids), at<float>(weights), at<float>(scores), at<float>(bias), at<float>(scales), rows, num_experts,
                top_k, routing_of(routing)});
}

void add(Address residual, Address x, int64_t count) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(norm_kernels).add(at<float>(residual), at<float>(x), count);
}

void add_gated(Address residual, Address x, Address gates, int64_t rows, int64_t width) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(experts_kernels).add_gated(at<float>(residual), at<float>(x), at<float>(gates), rows, width);
}

void clip(Address x, int64_t count, float limit) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(norm_kernels).clip(at<float>(x), count, limit);
}

void multiply(Address x, Address factors, bool has_one, int64_t rows, int64_t width) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(norm_kernels).multiply(at<float>(x), at<float>(factors), has_one, rows, width);
}

void match_rms(Address x, Address to, int64_t rows, int64_t width) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(norm_kernels).match_rms(at<float>(x), at<float>(to), rows, width);
}

void cut_gates(Address x, int64_t rows, int64_t row_width, int64_t width, float deviations) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(norm_kernels).cut_gates(at<float>(x), rows, row_width, width, deviations);
}

AltUpArgs altup(const std::vector<Address>& streams, Address scores, Address coefs, int64_t rows, int64_t width) {
    AltUpArgs args{{}, int(streams.size()), at<float>(scores), at<float>(coefs), rows, width};
    for (size_t i = 0; i < streams.size(); ++i) args.streams[i] = at<float>(streams[i]);
    return args;
}

void altup_predict(const std::vector<Address>& streams, Address scores, Address coefs, int64_t rows, int64_t width) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(altup_kernels).predict(altup(streams, scores, coefs, rows, width));
}

void altup_correct(const std::vector<Address>& streams, Address scores, Address coefs, int64_t rows, int64_t width, Address out,
                   Address activated, int active, Address scale) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(altup_kernels)
        .correct(altup(streams, scores, coefs, rows, width), at<float>(out), at<float>(activated), active, at<float>(scale));
}

void act_times(Address out, Address x, Address y, int64_t y_stride, int64_t rows, int64_t width, int kind) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(activation_kernels)
        .act_times(at<float>(out), at<float>(x), at<float>(y), y_stride, rows, width, Activation(kind));
}

void act_mul(Address out, Address gate_up, int64_t rows, int64_t width, int kind) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(activation_kernels).act_mul(at<float>(out), at<float>(gate_up), rows, width, Activation(kind));
}

void act(Address out, Address x, int64_t rows, int64_t width, int kind, Address parameters) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(activation_kernels)
        .act(at<float>(out), at<float>(x), rows, width, Activation(kind), at<float>(parameters));
}

void norm_parts(Address x, int64_t rows, int64_t row_width, int64_t first, int64_t count, int64_t width, Address weight,
                Address bias, bool has_own, float eps, bool layer_norm) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(norm_kernels)
        .norm_parts({at<float>(x), rows, row_width, first, count, width, at<float>(weight), at<float>(bias), has_own, eps,
                     layer_norm});
}

void rope_kv_write(Address qkv, Address positions, Address cos_sin, Address q_norm, Address k_norm, float eps,
                   Address k_cache, Address v_cache, int64_t k_stride, int64_t v_stride, int cache_type, int block_size,
                   Address slots, int64_t rows, int num_heads, int num_kv_heads, int head_dim, bool norms_rotated,
                   Address q_scales, float k_scale, float v_scale) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(rope_kernels)
        .rope_kv_write({at<float>(qkv), at<int32_t>(positions), at<float>(cos_sin), at<float>(q_norm), at<float>(k_norm),
                        eps, at<void>(k_cache), at<void>(v_cache), k_stride, v_stride, CacheType(cache_type), block_size,
                        at<int64_t>(slots), rows, num_heads, num_kv_heads, head_dim, norms_rotated, at<float>(q_scales), k_scale,
                        v_scale});
}

void attention(Address out, Address qkv, Address k_cache, Address v_cache, int64_t k_stride, int64_t v_stride, int cache_type,
               int block_size, Address block_tables, int64_t block_table_stride, Address seq_lens, Address query_start_loc,
               int num_seqs, int num_heads, int num_kv_heads, int head_dim, float scale, float k_scale, float v_scale,
               int window, bool chunked, float softcap, Address slopes, Address biases, int reach, Address sinks, int64_t row_stride,
               bool causal, Address key_ends,
               const std::tuple<int, int, int, int>& blocks) {
    const auto [size, local, stride, step] = blocks;
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(attention_kernels)
        .attention({at<float>(out), at<float>(qkv), row_stride, at<void>(k_cache), at<void>(v_cache), k_stride,
                    v_stride, CacheType(cache_type), block_size, at<int32_t>(block_tables), block_table_stride,
                    at<int32_t>(seq_lens), at<int32_t>(query_start_loc), num_seqs, num_heads, num_kv_heads, head_dim,
                    head_dim, false, scale, k_scale, v_scale, window, chunked, softcap, at<float>(slopes),
                    at<float>(biases), reach, at<float>(sinks), causal, at<int32_t>(key_ends), {size, local, stride, step}});
}

void latent_attention(Address out, Address q_latent, Address cache, int64_t stride, int cache_type, int block_size,
                      Address block_tables, int64_t block_table_stride, Address seq_lens, Address query_start_loc, int num_seqs,
                      int num_heads, int rank, int rope_dim, float scale) {
    nb::gil_scoped_release release;
    const int width = rank + rope_dim;
    OCTAVO_KERNELS(attention_kernels)
        .attention({at<float>(out), at<float>(q_latent), int64_t(num_heads) * width, at<void>(cache), nullptr, stride, 0,
                    CacheType(cache_type), block_size, at<int32_t>(block_tables), block_table_stride, at<int32_t>(seq_lens),
                    at<int32_t>(query_start_loc), num_seqs, num_heads, 1, width, rank, true, scale, 1.0f, 1.0f, 0,
                    false, 0.0f, nullptr, nullptr, 0, nullptr, true, nullptr, {}});
}

void causal_conv(Address out, Address x, Address weight, Address bias, Address state, Address slots, Address positions,
                 Address query_start_loc, int num_seqs, int width, int taps, bool gated) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(causal_conv_kernels)
        .run({at<float>(out), at<float>(x), at<float>(weight), at<float>(bias), at<float>(state), at<int32_t>(slots),
              at<int32_t>(positions), at<int32_t>(query_start_loc), num_seqs, width, taps, gated});
}

void selective_scan(Address out, Address x, Address dt, Address gate, Address b, Address c, Address a_log, Address d,
                    Address state, Address slots, Address positions, Address query_start_loc, int num_seqs, int width, int size,
                    int heads, int groups) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(selective_scan_kernels)
        .run({at<float>(out), at<float>(x), at<float>(dt), at<float>(gate), at<float>(b), at<float>(c), at<float>(a_log),
              at<float>(d), at<float>(state), at<int32_t>(slots), at<int32_t>(positions), at<int32_t>(query_start_loc), num_seqs,
              width, size, heads, groups});
}

void gated_delta(Address out, Address qkv, Address gates, Address a_log, Address state, Address slots, Address positions,
                 Address query_start_loc, int num_seqs, int num_heads, int num_key_heads, int key_dim, int value_dim,
                 bool tiled, float beta_scale) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(gated_delta_kernels)
        .run({at<float>(out), at<float>(qkv), at<float>(gates), at<float>(a_log), at<float>(state), at<int32_t>(slots),
              at<int32_t>(positions), at<int32_t>(query_start_loc), num_seqs, num_heads, num_key_heads, key_dim, value_dim, tiled,
              beta_scale});
}

void gate(Address x, Address gates, int64_t count, bool silu) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(gated_delta_kernels).gate(at<float>(x), at<float>(gates), count, silu);
}

void latent_write(Address q_latent, Address q, Address kv, Address positions, Address cos_sin, Address norm, float eps,
                  Address cache, int64_t stride, int cache_type, int block_size, Address slots, int64_t rows, int num_heads,
                  int nope_dim, int rank, int rope_dim) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(latent_kernels)
        .write({at<float>(q_latent), at<float>(q), at<float>(kv), at<int32_t>(positions), at<float>(cos_sin), at<float>(norm),
                eps, at<void>(cache), stride, CacheType(cache_type), block_size, at<int64_t>(slots), rows, num_heads, nope_dim,
                rank, rope_dim});
}

void forbid(Address logits, int64_t vocab, Address rows, Address masks, int64_t num_masks, int64_t num_words) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(forbid_kernels)
        .forbid({at<float>(logits), vocab, at<int64_t>(rows), at<uint32_t>(masks), num_masks, num_words});
}

using Penalties = std::tuple<Address, Address, Address, Address, Address, Address, Address>;
using Bias = std::tuple<Address, Address, Address>;
using Masks = std::tuple<Address, Address>;

void sample(Address logits, int64_t rows, int64_t vocab, Address ids, Address flags, Address temperature, Address top_k,
            Address top_p, Address min_p, Address seeds, Address positions, const std::optional<Penalties>& penalties,
            const std::optional<Bias>& bias, const std::optional<Masks>& masks) {
    nb::gil_scoped_release release;
    SampleArgs args{};
    args.logits = at<float>(logits);
    args.rows = rows;
    args.vocab = vocab;
    args.ids = at<int32_t>(ids);
    args.flags = at<int32_t>(flags);
    args.temperature = at<float>(temperature);
    args.top_k = at<int32_t>(top_k);
    args.top_p = at<float>(top_p);
    args.min_p = at<float>(min_p);
    args.seeds = at<uint64_t>(seeds);
    args.positions = at<uint64_t>(positions);
    if (penalties) {
        const auto& [repetition, frequency, presence, offsets, entry_ids, counts, in_prompt] = *penalties;
        args.penalties = {at<float>(repetition), at<float>(frequency), at<float>(presence),  at<int32_t>(offsets),
                          at<int32_t>(entry_ids), at<int32_t>(counts), at<int32_t>(in_prompt)};
    }
    if (bias) args.bias = {at<int32_t>(std::get<0>(*bias)), at<int32_t>(std::get<1>(*bias)), at<float>(std::get<2>(*bias))};
    if (masks) args.masks = {at<int32_t>(std::get<0>(*masks)), at<int32_t>(std::get<1>(*masks))};
    OCTAVO_KERNELS(sampling_kernels).sample(args);
}

void logprobs(Address logits, int64_t rows, int64_t vocab, Address ids, int64_t k, Address logprob, Address rank,
              Address top_ids, Address top_logprobs) {
    nb::gil_scoped_release release;
    OCTAVO_KERNELS(sampling_kernels)
        .logprobs({at<float>(logits), rows, vocab, at<int32_t>(ids), k, at<float>(logprob), at<int32_t>(rank),
                   at<int32_t>(top_ids), at<float>(top_logprobs)});
}

}  // namespace

void bind_step(nb::module_& m) {
    m.def("rms_norm", &rms_norm);
    m.def("add_rms_norm", &add_rms_norm);
    m.def("layer_norm", &layer_norm);
    m.def("add_layer_norm", &add_layer_norm);
    m.def("add", &add);
    m.def("clip", &clip);
    m.def("multiply", &multiply);
    m.def("match_rms", &match_rms);
    m.def("cut_gates", &cut_gates);
    m.def("altup_predict", &altup_predict);
    m.def("altup_correct", &altup_correct);
    m.def("act_times", &act_times);
    m.def("act_mul", &act_mul);
    m.def("act", &act);
    m.def("norm_parts", &norm_parts);
    m.def("route", &route);
    m.def("add_gated", &add_gated);
    m.def("rope_kv_write", &rope_kv_write);
    m.def("attention", &attention);
    m.def("latent_write", &latent_write);
    m.def("causal_conv", &causal_conv);
    m.def("selective_scan", &selective_scan);
    m.def("gated_delta", &gated_delta);
    m.def("gate", &gate);
    m.def("latent_attention", &latent_attention);
    m.def("forbid", &forbid);
    m.def("sample", &sample, nb::arg("logits"), nb::arg("rows"), nb::arg("vocab"), nb::arg("ids"), nb::arg("flags"),
          nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"), nb::arg("seeds"),
          nb::arg("positions"), nb::arg("penalties").none(), nb::arg("bias").none(), nb::arg("masks").none());
    m.def("logprobs", &logprobs);
}

}  // namespace octavo
