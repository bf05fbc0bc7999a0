// All layers of a step in one call: the kernels that `ops/layer_stack.py` calls one by one, in the same order and with the
// same arguments, so that the results are the same bit for bit. What it saves is the way through Python between two
// kernels, which is longer than a small kernel.
#pragma once

#include "kernels/activation.h"
#include "kernels/cache.h"
#include "packed_linear.h"

#include <cstdint>
#include <vector>

namespace octavo {

struct StackShape {
    int64_t hidden, intermediate;
    int num_heads, num_kv_heads, head_dim;
    float eps, attn_scale, softcap;
    Activation activation;
};

// Norms that a family does not have are null.
struct StackLayer {
    const PackedLinear *qkv, *o, *gate_up, *down;
    const float *q_norm, *k_norm, *attn_post_norm, *mlp_norm, *mlp_post_norm, *next_norm;
    const float* cos_sin;
    int window;
};

// The activations of a step, [rows][width] each, and its plan; see RopeArgs and AttentionArgs. `normed` holds the first
// layer's input and, at the end, the output: of all rows, or of the `num_needed` rows that `needed` names in rising order.
struct StackStep {
    float *residual, *normed, *qkv, *attn, *block_out, *gate_up, *act;
    const int32_t* positions;
    const int64_t* slots;
    const int32_t* block_tables;
    int64_t block_table_stride;
    const int32_t *seq_lens, *query_start_loc;
    int num_seqs;
    int64_t rows;
    const int64_t* needed;  // null: all
    int64_t num_needed;
};

struct LayerCache {
    void *k, *v;
};

class LayerStack {
public:
    explicit LayerStack(const StackShape& shape) : shape_(shape) {}
    void add(const StackLayer& layer) { layers_.push_back(layer); }
    void set_caches(std::vector<LayerCache> caches, CacheType type, int block_size);  // throws std::invalid_argument
    void run(const StackStep& step) const;                                             // after set_caches

private:
    void attend(const StackLayer& layer, const LayerCache& cache, const StackStep& step) const;

    StackShape shape_;
    std::vector<StackLayer> layers_;
    std::vector<LayerCache> caches_;
    CacheType type_{};
    int block_size_ = 0;
};

}  // namespace octavo
