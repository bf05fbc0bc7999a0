"""The worker's own record of every live request, by slot.

The scheduler sends a request whole once and differences after that; everything else a step needs stands here,
in arrays indexed by slot, so that a batch is gathered with a few vectorised reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from octavo.base.params import SamplingParams, SpeechAlignment, SpeechRules
from octavo.cache.pictures import View
from octavo.wire.step import CachedRequestData, MediaPlace, NewRequestData
from octavo.worker.masks import TokenMask
from octavo.worker.position_parts import PositionParts, position_parts


class PenaltyState:
    """Token counts of a request that penalises repetition: what stood in the prompt, what was generated."""

    __slots__ = ("output_counts", "prompt_ids")

    def __init__(self, prompt: np.ndarray, output: np.ndarray) -> None:
        self.prompt_ids = {int(i) for i in np.unique(prompt)}
        ids, counts = np.unique(output, return_counts=True)
        self.output_counts: dict[int, int] = dict(zip(ids.tolist(), counts.tolist(), strict=True))


class SlotParams(NamedTuple):
    """What the sampler looks up for a slot."""

    params: SamplingParams
    mask: TokenMask | None
    penalties: PenaltyState | None
    is_shaped: bool = False  # its rows are shaped on the host, with the parameters as they are here


class Draft(NamedTuple):
    """What is being verified in a slot: its rows are first_row .. first_row + len(token_ids), in order."""

    slot: int
    generation: int
    first_row: int
    token_ids: list[int]


class Rows(NamedTuple):
    """The rows of a step, at each of which a token is sampled. A slot's rows stand together, in order."""

    slots: np.ndarray  # int64 [S]
    num_tokens: np.ndarray  # int64 [S]: tokens of the slot before the sampled one, drafts included
    drafts: list[Draft]  # of the slots that have more than one row

    @property
    def plain(self) -> np.ndarray | None:
        """int64: the rows of slots without a draft; None: all of them."""
        if not self.drafts:
            return None
        is_plain = np.ones(len(self.slots), bool)
        for draft in self.drafts:
            is_plain[draft.first_row : draft.first_row + len(draft.token_ids) + 1] = False
        return is_plain.nonzero()[0]


class ExpectedTokens(NamedTuple):
    """Where tokens belong that are being sampled; int64 [S] each."""

    slots: np.ndarray
    generations: np.ndarray
    indices: np.ndarray  # within the slot's tokens


