"""The native operations of the CPU: thin wrappers that check what is cheap to check and pass raw addresses.

Meaning and shapes: `reference` and the modules that it names. A kernel cannot see a tensor's type or size, so the
asserts are the only guard against reading foreign memory; ids, positions and slots are trusted.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.operands import KeyBlocks, Latent
from octavo.ops.operations import GateKind
from octavo.ops.reference import resolve_ids, soft_cap_
from octavo.ops.reference_attention import (
    KEY_TILE,
    TILE_SCALE_BYTES,
    attention_planner,
    kv_cache_shapes,
    latent_cache_shape,
)
from octavo.ops.routing import Routing
from octavo.ops.sampling_batch import SamplingBatch

__all__ = [
    "act",
    "act_mul",
    "add_",
    "add_gated_",
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "attention_planner",
    "clip_",
    "forbid",
    "gate_",
    "kv_cache_shapes",
    "latent_attention",
    "latent_cache_shape",
    "latent_write",
    "layer_norm",
    "logprobs",
    "norm_parts_",
    "resolve_ids",
    "rms_norm",
    "rope_kv_write",
    "route",
    "sample",
    "soft_cap_",
]

_F32: Final = torch.float32
_I32: Final = torch.int32
_I64: Final = torch.int64
#: Codes of the cache's dtype and of the activations, as in csrc/cpu/kernels/cache.h and activation.h.
CACHE_DTYPES: Final = {
    torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float8_e4m3fn: 3, torch.float8_e5m2: 4, torch.int8: 5,
}  # fmt: skip
ACTIVATIONS: Final = {
    "silu": 0, "gelu_tanh": 1, "gelu": 2, "relu": 3, "quick_gelu": 4, "relu2": 5, "xielu": 6, "swiglu_oai": 8,
    "gegelu": 9,
}  # fmt: skip
MAX_HEAD_DIM: Final = 1024
#: In place of `KeyBlocks.numbers`.
NO_BLOCKS: Final = (0, 0, 1, 0)
SCORE_KINDS: Final = {"softmax": 0, "sigmoid": 1, "sparsemixer": 2}
#: As in csrc/cpu/kernels/experts.h.
MAX_EXPERTS: Final = 4096


def rms_norm(out: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    rows, width = x.shape
    assert out.shape == x.shape and weight.numel() == width
    assert x.dtype == out.dtype == weight.dtype == _F32
    assert x.is_contiguous() and out.is_contiguous() and weight.is_contiguous()
    _cpu.rms_norm(out.data_ptr(), x.data_ptr(), weight.data_ptr(), rows, width, eps)


def add_rms_norm(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    rows, width = x.shape
    assert out.shape == x.shape == residual.shape and weight.numel() == width
    assert x.dtype == out.dtype == residual.dtype == weight.dtype == _F32
    assert x.is_contiguous() and out.is_contiguous() and residual.is_contiguous() and weight.is_contiguous()
    _cpu.add_rms_norm(out.data_ptr(), residual.data_ptr(), x.data_ptr(), weight.data_ptr(), rows, width, eps)


def layer_norm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    rows, width = x.shape
    assert out.shape == x.shape and weight.numel() == width
    assert x.dtype == out.dtype == weight.dtype == _F32
    assert x.is_contiguous() and out.is_contiguous() and weight.is_contiguous()
    _cpu.layer_norm(out.data_ptr(), x.data_ptr(), weight.data_ptr(), bias_of(bias, width), rows, width, eps)


def add_layer_norm(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    rows, width = x.shape
    assert out.shape == x.shape == residual.shape and weight.numel() == width
    assert x.dtype == out.dtype == residual.dtype == weight.dtype == _F32
    assert x.is_contiguous() and out.is_contiguous() and residual.is_contiguous() and weight.is_contiguous()
    _cpu.add_layer_norm(
        out.data_ptr(),
        residual.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        bias_of(bias, width),
        rows,
        width,
        eps,
    )


def norm_parts_(
    x: Tensor, first: int, count: int, width: int, weight: Tensor, bias: Tensor | None, eps: float, kind: str
) -> None:
    assert x.dtype == weight.dtype == _F32 and x.is_contiguous() and weight.is_contiguous()
    assert weight.numel() in (width, count * width) and 0 <= first <= x.shape[1] - count * width
    _cpu.norm_parts(
        x.data_ptr(), x.shape[0], x.shape[1], first, count, width, weight.data_ptr(), bias_of(bias, weight.numel()),
        weight.numel() != width, eps, kind == "layer",
    )  # fmt: skip


def bias_of(bias: Tensor | None, width: int) -> int:
    if bias is None:
        return 0
    assert bias.numel() == width and bias.dtype == _F32 and bias.is_contiguous()
    return bias.data_ptr()


def add_(residual: Tensor, x: Tensor) -> None:
    assert residual.shape == x.shape and residual.dtype == x.dtype == _F32
    assert residual.is_contiguous() and x.is_contiguous()
    _cpu.add(residual.data_ptr(), x.data_ptr(), x.numel())


def add_gated_(residual: Tensor, x: Tensor, gates: Tensor) -> None:
    rows, width = x.shape
    assert residual.shape == x.shape and residual.dtype == x.dtype == gates.dtype == _F32 and gates.numel() == rows
    assert residual.is_contiguous() and x.is_contiguous() and gates.is_contiguous()
    _cpu.add_gated(residual.data_ptr(), x.data_ptr(), gates.data_ptr(), rows, width)


def act_mul(out: Tensor, gate_up: Tensor, kind: str) -> None:
    rows, width = out.shape
    assert gate_up.shape == (rows, 2 * width) and out.dtype == gate_up.dtype == _F32
    assert out.is_contiguous() and gate_up.is_contiguous()
    _cpu.act_mul(out.data_ptr(), gate_up.data_ptr(), rows, width, ACTIVATIONS[kind])


def act(out: Tensor, x: Tensor, kind: str, parameters: Tensor | None = None) -> None:
    rows, width = out.shape
    assert x.shape == out.shape and out.dtype == x.dtype == _F32 and (parameters is not None) == (kind == "xielu")
    assert out.is_contiguous() and x.is_contiguous()
    _cpu.act(out.data_ptr(), x.data_ptr(), rows, width, ACTIVATIONS[kind], bias_of(parameters, 2))


def native_routing(routing: Routing) -> tuple[int, bool, float, int, int, int, float]:
    """As the native operations take it."""
    return (
        SCORE_KINDS[routing.kind],
        routing.renormalize,
        routing.factor,
        routing.num_groups,
        routing.top_groups,
        routing.group_best,
        routing.jitter,
    )


def check_routing(routing: Routing, num_experts: int, top_k: int) -> None:
    """Assert that there are enough experts to choose, and that the kernel's memory is large enough."""
    assert num_experts <= MAX_EXPERTS and num_experts % routing.num_groups == 0
    group = num_experts // routing.num_groups
    assert routing.group_best <= min(group, 2) and routing.top_groups <= routing.num_groups
    assert 0 < top_k <= routing.top_groups * group


