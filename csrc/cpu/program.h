// A program (ops/program.py) as records, so that a step is one call: the kernels that `ops/run.py` calls one by one, in the
// same order and with the same arguments, and the same bits therefore. What it saves is the way through Python between two
// kernels, which is longer than a small kernel.
//
// An operation names buffers by number; a run resolves them to the addresses that set_buffers was given. A new family needs
// nothing here; a new kernel needs a record, its run() and a line in bind_program.cpp.
#pragma once

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/cache.h"
#include "kernels/experts.h"
#include "lora_bank.h"
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
    bool of_positions;  // rows are named by the tokens' positions, else by their ids
    int num_known;      // ids from here on stand for row 0; 0: the table has a row for each
};
struct GivenRowsRecord {
    BufferId out;
    int64_t width;
};
// Rows of x are those that the step brings, where it names them: `width` of their columns, from `first` on.
struct ReplaceRowsRecord {
    BufferId x;
    int64_t width, first;
    bool adds;  // they are added to what x has
};
// From here on a row is `count` rows, one behind the other, each of `width` values; or, `turns`, their values
// column by column; or their mean.
struct MergeRowsRecord {
    BufferId out, x;
    int64_t width, count;
    bool mean, turns;
};
struct LinearRecord {
    BufferId out, x;
    const PackedLinear* weight;
};
// What adapters add to the product that has just been made.
struct LoraDeltaRecord {
    BufferId out, x;
    const LoraBank* bank;
};
struct NormWeights {
    const float *weight, *bias;  // bias may be null
    int64_t width;
    float eps;
    bool is_layer_norm;  // else RMS, which has no bias
};
struct NormRecord {
    BufferId out, x;
    NormWeights norm;
};
struct NormPartsRecord {
    BufferId x;
    int64_t row_width, first, count;
    NormWeights norm;
    bool has_own;
};
struct AddRecord {
    BufferId residual, x;
    int64_t width;
};
struct AddNormRecord {
    BufferId out, residual, x;
    NormWeights norm;
};
struct ClipRecord {
    BufferId x;
    int64_t width;
    float limit;
};
struct MultiplyRecord {
    BufferId x;
    int64_t width;
    const float* factors;
    bool has_one;
};
struct MatchRmsRecord {
    BufferId x, to;
    int64_t width;
};
struct CutGatesRecord {
    BufferId x;
    int64_t row_width, width;
    float deviations;
};
struct AltUpStreams {
    std::vector<BufferId> streams;
    int64_t width;
    BufferId scores;
    const float* coefs;
};
struct AltUpPredictRecord {
    AltUpStreams all;
};
struct AltUpCorrectRecord {
    AltUpStreams all;
    BufferId out, activated;
    int active;
    const float* scale;  // may be null
};
struct RopeWriteRecord {
    BufferId qkv;
    HeadCounts heads;
    int cache, group;
    const float *rotation, *q_norm, *k_norm;  // each may be null
    float eps;
    bool norms_rotated;
    const float* q_scales;  // may be null
    float k_scale, v_scale;
    BufferId rotations, places;  // what GatherRotationRecord wrote in the place of rotation and positions; -1: nothing
};
// Of the rotation of each row, runs of pairs of which all are turned by one part of the row's position.
struct GatherRotationRecord {
    struct Run {
        int part;
        int64_t first, count;
    };
    BufferId out, places;
    const float* rotation;
    int64_t head_dim;
    std::vector<Run> runs;
};
struct AttendRecord {
    BufferId out, qkv;
    int64_t row_stride;  // of qkv
    HeadCounts heads;
    int cache, group, window;
    bool chunked;
    float scale, k_scale, v_scale, softcap;
    const float *slopes, *biases;  // may be null
    int reach;
    const float* sinks;  // may be null
    bool causal, reads_key_ends, of_encoder;
    KeyBlocks blocks;
};
// out's columns of head h = x's columns of head h times weight h: N of out_width / heads columns, K of x_width / heads.
struct HeadLinearRecord {
    BufferId out, x;
    int64_t out_width, x_width;
    std::vector<const PackedLinear*> weights;  // a head each
};
struct LatentShape {
    int num_heads, nope_dim, rank, rope_dim;
    int width() const { return rank + rope_dim; }
};
struct LatentWriteRecord {
    BufferId q_latent, q, kv;
    LatentShape shape;
    int cache, group;
    const float *rotation, *norm;
    float eps;
};
struct LatentAttendRecord {
    BufferId out, q_latent;
    LatentShape shape;
    int cache, group;
    float scale;
};
struct CausalConvRecord {
    BufferId out, x;
    int state, width, taps;
    const float *weight, *bias;  // the latter may be null
    bool gated;
};
struct SelectiveScanRecord {
    BufferId out, x, dt, gate, b, c;
    int state, width, size, heads, groups;
    const float *a_log, *d;
};
struct GatedDeltaRecord {
    BufferId out, qkv, gates;
    const float* a_log;
    int state, num_heads, num_key_heads, key_dim, value_dim;
    bool tiled;
    float beta_scale;
};
struct GateRecord {
    BufferId x, gates;
    int64_t width;
    bool silu;
};
struct ActRecord {
    BufferId out, x;
    int64_t width;  // of out
    Activation kind;
    bool gated;
    const float* parameters;  // may be null
};
struct ActTimesRecord {
    BufferId out, x, y;
    int64_t width, y_width, first;  // of out; of y, whose columns from `first` on are the factors
    Activation kind;
};
struct RouteRecord {
    BufferId ids, weights, scores;
    int num_experts, top_k;
    Routing routing;
    const float *bias, *scales;  // may be null
};
// Rows go to their experts grouped by expert, top_k places a row: `places` says where each is, and the buffers behind it hold
// the groups' inputs and results, and what is between them.
struct ExpertsRecord {
    BufferId out, x, ids, weights, places, grouped, gate_up, act;
    std::vector<const PackedLinear*> gate_up_weights, down_weights;  // an expert each
    int top_k;
    int64_t width, inner;  // of x, and of act
    Activation kind;
    bool gated;
    bool scales_input;  // the weights multiply what goes into an expert, else what comes out
    // What adapters add to both products, or null; of expert e and the adapter in slot s in slot e num_adapters + s.
    const LoraBank *gate_up_bank, *down_bank;
    int num_adapters;
};
struct AddGatedRecord {
    BufferId residual, x, gates;
    int64_t width;
};
struct KeepRowsRecord {
    std::vector<BufferId> rows;
    std::vector<int64_t> widths;
};

