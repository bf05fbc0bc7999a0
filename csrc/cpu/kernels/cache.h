// The paged KV cache as the kernels see it.
//
//   k [num_blocks][num_kv_heads][block_size / 16][head_dim][16]     16 keys side by side: one load scores VW of them
//   v [num_blocks][num_kv_heads][block_size][padded_dim]            padded_dim = head_dim rounded up to 16
//
// The blocks of an array lie k_stride or v_stride values apart: layers whose blocks differ in size share one array of pages.
// What all heads share, the latent of multi-head latent attention, has one array:
//
//   rows [num_blocks][block_size][rank + rope_dim]                  a key is a whole row, its value the first `rank`
#pragma once

namespace octavo {

enum class CacheType : int { f32 = 0, bf16 = 1, f16 = 2 };

constexpr int kKeyTile = 16;

constexpr int padded_dim(int head_dim) { return (head_dim + kKeyTile - 1) / kKeyTile * kKeyTile; }

}  // namespace octavo
