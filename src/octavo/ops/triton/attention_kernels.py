"""Kernels of attention over the paged cache. Softmax runs online, in base 2 (Milakov and Gimelshein 2018; Dao et al.
2022, FlashAttention).

The query heads that share a head of keys are the rows of one tile (grouped-query packing), so that keys are read once
for all of them and meet the tensor cores. The bits of a row depend on its sequence alone: tiles of keys begin at
multiples of BLOCK_N, and a tile in which a row sees nothing leaves it as it was.
"""

from __future__ import annotations

import triton.language as tl

import triton
from octavo.ops.triton.launching import jit


@triton.jit
def _scores(q, k, scale, cap, CAPPED: tl.constexpr, PRECISION: tl.constexpr):
    """q [M, D] times k [N, D] in base 2. `scale`: of the scores, times log2(e) where they are not capped."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if CAPPED:
        # cap * tanh(s / cap), and exp(x) = exp2(x log2(e)); exp overflows to infinity, which divides to 0.
        s = cap * (1.0 - 2.0 / (tl.exp(s * scale * (2.0 / cap)) + 1.0)) * 1.4426950408889634
    else:
        s = s * scale
    return s


@triton.jit
def _biased(s, slopes, heads, in_group, distances):
    """Scores s [M, N] in base 2, less what lies at a distance, by the slope of each row's head (ALiBi)."""
    slope = tl.load(slopes + heads, mask=in_group, other=0.0) * 1.4426950408889634
    return s + slope[:, None] * distances


@triton.jit
def _told_apart(s, biases, heads, in_group, distances, REACH: tl.constexpr):
    """Scores s [M, N] in base 2 with what each row's head adds by key - query position."""
    at = tl.minimum(tl.maximum(distances, -REACH), REACH) + REACH
    bias = tl.load(biases + heads[:, None] * (2 * REACH + 1) + at, mask=in_group[:, None], other=0.0)
    return s + bias * 1.4426950408889634


@triton.jit
def _with_sinks(total, largest, sinks, heads, exists):
    """The sum of a row's weights with that of one more key, whose value is zero. exp2 overflows to infinity, which
    divides to 0."""
    sink = tl.load(sinks + heads, mask=exists, other=0.0) * 1.4426950408889634
    return total + tl.exp2(sink - largest)


@triton.jit
def _online(acc, largest, total, s, v, PRECISION: tl.constexpr):
    """One tile of scores s [M, N] in base 2 and values v [N, D]; -inf: unseen."""
    new = tl.maximum(largest, tl.max(s, 1))
    # A row that has seen nothing yet: -inf minus -inf would not be a number.
    base = tl.where(new == float("-inf"), 0.0, new)
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(largest - base)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, new, total


