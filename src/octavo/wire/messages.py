"""Every struct that crosses the border between the API process and the engine process.

The border is one socket pair: frames of msgpack, each a member of `ToEngine` or of `FromEngine`. Structs are
array-like (no field names on the wire) and tagged. Strings of the user's never cross, but for the cache salt.
Internal request ids are integers that the client counts up; ids chosen by a caller are never keys.
"""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.base.media import MediaItem, MediaTensor
from octavo.base.params import PoolingKind, PoolingParams, SamplingParams


class Message(msgspec.Struct, array_like=True, tag=True, frozen=True, gc=False):
    """Base of all messages."""


# ---------------------------------------------------------------- API process -> engine process
class AddRequest(Message, frozen=True, gc=False):
    """Generate one sequence. n samples are n of these with `sample_index` 0..n-1.

    `media` and `adapter` say what keys and values depend on beside the token ids: blocks are shared between requests
    where these are equal too.
    """

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    sample_index: int = 0
    priority: int = 0
    cache_salt: str = ""
    arrival_time: float = 0.0  # time.monotonic(), one clock for both processes on Linux and macOS
    media: tuple[MediaItem, ...] = ()  # within the prompt, in order, apart from each other
    adapter: str = ""  # the weights that it runs with beside the model's own; "": none
    adapter_path: str = ""  # where their files are
    num_virtual_tokens: int = 0  # rows of a prompt adapter, which stand in front of the prompt; 0: it is none
    #: Of a model with an encoder: its input, which the prompt's tokens are the decoder's first answer to.
    encoder_token_ids: list[int] = []
    #: Where it takes frames of a sound: these, float32 [2 rows, channels], and above a 0 for each row.
    encoder_frames: MediaTensor | None = None
    pooling: PoolingParams | None = None  # a vector is wanted in place of tokens
    is_counted: bool = True  # its prompt counts in the totals; not: it goes on with a request whose prompt did


class Vocabulary(Message, frozen=True, gc=False):
    """The tokens as bytes, which grammars are compiled against. Sent once, before the first request with a grammar."""

    tokens: list[bytes]  # by id; b"" for an id without text
    special_ids: list[int]
    eos_token_ids: list[int]  # at least one


class Abort(Message, frozen=True, gc=False):
    """End these requests now. Unknown and finished ids are ignored."""

    request_ids: list[int]


class Call(Message, frozen=True, gc=False):
    """Run one of the engine's allowed methods (`EngineCore.CALLS`) between two steps."""

    call_id: int
    method: str
    args: tuple[Any, ...] = ()


class Shutdown(Message, frozen=True, gc=False):
    """Stop the engine process. Requests still in flight are aborted."""


ToEngine = AddRequest | Vocabulary | Abort | Call | Shutdown


# ---------------------------------------------------------------- engine process -> API process
class PoolingInfo(Message, frozen=True, gc=False):
    """Of a model that gives vectors: which, and what its files say of texts."""

    kind: PoolingKind
    dimension: int  # values of a result; of one that has them for each token, `hidden_size`
    hidden_size: int
    normalizes: bool = False
    is_whole: bool = False  # a step computes all of a text: every token sees all others
    classes: bool = False  # the values are those of classes, by these labels
    labels: tuple[str, ...] = ()
    reads_pairs: bool = False  # it was made for two texts in one
    pair_template: str = ""  # which stand in it as {query} and {document}; "": the tokenizer joins them
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    dimensions: tuple[int, ...] = ()
    may_be_cut: bool = False


