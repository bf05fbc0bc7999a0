"""The plan of one step, from the scheduler to the worker, and the worker's answer. Host data only.

A running request has a slot (0..max_num_seqs-1) from its admission to its end or preemption. The worker keeps
the state of a slot (tokens, block ids, parameters); what it already knows is sent as a difference.

A slot samples in a step iff num_computed_tokens + num_scheduled_tokens[slot] == the number of its tokens known.
The worker then appends the sampled token to its own state of the slot; the scheduler appends the same. Tokens that a
grammar dictates after it are known to the scheduler first and come with the slot's next difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.messages import TokenLogprobs
from octavo.params import SamplingParams


@dataclass(slots=True)
class NewRequestData:
    """A request that enters a slot, whole. Replaces whatever the worker kept for that slot."""

    slot: int
    request_id: int
    prompt_token_ids: list[int]  # all tokens known so far: the prompt, then the outputs before a preemption
    num_prompt_tokens: int  # how many of them are the caller's prompt
    params: SamplingParams
    eos_token_ids: tuple[int, ...]
    block_ids: list[int]  # the KV blocks of tokens 0, block_size, 2*block_size, ...
    num_computed_tokens: int  # tokens whose KV is already in those blocks (a prefix hit)
    sample_index: int
    sampling_seed: int | None  # 0 <= seed < 2**63, sample_index mixed in; a greedy request does not use it


@dataclass(slots=True)
class CachedRequestData:
    """A request that stays in its slot: the difference to the worker's state."""

    slot: int
    new_block_ids: list[int]  # to be appended to the slot's block table
    num_computed_tokens: int
    #: Output tokens that followed the last sampled one without being sampled: to be appended to the slot's tokens.
    new_token_ids: Sequence[int] = ()


@dataclass(slots=True)
class TokenMasks:
    """Which tokens may be sampled in slots that have a grammar. Valid until the step's end.

    They are made while the model computes: nothing but `slots` may be read before `wait` has returned.
    """

    slots: list[int]
    words: Any  # a buffer of 32-bit words, equally many for each of `slots`: bit i of a slot's words for token i
    wait: Callable[[], object]


@dataclass(slots=True)
class SchedulerOutput:
    """One step. Ownership passes to the worker, which must not mutate it: `Scheduler.update` reads it again."""

    new_requests: list[NewRequestData]
    cached_requests: list[CachedRequestData]
    num_scheduled_tokens: dict[int, int]  # slot -> count; iteration order = batch order
    finished_slots: list[int]  # freed since the last step: drop them before `new_requests` are read
    total_num_scheduled_tokens: int
    step_id: int
    masks: TokenMasks | None = None
    # Before anything else of the step, in this order: copies that nobody will ask for again (request ids); blocks of
    # requests that were preempted, to be kept on the host; and such copies to be put back, from their i-th block on.
    swap_dropped: list[int] = field(default_factory=list)
    swap_out: list[tuple[int, list[int]]] = field(default_factory=list)  # request id, block ids
    swap_in: list[tuple[int, int, list[int]]] = field(default_factory=list)  # request id, i, block ids


@dataclass(slots=True)
class ModelRunnerOutput:
    """The answer to one step; every scheduled slot has an entry in `sampled_token_ids` or in `errors`."""

    sampled_token_ids: dict[int, list[int]]  # slot -> [] while the slot's prompt is incomplete, else [token]
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)  # slot -> one entry a sampled token
    # slot -> one entry a scheduled token, for the token behind it as far as that is the prompt's; when asked for
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)  # slot -> why that request alone ends with an error
