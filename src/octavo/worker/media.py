"""Encoded rows of media: made by the model's tower, kept as long as the scheduler says, put where their tokens are.

A picture is one or several sequences of patches, of which all rows see each other. Their keys and values are of no use
behind a layer, so all layers write them to the same place.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from octavo.base.media import MediaItem, MediaTensor
from octavo.device.base import Device
from octavo.models.tower import Tower
from octavo.ops.step import attention_planners
from octavo.ops.table import Ops, cache_shapes
from octavo.wire.step import MediaPlace, SchedulerOutput
from octavo.worker.input_batch import HostBatch, InputBatch

#: Of the place for keys and values.
_BLOCK_SIZE: Final = 16


class MediaEncoder:
    """Owns the rows. `most_patches`: that are encoded at once, unless a single sequence has more."""

    def __init__(self, tower: Tower, ops: Ops, device: Device, most_patches: int) -> None:
        self._tower = tower
        self._ops = ops
        self._device = device
        self._most_patches = most_patches
        self._rows: dict[bytes, torch.Tensor] = {}  # by digest: [rows, width] of the activations' type
        self._caches: list[tuple[torch.Tensor, ...]] = []
        self._num_blocks = 0
        shapes = tuple(dict.fromkeys(cache.heads for cache in tower.program.caches))
        self._planner = attention_planners(ops.attention_planner, shapes, device.torch_device, ops.activation_dtype)

    def apply(self, plan: SchedulerOutput) -> None:
        """Drop and encode what a step says."""
        for digest in plan.media_dropped:
            self._rows.pop(digest, None)
        for item in plan.media_encoded:
            self._rows[item.digest] = self._encoded(item)

    def place(self, batch: InputBatch, host: HostBatch, places: dict[int, list[MediaPlace]]) -> None:
        """Let a step read the rows of the placeholders among its tokens. `places`: of each slot; those whose tokens are
        all computed are taken out."""
        indices: list[np.ndarray] = []
        parts: list[torch.Tensor] = []
        for at, slot in enumerate(host.slots.tolist()):
            if slot not in places:
                continue
            base, end = int(host.query_start_loc[at]), int(host.seq_lens[at])
            start = end - int(host.num_scheduled[at])
            if start >= sum(places[slot][-1].spans[-1]):
                del places[slot]
                continue
            for place in places[slot]:
                row = 0
                for first, length in place.spans:
                    low, high = max(first, start), min(first + length, end)
                    if low < high:
                        indices.append(np.arange(base + low - start, base + high - start, dtype=np.int64))
                        parts.append(self._rows[place.digest][row + low - first : row + high - first])
                    row += length
        if parts:
            (batch.replaced_index,) = self._device.upload(np.concatenate(indices))
            batch.replaced_rows = torch.cat(parts)

    def _encoded(self, item: MediaItem) -> torch.Tensor:
        if item.kind == "embeds":
            (rows,) = self._device.upload(array(item.tensors["rows"]).astype(np.float32))
            return rows.to(self._ops.activation_dtype)
        patches, positions = array(item.tensors["patches"]), array(item.tensors["positions"])
        levels = array(item.tensors["levels"])
        num_sequences, length, _ = patches.shape
        at_once = max(1, self._most_patches // length)
        rows = torch.cat(
            [
                self._encode(patches[first : first + at_once], positions[first : first + at_once], levels)
                for first in range(0, num_sequences, at_once)
            ]
        )
        assert len(rows) == item.rows, f"a picture of {item.rows} rows was encoded to {len(rows)}"
        return rows

    def _encode(self, patches: np.ndarray, positions: np.ndarray, levels: np.ndarray) -> torch.Tensor:
        """`patches` uint8 [S, P, values], the same of each channel after the other; `positions` int32 [S, P];
        `levels` float32 [3, 256]."""
        num_sequences, _, width = patches.shape
        values = np.take(levels, patches + np.repeat(np.arange(3, dtype=np.int32) * 256, width // 3))
        if has_class := self._tower.spec.has_class_token:
            values = np.pad(values, ((0, 0), (1, 0), (0, 0)))
            positions = np.pad(positions + 1, ((0, 0), (1, 0)))
        length = values.shape[1]
        num_rows = num_sequences * length
        blocks = -(-length // _BLOCK_SIZE)
        self._reserve(1 + num_sequences * blocks)
        tables = 1 + np.arange(num_sequences * blocks, dtype=np.int32).reshape(1, num_sequences, blocks)
        slots = tables.astype(np.int64)[..., None] * _BLOCK_SIZE + np.arange(_BLOCK_SIZE)
        seq_lens = np.full(num_sequences, length, np.int32)
        starts = np.arange(0, num_rows + 1, length, dtype=np.int32)
        arrays = self._planner.arrays(seq_lens, starts, 0)
        kept = np.arange(num_rows, dtype=np.int64).reshape(num_sequences, length)[:, 1:].reshape(-1)
        token_ids, places, slot_mapping, query_start_loc, lens, block_tables, rows, needed, *others = (
            self._device.upload(
                np.zeros(num_rows, np.int32),
                np.ascontiguousarray(positions.reshape(-1), np.int32),
                np.ascontiguousarray(slots.reshape(1, num_sequences, -1)[..., :length].reshape(1, -1)),
                starts,
                seq_lens,
                tables,
                np.ascontiguousarray(values.reshape(num_rows, width)),
                kept,
                *arrays.tensors,
            )
        )
        step = InputBatch(
            token_ids, places, slot_mapping, query_start_loc, lens, block_tables, self._planner.plan(arrays, others)
        )
        step.input_rows = rows.to(self._ops.activation_dtype)
        drops_class = has_class and not self._tower.spec.keeps_class
        return self._tower.run(step, self._caches, needed if drops_class else None).clone()

    def _reserve(self, num_blocks: int) -> None:
        """Room for the keys and values of so many blocks, the null block included."""
        if num_blocks <= self._num_blocks:
            return
        self._num_blocks = num_blocks
        made: dict[object, tuple[torch.Tensor, ...]] = {}
        for cache in self._tower.program.caches:
            if cache.heads not in made:
                shapes = cache_shapes(self._ops, cache.heads, num_blocks, _BLOCK_SIZE)
                made[cache.heads] = tuple(self._device.zeros(shape, self._ops.activation_dtype) for shape in shapes)
        self._caches = [made[cache.heads] for cache in self._tower.program.caches]


def array(tensor: MediaTensor) -> np.ndarray:
    """A view, not to be written to."""
    return np.frombuffer(tensor.data, np.dtype(tensor.dtype).newbyteorder("<")).reshape(tensor.shape)
