"""What `Ops.sample` is told about each row, as flat arrays that a kernel can read without Python objects.

All tensors are contiguous. The host's batch is allocated once and rows are overwritten each step; the operations get
one whose tensors are on their device, which on a CPU are the same.
The three sparse parts (penalties, bias, masks) are in CSR form: row i owns entries offsets[i] .. offsets[i + 1].
A part that no row needs is left out with its flag, so that a plain greedy batch costs one pass over the logits.

Random numbers are a function of (seeds[i], positions[i]) alone. Two samples of one prompt need different seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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

    def arrays(self, num_rows: int) -> list[np.ndarray]:
        """The tensors of the first rows, on the host."""
        return [self.offsets[: num_rows + 1].numpy(), self.ids.numpy()]

    def take(self, tensors: Sequence[Tensor]) -> None:
        """The other way: tensors as `arrays` gives them, with an entry at least."""
        self.offsets, self.ids = tensors
        self.active = True


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

    def arrays(self, num_rows: int) -> list[np.ndarray]:
        return [self.offsets[: num_rows + 1].numpy(), self.ids.numpy(), self.counts.numpy(), self.in_prompt.numpy()]

    def take(self, tensors: Sequence[Tensor]) -> None:
        self.offsets, self.ids, self.counts, self.in_prompt = tensors
        self.active = True


@dataclass(slots=True)
class BiasRows(SparseRows):
    """Amounts to add to logits."""

    values: Tensor = field(default_factory=lambda: torch.zeros(0))  # float32 [entries]

    def set_values(self, offsets: np.ndarray, ids: np.ndarray, values: np.ndarray) -> None:
        """`set`, with values float32 [offsets[-1]]."""
        self.set(offsets, ids)
        self.values = torch.from_numpy(np.ascontiguousarray(values, np.float32))

    def arrays(self, num_rows: int) -> list[np.ndarray]:
        return [self.offsets[: num_rows + 1].numpy(), self.ids.numpy(), self.values.numpy()]

    def take(self, tensors: Sequence[Tensor]) -> None:
        self.offsets, self.ids, self.values = tensors
        self.active = True


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
    has_filters: bool = True  # some row may have min_p, top_k or top_p
    #: Instead of `penalties`: counts that stay on the device, and the row of them that each row has, int32, or -1.
    counts: Any = None
    count_rows: Tensor | None = None

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
        self.num_rows = num_rows
        self.penalties.active = self.bias.active = self.masks.active = False
        self.counts = self.count_rows = None

    def parameters(self) -> list[np.ndarray]:
        """What a row has one number of, but for its position: rows 0 .. num_rows - 1, on the host."""
        return [getattr(self, name)[: self.num_rows].numpy() for name in _PARAMETERS]

    def set_parameters(self, tensors: Sequence[Tensor]) -> None:
        """The other way: tensors as `parameters` gives them."""
        for name, tensor in zip(_PARAMETERS, tensors, strict=True):
            setattr(self, name, tensor)

    def reset(self, num_rows: int) -> None:
        """Make rows 0 .. num_rows - 1 greedy, without penalties, bias or masks."""
        assert num_rows <= self.temperature.numel(), "more rows than allocated"
        self.begin(num_rows)
        for tensor in (self.temperature, self.min_p, self.presence, self.frequency, self.top_k):
            tensor.numpy()[:num_rows] = 0
        for tensor in (self.top_p, self.repetition):
            tensor.numpy()[:num_rows] = 1


_PARAMETERS = ("temperature", "top_p", "min_p", "top_k", "presence", "frequency", "repetition", "seeds")


def csr_offsets(lengths: Sequence[int]) -> np.ndarray:
    """int32 [len(lengths) + 1]: where each row's entries begin, and the end."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
