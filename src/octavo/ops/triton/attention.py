"""Paged attention: what the host plans for a step, and the launches.

A step's sequences that decode, one query each, are computed by one kernel, all others by another, so that a prompt's
bits do not depend on how it was cut into steps. Decoding splits each context into chunks of a fixed number of keys: one
long sequence keeps the whole GPU busy, and the result is the same whatever else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

import triton
from octavo.ops.flashinfer_prompts import FlashInferPrompts, PromptStep, prompts_of
from octavo.ops.program import Heads
from octavo.ops.step import PlannedArrays
from octavo.ops.triton.attention_kernels import combine_kernel, decode_kernel, prefill_kernel
from octavo.ops.triton.rope import kv_cache_shapes
from octavo.ops.triton.variants import TYPE_NAMES, Variant

__all__ = ["CHUNK", "AttentionPlanner", "attention", "kv_cache_shapes", "variants"]

#: Keys of one work item of decoding. Smaller fills a GPU with shorter contexts; each costs a partial result.
CHUNK: Final = 256
#: Items of a captured step, at least: contexts of a million tokens together, what a large GPU holds of the cache of an
#: 8B model. They cost 8 bytes each to upload, and their partial results some dozens of megabytes once.
_LEAST_ITEMS: Final = 4096
#: Chunks that the combining kernel reads at once.
_COMBINED: Final = 16
_LOG2E: Final = math.log2(math.e)
#: Chosen by what the compiler says about registers and shared memory, by the width of a head (rounded up) and the size
#: of an element. Decoding: keys of a tile, warps, stages, and programs that fit a processor at once. Of five stages two
#: are in shared memory beside the one in use, for what a key's address depends on is loaded in a stage of its own.
_DECODE_TILES: Final = {
    (64, 2): (64, 4, 5, 5), (128, 2): (64, 4, 5, 3), (256, 2): (64, 4, 4, 2), (64, 4): (32, 4, 2, 4),
    (128, 4): (32, 4, 2, 2), (256, 4): (16, 4, 2, 1),
}  # fmt: skip
#: Prompts: rows of a tile, keys, warps, stages.
_PREFILL_TILES: Final = {(128, 2): (128, 64, 8, 3), (256, 2): (64, 32, 8, 2), (128, 4): (32, 32, 4, 1)}
_INTERPRETED_PROCESSORS: Final = 4


@dataclass(slots=True)
class AttentionPlan:
    """A step's work items on the device. The tensors belong to the step, the scratch to the planner."""

    num_decodes: int  # sequences, with padding
    num_items: int  # of decoding, at most
    items: Tensor  # int32 [., 2]: sequence, chunk
    starts: Tensor  # int32 [num_decodes + 1]: the first item of each sequence, and the end
    num_tiles: int
    tiles: Tensor  # int32 [num_tiles, 2]: sequence, tile of its queries
    partial: Tensor  # float32 [items, Hq, BLOCK_D]
    partial_stats: Tensor  # float32 [items, Hq, 2]: maximum, sum
    prompts: FlashInferPrompts | None = None  # who computes `prompt_step` instead of the tiles
    prompt_step: PromptStep | None = None


@dataclass(slots=True)
class _Numbers:
    num_decodes: int
    num_items: int
    num_tiles: int
    prompt_step: PromptStep | None = None


