// The gated delta rule: a matrix a head, from keys to values, that each token lets decay, corrects and reads. And gates.
#pragma once

#include "isa.h"

namespace octavo {

struct GatedDeltaArgs {
    float* out;          // [rows][num_heads * value_dim]
    const float* qkv;    // [rows][2 num_key_heads * key_dim + num_heads * value_dim] = q | k | v
    const float* gates;  // [rows][2 num_heads] = b | a: beta = beta_scale * sigmoid(b), decay = exp(-exp(a_log) softplus(a))
    const float* a_log;  // [num_heads]
    float* state;        // [slots][num_heads][key_dim][value_dim]
    const int32_t* slots;            // [num_seqs]
    const int32_t* positions;        // [rows]; a sequence that begins at 0 has zeros for a state
    const int32_t* query_start_loc;  // [num_seqs + 1]
    int num_seqs;
    int num_heads, num_key_heads, key_dim, value_dim;
    bool tiled;  // head h has key head h % num_key_heads, else h * num_key_heads / num_heads
    float beta_scale;
};

struct GatedDeltaKernels {
    void (*run)(const GatedDeltaArgs& args);
    // x *= sigmoid(gates), or silu(gates); `count` values.
    void (*gate)(float* x, const float* gates, int64_t count, bool silu);
};

OCTAVO_DECLARE_KERNELS(GatedDeltaKernels, gated_delta_kernels)

}  // namespace octavo