class RequestStates:
    """Arrays over slots. Rows of freed slots keep stale values; a slot is valid from `add` to `remove`."""

    def __init__(
        self,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        vocab_size: int,
        windows: Sequence[int] = (0,),
        num_encoder_groups: int = 0,
        max_encoder_len: int = 0,
    ) -> None:
        """`windows`: of each group of layers, 0 for one that keeps all keys; beside them there are groups of layers
        that see an encoder's rows, at most so many of a slot."""
        self.vocab_size = vocab_size
        max_blocks = -(-max_model_len // block_size)
        # Large and mostly unused: zeros come from fresh pages, which cost nothing until they are touched.
        self.token_ids = np.zeros((max_num_seqs, max_model_len + 1), np.int32)
        self._block_size = block_size
        self._windows = [(group, window) for group, window in enumerate(windows) if window]
        self.block_tables = np.zeros((len(windows), max_num_seqs, max_blocks + 1), np.int32)  # 0: behind the window
        self.num_blocks = np.zeros((len(windows), max_num_seqs), np.int64)
        self._num_left = np.zeros((len(windows), max_num_seqs), np.int64)  # blocks behind the window
        self.encoder_tables = np.zeros((num_encoder_groups, max_num_seqs, -(-max_encoder_len // block_size)), np.int32)
        self.encoder_lens = np.zeros(max_num_seqs, np.int32)  # rows
        self.num_tokens = np.zeros(max_num_seqs, np.int64)  # known tokens: prompt and sampled
        self.num_prompt_tokens = np.zeros(max_num_seqs, np.int64)
        self.num_computed = np.zeros(max_num_seqs, np.int64)  # tokens whose keys and values are in the cache
        #: Grows when a request enters or leaves the slot: tells whose a token is that was sampled some time ago.
        self.generation = np.zeros(max_num_seqs, np.int64)

        self.adapter_slots = np.full(max_num_seqs, -1, np.int32)
        self.prompt_slots = np.full(max_num_seqs, -1, np.int64)
        self.num_virtual_tokens = np.zeros(max_num_seqs, np.int64)  # of the prompt's, that read rows of an adapter
        self.temperature = np.zeros(max_num_seqs, np.float32)
        self.top_p = np.ones(max_num_seqs, np.float32)
        self.min_p = np.zeros(max_num_seqs, np.float32)
        self.top_k = np.zeros(max_num_seqs, np.int32)
        self.seeds = np.zeros(max_num_seqs, np.uint64)
        self.presence = np.zeros(max_num_seqs, np.float32)
        self.frequency = np.zeros(max_num_seqs, np.float32)
        self.repetition = np.ones(max_num_seqs, np.float32)
        #: Grows with every request that comes or goes; as long as it is the same, so are all slots' parameters.
        self.version = 0
        #: Slots whose rows need more than temperature, top-k, top-p and min-p.
        self.special: dict[int, SlotParams] = {}
        self.speech: dict[int, SpeechRules] = {}  # of slots that transcribe
        self.alignments: dict[int, SpeechAlignment] = {}  # of slots that want one in place of tokens
        self.logprobs: dict[int, int] = {}  # slot -> number of alternatives asked for
        self.logprob_ids: dict[int, tuple[int, ...]] = {}  # slot -> which they are, where not the most likely
        self.mirostat_mu: dict[int, float] = {}  # slot -> bits
        self.media: dict[int, list[MediaPlace]] = {}  # of slots whose prompts have some that are not computed yet
        self.position_parts: dict[int, PositionParts] = {}  # of slots whose positions are not the tokens' numbers
        self.prompt_logprobs: dict[int, int] = {}  # the same for the tokens of the prompt
        #: Of slots whose tokens see pictures beside the text, or could.
        self.views: dict[int, tuple[View, ...]] = {}

    def add(self, request: NewRequestData) -> None:
        slot, params = request.slot, request.params
        tokens = request.prompt_token_ids
        self.token_ids[slot, : len(tokens)] = tokens
        self.num_tokens[slot] = len(tokens)
        self.num_prompt_tokens[slot] = request.num_prompt_tokens
        self.num_computed[slot] = request.num_computed_tokens
        self.num_blocks[:, slot] = self._num_left[:, slot] = 0
        self._append_blocks(slot, request.block_ids)
        self.encoder_lens[slot] = len(request.encoder_token_ids)
        for group, ids in enumerate(request.encoder_block_ids):
            self.encoder_tables[group, slot, : len(ids)] = ids

        self.adapter_slots[slot] = request.adapter_slot
        self.prompt_slots[slot] = request.prompt_slot
        self.num_virtual_tokens[slot] = request.num_virtual_tokens
        # A row that is shaped on the host is divided by its temperature and filtered before the device draws from it.
        drawn = SamplingParams() if params.shapes_rows else params
        self.temperature[slot] = 0.0 if params.greedy else drawn.temperature
        self.top_p[slot] = drawn.top_p
        self.min_p[slot] = drawn.min_p
        self.top_k[slot] = min(max(drawn.top_k, 0), 2**31 - 1)
        self.seeds[slot] = (request.sampling_seed or 0) % 2**64
        self.presence[slot] = params.presence_penalty
        self.frequency[slot] = params.frequency_penalty
        self.repetition[slot] = params.repetition_penalty
        self._add_special(slot, request)
        if request.media:
            self.media[slot] = request.media
            if (parts := position_parts(request.media)) is not None:
                self.position_parts[slot] = parts

    def _add_special(self, slot: int, request: NewRequestData) -> None:
        params = request.params
        self.remove(slot)
        if params.logprobs is not None:
            self.logprobs[slot] = params.logprobs
            if params.logprob_token_ids is not None:
                self.logprob_ids[slot] = params.logprob_token_ids
        if params.mirostat:
            state = request.sampler_state
            self.mirostat_mu[slot] = 2 * params.mirostat_tau if state is None else state
        if params.speech is not None:
            self.speech[slot] = params.speech
        if params.alignment is not None:
            self.alignments[slot] = params.alignment
        # A request that comes back with output has had its whole prompt scored before.
        if params.prompt_logprobs is not None and len(request.prompt_token_ids) == request.num_prompt_tokens:
            self.prompt_logprobs[slot] = params.prompt_logprobs
        penalties = None
        if params.penalises:
            num_virtual, num_prompt = request.num_virtual_tokens, request.num_prompt_tokens
            tokens = self.token_ids[slot, : len(request.prompt_token_ids)]
            penalties = PenaltyState(tokens[num_virtual:num_prompt], tokens[num_prompt:])
        mask = TokenMask.of(params, request.eos_token_ids, self.vocab_size)
        if penalties or mask or params.logit_bias or params.shapes_rows:
            self.special[slot] = SlotParams(params, mask, penalties, params.shapes_rows)

    def update(self, request: CachedRequestData) -> None:
        self.num_computed[request.slot] = request.num_computed_tokens
        if request.new_block_ids:
            self._append_blocks(request.slot, request.new_block_ids)
        for token_id in request.new_token_ids:
            self.append_token(request.slot, token_id)
        if drafts := request.draft_token_ids:  # behind the tokens known, until what is sampled takes their places
            first = self.num_tokens[request.slot]
            self.token_ids[request.slot, first : first + len(drafts)] = drafts

    def _append_blocks(self, slot: int, block_ids: list[list[int]]) -> None:
        for group, ids in enumerate(block_ids):
            first = int(self.num_blocks[group, slot])
            last = first + len(ids)
            self.block_tables[group, slot, first:last] = ids
            self.num_blocks[group, slot] = last

    def leave_blocks(self, slots: np.ndarray) -> None:
        """Forget the blocks in front of the windows of all tokens from num_computed on: others may have them. What a
        kernel reads of a table without need is then the null block, whose numbers are finite."""
        for group, window in self._windows:
            first = np.maximum(self.num_computed[slots] - window + 1, 0) // self._block_size
            for at in (first > self._num_left[group, slots]).nonzero()[0].tolist():
                slot, end = slots[at], first[at]
                self.block_tables[group, slot, self._num_left[group, slot] : end] = 0
                self._num_left[group, slot] = end

    def append_token(self, slot: int, token_id: int) -> None:
        self.token_ids[slot, self.num_tokens[slot]] = token_id
        self.num_tokens[slot] += 1
        self._count_token(slot, token_id)

    def _count_token(self, slot: int, token_id: int) -> None:
        special = self.special.get(slot)
        if special is not None and special.penalties is not None:
            counts = special.penalties.output_counts
            counts[token_id] = counts.get(token_id, 0) + 1

    def expect_tokens(self, slots: np.ndarray) -> ExpectedTokens:
        """Let each of `slots` int64 [S] have one token more, which is being sampled: -1 - slot stands in its place."""
        indices = self.num_tokens[slots]
        self.token_ids[slots, indices] = -1 - slots
        self.num_tokens[slots] += 1
        return ExpectedTokens(slots, self.generation[slots], indices)

    def fill_tokens(self, expected: ExpectedTokens, token_ids: np.ndarray) -> None:
        """The tokens that were expected, int32 [S]. Slots that have another request by now are left alone."""
        slots = expected.slots
        mine = self.generation[slots] == expected.generations
        if not mine.all():
            slots, token_ids = slots[mine], token_ids[mine]
        self.token_ids[slots, expected.indices[mine]] = token_ids
        if self.special:
            for slot, token_id in zip(slots.tolist(), token_ids.tolist(), strict=True):
                self._count_token(slot, token_id)

    def take_tokens(self, draft: Draft, token_ids: list[int]) -> None:
        """Append what came of a draft, unless the slot has another request by now."""
        if self.generation[draft.slot] == draft.generation:
            for token_id in token_ids:
                self.append_token(draft.slot, token_id)

    def remove(self, slot: int) -> None:
        self.version += 1
        self.generation[slot] += 1
        self.media.pop(slot, None)
        self.views.pop(slot, None)
        self.position_parts.pop(slot, None)
        self.special.pop(slot, None)
        self.speech.pop(slot, None)
        self.alignments.pop(slot, None)
        self.logprobs.pop(slot, None)
        self.logprob_ids.pop(slot, None)
        self.mirostat_mu.pop(slot, None)
        self.prompt_logprobs.pop(slot, None)

    def output_tokens(self, slot: int, num_tokens: int | None = None) -> np.ndarray:
        """int32: what the slot has generated so far, or of its first `num_tokens` tokens those behind the prompt; a
        view."""
        end = self.num_tokens[slot] if num_tokens is None else num_tokens
        return self.token_ids[slot, self.num_prompt_tokens[slot] : end]

    def draft_before(self, slot: int, num_tokens: int) -> list[int]:
        """Of the slot's first `num_tokens` tokens those that are a draft."""
        draft: list[int] = self.token_ids[slot, self.num_tokens[slot] : num_tokens].tolist()
        return draft

    def draw_positions(self, rows: Rows) -> np.ndarray:
        """int64 [S]: index of each row's token among those that its request generates; the sampler's random counter."""
        result: np.ndarray = rows.num_tokens - self.num_prompt_tokens[rows.slots]
        return result
