"""The operations of a step as cases to be timed: tensors of a model's sizes, and what one call reads and computes.

Weights and KV caches come in as many copies as fill `spread_bytes`, as a model has layers. Activations are used again
and again, as in a model, and stay in the processor's caches: their rates may exceed what the memory gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.bench.config import KernelsConfig
from octavo.ops.operands import Latent
from octavo.ops.routing import Routing
from octavo.ops.sampling_batch import SamplingBatch
from octavo.ops.table import LinearWeight, Ops
from octavo.quant.packed import QuantizedWeight

BLOCK_SIZE = 16
MOST_COPIES = 200
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CACHE_DTYPES = {**DTYPES, "fp8": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2, "int8": torch.int8}
#: Weight type -> bits, columns of a group, has minima. The groups are those of GGUF files.
QUANTIZED = {"int4": (4, 32, True), "int5": (5, 32, False), "int6": (6, 16, False), "int8": (8, 32, False)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation on tensors of one size. `copies`: the arguments of a call, on each copy of what is spread."""

    op: str
    detail: str
    rows: int
    num_bytes: int  # read and written by one call
    num_ops: int = 0  # sums and products of one call; 0 where they are not what takes the time
    is_integer: bool = False
    copies: list[tuple[Any, ...]]


def cases(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    """The cases of the operations that `config` names, made one after the other: each may own `spread_bytes`."""
    wanted: list[str] = [*config.op] or [*_MAKERS]
    for name, make in _MAKERS.items():
        if name in wanted:
            yield from make(config, ops)


def _num_copies(config: KernelsConfig, num_bytes: int) -> int:
    return max(1, min(MOST_COPIES, config.spread_bytes // num_bytes))


# ---------------------------------------------------------------- matrices
def make_weight(ops: Ops, kind: str, n: int, k: int) -> LinearWeight:
    """A random [n, k] matrix, packed; of a quantized one k is rounded up to whole groups."""
    if kind in DTYPES:
        return ops.pack_linear(torch.randn(n, k, dtype=DTYPES[kind]))
    bits, group, has_mins = QUANTIZED[kind]
    k = -(-k // group) * group
    values = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8)
    # GGUF's 6-bit format has scales that float16 cannot hold.
    scales = torch.rand(n, k // group).to(torch.float32 if bits == 6 else torch.float16)
    zero = 0 if has_mins else 2 ** (bits - 1)
    return ops.pack_linear(QuantizedWeight(values, bits, group, scales, -scales if has_mins else None, zero))


def _linear(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    hidden, middle = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {
        "qkv": (hidden, heads + 2 * kv_heads), "attention out": (heads, hidden), "gate and up": (hidden, 2 * middle),
        "down": (middle, hidden), "output layer": (hidden, config.vocab_size),
    }  # fmt: skip
    for kind in config.weight_type:
        for name, (k, n) in shapes.items():
            first = make_weight(ops, kind, n, k)
            others = [make_weight(ops, kind, n, k) for _ in range(_num_copies(config, first.nbytes) - 1)]
            for rows in config.rows:
                yield _linear_case(f"{kind} {first.K} x {n}, {name}", [first, *others], rows, kind in QUANTIZED)


def _linear_case(detail: str, weights: list[LinearWeight], rows: int, is_integer: bool) -> Case:
    n, k = weights[0].N, weights[0].K
    x, out = torch.randn(rows, k), torch.empty(rows, n)
    return Case(
        op="linear", detail=detail, rows=rows, num_bytes=weights[0].nbytes + 4 * rows * (n + k),
        num_ops=2 * rows * n * k, is_integer=is_integer, copies=[(out, x, weight) for weight in weights],
    )  # fmt: skip


def _embedding(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    width = config.hidden_size
    table = ops.pack_embedding(torch.randn(config.vocab_size, width, dtype=torch.bfloat16))
    for rows in config.rows:
        ids = torch.randint(0, config.vocab_size, (rows,), dtype=torch.int32)
        yield Case(
            op="embedding", detail=f"bfloat16, width {width}", rows=rows, num_bytes=rows * width * (2 + 4),
            copies=[(torch.empty(rows, width), ids, table)],
        )  # fmt: skip


# ---------------------------------------------------------------- element by element
def _norm(op: str, parameters: int) -> Callable[[KernelsConfig, Ops], Iterator[Case]]:
    """Cases of a norm with so many parameters a column."""

    def cases(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
        width = config.hidden_size
        weights = [torch.ones(width) for _ in range(parameters)]
        for rows in config.rows:
            x, out = torch.randn(rows, width), torch.empty(rows, width)
            yield Case(
                op=op, detail=f"width {width}", rows=rows, num_bytes=4 * width * (2 * rows + parameters),
                num_ops=4 * rows * width, copies=[(out, x, *weights, 1e-5)],
            )  # fmt: skip

    return cases


def _add_norm(op: str, parameters: int) -> Callable[[KernelsConfig, Ops], Iterator[Case]]:
    """The same of a sum."""

    def cases(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
        width = config.hidden_size
        weights = [torch.ones(width) for _ in range(parameters)]
        for rows in config.rows:
            # Zeros are added, so that the residual stays what it is.
            x, residual, out = torch.zeros(rows, width), torch.randn(rows, width), torch.empty(rows, width)
            yield Case(
                op=op, detail=f"width {width}", rows=rows, num_bytes=4 * width * (4 * rows + parameters),
                num_ops=5 * rows * width, copies=[(out, residual, x, *weights, 1e-5)],
            )  # fmt: skip

    return cases


def _add(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    width = config.hidden_size
    for rows in config.rows:
        yield Case(
            op="add_", detail=f"width {width}", rows=rows, num_bytes=12 * rows * width, num_ops=rows * width,
            copies=[(torch.randn(rows, width), torch.zeros(rows, width))],
        )  # fmt: skip


def _add_gated(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    width = config.hidden_size
    for rows in config.rows:
        yield Case(
            op="add_gated_", detail=f"width {width}", rows=rows, num_bytes=12 * rows * width,
            copies=[(torch.zeros(rows, width), torch.randn(rows, width), torch.randn(rows, 1))],
        )  # fmt: skip


def _act_mul(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    width = config.intermediate_size
    for rows in config.rows:
        yield Case(
            op="act_mul", detail=f"silu, width {width}", rows=rows, num_bytes=12 * rows * width,
            copies=[(torch.empty(rows, width), torch.randn(rows, 2 * width), "silu")],
        )  # fmt: skip


def _act(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    width = config.intermediate_size
    for rows in config.rows:
        yield Case(
            op="act", detail=f"gelu, width {width}", rows=rows, num_bytes=8 * rows * width,
            copies=[(torch.empty(rows, width), torch.randn(rows, width), "gelu")],
        )  # fmt: skip


def _norm_parts(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    """Of the heads of q and k, each with weights of its own."""
    dim, count = config.head_dim, config.num_heads + config.num_kv_heads
    width = dim * (count + config.num_kv_heads)
    for rows in config.rows:
        yield Case(
            op="norm_parts_", detail=f"{count} of {dim}", rows=rows, num_bytes=8 * rows * count * dim,
            copies=[(torch.randn(rows, width), 0, count, dim, torch.randn(count * dim), None, 1e-5, "rms")],
        )  # fmt: skip


def _route(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    num_experts, top_k = 64, 8
    for rows in config.rows:
        ids, weights = torch.empty(rows, top_k, dtype=torch.int32), torch.empty(rows, top_k)
        yield Case(
            op="route", detail=f"{top_k} of {num_experts} experts", rows=rows,
            num_bytes=4 * rows * (num_experts + 2 * top_k),
            copies=[(ids, weights, torch.randn(rows, num_experts), Routing())],
        )  # fmt: skip


def _clip(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    for rows in config.rows:
        yield Case(
            op="clip_", detail=f"width {width}", rows=rows, num_bytes=8 * rows * width,
            copies=[(torch.randn(rows, width), 8.0)],
        )  # fmt: skip


# ---------------------------------------------------------------- the KV cache
def _caches(config: KernelsConfig, ops: Ops, num_blocks: int) -> list[tuple[Tensor, Tensor]]:
    """Copies of a cache of one layer."""
    dtype = CACHE_DTYPES[config.kv_cache_dtype]
    shapes = ops.kv_cache_shapes(num_blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim, dtype)
    keys, values = (_random_cache(shape, dtype) for shape in shapes)
    count = _num_copies(config, keys.nbytes + values.nbytes)
    return [(keys, values), *((keys.clone(), values.clone()) for _ in range(count - 1))]


def _random_cache(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype.itemsize > 1:
        return torch.randn(shape, dtype=dtype)
    # Bytes of which codes and the scales among them are small numbers alike.
    return torch.randint(0x40, shape, dtype=torch.uint8).view(dtype)


def _heads(config: KernelsConfig) -> tuple[int, int, int]:
    return config.num_heads, config.num_kv_heads, config.head_dim


def _cache_detail(config: KernelsConfig) -> str:
    return f"heads {config.num_heads}/{config.num_kv_heads}/{config.head_dim}, {config.kv_cache_dtype}"


def _rope_kv_write(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    heads, kv_heads, dim = _heads(config)
    for rows in config.rows:
        caches = _caches(config, ops, -(-rows // BLOCK_SIZE) + 1)
        qkv, positions = torch.randn(rows, (heads + 2 * kv_heads) * dim), torch.arange(rows, dtype=torch.int32)
        cos_sin, slots = torch.rand(rows, dim), torch.arange(rows) + BLOCK_SIZE
        written = 2 * kv_heads * dim * caches[0][0].element_size()
        before, after = (qkv, positions, cos_sin, None, None, 1e-5), (slots, heads, kv_heads, dim)
        yield Case(
            op="rope_kv_write", detail=_cache_detail(config), rows=rows,
            num_bytes=rows * (8 * (heads + kv_heads) * dim + 4 * kv_heads * dim + 4 * dim + written),
            num_ops=3 * rows * (heads + kv_heads) * dim, copies=[(*before, *cache, *after) for cache in caches],
        )  # fmt: skip


def _attention(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    """So many streams that decode one token each, and one prompt as long as the context."""
    context = config.context_len
    for num_seqs in config.rows:
        yield _attention_case(config, ops, num_seqs, 1, f"decode, {num_seqs} x {context} context")
    yield _attention_case(config, ops, 1, context, f"a prompt of {context}")


def _attention_case(config: KernelsConfig, ops: Ops, num_seqs: int, length: int, detail: str) -> Case:
    """Sequences of the context's length, of which the last `length` tokens are in this step."""
    heads, kv_heads, dim = _heads(config)
    context, rows = config.context_len, num_seqs * length
    blocks = -(-context // BLOCK_SIZE)
    caches = _caches(config, ops, num_seqs * blocks + 1)
    tables = torch.randperm(num_seqs * blocks).to(torch.int32).view(num_seqs, blocks) + 1
    qkv, out = torch.randn(rows, (heads + 2 * kv_heads) * dim), torch.empty(rows, heads * dim)
    seq_lens = torch.full((num_seqs,), context, dtype=torch.int32)
    starts = torch.arange(0, rows + 1, length, dtype=torch.int32)
    seen = num_seqs * sum(range(context - length + 1, context + 1))  # keys that all rows look at
    cached = num_seqs * context * 2 * kv_heads * dim * caches[0][0].element_size()
    after = (tables, seq_lens, starts, heads, kv_heads, dim, dim**-0.5)
    return Case(
        op="attention", detail=f"{detail}, {_cache_detail(config)}", rows=rows,
        num_bytes=cached + 8 * rows * heads * dim, num_ops=4 * seen * heads * dim,
        copies=[(out, qkv, *cache, *after) for cache in caches],
    )  # fmt: skip


def _latent(config: KernelsConfig) -> Latent:
    """One whose rows are about as long as DeepSeek's, for its heads."""
    rank, rope_dim = (-(-size // 16) * 16 for size in (4 * config.head_dim, config.head_dim // 2))
    return Latent(num_heads=config.num_heads, nope_dim=config.head_dim, rank=rank, rope_dim=rope_dim)


def _latent_detail(config: KernelsConfig, latent: Latent) -> str:
    return f"heads {latent.num_heads}, rows {latent.rank} + {latent.rope_dim}, {config.kv_cache_dtype}"


def _latent_write(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    latent = _latent(config)
    for rows in config.rows:
        dtype = CACHE_DTYPES[config.kv_cache_dtype]
        shape = ops.latent_cache_shape(-(-rows // BLOCK_SIZE) + 1, BLOCK_SIZE, latent, dtype)
        cache = _random_cache(shape, dtype)
        q_latent = torch.randn(rows, latent.num_heads * latent.width)
        q = torch.randn(rows, latent.num_heads * (latent.nope_dim + latent.rope_dim))
        kv, positions = torch.randn(rows, latent.width), torch.arange(rows, dtype=torch.int32)
        tables = torch.rand(rows, latent.rope_dim), torch.ones(latent.rank)
        moved = 8 * latent.num_heads * latent.rope_dim + latent.width * (4 + cache.element_size())
        yield Case(
            op="latent_write", detail=_latent_detail(config, latent), rows=rows, num_bytes=rows * moved,
            copies=[(q_latent, q, kv, positions, *tables, 1e-6, cache, torch.arange(rows) + BLOCK_SIZE, latent)],
        )  # fmt: skip


def _latent_attention(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    """So many streams that decode one token each, and one prompt as long as the context."""
    latent, context = _latent(config), config.context_len
    blocks = -(-context // BLOCK_SIZE)
    for num_seqs, length in (*((rows, 1) for rows in config.rows), (1, context)):
        rows = num_seqs * length
        dtype = CACHE_DTYPES[config.kv_cache_dtype]
        shape = ops.latent_cache_shape(num_seqs * blocks + 1, BLOCK_SIZE, latent, dtype)
        cache = _random_cache(shape, dtype)
        tables = torch.randperm(num_seqs * blocks).to(torch.int32).view(num_seqs, blocks) + 1
        q, out = torch.randn(rows, latent.num_heads * latent.width), torch.empty(rows, latent.num_heads * latent.rank)
        seq_lens = torch.full((num_seqs,), context, dtype=torch.int32)
        starts = torch.arange(0, rows + 1, length, dtype=torch.int32)
        seen = num_seqs * sum(range(context - length + 1, context + 1))
        what = f"decode, {num_seqs} x {context} context" if length == 1 else f"a prompt of {context}"
        yield Case(
            op="latent_attention", detail=f"{what}, {_latent_detail(config, latent)}", rows=rows,
            num_bytes=num_seqs * context * latent.width * cache.element_size() + 4 * (q.numel() + out.numel()),
            num_ops=seen * latent.ops_per_key,
            copies=[(out, q, cache, tables, seq_lens, starts, latent, latent.width**-0.5)],
        )  # fmt: skip


# ---------------------------------------------------------------- states
def _sequence(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slots, positions and starts of one sequence of so many rows."""
    starts = torch.tensor([0, rows], dtype=torch.int32)
    return torch.zeros(1, dtype=torch.int32), torch.arange(rows, dtype=torch.int32), starts


def _causal_conv(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    width, taps = config.hidden_size, 3
    for rows in config.rows:
        out, x, state = torch.empty(rows, width), torch.randn(rows, 3 * width), torch.zeros(1, taps - 1, width)
        yield Case(
            op="causal_conv", detail=f"{width} wide, {taps} taps, gated", rows=rows, num_bytes=16 * rows * width,
            copies=[(out, x, torch.randn(taps, width), None, state, *_sequence(rows), True)],
        )  # fmt: skip


def _selective_scan(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    width, size = config.hidden_size, 16
    for rows in config.rows:
        out, x, dt, gate = (torch.randn(rows, width) for _ in range(4))
        b, c, a_log, d = (torch.randn(shape) for shape in ((rows, size), (rows, size), (size, width), (width,)))
        yield Case(
            op="selective_scan", detail=f"{width} wide, {size} numbers a channel", rows=rows,
            num_bytes=16 * rows * width, num_ops=5 * rows * width * size,
            copies=[(out, x, dt, gate, b, c, a_log, d, torch.zeros(1, size, width), *_sequence(rows))],
        )  # fmt: skip


def _gated_delta(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    dim, heads = 128, max(1, config.hidden_size // 128)
    for rows in config.rows:
        state, a_log = torch.zeros(1, heads, dim, dim), torch.randn(heads)
        out, qkv, gates = (
            torch.empty(rows, heads * dim),
            torch.randn(rows, 3 * heads * dim),
            torch.randn(rows, 2 * heads),
        )
        slots, positions, starts = _sequence(rows)
        yield Case(
            op="gated_delta", detail=f"{heads} heads of {dim}", rows=rows,
            num_bytes=16 * rows * heads * dim + 2 * state.nbytes, num_ops=8 * rows * state.numel(),
            copies=[(out, qkv, gates, a_log, state, slots, positions + 1, starts, heads)],
        )  # fmt: skip


def _gate(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    width = config.hidden_size
    for rows in config.rows:
        yield Case(
            op="gate_", detail=f"width {width}", rows=rows, num_bytes=12 * rows * width,
            copies=[(torch.randn(rows, width), torch.randn(rows, width), "silu")],
        )  # fmt: skip


# ---------------------------------------------------------------- logits
def _forbid(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    vocab, words = config.vocab_size, -(-config.vocab_size // 32)
    for rows in config.rows:
        masks = torch.randint(-(2**31), 2**31, (rows, words)).to(torch.int32)
        yield Case(
            op="forbid", detail=f"{vocab} tokens", rows=rows, num_bytes=rows * (8 * vocab + 4 * words),
            copies=[(torch.randn(rows, vocab), torch.arange(rows), masks)],
        )  # fmt: skip


#: Name -> temperature, top_k, top_p.
_SAMPLERS = {"greedy": (0.0, 0, 1.0), "temperature 1": (1.0, 0, 1.0), "top-k 50, top-p 0.9": (1.0, 50, 0.9)}


def _sample(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    vocab = config.vocab_size
    for rows in config.rows:
        for name, (temperature, top_k, top_p) in _SAMPLERS.items():
            batch = SamplingBatch.allocate(rows)
            batch.begin(rows)
            batch.temperature.fill_(temperature)
            batch.top_k.fill_(top_k)
            batch.top_p.fill_(top_p)
            ids, marks = torch.empty(rows, dtype=torch.int32), torch.empty(rows, dtype=torch.int32)
            yield Case(
                op="sample", detail=f"{name}, {vocab} tokens", rows=rows, num_bytes=4 * rows * vocab,
                copies=[(torch.randn(rows, vocab) * 3, batch, ids, marks)],
            )  # fmt: skip


def _logprobs(config: KernelsConfig, ops: Ops) -> Iterator[Case]:
    vocab = config.vocab_size
    for rows in config.rows:
        yield Case(
            op="logprobs", detail=f"top 5 of {vocab} tokens", rows=rows, num_bytes=4 * rows * vocab,
            copies=[(torch.randn(rows, vocab), torch.zeros(rows, dtype=torch.int32), 5)],
        )  # fmt: skip


_MAKERS: dict[str, Callable[[KernelsConfig, Ops], Iterator[Case]]] = {
    "linear": _linear, "embedding": _embedding, "rms_norm": _norm("rms_norm", 1),
    "add_rms_norm": _add_norm("add_rms_norm", 1), "layer_norm": _norm("layer_norm", 2),
    "add_layer_norm": _add_norm("add_layer_norm", 2), "norm_parts_": _norm_parts, "add_": _add,
    "add_gated_": _add_gated, "clip_": _clip,
    "act_mul": _act_mul, "act": _act, "route": _route,
    "rope_kv_write": _rope_kv_write, "attention": _attention, "latent_write": _latent_write,
    "latent_attention": _latent_attention, "causal_conv": _causal_conv,
    "selective_scan": _selective_scan, "gated_delta": _gated_delta, "gate_": _gate, "forbid": _forbid,
    "sample": _sample, "logprobs": _logprobs,
}  # fmt: skip
