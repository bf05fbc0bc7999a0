"""What is computed in each step.

The law: there is no prefill phase and no decode phase. Every request has num_tokens known tokens and
num_computed_tokens tokens in the KV cache, and a step gives each as many tokens as it takes, within the budget, for
the second number to catch up with the first. Decoding is the case of one token behind. A chunked prompt, a prefix
hit, a preempted request that begins again, and tokens that a grammar dictates are the same law with another distance.

Who comes first: running requests that are one token behind (or one and what a grammar dictated after it), then running
prompts, then waiting requests in order of (priority, arrival). Nobody waiting overtakes, but for a request whose
prompt is just being computed by another (n samples of one prompt, a shared document): it lets others pass until it can
take those blocks from the cache.

When blocks run out, the newest running request gives up all of its own and goes back to the queue, whose front it
thereby is. What was in them is kept by the host, as long as that has room, or computed again. The oldest request is
never the newest, so it always ends, and so in turn does every other.

A device that computes beside the host is kept busy by planning one step ahead of the answer to the last: the token
that is being sampled then counts as known, and its value is filled in where it was sampled. Should it turn out to end
its request, the step ahead has computed one row in vain. Steps that need blocks of others, and requests whose next
step depends on the value, wait for the answer.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from octavo.config import EngineConfig
from octavo.core.faults import fault
from octavo.core.kv_cache_manager import KVCacheManager
from octavo.core.request import Request, RequestStatus, sampling_seed_of
from octavo.messages import AddRequest, EngineInfo, RequestOutput, SchedulerStats, TokenLogprobs
from octavo.step import CachedRequestData, ModelRunnerOutput, NewRequestData, SchedulerOutput

if TYPE_CHECKING:
    from octavo.core.structured import Matcher

logger = logging.getLogger("octavo.core")

_order = attrgetter("order")


class Scheduler:
    """Pure bookkeeping: no clock but for time stamps, no I/O. One caller, one thread:

    add, abort* , schedule -> (the worker runs) -> update or fail_step, and again. `abort` may also come between
    schedule and update, and a second `schedule` where `can_plan_ahead`. Each request gets exactly one `RequestOutput`
    with a finish_reason.
    """

    def __init__(self, config: EngineConfig, info: EngineInfo) -> None:
        self.max_num_seqs = info.max_num_seqs
        self.max_num_batched_tokens = info.max_num_batched_tokens
        self.max_num_prefill_tokens = info.max_num_prefill_tokens
        self.max_model_len = info.max_model_len
        self.vocab_size = info.vocab_size
        self.enable_chunked_prefill = config.scheduler.enable_chunked_prefill
        self.enable_jump_forward = config.scheduler.enable_jump_forward
        self.kv = KVCacheManager(
            info.num_kv_blocks,
            info.block_size,
            config.cache.enable_prefix_caching,
            info.num_swap_blocks,
            info.caches_output,
        )
        self._config_seed = config.model.seed

        self.requests: dict[int, Request] = {}  # all that have not ended
        self.waiting: list[Request] = []  # sorted by order
        self.running: list[Request] = []  # sorted by order
        self.slots: list[Request | None] = [None] * self.max_num_seqs
        self._free_slots = list(range(self.max_num_seqs - 1, -1, -1))
        # Who takes part in the steps that were planned and not answered: (request, slot, tokens), oldest step first.
        self._unanswered: deque[list[tuple[Request, int, int]]] = deque()
        self._num_needing_output = 0  # of those that run
        # Since the last plan: slots that were freed, blocks that the host is to keep, and those it need no more.
        self._finished_slots: list[int] = []
        self._swap_out: list[tuple[int, list[int]]] = []
        self._swap_dropped: list[int] = []

        self._num_arrivals = 0
        self._num_preemptions = 0
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_generation_tokens = 0
        self._prefix_cache_queries = 0
        self._prefix_cache_hits = 0
        self._step_tokens = 0

    # ------------------------------------------------------------------------------------------ arrivals and ends
    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def add(self, message: AddRequest, matcher: Matcher | None = None) -> RequestOutput | None:
        """Queue a request. One that could never run is refused: the output that ends it is returned.

        `matcher` holds the request to its grammar.
        """
        if message.request_id in self.requests:
            raise ValueError(f"request id {message.request_id} is in use")
        refusal = self._refusal(message)
        if refusal is not None:
            return RequestOutput(message.request_id, [], "error", error=refusal)
        self._num_arrivals += 1
        limit = min(self.max_model_len, self.kv.capacity_tokens)
        if not self.enable_chunked_prefill:  # after a preemption all of its tokens must fit one step
            limit = min(limit, self.max_num_batched_tokens)
        if message.params.max_tokens is not None:
            limit = min(limit, len(message.prompt_token_ids) + message.params.max_tokens)
        seed = sampling_seed_of(message, self._config_seed, self._num_arrivals)
        request = Request(
            message, limit_tokens=limit, sampling_seed=seed, arrival_number=self._num_arrivals, matcher=matcher
        )
        self.requests[request.request_id] = request
        insort(self.waiting, request, key=_order)
        return None

    def _refusal(self, message: AddRequest) -> str | None:
        """Why the request can never run, or None."""
        prompt = message.prompt_token_ids
        if not prompt:
            return "The prompt is empty."
        if min(prompt) < 0 or max(prompt) >= self.vocab_size:
            return f"The prompt contains a token id outside 0..{self.vocab_size - 1}."
        num_tokens = len(prompt) + (message.params.max_tokens or 1)
        if num_tokens > self.max_model_len:
            return f"The request needs {num_tokens} tokens, but the context has {self.max_model_len}."
        if num_tokens > self.kv.capacity_tokens:
            return f"The request needs {num_tokens} tokens, but the KV cache holds {self.kv.capacity_tokens}."
        if not self.enable_chunked_prefill and num_tokens > self.max_num_batched_tokens:
            return (
                f"The request needs {num_tokens} tokens, but without chunked prefill a step takes at most "
                f"{self.max_num_batched_tokens}."
            )
        return None

    def abort(self, request_ids: Iterable[int]) -> list[RequestOutput]:
        """End these requests now. Unknown and finished ids change nothing."""
        outputs = []
        for request_id in request_ids:
            request = self.requests.get(request_id)
            if request is not None:
                outputs.append(self._end(request, "abort"))
        return outputs

    def _end(self, request: Request, reason: str, error: str | None = None) -> RequestOutput:
        """The one way out other than a stop in `update`."""
        self._finish(request, forget=reason == "error")
        return RequestOutput(request.request_id, [], reason, error=error)

    def _finish(self, request: Request, *, forget: bool = False) -> None:
        if request.status is RequestStatus.RUNNING:
            self._leave(request, forget=forget)
        else:
            self._remove_sorted(self.waiting, request)
            self._drop_swapped(request)
        request.status = RequestStatus.FINISHED
        del self.requests[request.request_id]

    def _leave(self, request: Request, *, forget: bool = False) -> None:
        """Take a running request off its slot and its blocks."""
        self._remove_sorted(self.running, request)
        self.kv.free(request, forget=forget)
        request.unsent_token_ids = []
        request.num_in_flight_tokens = request.num_expected_tokens = 0
        self._num_needing_output -= request.needs_output
        self.slots[request.slot] = None
        self._free_slots.append(request.slot)
        self._finished_slots.append(request.slot)
        request.slot = -1

    def _drop_swapped(self, request: Request) -> None:
        """What the host keeps of a preempted request is of no use any more."""
        if request.num_swapped_tokens:
            self.kv.drop_swapped(request)
            self._swap_dropped.append(request.request_id)

    @staticmethod
    def _remove_sorted(queue: list[Request], request: Request) -> None:
        index = bisect_left(queue, request.order, key=_order)
        assert queue[index] is request
        del queue[index]

    # ------------------------------------------------------------------------------------------ the plan of a step
    @property
    def can_plan_ahead(self) -> bool:
        """Whether `schedule` may be called although the last plan has not been answered."""
        if len(self._unanswered) != 1 or self._num_needing_output:
            return False
        num_grown = sum(
            len(request.token_ids) + request.num_expected_tokens > request.num_allocated_tokens
            for request in self.running
        )
        return num_grown <= self.kv.pool.num_free  # nobody will have to give up blocks that a step still reads

    def schedule(self) -> SchedulerOutput:
        """The next step. Nothing to compute: total_num_scheduled_tokens is 0, and freed slots are kept for later."""
        budget = self.max_num_batched_tokens
        scheduled: dict[int, int] = {}
        cached: list[CachedRequestData] = []
        prefilling: list[tuple[Request, int]] = []
        running = self.running
        num_preemptions = self._num_preemptions

        # Decodes. `running` may lose its tail meanwhile: those preempted are newer than the one that is looked at.
        for request in running:
            if not budget:
                break
            num_tokens = len(request.token_ids) + request.num_expected_tokens
            if num_tokens >= request.limit_tokens and request.num_expected_tokens:
                continue  # the expected token is its last
            num_computed = request.num_computed_tokens + request.num_in_flight_tokens
            count = num_tokens - num_computed
            if count > 1 and not request.unsent_token_ids:
                prefilling.append((request, count))
                continue
            new_ids: list[int] = []
            if num_tokens > request.num_allocated_tokens:
                if (grown := self._grow(request, num_tokens)) is None:
                    break
                new_ids = grown
            unsent: Sequence[int] = ()
            if count > 1:  # it jumped
                count = min(count, budget)
                unsent, request.unsent_token_ids = request.unsent_token_ids, []
            scheduled[request.slot] = count
            cached.append(CachedRequestData(request.slot, new_ids, num_computed, unsent))
            budget -= count

        # What one step computes of prompts is bounded apart: it is what the requests above have to wait for.
        budget = min(budget, self.max_num_prefill_tokens)
        # Prompts on their way, and what was left of a long jump: they have all of their blocks.
        for request, count in prefilling:
            if not budget:
                break
            count = min(count, budget)
            scheduled[request.slot] = count
            num_computed = request.num_computed_tokens + request.num_in_flight_tokens
            cached.append(CachedRequestData(request.slot, [], num_computed))
            budget -= count

        new: list[NewRequestData] = []
        swap_in: list[tuple[int, int, list[int]]] = []
        if self.waiting and self._num_preemptions == num_preemptions:
            new, swap_in = self._admit(scheduled, [request for request, _ in prefilling], budget)

        total = sum(scheduled.values())
        if not total:
            return SchedulerOutput([], [], {}, [], 0, self._num_steps)
        self._num_steps += 1
        self._step_tokens = total
        masked = self._take_off(scheduled)
        plan = SchedulerOutput(
            new_requests=new,
            cached_requests=cached,
            num_scheduled_tokens=scheduled,
            finished_slots=self._finished_slots,
            total_num_scheduled_tokens=total,
            step_id=self._num_steps,
            masked_slots=masked,
            swap_dropped=self._swap_dropped,
            swap_out=self._swap_out,
            swap_in=swap_in,
        )
        self._finished_slots, self._swap_dropped, self._swap_out = [], [], []
        return plan

    def _take_off(self, scheduled: dict[int, int]) -> list[int]:
        """Note down who is part of the step that has just been planned, and what it will have computed.

        Returns the slots that sample and have a grammar.
        """
        members: list[tuple[Request, int, int]] = []
        masked: list[int] = []
        for slot, count in scheduled.items():
            request = self.slots[slot]
            assert request is not None
            request.num_in_flight_tokens += count
            num_tokens = len(request.token_ids) + request.num_expected_tokens
            if request.num_computed_tokens + request.num_in_flight_tokens == num_tokens:
                request.num_expected_tokens += 1
                if request.matcher is not None:
                    masked.append(slot)
            members.append((request, slot, count))
        self._unanswered.append(members)
        return masked

    def _grow(self, request: Request, num_tokens: int) -> list[int] | None:
        """A block for `request`, taken from the newest if none is free. None: it was the newest itself."""
        while (new_ids := self.kv.grow(request, num_tokens)) is None:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return None
        return new_ids

    def _preempt(self, request: Request) -> None:
        """Back to the queue. Its tokens stay, its blocks go: to the host, or it computes them anew, unless they are
        still in the cache then."""
        if block_ids := self.kv.swap_out(request):
            self._swap_out.append((request.request_id, block_ids))
        self._leave(request)
        request.status = RequestStatus.PREEMPTED
        insort(self.waiting, request, key=_order)
        self._num_preemptions += 1
        if self._num_preemptions % 50 == 1:
            logger.warning("The KV cache is full: a request was preempted (%d so far).", self._num_preemptions)

    def _admit(
        self, scheduled: dict[int, int], prefilling: list[Request], budget: int
    ) -> tuple[list[NewRequestData], list[tuple[int, int, list[int]]]]:
        """Let waiting requests in, in order, until the budget, the slots or the blocks are used up.

        The second result is what the host is to put back.
        """
        new: list[NewRequestData] = []
        swap_in: list[tuple[int, int, list[int]]] = []
        frontier = {key: request for request in prefilling if (key := self._frontier(request)) is not None}
        index = 0
        while index < len(self.waiting) and budget and self._free_slots:
            request = self.waiting[index]
            if self._still_waits(request):
                index += 1
                continue
            computed = self.kv.get_computed_blocks(request)
            if frontier and self._is_being_computed(request, len(computed), frontier):
                index += 1
                continue
            count = len(request.token_ids) - self.kv.num_tokens_at_hand(request, computed)
            if count > budget:
                if not self.enable_chunked_prefill:
                    break
                count = budget
            if not self.kv.admit(request, computed, keep_free=self.kv.watermark if self.running else 0):
                break
            del self.waiting[index]
            if request.num_swapped_tokens > len(computed) * self.kv.block_size:
                last = self.kv.num_blocks_of(request.num_swapped_tokens)
                swap_in.append((request.request_id, len(computed), request.block_ids[len(computed) : last]))
                self.kv.drop_swapped(request)
            else:
                self._drop_swapped(request)
            new.append(self._enter(request))
            scheduled[request.slot] = count
            budget -= count
            if (key := self._frontier(request)) is not None:
                frontier[key] = request
        return new, swap_in

    def _enter(self, request: Request) -> NewRequestData:
        """Give an admitted request its slot."""
        request.slot = self._free_slots.pop()
        request.status = RequestStatus.RUNNING
        self.slots[request.slot] = request
        insort(self.running, request, key=_order)
        self._num_needing_output += request.needs_output
        if request.scheduled_time == 0.0:  # the first time, not after a preemption
            request.scheduled_time = time.monotonic()
            request.num_cached_tokens = request.num_computed_tokens
            self._num_prompt_tokens += request.num_prompt_tokens
            self._prefix_cache_queries += request.num_prompt_tokens
            self._prefix_cache_hits += request.num_computed_tokens
        return NewRequestData(
            slot=request.slot,
            request_id=request.request_id,
            prompt_token_ids=list(request.token_ids),
            num_prompt_tokens=request.num_prompt_tokens,
            params=request.params,
            eos_token_ids=request.eos_token_ids,
            block_ids=list(request.block_ids),
            num_computed_tokens=request.num_computed_tokens,
            sample_index=request.sample_index,
            sampling_seed=request.sampling_seed,
        )

    # --------------------------------------------------------------------------- waiting for another's prompt blocks
    def _frontier(self, request: Request) -> bytes | None:
        """The hash of the first full block that a running prompt has not finished, None if it has no more."""
        index = request.num_cached_blocks
        return request.block_hashes[index] if index < len(request.block_hashes) else None

    def _is_being_computed(self, request: Request, num_hits: int, frontier: dict[bytes, Request]) -> bool:
        """Whether at least half of the full blocks that `request` lacks are just being computed by another.

        It then waits for them. No deadlock: the other is running, and running prompts always go on; should it be
        preempted or end early, it is in `frontier` no more.
        """
        num_missing = self.kv.num_shareable_blocks(request) - num_hits
        if num_missing <= 0 or request.num_swapped_tokens:
            return False
        other = frontier.get(request.block_hashes[num_hits])
        if other is None:
            return False
        # Hashes are chained: equal in the middle means equal up to there.
        middle = num_hits + num_missing // 2
        hashes = other.block_hashes
        if middle >= len(hashes) or hashes[middle] != request.block_hashes[middle]:
            return False
        request.waits_for = (other, middle)
        return True

    @staticmethod
    def _still_waits(request: Request) -> bool:
        """Whether the request that this one waited for in the last step has still not come as far as it should."""
        if request.waits_for is not None:
            other, index = request.waits_for
            if other.status is RequestStatus.RUNNING and other.num_cached_blocks <= index:
                return True
            request.waits_for = None  # look again: there may be hits now, or somebody else to wait for
        return False

    # ------------------------------------------------------------------------------------------ the worker's answer
    def update(self, plan: SchedulerOutput, result: ModelRunnerOutput) -> list[RequestOutput]:
        """Take in what the oldest unanswered step produced: tokens are appended, full blocks enter the cache, requests
        end."""
        fault("update")
        outputs: list[RequestOutput] = []
        sampled, logprobs, errors = result.sampled_token_ids, result.logprobs, result.errors
        scored = result.prompt_logprobs
        for request, slot, count in self._unanswered.popleft():
            if request.status is not RequestStatus.RUNNING:  # it ended while the step ran, or in the step before
                continue
            if slot in errors:
                outputs.append(self._end(request, "error", errors[slot]))
                continue
            start = request.num_computed_tokens
            computed = request.num_computed_tokens = start + count
            request.num_in_flight_tokens -= count
            if computed >= request.next_cache_tokens:
                self.kv.cache_computed_blocks(request)
            scores = request.fresh_prompt_logprobs(start, scored[slot]) if slot in scored else None
            tokens, token_ids = sampled[slot], request.token_ids
            if computed < len(token_ids):
                assert not tokens, f"slot {slot}: a token was sampled before all others were computed"
                if scores:
                    outputs.append(RequestOutput(request.request_id, [], prompt_logprobs=scores))
                continue
            token_id = tokens[0]
            token_ids.append(token_id)
            request.num_expected_tokens -= 1
            plain = request.first_output_sent and not logprobs and len(token_ids) < request.limit_tokens
            if plain and token_id not in request.stop_ids and request.matcher is None:
                outputs.append(RequestOutput(request.request_id, tokens))
            else:
                outputs.append(self._output(request, tokens, logprobs.get(slot), scores))
        self._num_generation_tokens += sum(map(len, sampled.values()))
        return outputs

    def _output(
        self,
        request: Request,
        tokens: list[int],
        token_logprobs: list[TokenLogprobs] | None,
        prompt_logprobs: list[TokenLogprobs] | None,
    ) -> RequestOutput:
        """The output of a step that is more than one token: the first, the last, one with logprobs or a grammar."""
        finish_reason, stop_reason = request.stop_of(tokens[-1])
        is_complete = False
        if request.matcher is not None and finish_reason != "stop":
            error = request.matcher.advance(tokens[-1])
            if error is not None:
                return self._end(request, "error", f"The constraint on the output of this request failed: {error}.")
            if request.matcher.is_complete:
                finish_reason, is_complete = "stop", True
            elif finish_reason is None and self.enable_jump_forward and request.can_jump:
                tokens = tokens + self._jump(request, request.matcher)
                finish_reason, stop_reason = request.stop_of(tokens[-1])
        is_first, request.first_output_sent = not request.first_output_sent, True
        if finish_reason is not None:
            self._finish(request)
        return RequestOutput(
            request.request_id,
            tokens,
            finish_reason,
            stop_reason,
            token_logprobs,
            num_cached_tokens=request.num_cached_tokens if is_first else 0,
            scheduled_time=request.scheduled_time if is_first else 0.0,
            prompt_logprobs=prompt_logprobs,
            is_complete=is_complete,
        )

    def _jump(self, request: Request, matcher: Matcher) -> list[int]:
        """Append the tokens that the grammar dictates next: the following steps compute them like any others."""
        room = request.limit_tokens - len(request.token_ids)
        dictated = matcher.jump(room, request.stop_ids)
        request.token_ids += dictated
        request.unsent_token_ids = dictated
        self._num_generation_tokens += len(dictated)
        return dictated

    def fail_step(self, plan: SchedulerOutput, message: str) -> list[RequestOutput]:
        """The newest planned step did not happen: its requests end with an error, the others go on."""
        # The worker may not have come as far as dropping the slots it was told to drop.
        self._finished_slots += plan.finished_slots
        self._swap_dropped += [*plan.swap_dropped, *(request_id for request_id, _, _ in plan.swap_in)]
        # Nor as far as keeping what it was told to keep: that is computed again.
        for request_id, _ in plan.swap_out:
            if (request := self.requests.get(request_id)) is not None:
                self._drop_swapped(request)
        members = self._unanswered.pop()
        return [
            self._end(request, "error", message) for request, _, _ in members if request.status is RequestStatus.RUNNING
        ]

    # ------------------------------------------------------------------------------------------------- maintenance
    def reset_prefix_cache(self) -> None:
        self.kv.reset_prefix_cache()

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            kv_blocks_used=self.kv.num_blocks_used,
            kv_blocks_total=self.kv.pool.num_usable,
            num_preemptions=self._num_preemptions,
            prefix_cache_queries=self._prefix_cache_queries,
            prefix_cache_hits=self._prefix_cache_hits,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generation_tokens=self._num_generation_tokens,
            step_tokens=self._step_tokens,
            num_swapped=self.kv.num_swapped,
            swap_blocks_used=self.kv.num_swap_blocks - self.kv.num_free_swap_blocks,
            swap_blocks_total=self.kv.num_swap_blocks,
        )
