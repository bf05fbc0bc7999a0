"""Operations at the sizes of real models against the reference, which computes in float32 on the CPU.

Outputs are filled with NaN before, and caches wherever no sequence may look; all inputs are random. What is compared is
the size of the difference, as a share of the size of the reference's result.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from gpu import inputs
from gpu.context import Context
from gpu.inputs import BLOCK, Attention, Heads, integer_weight, sampling_batch
from octavo.ops import reference, reference_attention, reference_sampling
from octavo.ops.table import Ops

BF16: Final = torch.bfloat16
FP8: Final = torch.float8_e4m3fn
#: Errors of one rounding to the type, and of what is kept in it on the way.
_ERRORS: Final = {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 2e-5}


@dataclass(frozen=True)
class Result:
    """`error`: relative, or the count of rows that are wrong; the check passes at or below `bound`."""

    what: str
    error: float
    bound: float
    note: str = ""

    @property
    def is_good(self) -> bool:
        return self.error <= self.bound  # NaN is not


Check = tuple[str, Callable[[Context], Iterator[Result]]]


def distance(found: Tensor, want: Tensor) -> float:
    found, want = found.detach().double().cpu(), want.double()
    return float((found - want).norm() / want.norm().clamp(min=1e-30))


def _rows(context: Context, rows: Sequence[int]) -> Sequence[int]:
    return rows[:2] if context.is_tiny else rows


def _nan(ops: Ops, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype or ops.activation_dtype, device=ops.torch_device)


def _random(ops: Ops, *shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape)).to(ops.activation_dtype)


# ---------------------------------------------------------------- matrices
def dense(context: Context) -> Iterator[Result]:
    shapes = [(96, 64)] if context.is_tiny else [(4096, 1024), (1024, 3072), (576, 192), (6144, 4096), (4096, 14_336)]
    for dtype in (torch.bfloat16, torch.float16):
        ops = inputs.table(context, dtype)
        for n, k in shapes if dtype == BF16 else shapes[:3]:
            weight = torch.randn(n, k).to(dtype)
            bias = torch.randn(n) if n < k else None
            yield from _linear(context, ops, f"linear {str(dtype)[6:]} {n} x {k}", weight, bias, _ERRORS[dtype])
    ops = inputs.table(context)
    yield from _gated(context, ops, "linear", torch.randn(*_gate_up(context)).to(BF16))
    ops = inputs.table(context, batch_invariant=True)
    for n, k in shapes:
        yield from _linear(
            context, ops, f"linear, invariant {n} x {k}", torch.randn(n, k).to(BF16), None, _ERRORS[BF16]
        )
        yield _rows_alone(context, ops, n, k)


def _linear(context: Context, ops: Ops, what: str, weight: Any, bias: Tensor | None, bound: float) -> Iterator[Result]:
    packed, plain = ops.pack_linear(_there(ops, weight), _there(ops, bias)), reference.pack_linear(weight, bias)
    worst, at = 0.0, 0
    for rows in _rows(context, (1, 2, 3, 4, 5, 8, 16, 17, 33, 64, 65, 129, 257, 1024)):
        x, out, want = _random(ops, rows, plain.K), _nan(ops, rows, plain.N), torch.empty(rows, plain.N)
        ops.linear(out, x.to(ops.torch_device), packed)
        reference.linear(want, x.float(), plain)
        error = distance(out, want)
        if not error <= worst:
            worst, at = error, rows
    yield Result(what, worst, bound, f"worst at {at} rows")


def _gate_up(context: Context) -> tuple[int, int]:
    """(n, k) of a stacked matrix: gate, then up."""
    return (128, 128) if context.is_tiny else (6144, 1024)


def _gated(context: Context, ops: Ops, what: str, weight: Any) -> Iterator[Result]:
    """The product with the activation behind it, in one launch."""
    packed, plain = ops.pack_linear(_there(ops, weight)), reference.pack_linear(weight)
    for rows in _rows(context, (1, 4, 16)):
        linear: Any = importlib.import_module("octavo.ops.triton.linear")  # not before `inputs.table`
        if not linear.has_fused_act(packed, rows):
            yield Result(f"{what}, gated", torch.inf, 0.0, f"no launch for {rows} rows")
            return
        x, out = _random(ops, rows, plain.K), _nan(ops, rows, plain.N // 2)
        linear.linear_act(out, x.to(ops.torch_device), packed, "silu")
        product, want = torch.empty(rows, plain.N), torch.empty(rows, plain.N // 2)
        reference.linear(product, x.float(), plain)
        reference.act_mul(want, product, "silu")
        yield Result(f"{what}, gated, {rows} rows", distance(out, want), 2 * _ERRORS[BF16])


def _there(ops: Ops, value: Any) -> Any:
    return value.to(ops.torch_device) if isinstance(value, Tensor) else value


def _rows_alone(context: Context, ops: Ops, n: int, k: int) -> Result:
    """In the invariant mode a row's bits do not depend on how many others there are."""
    packed = ops.pack_linear(_there(ops, torch.randn(n, k).to(BF16)))
    most = 48 if context.is_tiny else 600
    x, whole = _random(ops, most, k).to(ops.torch_device), _nan(ops, most, n)
    ops.linear(whole, x, packed)
    differing = 0
    for rows in _rows(context, (1, 2, 7, 16, 17, 64, 100, 128, 300)):
        out = _nan(ops, rows, n)
        ops.linear(out, x[:rows], packed)
        differing += not torch.equal(out, whole[:rows])
    return Result(f"linear, invariant {n} x {k}: bits", differing, 0, "numbers of rows with other bits")


