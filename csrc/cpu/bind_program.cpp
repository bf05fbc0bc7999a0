#include "address.h"
#include "bind_routing.h"
#include "program.h"
#include "runtime.h"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <utility>
#include <vector>

namespace nb = nanobind;

namespace octavo {

namespace {

using Heads = std::tuple<int, int, int>;  // num_heads, num_kv_heads, head_dim

HeadCounts counts(const Heads& heads) { return {std::get<0>(heads), std::get<1>(heads), std::get<2>(heads)}; }

void set_buffers(Program& self, const std::vector<Address>& addresses) {
    std::vector<float*> buffers;
    for (const Address address : addresses) buffers.push_back(at<float>(address));
    self.set_buffers(std::move(buffers));
}

using Cache = std::tuple<Address, Address, int64_t, int64_t>;  // k, v, and how far the blocks of each are apart
using Latent = std::tuple<int, int, int, int>;                 // num_heads, nope_dim, rank, rope_dim

LatentShape shape(const Latent& latent) {
    return {std::get<0>(latent), std::get<1>(latent), std::get<2>(latent), std::get<3>(latent)};
}

using Blocks = std::tuple<int, int, int, int>;  // size, local, stride, step

KeyBlocks key_blocks(const Blocks& blocks) {
    return {std::get<0>(blocks), std::get<1>(blocks), std::get<2>(blocks), std::get<3>(blocks)};
}

void set_caches(Program& self, const std::vector<Cache>& caches, int type, int block_size) {
    std::vector<LayerCache> found;
    for (const auto& [k, v, k_stride, v_stride] : caches) found.push_back({at<void>(k), at<void>(v), k_stride, v_stride});
    self.set_caches(std::move(found), CacheType(type), block_size);
}

void run(const Program& self, int64_t rows, Address token_ids, Address positions, Address seq_lens, Address query_start_loc,
         int num_seqs, const std::vector<std::tuple<Address, int64_t, Address>>& groups, Address state_slots, Address input_rows,
         Address key_ends, Address encoder_lens, Address needed, int64_t num_needed, Address adapter_slots) {
    ProgramStep step{rows,     at<int32_t>(token_ids), at<int32_t>(positions), at<int32_t>(seq_lens), at<int32_t>(query_start_loc),
                     num_seqs, {},                     at<int32_t>(state_slots), at<float>(input_rows),
                     at<int32_t>(key_ends), at<int32_t>(encoder_lens), at<int64_t>(needed), num_needed, at<int32_t>(adapter_slots)};
    for (const auto& [block_tables, stride, slots] : groups)
        step.groups.push_back({at<int32_t>(block_tables), stride, at<int64_t>(slots)});
    nb::gil_scoped_release release;
    self.run(step);
}

}  // namespace

void bind_program(nb::module_& m) {
    // The matrices stay alive as long as the program; what the addresses stand for is the caller's to keep.
    nb::class_<Program>(m, "Program")
        .def(nb::init<>())
        .def(
            "embed",
            [](Program& self, const PackedLinear& weight, BufferId out, float scale, bool of_positions, int num_known) {
                self.add(EmbedRecord{out, &weight, scale, of_positions, num_known});
            },
            nb::keep_alive<1, 2>(), nb::arg("weight"), nb::kw_only(), nb::arg("out"), nb::arg("scale"),
            nb::arg("of_positions"), nb::arg("num_known"))
        .def(
            "given_rows", [](Program& self, BufferId out, int64_t width) { self.add(GivenRowsRecord{out, width}); },
            nb::kw_only(), nb::arg("out"), nb::arg("width"))
        .def(
            "linear",
            [](Program& self, const PackedLinear& weight, BufferId out, BufferId x) {
                self.add(LinearRecord{out, x, &weight});
            },
            nb::keep_alive<1, 2>(), nb::arg("weight"), nb::kw_only(), nb::arg("out"), nb::arg("x"))
        .def(
            "lora_delta",
            [](Program& self, const LoraBank* bank, BufferId out, BufferId x) { self.add(LoraDeltaRecord{out, x, bank}); },
            nb::keep_alive<1, 2>(), nb::arg("bank"), nb::kw_only(), nb::arg("out"), nb::arg("x"))
        .def(
            "norm",
            [](Program& self, BufferId out, BufferId x, Address weight, Address bias, int64_t width, float eps, bool layer_norm) {
                self.add(NormRecord{out, x, {at<float>(weight), at<float>(bias), width, eps, layer_norm}});
            },
            nb::kw_only(), nb::arg("out"), nb::arg("x"), nb::arg("weight"), nb::arg("bias"), nb::arg("width"), nb::arg("eps"),
            nb::arg("layer_norm"))
        .def(
            "norm_parts",
            [](Program& self, BufferId x, int64_t row_width, int64_t first, int64_t count, int64_t width, Address weight,
               Address bias, bool has_own, float eps, bool layer_norm) {
                self.add(NormPartsRecord{
                    x, row_width, first, count, {at<float>(weight), at<float>(bias), width, eps, layer_norm}, has_own});
            },
            nb::kw_only(), nb::arg("x"), nb::arg("row_width"), nb::arg("first"), nb::arg("count"), nb::arg("width"),
            nb::arg("weight"), nb::arg("bias"), nb::arg("has_own"), nb::arg("eps"), nb::arg("layer_norm"))
        .def(
            "add",
            [](Program& self, BufferId residual, BufferId x, int64_t width) { self.add(AddRecord{residual, x, width}); },
            nb::kw_only(), nb::arg("residual"), nb::arg("x"), nb::arg("width"))
        .def(
            "add_norm",
            [](Program& self, BufferId out, BufferId residual, BufferId x, Address weight, Address bias, int64_t width, float eps,
               bool layer_norm) {
                self.add(AddNormRecord{out, residual, x, {at<float>(weight), at<float>(bias), width, eps, layer_norm}});
            },
            nb::kw_only(), nb::arg("out"), nb::arg("residual"), nb::arg("x"), nb::arg("weight"), nb::arg("bias"),
            nb::arg("width"), nb::arg("eps"), nb::arg("layer_norm"))
        .def(
            "clip", [](Program& self, BufferId x, int64_t width, float limit) { self.add(ClipRecord{x, width, limit}); },
            nb::kw_only(), nb::arg("x"), nb::arg("width"), nb::arg("limit"))
        .def(
            "multiply",
            [](Program& self, BufferId x, int64_t width, Address factors, bool has_one) {
                self.add(MultiplyRecord{x, width, at<float>(factors), has_one});
            },
            nb::kw_only(), nb::arg("x"), nb::arg("width"), nb::arg("factors"), nb::arg("has_one"))
        .def(
            "match_rms", [](Program& self, BufferId x, BufferId to, int64_t width) { self.add(MatchRmsRecord{x, to, width}); },
            nb::kw_only(), nb::arg("x"), nb::arg("to"), nb::arg("width"))
        .def(
            "cut_gates",
            [](Program& self, BufferId x, int64_t row_width, int64_t width, float deviations) {
                self.add(CutGatesRecord{x, row_width, width, deviations});
            },
            nb::kw_only(), nb::arg("x"), nb::arg("row_width"), nb::arg("width"), nb::arg("deviations"))
        .def(
            "altup_predict",
            [](Program& self, std::vector<BufferId> streams, int64_t width, BufferId scores, Address coefs) {
                self.add(AltUpPredictRecord{{std::move(streams), width, scores, at<float>(coefs)}});
            },
            nb::kw_only(), nb::arg("streams"), nb::arg("width"), nb::arg("scores"), nb::arg("coefs"))
        .def(
            "altup_correct",
            [](Program& self, std::vector<BufferId> streams, int64_t width, BufferId scores, Address coefs, BufferId out,
               BufferId activated, int active, Address scale) {
                self.add(AltUpCorrectRecord{
                    {std::move(streams), width, scores, at<float>(coefs)}, out, activated, active, at<float>(scale)});
            },
            nb::kw_only(), nb::arg("streams"), nb::arg("width"), nb::arg("scores"), nb::arg("coefs"), nb::arg("out"),
            nb::arg("activated"), nb::arg("active"), nb::arg("scale"))
        .def(
            "act_times",
            [](Program& self, BufferId out, BufferId x, BufferId y, int64_t width, int64_t y_width, int64_t first, int kind) {
                self.add(ActTimesRecord{out, x, y, width, y_width, first, Activation(kind)});
            },
            nb::kw_only(), nb::arg("out"), nb::arg("x"), nb::arg("y"), nb::arg("width"), nb::arg("y_width"), nb::arg("first"),
            nb::arg("kind"))
        .def(
            "rope_write",
            [](Program& self, BufferId qkv, const Heads& heads, int cache, int group, Address rotation, Address q_norm,
               Address k_norm, float eps, bool norms_rotated, Address q_scales, float k_scale, float v_scale,
               BufferId rotations, BufferId places) {
                self.add(RopeWriteRecord{qkv, counts(heads), cache, group, at<float>(rotation), at<float>(q_norm),
                                         at<float>(k_norm), eps, norms_rotated, at<float>(q_scales), k_scale, v_scale,
                                         rotations, places});
            },
            nb::kw_only(), nb::arg("qkv"), nb::arg("heads"), nb::arg("cache"), nb::arg("group"), nb::arg("rotation"),
            nb::arg("q_norm"), nb::arg("k_norm"), nb::arg("eps"),
            nb::arg("norms_rotated"), nb::arg("q_scales"), nb::arg("k_scale"), nb::arg("v_scale"),
            nb::arg("rotations"), nb::arg("places"))
        .def(
            "gather_rotation",
            [](Program& self, BufferId out, BufferId places, Address rotation, int64_t head_dim,
               const std::vector<std::tuple<int, int64_t, int64_t>>& runs) {
                GatherRotationRecord record{out, places, at<float>(rotation), head_dim, {}};
                for (const auto& [part, first, count] : runs) record.runs.push_back({part, first, count});
                self.add(std::move(record));
            },
            nb::kw_only(), nb::arg("out"), nb::arg("places"), nb::arg("rotation"), nb::arg("head_dim"), nb::arg("runs"))
        .def(
            "set_position_parts",
            [](Program& self, Address parts) { self.set_position_parts(at<int32_t>(parts)); }, nb::kw_only(), nb::arg("parts"))
        .def(
            "attend",
            [](Program& self, BufferId out, BufferId qkv, int64_t row_stride, const Heads& heads, int cache, int group, int window,
               bool chunked, float scale, float k_scale, float v_scale, float softcap, Address slopes, Address biases, int reach,
               Address sinks, bool causal, bool reads_key_ends, bool of_encoder, const Blocks& blocks) {
                self.add(AttendRecord{out, qkv, row_stride, counts(heads), cache, group, window, chunked, scale, k_scale,
                                      v_scale, softcap, at<float>(slopes), at<float>(biases), reach, at<float>(sinks), causal,
                                      reads_key_ends, of_encoder, key_blocks(blocks)});
            },
            nb::kw_only(), nb::arg("out"), nb::arg("qkv"), nb::arg("row_stride"), nb::arg("heads"), nb::arg("cache"),
            nb::arg("group"), nb::arg("window"), nb::arg("chunked"), nb::arg("scale"), nb::arg("k_scale"), nb::arg("v_scale"),
            nb::arg("softcap"), nb::arg("slopes"), nb::arg("biases"), nb::arg("reach"), nb::arg("sinks"), nb::arg("causal"),
            nb::arg("reads_key_ends"), nb::arg("of_encoder"), nb::arg("blocks"))
        .def(
            "head_linear",
            [](Program& self, std::vector<const PackedLinear*> weights, BufferId out, BufferId x, int64_t out_width,
               int64_t x_width) { self.add(HeadLinearRecord{out, x, out_width, x_width, std::move(weights)}); },
            nb::keep_alive<1, 2>(), nb::arg("weights"), nb::kw_only(), nb::arg("out"), nb::arg("x"), nb::arg("out_width"),
            nb::arg("x_width"))
        .def(
            "latent_write",
            [](Program& self, BufferId q_latent, BufferId q, BufferId kv, const Latent& latent, int cache, int group,
               Address rotation, Address norm, float eps) {
                self.add(LatentWriteRecord{q_latent, q, kv, shape(latent), cache, group, at<float>(rotation), at<float>(norm), eps});
            },
            nb::kw_only(), nb::arg("q_latent"), nb::arg("q"), nb::arg("kv"), nb::arg("latent"), nb::arg("cache"),
            nb::arg("group"), nb::arg("rotation"), nb::arg("norm"), nb::arg("eps"))
        .def(
            "latent_attend",
            [](Program& self, BufferId out, BufferId q_latent, const Latent& latent, int cache, int group, float scale) {
                self.add(LatentAttendRecord{out, q_latent, shape(latent), cache, group, scale});
            },
            nb::kw_only(), nb::arg("out"), nb::arg("q_latent"), nb::arg("latent"), nb::arg("cache"), nb::arg("group"),
            nb::arg("scale"))
        .def(
            "causal_conv",
            [](Program& self, BufferId out, BufferId x, int state, int width, int taps, Address weight, Address bias, bool gated) {
                self.add(CausalConvRecord{out, x, state, width, taps, at<float>(weight), at<float>(bias), gated});
            },
            nb::kw_only(), nb::arg("out"), nb::arg("x"), nb::arg("state"), nb::arg("width"), nb::arg("taps"), nb::arg("weight"),
            nb::arg("bias"), nb::arg("gated"))
        .def(
            "selective_scan",
            [](Program& self, BufferId out, BufferId x, BufferId dt, BufferId gate, BufferId b, BufferId c, int state, int width,
               int size, int heads, int groups, Address a_log, Address d) {
                self.add(SelectiveScanRecord{out, x, dt, gate, b, c, state, width, size, heads, groups, at<float>(a_log), at<float>(d)});
            },
            nb::kw_only(), nb::arg("out"), nb::arg("x"), nb::arg("dt"), nb::arg("gate"), nb::arg("b"), nb::arg("c"),
            nb::arg("state"), nb::arg("width"), nb::arg("size"), nb::arg("heads"), nb::arg("groups"), nb::arg("a_log"), nb::arg("d"))
        .def(
            "gated_delta",
            [](Program& self, BufferId out, BufferId qkv, BufferId gates, Address a_log, int state, int num_heads,
               int num_key_heads, int key_dim, int value_dim, bool tiled, float beta_scale) {
                self.add(GatedDeltaRecord{out, qkv, gates, at<float>(a_log), state, num_heads, num_key_heads, key_dim, value_dim,
                                          tiled, beta_scale});
            },
            nb::kw_only(), nb::arg("out"), nb::arg("qkv"), nb::arg("gates"), nb::arg("a_log"), nb::arg("state"),
            nb::arg("num_heads"), nb::arg("num_key_heads"), nb::arg("key_dim"), nb::arg("value_dim"), nb::arg("tiled"),
            nb::arg("beta_scale"))
        .def(
            "gate",
            [](Program& self, BufferId x, BufferId gates, int64_t width, bool silu) {
                self.add(GateRecord{x, gates, width, silu});
            },
            nb::kw_only(), nb::arg("x"), nb::arg("gates"), nb::arg("width"), nb::arg("silu"))
        .def(
            "act",
            [](Program& self, BufferId out, BufferId x, int64_t width, int kind, bool gated, Address parameters) {
                self.add(ActRecord{out, x, width, Activation(kind), gated, at<float>(parameters)});
            },
            nb::kw_only(), nb::arg("out"), nb::arg("x"), nb::arg("width"), nb::arg("kind"), nb::arg("gated"),
            nb::arg("parameters"))
        .def(
            "route",
            [](Program& self, BufferId ids, BufferId weights, BufferId scores, int num_experts, int top_k,
               const RoutingTuple& routing, Address bias, Address scales) {
                self.add(RouteRecord{ids, weights, scores, num_experts, top_k, routing_of(routing), at<float>(bias), at<float>(scales)});
            },
            nb::kw_only(), nb::arg("ids"), nb::arg("weights"), nb::arg("scores"), nb::arg("num_experts"), nb::arg("top_k"),
            nb::arg("routing"), nb::arg("bias"), nb::arg("scales"))
        .def(
            "experts",
            [](Program& self, std::vector<const PackedLinear*> gate_up_weights, std::vector<const PackedLinear*> down_weights,
               BufferId out, BufferId x, BufferId ids, BufferId weights, BufferId places, BufferId grouped, BufferId gate_up,
               BufferId act, int top_k, int64_t width, int64_t inner, int kind, bool gated, bool scales_input,
               const LoraBank* gate_up_bank, const LoraBank* down_bank, int num_adapters) {
                self.add(ExpertsRecord{out, x, ids, weights, places, grouped, gate_up, act, std::move(gate_up_weights),
                                       std::move(down_weights), top_k, width, inner, Activation(kind), gated, scales_input,
                                       gate_up_bank, down_bank, num_adapters});
            },
            nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::arg("gate_up_weights"), nb::arg("down_weights"), nb::kw_only(),
            nb::arg("out"), nb::arg("x"), nb::arg("ids"), nb::arg("weights"), nb::arg("places"), nb::arg("grouped"),
            nb::arg("gate_up"), nb::arg("act"), nb::arg("top_k"), nb::arg("width"), nb::arg("inner"), nb::arg("kind"),
            nb::arg("gated"), nb::arg("scales_input"), nb::arg("gate_up_bank").none(), nb::arg("down_bank").none(),
            nb::arg("num_adapters"))
        .def(
            "add_gated",
            [](Program& self, BufferId residual, BufferId x, BufferId gates, int64_t width) {
                self.add(AddGatedRecord{residual, x, gates, width});
            },
            nb::kw_only(), nb::arg("residual"), nb::arg("x"), nb::arg("gates"), nb::arg("width"))
        .def(
            "keep_rows",
            [](Program& self, std::vector<BufferId> rows, std::vector<int64_t> widths) {
                self.add(KeepRowsRecord{std::move(rows), std::move(widths)});
            },
            nb::kw_only(), nb::arg("rows"), nb::arg("widths"))
        .def(
            "replace_rows",
            [](Program& self, BufferId x, int64_t width, int64_t first, bool adds) {
                self.add(ReplaceRowsRecord{x, width, first, adds});
            },
            nb::kw_only(), nb::arg("x"), nb::arg("width"), nb::arg("first"), nb::arg("adds"))
        .def(
            "merge_rows",
            [](Program& self, BufferId out, BufferId x, int64_t width, int64_t count, bool mean, bool turns) {
                self.add(MergeRowsRecord{out, x, width, count, mean, turns});
            },
            nb::kw_only(), nb::arg("out"), nb::arg("x"), nb::arg("width"), nb::arg("count"), nb::arg("mean"),
            nb::arg("turns"))
        .def(
            "set_replaced_rows",
            [](Program& self, Address rows, Address index, int64_t count, int64_t stride) {
                self.set_replaced_rows({at<float>(rows), at<int64_t>(index), count, stride});
            },
            nb::kw_only(), nb::arg("rows"), nb::arg("index"), nb::arg("count"), nb::arg("stride"))
        .def("set_states",
             [](Program& self, const std::vector<Address>& addresses) {
                 std::vector<float*> states;
                 for (const Address address : addresses) states.push_back(at<float>(address));
                 self.set_states(std::move(states));
             },
             nb::arg("addresses"))
        .def("set_buffers", &set_buffers, nb::arg("addresses"))
        .def("set_caches", &set_caches, nb::arg("caches"), nb::arg("cache_type"), nb::arg("block_size"))
        .def("run", &run, nb::arg("rows"), nb::arg("token_ids"), nb::arg("positions"), nb::arg("seq_lens"),
             nb::arg("query_start_loc"), nb::arg("num_seqs"), nb::arg("groups"), nb::arg("state_slots"),
             nb::arg("input_rows"), nb::arg("key_ends"), nb::arg("encoder_lens"), nb::arg("needed"), nb::arg("num_needed"), nb::arg("adapter_slots"));
}

}  // namespace octavo