using Record = std::variant<EmbedRecord, GivenRowsRecord, LinearRecord, LoraDeltaRecord, NormRecord, NormPartsRecord,
                            AddRecord, AddNormRecord, ClipRecord, MultiplyRecord, MatchRmsRecord, CutGatesRecord,
                            AltUpPredictRecord, AltUpCorrectRecord, ActTimesRecord, RopeWriteRecord, AttendRecord,
                            HeadLinearRecord, LatentWriteRecord, LatentAttendRecord, CausalConvRecord,
                            SelectiveScanRecord, GatedDeltaRecord, GateRecord, ActRecord, RouteRecord, ExpertsRecord,
                            AddGatedRecord, KeepRowsRecord, ReplaceRowsRecord, MergeRowsRecord,
                            GatherRotationRecord>;

// Blocks lie so many values apart. A latent has the same array twice.
struct LayerCache {
    void *k, *v;
    int64_t k_stride, v_stride;
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
    const int32_t* state_slots;  // [num_seqs]; null where no layer has a state
    const float* input_rows;      // of GivenRowsRecord; null where a program has none
    const int32_t* key_ends;      // [rows] or null: AttentionArgs
    const int32_t* encoder_lens;  // [num_seqs]: the keys of caches of an encoder; null where there are none
    const int64_t* needed;
    int64_t num_needed;
    const int32_t* adapter_slots;  // [rows], -1: none; null where no row has an adapter
};

// Of ReplaceRowsRecord: rows [count][stride], and where they go.
struct ReplacedRows {
    const float* rows;
    const int64_t* index;
    int64_t count, stride;
};

class Program {
public:
    void add(Record record) { records_.push_back(std::move(record)); }
    void set_buffers(std::vector<float*> buffers) { buffers_ = std::move(buffers); }
    void set_caches(std::vector<LayerCache> caches, CacheType type, int block_size);
    void set_states(std::vector<float*> states) { states_ = std::move(states); }
    // int32 [parts][rows] of the next run, or null: each part is the position.
    void set_position_parts(const int32_t* parts) { position_parts_ = parts; }
    void set_replaced_rows(const ReplacedRows& rows) { replaced_ = rows; }
    // After all of them. Buffers, caches and groups that records name must be there; Python has checked it.
    void run(const ProgramStep& step) const;

private:
    std::vector<Record> records_;
    std::vector<float*> buffers_;
    std::vector<LayerCache> caches_;
    std::vector<float*> states_;
    ReplacedRows replaced_{};
    const int32_t* position_parts_ = nullptr;
    CacheType type_{};
    int block_size_ = 0;

    friend struct ProgramRun;
};

}  // namespace octavo
