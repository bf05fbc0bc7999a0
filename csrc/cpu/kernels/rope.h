// Per-head norm (optional), rotation of q and k in place, and the write of k and v into the paged cache.
#pragma once

#include "isa.h"
#include "kernels/cache.h"

namespace octavo {

struct RopeArgs {
    float* qkv;              // [rows][(num_heads + 2 num_kv_heads) * head_dim]
    const int32_t* positions;  // [rows]
    const float* cos_sin;    // [max_pos][head_dim]: cos half, sin half; null: nothing is rotated
    const float* q_norm;     // [head_dim] or null
    const float* k_norm;     // [head_dim] or null
    float eps;
    void* k_cache;
    void* v_cache;
    int64_t k_stride, v_stride;  // from block to block
    CacheType type;
    int block_size;
    const int64_t* slots;    // [rows]: block * block_size + offset
    int64_t rows;
    int num_heads;
    int num_kv_heads;
    int head_dim;
    bool norms_rotated;      // the norm comes behind the rotation
    const float* q_scales;   // [max_pos]: what q is multiplied by in the end; or null
    float k_scale, v_scale;  // of float8: what keys and values are divided by; else 1
};

struct RopeKernels {
    void (*rope_kv_write)(const RopeArgs& args);
};

OCTAVO_DECLARE_KERNELS(RopeKernels, rope_kernels)

}  // namespace octavo
