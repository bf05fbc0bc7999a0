"""What the operations on caches of keys mean, in plain torch float32.

Shapes: T tokens in the step, B sequences, D head_dim, Hq / Hkv query and key-value heads.

The paged KV cache has one layout for all implementations, so that they can be mixed and compared:

    k_cache [num_blocks, Hkv, block_size / 16, D, 16]     16 keys side by side: a kernel scores them in one go
    v_cache [num_blocks, Hkv, block_size, Dv]             Dv = D rounded up to 16, the rest is zero

and that of a latent attention, one array: [num_blocks, block_size, rank + rope_dim].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.ops.operands import KeyBlocks, Latent
from octavo.ops.reference import rms_normed
from octavo.ops.step import NoPlanner

#: Keys in a tile of the K cache; block sizes are multiples of it.
KEY_TILE = 16
#: Behind a tile of int8: a float32 for each of its keys.
TILE_SCALE_BYTES = 4 * KEY_TILE


def kv_cache_shapes(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of k_cache and v_cache. block_size is a multiple of 16.

    int8: behind the codes of each 16 keys, and of their values, lie their scales, float32. What is cached is a code
    times the scale of its token and head, which is the largest magnitude there, divided by 127.
    """
    assert block_size % KEY_TILE == 0, f"block size {block_size} is not a multiple of {KEY_TILE}"
    padded = -(-head_dim // KEY_TILE) * KEY_TILE
    tiles = block_size // KEY_TILE
    if dtype == torch.int8:
        k_rows = head_dim + TILE_SCALE_BYTES // KEY_TILE
        k_shape = (num_blocks, num_kv_heads, tiles, k_rows, KEY_TILE)
        return k_shape, (num_blocks, num_kv_heads, tiles, KEY_TILE * padded + TILE_SCALE_BYTES)
    return (num_blocks, num_kv_heads, tiles, head_dim, KEY_TILE), (num_blocks, num_kv_heads, block_size, padded)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D]; cos, sin [T, 1, D / 2]: the halves of a head are the pairs (neox)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rope_kv_write(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    norms_rotated: bool = False,
    q_scales: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Norm (if given, per head) and rotate (if cos_sin is) q and k inside qkv; then write k and v to the cache's slots.

    qkv float32 [T, (Hq + 2 Hkv) * D]; positions int32 [T]; cos_sin float32 [max_pos, D] = cos | sin;
    slot_mapping int64 [T] = block * block_size + offset. norms_rotated: the norm comes behind the rotation. q_scales
    float32 [max_pos, 1]: what q is multiplied by in the end. num_kv_heads 0: there is only q, and nothing is written.
    k_scale, v_scale: what a float8 cache divides k and v by; what is then beyond its largest value becomes that.
    """
    q, k, v = _heads(qkv, num_heads, num_kv_heads, head_dim)
    for part, norm in ((q, q_norm), (k, k_norm)):
        if norm is not None and not norms_rotated:
            part.copy_(rms_normed(part, norm, eps))
        if cos_sin is not None:
            cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)
            part.copy_(_rotated(part, cos, sin))
        if norm is not None and norms_rotated:
            part.copy_(rms_normed(part, norm, eps))
    if q_scales is not None:
        q.mul_(q_scales[positions.long()].unsqueeze(1))
    if num_kv_heads == 0:
        return
    block_size = k_cache.shape[2] * KEY_TILE
    blocks, offsets = slot_mapping // block_size, slot_mapping % block_size
    tiles, keys = offsets // KEY_TILE, offsets % KEY_TILE
    if k_cache.dtype == torch.int8:
        k_codes, k_scales = _tile_parts(k_cache.flatten(3))
        v_codes, v_scales = _tile_parts(v_cache)
        _split_last(k_codes, head_dim, KEY_TILE)[blocks, :, tiles, :, keys], k_scales[blocks, :, tiles, keys] = _int8(k)
        v_padded = F.pad(v, (0, v_codes.shape[-1] // KEY_TILE - head_dim))
        _split_last(v_codes, KEY_TILE, -1)[blocks, :, tiles, keys], v_scales[blocks, :, tiles, keys] = _int8(v_padded)
        return
    k_cache[blocks, :, tiles, :, keys] = _cached(k, k_cache.dtype, k_scale)
    v_cache[blocks, :, offsets] = _cached(F.pad(v, (0, v_cache.shape[3] - head_dim)), v_cache.dtype, v_scale)


def _cached(x: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """As a cache of floats holds it."""
    if dtype.itemsize == 1:
        largest = torch.finfo(dtype).max
        x = (x * (1.0 / torch.tensor(scale))).clamp(-largest, largest)
    return x.to(dtype)


def _int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, as x, and a scale for each of its rows, NaN where one is not finite."""
    high = x.abs().amax(dim=-1)
    is_finite = x.isfinite().all(dim=-1)
    scales = torch.where(is_finite, high / 127.0, math.nan)
    # A quotient of tensors: torch multiplies a number by the reciprocal, which rounds twice.
    inverse = torch.where(is_finite & (scales > 0), torch.full_like(high, 127.0) / high, 0.0)
    codes = torch.where(is_finite[..., None], x * inverse[..., None], 0.0)
    return codes.round().to(torch.int8), scales


def _tile_parts(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Views of int8 tiles [..., bytes]: codes [..., bytes of the codes], and scales float32 [..., 16]."""
    size = tiles.shape[-1] - TILE_SCALE_BYTES
    return tiles[..., :size], tiles[..., size:].view(torch.float32)


def _split_last(x: Tensor, *sizes: int) -> Tensor:
    """A view whose last dimensions have these sizes; -1: what is left."""
    return x.view(*x.shape[:-1], *sizes)


def _heads(qkv: Tensor, num_heads: int, num_kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of q [T, Hq, D], k and v [T, Hkv, D]."""
    heads = qkv.view(len(qkv), num_heads + 2 * num_kv_heads, head_dim)
    end_q, end_k = num_heads, num_heads + num_kv_heads
    return heads[:, :end_q], heads[:, end_q:end_k], heads[:, end_k:]


def attention(
    out: Tensor,
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    *,
    chunked: bool = False,
    slopes: Tensor | None = None,
    biases: Tensor | None = None,
    sinks: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    causal: bool = True,
    key_ends: Tensor | None = None,
    blocks: KeyBlocks | None = None,
    plan: None = None,
) -> None:
    """Attention of each sequence's last tokens over its cached context, their own keys included.

    out float32 [T, Hq * D]; qkv [T, Hq * D or more], queries first; block_tables int32 [B, max_blocks]; seq_lens
    int32 [B], the context with this step's tokens; query_start_loc int32 [B + 1]. window > 0: keys at a distance <
    window are seen; if `chunked`, only those of the query's chunk, which begins at a multiple of window. softcap > 0:
    scores become softcap * tanh(score / softcap). slopes float32 [Hq]: slope * (key's position - query's) is added
    to a score. biases float32 [Hq, 2 R + 1]: what is added to a score by (key's position - query's) from -R to R; what
    lies further away has that of the first or the last. sinks float32 [Hq]: the score of one more key, whose value is
    zero. Slots at or beyond seq_len may hold anything. key_ends int32 [T]: a row sees the keys before its end, and not
    those up to its own; it is at least 1, not behind seq_len, and never falls within a sequence; with a window it lies
    behind the row's position. Not causal: each row sees all seq_len keys, of which there is at least one, and need not
    be one of them; there are no ends of rows then. With a window, slopes or biases, rows are the last of those keys: a
    window reaches to both sides, and a slope is that of the distance.
    blocks: a head sees some blocks of keys only; rows are causal then, without windows and ends of their own.
    k_scale, v_scale: of a float8 cache. plan: what `attention_planner` made of the step, here nothing.
    """
    assert causal or (key_ends is None and not chunked)
    assert blocks is None or (causal and not window and key_ends is None and blocks.size % KEY_TILE == 0)
    q_all = qkv[:, : num_heads * head_dim].view(len(qkv), num_heads, head_dim)
    out_all = out.view(len(out), num_heads, head_dim)
    starts = query_start_loc.tolist()
    for i, seq_len in enumerate(seq_lens.tolist()):
        rows = slice(starts[i], starts[i + 1])
        k, v = _gather(k_cache, v_cache, block_tables[i], seq_len, head_dim)
        k, v = (x.repeat_interleave(num_heads // num_kv_heads, dim=0) for x in (k * k_scale, v * v_scale))
        scores = torch.einsum("thd,hsd->hts", q_all[rows], k) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        num_queries = rows.stop - rows.start
        distance = torch.arange(seq_len - num_queries, seq_len)[:, None] - torch.arange(seq_len)[None, :]
        if slopes is not None:
            scores = scores - slopes[:, None, None] * (distance if causal else distance.abs())
        if biases is not None:
            reach = biases.shape[1] // 2
            scores = scores + biases[:, (-distance).clamp(-reach, reach) + reach]
        unseen = distance < 0 if causal else torch.zeros_like(distance, dtype=torch.bool)
        if key_ends is not None:
            unseen = torch.arange(seq_len) >= key_ends[rows, None]
        if window:
            positions = torch.arange(seq_len - num_queries, seq_len)
            unseen |= distance >= (positions % window + 1)[:, None] if chunked else distance >= window
            unseen |= distance <= -window if not causal else False
        if blocks is not None:
            unseen = unseen | _unseen_blocks(blocks, num_heads, seq_len)[:, seq_len - num_queries :]
        scores = scores.masked_fill(unseen, -math.inf)
        if sinks is not None:
            scores = torch.cat((scores, sinks.view(-1, 1, 1).expand(-1, num_queries, 1)), dim=-1)
        probs = scores.softmax(dim=-1)[..., :seq_len]
        out_all[rows] = torch.einsum("hts,hsd->thd", probs, v)


def _unseen_blocks(blocks: KeyBlocks, num_heads: int, length: int) -> Tensor:
    """bool [Hq, query, key]: which keys of a sequence a head does not see, of those up to the query's own."""
    block = torch.arange(length) // blocks.size
    far = block[:, None] - block[None, :] >= blocks.local
    between = (block[None, :] + torch.arange(num_heads)[:, None] * blocks.step + 1) % blocks.stride != 0
    return far & between[:, None, :]


def _gather(
    k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_len: int, head_dim: int
) -> tuple[Tensor, Tensor]:
    """float32 [Hkv, seq_len, D] keys and values of one sequence."""
    blocks = block_table[: -(-seq_len // (k_cache.shape[2] * KEY_TILE))].long()
    num_kv_heads = k_cache.shape[1]
    if k_cache.dtype == torch.int8:
        k_codes, k_scales = _tile_parts(k_cache[blocks].flatten(3))
        v_codes, v_scales = _tile_parts(v_cache[blocks])
        k = _split_last(k_codes, head_dim, KEY_TILE).transpose(-1, -2) * k_scales[..., None]
        v = _split_last(v_codes, KEY_TILE, -1) * v_scales[..., None]
        k, v = (x.transpose(0, 1).flatten(1, 3)[:, :seq_len, :head_dim] for x in (k, v))
        return k, v
    k = k_cache[blocks].permute(1, 0, 2, 4, 3).reshape(num_kv_heads, -1, head_dim)
    v = v_cache[blocks].permute(1, 0, 2, 3).reshape(num_kv_heads, -1, v_cache.shape[3])
    return k[:, :seq_len].float(), v[:, :seq_len, :head_dim].float()


def latent_cache_shape(
    num_blocks: int, block_size: int, latent: Latent, dtype: torch.dtype = torch.float32
) -> tuple[int, ...]:
    """int8: behind the codes of each 16 rows lie their scales, float32, as in `kv_cache_shapes`."""
    if dtype == torch.int8:
        return num_blocks, block_size // KEY_TILE, KEY_TILE * latent.width + TILE_SCALE_BYTES
    return num_blocks, block_size, latent.width


def latent_write(
    q_latent: Tensor,
    q: Tensor,
    kv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    norm: Tensor,
    eps: float,
    cache: Tensor,
    slot_mapping: Tensor,
    latent: Latent,
) -> None:
    """The cache's rows of T tokens, and the rotated part of their queries.

    q_latent [T, heads * (rank + rope)], of which the last `rope` of each head are written;
    q [T, heads * (nope + rope)], of which the last `rope` are read; kv [T, rank + rope];
    cos_sin float32 [max_pos, rope] = cos | sin; norm float32 [rank];
    slot_mapping int64 [T] = block * block_size + offset.
    """
    cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)
    q_heads, out_heads = (each.view(len(each), latent.num_heads, -1) for each in (q, q_latent))
    out_heads[..., latent.rank :] = _rotated(q_heads[..., latent.nope_dim :], cos, sin)
    key = _rotated(kv[:, None, latent.rank :], cos, sin)[:, 0]
    rows = torch.cat((rms_normed(kv[:, : latent.rank], norm, eps), key), dim=-1)
    if cache.dtype == torch.int8:
        block_size = cache.shape[1] * KEY_TILE
        offsets = slot_mapping % block_size
        at = slot_mapping // block_size, offsets // KEY_TILE, offsets % KEY_TILE
        codes, scales = _tile_parts(cache)
        _split_last(codes, KEY_TILE, -1)[at], scales[at] = _int8(rows)
        return
    cache[slot_mapping // cache.shape[1], slot_mapping % cache.shape[1]] = _cached(rows, cache.dtype)


def latent_attention(
    out: Tensor,
    q_latent: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    latent: Latent,
    scale: float,
    *,
    plan: None = None,
) -> None:
    """Causal attention whose keys are the cache's rows, the same for all heads, and whose values are their latents.

    out float32 [T, heads * rank]; q_latent [T, heads * (rank + rope)]; cache [num_blocks, block_size, rank + rope];
    the rest as of `attention`.
    """
    q_heads, out_heads = (each.view(len(each), latent.num_heads, -1) for each in (q_latent, out))
    starts = query_start_loc.tolist()
    for i, seq_len in enumerate(seq_lens.tolist()):
        rows = slice(starts[i], starts[i + 1])
        keys = _gather_rows(cache, block_tables[i], seq_len)
        scores = torch.einsum("thd,sd->hts", q_heads[rows], keys) * scale
        unseen = torch.arange(seq_len)[None, :] > torch.arange(seq_len - (rows.stop - rows.start), seq_len)[:, None]
        probs = scores.masked_fill(unseen, -math.inf).softmax(dim=-1)
        out_heads[rows] = torch.einsum("hts,sd->thd", probs, keys[:, : latent.rank])


def _gather_rows(cache: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """float32 [seq_len, width]: the latents of one sequence."""
    if cache.dtype == torch.int8:
        codes, scales = _tile_parts(cache[block_table[: -(-seq_len // (cache.shape[1] * KEY_TILE))].long()])
        return (_split_last(codes, KEY_TILE, -1) * scales[..., None]).flatten(0, 2)[:seq_len]
    blocks = block_table[: -(-seq_len // cache.shape[1])].long()
    return cache[blocks].flatten(0, 1)[:seq_len].float()


#: Host arrays for `attention` beside the step's: none.
attention_planner = NoPlanner
