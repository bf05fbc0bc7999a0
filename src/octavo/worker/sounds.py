"""Sounds of requests: frames -> rows of the language model, by a tower that hears.

A sound is one or several pieces, each a sequence of the encoder. Rows are of their sound alone, whatever is encoded
beside it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import torch

from octavo.base.media import MediaItem
from octavo.device.base import Device
from octavo.models.tower import TowerDefinition
from octavo.ops.table import Ops
from octavo.worker.arrays import array, three_by_three
from octavo.worker.encoder import EncoderRunner, Pieces, buffer_bytes, progress


class SoundEncoder:
    """`most_rows`: of the encoder that are computed at once, unless a single piece has more."""

    def __init__(
        self, tower: TowerDefinition, weights: Mapping[str, Any], ops: Ops, device: Device, most_rows: int
    ) -> None:
        self._merge = tower.spec.merge
        first, layers, head = (stage.program for stage in tower.stages)
        self._first, self._head = (EncoderRunner(each, ops, device, weights) for each in (first, head))
        self._layers = EncoderRunner(layers, ops, device, weights, cut="all layers")
        self._dtype = ops.activation_dtype
        self._device = device
        self._most_rows = most_rows

    def encode(self, item: MediaItem) -> Generator[int, None, torch.Tensor]:
        """[rows, width] of the activations' type. Stands still between pieces, and yields the frames it has come to.

        Of the item `frames` are float32 [frames of all pieces, channels], and `pieces` int32 [pieces, 3]: the frames of
        each, how many of its rows are the sound's own (which all of its rows see), and how many are kept. Behind these
        stand rows of zeros up to a multiple of the rows that become one.
        """
        frames, pieces = array(item.tensors["frames"]), array(item.tensors["pieces"])
        ends = np.cumsum(pieces[:, 0])
        made: list[torch.Tensor] = []
        first = 0
        while first < len(pieces):
            rows = np.cumsum(-(-pieces[first:, 0] // 2))
            end = first + max(1, int(np.searchsorted(rows, self._most_rows, side="right")))
            start = ends[first] - pieces[first, 0]
            steps = self._encoded(frames[start : ends[end - 1]], pieces[first:end])
            made.append((yield from progress(steps, int(start), int(ends[end - 1]), self._layers.num_pieces)))
            first = end
            if first < len(pieces):
                yield int(ends[first - 1])
        self.release()
        return torch.cat(made)

    def release(self) -> None:
        """Give back the memory of buffers."""
        for runner in (self._first, self._layers, self._head):
            runner.release()

    def _encoded(self, frames: np.ndarray, pieces: np.ndarray) -> Pieces[torch.Tensor]:
        lens = pieces[:, 0].tolist()
        (uploaded,) = self._device.upload(frames.copy())  # torch wants to be able to write
        parts = torch.split(uploaded.to(self._dtype), lens)
        convolved = self._first.run(lens, rows=torch.cat([three_by_three(part, step=1) for part in parts]))
        taps = [three_by_three(part, step=2) for part in torch.split(convolved, lens)]
        row_lens = list(map(len, taps))
        encoded = yield from self._layers.steps(
            row_lens, rows=torch.cat(taps), key_ends=np.repeat(pieces[:, 1], row_lens)
        )
        kept = [
            torch.nn.functional.pad(rows[:count], (0, 0, 0, -count % self._merge))
            for rows, count in zip(torch.split(encoded, row_lens), pieces[:, 2].tolist(), strict=True)
        ]
        return self._head.run(list(map(len, kept)), rows=torch.cat(kept)).clone()


def sound_bytes(tower: TowerDefinition, ops: Ops, num_rows: int) -> int:
    """What it takes to encode so many rows of the encoder at once, or a piece of a sound if that has more."""
    rows = max(num_rows, tower.spec.num_positions)
    first, layers, head = (stage.program for stage in tower.stages)
    sizes = ((first, 2 * rows), (layers, rows), (head, rows))
    buffers = sum(buffer_bytes(program, size, ops.activation_dtype) for program, size in sizes)
    assert tower.spec.sound is not None
    taps = 2 * rows * 3 * (tower.spec.sound.channels + tower.spec.hidden_size) * ops.activation_dtype.itemsize
    given = rows * tower.spec.hidden_size * ops.activation_dtype.itemsize  # by the first piece of the layers
    return buffers + taps + given + EncoderRunner.scratch_bytes(layers, ops, rows, 1)
