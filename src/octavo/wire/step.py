"""The plan of one step, from the scheduler to the worker, and the worker's answer. Host data only.

All of them are plain structs that `msgspec` writes and reads, so that a worker may be in another process or on
another host. A step is one `SchedulerOutput`, behind it one `TokenMasks` if the plan names `masked_slots`, and one
`ModelRunnerOutput` back.

A running request has a slot (0..max_num_seqs-1) from its admission to its end or preemption. The worker keeps
the state of a slot (tokens, block ids, parameters); what it already knows is sent as a difference.

A row is one position of one slot at which a token is sampled. A slot has a row in a step iff num_computed_tokens +
num_scheduled_tokens[slot] reaches the number of its tokens known: the row of the last of them, and one for each draft
token behind it. The rows' tokens are taken in order, as long as the draft before a row is what was sampled there:

    known tokens      | ... a b |
    draft                       | x  y  z |
    sampled at                b   x  y  z
    token                     x   y  w  -     x, y and w are taken: w is sampled from what x and y left, z was wrong

The worker then appends the tokens taken to its own state of the slot; the scheduler appends the same. Tokens that a
grammar dictates after them are known to the scheduler first and come with the slot's next difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from octavo.base.media import MediaItem, MediaTensor
from octavo.base.params import PoolingParams, SamplingParams
from octavo.wire.messages import StepSeconds, TokenLogprobs


class StepData(msgspec.Struct, array_like=True, tag=True):
    """Base of what travels between scheduler and worker."""


class MediaPlace(StepData):
    """Where encoded rows stand in a request's tokens: `MediaItem`, without what was encoded."""

    digest: bytes
    spans: tuple[tuple[int, int], ...]
    grid: tuple[int, int, int] | None = None
    time_step: float = 1.0


class MediaPart(StepData):
    """What a step does of encoding a medium, which may be spread over several. The first part brings the item; while
    one is under way no other begins, but for rows that are ready, unless it is dropped."""

    digest: bytes
    item: MediaItem | None = None  # None: it was begun in an earlier step
    #: Encoding stops as soon as so much of `MediaItem.size` has been done, all steps together; None: at its end.
    end: int | None = None


class NewRequestData(StepData):
    """A request that enters a slot, whole. Replaces whatever the worker kept for that slot."""

    slot: int
    request_id: int
    prompt_token_ids: list[int]  # all tokens known so far: the prompt, then the outputs before a preemption
    num_prompt_tokens: int  # how many of them are the caller's prompt
    params: SamplingParams
    eos_token_ids: tuple[int, ...]
    #: Of each group of layers the KV blocks of tokens 0, block_size, 2*block_size, ...; 0 where a window has passed.
    block_ids: list[list[int]]
    num_computed_tokens: int  # tokens whose KV is already in those blocks (a prefix hit)
    sample_index: int
    sampling_seed: int | None  # 0 <= seed < 2**63, sample_index mixed in; a greedy request does not use it
    #: Of a model with an encoder: its input, encoded in this step, and of each group of layers that see it the blocks
    #: for its rows.
    encoder_token_ids: list[int] = []
    encoder_frames: MediaTensor | None = None  # in place of tokens, of which there is a 0 for each row then
    encoder_block_ids: list[list[int]] = []
    encoder_media: tuple[MediaItem, ...] = ()  # of a model whose layers see pictures beside the text, as an encoder's
    media: list[MediaPlace] = []  # in the order of the tokens
    adapter_slot: int = -1  # of its adapter; -1: it has none
    prompt_slot: int = -1  # of its prompt adapter, whose rows the first tokens read
    num_virtual_tokens: int = 0  # so many of the prompt's
    #: Of a request whose sampler follows what it drew: how far it has got; None: at its beginning.
    sampler_state: float | None = None
    pooling: PoolingParams | None = None


class CachedRequestData(StepData):
    """A request that stays in its slot: the difference to the worker's state."""

    slot: int
    new_block_ids: list[list[int]]  # to be appended to the slot's block tables, group by group; or none at all
    num_computed_tokens: int
    #: Output tokens that followed the last sampled one without being sampled: to be appended to the slot's tokens.
    new_token_ids: Sequence[int] = ()
    #: Guesses at the tokens behind all those known, to be verified in this step. They are not known tokens.
    draft_token_ids: Sequence[int] = ()


class SchedulerOutput(StepData):
    """One step. The worker must not mutate it: `Scheduler.update` reads it again."""

    new_requests: list[NewRequestData]
    cached_requests: list[CachedRequestData]
    num_scheduled_tokens: dict[int, int]  # slot -> count, drafts included; iteration order = batch order
    finished_slots: list[int]  # freed since the last step: drop them before `new_requests` are read
    total_num_scheduled_tokens: int
    step_id: int
    masked_slots: list[int] = []  # slots with rows that have a grammar: their masks follow
    # Before anything else of the step, in this order: copies that nobody will ask for again (request ids); blocks of
    # requests that were preempted, to be kept on the host; and of such copies the blocks to be put back.
    swap_dropped: list[int] = []
    swap_out: list[tuple[int, list[int]]] = []  # request id, block ids
    swap_in: list[tuple[int, list[int], list[int]]] = []  # request id, places among the blocks kept, block ids
    # Then: media whose rows nobody will read any more, encoded or under way, and what is to be encoded of others, whose
    # rows are kept until then.
    media_dropped: list[bytes] = []  # digests
    media_encoded: list[MediaPart] = []
    adapters_placed: list[tuple[int, str]] = []  # slot, key: then adapters that the host keeps enter slots
    prompts_placed: list[tuple[int, str]] = []  # the same of prompt adapters


class TokenMasks(StepData):
    """Which tokens may be sampled in the rows of a step's `masked_slots`. Valid until the step's end.

    They are made while the model computes.
    """

    slots: list[int]  # of each mask; a slot that has several rows stands there so often, in their order
    words: bytearray  # little-endian 32-bit words, equally many a mask: bit i of a mask's words for token i


class ModelRunnerOutput(StepData):
    """The answer to one step; every scheduled slot has an entry in `sampled_token_ids` or in `errors`."""

    sampled_token_ids: dict[int, list[int]]  # slot -> [] while the slot's prompt is incomplete, else what was taken
    logprobs: dict[int, list[TokenLogprobs]] = {}  # slot -> one entry a sampled token
    # slot -> one entry a scheduled token, for the token behind it as far as that is the prompt's; when asked for
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    sampler_states: dict[int, float] = {}  # slot -> `NewRequestData.sampler_state` behind the sampled token
    errors: dict[int, str] = {}  # slot -> why that request alone ends with an error
    pooled: dict[int, bytes] = {}  # slot -> its result, which ends its request
    seconds: StepSeconds | None = None  # what the step took, where that is measured
    #: How the step was launched: "replayed", "captured" (behind launching it kernel by kernel), or why neither; ""
    #: where the device captures nothing.
    graph: str = ""
