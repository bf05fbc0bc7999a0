// The cache of multi-head latent attention: one row a token that all heads share, its normed latent and a rotated key.
#pragma once

#include "isa.h"
#include "kernels/cache.h"

namespace octavo {

struct LatentWriteArgs {
    float* q_latent;           // [rows][num_heads][rank + rope_dim]: the first `rank` of each are there, the rest is written
    const float* q;            // [rows][num_heads][nope_dim + rope_dim], of which the last rope_dim are read
    const float* kv;           // [rows][rank + rope_dim]
    const int32_t* positions;  // [rows]
    const float* cos_sin;      // [max_pos][rope_dim]: cos half, sin half
    const float* norm;         // [rank]
    float eps;
    void* cache;
    int64_t stride;  // from block to block
    CacheType type;
    int block_size;
    const int64_t* slots;  // [rows]: block * block_size + offset
    int64_t rows;
    int num_heads, nope_dim, rank, rope_dim;
};

struct LatentKernels {
    void (*write)(const LatentWriteArgs& args);
};

OCTAVO_DECLARE_KERNELS(LatentKernels, latent_kernels)

}  // namespace octavo