def quantized(context: Context) -> Iterator[Result]:
    shapes = [(64, 128)] if context.is_tiny else [(4096, 1024), (1024, 3072), (6144, 4096)]
    ops = inputs.table(context)
    for kind in inputs.INTEGERS:
        for n, k in shapes:
            yield from _linear(context, ops, f"{kind} {n} x {k}", integer_weight(kind, n, k), None, _ERRORS[BF16])
        yield from _gated(context, ops, kind, integer_weight(kind, *_gate_up(context)))
    names: tuple[tuple[Literal["fp8", "int8"], float], ...] = (("fp8", 0.06), ("int8", 0.03))
    for name, bound in names:
        ops = inputs.table(context, quantization=name)
        for n, k in shapes:
            yield from _linear(context, ops, f"{name} {n} x {k}", torch.randn(n, k).to(BF16), None, bound)


def embedding(context: Context) -> Iterator[Result]:
    ops = inputs.table(context)
    vocab, width = (300, 64) if context.is_tiny else (30_000, 1152)
    weight = torch.randn(vocab, width).to(BF16)
    packed, tied = ops.pack_embedding(_there(ops, weight)), ops.tied_embedding(ops.pack_linear(_there(ops, weight)))
    ids = torch.randint(0, vocab, (77,), dtype=torch.int32)
    want = torch.empty(77, width)
    reference.embedding(want, ids, reference.pack_embedding(weight), 33.9)
    for what, table in (("embedding", packed), ("embedding, tied", tied)):
        out = _nan(ops, 77, width)
        ops.embedding(out, ids.to(ops.torch_device), table, 33.9)
        yield Result(what, distance(out, want), _ERRORS[BF16])


# ---------------------------------------------------------------- rows
def norms(context: Context) -> Iterator[Result]:
    for dtype in (torch.bfloat16, torch.float16):
        ops = inputs.table(context, dtype)
        for width in (64,) if context.is_tiny else (576, 1024, 1152, 4096):
            x, residual, weight = _random(ops, 301, width), _random(ops, 301, width), torch.randn(width)
            out, want = _nan(ops, 301, width), torch.empty(301, width)
            ops.rms_norm(out, _there(ops, x), _there(ops, weight), 1e-6)
            reference.rms_norm(want, x.float(), weight, 1e-6)
            name = f"{str(dtype)[6:]}, width {width}"
            yield Result(f"rms_norm {name}", distance(out, want), _ERRORS[dtype])
            out, there, here = _nan(ops, 301, width), _there(ops, residual.clone()), residual.float()
            ops.add_rms_norm(out, there, _there(ops, x), _there(ops, weight), 1e-6)
            reference.add_rms_norm(want, here, x.float(), weight, 1e-6)
            error = max(distance(out, want), distance(there, here))
            yield Result(f"add_rms_norm {name}", error, 2 * _ERRORS[dtype])


def activations(context: Context) -> Iterator[Result]:
    ops = inputs.table(context)
    for kind in ("silu", "gelu_tanh"):
        for width in (96,) if context.is_tiny else (1536, 3072, 14_336):
            gate_up = _random(ops, 67, 2 * width, scale=3.0)
            out, want = _nan(ops, 67, width), torch.empty(67, width)
            ops.act_mul(out, _there(ops, gate_up), kind)
            reference.act_mul(want, gate_up.float(), kind)
            yield Result(f"act_mul {kind}, width {width}", distance(out, want), _ERRORS[BF16])


