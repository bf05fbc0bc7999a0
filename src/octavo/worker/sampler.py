"""From logits to tokens: fills the sampling batch from the slot states and calls the device's sampling ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from octavo.base.config import LogprobsMode
from octavo.device.base import Device, Download
from octavo.ops.sampling_batch import SamplingBatch
from octavo.ops.table import Ops
from octavo.wire.messages import TokenLogprobs
from octavo.wire.step import TokenMasks
from octavo.worker.penalties import CountedSlots
from octavo.worker.request_states import RequestStates, Rows
from octavo.worker.scores import Wanted, sampled_scores
from octavo.worker.shaping import RowShaper, ShapedRows
from octavo.worker.sparse_parts import fill_bias, fill_masks, fill_penalties
from octavo.worker.speech import apply_rules, listed_ids

_BAD_LOGITS = "The model produced logits that are not numbers; the request cannot go on."


@dataclass(slots=True)
class SamplerResult:
    """Of the step's rows: token_ids[i] int32 is meaningless for a row in `errors`."""

    token_ids: np.ndarray
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    sampler_states: dict[int, float] = field(default_factory=dict)  # by slot


@dataclass(slots=True)
class SampledTokens:
    """Tokens that are being sampled: on the device at once, on the host when `Sampler.collect` has waited."""

    rows: Rows
    ids: torch.Tensor  # int32 [S], device
    download: Download  # ids and flags
    scored: list[int]  # rows whose log probabilities were asked for
    scores: Callable[[], list[TokenLogprobs]] | None = None  # of `scored`
    shaped: ShapedRows | None = None  # those whose sampler follows what is drawn
    #: Of first tokens of speech: the row, the id of silence, and its log probability.
    silence: list[tuple[int, int, torch.Tensor]] = field(default_factory=list)


