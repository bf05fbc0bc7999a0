"""Counts of seen tokens that stay on the device, so that a penalised request does not wait for the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from octavo.device.base import Device
from octavo.ops.table import Ops
from octavo.worker.request_states import RequestStates


class CountedSlots:
    """Which row of the device's counts belongs to which slot, and what has been counted in it.

    `of` and `add` take turns, once a step each.
    """

    def __init__(self, ops: Ops, device: Device) -> None:
        assert ops.penalty_counts is not None
        self._device = device
        self._make = ops.penalty_counts
        self._counts: Any = None  # made when the first request comes that is penalised
        self._rows: dict[int, tuple[int, int]] = {}  # slot -> (generation, row)
        self._num_counted: dict[int, int] = {}  # slot -> tokens of its output in the row
        self._free: list[int] = []
        self._step_rows: torch.Tensor | None = None
        self._step_slots: list[int] = []

    def of(self, states: RequestStates, slots: np.ndarray) -> tuple[Any, torch.Tensor | None]:
        """The counts, up to date for `slots` int64 [S], and the row of each int32 [S], -1 for none. Both None where
        no slot is penalised."""
        self._step_rows, self._step_slots = None, []
        self._drop(states)
        rows = np.full(len(slots), -1, np.int32)
        for i, slot in enumerate(slots.tolist() if states.special else ()):
            special = states.special.get(slot)
            if special is not None and special.penalties is not None:
                rows[i] = self._row_of(states, slot)
                self._step_slots.append(slot)
        if not self._step_slots:
            return None, None
        (self._step_rows,) = self._device.upload(rows)
        return self._counts, self._step_rows

    def add(self, ids: torch.Tensor) -> None:
        """Count what has just been sampled for the slots of the last `of`: int32 [S]; ids below 0 are not counted."""
        if self._step_rows is not None:
            self._counts.add(self._step_rows, ids)
            for slot in self._step_slots:
                self._num_counted[slot] += 1

    def _drop(self, states: RequestStates) -> None:
        """Free the rows of slots whose request has gone."""
        for slot in [slot for slot, (generation, _) in self._rows.items() if states.generation[slot] != generation]:
            self._free.append(self._rows.pop(slot)[1])

    def _row_of(self, states: RequestStates, slot: int) -> int:
        output = states.output_tokens(slot)
        known = self._rows.get(slot)
        if known is not None:
            row, num_counted = known[1], self._num_counted[slot]
            if len(output) > num_counted:  # tokens that a grammar dictated
                ids = output[num_counted:].copy()
                self._counts.add(*self._device.upload(np.full(len(ids), row, np.int32), ids))
                self._num_counted[slot] = len(output)
            return row
        if self._counts is None:
            self._counts = self._make(states.vocab_size, self._device.torch_device)
        row = self._free.pop() if self._free else len(self._rows)
        self._rows[slot] = (int(states.generation[slot]), row)
        self._num_counted[slot] = len(output)
        prompt = states.token_ids[slot, : states.num_prompt_tokens[slot]]
        self._counts.reset_row(row, *self._device.upload(prompt.copy(), output.copy()))
        return row
