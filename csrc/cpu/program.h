// A program (ops/program.py) as records, so that a step is one call: the kernels that `ops/run.py` calls one by one, in the
// same order and with the same arguments, and the same bits therefore. What it saves is the way through Python between two
// kernels, which is longer than a small kernel.
//
// An operation names buffers by number; a run resolves them to the addresses that set_buffers was given. A new family needs
// nothing here; a new kernel needs a record, its run() and a line in bind_program.cpp.
#pragma once

#include "kernels/activation.h"
#include "kernels/cache.h"
#include "packed_linear.h"

#include <cstdint>
#include <variant>
#include <vector>

namespace octavo {

using BufferId = int;

struct HeadCounts {
    int num_heads, num_kv_heads, head_dim;
    int64_t size() const { return int64_t(num_heads) * head_dim; }
    int64_t qkv_size() const { return int64_t(num_heads + 2 * num_kv_heads) * head_dim; }
};

struct EmbedRecord {
    BufferId out;
    const PackedLinear* weight;
    float scale;
};
struct LinearRecord {
    BufferId out, x;
    const PackedLinear* weight;
};
struct NormRecord {
    BufferId out, x;
    const float* weight;
    int64_t width;
    float eps;
};
struct AddRecord {
    BufferId residual, x;
    int64_t width;
};
struct AddNormRecord {
    BufferId out, residual, x;
    const float* weight;
    int64_t width;
    float eps;
};
struct RopeWriteRecord {
    BufferId qkv;
    HeadCounts heads;
    int cache, group;
    const float *rotation, *q_norm, *k_norm;  // norms may be null
    float eps;
};
struct AttendRecord {
    BufferId out, qkv;
    HeadCounts heads;
    int cache, group, window;
    float scale, softcap;
};
struct ActRecord {
    BufferId out, x;
    int64_t width;  // of out
    Activation kind;
};
struct KeepRowsRecord {
    std::vector<BufferId> rows;
    std::vector<int64_t> widths;
};

using Record = std::variant<EmbedRecord, LinearRecord, NormRecord, AddRecord, AddNormRecord, RopeWriteRecord, AttendRecord,
                            ActRecord, KeepRowsRecord>;

struct LayerCache {
    void *k, *v;
};

struct CacheGroup {
    const int32_t* block_tables;  // [num_seqs][block_table_stride]
    int64_t block_table_stride;
    const int64_t* slots;  // [rows]
};

// See RopeArgs and AttentionArgs. `needed`: rows in rising order, or null for all.
struct ProgramStep {
    int64_t rows;
    const int32_t *token_ids, *positions;
    const int32_t *seq_lens, *query_start_loc;
    int num_seqs;
    std::vector<CacheGroup> groups;
    const int64_t* needed;
    int64_t num_needed;
};

class Program {
public:
    void add(Record record) { records_.push_back(std::move(record)); }
    void set_buffers(std::vector<float*> buffers) { buffers_ = std::move(buffers); }
    void set_caches(std::vector<LayerCache> caches, CacheType type, int block_size);
    // After both. Buffers, caches and groups that records name must be there; Python has checked it.
    void run(const ProgramStep& step) const;

private:
    std::vector<Record> records_;
    std::vector<float*> buffers_;
    std::vector<LayerCache> caches_;
    CacheType type_{};
    int block_size_ = 0;

    friend struct ProgramRun;
};

}  // namespace octavo
