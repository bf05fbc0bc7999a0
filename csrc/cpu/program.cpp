#include "program.h"

#include "isa.h"
#include "kernels/attention.h"
#include "kernels/norm.h"
#include "kernels/rope.h"

#include <cstring>
#include <utility>

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

    float* at(BufferId buffer) const { return program.buffers_[size_t(buffer)]; }

    void operator()(const EmbedRecord& op) {
        op.weight->gather(at(op.out), op.weight->K(), step.token_ids, rows, op.scale);
    }
    void operator()(const LinearRecord& op) {
        op.weight->linear(at(op.out), op.weight->N(), at(op.x), op.weight->K(), rows);
    }
    void operator()(const NormRecord& op) {
        OCTAVO_KERNELS(norm_kernels).rms_norm(at(op.out), at(op.x), op.weight, rows, op.width, op.eps);
    }
    void operator()(const AddRecord& op) { OCTAVO_KERNELS(norm_kernels).add(at(op.residual), at(op.x), rows * op.width); }
    void operator()(const AddNormRecord& op) {
        OCTAVO_KERNELS(norm_kernels)
            .add_rms_norm(at(op.out), at(op.residual), at(op.x), op.weight, rows, op.width, op.eps);
    }
    void operator()(const RopeWriteRecord& op) {
        const LayerCache& cache = program.caches_[size_t(op.cache)];
        OCTAVO_KERNELS(rope_kernels)
            .rope_kv_write({at(op.qkv), step.positions, op.rotation, op.q_norm, op.k_norm, op.eps, cache.k, cache.v,
                            program.type_, program.block_size_, step.groups[size_t(op.group)].slots, rows,
                            op.heads.num_heads, op.heads.num_kv_heads, op.heads.head_dim});
    }
    void operator()(const AttendRecord& op) {
        const LayerCache& cache = program.caches_[size_t(op.cache)];
        const CacheGroup& group = step.groups[size_t(op.group)];
        OCTAVO_KERNELS(attention_kernels)
            .attention({at(op.out), at(op.qkv), cache.k, cache.v, program.type_, program.block_size_, group.block_tables,
                        group.block_table_stride, step.seq_lens, step.query_start_loc, step.num_seqs, op.heads.num_heads,
                        op.heads.num_kv_heads, op.heads.head_dim, op.scale, op.window, op.softcap});
    }
    void operator()(const ActRecord& op) {
        OCTAVO_KERNELS(activation_kernels).act_mul(at(op.out), at(op.x), rows, op.width, op.kind);
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
