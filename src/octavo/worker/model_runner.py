"""Runs one step: slot states -> input batch -> model -> logits -> sampler -> host data."""

from __future__ import annotations

import torch

from octavo.config import LogprobsMode
from octavo.device.base import Device
from octavo.models.transformer import Transformer
from octavo.ops.table import Ops
from octavo.step import ModelRunnerOutput, SchedulerOutput
from octavo.worker.input_batch import InputBatch, InputBatchBuilder
from octavo.worker.request_states import RequestStates
from octavo.worker.sampler import Sampler
from octavo.worker.scores import PromptScorer

KVCaches = list[tuple[torch.Tensor, torch.Tensor]]


class ModelRunner:
    """Owns the slot states, the step's buffers and the KV cache; knows no queue, no text and no device."""

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
        logprobs_mode: LogprobsMode = "raw_logprobs",
    ) -> None:
        self._model = model
        self._device = device
        self._kv_caches = kv_caches
        self._states = RequestStates(max_num_seqs, max_model_len, block_size, model.spec.vocab_size)
        self._batches = InputBatchBuilder(device, block_size)
        self._sampler = Sampler(ops, device, max_num_seqs, logprobs_mode)
        self._scorer = PromptScorer(model, ops, logprobs_mode)

    def execute(self, plan: SchedulerOutput) -> ModelRunnerOutput:
        """Compute the tokens that `plan` schedules and sample for every slot whose tokens are then complete."""
        states = self._states
        for slot in plan.finished_slots:
            states.remove(slot)
        for new in plan.new_requests:
            states.add(new)
        for known in plan.cached_requests:
            states.update(known)
        sampled: dict[int, list[int]] = {slot: [] for slot in plan.num_scheduled_tokens}
        output = ModelRunnerOutput(sampled_token_ids=sampled, logprobs={}, errors={})
        if not plan.num_scheduled_tokens:
            return output

        batch = self._batches.build(states, plan.num_scheduled_tokens)
        hidden = self._model.forward(batch, self._kv_caches)
        if states.prompt_logprobs:
            output.prompt_logprobs = self._scorer.score(states, plan.num_scheduled_tokens, hidden)
        if len(batch.sampling_slots):
            self._sample(batch, hidden, output)
        return output

    def _sample(self, batch: InputBatch, hidden: torch.Tensor, output: ModelRunnerOutput) -> None:
        rows = hidden if len(batch.logits_rows) == len(hidden) else hidden[batch.logits_rows]
        result = self._sampler.sample(self._model.logits(rows), self._states, batch.sampling_slots)
        for slot, token_id in zip(batch.sampling_slots.tolist(), result.token_ids, strict=True):
            if slot in result.errors:
                continue
            output.sampled_token_ids[slot] = [token_id]
            self._states.append_token(slot, token_id)
        output.logprobs.update(result.logprobs)
        output.errors.update(result.errors)