def route(
    ids: Tensor,
    weights: Tensor,
    scores: Tensor,
    routing: Routing,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    rows, num_experts = scores.shape
    top_k = ids.shape[1]
    assert ids.shape == weights.shape == (rows, top_k)
    assert ids.dtype == _I32 and weights.dtype == scores.dtype == _F32
    assert ids.is_contiguous() and weights.is_contiguous() and scores.is_contiguous()
    check_routing(routing, num_experts, top_k)
    _cpu.route(
        ids.data_ptr(),
        weights.data_ptr(),
        scores.data_ptr(),
        bias_of(bias, num_experts),
        bias_of(scales, num_experts),
        rows,
        num_experts,
        top_k,
        native_routing(routing),
    )


def clip_(x: Tensor, limit: float) -> None:
    assert x.dtype == _F32 and x.is_contiguous()
    _cpu.clip(x.data_ptr(), x.numel(), limit)


def gate_(x: Tensor, gates: Tensor, kind: GateKind) -> None:
    assert x.shape == gates.shape and x.dtype == gates.dtype == _F32 and x.is_contiguous() and gates.is_contiguous()
    _cpu.gate(x.data_ptr(), gates.data_ptr(), x.numel(), kind == "silu")


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
    rows, width = qkv.shape
    assert qkv.dtype == _F32 and positions.dtype == _I32 and slot_mapping.dtype == _I64 and qkv.is_contiguous()
    assert cos_sin is None or (cos_sin.dtype == _F32 and cos_sin.is_contiguous() and cos_sin.size(1) == head_dim)
    assert width == (num_heads + 2 * num_kv_heads) * head_dim
    assert positions.numel() == slot_mapping.numel() == rows and head_dim % 2 == 0 and head_dim <= MAX_HEAD_DIM
    assert q_norm is None or q_norm.dtype == _F32
    assert k_norm is None or k_norm.dtype == _F32
    assert q_scales is None or (q_scales.dtype == _F32 and q_scales.is_contiguous())
    block_size = check_cache(k_cache, v_cache, num_kv_heads, head_dim) if num_kv_heads else 0
    _cpu.rope_kv_write(
        qkv.data_ptr(),
        positions.data_ptr(),
        0 if cos_sin is None else cos_sin.data_ptr(),
        0 if q_norm is None else q_norm.data_ptr(),
        0 if k_norm is None else k_norm.data_ptr(),
        eps,
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        k_cache.stride(0),
        v_cache.stride(0),
        CACHE_DTYPES[k_cache.dtype],
        block_size,
        slot_mapping.data_ptr(),
        rows,
        num_heads,
        num_kv_heads,
        head_dim,
        norms_rotated,
        0 if q_scales is None else q_scales.data_ptr(),
        k_scale,
        v_scale,
    )


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
    num_seqs, max_blocks = block_tables.shape
    rows, width = qkv.shape
    assert out.dtype == qkv.dtype == _F32 and out.is_contiguous() and qkv.is_contiguous()
    assert out.shape == (rows, num_heads * head_dim) and head_dim <= MAX_HEAD_DIM
    assert width >= num_heads * head_dim and num_heads % num_kv_heads == 0
    assert causal or (key_ends is None and not chunked)
    assert biases is None or (biases.dtype == _F32 and biases.is_contiguous() and biases.shape[0] == num_heads)
    assert blocks is None or (causal and not window and key_ends is None and blocks.size % KEY_TILE == 0)
    assert key_ends is None or (key_ends.dtype == _I32 and key_ends.is_contiguous() and key_ends.numel() == rows)
    assert block_tables.dtype == seq_lens.dtype == query_start_loc.dtype == _I32
    assert block_tables.stride(1) == 1 and seq_lens.is_contiguous() and query_start_loc.is_contiguous()
    # numel() and not len(): the latter is Python inside torch, and this runs once a layer.
    assert seq_lens.numel() == num_seqs and query_start_loc.numel() == num_seqs + 1
    block_size = check_cache(k_cache, v_cache, num_kv_heads, head_dim)
    _cpu.attention(
        out.data_ptr(),
        qkv.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        k_cache.stride(0),
        v_cache.stride(0),
        CACHE_DTYPES[k_cache.dtype],
        block_size,
        block_tables.data_ptr(),
        block_tables.stride(0) if num_seqs > 1 else max_blocks,
        seq_lens.data_ptr(),
        query_start_loc.data_ptr(),
        num_seqs,
        num_heads,
        num_kv_heads,
        head_dim,
        scale,
        k_scale,
        v_scale,
        window,
        chunked,
        softcap,
        bias_of(slopes, num_heads),
        0 if biases is None else biases.data_ptr(),
        0 if biases is None else biases.shape[1] // 2,
        bias_of(sinks, num_heads),
        width,
        causal,
        0 if key_ends is None else key_ends.data_ptr(),
        NO_BLOCKS if blocks is None else blocks.numbers,
    )


def check_cache(k_cache: Tensor, v_cache: Tensor, num_kv_heads: int, head_dim: int) -> int:
    """Assert that a layer's cache is what the kernels write to and read. Returns the size of its blocks."""
    # Once a layer: sizes are read once, since each look at a tensor's shape makes a new object.
    _, k_heads, tiles, k_dim, _ = k_cache.shape
    if k_cache.dtype is torch.int8:
        _, v_heads, v_tiles, v_bytes = v_cache.shape
        assert v_tiles == tiles and (v_bytes - TILE_SCALE_BYTES) % (KEY_TILE * KEY_TILE) == 0
        assert k_dim == head_dim + TILE_SCALE_BYTES // KEY_TILE
    else:
        _, v_heads, block_size, v_dim = v_cache.shape
        assert block_size == tiles * KEY_TILE and v_dim % KEY_TILE == 0 and k_dim == head_dim
    assert k_heads == v_heads == num_kv_heads
    assert k_cache.dtype is v_cache.dtype and is_of_blocks(k_cache) and is_of_blocks(v_cache)
    return tiles * KEY_TILE


def is_of_blocks(cache: Tensor) -> bool:
    """Whether each block is contiguous; the blocks themselves may lie apart."""
    return cache.is_contiguous() or cache[0].is_contiguous()


def check_latent(latent: Latent, cache: Tensor) -> int:
    """Assert that the kernels can read and write a latent's cache. Returns the size of its blocks."""
    assert latent.rank % KEY_TILE == latent.rope_dim % KEY_TILE == 0 and is_of_blocks(cache)
    _, rows, width = cache.shape
    if cache.dtype is torch.int8:
        assert width == latent.width * KEY_TILE + TILE_SCALE_BYTES
        return rows * KEY_TILE
    assert width == latent.width and rows % KEY_TILE == 0
    return rows


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
    rows = len(kv)
    assert q_latent.shape == (rows, latent.num_heads * latent.width) and kv.shape == (rows, latent.width)
    assert q.shape == (rows, latent.num_heads * (latent.nope_dim + latent.rope_dim))
    assert q_latent.is_contiguous() and q.is_contiguous() and kv.is_contiguous() and cos_sin.is_contiguous()
    assert q_latent.dtype == q.dtype == kv.dtype == cos_sin.dtype == norm.dtype == _F32
    assert positions.dtype == _I32 and slot_mapping.dtype == _I64 and positions.numel() == slot_mapping.numel() == rows
    assert cos_sin.shape[1] == latent.rope_dim and norm.numel() == latent.rank
    block_size = check_latent(latent, cache)
    _cpu.latent_write(
        q_latent.data_ptr(),
        q.data_ptr(),
        kv.data_ptr(),
        positions.data_ptr(),
        cos_sin.data_ptr(),
        norm.data_ptr(),
        eps,
        cache.data_ptr(),
        cache.stride(0),
        CACHE_DTYPES[cache.dtype],
        block_size,
        slot_mapping.data_ptr(),
        rows,
        latent.num_heads,
        latent.nope_dim,
        latent.rank,
        latent.rope_dim,
    )


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
    num_seqs, max_blocks = block_tables.shape
    rows = len(q_latent)
    assert out.shape == (rows, latent.num_heads * latent.rank)
    assert q_latent.shape == (rows, latent.num_heads * latent.width)
    assert out.dtype == q_latent.dtype == _F32 and out.is_contiguous() and q_latent.is_contiguous()
    assert block_tables.dtype == seq_lens.dtype == query_start_loc.dtype == _I32
    assert block_tables.stride(1) == 1 and seq_lens.is_contiguous() and query_start_loc.is_contiguous()
    assert seq_lens.numel() == num_seqs and query_start_loc.numel() == num_seqs + 1
    block_size = check_latent(latent, cache)
    _cpu.latent_attention(
        out.data_ptr(),
        q_latent.data_ptr(),
        cache.data_ptr(),
        cache.stride(0),
        CACHE_DTYPES[cache.dtype],
        block_size,
        block_tables.data_ptr(),
        block_tables.stride(0) if num_seqs > 1 else max_blocks,
        seq_lens.data_ptr(),
        query_start_loc.data_ptr(),
        num_seqs,
        latent.num_heads,
        latent.rank,
        latent.rope_dim,
        scale,
    )


def forbid(logits: Tensor, rows: Tensor, masks: Tensor) -> None:
    num_masks, num_words = masks.shape
    assert logits.dtype == _F32 and rows.dtype == _I64 and masks.dtype == _I32 and len(rows) == num_masks
    assert logits.is_contiguous() and rows.is_contiguous() and masks.is_contiguous()
    _cpu.forbid(logits.data_ptr(), logits.shape[1], rows.data_ptr(), masks.data_ptr(), num_masks, num_words)


def sample(logits: Tensor, batch: SamplingBatch, out_ids: Tensor, out_flags: Tensor) -> None:
    rows, vocab = logits.shape
    assert logits.dtype == _F32 and logits.is_contiguous() and batch.num_rows == rows
    assert out_ids.dtype == out_flags.dtype == _I32 and len(out_ids) >= rows and len(out_flags) >= rows
    assert out_ids.is_contiguous() and out_flags.is_contiguous()
    penalties, bias, masks = batch.penalties, batch.bias, batch.masks
    _cpu.sample(
        logits.data_ptr(),
        rows,
        vocab,
        out_ids.data_ptr(),
        out_flags.data_ptr(),
        batch.temperature.data_ptr(),
        batch.top_k.data_ptr(),
        batch.top_p.data_ptr(),
        batch.min_p.data_ptr(),
        batch.seeds.data_ptr(),
        batch.positions.data_ptr(),
        (
            batch.repetition.data_ptr(),
            batch.frequency.data_ptr(),
            batch.presence.data_ptr(),
            penalties.offsets.data_ptr(),
            penalties.ids.data_ptr(),
            penalties.counts.data_ptr(),
            penalties.in_prompt.data_ptr(),
        )
        if penalties.active
        else None,
        (bias.offsets.data_ptr(), bias.ids.data_ptr(), bias.values.data_ptr()) if bias.active else None,
        (masks.offsets.data_ptr(), masks.ids.data_ptr()) if masks.active else None,
    )


def logprobs(logits: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, vocab = logits.shape
    assert logits.dtype == _F32 and logits.is_contiguous() and 0 <= k <= vocab
    assert ids.dtype == _I32 and ids.is_contiguous() and len(ids) == rows
    logprob, top_logprobs = torch.empty(rows), torch.empty(rows, k)
    rank, top_ids = torch.empty(rows, dtype=_I32), torch.empty(rows, k, dtype=_I32)
    _cpu.logprobs(
        logits.data_ptr(),
        rows,
        vocab,
        ids.data_ptr(),
        k,
        logprob.data_ptr(),
        rank.data_ptr(),
        top_ids.data_ptr(),
        top_logprobs.data_ptr(),
    )
    return logprob, rank, top_ids, top_logprobs
