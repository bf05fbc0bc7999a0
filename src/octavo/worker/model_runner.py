"""Runs one step: slot states -> input batch -> model -> logits -> sampler -> host data."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octavo.base.config import LogprobsMode
from octavo.device.base import Device
from octavo.models.transformer import Transformer
from octavo.ops.step import PlannedArrays, attention_planners
from octavo.ops.table import Ops
from octavo.wire.messages import TokenLogprobs
from octavo.wire.step import ModelRunnerOutput, SchedulerOutput, TokenMasks
from octavo.worker.adapters import AdapterSlots
from octavo.worker.alignment import SpeechAligner
from octavo.worker.cross_inputs import CrossInputs, max_encoder_len
from octavo.worker.graphs import EncoderShape, StepGraphs
from octavo.worker.input_batch import HostBatch, InputBatch, RowTensors, build_batch
from octavo.worker.media import MediaEncoder
from octavo.worker.pictures import PictureInputs, most_rows
from octavo.worker.prompt_adapters import PromptSlots
from octavo.worker.request_states import Draft, ExpectedTokens, RequestStates, Rows
from octavo.worker.sampler import SampledTokens, Sampler
from octavo.worker.scores import PromptScorer
from octavo.worker.swap import SwapArena, SwapSpace

if TYPE_CHECKING:
    from octavo.worker.pooling import Pooler

KVCaches = list[tuple[torch.Tensor, ...]]


@dataclass(slots=True)
class RunningStep:
    """A step that was submitted: what its answer will be made of."""

    slots: list[int]
    graph: str = ""  # how it was launched
    #: Until it has sampled: where the logits stand, which the next step overwrites.
    logits: torch.Tensor | None = None
    rows: Rows | None = None
    row_tensors: RowTensors | None = None
    tokens: SampledTokens | None = None
    expected: ExpectedTokens | None = None
    prompt_logprobs: Callable[[], dict[int, list[TokenLogprobs]]] | None = None
    pooled: dict[int, bytes] = field(default_factory=dict)
    forward_seconds: float | None = None  # where they are measured
    worker_seconds: float = 0.0


class ModelRunner:
    """Owns the slot states, the step's buffers and the KV cache; knows no queue, no text and no device.

    `submit` launches a step and returns at once where the device computes beside the host; `collect` waits for its
    answer. The token that a step samples can be the input of the next without having been on the host, but not where
    it verifies a draft: what was accepted is known on the host alone.
    """

    def __init__(
        self,
        *,
        model: Transformer,
        ops: Ops,
        device: Device,
        kv_caches: KVCaches,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
        swap_arena: SwapArena,
        logprobs_mode: LogprobsMode = "raw_logprobs",
        graph_sizes: tuple[int, ...] = (),
        graph_tokens: tuple[int, ...] = (),
        windows: Sequence[int] = (0,),
        times_forward: bool = False,
        media: MediaEncoder | None = None,
        adapters: AdapterSlots | None = None,
        prompts: PromptSlots | None = None,
        pooler: Pooler | None = None,
    ) -> None:
        """`kv_caches`: of each layer; layers of different groups may share one. `graph_sizes`: batch sizes to which
        steps of decoding are padded and captured; none: nothing is. `graph_tokens`: numbers of tokens to which steps
        with parts of prompts are. `windows`: of each group of layers, 0: all keys.
        `times_forward`: measure the forward pass of each step, and wait for its end. `pooler`: of a model that gives
        vectors."""
        self._model = model
        self._ops = ops
        self._device = device
        self._kv_caches = kv_caches
        self._block_size = block_size
        self._times_forward = times_forward
        self._media = media
        self._adapters = adapters
        self._prompts = prompts
        self._pooler = pooler
        self._splits_drafts = not device.decodes_as_prompts
        definition = model.definition
        self._states = RequestStates(
            max_num_seqs,
            max_model_len,
            block_size,
            definition.num_ids,
            windows,
            definition.num_encoder_groups,
            max(max_encoder_len(definition), most_rows(definition, block_size)),
        )
        #: What was sampled last in each slot, int32, on the device; None where the host knows before the next step.
        self._last_ids: torch.Tensor | None = None
        if device.plans_ahead:
            self._last_ids = torch.zeros(max_num_seqs, dtype=torch.int32, device=device.torch_device)
        num_caches = len(model.definition.program.caches)
        self._swap = SwapSpace(device, kv_caches[:num_caches], swap_arena)
        self._has_states = len(kv_caches) > num_caches
        self._planner = attention_planners(
            ops.attention_planner, model.attention_shapes, device.torch_device, ops.activation_dtype
        )
        self._crossing: CrossInputs | PictureInputs | None = None
        self._aligner: SpeechAligner | None = None
        self._encoder_planner: Any = None  # of attentions over its rows, whose lengths are others
        if definition.crossing is not None:
            inputs = CrossInputs if definition.pictures is None else PictureInputs
            self._crossing = inputs(model, ops, device, kv_caches, block_size)
            if isinstance(self._crossing, CrossInputs):
                self._aligner = SpeechAligner(model, ops, device, kv_caches, self._crossing.heard)
            (heads,) = {cache.heads for cache in definition.program.caches if cache.of_encoder}
            self._encoder_planner = ops.attention_planner(heads, device.torch_device, ops.activation_dtype)
        self._sampler = Sampler(ops, device, max_num_seqs, logprobs_mode)
        self._scorer = PromptScorer(model, ops, device, logprobs_mode)
        self._graphs: StepGraphs | None = None
        self._no_graphs = "switched off" if device.uses_graphs else ""
        if graph_sizes:
            max_blocks = self._states.block_tables.shape[2]
            self._graphs = StepGraphs(
                self._run_model,
                device,
                self._planner,
                graph_sizes,
                max_blocks,
                len(windows),
                max_num_seqs if self._has_states else None,
                (lambda slots: True) if adapters is None else adapters.is_plain,
                graph_tokens,
                self._prompt_obstacle,
                None
                if self._encoder_planner is None
                else EncoderShape(self._encoder_planner, *self._states.encoder_tables.shape[::2]),
            )

    def execute(self, plan: SchedulerOutput) -> ModelRunnerOutput:
        """Compute the tokens that `plan` schedules and sample for every slot whose tokens are then complete. No slot
        has a grammar."""
        return self.collect(self.submit(plan))

    def submit(self, plan: SchedulerOutput) -> RunningStep:
        """Launch a step, which waits for its masks if the plan has `masked_slots`. Steps are collected in the order
        in which they were submitted."""
        self._enter(plan)
        states = self._states
        step = RunningStep(list(plan.num_scheduled_tokens))
        if not plan.num_scheduled_tokens:
            return step

        host = build_batch(states, plan.num_scheduled_tokens, self._block_size, splits_drafts=self._splits_drafts)
        start = self._clock() if self._times_forward else 0.0
        logits: torch.Tensor | None = None
        captured = None if self._graphs is None else self._graphs.logits(host)
        step.graph = self._no_graphs if self._graphs is None else self._graphs.last
        if captured is not None:
            logits, step.row_tensors = captured
        else:
            batch, rows, step.row_tensors = self._upload(host)
            if host.position_parts is not None:
                (batch.position_parts,) = self._device.upload(np.ascontiguousarray(host.position_parts))
            if host.muted_rows is not None:
                (batch.replaced_index,) = self._device.upload(host.muted_rows)
                shape = (len(host.muted_rows), self._model.spec.hidden_size)
                batch.replaced_rows = torch.zeros(
                    shape, dtype=self._ops.activation_dtype, device=batch.token_ids.device
                )
            self._place(batch, host)
            if self._pooler is not None:
                step.pooled = self._pool(self._pooler, host, batch, rows)
                return step
            if states.prompt_logprobs:
                hidden = self._model.forward(batch, self._kv_caches)
                step.prompt_logprobs = self._scorer.score(states, host, hidden)
                hidden = hidden[rows]
            else:
                hidden = self._model.forward(batch, self._kv_caches, rows if len(rows) < len(batch.token_ids) else None)
            if len(host.logits_rows):
                slots = None if batch.adapter_slots is None else batch.adapter_slots[rows]
                logits = self._model.logits(hidden, slots)
        step.pooled = self._align(host)
        if self._times_forward:
            step.forward_seconds = self._clock() - start
        step.logits, step.rows = logits, host.rows
        if not plan.masked_slots:
            self._sample(step, None)
        return step

    def _place(self, batch: InputBatch, host: HostBatch) -> None:
        """Let tokens read what stands in the place of embeddings: rows of media and of adapters."""
        states = self._states
        if self._media is not None and states.media:
            self._media.place(batch, host, states.media)
        if self._prompts is not None:
            self._prompts.place(batch, host)
        if self._adapters is not None:
            self._adapters.place(batch, host)
        if self._media is not None:
            self._media.let_prompts_see(batch, host, states.num_prompt_tokens[host.slots])

    def _enter(self, plan: SchedulerOutput) -> None:
        """Take in what a plan changes, before its step."""
        states = self._states
        self._swap.apply(plan)
        if self._media is not None:
            self._media.apply(plan)
        if self._adapters is not None:
            self._adapters.apply(plan)
        if self._prompts is not None:
            self._prompts.apply(plan)
        for slot in plan.finished_slots:
            states.remove(slot)
            if self._aligner is not None:
                self._aligner.leave(slot)
        for new in plan.new_requests:
            states.add(new)
        if self._pooler is not None:
            self._pooler.apply(plan)
        if self._crossing is not None:
            states.views |= self._crossing.enter(plan.new_requests)
        for known in plan.cached_requests:
            states.update(known)

    def submit_masks(self, step: RunningStep, masks: TokenMasks) -> None:
        """Let a step sample that waits for its masks."""
        self._sample(step, masks)

    def collect(self, step: RunningStep) -> ModelRunnerOutput:
        """Wait for the answer of a step; what it sampled becomes known to the host."""
        output = ModelRunnerOutput({slot: [] for slot in step.slots}, graph=step.graph, pooled=step.pooled)
        if step.prompt_logprobs is not None:
            output.prompt_logprobs = step.prompt_logprobs()
        if step.tokens is not None and step.expected is not None:
            self._take(step.tokens, step.expected, output)
        return output

    def _take(self, tokens: SampledTokens, expected: ExpectedTokens, output: ModelRunnerOutput) -> None:
        """Wait for what was sampled, and enter what comes of it into the states and the answer."""
        result, rows = self._sampler.collect(tokens), tokens.rows
        output.sampler_states = result.sampler_states
        ids, slots = result.token_ids.tolist(), rows.slots.tolist()
        plain = rows.plain
        self._states.fill_tokens(expected, result.token_ids if plain is None else result.token_ids[plain])
        for row in range(len(ids)) if plain is None else plain.tolist():
            if row in result.errors:
                output.errors[slots[row]] = result.errors[row]
                continue
            output.sampled_token_ids[slots[row]] = [ids[row]]
            if row in result.logprobs:
                output.logprobs[slots[row]] = [result.logprobs[row]]
        for draft in rows.drafts:
            slot, first = draft.slot, draft.first_row
            if first in result.errors:
                output.errors[slot] = result.errors[first]
                continue
            taken = verified(draft, ids, result.errors)
            output.sampled_token_ids[slot] = taken
            if first in result.logprobs:
                output.logprobs[slot] = [result.logprobs[first + i] for i in range(len(taken))]
            self._states.take_tokens(draft, taken)

    def _pool(self, pooler: Pooler, host: HostBatch, batch: InputBatch, rows: torch.Tensor) -> dict[int, bytes]:
        """Compute a step whose requests want vectors."""
        is_last_rows = pooler.reads_last_rows
        needed = rows if is_last_rows and len(rows) < len(batch.token_ids) else None
        hidden = self._model.forward(batch, self._kv_caches, needed)
        if is_last_rows and needed is None:
            hidden = hidden[rows]
        return pooler.of_step(self._states, host, hidden, is_last_rows=is_last_rows)

    def _align(self, host: HostBatch) -> dict[int, bytes]:
        """What comes of the slots that want an alignment and whose prompt is whole behind this step."""
        states, aligner, made = self._states, self._aligner, dict[int, bytes]()
        if aligner is None or not states.alignments:
            return made
        for slot in host.rows.slots.tolist():
            if (wanted := states.alignments.get(slot)) is None:
                continue
            states.num_computed[slot] = 0
            whole = build_batch(states, {slot: int(states.num_tokens[slot])}, self._block_size)
            batch, _, _ = self._upload(whole)
            made[slot] = aligner.matrix(wanted, batch, slot)
        return made

    def _clock(self) -> float:
        """Seconds, when all that was launched has been computed."""
        self._device.synchronize()
        return time.perf_counter()

    def _upload(self, host: HostBatch) -> tuple[InputBatch, torch.Tensor, RowTensors]:
        """The step on the device, and which of its tokens are rows that sample, int64 [S]."""
        arrays = self._planner.arrays(host.seq_lens, host.query_start_loc, host.num_decodes)
        state_slots = [host.slots.astype(np.int32)] if self._has_states else []
        encoder: list[np.ndarray] = []
        encoder_arrays = PlannedArrays()
        if host.encoder_lens is not None and host.encoder_tables is not None:
            encoder = [host.encoder_lens, host.encoder_tables]
            encoder_arrays = self._encoder_planner.arrays(host.encoder_lens, host.query_start_loc, host.num_decodes)
        adapters = [] if host.adapter_slots is None else [host.adapter_slots]
        token_ids, positions, slot_mapping, query_start_loc, seq_lens, block_tables, rows, slots, draws, *others = (
            self._device.upload(
                host.token_ids,
                host.positions,
                host.slot_mapping,
                host.query_start_loc,
                host.seq_lens,
                host.block_tables,
                host.logits_rows,
                host.rows.slots,
                host.draw_positions,
                *state_slots,
                *adapters,
                *encoder,
                *encoder_arrays.tensors,
                *arrays.tensors,
            )
        )
        states = others.pop(0) if self._has_states else None
        adapter_slots = others.pop(0) if adapters else None
        own, others = others[: len(encoder)], others[len(encoder) :]
        crossed, others = others[: len(encoder_arrays.tensors)], others[len(encoder_arrays.tensors) :]
        plan = self._planner.plan(arrays, others)
        batch = InputBatch(token_ids, positions, slot_mapping, query_start_loc, seq_lens, block_tables, plan, states)
        batch.adapter_slots = adapter_slots
        if own:
            batch.add_encoder(own[0], own[1], self._encoder_planner.plan(encoder_arrays, crossed))
        self._resolve_ids(batch)
        return batch, rows, RowTensors(slots, draws)

    def _resolve_ids(self, batch: InputBatch) -> None:
        if self._last_ids is not None:
            self._ops.resolve_ids(batch.token_ids, self._last_ids)

    def _run_model(self, batch: InputBatch, needed: torch.Tensor | None) -> torch.Tensor:
        """A step without anything but tokens; `needed`: the rows that sample, None: all."""
        self._resolve_ids(batch)
        hidden = self._model.forward(batch, self._kv_caches, needed)
        return self._model.logits(hidden)  # adapters of logits are not captured

    def _prompt_obstacle(self, host: HostBatch) -> str:
        """What a step with parts of prompts has that no captured step has a place for; "": nothing."""
        slots = host.slots[host.num_decodes :].tolist()
        if not self._states.prompt_logprobs.keys().isdisjoint(slots):
            return "prompt with logprobs"
        if host.virtual is not None:
            return "prompt with an adapter's rows"
        sees_ahead = self._media is not None and self._media.lets_prompts_see
        if sees_ahead or host.position_parts is not None or not self._states.media.keys().isdisjoint(slots):
            return "prompt with media"
        return ""

    def _sample(self, step: RunningStep, masks: TokenMasks | None) -> None:
        logits, rows, tensors = step.logits, step.rows, step.row_tensors
        step.logits = step.rows = step.row_tensors = None
        if logits is None or rows is None or tensors is None or not len(rows.slots):  # parts of prompts alone
            return
        step.tokens = self._sampler.sample(logits, self._states, rows, masks, tensors.draw_positions)
        plain = rows.plain
        slots = rows.slots if plain is None else rows.slots[plain]
        if self._last_ids is not None:
            ids, index = step.tokens.ids, tensors.slots
            if plain is not None:
                (place,) = self._device.upload(plain)
                ids, index = ids[place], index[place]
            self._last_ids[index] = ids
        step.expected = self._states.expect_tokens(slots)


def verified(draft: Draft, ids: list[int], errors: Collection[int]) -> list[int]:
    """The tokens that a draft's rows give, at least one; `ids`: sampled at all rows of the step.

    Each row's token counts as long as the draft before it is what was sampled. A row in `errors` has no token: its
    turn comes in a later step, when it is its slot's first, as it would without a draft.
    """
    taken = [ids[draft.first_row]]
    for row, guess in enumerate(draft.token_ids, draft.first_row + 1):
        if guess != taken[-1] or row in errors:
            break
        taken.append(ids[row])
    return taken
