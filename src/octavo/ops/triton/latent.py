"""Multi-head latent attention: the cache's rows, products head by head, and attention over latents.

The cache of this device: [num_blocks, block_size, rank + rope], of the activations' type or a float8 type. All heads
read the same rows, so that a block of heads is the rows of a tile; the values are the first `rank` columns of the keys
and are loaded once.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.operands import Latent
from octavo.ops.triton.attention_kernels import _online, combine_kernel
from octavo.ops.triton.attention_plan import CHUNK, LATENT_HEADS, LATENT_ROWS, AttentionPlan, plan_of
from octavo.ops.triton.experts import ExpertsWeight
from octavo.ops.triton.launching import jit
from octavo.ops.triton.rope import _FLOAT8_MAX, _store
from octavo.ops.triton.variants import TYPE_NAMES, Variant

#: Keys of a tile, by the size of an element.
_KEYS: Final = {2: 32, 4: 16}
_LOG2E: Final = 1.4426950408889634
#: Of products by head: rows of a tile where there are few, and many; columns, and values along K.
_FEW, _MANY, _BLOCK_N, _BLOCK_K = 16, 64, 64, 64


@jit
def _write_kernel(
    q_latent, q, kv, positions, cos_sin, norm, eps, cache, slots, block_size, block_stride,
    NUM_HEADS: tl.constexpr, NOPE: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, BLOCK_R: tl.constexpr,
    HALF: tl.constexpr, HEADS: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """One token: program 0 the cache's row, the others HEADS heads of queries. HALF: ROPE / 2, BLOCK_R: RANK, both
    rounded up to a power of two."""
    token = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, HALF)
    in_half = half < ROPE // 2
    position = tl.load(positions + token).to(tl.int64)
    cos = tl.load(cos_sin + position * ROPE + half, mask=in_half, other=0.0)
    sin = tl.load(cos_sin + position * ROPE + ROPE // 2 + half, mask=in_half, other=0.0)
    if tl.program_id(1) == 0:
        slot = tl.load(slots + token)
        if slot >= 0:
            row = kv + token * (RANK + ROPE)
            target = cache + (slot // block_size) * block_stride + (slot % block_size) * (RANK + ROPE)
            dims = tl.arange(0, BLOCK_R)
            in_rank = dims < RANK
            x = tl.load(row + dims, mask=in_rank, other=0.0).to(tl.float32)
            inverse = tl.rsqrt(tl.sum(x * x, 0) / RANK + eps)
            x = x * inverse * tl.load(norm + dims, mask=in_rank, other=0.0)
            _store(target + dims, x, in_rank, LIMIT)
            first = tl.load(row + RANK + half, mask=in_half, other=0.0).to(tl.float32)
            second = tl.load(row + RANK + ROPE // 2 + half, mask=in_half, other=0.0).to(tl.float32)
            _store(target + RANK + half, first * cos - second * sin, in_half, LIMIT)
            _store(target + RANK + ROPE // 2 + half, second * cos + first * sin, in_half, LIMIT)
    else:
        heads = (tl.program_id(1) - 1) * HEADS + tl.arange(0, HEADS)
        mask = (heads < NUM_HEADS)[:, None] & in_half[None, :]
        source = q + token * (NUM_HEADS * (NOPE + ROPE)) + heads[:, None] * (NOPE + ROPE) + NOPE + half[None, :]
        first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + ROPE // 2, mask=mask, other=0.0).to(tl.float32)
        out = q_latent + token * (NUM_HEADS * (RANK + ROPE)) + heads[:, None] * (RANK + ROPE) + RANK + half[None, :]
        tl.store(out, (first * cos - second * sin).to(q_latent.dtype.element_ty), mask=mask)
        tl.store(out + ROPE // 2, (second * cos + first * sin).to(q_latent.dtype.element_ty), mask=mask)


@triton.jit
def _load_query(q_latent, tokens, heads, exists, NUM_HEADS: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr,
                BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """The parts [M, BLOCK_R] and [M, BLOCK_P] of queries."""
    dims, rope = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    at = (tokens * NUM_HEADS + heads) * (RANK + ROPE)
    q = tl.load(q_latent + at[:, None] + dims[None, :], mask=exists[:, None] & (dims < RANK)[None, :], other=0.0)
    mask = exists[:, None] & (rope < ROPE)[None, :]
    return q, tl.load(q_latent + at[:, None] + RANK + rope[None, :], mask=mask, other=0.0)


@triton.jit
def _attend_tile(acc, largest, total, q, q_rope, cache, table, keys, in_range, seen, block_stride, scale,
                 RANK: tl.constexpr, ROPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
                 BLOCK_SIZE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One tile of keys [N], of which `seen` [M, N] or [1, N] are."""
    dims, rope = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    block = tl.load(table + keys // BLOCK_SIZE, mask=in_range, other=0).to(tl.int64)
    at = block * block_stride + (keys % BLOCK_SIZE) * (RANK + ROPE)
    latent = tl.load(cache + at[:, None] + dims[None, :], mask=in_range[:, None] & (dims < RANK)[None, :], other=0.0)
    latent = latent.to(q.dtype)
    mask = in_range[:, None] & (rope < ROPE)[None, :]
    key = tl.load(cache + at[:, None] + RANK + rope[None, :], mask=mask, other=0.0).to(q.dtype)
    s = tl.dot(q, tl.trans(latent), input_precision=PRECISION)
    s = tl.dot(q_rope, tl.trans(key), s, input_precision=PRECISION)
    s = tl.where(seen, s * scale, float("-inf"))
    return _online(acc, largest, total, s, latent, PRECISION)


@jit(do_not_specialize=["table_stride", "num_seqs"])
def _decode_kernel(
    out, partial, partial_stats, q_latent, cache, block_tables, table_stride, seq_lens, items, starts, num_seqs,
    block_stride, scale,
    NUM_HEADS: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
    HEADS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`attention_kernels.decode_kernel` for latents: an item and HEADS heads in turn."""
    HEAD_BLOCKS: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    dims = tl.arange(0, BLOCK_R)
    num_items = tl.load(starts + num_seqs)
    for work in range(tl.program_id(0), num_items * HEAD_BLOCKS, tl.num_programs(0)):
        item, head_block = work // HEAD_BLOCKS, work % HEAD_BLOCKS
        seq = tl.load(items + 2 * item).to(tl.int64)
        chunk = tl.load(items + 2 * item + 1)
        seq_len = tl.load(seq_lens + seq)
        begin = chunk * CHUNK
        end = tl.minimum(begin + CHUNK, seq_len)
        heads = head_block * HEADS + tl.arange(0, HEADS)
        exists = heads < NUM_HEADS
        q, q_rope = _load_query(q_latent, seq, heads, exists, NUM_HEADS, RANK, ROPE, BLOCK_R, BLOCK_P)
        acc = tl.zeros([HEADS, BLOCK_R], tl.float32)
        largest = tl.full([HEADS], float("-inf"), tl.float32)
        total = tl.zeros([HEADS], tl.float32)
        table = block_tables + seq * table_stride
        for n in range(begin, end, BLOCK_N):
            keys = n + tl.arange(0, BLOCK_N)
            in_range = keys < end
            acc, largest, total = _attend_tile(
                acc, largest, total, q, q_rope, cache, table, keys, in_range, in_range[None, :], block_stride, scale,
                RANK, ROPE, BLOCK_R, BLOCK_P, BLOCK_SIZE, PRECISION,
            )  # fmt: skip
        if seq_len <= CHUNK:
            target = out + seq * (NUM_HEADS * RANK) + heads[:, None] * RANK + dims[None, :]
            result = acc * (1.0 / total)[:, None]
            tl.store(target, result.to(out.dtype.element_ty), mask=exists[:, None] & (dims < RANK)[None, :])
        else:
            at_item = heads.to(tl.int64) + item * NUM_HEADS
            tl.store(partial + at_item[:, None] * BLOCK_R + dims[None, :], acc, mask=exists[:, None])
            tl.store(partial_stats + at_item * 2, largest, mask=exists)
            tl.store(partial_stats + at_item * 2 + 1, total, mask=exists)


@jit(do_not_specialize=["table_stride"])
def _prefill_kernel(
    out, q_latent, cache, block_tables, table_stride, seq_lens, query_start_loc, tiles, block_stride, scale,
    NUM_HEADS: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
    HEADS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_M / HEADS queries of one sequence, for HEADS heads. tiles int32 [., 2]: sequence, tile; -1:
    nothing."""
    BLOCK_Q: tl.constexpr = BLOCK_M // HEADS
    seq = tl.load(tiles + 2 * tl.program_id(0)).to(tl.int64)
    tile = tl.load(tiles + 2 * tl.program_id(0) + 1)
    if seq < 0:
        return
    seq_len = tl.load(seq_lens + seq)
    row_begin = tl.load(query_start_loc + seq)
    num_queries = tl.load(query_start_loc + seq + 1) - row_begin
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_R)
    queries = tile * BLOCK_Q + rows // HEADS
    heads = tl.program_id(1) * HEADS + rows % HEADS
    exists = (queries < num_queries) & (heads < NUM_HEADS)
    tokens = (row_begin + queries).to(tl.int64)
    q, q_rope = _load_query(q_latent, tokens, heads, exists, NUM_HEADS, RANK, ROPE, BLOCK_R, BLOCK_P)
    positions = seq_len - num_queries + queries
    end = tl.minimum(seq_len - num_queries + (tile + 1) * BLOCK_Q, seq_len)
    acc = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    table = block_tables + seq * table_stride
    for n in range(0, end, BLOCK_N):
        keys = n + tl.arange(0, BLOCK_N)
        acc, largest, total = _attend_tile(
            acc, largest, total, q, q_rope, cache, table, keys, keys < end, keys[None, :] <= positions[:, None],
            block_stride, scale, RANK, ROPE, BLOCK_R, BLOCK_P, BLOCK_SIZE, PRECISION,
        )  # fmt: skip
    target = out + tokens[:, None] * (NUM_HEADS * RANK) + heads[:, None] * RANK + dims[None, :]
    result = acc * (1.0 / total)[:, None]
    tl.store(target, result.to(out.dtype.element_ty), mask=exists[:, None] & (dims < RANK)[None, :])


@jit(do_not_specialize=["num_rows"])
def _head_linear_kernel(
    out, x, weight, num_rows, out_width, x_width,
    HEADS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of rows and columns of one head. out_width, x_width: columns of a head in either."""
    head = tl.program_id(2)
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns, k = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    in_rows, in_columns = rows < num_rows, columns < N
    x += rows[:, None] * (HEADS * x_width) + head * x_width
    weight += head.to(tl.int64) * (N * K) + columns[None, :] * K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        in_k = start + k < K
        a = tl.load(x + start + k[None, :], mask=in_rows[:, None] & in_k[None, :], other=0.0)
        b = tl.load(weight + start + k[:, None], mask=in_k[:, None] & in_columns[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    target = out + rows[:, None] * (HEADS * out_width) + head * out_width + columns[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


def latent_cache_shape(
    num_blocks: int, block_size: int, latent: Latent, dtype: torch.dtype = torch.float32
) -> tuple[int, ...]:
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
    """`reference_attention.latent_write`. A slot below 0 takes nothing."""
    if len(kv) == 0:
        return
    _write_kernel[(len(kv), 1 + triton.cdiv(latent.num_heads, LATENT_HEADS))](
        q_latent, q, kv, positions, cos_sin, norm, eps, cache, slot_mapping, cache.shape[1], cache.stride(0),
        NUM_HEADS=latent.num_heads, NOPE=latent.nope_dim, RANK=latent.rank, ROPE=latent.rope_dim,
        BLOCK_R=triton.next_power_of_2(latent.rank), HALF=triton.next_power_of_2(latent.rope_dim // 2),
        HEADS=LATENT_HEADS, LIMIT=_FLOAT8_MAX.get(cache.dtype, 0.0), num_warps=4,
    )  # fmt: skip


def head_linear(out: Tensor, x: Tensor, weight: ExpertsWeight) -> None:
    """`experts.linear_of_heads`."""
    heads, columns, k = weight.weight.shape
    num_rows = len(x)
    if num_rows == 0:
        return
    block_m = _FEW if weight.is_invariant or num_rows <= _MANY else _MANY
    _head_linear_kernel[(triton.cdiv(num_rows, block_m), triton.cdiv(columns, _BLOCK_N), heads)](
        out, x, weight.weight, num_rows, out.shape[1] // heads, x.shape[1] // heads,
        HEADS=heads, N=columns, K=k, BLOCK_M=block_m, BLOCK_N=_BLOCK_N, BLOCK_K=_BLOCK_K,
        PRECISION=_precision(x), num_warps=4,
    )  # fmt: skip


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
    plan: AttentionPlan | None = None,
) -> None:
    """`reference_attention.latent_attention`. Without a plan one is made, which waits for the device."""
    if plan is None:
        plan = plan_of(latent, q_latent, seq_lens, query_start_loc)
    itemsize = q_latent.dtype.itemsize
    common: dict[str, Any] = {
        "NUM_HEADS": latent.num_heads,
        "RANK": latent.rank,
        "ROPE": latent.rope_dim,
        "BLOCK_R": triton.next_power_of_2(latent.rank),
        "BLOCK_P": triton.next_power_of_2(latent.rope_dim),
        "HEADS": LATENT_HEADS,
        "BLOCK_N": _KEYS[itemsize],
        "BLOCK_SIZE": cache.shape[1],
        "PRECISION": _precision(q_latent),
    }
    head_blocks = triton.cdiv(latent.num_heads, LATENT_HEADS)
    scale *= _LOG2E
    if plan.num_decodes:
        _decode_kernel[(plan.num_items * head_blocks,)](
            out, plan.partial, plan.partial_stats, q_latent, cache, block_tables, block_tables.stride(0), seq_lens,
            plan.items, plan.starts, plan.num_decodes, cache.stride(0), scale, **common, CHUNK=CHUNK, num_warps=4,
            num_stages=2,
        )  # fmt: skip
        combine_kernel[(plan.num_decodes, latent.num_heads)](
            out, plan.partial, plan.partial_stats, plan.starts, None, 1.0, NUM_HEADS=latent.num_heads,
            D=latent.rank, BLOCK_D=common["BLOCK_R"], BLOCK_C=16,
        )  # fmt: skip
    if plan.num_tiles:
        _prefill_kernel[(plan.num_tiles, head_blocks)](
            out, q_latent, cache, block_tables, block_tables.stride(0), seq_lens, query_start_loc, plan.tiles,
            cache.stride(0), scale, **common, BLOCK_M=LATENT_ROWS[itemsize], num_warps=8 if itemsize == 2 else 4,
            num_stages=2,
        )  # fmt: skip


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype.itemsize == 4 else "tf32"


def variants() -> list[Variant]:
    found = []
    for heads, nope, rank, rope, cache in (
        (128, 128, 512, 64, torch.bfloat16),
        (16, 128, 512, 64, torch.float8_e4m3fn),
        (40, 64, 256, 32, torch.bfloat16),
    ):
        name = f"{heads} x {rank} + {rope}, {TYPE_NAMES[cache]}"
        minimum = 89 if cache == torch.float8_e4m3fn else 80
        sizes: dict[str, Any] = {"NUM_HEADS": heads, "RANK": rank, "ROPE": rope, "BLOCK_R": rank, "HEADS": LATENT_HEADS}
        pointers = {"q_latent": "*bf16", "cache": f"*{TYPE_NAMES[cache]}"}
        own = {"q": "*bf16", "kv": "*bf16", "positions": "*i32", "cos_sin": "*fp32", "norm": "*fp32", "slots": "*i64"}
        numbers = {"eps": "fp32", "block_size": "i32", "block_stride": "i32"}
        found.append(
            Variant(
                name=f"write {name}",
                kernel=_write_kernel,
                signature=pointers | own | numbers,
                constexprs=sizes | {"NOPE": nope, "HALF": rope // 2, "LIMIT": _FLOAT8_MAX.get(cache, 0.0)},
                divisible=frozenset({*pointers, *own, "block_size", "block_stride"}),
                min_capability=minimum,
            )
        )
        sizes |= {"BLOCK_P": rope, "BLOCK_N": _KEYS[2], "BLOCK_SIZE": 16, "PRECISION": "tf32"}
        pointers |= {"out": "*bf16", "block_tables": "*i32", "seq_lens": "*i32"}
        numbers = {"table_stride": "i32", "block_stride": "i32", "scale": "fp32"}
        own = {"partial": "*fp32", "partial_stats": "*fp32", "items": "*i32", "starts": "*i32"}
        found.append(
            Variant(
                name=f"decode {name}",
                kernel=_decode_kernel,
                signature=pointers | own | numbers | {"num_seqs": "i32"},
                constexprs=sizes | {"CHUNK": CHUNK},
                num_stages=2,
                divisible=frozenset({*pointers, *own, "block_stride"}),
                min_capability=minimum,
            )
        )
        own = {"query_start_loc": "*i32", "tiles": "*i32"}
        found.append(
            Variant(
                name=f"prefill {name}",
                kernel=_prefill_kernel,
                signature=pointers | own | numbers,
                constexprs=sizes | {"BLOCK_M": LATENT_ROWS[2]},
                num_warps=8,
                num_stages=2,
                divisible=frozenset({*pointers, *own, "block_stride"}),
                min_capability=minimum,
            )
        )
    for rows, columns, k in ((_FEW, 512, 128), (_MANY, 128, 512)):
        found.append(
            Variant(
                name=f"heads {rows} rows, {columns} x {k}",
                kernel=_head_linear_kernel,
                signature=dict.fromkeys(("out", "x", "weight"), "*bf16")
                | dict.fromkeys(("num_rows", "out_width", "x_width"), "i32"),
                constexprs={
                    "HEADS": 128, "N": columns, "K": k, "BLOCK_M": rows, "BLOCK_N": _BLOCK_N, "BLOCK_K": _BLOCK_K,
                    "PRECISION": "tf32",
                },
                divisible=frozenset({"out", "x", "weight", "out_width", "x_width"}),
            )
        )  # fmt: skip
    return found