class Sampler:
    """One token a row. A draw depends on the row's logits, its seed and the index of the token: not on the batch, and
    not on whether what stands before the row is known or a draft."""

    def __init__(
        self, ops: Ops, device: Device, max_num_seqs: int, logprobs_mode: LogprobsMode = "raw_logprobs"
    ) -> None:
        self._ops = ops
        self._mode = logprobs_mode
        self._device = device
        self._batch = SamplingBatch.allocate(max_num_seqs)  # the host's
        self._uploaded = SamplingBatch.allocate(0)  # the same on the device
        self._filled: tuple[int, bytes] | None = None  # the states' version and the slots that the batch was filled for
        # Scores of what was drawn from are made on the host, from its own counts.
        has_counts = ops.penalty_counts is not None and logprobs_mode.startswith("raw")
        self._counts = CountedSlots(ops, device) if has_counts else None
        self._shaper = RowShaper(device)
        self._listed: dict[tuple[int, ...], torch.Tensor] = {}  # of `SpeechRules`: those of a model are always the same

    def sample(
        self,
        logits: torch.Tensor,
        states: RequestStates,
        rows: Rows,
        masks: TokenMasks | None,
        draw_positions: torch.Tensor,
    ) -> SampledTokens:
        """Launch the sampling of a token for each of the S rows, from logits float32 [S, V], which are edited.
        `draw_positions`: the rows', int64 [S], on the device.

        The slots of `masks` are among those of the rows. A mask wins over min_tokens: where it admits nothing but the
        ends that min_tokens forbids, they may come.
        """
        slots = rows.slots.tolist()
        at_end: frozenset[int] = frozenset()
        masked = [] if masks is None else _rows_of(masks, slots)
        edited = {*masked, *self._shaper.rows_of(states, rows)}
        saved = self._saved(logits, [row for row in sorted(edited) if slots[row] in states.logprobs])
        if masks is not None:
            at_end = self._forbid(logits, states, rows, masked, masks)
        silence = self._apply_speech_rules(logits, states, rows) if states.speech else []
        shaped = self._shaper.shape(logits, states, rows, at_end)
        self._fill_batch(states, rows, at_end)
        self._uploaded.positions = draw_positions
        ids = torch.empty(len(slots), dtype=torch.int32, device=logits.device)
        flags = torch.empty_like(ids)
        self._ops.sample(logits, self._uploaded, ids, flags)
        if self._counts is not None:
            self._counts.add(ids)

        tokens = SampledTokens(rows, ids, self._device.download(ids, flags), [], shaped=shaped)
        if states.logprobs:
            tokens.scored = [row for row, slot in enumerate(slots) if slot in states.logprobs]
            if tokens.scored:
                # `sample` leaves the logits as they were; edited rows get their own back where those are asked for.
                if saved is not None and self._mode.startswith("raw"):
                    logits[saved[0]] = saved[1]
                tokens.silence = silence
                wanted = [
                    Wanted(states.logprobs[slots[row]], states.logprob_ids.get(slots[row])) for row in tokens.scored
                ]
                tokens.scores = sampled_scores(
                    self._device, self._ops, self._mode, logits, self._batch, tokens.scored, ids, wanted
                )
        return tokens

    def collect(self, tokens: SampledTokens) -> SamplerResult:
        """Wait for the tokens and what was asked for with them."""
        ids, flags = tokens.download()
        result = SamplerResult(ids)
        bad = flags.nonzero()[0]
        if len(bad):
            result.errors = dict.fromkeys(bad.tolist(), _BAD_LOGITS)
        if tokens.scores is not None:
            result.logprobs = dict(zip(tokens.scored, tokens.scores(), strict=True))
            for row, no_speech_id, score in tokens.silence:
                entry = result.logprobs[row]
                result.logprobs[row] = TokenLogprobs(entry.logprob, entry.rank, [no_speech_id], [score.item()])
        if tokens.shaped is not None:
            result.sampler_states = tokens.shaped.follow(ids, bad)
        return result

    def _saved(self, logits: torch.Tensor, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Copies of the rows that are edited, and which they are; None where there are none."""
        if not rows:
            return None
        (index,) = self._device.upload(np.array(rows, np.int64))
        return index, logits[index]

    def _forbid(
        self, logits: torch.Tensor, states: RequestStates, rows: Rows, masked: list[int], masks: TokenMasks
    ) -> frozenset[int]:
        """Set the logits of forbidden tokens to -inf; `masked`: the row of each mask. Returns the rows that can only
        end."""
        words = np.frombuffer(masks.words, np.int32).reshape(len(masked), -1)
        self._ops.forbid(logits, *self._device.upload(np.array(masked, np.int64), words))
        at_end = set()
        for i, (slot, row) in enumerate(zip(masks.slots, masked, strict=True)):
            special = states.special.get(slot)
            if special is not None and special.mask is not None:
                bits = np.unpackbits(words[i].view(np.uint8), count=logits.shape[1], bitorder="little")
                bits[special.mask.ids(states.output_tokens(slot, int(rows.num_tokens[row])))] = 0
                if not bits.any():
                    at_end.add(row)
        return frozenset(at_end)

    def _apply_speech_rules(
        self, logits: torch.Tensor, states: RequestStates, rows: Rows
    ) -> list[tuple[int, int, torch.Tensor]]:
        """Edit the rows of slots that have some. Of first tokens: the row, the id of silence, and its log probability
        before."""
        first = []
        for row, (slot, num_tokens) in enumerate(zip(rows.slots.tolist(), rows.num_tokens.tolist(), strict=True)):
            rules = states.speech.get(slot)
            if rules is None:
                continue
            output = states.output_tokens(slot, num_tokens)
            if not len(output) and slot in states.logprobs:
                score = logits[row].double().log_softmax(-1)[rules.no_speech_id].float()
                first.append((row, rules.no_speech_id, score))
            listed = self._listed.get(rules.forbidden_ids)
            if listed is None:
                (uploaded,) = self._device.upload(listed_ids(rules))
                listed = self._listed[rules.forbidden_ids] = uploaded.clone()
            apply_rules(logits[row], rules, output, listed)
        return first

    def _fill_batch(self, states: RequestStates, rows: Rows, at_end: frozenset[int]) -> None:
        slots, num_rows = rows.slots, len(rows.slots)
        if num_rows > self._batch.temperature.numel():  # drafts: more rows than slots
            self._batch = SamplingBatch.allocate(2 * num_rows)
            self._filled = None
        batch, on_device = self._batch, self._uploaded
        batch.begin(num_rows)
        on_device.begin(num_rows)
        filled = (states.version, slots.tobytes())
        if filled != self._filled:
            self._fill_parameters(states, slots)
            on_device.set_parameters(self._device.upload(*batch.parameters()))
            on_device.has_filters = batch.has_filters
            self._filled = filled
        if self._counts is not None:
            on_device.counts, on_device.count_rows = self._counts.of(states, rows)
        if states.special:
            entries = [states.special.get(slot) for slot in slots.tolist()]
            special = [None if entry is None or entry.is_shaped else entry for entry in entries]
            fill_bias(batch, special)
            if self._counts is None:
                fill_penalties(batch, special, states, rows)
            fill_masks(batch, special, states, rows, at_end)
            for host, target in (
                (batch.bias, on_device.bias),
                (batch.penalties, on_device.penalties),
                (batch.masks, on_device.masks),
            ):
                if host.active:
                    target.take(self._device.upload(*host.arrays(num_rows)))

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
        filtered = (states.top_k[slots] > 0) | (states.top_p[slots] < 1.0) | (states.min_p[slots] > 0.0)
        batch.has_filters = bool(filtered.any())


def _rows_of(masks: TokenMasks, slots: list[int]) -> list[int]:
    """The row of each mask; `slots`: of each row."""
    next_row = {slot: row for row, slot in reversed([*enumerate(slots)])}
    rows = []
    for slot in masks.slots:
        rows.append(next_row[slot])
        next_row[slot] += 1
    return rows
