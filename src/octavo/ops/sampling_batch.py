"""What `Ops.sample` is told about each row, as flat arrays that a kernel can read without Python objects.

All tensors are contiguous, on the CPU, and belong to the batch: allocate once, then overwrite rows each step.
The three sparse parts (penalties, bias, masks) are in CSR form: row i owns entries offsets[i] .. offsets[i + 1].
A part that no row needs is left out with its flag, so that a plain greedy batch costs one pass over the logits.

Random numbers are a function of (seeds[i], positions[i]) alone. Two samples of one prompt need different seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


def _ints(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int32)


@dataclass(slots=True)
class SparseRows:
    """CSR over the rows: `ids` are token ids, unique within a row. `active`: some row has an entry."""

    offsets: Tensor  # int32 [capacity + 1]
    ids: Tensor  # int32 [entries]
    active: bool = False

    def set(self, offsets: np.ndarray, ids: np.ndarray) -> None:
        """Take over the entries of all rows: offsets int32 [num_rows + 1], ids int32 [offsets[-1]]."""
        self.offsets[: len(offsets)] = torch.from_numpy(offsets)
        self.ids = torch.from_numpy(np.ascontiguousarray(ids, np.int32))
        self.active = len(ids) > 0


@dataclass(slots=True)
class PenaltyRows(SparseRows):
    """The tokens that a row has seen, for the three penalties."""

    counts: Tensor = field(default_factory=lambda: _ints(0))  # int32 [entries]: times in the output
    in_prompt: Tensor = field(default_factory=lambda: _ints(0))  # int32 [entries]: 1 if in the prompt, else 0

    def set_counts(self, offsets: np.ndarray, ids: np.ndarray, counts: np.ndarray, in_prompt: np.ndarray) -> None:
        """`set`, with counts and in_prompt int32 [offsets[-1]]."""
        self.set(offsets, ids)
        self.counts = torch.from_numpy(np.ascontiguousarray(counts, np.int32))
        self.in_prompt = torch.from_numpy(np.ascontiguousarray(in_prompt, np.int32))


@dataclass(slots=True)
class BiasRows(SparseRows):
    """Amounts to add to logits."""

    values: Tensor = field(default_factory=lambda: torch.zeros(0))  # float32 [entries]

    def set_values(self, offsets: np.ndarray, ids: np.ndarray, values: np.ndarray) -> None:
        """`set`, with values float32 [offsets[-1]]."""
        self.set(offsets, ids)
        self.values = torch.from_numpy(np.ascontiguousarray(values, np.float32))


@dataclass(slots=True)
class SamplingBatch:
    """Parameters of rows 0 .. num_rows - 1. Values that switch a step off: see `reset`.

    The order of the steps on a row: bias, masks, repetition / frequency / presence penalty; then, if the
    temperature is 0, the best token (ties: the lowest id); else division by the temperature, min_p, top_k, top_p
    and a draw from what is left.
    """

    num_rows: int
    temperature: Tensor  # float32 [capacity]; 0: greedy
    top_p: Tensor  # float32 [capacity]; 1: off
    min_p: Tensor  # float32 [capacity]; 0: off
    top_k: Tensor  # int32 [capacity]; <= 0: off
    presence: Tensor  # float32 [capacity]; 0: off
    frequency: Tensor  # float32 [capacity]; 0: off
    repetition: Tensor  # float32 [capacity]; 1: off
    seeds: Tensor  # int64 [capacity], the bits of an unsigned 64-bit seed
    positions: Tensor  # int64 [capacity], index of the output token to draw
    penalties: PenaltyRows
    bias: BiasRows
    masks: SparseRows  # ids set to -inf

    @classmethod
    def allocate(cls, capacity: int) -> SamplingBatch:
        """Room for `capacity` rows, all greedy, nothing sparse."""

        def full(value: float) -> Tensor:
            return torch.full((capacity,), value, dtype=torch.float32)

        def longs() -> Tensor:
            return torch.zeros(capacity, dtype=torch.int64)

        offsets = capacity + 1
        return cls(
            num_rows=0,
            temperature=full(0.0),
            top_p=full(1.0),
            min_p=full(0.0),
            top_k=_ints(capacity),
            presence=full(0.0),
            frequency=full(0.0),
            repetition=full(1.0),
            seeds=longs(),
            positions=longs(),
            penalties=PenaltyRows(_ints(offsets), _ints(0)),
            bias=BiasRows(_ints(offsets), _ints(0)),
            masks=SparseRows(_ints(offsets), _ints(0)),
        )

    def begin(self, num_rows: int) -> None:
        """For a caller that goes on to write every tensor's rows 0 .. num_rows - 1: nothing sparse in them so far."""
        assert num_rows <= self.temperature.numel(), "more rows than allocated"
        self.num_rows = num_rows
        self.penalties.active = self.bias.active = self.masks.active = False

    def reset(self, num_rows: int) -> None:
        """Make rows 0 .. num_rows - 1 greedy, without penalties, bias or masks."""
        self.begin(num_rows)
        for tensor in (self.temperature, self.min_p, self.presence, self.frequency, self.top_k):
            tensor.numpy()[:num_rows] = 0
        for tensor in (self.top_p, self.repetition):
            tensor.numpy()[:num_rows] = 1


def csr_offsets(lengths: Sequence[int]) -> np.ndarray:
    """int32 [len(lengths) + 1]: where each row's entries begin, and the end."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
