// The paged KV cache as the kernels see it.
//
//   k [num_blocks][num_kv_heads][block_size / 16][head_dim][16]     16 keys side by side: one load scores VW of them
//   v [num_blocks][num_kv_heads][block_size][padded_dim]            padded_dim = head_dim rounded up to 16
//
// The blocks of an array lie k_stride or v_stride values apart: layers whose blocks differ in size share one array of pages.
// What all heads share, the latent of multi-head latent attention, has one array:
//
//   rows [num_blocks][block_size][rank + rope_dim]                  a key is a whole row, its value the first `rank`
//
// In all of them 16 keys of a head are one piece of memory, a tile. In int8 the 16 scales of its keys, float32, lie behind
// each tile: a value is its code times the scale of its key (or value) and head. Float8 has a scale a layer, which callers know.
#pragma once

namespace octavo {

enum class CacheType : int { f32 = 0, bf16 = 1, f16 = 2, e4m3 = 3, e5m2 = 4, i8 = 5 };

constexpr int kKeyTile = 16;

// Bytes of the scales behind a tile of int8.
constexpr int kTileScaleBytes = kKeyTile * 4;

constexpr int padded_dim(int head_dim) { return (head_dim + kKeyTile - 1) / kKeyTile * kKeyTile; }

}  // namespace octavo