class EngineInfo(Message, frozen=True, gc=False):
    """What only the engine knows, sent once when it can serve."""

    model_type: str
    vocab_size: int  # of the model: width of the logits, but for tokens that adapters add
    max_model_len: int
    num_kv_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_prefill_tokens: int
    max_request_tokens: int  # the longest sequence (prompt and output) that fits an empty KV cache
    kv_cache_bytes: int
    weight_bytes: int
    num_params: int
    dtype: str
    kv_cache_dtype: str
    quantization: str  # "none" or a summary such as "Q4_1 x210, Q8_0 x1"
    device: str  # e.g. "cpu, avx512_vnni, 2 threads"
    ops: dict[str, str]  # op -> implementation
    load_seconds: dict[str, float]  # import, weights, kv, warmup ...
    eos_token_ids: tuple[int, ...] = ()
    #: Of each group of layers with a block table of its own: how far it sees; 0: all keys. A block is of one group.
    kv_group_windows: tuple[int, ...] = (0,)
    #: Layers keep a state a slot, which is that of all tokens computed: no prefix is found in a cache, preempted
    #: requests are computed again, and no tokens are guessed.
    has_states: bool = False
    #: Of a model with an encoder: what the decoder's tokens begin with, the rows that an input may have, and the groups
    #: of layers that see them, which hold blocks for these from a request's admission to its end. No prefix is found in
    #: a cache, and preempted requests are computed again.
    decoder_start_token_ids: tuple[int, ...] = ()
    max_encoder_len: int = 0
    num_encoder_groups: int = 0
    encoder_channels: int = 0  # of the frames of sounds that the encoder takes, two a row; 0: it takes tokens
    media_kinds: tuple[str, ...] = ()  # what prompts may hold beside text: "image"; none: text alone
    media_width: int = 0  # of their rows
    #: Of a model whose layers see pictures beside the text, as rows of an encoder: of a picture's tiles the rows of
    #: each, and how many of them all pictures are filled up to; and how many pictures a request may have. 0: rows of
    #: media take the place of tokens.
    media_tile_rows: int = 0
    media_tiles: int = 0
    max_media_items: int = 0
    #: Rows of media that a step encodes, unless one item alone has more, and that are kept to be read again.
    media_step_rows: int = 0
    media_cache_rows: int = 0
    #: Sums and products of a tower: for each unit of `MediaItem.size`, and for each that this one sees of its sequence.
    media_unit_ops: int = 0
    media_attention_ops: int = 0
    #: Tokens of one run of media see each other: a step computes all of them.
    media_stays_whole: bool = False
    #: Tokens of a prompt see each other: a step computes all of them, and no other prompt begins with the same.
    prompts_stay_whole: bool = False
    caches_output: bool = True  # blocks of generated tokens may serve other requests: they are what a prompt's would be
    num_positions: int = 0  # that it knows without an adapter; 0: all of `max_model_len`
    extra_tokens: int = 0  # ids behind the vocabulary, for tokens that adapters add
    max_loras: int = 0  # adapters in one step; 0: the engine takes none
    max_prompt_adapters: int = 0  # the same of prompt adapters
    pooling: PoolingInfo | None = None  # it gives vectors and generates nothing
    expert_bytes: int = 0  # of the weights', those of experts
    expert_share: float = 0.0  # of which one token goes through so many
    num_swap_blocks: int = 0  # KV blocks of preempted requests that fit the host's memory
    plans_ahead: bool = False  # the device computes beside the host: a step is planned before the last is answered
    # Sums and products: what a token costs, for benchmarks.
    layer_ops_per_token: int = 0  # of the layers' matrices
    output_ops_per_token: int = 0  # of the output matrix, if the token is followed by a sampled one
    attention_ops_per_key: int = 0  # of all layers, for each key that the token looks at


class StartupFailed(Message, frozen=True, gc=False):
    """The engine could not start. `error` is the name of a `StartupError` class."""

    error: str
    message: str


class Phase(Message, frozen=True, gc=False):
    """What the engine does while it starts, for the log: ("weights", "32 of 272 tensors")."""

    name: str
    detail: str = ""


class TokenLogprobs(Message, frozen=True, gc=False):
    """Log probabilities of one token: the token's own, its rank (1 = most likely), and the top k."""

    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class StepSeconds(Message, frozen=True, gc=False):
    """Seconds of one step, or of all steps that a request took part in."""

    scheduler: float = 0.0  # planning
    forward: float | None = None  # the model's forward pass; None: not measured
    worker: float | None = None  # all that the worker does, the forward pass and sampling included

    def plus(self, other: StepSeconds) -> StepSeconds:
        return StepSeconds(
            self.scheduler + other.scheduler, _sum(self.forward, other.forward), _sum(self.worker, other.worker)
        )


