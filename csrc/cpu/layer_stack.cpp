#include "layer_stack.h"

#include "isa.h"
#include "kernels/attention.h"
#include "kernels/norm.h"
#include "kernels/rope.h"

#include <cstring>
#include <stdexcept>
#include <utility>

namespace octavo {

void LayerStack::set_caches(std::vector<LayerCache> caches, CacheType type, int block_size) {
    if (caches.size() != layers_.size()) throw std::invalid_argument("one cache a layer is wanted");
    caches_ = std::move(caches);
    type_ = type;
    block_size_ = block_size;
}

void LayerStack::attend(const StackLayer& layer, const LayerCache& cache, const StackStep& step) const {
    const StackShape& s = shape_;
    OCTAVO_KERNELS(rope_kernels)
        .rope_kv_write({step.qkv, step.positions, layer.cos_sin, layer.q_norm, layer.k_norm, s.eps, cache.k, cache.v, type_,
                        block_size_, step.slots, step.rows, s.num_heads, s.num_kv_heads, s.head_dim});
    OCTAVO_KERNELS(attention_kernels)
        .attention({step.attn, step.qkv, cache.k, cache.v, type_, block_size_, step.block_tables, step.block_table_stride,
                    step.seq_lens, step.query_start_loc, step.num_seqs, s.num_heads, s.num_kv_heads, s.head_dim,
                    s.attn_scale, layer.window, s.softcap});
}

// Moves the named rows to the front. No row is written before it is read: needed[i] >= i.
static void move_to_front(float* rows, int64_t width, const int64_t* needed, int64_t num_needed) {
    for (int64_t i = 0; i < num_needed; ++i)
        if (needed[i] != i) std::memcpy(rows + i * width, rows + needed[i] * width, size_t(width) * sizeof(float));
}

void LayerStack::run(const StackStep& t) const {
    if (caches_.size() != layers_.size()) throw std::invalid_argument("the caches are not set");
    const StackShape& s = shape_;
    const int64_t heads = int64_t(s.num_heads) * s.head_dim, kv = int64_t(s.num_kv_heads) * s.head_dim;
    const auto& norm = OCTAVO_KERNELS(norm_kernels);
    const auto& activation = OCTAVO_KERNELS(activation_kernels);
    int64_t rows = t.rows;
    for (size_t i = 0; i < layers_.size(); ++i) {
        const StackLayer& layer = layers_[i];
        layer.qkv->linear(t.qkv, heads + 2 * kv, t.normed, s.hidden, rows);
        attend(layer, caches_[i], t);
        if (t.needed && i + 1 == layers_.size()) {  // the last layer's keys and values are written: rows go their own ways
            move_to_front(t.attn, heads, t.needed, t.num_needed);
            move_to_front(t.residual, s.hidden, t.needed, t.num_needed);
            rows = t.num_needed;
            if (rows == 0) return;
        }
        layer.o->linear(t.block_out, s.hidden, t.attn, heads, rows);
        if (layer.attn_post_norm) norm.rms_norm(t.block_out, t.block_out, layer.attn_post_norm, rows, s.hidden, s.eps);
        norm.add_rms_norm(t.normed, t.residual, t.block_out, layer.mlp_norm, rows, s.hidden, s.eps);
        layer.gate_up->linear(t.gate_up, 2 * s.intermediate, t.normed, s.hidden, rows);
        activation.act_mul(t.act, t.gate_up, rows, s.intermediate, s.activation);
        layer.down->linear(t.block_out, s.hidden, t.act, s.intermediate, rows);
        if (layer.mlp_post_norm) norm.rms_norm(t.block_out, t.block_out, layer.mlp_post_norm, rows, s.hidden, s.eps);
        norm.add_rms_norm(t.normed, t.residual, t.block_out, layer.next_norm, rows, s.hidden, s.eps);
    }
}

}  // namespace octavo
