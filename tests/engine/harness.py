"""The real engine without processes: a loaded worker, and a fresh scheduler for each run."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from octavo.base.config import (
    CacheConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    ParallelConfig,
    PromptAdapterConfig,
    SchedulerConfig,
)
from octavo.base.params import SamplingParams
from octavo.core.drafts import Drafter
from octavo.core.grammar.structured import LLGuidanceCompiler, Matcher, StructuredOutputs
from octavo.core.scheduler.scheduler import Scheduler
from octavo.text.tokenizers.tokenizer import Tokenizer, load_tokenizer
from octavo.text.tokenizers.vocabulary import vocabulary_of
from octavo.wire.messages import AddRequest, EngineInfo, TokenLogprobs
from octavo.wire.step import SchedulerOutput
from octavo.worker.worker import Worker


@dataclass(slots=True)
class Reply:
    """All that came back for one request; equal replies are equal bit for bit, log probabilities included."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    pooled: bytes | None = None


@dataclass(slots=True)
class Run:
    replies: dict[int, Reply]
    num_preemptions: int
    prefix_cache_hits: int
    num_ahead: int  # steps that were submitted before the last was answered
    num_swapped: int  # requests whose blocks came back from the host


class Engine:
    """One loaded model. `run` may be called again and again; the KV cache keeps only stale values between runs."""

    def __init__(
        self,
        model: Path,
        cache: dict[str, Any] | None = None,
        lora: LoraConfig | None = None,
        prompts: PromptAdapterConfig | None = None,
        **model_options: Any,
    ) -> None:
        self.config = EngineConfig(
            model=ModelConfig(model=str(model), **({"max_model_len": 2048} | model_options)),
            cache=CacheConfig(kv_cache_memory_bytes=600 << 20, **(cache or {})),
            scheduler=SchedulerConfig(max_num_seqs=96, max_num_batched_tokens=512),
            parallel=ParallelConfig(num_threads=2),
            lora=lora or LoraConfig(),
            prompt_adapter=prompts or PromptAdapterConfig(),
        )
        self.worker = Worker(self.config, lambda name, detail: None)
        self.info: EngineInfo = self.worker.load()
        self.grammars = LLGuidanceCompiler(self.info.vocab_size)
        self._has_vocabulary = False

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.config.model.model)

    def scheduler(self, *, prefix_caching: bool = True, drafter: Drafter | None = None, **info: int) -> Scheduler:
        """A scheduler for this worker; `info` narrows it: num_kv_blocks, max_num_batched_tokens, max_num_seqs; or gives
        it num_swap_blocks, which a CPU has none of."""
        if num_swap_blocks := info.get("num_swap_blocks"):
            arena = self.worker.swap_arena
            arena.add(max(0, num_swap_blocks - arena.num_places))
        config = dataclasses.replace(self.config, cache=CacheConfig(enable_prefix_caching=prefix_caching))
        return Scheduler(config, msgspec.structs.replace(self.info, **info), drafter)

    def matcher(self, request: AddRequest) -> Matcher | None:
        if request.params.grammar is None:
            return None
        if not self._has_vocabulary:
            self.grammars.set_vocabulary(vocabulary_of(self.tokenizer, self.tokenizer.eos_token_ids))
            self._has_vocabulary = True
        return self.grammars.compile(request.params.grammar)

    def run(
        self,
        requests: Sequence[AddRequest],
        *,
        scheduler: Scheduler | None = None,
        per_step: int = 0,
        ahead: bool = False,
    ) -> Run:
        """Run until all requests have ended. per_step > 0: that many new requests arrive before each step. `ahead`:
        steps are planned and submitted before the last is answered, where that is possible."""
        scheduler = scheduler or self.scheduler()
        structured = StructuredOutputs(self.info.vocab_size, lambda ready: None, self.grammars)
        replies = {request.request_id: Reply() for request in requests}
        pending = list(requests)
        in_flight: deque[tuple[SchedulerOutput, Any]] = deque()
        num_ahead = num_swapped = 0
        while pending or scheduler.has_work or in_flight:
            arriving = pending[: per_step or len(pending)]
            del pending[: len(arriving)]
            for request in arriving:
                refused = scheduler.add(request, self.matcher(request))
                assert refused is None, refused
            while not in_flight or (ahead and scheduler.can_plan_ahead):
                plan = scheduler.schedule()
                if not plan.total_num_scheduled_tokens:
                    break
                num_ahead += len(in_flight)
                num_swapped += len(plan.swap_in)
                structured.start_masks(plan, scheduler.slots)
                step = self.worker.submit(plan)
                if plan.masked_slots:
                    masks, errors = structured.finish_masks()
                    assert not errors
                    self.worker.submit_masks(step, masks)
                in_flight.append((plan, step))
            plan, step = in_flight.popleft()
            result = self.worker.collect(step)
            for output in scheduler.update(plan, result):
                reply = replies[output.request_id]
                reply.token_ids += output.new_token_ids
                reply.logprobs += output.logprobs or []
                reply.prompt_logprobs += output.prompt_logprobs or []
                reply.finish_reason = output.finish_reason
                reply.error = output.error
                reply.pooled = output.pooled
        stats = scheduler.stats()
        return Run(replies, stats.num_preemptions, stats.prefix_cache_hits, num_ahead, num_swapped)


def request(request_id: int, prompt: Sequence[int], **params: Any) -> AddRequest:
    """A request of the engine with explicit seed and, unless said otherwise, greedy."""
    settings: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True, "logprobs": 2, "seed": 11}
    return AddRequest(request_id, list(prompt), SamplingParams(**(settings | params)))


def run(engine: Engine, asked: Sequence[AddRequest], per_step: int = 0, **limits: int) -> dict[int, Reply]:
    """Replies by the numbers of the requests; `limits` narrow the scheduler."""
    return engine.run(asked, scheduler=engine.scheduler(**limits), per_step=per_step).replies


def check_any_company(engine: Engine, asked: Sequence[AddRequest], **pieces: int) -> dict[int, Reply]:
    """The replies, which are the same alone, arriving one by one, and in steps as narrow as `pieces` says."""
    replies = run(engine, asked)
    for request in asked:
        assert run(engine, [request]) == {request.request_id: replies[request.request_id]}
    assert run(engine, asked, per_step=1) == replies
    assert run(engine, asked, **pieces) == replies
    return replies
