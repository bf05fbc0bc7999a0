"""What is computed in each step.

The law: there is no prefill phase and no decode phase. Every request has num_tokens known tokens and
num_computed_tokens tokens in the KV cache, and a step gives each as many tokens as it takes, within the budget, for
the second number to catch up with the first. Decoding is the case of one token behind. A chunked prompt, a prefix
hit, a preempted request that begins again, and tokens that a grammar dictates are the same law with another distance.

Who comes first: running requests that are one token behind (or one and what a grammar dictated after it), then running
prompts, then waiting requests in order of (priority, arrival), as long as all limits have room (`limits`). Nobody
waiting overtakes, but for a request whose prompt is just being computed by another: it lets others pass until it can
take those blocks from the cache (`shared_prompts`); and for one that begins with a medium, until that is encoded, which
takes several steps while others decode (`core.media`). What is then left of the step goes to drafts (`drafts`): tokens
that are guessed, computed behind those known, and kept as far as sampling finds them right.

When blocks run out, the newest running request gives up all of its own and goes back to the queue, whose front it
thereby is. What was in them is kept by the host, as long as that has room, or computed again. The oldest request is
never the newest, so it always ends, and so in turn does every other.

A device that computes beside the host is kept busy by planning one step ahead of the answer to the last: the token
that is being sampled then counts as known, and its value is filled in where it was sampled. Should it turn out to end
its request, the step ahead has computed one row in vain. Steps that need blocks of others wait for the answer, and
so do requests whose next step depends on the value: the others go on without them as long as they are few.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from octavo.base.config import EngineConfig
from octavo.core.adapters import AdapterLimit
from octavo.core.blocks.kv_cache_manager import KVCacheManager
from octavo.core.drafts import Drafter, draft_for
from octavo.core.faults import fault
from octavo.core.limits import BlockLimit, Candidate, EncoderLimit, Limit, SlotLimit, TokenLimit
from octavo.core.media import MediaCosts, MediaLimit
from octavo.core.request import Request, RequestStatus, sampling_seed_of
from octavo.core.scheduler.answers import Answers, Member
from octavo.core.scheduler.live_requests import LiveRequests
from octavo.core.scheduler.request_limits import PictureTiles, RequestLimits
from octavo.core.scheduler.shared_prompts import Frontier, still_waits
from octavo.wire.messages import AddRequest, EngineCoreOutput, EngineInfo, SchedulerStats
from octavo.wire.step import CachedRequestData, MediaPlace, ModelRunnerOutput, NewRequestData, SchedulerOutput

if TYPE_CHECKING:
    from octavo.core.grammar.structured import Matcher


#: One in so many, at most, of the running requests may be left out of steps that are planned ahead.
_FEW: Final = 4
#: While requests decode, one in so many of the tokens that a step may compute of prompts goes to encoding media.
_MEDIA_SHARE: Final = 4


@dataclass(slots=True)
class _Step:
    """A step that is being planned."""

    budget: int  # tokens that it may still take
    scheduled: dict[int, int] = field(default_factory=dict)  # slot -> tokens
    cached: list[CachedRequestData] = field(default_factory=list)
    new: list[NewRequestData] = field(default_factory=list)
    swap_in: list[tuple[int, list[int], list[int]]] = field(default_factory=list)
    prefilling: list[tuple[Request, int]] = field(default_factory=list)  # running, and so many tokens behind
    drafted: list[tuple[Request, CachedRequestData]] = field(default_factory=list)  # for which tokens may be proposed

    def give(self, request: Request, count: int) -> None:
        self.scheduled[request.slot] = self.scheduled.get(request.slot, 0) + count
        self.budget -= count


class Scheduler:
    """Pure bookkeeping: no clock but for time stamps, no I/O. One caller, one thread:

    add, abort* , schedule -> (the worker runs) -> update or fail_step, and again. `abort` may also come between
    schedule and update, and a second `schedule` where `can_plan_ahead`. Each request gets exactly one
    `EngineCoreOutput` with a finish_reason.
    """

    def __init__(self, config: EngineConfig, info: EngineInfo, drafter: Drafter | None = None) -> None:
        self.max_num_seqs = info.max_num_seqs
        self.max_num_batched_tokens = info.max_num_batched_tokens
        self.max_num_prefill_tokens = info.max_num_prefill_tokens
        self.max_model_len = info.max_model_len
        self.vocab_size = info.vocab_size + info.extra_tokens
        pooling = info.pooling
        stays_whole = info.prompts_stay_whole or (pooling is not None and pooling.is_whole)
        self.enable_chunked_prefill = config.scheduler.enable_chunked_prefill and not stays_whole
        self.enable_jump_forward = config.scheduler.enable_jump_forward
        self._pictures = PictureTiles(info.media_tile_rows, info.media_tiles, info.max_media_items, info.block_size)
        self._max_encoder_rows = info.max_encoder_len or self._pictures.most_rows
        # What a sequence is made of is more than its blocks of tokens.
        is_whole = (
            info.has_states or info.num_encoder_groups > 0 or info.prompts_stay_whole or not info.kv_group_windows
        )
        self.kv = KVCacheManager(
            info.num_kv_blocks,
            info.block_size,
            config.cache.enable_prefix_caching and not is_whole,
            0 if is_whole or pooling else info.num_swap_blocks,
            info.caches_output,
            windows=info.kv_group_windows,
            step_tokens=info.max_num_prefill_tokens,
            num_encoder_groups=info.num_encoder_groups,
            max_encoder_len=self._max_encoder_rows,
            media_stays_whole=info.media_stays_whole,
        )
        self._tokens = TokenLimit(self.enable_chunked_prefill)
        self._slots = SlotLimit(self.max_num_seqs)
        self._encoders = EncoderLimit(max(info.max_num_prefill_tokens, self._max_encoder_rows))
        self.limits: list[Limit] = [self._tokens, self._encoders, self._slots, BlockLimit(self.kv)]
        self._adapters = AdapterLimit(info.max_loras) if info.max_loras else None
        self._prompt_adapters = None
        if info.max_prompt_adapters:
            self._prompt_adapters = AdapterLimit(info.max_prompt_adapters, of_prompts=True)
        self._adapter_limits = [limit for limit in (self._adapters, self._prompt_adapters) if limit is not None]
        self.limits[1:1] = self._adapter_limits
        self._media: MediaLimit | None = None
        if info.media_kinds and not info.media_tiles:
            self._media = MediaLimit(
                self.kv,
                info.media_step_rows,
                info.media_cache_rows,
                is_chunked=self.enable_chunked_prefill,
                stays_whole=info.media_stays_whole,
                costs=MediaCosts(info.layer_ops_per_token, info.media_unit_ops, info.media_attention_ops),
            )
            self.limits.insert(1, self._media)
        drafter = self._drafter = None if info.has_states or pooling else drafter
        self._request_limits = RequestLimits(
            info.vocab_size,
            self.max_model_len,
            self.kv.capacity_tokens,
            None if self.enable_chunked_prefill else self.max_num_batched_tokens,
            info.max_encoder_len,
            info.encoder_channels,
            info.media_kinds,
            info.media_width,
            info.max_loras,
            info.max_prompt_adapters,
            info.extra_tokens,
            self.max_num_prefill_tokens if info.media_stays_whole else None,
            self._pictures,
        )
        self._config_seed = config.model.seed

        self.live = LiveRequests(self.max_num_seqs, self.kv, self.limits)
        self.requests, self.slots = self.live.by_id, self.live.slots
        self.waiting, self.running = self.live.waiting, self.live.running
        self._answers = Answers(self.live, self.kv, drafter)
        self._unanswered: deque[list[Member]] = deque()  # who takes part in the steps under way, the oldest first

        self._num_arrivals = 0
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._prefix_cache_queries = 0
        self._prefix_cache_hits = 0
        self._step_tokens = 0

    # ------------------------------------------------------------------------------------------ arrivals and ends
    @property
    def takes_adapters(self) -> bool:
        return bool(self._adapter_limits)

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def add(self, message: AddRequest, matcher: Matcher | None = None) -> EngineCoreOutput | None:
        """Queue a request. One that could never run is refused: the output that ends it is returned.

        `matcher` holds the request to its grammar.
        """
        if message.request_id in self.requests:
            raise ValueError(f"request id {message.request_id} is in use")
        refusal = self._request_limits.refusal(message)
        if refusal is not None:
            return EngineCoreOutput(message.request_id, [], "error", error=refusal)
        self._num_arrivals += 1
        seed = sampling_seed_of(message, self._config_seed, self._num_arrivals)
        request = Request(
            message,
            limit_tokens=self._request_limits.max_tokens(message),
            sampling_seed=seed,
            arrival_number=self._num_arrivals,
            matcher=matcher,
            num_encoder_rows=self._pictures.num_rows(message.media) if self._pictures.tiles else None,
        )
        # Mirostat follows what was drawn: the rows behind a guess would have to know what came of those before.
        if self._drafter is not None and not request.params.mirostat and self._drafter.wants(request):
            request.is_drafted = request.needs_output = True
        self.live.add(request)
        return None

    def abort(self, request_ids: Iterable[int]) -> list[EngineCoreOutput]:
        """End these requests now. Unknown and finished ids change nothing."""
        outputs = []
        for request_id in request_ids:
            request = self.requests.get(request_id)
            if request is not None:
                outputs.append(self.live.end(request, "abort"))
        return outputs

    # ------------------------------------------------------------------------------------------ the plan of a step
    @property
    def can_plan_ahead(self) -> bool:
        """Whether `schedule` may be called although the last plan has not been answered.

        Requests whose token the host must see before the next (a grammar, a draft) take part in every other step then.
        A few wait so that the many do not; where they are many themselves, all wait for the answer.
        """
        if len(self._unanswered) != 1 or _FEW * self.live.num_needing_output > len(self.running):
            return False
        num_missing = 0
        for request in self.running:
            num_tokens = len(request.token_ids) + request.num_expected_tokens
            if num_tokens > request.num_allocated_tokens:
                num_computed = request.num_computed_tokens + request.num_in_flight_tokens
                num_next = self.kv.num_next_tokens(num_computed, num_tokens)
                num_missing += self.kv.num_missing_blocks(request, num_next)
        return num_missing <= self.kv.pool.num_free  # nobody will have to give up blocks that a step still reads

    def schedule(self) -> SchedulerOutput:
        """The next step. Nothing to compute: total_num_scheduled_tokens is 0, and freed slots are kept for later."""
        step, live = _Step(self.max_num_batched_tokens), self.live
        num_preemptions = live.num_preemptions
        if self._media is not None:
            self._media.begin_step()
        self._continue_decodes(step)
        # What one step computes of prompts is bounded apart: it is what the requests above have to wait for.
        beyond_prompts = max(0, step.budget - self.max_num_prefill_tokens)
        step.budget -= beyond_prompts
        self._continue_media(step)
        self._continue_prompts(step)
        if self.waiting and live.num_preemptions == num_preemptions:
            self._admit(step)
        step.budget += beyond_prompts
        self._add_drafts(step)

        total = sum(step.scheduled.values())
        if not total:
            return SchedulerOutput([], [], {}, [], 0, self._num_steps)
        self._num_steps += 1
        self._step_tokens = total
        plan = SchedulerOutput(
            new_requests=step.new,
            cached_requests=step.cached,
            num_scheduled_tokens=step.scheduled,
            finished_slots=live.finished_slots,
            total_num_scheduled_tokens=total,
            step_id=self._num_steps,
            masked_slots=self._take_off(step.scheduled),
            swap_dropped=live.swap_dropped,
            swap_out=live.swap_out,
            swap_in=step.swap_in,
        )
        live.finished_slots, live.swap_dropped, live.swap_out = [], [], []
        if self._adapters is not None:
            plan.adapters_placed = self._adapters.take_plan()
        if self._prompt_adapters is not None:
            plan.prompts_placed = self._prompt_adapters.take_plan()
        if self._media is not None:
            plan.media_dropped, plan.media_encoded = self._media.take_plan()
        return plan

    def _continue_decodes(self, step: _Step) -> None:
        """Give every running request that decodes its token, or those of its jump, and find the prompts on their way.

        `running` may lose its tail meanwhile: those preempted are newer than the one that is looked at.
        """
        budget, scheduled = step.budget, step.scheduled
        for request in self.running:
            if not budget:
                break
            num_tokens = len(request.token_ids) + request.num_expected_tokens
            if request.num_expected_tokens and (request.needs_output or num_tokens >= request.limit_tokens):
                continue  # the expected token must be seen first, or is its last
            num_computed = request.num_computed_tokens + request.num_in_flight_tokens
            count = num_tokens - num_computed
            if num_tokens > request.num_allocated_tokens and not self._grow(request, num_computed, num_tokens):
                break
            if count > 1 and not request.unsent_token_ids:
                step.prefilling.append((request, count))
                continue
            known = CachedRequestData(request.slot, request.unsent_block_ids, num_computed)
            if request.unsent_block_ids:
                request.unsent_block_ids = []
            if count > 1:  # it jumped
                count = min(count, budget, request.num_allocated_tokens - num_computed)
                known.new_token_ids, request.unsent_token_ids = request.unsent_token_ids, []
            elif request.is_drafted:
                step.drafted.append((request, known))
            step.cached.append(known)
            scheduled[request.slot] = count
            budget -= count
        step.budget = budget

    def _continue_media(self, step: _Step) -> None:
        """Media on their way. While requests decode, encoding has a part of what a step may compute of prompts, whose
        tokens make room for it; else it takes what it takes, for nobody waits for the step."""
        if self._media is not None:
            is_decoding = len(self.running) > len(step.prefilling)
            most = max(1, self.max_num_prefill_tokens // _MEDIA_SHARE)
            step.budget = max(0, step.budget - self._media.go_on(most if is_decoding else None))

    def _continue_prompts(self, step: _Step) -> None:
        """Prompts on their way, and what was left of a long jump: they have the blocks of what a step computes."""
        for request, count in step.prefilling:
            if not step.budget:
                break
            num_computed = request.num_computed_tokens + request.num_in_flight_tokens
            count = min(count, step.budget)
            if self._media is not None and request.media:
                count = self._media.fit(request, num_computed, count)
                if count:
                    self._media.claim(request, num_computed, count)
                self._media.look_ahead(request, num_computed + count)
                if not count:
                    continue  # until there is room for what comes next, or its rows are there
            new_ids, request.unsent_block_ids = request.unsent_block_ids, []
            step.cached.append(CachedRequestData(request.slot, new_ids, num_computed))
            step.give(request, count)

    def _take_off(self, scheduled: dict[int, int]) -> list[int]:
        """Note down who is part of the step that has just been planned, and what it will have computed.

        Returns the slots that sample and have a grammar.
        """
        members: list[Member] = []
        masked: list[int] = []
        for slot, count in scheduled.items():
            request = self.slots[slot]
            assert request is not None
            request.num_in_flight_tokens += count
            num_tokens = len(request.token_ids) + request.num_expected_tokens
            if request.num_computed_tokens + request.num_in_flight_tokens >= num_tokens:
                request.num_expected_tokens += 1
                if request.matcher is not None:
                    masked.append(slot)
            members.append(Member(request, slot, count))
        self._unanswered.append(members)
        return masked

    def _grow(self, request: Request, num_computed: int, num_tokens: int) -> bool:
        """The blocks that `request` needs in the step that goes on from `num_computed`, taken from the newest if too
        few are free. False: it was the newest itself."""
        num_next = self.kv.num_next_tokens(num_computed, num_tokens)
        while (new_ids := self.kv.grow(request, num_next)) is None:
            victim = self.running[-1]
            self.live.preempt(victim)
            if victim is request:
                return False
        request.unsent_block_ids = _joined(request.unsent_block_ids, new_ids)
        return True

    def _admit(self, step: _Step) -> None:
        """Let waiting requests in, in order, as long as all limits have room."""
        frontier = Frontier(request for request, _ in step.prefilling)
        self._tokens.left, self._encoders.left = step.budget, self._encoders.num_rows
        index = 0
        while index < len(self.waiting) and self._tokens.left and self._slots.free:
            request = self.waiting[index]
            if still_waits(request):
                index += 1
                continue
            computed = self.kv.get_computed_blocks(request)
            if frontier.holds_up(request, len(computed), self.kv):
                index += 1
                continue
            candidate = Candidate(request, computed)
            start = self.kv.num_tokens_at_hand(request, computed)
            if self._media is not None and self._media.holds_up(request, start):
                index += 1
                continue
            count = len(request.token_ids) - start
            for limit in self.limits:
                count = limit.room(candidate, count)
                if not count:
                    return
            for limit in self.limits:
                limit.take(candidate, count)
            del self.waiting[index]
            if request.num_swapped_tokens > len(computed) * self.kv.block_size:
                step.swap_in.append((request.request_id, *self.kv.swap_in(request, computed)))
                self.kv.drop_swapped(request)
            else:
                self.live.drop_swapped(request)
            step.new.append(self._enter(request))
            step.give(request, count)
            frontier.add(request)

    def _enter(self, request: Request) -> NewRequestData:
        """Let an admitted request run in its slot."""
        self.live.enter(request)
        if request.scheduled_time == 0.0:  # the first time, not after a preemption
            request.scheduled_time = time.monotonic()
            request.num_cached_tokens = request.num_computed_tokens
            if request.is_counted:
                self._num_prompt_tokens += request.num_prompt_tokens + len(request.encoder_token_ids)
                self._prefix_cache_queries += request.num_prompt_tokens
                self._prefix_cache_hits += request.num_computed_tokens
        return NewRequestData(
            slot=request.slot,
            request_id=request.request_id,
            prompt_token_ids=list(request.token_ids),
            num_prompt_tokens=request.num_prompt_tokens,
            params=request.params,
            eos_token_ids=request.eos_token_ids,
            block_ids=[list(table) for table in request.block_tables],
            num_computed_tokens=request.num_computed_tokens,
            sample_index=request.sample_index,
            sampling_seed=request.sampling_seed,
            adapter_slot=-1 if request.num_virtual_tokens else request.adapter_slot,
            prompt_slot=request.adapter_slot if request.num_virtual_tokens else -1,
            num_virtual_tokens=request.num_virtual_tokens,
            encoder_token_ids=request.encoder_token_ids,
            encoder_frames=request.encoder_frames,
            encoder_block_ids=request.encoder_block_tables,
            pooling=request.pooling,
            encoder_media=request.media if self._pictures.tiles else (),
            media=[]
            if self._pictures.tiles
            else [MediaPlace(item.digest, item.spans, item.grid, item.time_step) for item in request.media],
            sampler_state=request.sampler_state,
        )

    def _add_drafts(self, step: _Step) -> None:
        """Let requests of this step compute draft tokens with what it has left. Nobody gives up blocks for a guess, and
        some stay free for those who need one next."""
        if self._drafter is None:
            return
        for request, known in step.drafted:
            jumps = self.enable_jump_forward and request.can_jump
            draft, places = draft_for(request, self._drafter, step.budget, self.vocab_size, jumps=jumps)
            num_tokens = len(request.token_ids)
            num_missing = self.kv.num_missing_blocks(request, num_tokens + len(draft))
            if num_missing > self.kv.pool.num_free - self.kv.watermark:
                del draft[request.num_allocated_tokens - num_tokens :]
                del places[len(draft) :]
            elif num_missing:
                new_ids = self.kv.grow(request, num_tokens + len(draft)) or []
                known.new_block_ids = _joined(known.new_block_ids, new_ids)
            request.draft_token_ids, request.draft_places = draft, places
            known.draft_token_ids = draft
            step.give(request, len(draft))

    # ------------------------------------------------------------------------------------------ the worker's answer
    def update(self, plan: SchedulerOutput, result: ModelRunnerOutput) -> list[EngineCoreOutput]:
        """Take in what the oldest unanswered step produced: tokens are appended, full blocks enter the cache, requests
        end."""
        fault("update")
        return self._answers.take_in(self._unanswered.popleft(), result, jumps=self.enable_jump_forward)

    def next_members(self) -> list[Request]:
        """Who takes part in the oldest unanswered step, for whoever looks on."""
        return [member.request for member in self._unanswered[0] if not member.request.finished]

    def fail_step(self, plan: SchedulerOutput, message: str) -> list[EngineCoreOutput]:
        """The newest planned step did not happen: its requests end with an error, the others go on."""
        # The worker may not have come as far as dropping the slots it was told to drop.
        self.live.finished_slots += plan.finished_slots
        self.live.swap_dropped += [*plan.swap_dropped, *(request_id for request_id, _, _ in plan.swap_in)]
        # Nor as far as keeping what it was told to keep: that is computed again.
        for request_id, _ in plan.swap_out:
            if (request := self.requests.get(request_id)) is not None:
                self.live.drop_swapped(request)
        if self._media is not None:
            self._media.forget(plan.media_encoded, plan.media_dropped)
        members = self._unanswered.pop()
        outputs = [
            self.live.end(request, "error", message)
            for request, _, _ in members
            if request.status is RequestStatus.RUNNING
        ]
        if self._adapters is not None:
            self._adapters.fail(plan.adapters_placed)
        if self._prompt_adapters is not None:
            self._prompt_adapters.fail(plan.prompts_placed)
        return outputs

    # ------------------------------------------------------------------------------------------------- maintenance
    def reset_prefix_cache(self) -> None:
        self.kv.reset_prefix_cache()

    def forget_worker(self) -> None:
        """The worker has forgotten slots, KV cache and what it swapped out. There are no requests."""
        assert not self.requests and not self._unanswered
        for limit in self._adapter_limits:
            limit.reset()
        self.reset_prefix_cache()
        if self._media is not None:
            self._media.clear()
        self.live.finished_slots, self.live.swap_dropped, self.live.swap_out = [], [], []

    def stats(self) -> SchedulerStats:
        stats = SchedulerStats(
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            kv_blocks_used=self.kv.num_blocks_used,
            kv_blocks_total=self.kv.pool.num_usable,
            num_preemptions=self.live.num_preemptions,
            prefix_cache_queries=self._prefix_cache_queries,
            prefix_cache_hits=self._prefix_cache_hits,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generation_tokens=self._answers.num_generation_tokens,
            step_tokens=self._step_tokens,
            num_swapped=self.kv.num_swapped,
            swap_blocks_used=self.kv.num_swap_blocks - self.kv.num_free_swap_blocks,
            swap_blocks_total=self.kv.num_swap_blocks,
        )
        return stats if self._media is None else msgspec.structs.replace(stats, **self._media.stats())


def _joined(block_ids: list[list[int]], new_ids: list[list[int]]) -> list[list[int]]:
    """Group by group; `block_ids` may be none at all."""
    return [ids + new for ids, new in zip(block_ids, new_ids, strict=True)] if block_ids else new_ids
