"""From logits to tokens: fills the sampling batch from the slot states and calls the device's sampling ops."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from octavo.config import LogprobsMode
from octavo.device.base import Device
from octavo.messages import TokenLogprobs
from octavo.ops.sampling_batch import SamplingBatch, csr_offsets
from octavo.ops.table import Ops
from octavo.step import TokenMasks
from octavo.worker.request_states import RequestStates, SlotParams
from octavo.worker.scores import sampled_scores

_NO_IDS = np.zeros(0, np.int32)
_BAD_LOGITS = "The model produced logits that are not numbers; the request cannot go on."


@dataclass(slots=True)
class SamplerResult:
    """token_ids[i] belongs to slots[i]; it is meaningless for a slot in `errors`."""

    token_ids: list[int]
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


class Sampler:
    """One token a slot. A draw depends on the row's logits, its seed and the index of the token: not on the batch."""

    def __init__(
        self, ops: Ops, device: Device, max_num_seqs: int, logprobs_mode: LogprobsMode = "raw_logprobs"
    ) -> None:
        self._ops = ops
        self._mode = logprobs_mode
        self._device = device
        self._batch = SamplingBatch.allocate(max_num_seqs)
        self._filled: tuple[int, bytes] | None = None  # the states' version and the slots that the batch was filled for
        self._out_ids = torch.zeros(max_num_seqs, dtype=torch.int32)
        self._out_flags = torch.zeros(max_num_seqs, dtype=torch.int32)

    def sample(
        self, logits: torch.Tensor, states: RequestStates, slots: np.ndarray, masks: TokenMasks | None = None
    ) -> SamplerResult:
        """logits float32 [S, V] of `slots` int64 [S], which are edited; slots of `masks` are among them.

        A mask wins over min_tokens: where it admits nothing but the ends that min_tokens forbids, they may come.
        """
        num_rows = len(slots)
        saved: tuple[list[int], torch.Tensor] | None = None
        at_end: frozenset[int] = frozenset()
        if masks is not None:
            row_of = {slot: row for row, slot in enumerate(slots.tolist())}
            scored = [row_of[slot] for slot in masks.slots if slot in states.logprobs]
            saved = (scored, logits[scored]) if scored else None
            at_end = self._forbid(logits, states, row_of, masks)
        self._fill_batch(states, slots, at_end)
        out_ids, out_flags = self._out_ids[:num_rows], self._out_flags[:num_rows]
        self._ops.sample(logits, self._batch, out_ids, out_flags)

        result = SamplerResult(token_ids=out_ids.tolist())
        bad = out_flags.numpy().nonzero()[0]
        if len(bad):
            result.errors = {int(slots[row]): _BAD_LOGITS for row in bad}
        if not states.logprobs:
            return result
        # A row in error has no token: its id is -1.
        rows = [row for row, slot in enumerate(slots.tolist()) if slot in states.logprobs and slot not in result.errors]
        if rows:
            # `sample` leaves the logits as they were; masked rows get their own back where those are asked for.
            if saved is not None and self._mode.startswith("raw"):
                logits[saved[0]] = saved[1]
            wanted = [states.logprobs[int(slots[row])] for row in rows]
            scores = sampled_scores(self._ops, self._mode, logits, self._batch, rows, out_ids[rows], wanted)
            for row, entry in zip(rows, scores, strict=True):
                result.logprobs[int(slots[row])] = [entry]
        return result

    def _forbid(
        self, logits: torch.Tensor, states: RequestStates, row_of: dict[int, int], masks: TokenMasks
    ) -> frozenset[int]:
        """Set the logits of forbidden tokens to -inf. Returns the slots that can only end."""
        masks.wait()
        words = torch.frombuffer(masks.words, dtype=torch.int32).view(len(masks.slots), -1)
        self._ops.forbid(logits, torch.tensor([row_of[slot] for slot in masks.slots]), words)
        at_end = set()
        for i, slot in enumerate(masks.slots):
            special = states.special.get(slot)
            if special is not None and special.mask is not None:
                bits = np.unpackbits(words[i].numpy().view(np.uint8), count=logits.shape[1], bitorder="little")
                bits[special.mask.ids(states.output_tokens(slot))] = 0
                if not bits.any():
                    at_end.add(slot)
        return frozenset(at_end)

    def _fill_batch(self, states: RequestStates, slots: np.ndarray, at_end: frozenset[int]) -> None:
        batch, num_rows = self._batch, len(slots)
        batch.begin(num_rows)
        batch.positions.numpy()[:num_rows] = states.num_output_tokens(slots)
        filled = (states.version, slots.tobytes())
        if filled != self._filled:
            self._fill_parameters(states, slots)
            self._filled = filled
        if states.special:
            special = [states.special.get(slot) for slot in slots.tolist()]
            self._fill_bias(special)
            self._fill_penalties(special)
            self._fill_masks(special, states, slots.tolist(), at_end)

    def _fill_parameters(self, states: RequestStates, slots: np.ndarray) -> None:
        """What stays the same from step to step while no request comes or goes."""
        batch, num_rows = self._batch, len(slots)
        batch.temperature.numpy()[:num_rows] = states.temperature[slots]
        batch.top_p.numpy()[:num_rows] = states.top_p[slots]
        batch.min_p.numpy()[:num_rows] = states.min_p[slots]
        batch.top_k.numpy()[:num_rows] = states.top_k[slots]
        batch.presence.numpy()[:num_rows] = states.presence[slots]
        batch.frequency.numpy()[:num_rows] = states.frequency[slots]
        batch.repetition.numpy()[:num_rows] = states.repetition[slots]
        batch.seeds.numpy()[:num_rows] = states.seeds[slots].view(np.int64)

    def _fill_bias(self, special: list[SlotParams | None]) -> None:
        biases = [(s.params.logit_bias or {}) if s else {} for s in special]
        ids = [token_id for bias in biases for token_id in bias]
        values = [value for bias in biases for value in bias.values()]
        self._batch.bias.set_values(
            csr_offsets([len(bias) for bias in biases]), np.array(ids, np.int32), np.array(values, np.float32)
        )

    def _fill_penalties(self, special: list[SlotParams | None]) -> None:
        lengths: list[int] = []
        ids: list[int] = []
        counts: list[int] = []
        in_prompt: list[int] = []
        for entry in special:
            state = entry.penalties if entry else None
            if state is None:
                lengths.append(0)
                continue
            seen = state.prompt_ids | state.output_counts.keys()
            lengths.append(len(seen))
            ids += seen
            counts += [state.output_counts.get(i, 0) for i in seen]
            in_prompt += [i in state.prompt_ids for i in seen]
        self._batch.penalties.set_counts(
            csr_offsets(lengths), np.array(ids, np.int32), np.array(counts, np.int32), np.array(in_prompt, np.int32)
        )

    def _fill_masks(
        self, special: list[SlotParams | None], states: RequestStates, slots: list[int], at_end: frozenset[int]
    ) -> None:
        masks = [
            entry.mask.ids(states.output_tokens(slot), may_end=slot in at_end) if entry and entry.mask else _NO_IDS
            for entry, slot in zip(special, slots, strict=True)
        ]
        self._batch.masks.set(csr_offsets([len(mask) for mask in masks]), np.concatenate(masks))
