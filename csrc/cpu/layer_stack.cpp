#include "layer_stack.h"

#include "isa.h"
#include "kernels/attention.h"
#include "kernels/norm.h"
#include "kernels/rope.h"

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

void LayerStack::run(const StackStep& t) const {
    if (caches_.size() != layers_.size()) throw std::invalid_argument("the caches are not set");
    const StackShape& s = shape_;
    const int64_t heads = int64_t(s.num_heads) * s.head_dim, kv = int64_t(s.num_kv_heads) * s.head_dim;
    const auto& norm = OCTAVO_KERNELS(norm_kernels);
    const auto& activation = OCTAVO_KERNELS(activation_kernels);
    for (size_t i = 0; i < layers_.size(); ++i) {
        const StackLayer& layer = layers_[i];
        layer.qkv->linear(t.qkv, heads + 2 * kv, t.normed, s.hidden, t.rows);
        attend(layer, caches_[i], t);
        layer.o->linear(t.block_out, s.hidden, t.attn, heads, t.rows);
        if (layer.attn_post_norm) norm.rms_norm(t.block_out, t.block_out, layer.attn_post_norm, t.rows, s.hidden, s.eps);
        norm.add_rms_norm(t.normed, t.residual, t.block_out, layer.mlp_norm, t.rows, s.hidden, s.eps);
        layer.gate_up->linear(t.gate_up, 2 * s.intermediate, t.normed, s.hidden, t.rows);
        activation.act_mul(t.act, t.gate_up, t.rows, s.intermediate, s.activation);
        layer.down->linear(t.block_out, s.hidden, t.act, s.intermediate, t.rows);
        if (layer.mlp_post_norm) norm.rms_norm(t.block_out, t.block_out, layer.mlp_post_norm, t.rows, s.hidden, s.eps);
        norm.add_rms_norm(t.normed, t.residual, t.block_out, layer.next_norm, t.rows, s.hidden, s.eps);
    }
}

}  // namespace octavo