def _sum(first: float | None, second: float | None) -> float | None:
    return second if first is None else first if second is None else first + second


class EngineCoreOutput(Message, frozen=True, gc=False):
    """What one step produced for one request. `finish_reason` None: it goes on.

    finish_reason: "stop" (EOS, or a stop token id whose id is then `stop_reason`), "length", "repetition", "abort",
    "error".
    The token that stopped the request is included in `new_token_ids`.
    """

    request_id: int
    new_token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache; set with the first output
    error: str | None = None
    is_of_adapter: bool = False  # the error: its adapter's files are at fault, and nothing of the engine's
    scheduled_time: float = 0.0  # time.monotonic() when first scheduled; set with the first output
    # Of the prompt's tokens that this step scored, in order; all of them, from the second on, come with or before the
    # first new token. An output may hold nothing else.
    prompt_logprobs: list[TokenLogprobs] | None = None
    is_complete: bool = False  # it stopped because its grammar is at the end: the last token is text, not a stop token
    step_seconds: StepSeconds | None = None  # of the steps that it took part in so far, where they are measured
    num_computed_tokens: int = 0  # of a prompt on its way, where that was asked for; the output then holds little else
    pooled: bytes | None = None  # the vector, or one for each token: float32, little-endian; set with the end


#: `ModelRunnerOutput.graph` of steps that a graph is behind; others are launched kernel by kernel.
AS_GRAPHS = ("replayed", "captured")


class SchedulerStats(Message, frozen=True, gc=False):
    """Gauges and running totals of the engine, for /metrics and the log."""

    num_running: int
    num_waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    num_preemptions: int  # totals since start
    prefix_cache_queries: int  # tokens
    prefix_cache_hits: int  # tokens
    num_steps: int
    num_prompt_tokens: int
    num_generation_tokens: int
    step_tokens: int = 0  # tokens of the last step
    num_swapped: int = 0  # requests whose KV blocks the host keeps
    num_deferred: int = 0  # of those that wait: not for room, but for their grammar
    swap_blocks_used: int = 0
    swap_blocks_total: int = 0
    graph_steps: dict[str, int] = {}  # `ModelRunnerOutput.graph` -> steps; totals since start
    media_rows_used: int = 0  # encoded rows that the worker keeps
    media_rows_total: int = 0
    media_queries: int = 0  # items of media that a prompt came to; totals since start
    media_hits: int = 0  # those whose rows were there
    media_rows_encoded: int = 0


class EngineCoreOutputs(Message, frozen=True, gc=False):
    """What a step produced, for all requests; several frames of one step when there are very many logprobs."""

    outputs: list[EngineCoreOutput]
    stats: SchedulerStats
    timestamp: float = 0.0  # time.monotonic() when the step ended


class AdapterInfo(Message, frozen=True, gc=False):
    """What requests with an adapter may do beyond others. `context_length`: 0: the model's."""

    num_extra: int = 0  # tokens that it adds to the model's
    context_length: int = 0
    num_virtual_tokens: int = 0  # rows that stand in front of prompts; 0: it is no prompt adapter


class CallResult(Message, frozen=True, gc=False):
    call_id: int
    result: Any = None
    error: str | None = None


class Heartbeat(Message, frozen=True, gc=False):
    """Sent by a thread of its own every `HEARTBEAT_INTERVAL` seconds, during long steps too."""

    num_steps: int
    step_seconds: float  # how long the step in progress has been running; 0.0 when idle
    has_work: bool


FromEngine = EngineInfo | StartupFailed | Phase | EngineCoreOutputs | CallResult | Heartbeat

#: Seconds between two heartbeats.
HEARTBEAT_INTERVAL = 0.25