class AttentionPlanner:
    """Turns a step's lengths into work items. One a model: its scratch is shared by the layers and the steps."""

    def __init__(
        self,
        heads: Heads,
        device: torch.device,
        dtype: torch.dtype,
        library: Any = None,
        is_required: bool = False,
    ) -> None:
        """`dtype`: of the activations. `library`: FlashInfer's module, for prompts; `is_required`: and nothing else.

        Raises DeviceError if it is required and lacks kernels for the model.
        """
        self._prompts = prompts_of(library, heads, device, is_required)
        self._num_heads = heads.num_heads
        self._head_block = triton.next_power_of_2(heads.head_dim)
        self._queries = _queries_of_tile(heads.num_heads // heads.num_kv_heads, self._head_block, dtype.itemsize)
        self._device = device
        # All but the last are kept for graphs that were captured; together they take less than the last.
        self._scratch: list[tuple[Tensor, Tensor]] = []

    def arrays(self, seq_lens: np.ndarray, query_start_loc: np.ndarray, num_decodes: int) -> PlannedArrays:
        """seq_lens int32 [B]; query_start_loc int32 [B + 1]; the first `num_decodes` sequences have one query each."""
        items, starts = _chunks(seq_lens[:num_decodes])
        tiles = _tiles(seq_lens, query_start_loc, num_decodes, self._queries)
        step = None if self._prompts is None else self._prompts.step(seq_lens, query_start_loc, num_decodes)
        return PlannedArrays((items, starts, tiles), _Numbers(num_decodes, len(items), len(tiles), step))

    def padded_arrays(self, seq_lens: np.ndarray, size: int) -> PlannedArrays | None:
        """For a step of `size` sequences that all decode, of which the last may be missing: arrays of a shape that
        depends on `size` alone. None: the contexts need more items than there are."""
        items, starts = _chunks(seq_lens)
        capacity = max(_LEAST_ITEMS, 16 * size)
        if len(items) > capacity:
            return None
        padded = np.zeros((capacity, 2), np.int32)
        padded[: len(items)] = items
        starts = np.pad(starts, (0, size - len(seq_lens)), mode="edge")
        return PlannedArrays((padded, starts, np.zeros((0, 2), np.int32)), _Numbers(size, capacity, 0))

    def plan(self, arrays: PlannedArrays, tensors: Sequence[Tensor]) -> AttentionPlan:
        """`tensors`: those of `arrays` on the device."""
        numbers: _Numbers = arrays.numbers
        items, starts, tiles = tensors
        size = len(self._scratch[-1][0]) if self._scratch else 0
        if not size or size < numbers.num_items:
            # By doubling: contexts grow by single items, and what is too small is kept.
            count = max(numbers.num_items, 2 * size, 64)
            self._scratch.append(
                (
                    torch.empty(count, self._num_heads, self._head_block, device=self._device),
                    torch.empty(count, self._num_heads, 2, device=self._device),
                )
            )
        return AttentionPlan(
            numbers.num_decodes, numbers.num_items, items, starts, numbers.num_tiles, tiles, *self._scratch[-1],
            self._prompts, numbers.prompt_step,
        )  # fmt: skip


def _chunks(seq_lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """items int32 [., 2] and starts int32 [B + 1] of sequences that decode."""
    counts = -(-seq_lens.astype(np.int64) // CHUNK)
    starts = np.zeros(len(seq_lens) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    items = np.empty((int(starts[-1]), 2), np.int32)
    items[:, 0] = np.repeat(np.arange(len(seq_lens)), counts)
    items[:, 1] = np.arange(len(items)) - np.repeat(starts[:-1], counts)
    return items, starts


def _tiles(seq_lens: np.ndarray, query_start_loc: np.ndarray, first: int, queries: int) -> np.ndarray:
    """int32 [., 2]: tiles of the queries of sequences from `first` on, those with the most keys first."""
    num_queries = np.diff(query_start_loc)[first:].astype(np.int64)
    counts = -(-num_queries // queries)
    seqs = np.repeat(np.arange(first, first + len(counts)), counts)
    tiles = np.arange(len(seqs)) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets = (seq_lens[first:].astype(np.int64) - num_queries)[seqs - first]
    order = np.argsort(-(offsets + tiles * queries), kind="stable")
    return np.stack([seqs, tiles], axis=1)[order].astype(np.int32)


def _queries_of_tile(group: int, head_block: int, itemsize: int) -> int:
    group_rows: int = triton.next_power_of_2(group)
    return max(1, _prefill_tile(head_block, itemsize)[0] // group_rows)


def _prefill_tile(head_block: int, itemsize: int) -> tuple[int, int, int, int]:
    return _PREFILL_TILES[(max(head_block, 128), itemsize) if itemsize == 2 else (128, 4)]


@cache
def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


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
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    slopes: Tensor | None = None,
    plan: AttentionPlan | None = None,
) -> None:
    """`reference.attention`, on the cache of `rope`. Without a plan one is made, which waits for the device."""
    if plan is None:
        plan = _plan_of(qkv, seq_lens, query_start_loc, num_heads, num_kv_heads, head_dim)
    block_d = triton.next_power_of_2(head_dim)
    group_rows = triton.next_power_of_2(num_heads // num_kv_heads)
    itemsize = qkv.dtype.itemsize
    # Capped scores go through exp, others straight to base 2.
    scores_scale = scale * k_scale * (1.0 if softcap else _LOG2E)
    precision = "ieee" if itemsize == 4 else "tf32"
    common: dict[str, Any] = {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "D": head_dim,
        "BLOCK_D": block_d,
        "BLOCK_SIZE": k_cache.shape[2],
        "CAPPED": softcap > 0,
        "SLOPED": slopes is not None,
        "PRECISION": precision,
    }
    if plan.num_decodes:
        block_n, num_warps, num_stages, at_once = _DECODE_TILES[max(64, block_d), itemsize]
        at_once *= _num_processors(qkv.device)  # more programs would only wait
        decode_kernel[(min(at_once, plan.num_items * num_kv_heads),)](
            out,
            plan.partial,
            plan.partial_stats,
            qkv,
            k_cache,
            v_cache,
            block_tables,
            block_tables.stride(0),
            seq_lens,
            plan.items,
            plan.starts,
            plan.num_decodes,
            slopes,
            k_cache.stride(0),
            scores_scale,
            softcap,
            v_scale,
            window,
            **common,
            BLOCK_M=max(16, group_rows),
            BLOCK_N=block_n,
            CHUNK=CHUNK,
            num_warps=num_warps,
            num_stages=num_stages,
        )
        combine_kernel[(plan.num_decodes, num_heads)](
            out,
            plan.partial,
            plan.partial_stats,
            seq_lens,
            plan.starts,
            v_scale,
            NUM_HEADS=num_heads,
            D=head_dim,
            BLOCK_D=block_d,
            CHUNK=CHUNK,
            BLOCK_C=_COMBINED,
        )
    is_plain = k_scale == v_scale == 1.0 and slopes is None
    if plan.prompts is not None and plan.prompt_step is not None and is_plain:
        step = (block_tables, seq_lens, scale, window, softcap)
        if plan.prompts.run(plan.prompt_step, out, qkv, k_cache, v_cache, *step):
            return
    if plan.num_tiles:
        block_m, block_n, num_warps, num_stages = _prefill_tile(block_d, itemsize)
        prefill_kernel[(plan.num_tiles, num_kv_heads)](
            out,
            qkv,
            k_cache,
            v_cache,
            block_tables,
            block_tables.stride(0),
            seq_lens,
            query_start_loc,
            plan.tiles,
            slopes,
            k_cache.stride(0),
            scores_scale,
            softcap,
            v_scale,
            window,
            **common,
            BLOCK_M=max(block_m, group_rows),
            BLOCK_N=block_n,
            GROUP_ROWS=group_rows,
            WINDOWED=window > 0,
            num_warps=num_warps,
            num_stages=num_stages,
        )


def _plan_of(
    qkv: Tensor, seq_lens: Tensor, query_start_loc: Tensor, num_heads: int, num_kv_heads: int, head_dim: int
) -> AttentionPlan:
    """The plan of a call by itself: leading sequences with one query decode."""
    heads = Heads(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    planner = AttentionPlanner(heads, qkv.device, qkv.dtype)
    starts = query_start_loc.cpu().numpy()
    is_one = np.diff(starts) == 1
    num_decodes = len(is_one) if is_one.all() else int(np.argmin(is_one))
    arrays = planner.arrays(seq_lens.cpu().numpy(), starts, num_decodes)
    return planner.plan(arrays, [torch.from_numpy(array).to(qkv.device) for array in arrays.tensors])


def variants() -> list[Variant]:
    found = []
    for heads, kv_heads, head_dim, kv_dtype, capped, sloped in (
        (16, 8, 128, torch.bfloat16, False, False),
        (32, 8, 128, torch.bfloat16, False, False),
        (32, 8, 128, torch.float8_e4m3fn, False, False),
        (9, 3, 64, torch.bfloat16, False, False),
        (8, 4, 256, torch.bfloat16, True, False),
        (32, 32, 128, torch.bfloat16, False, True),
    ):
        kinds = f"{', capped' if capped else ''}{', sloped' if sloped else ''}"
        name = f"{heads}/{kv_heads} x {head_dim}, {TYPE_NAMES[kv_dtype]}{kinds}"
        pointers = dict.fromkeys(("out", "qkv"), "*bf16") | ({"slopes": "*fp32"} if sloped else {})
        pointers |= dict.fromkeys(("k_cache", "v_cache"), f"*{TYPE_NAMES[kv_dtype]}")
        pointers |= dict.fromkeys(("block_tables", "seq_lens"), "*i32")
        numbers = {"table_stride": "i32", "block_stride": "i32", "scale": "fp32", "cap": "fp32", "v_scale": "fp32"}
        numbers["window"] = "i32"
        constexprs: dict[str, Any] = {
            "NUM_HEADS": heads, "NUM_KV_HEADS": kv_heads, "D": head_dim, "BLOCK_D": head_dim, "BLOCK_SIZE": 16,
            "CAPPED": capped, "SLOPED": sloped, "PRECISION": "tf32",
        }  # fmt: skip
        if not sloped:
            constexprs["slopes"] = None
        minimum = 89 if kv_dtype == torch.float8_e4m3fn else 80
        block_n, num_warps, num_stages, _ = _DECODE_TILES[head_dim, 2]
        scratch = dict.fromkeys(("partial", "partial_stats"), "*fp32")
        own = {"items": "*i32", "starts": "*i32"}
        found.append(
            Variant(
                name=f"decode {name}",
                kernel=decode_kernel,
                signature={**pointers, **scratch, **own, **numbers, "num_seqs": "i32"},
                constexprs={**constexprs, "BLOCK_M": 16, "BLOCK_N": block_n, "CHUNK": CHUNK},
                num_warps=num_warps,
                num_stages=num_stages,
                divisible=frozenset({*pointers, *scratch, *own, "block_stride"}),
                min_capability=minimum,
            )
        )
        block_m, block_n, num_warps, num_stages = _prefill_tile(head_dim, 2)
        own = {"query_start_loc": "*i32", "tiles": "*i32"}
        found += [
            Variant(
                name=f"prefill {name}{', window' if windowed else ''}",
                kernel=prefill_kernel,
                signature={**pointers, **own, **numbers},
                constexprs={
                    **constexprs,
                    "BLOCK_M": block_m,
                    "BLOCK_N": block_n,
                    "WINDOWED": windowed,
                    "GROUP_ROWS": triton.next_power_of_2(heads // kv_heads),
                },
                num_warps=num_warps,
                num_stages=num_stages,
                divisible=frozenset({*pointers, *own, "block_stride"}),
                min_capability=minimum,
                max_spill_bytes=16 if windowed else 0,  # on sm_80, outside the inner loop
            )
            for windowed in (False, True)
        ]
    pointers = {"out": "*bf16", "partial": "*fp32", "partial_stats": "*fp32", "seq_lens": "*i32", "starts": "*i32"}
    found.append(
        Variant(
            name="combine 32 x 128",
            kernel=combine_kernel,
            signature={**pointers, "v_scale": "fp32"},
            constexprs={"NUM_HEADS": 32, "D": 128, "BLOCK_D": 128, "CHUNK": CHUNK, "BLOCK_C": _COMBINED},
            divisible=frozenset(pointers),
        )
    )
    return found
