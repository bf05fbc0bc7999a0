"""Operations by themselves, on data that comes from memory, launched by a graph: rates beside torch's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu import inputs
from gpu.context import Context
from gpu.inputs import Heads, sampling_batch, twins
from gpu.shapes import Shape
from gpu.timing import call_us, copies_for
from octavo.base.errors import DeviceError
from octavo.models.blocks import Attention, GatedMLP, Sequential
from octavo.models.decoder import Definition, define
from octavo.models.spec import ModelSpec, NormSpec, RopeSpec
from octavo.ops.table import LinearWeight, Ops
from octavo.ops.workspace import Workspace

BF16: Final = torch.bfloat16
_LAYER: Final = ("qkv", "o", "gate_up", "down")
#: (context, sequences) of decoding.
_DECODES: Final = ((1024, 1), (1024, 64), (1024, 256), (4096, 8), (4096, 64), (8192, 1), (32_768, 1), (32_768, 8))
_MOST_CACHE: Final = 12 << 30


def run(context: Context) -> None:
    parts: tuple[tuple[str, float, Callable[[Context], None]], ...] = (
        ("layers", 8, layers), ("decode", 12, decode), ("prompts", 4, prompts), ("few rows", 12, few_rows),
        ("quantized", 12, quantized), ("invariant", 8, invariant), ("rows", 6, rows),
    )  # fmt: skip
    for name, seconds, part in parts:
        if context.has_time(seconds, name):
            try:
                part(context)
            except torch.AcceleratorError:  # nothing works after it
                raise
            except Exception as error:  # noqa: BLE001  # becomes a row
                context.row(name, status="failed", note=f"{type(error).__name__}: {error}")
        if context.device == "cuda":
            torch.cuda.empty_cache()


def heads_of(shape: Shape) -> Heads:
    return Heads(heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim)


# ---------------------------------------------------------------- layers
def layers(context: Context) -> None:
    """Steps of decoding through some layers: what a step costs the GPU, without the host and the output matrix."""
    ops = inputs.table(context)
    for name in ("Qwen3-0.6B", "Llama-3.1-8B"):
        shape = context.shape(name)
        definition = _definition(shape, 2 if context.is_tiny else 8)
        weights = _weights(context, ops, definition)
        for streams, length in ((2, 20),) if context.is_tiny else ((1, 1024), (64, 1024), (256, 1024)):
            us = _step_us(ops, shape, definition, weights, streams, length)
            num_bytes = 2 * (shape.layer_params + streams * length * shape.kv_values) / shape.layers
            shares = context.bandwidth_share(num_bytes / us * 1e6)
            note = f"{us * shape.layers / 1e3:.3f} ms for all {shape.layers}; {num_bytes / 1e6:.0f} MB a layer"
            context.row(f"layer, {name}, {streams} x {length:,}", us, "us", note=note, **shares)


def _definition(shape: Shape, num_layers: int) -> Definition:
    """Some layers, with tables of few tokens before and behind them."""
    norm = NormSpec(eps=1e-6)
    layer = Sequential(
        norm=norm,
        attention=Attention(
            heads=heads_of(shape).of_program(), rope=RopeSpec(theta=1e6), scale=shape.head_dim**-0.5,
            qk_norm=norm if shape.model_type == "qwen3" else None,
        ),
        mlp=GatedMLP(size=shape.intermediate, activation="silu"),
    )  # fmt: skip
    return define(
        ModelSpec(
            model_type=shape.model_type, vocab_size=16, hidden_size=shape.hidden, layers=(layer,) * num_layers,
            max_position_embeddings=shape.positions, norm=norm,
        )
    )  # fmt: skip


def _weights(context: Context, ops: Ops, definition: Definition) -> dict[str, Any]:
    weights: dict[str, Any] = {
        weight.name: torch.rand(weight.shape, device=context.device) for weight in definition.derived
    }
    for param in definition.params:
        shape = param.weight.shape
        if param.packing == "vector":
            weights[param.weight.name] = torch.ones(shape, device=context.device)
        else:
            pack = ops.pack_embedding if param.packing == "embedding" else ops.pack_linear
            weights[param.weight.name] = pack(_dense_weight(context, *shape))
    return weights


def _step_us(
    ops: Ops, shape: Shape, definition: Definition, weights: dict[str, Any], streams: int, length: int
) -> float:
    call = inputs.attention(ops, heads_of(shape), [(1, length)] * streams, kv_dtype=BF16)
    slots = call.block_tables[:, (length - 1) // inputs.BLOCK].long() * inputs.BLOCK + (length - 1) % inputs.BLOCK
    step = SimpleNamespace(
        token_ids=torch.ones_like(call.seq_lens), positions=call.seq_lens - 1, query_start_loc=call.query_start_loc,
        seq_lens=call.seq_lens, cache_groups=[(call.block_tables, slots)], attention_plan=call.plan,
    )  # fmt: skip
    count = len(definition.program.caches)
    caches = [(call.k_cache, call.v_cache), *((call.k_cache.clone(), call.v_cache.clone()) for _ in range(count - 1))]
    runner = ops.program_runner(ops, definition.program, weights)
    space = Workspace(runner.program, streams, BF16, ops.torch_device)
    return call_us([_bound(runner.run, space, step, caches)]) / count


# ---------------------------------------------------------------- attention
def decode(context: Context) -> None:
    """One token a sequence, all sequences of one length; then one long sequence among short ones."""
    ops, heads = inputs.table(context), heads_of(context.shape("Llama-3.1-8B"))
    for kv_dtype, name in ((BF16, "bf16"), (torch.float8_e4m3fn, "fp8")):
        for length, count in ((64, 2),) if context.is_tiny else _DECODES:
            _decode(context, ops, heads, f"decode, {name}, {count} x {length:,}", [(1, length)] * count, kv_dtype)
    if not context.is_tiny:
        skewed = [(1, 131_072), *[(1, 4096)] * 31]
        _decode(context, ops, heads, "decode, bf16, 1 x 131,072 and 31 x 4,096", skewed, BF16)
        small = heads_of(context.shape("Qwen3-0.6B"))
        _decode(context, ops, small, "decode, bf16, 64 x 1,024, 16/8 heads", [(1, 1024)] * 64, BF16)


def _decode(
    context: Context, ops: Ops, heads: Heads, what: str, lens: Sequence[tuple[int, int]], kv_dtype: torch.dtype
) -> None:
    num_bytes = 2 * heads.kv_heads * heads.head_dim * kv_dtype.itemsize * sum(length for _, length in lens)
    if num_bytes > _MOST_CACHE:
        context.row(what, status="skipped", note=f"{num_bytes / 2**30:.0f} GiB of cache")
        return
    planner = ops.attention_planner(heads.of_program(), ops.torch_device, ops.activation_dtype)
    count = 1 if context.is_tiny else copies_for(num_bytes, 32)
    calls = [inputs.attention(ops, heads, lens, kv_dtype=kv_dtype, planner=planner) for _ in range(count)]
    us = call_us([_bound(call.call, ops) for call in calls])
    rate = num_bytes / us * 1e6
    shares = context.bandwidth_share(rate)
    context.row(what, rate / 1e9, "GB/s", note=f"{us:.1f} us, heads {heads.heads}/{heads.kv_heads}", **shares)


def _bound(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: function(*args)


def prompts(context: Context) -> None:
    ops, heads = inputs.table(context), heads_of(context.shape("Llama-3.1-8B"))
    for length in (32,) if context.is_tiny else (2048, 8192):
        call = inputs.attention(ops, heads, [(length, length)], kv_dtype=BF16)
        us = call_us([_bound(call.call, ops)])
        q, k, v = (
            torch.randn(1, count, length, heads.head_dim, dtype=BF16, device=context.device)
            for count in (heads.heads, heads.kv_heads, heads.kv_heads)
        )
        theirs = call_us([_bound(_torch_attention, q, k, v)])
        flops = 4 * heads.heads * heads.head_dim * length**2 / 2
        shares = context.flops_share(flops / us * 1e6)
        note = f"torch's attention without pages: {flops / theirs / 1e6:.0f} TFLOP/s, ours is {theirs / us:.2f} x"
        context.row(f"prompt of {length:,}, causal", flops / us / 1e6, "TFLOP/s", note=note, **shares)


def _torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


# ---------------------------------------------------------------- matrices
def _dense_weight(context: Context, n: int, k: int) -> Tensor:
    return torch.randn(n, k, dtype=BF16, device=context.device).mul_(k**-0.5)


def _linear_us(
    context: Context, ops: Ops, weights: Sequence[LinearWeight], num_rows: int, out_dtype: torch.dtype = BF16
) -> float:
    x = torch.randn(num_rows, weights[0].K, dtype=BF16, device=context.device)
    out = torch.empty(num_rows, weights[0].N, dtype=out_dtype, device=context.device)
    return call_us([_bound(ops.linear, out, x, weight) for weight in weights])


def _cublas_us(context: Context, weights: Sequence[Tensor], num_rows: int) -> float:
    n, k = weights[0].shape
    x = torch.randn(num_rows, k, dtype=BF16, device=context.device)
    out = torch.empty(num_rows, n, dtype=BF16, device=context.device)
    return call_us([_bound(_mm, x, weight.t(), out) for weight in weights])


def _mm(x: Tensor, weight: Tensor, out: Tensor) -> None:
    torch.mm(x, weight, out=out)


def _copies(context: Context, n: int, k: int) -> int:
    return 1 if context.is_tiny else copies_for(2 * n * k, 48)


def few_rows(context: Context) -> None:
    """All matrices of a layer and the output matrix at the sizes of decoding."""
    ops = inputs.table(context)
    for name in ("Qwen3-0.6B", "Llama-3.1-8B"):
        shape = context.shape(name)
        ours: dict[int, dict[str, float]] = {}
        theirs: dict[int, dict[str, float]] = {}
        for projection, (n, k) in shape.projections.items():
            plain = [_dense_weight(context, n, k) for _ in range(_copies(context, n, k))]
            packed = [ops.pack_linear(weight) for weight in plain]
            for count in (1, 4, 16):
                ours.setdefault(count, {})[projection] = _linear_us(context, ops, packed, count)
                theirs.setdefault(count, {})[projection] = _cublas_us(context, plain, count)
        for count, times in ours.items():
            _tell_layer(context, f"bf16, {name}, {count} rows", shape, times, theirs[count])


def _tell_layer(context: Context, what: str, shape: Shape, times: dict[str, float], others: dict[str, float]) -> None:
    """The rate at which the matrices of a layer are read, and how much longer cuBLAS takes for each."""
    us = sum(times[projection] for projection in _LAYER)
    num_bytes = sum(2 * n * k for projection, (n, k) in shape.projections.items() if projection in _LAYER)
    rate = num_bytes / us * 1e6
    other_us = sum(others[projection] for projection in _LAYER)
    each = ", ".join(f"{projection} {others[projection] / times[projection]:.2f}" for projection in times)
    note = f"{us:.1f} us a layer; cuBLAS {other_us:.1f} us, {num_bytes / other_us / 1e3:.0f} GB/s; it takes x {each}"
    shares = context.bandwidth_share(rate)
    context.row(what, rate / 1e9, "GB/s", note=note, **shares)


def quantized(context: Context) -> None:
    """A layer of the 8B model in each format, against bf16 through cuBLAS for many rows and our own for one."""
    shape = context.shape("Llama-3.1-8B")
    base = _layer_us(context, inputs.table(context), shape, None)
    for kind in inputs.INTEGERS:
        make = partial(inputs.integer_weight, kind, device=context.device)
        _tell_format(context, kind, shape, _layer_us(context, inputs.table(context), shape, make), base)
    names: tuple[Literal["fp8", "int8"], ...] = ("fp8", "int8")
    for name in names:
        try:
            found = _layer_us(context, inputs.table(context, quantization=name), shape, None)
        except (RuntimeError, DeviceError) as error:
            context.row(f"{name}, Llama-3.1-8B", status="failed", note=str(error))
            continue
        _tell_format(context, name, shape, found, base)


def _row_counts(context: Context) -> tuple[int, ...]:
    return (1, 4) if context.is_tiny else (1, 16, 256, 4096)


def _layer_us(
    context: Context, ops: Ops, shape: Shape, make: Callable[[int, int], Any] | None
) -> dict[int, tuple[float, int]]:
    """Rows -> (microseconds of a layer's matrices, bytes of them). `make`: a quantized weight; None: bf16."""
    found = dict.fromkeys(_row_counts(context), 0.0)
    num_bytes = 0
    for projection in _LAYER:
        n, k = shape.projections[projection]
        first = ops.pack_linear(_dense_weight(context, n, k) if make is None else make(n, k))
        weights = twins(first, 1 if context.is_tiny else copies_for(first.nbytes, 16))
        num_bytes += first.nbytes
        for count in found:
            found[count] += _linear_us(context, ops, weights, count)
    return {count: (us, num_bytes) for count, us in found.items()}


def _tell_format(
    context: Context,
    kind: str,
    shape: Shape,
    times: dict[int, tuple[float, int]],
    base: dict[int, tuple[float, int]],
) -> None:
    for count, (us, num_bytes) in times.items():
        against = f"{us:.1f} us a layer, {base[count][0] / us:.2f} x as fast as bf16"
        if count <= 16:
            rate = num_bytes / us * 1e6
            shares = context.bandwidth_share(rate)
            context.row(f"{kind}, 8B, {count} rows", rate / 1e9, "GB/s", note=against, **shares)
            if count == 1 and kind == "W4A16":
                context.row("W4A16 against bf16, one row", base[1][0] / us, "x", goal=2.8)
        else:
            flops = 2 * count * shape.layer_params / shape.layers / us * 1e6
            shares = context.flops_share(flops, is_fp8=kind in ("fp8", "int8"))
            context.row(f"{kind}, 8B, {count:,} rows", flops / 1e12, "TFLOP/s", note=against, **shares)


def invariant(context: Context) -> None:
    """The products of the batch-invariant mode beside cuBLAS."""
    ops, shape = inputs.table(context, batch_invariant=True), context.shape("Qwen3-8B")
    totals = {count: [0.0, 0.0] for count in ((1, 4) if context.is_tiny else (1, 256, 4096))}
    ratios: dict[int, list[str]] = {count: [] for count in totals}
    for projection in _LAYER:
        n, k = shape.projections[projection]
        plain = [_dense_weight(context, n, k) for _ in range(_copies(context, n, k))]
        packed = [ops.pack_linear(weight) for weight in plain]
        for count, sums in totals.items():
            ours, theirs = _linear_us(context, ops, packed, count), _cublas_us(context, plain, count)
            sums[0] += ours
            sums[1] += theirs
            ratios[count].append(f"{projection} {theirs / ours:.2f}")
    for count, (ours, theirs) in totals.items():
        flops = 2 * count * shape.layer_params / shape.layers
        shares = context.flops_share(flops / ours * 1e6)
        note = f"{ours:.1f} us a layer, cuBLAS {theirs:.1f}: x {theirs / ours:.2f} ({', '.join(ratios[count])})"
        context.row(f"invariant, Qwen3-8B, {count:,} rows", flops / ours / 1e6, "TFLOP/s", note=note, **shares)


# ---------------------------------------------------------------- rows
def rows(context: Context) -> None:
    """What is done to each row between the products, and sampling."""
    ops, device = inputs.table(context), context.device
    shape = context.shape("Llama-3.1-8B")
    heads, width, middle = heads_of(shape), shape.hidden, shape.intermediate
    weight, head = (torch.ones(size, device=device) for size in (width, shape.head_dim))
    for count in (1, 2) if context.is_tiny else (1, 256, 4096):
        x, residual, out = (torch.randn(count, width, dtype=BF16, device=device) for _ in range(3))
        gate_up = torch.randn(count, 2 * middle, dtype=BF16, device=device)
        act = torch.empty(count, middle, dtype=BF16, device=device)
        qkv = torch.randn(count, heads.qkv_size, dtype=BF16, device=device)
        call = inputs.attention(ops, heads, [(1, 1)] * count, kv_dtype=BF16)
        slots = torch.arange(count, device=device) + inputs.BLOCK
        shapes = ops.kv_cache_shapes(count // inputs.BLOCK + 2, inputs.BLOCK, heads.kv_heads, heads.head_dim)
        k, v = (torch.zeros(size, dtype=BF16, device=device) for size in shapes)
        positions = torch.arange(count, dtype=torch.int32, device=device)
        cos_sin = torch.rand(count, heads.head_dim, device=device)
        sizes = (heads.heads, heads.kv_heads, heads.head_dim)
        works: dict[str, tuple[Callable[[], Any], int]] = {
            "add_rms_norm": (_bound(ops.add_rms_norm, out, residual, x, weight, 1e-5), 8 * count * width),
            "act_mul": (_bound(ops.act_mul, act, gate_up, "silu"), 6 * count * middle),
            "rope_kv_write": (
                _bound(ops.rope_kv_write, qkv, positions, cos_sin, head, head, 1e-5, k, v, slots, *sizes),
                4 * count * (heads.heads + 2 * heads.kv_heads) * heads.head_dim,
            ),
        }
        del call
        for name, (work, num_bytes) in works.items():
            us = call_us([work])
            note = f"{num_bytes / us / 1e3:.0f} GB/s, from the cache where it fits"
            context.row(f"{name}, {count:,} rows", us, "us", note=note)
    _sampling(context, ops)


def _sampling(context: Context, ops: Ops) -> None:
    vocab = context.shape("Qwen3-0.6B").vocab
    kinds = {"greedy": (0.0, 0, 1.0), "drawn": (0.8, 0, 1.0), "top-k and top-p": (1.0, 50, 0.9)}
    for count in (2,) if context.is_tiny else (1, 64, 256):
        logits = 3 * torch.randn(count, vocab, device=context.device)
        ids, flags = (torch.empty(count, dtype=torch.int32, device=context.device) for _ in range(2))
        for name, parameters in kinds.items():
            _, there = sampling_batch(ops, count, *parameters)
            us = call_us([_bound(ops.sample, logits, there, ids, flags)])
            note = f"{4 * count * vocab / us / 1e3:.0f} GB/s for one pass over the logits"
            context.row(f"sample {name}, {count} rows", us, "us", note=note)