# ---------------------------------------------------------------- attention
LLAMA: Final = Heads(heads=32, kv_heads=8, head_dim=128)
SMALL: Final = Heads(heads=16, kv_heads=8, head_dim=128)
GEMMA: Final = Heads(heads=4, kv_heads=1, head_dim=256)
SMOLLM: Final = Heads(heads=9, kv_heads=3, head_dim=64)
_DECODES: Final = [(1, n) for n in (1, 2, 15, 16, 17, 64, 100, 511, 512, 513, 1000, 2048, 3001, 5000)]
_PROMPTS: Final = [(5, 5), (700, 700), (1, 1), (300, 1300), (17, 2049)]
#: What -> (heads, sequences, type of the cache, window, soft cap).
_ATTENTION: Final[dict[str, tuple[Heads, list[tuple[int, int]], torch.dtype, int, float]]] = {
    "decode 32/8": (LLAMA, _DECODES, BF16, 0, 0.0),
    "decode 16/8": (SMALL, _DECODES, BF16, 0, 0.0),
    "decode 4/1/256, window": (GEMMA, _DECODES, BF16, 512, 0.0),
    "decode 9/3/64": (SMOLLM, _DECODES, BF16, 0, 0.0),
    "decode, soft cap": (SMALL, _DECODES, BF16, 0, 5.0),
    "decode, fp8 cache": (LLAMA, _DECODES, FP8, 0, 0.0),
    "prompts 32/8": (LLAMA, _PROMPTS, BF16, 0, 0.0),
    "prompts 4/1/256, window": (GEMMA, _PROMPTS, BF16, 512, 0.0),
    "prompts 9/3/64": (SMOLLM, _PROMPTS, BF16, 0, 0.0),
    "prompts, soft cap and window": (SMALL, _PROMPTS, BF16, 100, 5.0),
    "prompts, fp8 cache": (LLAMA, _PROMPTS, FP8, 0, 0.0),
    "decode and prompts": (LLAMA, [*_DECODES, *_PROMPTS], BF16, 0, 0.0),
}


def attention(context: Context) -> Iterator[Result]:
    ops = inputs.table(context)
    for what, (heads, lens, kv_dtype, window, softcap) in _ATTENTION.items():
        if context.is_tiny:
            heads, lens = Heads(heads=4, kv_heads=2, head_dim=64), [(1, 5), (1, 40), (6, 20)]
        call = inputs.attention(ops, heads, lens, kv_dtype=kv_dtype, window=window, softcap=softcap)
        k, v = _fill(ops, call, [context for _, context in lens])
        call.call(ops)
        want = torch.empty(call.out.shape)
        reference_attention.attention(
            want, call.qkv.float().cpu(), k, v, call.block_tables.cpu(), call.seq_lens.cpu(),
            call.query_start_loc.cpu(), heads.heads, heads.kv_heads, heads.head_dim, heads.head_dim**-0.5, window,
            softcap,
        )  # fmt: skip
        bound = 0.04 if kv_dtype == FP8 else 8e-3
        yield Result(f"attention: {what}", distance(call.out, want), bound)
        if context.is_tiny:
            return
    yield _sequences_alone(inputs.table(context, batch_invariant=True))


