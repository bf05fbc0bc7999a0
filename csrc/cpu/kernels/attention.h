// Attention over the paged cache, for any mix of whole prompts, pieces of prompts and single tokens.
#pragma once

#include "isa.h"
#include "kernels/cache.h"

namespace octavo {

// Which keys a head sees beside what position and window say: those of the last `local` blocks up to the row's own, and of
// each block b with (b + head * step + 1) % stride == 0.
struct KeyBlocks {
    int size;  // of a block, a multiple of kKeyTile; 0: all keys
    int local, stride, step;
};

struct AttentionArgs {
    float* out;        // [rows][num_heads * value_dim]
    const float* qkv;  // rows that begin with q, [num_heads * head_dim]
    int64_t row_stride;  // from row to row of qkv
    const void* k_cache;
    const void* v_cache;  // of a latent null
    int64_t k_stride, v_stride;  // from block to block
    CacheType type;
    int block_size;
    const int32_t* block_tables;  // [num_seqs][block_table_stride]
    int64_t block_table_stride;
    const int32_t* seq_lens;         // [num_seqs], this step's tokens included
    const int32_t* query_start_loc;  // [num_seqs + 1]
    int num_seqs;
    int num_heads;
    int num_kv_heads;
    int head_dim;
    int value_dim;
    bool is_latent;  // one kv head, whose keys lie in rows of which the first value_dim are the values
    float scale;
    float k_scale, v_scale;  // of float8 without a latent: what is cached times it is the key or value; else 1
    int window;     // 0: none; else a key at a distance < window is seen, of rows that are not causal to both sides
    bool chunked;   // instead, if there is a window: the keys of the chunk of so many positions that the query is in
    float softcap;  // 0: none
    const float* slopes;  // [num_heads] or null: slope times (key - query position) is added to a score (ALiBi); of rows that
                          // are not causal, minus slope times the distance
    const float* biases;  // [num_heads][2 reach + 1] or null: what is added to a score by key - query position, from -reach
    int reach;            // on; what lies further away is as far as the first or the last
    const float* sinks;   // [num_heads] or null: the score of one more key, whose value is zero
    bool causal;          // else each row sees all seq_len keys of its sequence, or those of its window
    const int32_t* key_ends;  // [rows] or null: a row sees the keys before it, instead of before its position + 1; within a
                              // sequence it never falls
    KeyBlocks blocks;  // if it has a size, rows are causal, without a window and without ends of their own
};

struct AttentionKernels {
    void (*attention)(const AttentionArgs& args);
};

OCTAVO_DECLARE_KERNELS(AttentionKernels, attention_kernels)

}  // namespace octavo
