"""Rows whose samplers the device does not know: brought to the host, shaped there, and put back to be drawn from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from octavo.device.base import Device
from octavo.ops.reference_sampling import adjusted_logits
from octavo.ops.samplers import ShapedRow, dry_penalties, shaped
from octavo.ops.sampling_batch import SamplingBatch
from octavo.worker.request_states import RequestStates, Rows
from octavo.worker.sparse_parts import fill_bias, fill_masks, fill_penalties


@dataclass(slots=True)
class Followed:
    """A row of Mirostat's, until its token is known."""

    row: int
    slot: int
    generation: int
    shaped: ShapedRow


@dataclass(slots=True)
class ShapedRows:
    """The rows of a step whose samplers follow what is drawn from them."""

    states: RequestStates
    rows: list[Followed]

    def follow(self, ids: np.ndarray, bad_rows: np.ndarray) -> dict[int, float]:
        """The samplers' states behind the tokens `ids` int32 [S], by slot; slots of other requests are left alone."""
        states, bad = self.states, set(bad_rows.tolist())
        found = {}
        for entry in self.rows:
            special = states.special.get(entry.slot)
            if entry.row in bad or special is None or states.generation[entry.slot] != entry.generation:
                continue
            params = special.params
            error = entry.shaped.surprise(int(ids[entry.row])) - params.mirostat_tau
            states.mirostat_mu[entry.slot] -= params.mirostat_eta * error
            found[entry.slot] = states.mirostat_mu[entry.slot]
        return found


class RowShaper:
    """Costs nothing in steps without such rows. They are slow, one by one, and the same on every device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._batch = SamplingBatch.allocate(0)

    def rows_of(self, states: RequestStates, rows: Rows) -> list[int]:
        """The rows that are to be shaped."""
        if not states.special:
            return []
        slots = {slot for slot, entry in states.special.items() if entry.is_shaped}
        return [row for row, slot in enumerate(rows.slots.tolist()) if slot in slots] if slots else []

    def shape(
        self, logits: torch.Tensor, states: RequestStates, rows: Rows, at_end: Collection[int]
    ) -> ShapedRows | None:
        """Overwrite these rows of logits float32 [S, V] with what is left of them, divided by the temperature.

        `at_end`: rows that can only end. A row that has no finite best logit stays as it is, and is found by the draw.
        """
        places = self.rows_of(states, rows)
        if not places:
            return None
        index = np.array(places, np.int64)
        mine = Rows(rows.slots[index], rows.num_tokens[index], [])
        batch = self._filled(states, mine, {i for i, row in enumerate(places) if row in at_end})
        (on_device,) = self._device.upload(index)
        (values,) = self._device.download(logits[on_device])()
        values = values.copy()
        positions = states.draw_positions(mine).tolist()
        followed = []
        for i, row in enumerate(places):
            slot = int(mine.slots[i])
            left = self._shaped(torch.from_numpy(values[i]), states, batch, mine, i, positions[i])
            if isinstance(left, ShapedRow):
                values[i] = left.logits
                if states.special[slot].params.mirostat:
                    followed.append(Followed(row, slot, int(states.generation[slot]), left))
            else:
                values[i] = left
        (back,) = self._device.upload(values)
        logits[on_device] = back
        return ShapedRows(states, followed) if followed else None

    def _shaped(
        self, logits: torch.Tensor, states: RequestStates, batch: SamplingBatch, rows: Rows, i: int, position: int
    ) -> ShapedRow | np.ndarray:
        slot, num_tokens = int(rows.slots[i]), int(rows.num_tokens[i])
        params = states.special[slot].params
        x: np.ndarray = adjusted_logits(logits, batch, i).numpy()
        if params.uses_dry:
            begin = int(states.num_virtual_tokens[slot])  # what an adapter puts in front of the prompt is no text
            first = begin if params.dry_penalty_last_n < 0 else max(begin, num_tokens - params.dry_penalty_last_n)
            penalties = dry_penalties(
                states.token_ids[slot, first:num_tokens],
                params.dry_multiplier,
                params.dry_base,
                params.dry_allowed_length,
                params.dry_breaker_token_ids,
            )
            for token_id, penalty in penalties.items():
                x[token_id] -= np.float32(penalty)
        if params.greedy or np.isnan(x).any() or not np.isfinite(x.max()):
            return x
        return shaped(x, params, int(states.seeds[slot]), position, states.mirostat_mu.get(slot, 0.0))

    def _filled(self, states: RequestStates, rows: Rows, at_end: Collection[int]) -> SamplingBatch:
        """What `adjusted_logits` wants to know of the rows."""
        num_rows = len(rows.slots)
        if num_rows > self._batch.temperature.numel():
            self._batch = SamplingBatch.allocate(2 * num_rows)
        batch = self._batch
        batch.reset(num_rows)
        batch.presence.numpy()[:num_rows] = states.presence[rows.slots]
        batch.frequency.numpy()[:num_rows] = states.frequency[rows.slots]
        batch.repetition.numpy()[:num_rows] = states.repetition[rows.slots]
        special = [states.special[slot] for slot in rows.slots.tolist()]
        fill_bias(batch, special)
        fill_penalties(batch, special, states, rows)
        fill_masks(batch, special, states, rows, at_end)
        return batch