def _fill(ops: Ops, call: Attention, contexts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """New keys and values for all sequences, NaN elsewhere, written by each side's own operation, since caches may be
    laid out in different ways. Returns the reference's caches, float32."""
    heads, total = call.heads, sum(contexts)
    slots = inputs.slots(call.block_tables.cpu().numpy(), contexts)
    # What the cache's type cannot hold would be rounded on one side only.
    qkv = torch.randn(total, heads.qkv_size).to(call.k_cache.dtype).to(ops.activation_dtype)
    positions, cos_sin = torch.zeros(total, dtype=torch.int32), torch.zeros(1, heads.head_dim)
    cos_sin[:, : heads.head_dim // 2] = 1.0  # no rotation
    k_shape, v_shape = reference_attention.kv_cache_shapes(_num_blocks(call), BLOCK, heads.kv_heads, heads.head_dim)
    k, v = torch.full(k_shape, torch.nan), torch.full(v_shape, torch.nan)
    for cache in (call.k_cache, call.v_cache):
        cache.copy_(torch.full(cache.shape, torch.nan, device=cache.device).to(cache.dtype))
    sizes = (heads.heads, heads.kv_heads, heads.head_dim)
    device = ops.torch_device
    ops.rope_kv_write(
        qkv.to(device), positions.to(device), cos_sin.to(device), None, None, 1e-6, call.k_cache, call.v_cache,
        slots.to(device), *sizes,
    )  # fmt: skip
    reference_attention.rope_kv_write(qkv.float(), positions, cos_sin, None, None, 1e-6, k, v, slots, *sizes)
    return k, v


def _num_blocks(call: Attention) -> int:
    return int(call.block_tables.max()) + 1


def _sequences_alone(ops: Ops) -> Result:
    """In the invariant mode a sequence's bits do not depend on the others of the call."""
    lens = [*_DECODES, *_PROMPTS]
    whole = inputs.attention(ops, LLAMA, lens, kv_dtype=BF16)
    whole.call(ops)
    planner = ops.attention_planner(LLAMA.of_program(), ops.torch_device, ops.activation_dtype)
    starts = whole.query_start_loc.tolist()
    differing = []
    for i, (count, context) in enumerate(lens):
        rows = slice(starts[i], starts[i + 1])
        lens_alone, starts_alone = np.array([context], np.int32), np.array([0, count], np.int32)
        arrays = planner.arrays(lens_alone, starts_alone, 1 if count == 1 else 0)
        plan = planner.plan(arrays, [torch.from_numpy(array).to(ops.torch_device) for array in arrays.tensors])
        blocks = -(-context // BLOCK)
        alone = Attention(
            heads=LLAMA, window=0, softcap=0.0, out=torch.full_like(whole.out[rows], torch.nan),
            qkv=whole.qkv[rows].clone(), k_cache=whole.k_cache, v_cache=whole.v_cache,
            block_tables=whole.block_tables[i : i + 1, :blocks].contiguous(),
            seq_lens=whole.seq_lens[i : i + 1].clone(),
            query_start_loc=torch.from_numpy(starts_alone).to(ops.torch_device), plan=plan,
        )  # fmt: skip
        alone.call(ops)
        if not torch.equal(alone.out, whole.out[rows]):
            differing.append((count, context))
    return Result("attention, invariant: bits", len(differing), 0, f"sequences with other bits: {differing[:4]}")


def rotation(context: Context) -> Iterator[Result]:
    """With norms of the heads, into both kinds of caches; the cache is looked at through the next attention."""
    ops = inputs.table(context)
    cases = {"32/8/128": LLAMA, "4/1/256": GEMMA, "9/3/64": SMOLLM}
    for what, heads in cases.items():
        if context.is_tiny:
            heads = Heads(heads=4, kv_heads=2, head_dim=64)
        count = 40 if context.is_tiny else 331
        qkv, weights = _random(ops, count, heads.qkv_size), [torch.randn(heads.head_dim) for _ in "qk"]
        angles = torch.rand(count, heads.head_dim // 2) * 6.3
        cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
        positions = torch.randperm(count).to(torch.int32)
        call = inputs.attention(ops, heads, [(count, count)], kv_dtype=BF16)
        k, v = _fill(ops, call, [count])
        slots = inputs.slots(call.block_tables.cpu().numpy(), [count])
        sizes = (heads.heads, heads.kv_heads, heads.head_dim)
        there, here = _there(ops, qkv.clone()), qkv.float()
        arguments: Any = (positions, cos_sin, *weights, 1e-6)
        moved = [_there(ops, value) for value in arguments]
        ops.rope_kv_write(there, *moved, call.k_cache, call.v_cache, _there(ops, slots), *sizes)
        write: Any = reference_attention.rope_kv_write
        write(here, *arguments, k, v, slots, *sizes)
        queries = heads.heads * heads.head_dim
        yield Result(f"rope_kv_write {what}: q", distance(there[:, :queries], here[:, :queries]), _ERRORS[BF16])
        call.qkv.copy_(there)
        call.call(ops)
        want = torch.empty(call.out.shape)
        reference_attention.attention(
            want, here, k, v, call.block_tables.cpu(), call.seq_lens.cpu(), call.query_start_loc.cpu(), *sizes,
            heads.head_dim**-0.5,
        )  # fmt: skip
        # The queries of both sides differ by a rounding already.
        yield Result(f"rope_kv_write {what}: k and v", distance(call.out, want), 3e-2)


# ---------------------------------------------------------------- logits
def sampling(context: Context) -> Iterator[Result]:
    ops = inputs.table(context)
    rows, vocab = (5, 300) if context.is_tiny else (24, 151_936)
    logits = 3 * torch.randn(rows, vocab)
    logits[1] = -torch.inf
    logits[2, 7] = torch.nan
    logits[3, 100:] = -torch.inf
    for name, parameters in {"greedy": (0.0, 0, 1.0), "drawn": (0.8, 0, 1.0), "filtered": (1.0, 50, 0.9)}.items():
        host, there = sampling_batch(ops, rows, *parameters)
        found = [torch.full((rows,), -7, dtype=torch.int32, device=ops.torch_device) for _ in range(2)]
        want = [torch.full((rows,), -7, dtype=torch.int32) for _ in range(2)]
        ops.sample(_there(ops, logits), there, *found)
        reference_sampling.sample(logits.clone(), host, *want)
        is_good = want[1] == reference_sampling.FLAG_OK
        wrong_flags = int((found[1].cpu() != want[1]).sum())
        wrong = int((found[0].cpu() != want[0])[is_good].sum())
        # A number drawn within float32's rounding of a token's bound may fall on either side.
        allowed = 0 if name == "greedy" else 1
        note = f"{wrong} of {int(is_good.sum())} tokens, {wrong_flags} flags differ"
        yield Result(f"sample: {name}", wrong_flags * rows + wrong, allowed, note)
    good = [row for row in range(rows) if row not in (1, 2)]
    logits, ids = logits[good], torch.randint(0, 100, (len(good),), dtype=torch.int32)
    found_scores = ops.logprobs(_there(ops, logits), _there(ops, ids), 5)
    want_scores = reference_sampling.logprobs(logits, ids, 5)
    values = [i for i, tensor in enumerate(want_scores) if tensor.is_floating_point()]
    error = max(distance(found_scores[i], want_scores[i]) for i in values)
    others = sum(
        not torch.equal(a.cpu().long(), b.long())
        for i, (a, b) in enumerate(zip(found_scores, want_scores, strict=True))
        if i not in values
    )
    yield Result("logprobs", error if not others else torch.inf, 1e-5, f"{others} of ranks and ids differ")
    masks = torch.randint(-(2**31), 2**31, (2, -(-vocab // 32))).to(torch.int32)
    here, masked = logits.clone(), torch.tensor([2, 0])
    edited = _there(ops, logits.clone())
    ops.forbid(edited, _there(ops, masked), _there(ops, masks))
    reference_sampling.forbid(here, masked, masks)
    yield Result("forbid", int((edited.cpu() != here).sum()), 0, "places that differ")


# ---------------------------------------------------------------- joined operations
def joined_products(context: Context) -> Iterator[Result]:
    """A norm in front and a sum behind, in one launch with the product."""
    ops = inputs.table(context)
    linear: Any = importlib.import_module("octavo.ops.triton.linear")
    norms: Any = importlib.import_module("octavo.ops.triton.linear_dense")
    shapes = [(96, 128)] if context.is_tiny else [(4096, 1024), (6144, 4096), (4096, 14_336)]
    kinds = ["bf16", "W4A16", "W8A16"]
    for kind, (n, k) in ((kind, shape) for kind in kinds for shape in shapes):
        weight = torch.randn(n, k).to(BF16) if kind == "bf16" else inputs.integer_weight(kind, n, k)
        packed, plain = ops.pack_linear(_there(ops, weight)), reference.pack_linear(weight)
        scales = 1 + 0.1 * torch.randn(k)
        for rows in _rows(context, (1, 2, 4, 8, 16) if kind == "bf16" else (1, 2, 4)):
            if not linear.can_join(packed, rows):
                yield Result(f"joined {kind}", torch.inf, 0.0, f"no launch for {rows} rows")
                return
            x, residual = _random(ops, rows, k, scale=3.0), _random(ops, rows, n, scale=k**0.5)
            normed, want, out = torch.empty(rows, k), torch.empty(rows, n), _nan(ops, rows, n)
            reference.rms_norm(normed, x.float(), scales, 1e-6)
            reference.linear(want, normed, plain)
            there = _there(ops, x)
            linear.linear_joined(out, there, packed, norm=norms.InputNorm(_there(ops, scales), 1e-6))
            what = f"joined {kind} {n} x {k}, {rows} rows"
            yield Result(f"{what}: norm", distance(out, want), _ERRORS[BF16])
            reference.linear(want, x.float(), plain)
            found = _there(ops, residual.clone())
            linear.linear_joined(found, there, packed, adds=True)
            yield Result(f"{what}: sum", distance(found, residual.float() + want), _ERRORS[BF16])


def joined_rotation(context: Context) -> Iterator[Result]:
    """Rotation, norms of heads and the newest keys, as parts of decoding."""
    ops = inputs.table(context)
    triton: Any = importlib.import_module("octavo.ops.triton.attention")
    cases = {"32/8/128": (LLAMA, BF16), "32/8/128, fp8 cache": (LLAMA, FP8), "4/1/256": (GEMMA, BF16)}
    for what, (heads, kv_dtype) in cases.items():
        lens = _DECODES
        if context.is_tiny:
            heads, lens = Heads(heads=4, kv_heads=2, head_dim=80), [(1, 5), (1, 40)]
        contexts = [length for _, length in lens]
        call = inputs.attention(ops, heads, lens, kv_dtype=kv_dtype, are_apart=True)
        k, v = _fill(ops, call, contexts)
        angles = torch.rand(max(contexts), heads.head_dim // 2) * 6.3
        cos_sin, norms = torch.cat((angles.cos(), angles.sin()), dim=-1), [torch.randn(heads.head_dim) for _ in "qk"]
        positions = torch.tensor(contexts, dtype=torch.int32) - 1
        last = call.block_tables.cpu().long()[torch.arange(len(lens)), positions.long() // BLOCK]
        slots = last * BLOCK + positions.long() % BLOCK
        sizes = (heads.heads, heads.kv_heads, heads.head_dim)
        here, want = call.qkv.float().cpu(), torch.empty(call.out.shape)
        reference_attention.rope_kv_write(here, positions, cos_sin, *norms, 1e-6, k, v, slots, *sizes)
        where = (call.block_tables.cpu(), call.seq_lens.cpu(), call.query_start_loc.cpu())
        reference_attention.attention(want, here, k, v, *where, *sizes, heads.head_dim**-0.5)
        moved = [_there(ops, value) for value in (positions, slots, cos_sin, *norms)]
        call.rotation = triton.Rotation(*moved, 1e-6, norms_rotated=False, q_scales=None)
        call.call(ops)
        yield Result(f"decoding with rotation {what}", distance(call.out, want), 0.04 if kv_dtype == FP8 else 1e-2)
        if context.is_tiny:
            return


def chained(context: Context) -> Iterator[Result]:
    """Kernels that are launched while the one before computes leave what they leave one after the other."""
    ops = inputs.table(context)
    launching: Any = importlib.import_module("octavo.ops.triton.launching")
    linear: Any = importlib.import_module("octavo.ops.triton.linear")
    norms: Any = importlib.import_module("octavo.ops.triton.linear_dense")
    width, rounds = (64, 1) if context.is_tiny else (1024, 100)
    packed = ops.pack_linear(_there(ops, (width**-0.5 * torch.randn(width, width)).to(BF16)))
    norm = norms.InputNorm(_there(ops, torch.ones(width)), 1e-6)
    begin = _there(ops, _random(ops, 2, width))
    can_chain, results = launching._can_chain, []
    try:
        for decides in (can_chain, lambda device: False):
            launching._can_chain = decides
            residual, inner = begin.clone(), torch.empty_like(begin)
            for _ in range(rounds):
                linear.linear_joined(inner, residual, packed, norm=norm)
                ops.act(inner, inner, "silu", None)
                linear.linear_joined(residual, inner, packed, adds=True)
                ops.add_rms_norm(inner, residual, inner, norm.weight, norm.eps)
            results.append(residual.cpu())
    finally:
        launching._can_chain = can_chain
    differing = int((results[0] != results[1]).sum())
    yield Result("dependent launches: bits", differing, 0, "values that are others than without")


CHECKS: Final[tuple[Check, ...]] = (
    ("matrices", dense), ("quantized matrices", quantized), ("embedding", embedding), ("norms", norms),
    ("activations", activations), ("attention", attention), ("rotation", rotation), ("logits", sampling),
    ("joined products", joined_products), ("joined rotation", joined_rotation), ("dependent launches", chained),
)  # fmt: skip