@triton.jit
def _keys_at(block_table, keys, in_range, head, block_stride, BLOCK_SIZE: tl.constexpr, D: tl.constexpr):
    """Offsets of keys (or values) in the cache, int64 [N]."""
    block = tl.load(block_table + keys // BLOCK_SIZE, mask=in_range, other=0).to(tl.int64)
    return block * block_stride + (head * BLOCK_SIZE + keys % BLOCK_SIZE) * D


@triton.jit
def _in_blocks(
    keys, positions, heads, KEYS: tl.constexpr, LOCAL: tl.constexpr, STRIDE: tl.constexpr, STEP: tl.constexpr
):
    """bool [M, N]: which keys up to a row's position its head sees (`octavo.ops.operands.KeyBlocks`)."""
    block = (keys // KEYS)[None, :]
    between = (block + (heads * STEP + 1)[:, None]) % STRIDE == 0
    return between | (block > (positions // KEYS - LOCAL)[:, None])


@jit(do_not_specialize=["table_stride", "num_seqs"])
def decode_kernel(
    out, partial, partial_stats, qkv, k_cache, v_cache, block_tables, table_stride, seq_lens, items, starts, num_seqs,
    slopes, biases, sinks, block_stride, scale, cap, v_scale, window,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, D: tl.constexpr, Q_STRIDE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr, CHUNK: tl.constexpr,
    CHUNKED: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr, REACH: tl.constexpr, PRECISION: tl.constexpr,
    KEYS: tl.constexpr, LOCAL: tl.constexpr, STRIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One query a sequence. An item is a chunk of CHUNK keys of a sequence; programs take items x heads of keys in
    turn, starts[num_seqs] items in all. items int32 [., 2]: sequence, chunk. KEYS: of a block, where heads see some
    blocks only; else 0. What no row of a tile sees is not read."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    in_d = dims < D
    num_items = tl.load(starts + num_seqs)
    for work in range(tl.program_id(0), num_items * NUM_KV_HEADS, tl.num_programs(0)):
        item, head = work // NUM_KV_HEADS, work % NUM_KV_HEADS
        seq = tl.load(items + 2 * item).to(tl.int64)
        chunk = tl.load(items + 2 * item + 1)
        seq_len = tl.load(seq_lens + seq)
        end = tl.minimum(chunk * CHUNK + CHUNK, seq_len)
        begin = chunk * CHUNK
        if CHUNKED:
            begin = tl.maximum(begin, (seq_len - 1) // window * window)
        elif window > 0:
            begin = tl.maximum(begin, seq_len - window)
        in_group = rows < GROUP
        q_at = seq * Q_STRIDE + (head * GROUP + rows[:, None]) * D + dims[None, :]
        q = tl.load(qkv + q_at, mask=in_group[:, None] & in_d[None, :], other=0.0)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        for n in range(begin // BLOCK_N * BLOCK_N, end, BLOCK_N):
            keys = n + tl.arange(0, BLOCK_N)
            seen = (keys >= begin) & (keys < end)
            if KEYS:
                near = _in_blocks(keys, rows * 0 + seq_len - 1, head * GROUP + rows, KEYS, LOCAL, STRIDE, STEP)
                near = near & in_group[:, None]
                seen = seen & (tl.max(near.to(tl.int32), 0) > 0)
            at = _keys_at(block_tables + seq * table_stride, keys, seen, head, block_stride, BLOCK_SIZE, D)
            mask = seen[:, None] & in_d[None, :]
            k = tl.load(k_cache + at[:, None] + dims[None, :], mask=mask, other=0.0).to(q.dtype)
            s = _scores(q, k, scale, cap, CAPPED, PRECISION)
            if SLOPED:
                s = _biased(s, slopes, head * GROUP + rows, in_group, (keys - seq_len + 1)[None, :].to(tl.float32))
            if REACH >= 0:
                s = _told_apart(s, biases, head * GROUP + rows, in_group, (keys - seq_len + 1)[None, :], REACH)
            s = tl.where((seen[None, :] & near) if KEYS else seen[None, :], s, float("-inf"))
            v = tl.load(v_cache + at[:, None] + dims[None, :], mask=mask, other=0.0).to(q.dtype)
            acc, largest, total = _online(acc, largest, total, s, v, PRECISION)
        heads = head * GROUP + rows
        if seq_len <= CHUNK:
            if sinks is not None:
                total = _with_sinks(total, largest, sinks, heads, in_group)
            result = acc * (v_scale / total)[:, None]
            target = out + seq * (NUM_HEADS * D) + heads[:, None] * D + dims[None, :]
            tl.store(target, result.to(out.dtype.element_ty), mask=in_group[:, None] & in_d[None, :])
        else:
            at_item = heads.to(tl.int64) + item * NUM_HEADS
            kept = partial + at_item[:, None] * BLOCK_D + dims[None, :]
            tl.store(kept, acc, mask=in_group[:, None])
            tl.store(partial_stats + at_item * 2, largest, mask=in_group)
            tl.store(partial_stats + at_item * 2 + 1, total, mask=in_group)


@jit
def combine_kernel(
    out, partial, partial_stats, starts, sinks, v_scale,
    NUM_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One sequence and head: its chunks, in order, become one result. A sequence that does not decode has none."""
    seq, head = tl.program_id(0), tl.program_id(1)
    num_chunks = tl.load(starts + seq + 1) - tl.load(starts + seq)
    if num_chunks > 1:
        dims, chunks = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C)
        first = tl.load(starts + seq).to(tl.int64)
        acc = tl.zeros([BLOCK_D], tl.float32)
        largest = float("-inf")
        total = 0.0
        for c in range(0, num_chunks, BLOCK_C):
            exists = c + chunks < num_chunks
            at = (first + c + chunks) * NUM_HEADS + head
            peaks = tl.load(partial_stats + at * 2, mask=exists, other=float("-inf"))
            sums = tl.load(partial_stats + at * 2 + 1, mask=exists, other=0.0)
            parts = tl.load(partial + at[:, None] * BLOCK_D + dims[None, :], mask=exists[:, None], other=0.0)
            new = tl.maximum(largest, tl.max(peaks, 0))
            base = tl.where(new == float("-inf"), 0.0, new)  # chunks in front of the window hold nothing
            weights = tl.exp2(peaks - base)
            shrink = tl.exp2(largest - base)
            acc = acc * shrink + tl.sum(parts * weights[:, None], 0)
            total = total * shrink + tl.sum(sums * weights, 0)
            largest = new
        if sinks is not None:
            total += tl.exp2(tl.load(sinks + head) * 1.4426950408889634 - largest)
        target = out + seq.to(tl.int64) * (NUM_HEADS * D) + head * D + dims
        tl.store(target, (acc * (v_scale / total)).to(out.dtype.element_ty), mask=dims < D)


@jit(do_not_specialize=["table_stride"])
def prefill_kernel(  # noqa: C901 - the branches are of what is known when it is compiled
    out, qkv, k_cache, v_cache, block_tables, table_stride, seq_lens, query_start_loc, tiles,
    slopes, biases, sinks, key_ends, block_stride, scale, cap, v_scale, window,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, D: tl.constexpr, Q_STRIDE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOWED: tl.constexpr, CAUSAL: tl.constexpr,
    CHUNKED: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr, REACH: tl.constexpr, PRECISION: tl.constexpr,
    KEYS: tl.constexpr, LOCAL: tl.constexpr, STRIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_M / GROUP_ROWS queries of one sequence, for one head of keys. tiles int32 [., 2]: sequence, tile;
    -1: nothing. GROUP_ROWS: query heads of a head of keys, rounded up to a power of two. Rows of qkv are
    Q_STRIDE apart."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP_ROWS
    head = tl.program_id(1)
    seq = tl.load(tiles + 2 * tl.program_id(0)).to(tl.int64)
    tile = tl.load(tiles + 2 * tl.program_id(0) + 1)
    if seq < 0:  # a captured step has more programs than tiles
        return
    seq_len = tl.load(seq_lens + seq)
    row_begin = tl.load(query_start_loc + seq)
    num_queries = tl.load(query_start_loc + seq + 1) - row_begin
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    in_d = dims < D
    queries = tile * BLOCK_Q + rows // GROUP_ROWS
    heads = head * GROUP + rows % GROUP_ROWS
    exists = (queries < num_queries) & (rows % GROUP_ROWS < GROUP)
    tokens = (row_begin + queries).to(tl.int64)
    q_at = tokens[:, None] * Q_STRIDE + heads[:, None] * D + dims[None, :]
    q = tl.load(qkv + q_at, mask=exists[:, None] & in_d[None, :], other=0.0)

    positions = seq_len - num_queries + queries
    first_position = seq_len - num_queries + tile * BLOCK_Q
    # `lasts`: the last key that each row sees; `first_end`: where those that the tile's first row sees end.
    if not CAUSAL:
        lasts = tl.minimum(positions + window, seq_len) - 1 if WINDOWED else tl.zeros_like(positions) + seq_len - 1
        end = tl.minimum(first_position + BLOCK_Q - 1 + window, seq_len) if WINDOWED else seq_len
        first_end = seq_len
    elif key_ends is not None:
        lasts = tl.load(key_ends + tokens, mask=queries < num_queries, other=0) - 1
        first_end = tl.load(key_ends + row_begin + tile * BLOCK_Q)
        end = tl.max(lasts, 0) + 1
    else:
        lasts = positions
        first_end = first_position + 1
        end = tl.minimum(first_position + BLOCK_Q, seq_len)
    begin = 0
    if WINDOWED:
        first_key = first_position // window * window if CHUNKED else tl.maximum(first_position - window + 1, 0)
        begin = first_key // BLOCK_N * BLOCK_N
        all_seen = begin
    elif KEYS:
        all_seen = 0
    else:
        all_seen = first_end // BLOCK_N * BLOCK_N
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    table = block_tables + seq * table_stride
    # Tiles that every row sees whole.
    for n in range(begin, all_seen, BLOCK_N):
        keys = n + tl.arange(0, BLOCK_N)
        at = _keys_at(table, keys, keys < seq_len, head, block_stride, BLOCK_SIZE, D)
        k = tl.load(k_cache + at[:, None] + dims[None, :], mask=in_d[None, :], other=0.0).to(q.dtype)
        s = _scores(q, k, scale, cap, CAPPED, PRECISION)
        if SLOPED:
            away = (keys[None, :] - positions[:, None]).to(tl.float32)
            s = _biased(s, slopes, heads, exists, away if CAUSAL else -tl.abs(away))
        if REACH >= 0:
            s = _told_apart(s, biases, heads, exists, keys[None, :] - positions[:, None], REACH)
        v = tl.load(v_cache + at[:, None] + dims[None, :], mask=in_d[None, :], other=0.0).to(q.dtype)
        acc, largest, total = _online(acc, largest, total, s, v, PRECISION)
    # Tiles on the diagonal, with a window's edge, or of blocks that not all heads see.
    for n in range(all_seen, end, BLOCK_N):
        keys = n + tl.arange(0, BLOCK_N)
        read = keys < end
        if KEYS:
            near = _in_blocks(keys, positions, heads, KEYS, LOCAL, STRIDE, STEP)
            read = read & (tl.max((near & exists[:, None]).to(tl.int32), 0) > 0)
        at = _keys_at(table, keys, read, head, block_stride, BLOCK_SIZE, D)
        mask = read[:, None] & in_d[None, :]
        k = tl.load(k_cache + at[:, None] + dims[None, :], mask=mask, other=0.0).to(q.dtype)
        s = _scores(q, k, scale, cap, CAPPED, PRECISION)
        if SLOPED:
            away = (keys[None, :] - positions[:, None]).to(tl.float32)
            s = _biased(s, slopes, heads, exists, away if CAUSAL else -tl.abs(away))
        if REACH >= 0:
            s = _told_apart(s, biases, heads, exists, keys[None, :] - positions[:, None], REACH)
        seen = keys[None, :] <= lasts[:, None]
        if WINDOWED:
            first_keys = positions // window * window if CHUNKED else positions - window + 1
            seen = seen & (keys[None, :] >= first_keys[:, None])
        if KEYS:
            seen = seen & near
        s = tl.where(seen, s, float("-inf"))
        v = tl.load(v_cache + at[:, None] + dims[None, :], mask=mask, other=0.0).to(q.dtype)
        acc, largest, total = _online(acc, largest, total, s, v, PRECISION)
    if sinks is not None:
        total = _with_sinks(total, largest, sinks, heads, exists)
    result = acc * (v_scale / total)[:, None]
    target = out + tokens[:, None] * (NUM_HEADS * D) + heads[:, None] * D + dims[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=exists[:, None] & in_d[None, :])
