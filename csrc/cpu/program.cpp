#include "program.h"

#include "isa.h"
#include "kernels/altup.h"
#include "kernels/attention.h"
#include "kernels/causal_conv.h"
#include "kernels/gated_delta.h"
#include "kernels/latent.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/selective_scan.h"

#include <cstring>
#include <optional>
#include <utility>
#include <vector>

namespace octavo {

void Program::set_caches(std::vector<LayerCache> caches, CacheType type, int block_size) {
    caches_ = std::move(caches);
    type_ = type;
    block_size_ = block_size;
}

// One run: the rows that are in use, and what each record does to them.
struct ProgramRun {
    const Program& program;
    const ProgramStep& step;
    int64_t rows;
    std::vector<int32_t> adapter_slots{};  // of the rows in use, once some were dropped
    std::optional<LoraPlan> adapters{};

    float* at(BufferId buffer) const { return program.buffers_[size_t(buffer)]; }

    int32_t* ints(BufferId buffer) const { return reinterpret_cast<int32_t*>(at(buffer)); }

    void operator()(const EmbedRecord& op) {
        const int32_t* ids = op.of_positions ? step.positions : step.token_ids;
        std::vector<int32_t> known;
        if (op.num_known) {
            known.assign(ids, ids + rows);
            for (int32_t& id : known)
                if (id >= op.num_known) id = 0;
            ids = known.data();
        }
        op.weight->gather(at(op.out), op.weight->K(), ids, rows, op.scale);
    }
    void operator()(const GivenRowsRecord& op) {
        std::memcpy(at(op.out), step.input_rows, size_t(rows * op.width) * sizeof(float));
    }
    void operator()(const ReplaceRowsRecord& op) {
        const ReplacedRows& with = program.replaced_;
        for (int64_t i = 0; i < with.count; ++i) {
            float* to = at(op.x) + with.index[i] * op.width;
            const float* from = with.rows + i * with.stride + op.first;
            if (!op.adds) std::memcpy(to, from, size_t(op.width) * sizeof(float));
            else for (int64_t c = 0; c < op.width; ++c) to[c] += from[c];
        }
    }
    void operator()(const GatherRotationRecord& op) {
        const int64_t half = op.head_dim / 2;
        for (int64_t i = 0; i < rows; ++i) {
            ints(op.places)[i] = int32_t(i);
            float* to = at(op.out) + i * op.head_dim;
            for (const auto& run : op.runs) {
                const int32_t* parts = program.position_parts_;
                const float* from = op.rotation + int64_t(parts ? parts[run.part * rows + i] : step.positions[i]) * op.head_dim;
                std::memcpy(to + run.first, from + run.first, size_t(run.count) * sizeof(float));
                std::memcpy(to + half + run.first, from + half + run.first, size_t(run.count) * sizeof(float));
            }
        }
    }
    void operator()(const MergeRowsRecord& op) {
        const float* from = at(op.x);
        float* to = at(op.out);
        rows /= op.count;
        if (op.turns) {
            for (int64_t i = 0; i < rows; ++i, to += op.width * op.count, from += op.width * op.count)
                for (int64_t part = 0; part < op.count; ++part)
                    for (int64_t c = 0; c < op.width; ++c) to[c * op.count + part] = from[part * op.width + c];
            return;
        }
        if (!op.mean) {
            std::memcpy(to, from, size_t(rows * op.count * op.width) * sizeof(float));
            return;
        }
        for (int64_t i = 0; i < rows; ++i, to += op.width, from += op.count * op.width) {
            std::memcpy(to, from, size_t(op.width) * sizeof(float));
            for (int64_t part = 1; part < op.count; ++part)
                for (int64_t c = 0; c < op.width; ++c) to[c] += from[part * op.width + c];
            for (int64_t c = 0; c < op.width; ++c) to[c] /= float(op.count);
        }
    }
    void operator()(const LinearRecord& op) {
        op.weight->linear(at(op.out), op.weight->N(), at(op.x), op.weight->K(), rows);
    }
    void operator()(const LoraDeltaRecord& op) {
        if (!step.adapter_slots) return;
        if (!adapters) adapters.emplace(adapter_slots.empty() ? step.adapter_slots : adapter_slots.data(), rows);
        op.bank->add(at(op.out), at(op.x), *adapters);
    }
    void operator()(const NormRecord& op) {
        const auto& kernels = OCTAVO_KERNELS(norm_kernels);
        const NormWeights& n = op.norm;
        if (n.is_layer_norm) kernels.layer_norm(at(op.out), at(op.x), n.weight, n.bias, rows, n.width, n.eps);
        else kernels.rms_norm(at(op.out), at(op.x), n.weight, rows, n.width, n.eps);
    }
    void operator()(const NormPartsRecord& op) {
        const NormWeights& n = op.norm;
        OCTAVO_KERNELS(norm_kernels)
            .norm_parts({at(op.x), rows, op.row_width, op.first, op.count, n.width, n.weight, n.bias, op.has_own, n.eps,
                         n.is_layer_norm});
    }
    void operator()(const AddRecord& op) { OCTAVO_KERNELS(norm_kernels).add(at(op.residual), at(op.x), rows * op.width); }
    void operator()(const AddNormRecord& op) {
        const auto& kernels = OCTAVO_KERNELS(norm_kernels);
        const NormWeights& n = op.norm;
        float* residual = at(op.residual);
        if (n.is_layer_norm) kernels.add_layer_norm(at(op.out), residual, at(op.x), n.weight, n.bias, rows, n.width, n.eps);
        else kernels.add_rms_norm(at(op.out), residual, at(op.x), n.weight, rows, n.width, n.eps);
    }
    void operator()(const ClipRecord& op) { OCTAVO_KERNELS(norm_kernels).clip(at(op.x), rows * op.width, op.limit); }
    void operator()(const MultiplyRecord& op) {
        OCTAVO_KERNELS(norm_kernels).multiply(at(op.x), op.factors, op.has_one, rows, op.width);
    }
    void operator()(const MatchRmsRecord& op) { OCTAVO_KERNELS(norm_kernels).match_rms(at(op.x), at(op.to), rows, op.width); }
    void operator()(const CutGatesRecord& op) {
        OCTAVO_KERNELS(norm_kernels).cut_gates(at(op.x), rows, op.row_width, op.width, op.deviations);
    }
    AltUpArgs altup(const AltUpStreams& all) const {
        AltUpArgs args{{}, int(all.streams.size()), at(all.scores), all.coefs, rows, all.width};
        for (size_t i = 0; i < all.streams.size(); ++i) args.streams[i] = at(all.streams[i]);
        return args;
    }
    void operator()(const AltUpPredictRecord& op) { OCTAVO_KERNELS(altup_kernels).predict(altup(op.all)); }
    void operator()(const AltUpCorrectRecord& op) {
        OCTAVO_KERNELS(altup_kernels).correct(altup(op.all), at(op.out), at(op.activated), op.active, op.scale);
    }
    void operator()(const RopeWriteRecord& op) {
        const LayerCache& cache = program.caches_[size_t(op.cache)];
        OCTAVO_KERNELS(rope_kernels)
            .rope_kv_write({at(op.qkv), op.places < 0 ? step.positions : ints(op.places),
                            op.rotations < 0 ? op.rotation : at(op.rotations), op.q_norm, op.k_norm, op.eps, cache.k, cache.v,
                            cache.k_stride, cache.v_stride, program.type_, program.block_size_,
                            step.groups[size_t(op.group)].slots, rows, op.heads.num_heads, op.heads.num_kv_heads,
                            op.heads.head_dim, op.norms_rotated, op.q_scales, op.k_scale, op.v_scale});
    }
    void operator()(const AttendRecord& op) {
        const LayerCache& cache = program.caches_[size_t(op.cache)];
        const CacheGroup& group = step.groups[size_t(op.group)];
        OCTAVO_KERNELS(attention_kernels)
            .attention({at(op.out), at(op.qkv), op.row_stride, cache.k, cache.v, cache.k_stride, cache.v_stride,
                        program.type_, program.block_size_, group.block_tables, group.block_table_stride,
                        op.of_encoder ? step.encoder_lens : step.seq_lens, step.query_start_loc, step.num_seqs,
                        op.heads.num_heads, op.heads.num_kv_heads, op.heads.head_dim, op.heads.head_dim, false, op.scale,
                        op.k_scale, op.v_scale, op.window, op.chunked, op.softcap, op.slopes, op.biases, op.reach, op.sinks,
                        op.causal, op.reads_key_ends ? step.key_ends : nullptr, op.blocks});
    }
    void operator()(const HeadLinearRecord& op) {
        const int64_t heads = int64_t(op.weights.size()), out = op.out_width / heads, x = op.x_width / heads;
        for (int64_t h = 0; h < heads; ++h)
            op.weights[size_t(h)]->linear(at(op.out) + h * out, op.out_width, at(op.x) + h * x, op.x_width, rows);
    }
    void operator()(const LatentWriteRecord& op) {
        const LayerCache& cache = program.caches_[size_t(op.cache)];
        OCTAVO_KERNELS(latent_kernels)
            .write({at(op.q_latent), at(op.q), at(op.kv), step.positions, op.rotation, op.norm, op.eps, cache.k, cache.k_stride,
                    program.type_, program.block_size_, step.groups[size_t(op.group)].slots, rows, op.shape.num_heads,
                    op.shape.nope_dim, op.shape.rank, op.shape.rope_dim});
    }
    void operator()(const LatentAttendRecord& op) {
        const LayerCache& cache = program.caches_[size_t(op.cache)];
        const CacheGroup& group = step.groups[size_t(op.group)];
        OCTAVO_KERNELS(attention_kernels)
            .attention({at(op.out), at(op.q_latent), int64_t(op.shape.num_heads) * op.shape.width(), cache.k, nullptr,
                        cache.k_stride, 0, program.type_, program.block_size_, group.block_tables, group.block_table_stride,
                        step.seq_lens, step.query_start_loc, step.num_seqs, op.shape.num_heads, 1, op.shape.width(),
                        op.shape.rank, true, op.scale, 1.0f, 1.0f, 0, false, 0.0f, nullptr, nullptr, 0, nullptr, true, nullptr,
                        {}});
    }
    void operator()(const CausalConvRecord& op) {
        OCTAVO_KERNELS(causal_conv_kernels)
            .run({at(op.out), at(op.x), op.weight, op.bias, program.states_[size_t(op.state)], step.state_slots, step.positions,
                  step.query_start_loc, step.num_seqs, op.width, op.taps, op.gated});
    }
    void operator()(const SelectiveScanRecord& op) {
        OCTAVO_KERNELS(selective_scan_kernels)
            .run({at(op.out), at(op.x), at(op.dt), at(op.gate), at(op.b), at(op.c), op.a_log, op.d,
                  program.states_[size_t(op.state)], step.state_slots, step.positions, step.query_start_loc, step.num_seqs,
                  op.width, op.size, op.heads, op.groups});
    }
    void operator()(const GatedDeltaRecord& op) {
        OCTAVO_KERNELS(gated_delta_kernels)
            .run({at(op.out), at(op.qkv), at(op.gates), op.a_log, program.states_[size_t(op.state)], step.state_slots,
                  step.positions, step.query_start_loc, step.num_seqs, op.num_heads, op.num_key_heads, op.key_dim, op.value_dim,
                  op.tiled, op.beta_scale});
    }
    void operator()(const GateRecord& op) {
        OCTAVO_KERNELS(gated_delta_kernels).gate(at(op.x), at(op.gates), rows * op.width, op.silu);
    }
    void operator()(const ActRecord& op) {
        const auto& kernels = OCTAVO_KERNELS(activation_kernels);
        if (op.gated) kernels.act_mul(at(op.out), at(op.x), rows, op.width, op.kind);
        else kernels.act(at(op.out), at(op.x), rows, op.width, op.kind, op.parameters);
    }
    void operator()(const ActTimesRecord& op) {
        OCTAVO_KERNELS(activation_kernels)
            .act_times(at(op.out), at(op.x), at(op.y) + op.first, op.y_width, rows, op.width, op.kind);
    }
    void operator()(const RouteRecord& op) {
        OCTAVO_KERNELS(experts_kernels)
            .route({ints(op.ids), at(op.weights), at(op.scores), op.bias, op.scales, rows, op.num_experts, op.top_k, op.routing});
    }
    void operator()(const ExpertsRecord& op) {
        // A counting sort by expert, in which rows keep their order.
        const int64_t count = rows * op.top_k;
        const int32_t* ids = ints(op.ids);
        std::vector<int64_t> starts(op.gate_up_weights.size() + 1);
        for (int64_t i = 0; i < count; ++i) ++starts[size_t(ids[i]) + 1];
        for (size_t e = 1; e < starts.size(); ++e) starts[e] += starts[e - 1];
        std::vector<int64_t> next(starts.begin(), starts.end() - 1);
        int32_t* places = ints(op.places);
        for (int64_t i = 0; i < count; ++i) {
            places[i] = int32_t(next[size_t(ids[i])]++);
            float* to = at(op.grouped) + places[i] * op.width;
            const float *from = at(op.x) + i / op.top_k * op.width, weight = at(op.weights)[i];
            if (op.scales_input)
                for (int64_t c = 0; c < op.width; ++c) to[c] = from[c] * weight;
            else std::memcpy(to, from, size_t(op.width) * sizeof(float));
        }
        PackedLinear::linear_groups(op.gate_up_weights, starts, at(op.gate_up), at(op.grouped));
        std::optional<LoraPlan> deltas;
        if (op.gate_up_bank && step.adapter_slots) {
            const int32_t* slots = adapter_slots.empty() ? step.adapter_slots : adapter_slots.data();
            std::vector<int32_t> of_places(size_t(count), -1);
            for (int64_t i = 0; i < count; ++i)
                if (const int32_t slot = slots[i / op.top_k]; slot >= 0)
                    of_places[size_t(places[i])] = ids[i] * op.num_adapters + slot;
            deltas.emplace(of_places.data(), count);
            op.gate_up_bank->add(at(op.gate_up), at(op.grouped), *deltas);
        }
        const auto& activation = OCTAVO_KERNELS(activation_kernels);
        if (op.gated) activation.act_mul(at(op.act), at(op.gate_up), count, op.inner, op.kind);
        else activation.act(at(op.act), at(op.gate_up), count, op.inner, op.kind, nullptr);
        PackedLinear::linear_groups(op.down_weights, starts, at(op.grouped), at(op.act));
        if (deltas) op.down_bank->add(at(op.grouped), at(op.act), *deltas);
        OCTAVO_KERNELS(experts_kernels)
            .combine(at(op.out), at(op.grouped), places, op.scales_input ? nullptr : at(op.weights), rows, op.top_k, op.width);
    }
    void operator()(const AddGatedRecord& op) {
        OCTAVO_KERNELS(experts_kernels).add_gated(at(op.residual), at(op.x), at(op.gates), rows, op.width);
    }
    // No row is written before it is read: needed[i] >= i.
    void operator()(const KeepRowsRecord& op) {
        if (!step.needed) return;
        for (size_t b = 0; b < op.rows.size(); ++b) {
            float* to = at(op.rows[b]);
            const int64_t width = op.widths[b];
            for (int64_t i = 0; i < step.num_needed; ++i)
                if (step.needed[i] != i) std::memcpy(to + i * width, to + step.needed[i] * width, size_t(width) * sizeof(float));
        }
        rows = step.num_needed;
        if (!step.adapter_slots) return;
        for (int64_t i = 0; i < rows; ++i) adapter_slots.push_back(step.adapter_slots[step.needed[i]]);
        adapters.reset();
    }
};

void Program::run(const ProgramStep& step) const {
    ProgramRun run{*this, step, step.rows};
    for (const Record& record : records_) {
        std::visit(run, record);
        if (run.rows == 0) return;  // nobody wants a row: the caches are written
    }
}

}  // namespace octavo
