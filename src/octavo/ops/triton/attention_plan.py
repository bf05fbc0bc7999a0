"""What the host plans of a step's attention: equal work items for decoding, tiles of queries for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

import triton
from octavo.base.errors import DeviceError
from octavo.ops.flashinfer_prompts import FlashInferPrompts, PromptStep, prompts_of
from octavo.ops.operands import Heads, Latent
from octavo.ops.step import PlannedArrays

#: Keys of one work item of decoding. Smaller fills a GPU with shorter contexts; each costs a partial result.
CHUNK: Final = 256
#: Items of a captured step, at least: contexts of a million tokens together, what a large GPU holds of the cache of an
#: 8B model. They cost 8 bytes each to upload, and their partial results some dozens of megabytes once.
_LEAST_ITEMS: Final = 4096
#: Prompts of a captured step, at most, as far as its tiles go: those that are not used cost a program for each head of
#: keys, which ends at once.
_MOST_PROMPTS: Final = 32
#: Prompts: rows of a tile, keys, warps, stages.
_PREFILL_TILES: Final = {
    (128, 2): (128, 64, 8, 3), (256, 2): (64, 32, 8, 2), (512, 2): (32, 32, 8, 1), (128, 4): (32, 32, 4, 1),
    (256, 4): (32, 32, 4, 1), (512, 4): (16, 16, 4, 1),
}  # fmt: skip
#: Of latents: heads of one program, and rows of a tile of prompts by the size of an element.
LATENT_HEADS: Final = 16
LATENT_ROWS: Final = {2: 32, 4: 16}


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
        heads: Heads | Latent,
        device: torch.device,
        dtype: torch.dtype,
        library: Any = None,
        is_required: bool = False,
    ) -> None:
        """`dtype`: of the activations. `library`: FlashInfer's module, for prompts; `is_required`: and nothing else.

        Raises DeviceError if it is required and lacks kernels for the model, as it does for latents.
        """
        self._num_heads = heads.num_heads
        self._prompts: FlashInferPrompts | None = None
        if isinstance(heads, Latent):
            if is_required:
                raise DeviceError(
                    "--attention-backend flashinfer has no kernels for the latent attention of this model: use auto."
                )
            self._head_block = triton.next_power_of_2(heads.rank)
            self._queries = LATENT_ROWS[dtype.itemsize] // LATENT_HEADS
        else:
            self._prompts = prompts_of(library, heads, device, is_required)
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

    def padded_arrays(
        self,
        seq_lens: np.ndarray,
        query_start_loc: np.ndarray,
        num_decodes: int,
        *,
        num_seqs: int,
        num_prompt_tokens: int = 0,
    ) -> PlannedArrays | None:
        """`arrays` of a shape that depends on the last two numbers alone, for a step of up to `num_seqs` sequences with
        up to `num_prompt_tokens` tokens in those that do not decode; 0: all decode. None: they need more items or tiles
        than there are, or the library computes the prompts, whose plan has no fixed shape."""
        items, starts = _chunks(seq_lens[:num_decodes])
        tiles, num_items, num_tiles = np.zeros((0, 2), np.int32), max(_LEAST_ITEMS, 16 * num_seqs), 0
        if num_prompt_tokens:
            tiles = _tiles(seq_lens, query_start_loc, num_decodes, self._queries)
            num_tiles = num_prompt_tokens // self._queries + min(num_seqs, _MOST_PROMPTS)
            if self._prompts is not None and self._prompts.step(seq_lens, query_start_loc, num_decodes) is not None:
                return None
        if len(items) > num_items or len(tiles) > num_tiles:
            return None
        # What follows the last item is not looked at.
        padded = (
            _filled(items, num_items, 0),
            _filled(starts, num_seqs + 1, starts[-1]),
            _filled(tiles, num_tiles, -1),
        )
        return PlannedArrays(padded, _Numbers(num_seqs, num_items, num_tiles))

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
            prompts=self._prompts, prompt_step=numbers.prompt_step,
        )  # fmt: skip


def _filled(array: np.ndarray, size: int, value: int) -> np.ndarray:
    result = np.full((size, *array.shape[1:]), value, array.dtype)
    result[: len(array)] = array
    return result


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
    return max(1, prefill_tile(head_block, itemsize)[0] // group_rows)


def prefill_tile(head_block: int, itemsize: int) -> tuple[int, int, int, int]:
    return _PREFILL_TILES[max(head_block, 128), itemsize]


def plan_of(shape: Heads | Latent, activations: Tensor, seq_lens: Tensor, query_start_loc: Tensor) -> AttentionPlan:
    """The plan of a call by itself, which waits for the device: leading sequences with one query decode."""
    planner = AttentionPlanner(shape, activations.device, activations.dtype)
    starts = query_start_loc.cpu().numpy()
    is_one = np.diff(starts) == 1
    num_decodes = len(is_one) if is_one.all() else int(np.argmin(is_one))
    arrays = planner.arrays(seq_lens.cpu().numpy(), starts, num_decodes)
    return planner.plan(arrays, [torch.from_numpy(array).to(activations.device) for array in arrays.tensors])
