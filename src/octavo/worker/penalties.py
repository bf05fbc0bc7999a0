"""Counts of seen tokens that stay on the device, so that a penalised request does not wait for the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from octavo.device.base import Device
from octavo.ops.table import Ops
from octavo.worker.request_states import RequestStates, Rows


class CountedSlots:
    """Which row of the device's counts belongs to which slot, and what has been counted in it.

    `of` and `add` take turns, once a step each. What is sampled behind a draft may not be taken: it is counted when
    the host knows. The rows of a draft but the first have counts for this step alone.
    """

    def __init__(self, ops: Ops, device: Device) -> None:
        assert ops.penalty_counts is not None
        self._device = device
        self._make = ops.penalty_counts
        self._counts: Any = None  # made when the first request comes that is penalised
        self._rows: dict[int, tuple[int, int]] = {}  # slot -> (generation, row)
        self._num_counted: dict[int, int] = {}  # slot -> tokens of its output in the row
        self._free: list[int] = []
        self._num_rows = 0  # that were ever used
        self._step_rows: torch.Tensor | None = None  # int32 [S]: where the step's tokens are to be counted, or -1
        self._step_slots: list[int] = []  # those to which they belong

    def of(self, states: RequestStates, rows: Rows) -> tuple[Any, torch.Tensor | None]:
        """The counts, up to date for `rows`, and the row of them that each has, int32 [S], -1 for none. Both None
        where no slot is penalised."""
        self._step_rows, self._step_slots = None, []
        self._drop(states)
        if not states.special:
            return None, None
        count_rows = np.full(len(rows.slots), -1, np.int32)
        slots = rows.slots.tolist()
        plain = range(len(slots)) if rows.plain is None else rows.plain.tolist()
        for row in plain:
            if _is_penalised(states, slots[row]):
                count_rows[row] = self._row_of(states, slots[row])
                self._step_slots.append(slots[row])
        counted = count_rows.copy()
        lent = self._count_drafts(states, rows, count_rows)
        if (count_rows < 0).all():
            return None, None
        (on_device,) = self._device.upload(count_rows)
        (self._step_rows,) = self._device.upload(counted) if rows.drafts else (on_device,)
        self._free += lent  # the device does its work in order: what is written there next comes after this step
        return self._counts, on_device

    def add(self, ids: torch.Tensor) -> None:
        """Count what has just been sampled for the rows of the last `of`: int32 [S]; ids below 0 are not counted."""
        if self._step_rows is not None:
            self._counts.add(self._step_rows, ids)
            for slot in self._step_slots:
                self._num_counted[slot] += 1

    def _count_drafts(self, states: RequestStates, rows: Rows, count_rows: np.ndarray) -> list[int]:
        """Enter the rows of penalised drafts into `count_rows`. Returns those that are used for this step alone."""
        lent: list[int] = []
        for draft in rows.drafts:
            if not _is_penalised(states, draft.slot):
                continue
            count_rows[draft.first_row] = self._row_of(states, draft.slot)
            for i in range(1, len(draft.token_ids) + 1):
                row = self._new_row()
                lent.append(row)
                num_tokens = int(rows.num_tokens[draft.first_row + i])
                self._reset(row, states, draft.slot, states.output_tokens(draft.slot, num_tokens))
                count_rows[draft.first_row + i] = row
        return lent

    def _drop(self, states: RequestStates) -> None:
        """Free the rows of slots whose request has gone."""
        for slot in [slot for slot, (generation, _) in self._rows.items() if states.generation[slot] != generation]:
            self._free.append(self._rows.pop(slot)[1])

    def _row_of(self, states: RequestStates, slot: int) -> int:
        output = states.output_tokens(slot)
        known = self._rows.get(slot)
        if known is not None:
            row, num_counted = known[1], self._num_counted[slot]
            if len(output) > num_counted:  # tokens that a grammar dictated, or that came of a draft
                ids = output[num_counted:].copy()
                self._counts.add(*self._device.upload(np.full(len(ids), row, np.int32), ids))
                self._num_counted[slot] = len(output)
            return row
        row = self._new_row()
        self._rows[slot] = (int(states.generation[slot]), row)
        self._num_counted[slot] = len(output)
        self._reset(row, states, slot, output)
        return row

    def _new_row(self) -> int:
        if self._free:
            return self._free.pop()
        self._num_rows += 1
        return self._num_rows - 1

    def _reset(self, row: int, states: RequestStates, slot: int, output: np.ndarray) -> None:
        if self._counts is None:
            self._counts = self._make(states.vocab_size, self._device.torch_device)
        prompt = states.token_ids[slot, states.num_virtual_tokens[slot] : states.num_prompt_tokens[slot]]
        self._counts.reset_row(row, *self._device.upload(prompt.copy(), output.copy()))


def _is_penalised(states: RequestStates, slot: int) -> bool:
    special = states.special.get(slot)
    return special is not None and special.penalties is not None and not special.is_shaped
