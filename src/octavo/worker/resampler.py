"""Runs a resampler: the queries of each picture stand behind its rows, and see the keys of these alone.

rows  | r r r r r q q | r r r q q |     of each picture its own, then the queries
keys  | k k k k k . . | k k k . . |     those of the queries lie behind the end
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from octavo.device.base import Device
from octavo.models.resampler import Resampler
from octavo.ops.table import Ops
from octavo.worker.encoder import EncoderRunner


class ResamplerRunner:
    def __init__(self, resampler: Resampler, ops: Ops, device: Device, weights: Mapping[str, Any]) -> None:
        self._spec = resampler.spec
        self._device, self._dtype = device, ops.activation_dtype
        self._queries: torch.Tensor = weights[resampler.queries.name].to(self._dtype)
        self._to_q, self._to_k, self._to_v, self._attend = (
            EncoderRunner(each, ops, device, weights) for each in resampler.programs
        )

    def run(self, rows: torch.Tensor, lens: Sequence[int], places: np.ndarray) -> torch.Tensor:
        """[queries of all pictures, width] of rows [T, width] of pictures of `lens` rows. `places` int32 [T, 2]: their
        lines and columns."""
        width, count = self._spec.width, self._spec.num_queries
        table, index = self._device.upload(sines(int(places.max()) + 1, width // 2), places.astype(np.int64))
        keys = rows + torch.cat((table[index[:, 1]], table[index[:, 0]]), 1).to(self._dtype)
        q = self._to_q.run([count], rows=self._queries)
        k, v = self._to_k.run(lens, rows=keys), self._to_v.run(lens, rows=rows)
        total = len(rows) + count * len(lens)
        ends = np.cumsum(lens) + count * np.arange(1, len(lens) + 1)
        needed = (ends[:, None] - count + np.arange(count)).reshape(-1)
        is_row = np.ones(total, bool)
        is_row[needed] = False
        at_rows, at_queries = self._device.upload(np.flatnonzero(is_row), needed)
        qkv = self._device.zeros((total, 3 * width), self._dtype)
        qkv[at_rows, width : 2 * width] = k
        qkv[at_rows, 2 * width :] = v
        qkv[at_queries, :width] = q.repeat(len(lens), 1)
        all_lens = [length + count for length in lens]
        key_ends = np.repeat(lens, all_lens).astype(np.int32)
        result = self._attend.run(all_lens, rows=qkv, key_ends=key_ends, needed=needed).clone()
        for runner in (self._to_q, self._to_k, self._to_v, self._attend):
            runner.release()
        return result


def sines(count: int, width: int) -> np.ndarray:
    """float32 [count, width]: of each place the sines of angles that fall geometrically, then their cosines."""
    steps = np.arange(width // 2, dtype=np.float32) / np.float32(width / 2)
    angles = np.outer(np.arange(count, dtype=np.float32), 1.0 / np.float32(10000) ** steps).astype(np.float32)
    return np.concatenate((np.sin(angles), np.cos(angles)), 1)
