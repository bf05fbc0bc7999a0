"""What the worker's answer to a step means for the requests that took part in it."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from octavo.core.blocks.kv_cache_manager import KVCacheManager
from octavo.core.drafts import Drafter
from octavo.core.request import Request, RequestStatus
from octavo.core.scheduler.live_requests import LiveRequests
from octavo.core.scheduler.progress import Progress, output_of, take_tokens
from octavo.wire.messages import EngineCoreOutput, TokenLogprobs
from octavo.wire.step import ModelRunnerOutput


class Member(NamedTuple):
    """A request that takes part in a step."""

    request: Request
    slot: int  # it may have left it when the answer comes
    num_tokens: int  # that it computes in the step, drafts included


class Answers:
    """Called by the scheduler, once a step, in the order of the steps."""

    def __init__(self, live: LiveRequests, kv: KVCacheManager, drafter: Drafter | None) -> None:
        self.num_generation_tokens = 0
        self._live = live
        self._kv = kv
        self._drafter = drafter

    def take_in(self, members: list[Member], result: ModelRunnerOutput, *, jumps: bool) -> list[EngineCoreOutput]:
        """Tokens are appended, full blocks enter the cache, requests end. `jumps`: tokens that a grammar dictates are
        taken without being sampled."""
        outputs: list[EngineCoreOutput] = []
        sampled, logprobs, errors = result.sampled_token_ids, result.logprobs, result.errors
        scored = result.prompt_logprobs
        seconds = result.seconds
        if seconds is not None:
            for request, _, _ in members:
                known = request.step_seconds
                request.step_seconds = seconds if known is None else known.plus(seconds)
        for request, slot, count in members:
            if request.status is not RequestStatus.RUNNING:  # it ended while the step ran, or in the step before
                continue
            if slot in errors:
                outputs.append(self._live.end(request, "error", errors[slot]))
                continue
            if slot in result.pooled:
                end = request.num_computed_tokens + count
                outputs.append(self._pooled(request, end, result.pooled[slot]))
                continue
            start, token_ids = request.num_computed_tokens, request.token_ids
            request.num_in_flight_tokens -= count
            scores = request.fresh_prompt_logprobs(start, scored[slot]) if slot in scored else None
            tokens = sampled[slot]
            if not tokens:
                assert start + count < len(token_ids), f"slot {slot}: all tokens were computed and none was sampled"
                self._note_computed(request, start + count)
                tells = request.params.return_progress and not request.first_output_sent
                if scores or tells:
                    outputs.append(_on_the_way(request, scores, tells=tells))
                continue
            request.num_expected_tokens -= 1
            if slot in result.sampler_states:
                request.sampler_state = result.sampler_states[slot]
            is_one = request.matcher is None and not request.draft_token_ids and tokens[0] not in request.stop_ids
            is_plain = is_one and not logprobs and seconds is None and request.params.repetition_detection is None
            if is_plain and request.first_output_sent and len(token_ids) + 1 < request.limit_tokens:
                token_ids.append(tokens[0])
                self.num_generation_tokens += 1
                request.num_computed_tokens = start + count
                if start + count >= request.next_settle_tokens:
                    self._kv.settle(request)
                outputs.append(EngineCoreOutput(request.request_id, tokens))
            else:
                progress = self._take(request, start + count, tokens, jumps=jumps and request.can_jump)
                outputs += self._tell(request, progress, logprobs.get(slot), scores)
        return outputs

    def _pooled(self, request: Request, end: int, result: bytes) -> EngineCoreOutput:
        """The end of a request that wanted a vector."""
        self._note_computed(request, end)
        output = output_of(request, Progress(finish_reason="stop"), None, None)
        self._live.finish(request)
        return msgspec.structs.replace(output, pooled=result)

    def _note_computed(self, request: Request, num_computed_tokens: int) -> None:
        """So many tokens have keys and values."""
        request.num_computed_tokens = num_computed_tokens
        if num_computed_tokens >= request.next_settle_tokens:
            self._kv.settle(request)

    def _take(self, request: Request, end: int, sampled: list[int], *, jumps: bool) -> Progress:
        """Append what was sampled; `end`: of the tokens that were computed, drafts included."""
        num_drafted = len(request.draft_token_ids)
        request.draft_token_ids, request.draft_places = [], []
        progress = take_tokens(request, sampled, jumps=jumps)
        self.num_generation_tokens += len(progress.token_ids)
        if num_drafted and self._drafter is not None:
            self._drafter.accepted(request, num_drafted, max(0, progress.num_sampled - 1))
        if progress.error is None:
            # The last of them is computed by a later step; what was computed of a draft behind it does not count.
            self._note_computed(request, end - num_drafted + progress.num_sampled - 1)
        return progress

    def _tell(
        self,
        request: Request,
        progress: Progress,
        logprobs: list[TokenLogprobs] | None,
        prompt_logprobs: list[TokenLogprobs] | None,
    ) -> list[EngineCoreOutput]:
        """One output; an error behind tokens that were right is a second."""
        outputs: list[EngineCoreOutput] = []
        if progress.error is None or progress.token_ids:
            outputs.append(output_of(request, progress, logprobs, prompt_logprobs))
        if progress.error is not None:
            message = f"The constraint on the output of this request failed: {progress.error}."
            outputs.append(self._live.end(request, "error", message))
        elif progress.finish_reason is not None:
            self._live.finish(request)
        return outputs


def _on_the_way(request: Request, prompt_logprobs: list[TokenLogprobs] | None, *, tells: bool) -> EngineCoreOutput:
    """What is told of a prompt of which a part is computed."""
    return EngineCoreOutput(
        request.request_id,
        [],
        prompt_logprobs=prompt_logprobs or None,
        num_cached_tokens=request.num_cached_tokens,
        scheduled_time=request.scheduled_time,
        num_computed_tokens=request.num_computed_tokens if tells else 0,
    )
