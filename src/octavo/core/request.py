"""A request inside the engine: mutable state, owned by the scheduler."""

from __future__ import annotations

import enum
import hashlib
from typing import TYPE_CHECKING

import msgspec

from octavo.wire.messages import AddRequest, StepSeconds, TokenLogprobs

if TYPE_CHECKING:
    from octavo.core.blocks.block_pool import PrefixNode
    from octavo.core.grammar.structured import Matcher


class RequestStatus(enum.IntEnum):
    """WAITING -> RUNNING -> FINISHED, RUNNING <-> PREEMPTED, and from anywhere to FINISHED. No other edges."""

    WAITING = 0
    RUNNING = 1
    PREEMPTED = 2
    FINISHED = 3


class Request:
    """One sequence from its arrival to its end.

    token_ids:            | prompt ................ | output ........ |
                          0        num_prompt_tokens          num_tokens
    KV in block_tables:   | num_computed_tokens ...... |
    found by their hash:  | num_cached_blocks * block_size |

    The scheduler gives it tokens until num_computed_tokens == num_tokens; then a token is sampled and it is one
    behind again. Of a step that has been planned and not yet answered, num_in_flight_tokens are being computed, and
    num_expected_tokens (0 or 1) will be sampled, or more where draft_token_ids turn out to be right. Draft tokens are
    no tokens of the request: they count as in flight, and otherwise nowhere.
    """

    __slots__ = (
        "adapter",
        "adapter_slot",
        "block_hashes",
        "block_tables",
        "block_tokens",
        "cache_parent",
        "cache_salt",
        "can_jump",
        "draft_places",
        "draft_token_ids",
        "encoder_block_tables",
        "encoder_frames",
        "encoder_token_ids",
        "eos_token_ids",
        "first_output_sent",
        "is_counted",
        "is_drafted",
        "limit_tokens",
        "matcher",
        "media",
        "needs_output",
        "next_cache_tokens",
        "next_settle_tokens",
        "num_allocated_tokens",
        "num_cached_blocks",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_encoder_rows",
        "num_expected_tokens",
        "num_in_flight_tokens",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "num_swapped_blocks",
        "num_swapped_tokens",
        "num_virtual_tokens",
        "order",
        "params",
        "pooling",
        "request_id",
        "sample_index",
        "sampler_state",
        "sampling_seed",
        "scheduled_time",
        "slot",
        "status",
        "step_seconds",
        "stop_from_tokens",
        "stop_ids",
        "token_ids",
        "unsent_block_ids",
        "unsent_token_ids",
        "waits_for",
    )

    def __init__(
        self,
        message: AddRequest,
        *,
        limit_tokens: int,
        sampling_seed: int,
        arrival_number: int,
        matcher: Matcher | None = None,
        num_encoder_rows: int | None = None,
    ) -> None:
        """`num_encoder_rows`: places in the blocks of layers that see an encoder's rows; None: one for each token of
        its input."""
        params = message.params
        self.request_id = message.request_id
        # Rows of a prompt adapter count as tokens of the prompt, the first ones; no one looks at their ids.
        self.num_virtual_tokens = message.num_virtual_tokens
        self.token_ids: list[int] = [0] * message.num_virtual_tokens + list(message.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.params = params
        self.eos_token_ids = message.eos_token_ids
        self.sample_index = message.sample_index
        self.is_counted = message.is_counted
        self.sampling_seed = sampling_seed
        self.sampler_state: float | None = None  # of a sampler that follows what it drew; survives a preemption
        self.matcher = matcher  # its place in the grammar that it must follow; survives a preemption
        self.cache_salt = message.cache_salt
        self.media = message.media
        self.pooling = message.pooling  # what is wanted in place of tokens
        self.adapter = message.adapter
        self.adapter_slot = -1  # while it runs
        self.encoder_token_ids = message.encoder_token_ids
        self.encoder_frames = message.encoder_frames
        self.num_encoder_rows = len(message.encoder_token_ids) if num_encoder_rows is None else num_encoder_rows
        self.encoder_block_tables: list[list[int]] = []  # of each group of layers that see the encoder's rows
        # Who is first: smaller is sooner. Also who keeps the blocks when they run out.
        self.order = (message.priority, message.arrival_time, arrival_number)

        # Whether tokens that its grammar dictates may be taken without being sampled: not where each is to be scored,
        # nor where the caller has a say in which tokens there are.
        self.can_jump = matcher is not None and not (
            params.logprobs is not None
            or params.allowed_token_ids is not None
            or params.bad_word_token_ids
            or params.logit_bias
        )

        # Whether its next step depends on what the host does with the last token: then none is planned ahead of that.
        self.needs_output = matcher is not None or params.needs_output or message.pooling is not None

        self.limit_tokens = limit_tokens  # it ends with "length" at this many tokens
        # Ids that end it, looked at only when it has more than stop_from_tokens tokens (min_tokens).
        self.stop_ids = frozenset(params.stop_token_ids + (() if params.ignore_eos else message.eos_token_ids))
        self.stop_from_tokens = self.num_prompt_tokens + params.min_tokens

        self.status = RequestStatus.WAITING
        self.slot = -1
        # (another request, block index): not admitted before the other has that block in the cache, or runs no more.
        self.waits_for: tuple[Request, int] | None = None
        self.num_computed_tokens = 0
        self.num_in_flight_tokens = 0
        self.num_expected_tokens = 0
        self.num_swapped_tokens = 0  # of a preempted request: tokens whose keys and values the host keeps
        self.num_swapped_blocks = 0  # in so many blocks
        self.block_tables: list[list[int]] = []  # of each group of layers; 0 where a window has left a block behind
        self.num_allocated_tokens = 0  # tokens for which all tables have blocks
        self.unsent_block_ids: list[list[int]] = []  # the ends of the tables that the worker lacks
        self.unsent_token_ids: list[int] = []  # the end of token_ids that the worker of a running request lacks
        self.is_drafted = False  # a drafter may propose tokens for it
        self.draft_token_ids: list[int] = []  # those being verified
        self.draft_places: list[Matcher] = []  # its place in the grammar after each of them, if it has one

        # The prefix cache's view (KVCacheManager): keys of the full blocks, and how far they are in the cache.
        self.block_hashes: list[bytes] = []
        self.block_tokens: list[bytes] = []
        self.num_cached_blocks = 0
        self.next_cache_tokens = 0  # computed tokens at which the next block can enter the cache
        self.next_settle_tokens = 0  # computed tokens at which a block enters the cache, or a window leaves one
        self.cache_parent: PrefixNode | str = self.cache_salt  # what the next block of the chain hangs on

        # Prompt tokens whose log probabilities were told, the first not counted; nobody asks for those of virtual ones.
        self.num_prompt_logprobs = self.num_virtual_tokens

        # Reported with the first output.
        self.first_output_sent = False
        self.num_cached_tokens = 0
        self.scheduled_time = 0.0
        self.step_seconds: StepSeconds | None = None  # of the steps that it took part in, where they are measured

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_reusable_tokens(self) -> int:
        """Tokens that may come from the prefix cache: not the last, and none whose row is to score the prompt."""
        if self.pooling is not None and self.pooling.kind != "last":
            return 0  # its vector is made of all rows, or of the first
        if self.params.prompt_logprobs is None or self.num_prompt_logprobs == self.num_prompt_tokens - 1:
            return len(self.token_ids) - 1
        return self.num_prompt_logprobs

    def fresh_prompt_logprobs(self, start: int, scores: list[TokenLogprobs]) -> list[TokenLogprobs]:
        """Of the scores from token start + 1 on, those not told before; a preempted prompt is scored again."""
        fresh = scores[self.num_prompt_logprobs - start :]
        self.num_prompt_logprobs += len(fresh)
        return fresh

    @property
    def has_extra_keys(self) -> bool:
        """Whether its blocks are more than their tokens."""
        return bool(self.media or self.adapter)

    def extra_key(self, start: int, end: int) -> bytes:
        """What the keys and values of tokens start .. end - 1 depend on beside the ids of the tokens up to there.

        Of media that touch them: what they are, and which of their rows the tokens are.
        """
        touching = [
            (item.kind, item.digest, [(first - start, length) for first, length in item.spans])
            for item in self.media
            if item.offset < end and item.end > start
        ]
        return msgspec.msgpack.encode((self.adapter, touching)) if touching or self.adapter else b""

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def finished(self) -> bool:
        return self.status is RequestStatus.FINISHED

    def stop_of(self, token_id: int) -> tuple[str | None, int | None]:
        """(finish_reason, stop_reason) if `token_id`, just appended, ends the request; else (None, None).

        Order: EOS, stop token ids (neither within min_tokens), then a repetition, context length and max_tokens.
        """
        num_tokens = len(self.token_ids)
        if token_id in self.stop_ids and num_tokens > self.stop_from_tokens:
            is_eos = token_id in self.eos_token_ids and not self.params.ignore_eos
            return "stop", None if is_eos else token_id
        detection = self.params.repetition_detection
        may_end = detection is not None and num_tokens > self.stop_from_tokens
        if detection is not None and may_end and detection.found(self.token_ids, self.num_output_tokens):
            return "repetition", None
        if num_tokens >= self.limit_tokens:
            return "length", None
        return None, None


def sampling_seed_of(message: AddRequest, config_seed: int, counter: int) -> int:
    """The seed of one sequence, 0 <= seed < 2**63.

    From the caller's seed, so that the same request gives the same tokens; without one from the engine's seed and
    a counter, so that no two requests share it. The sample index makes the n samples of a request differ.
    """
    seed = message.params.seed
    text = f"engine {config_seed} {counter}" if seed is None else f"request {seed}"
    digest = hashlib.sha256(f"{text} {message.sample_index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
