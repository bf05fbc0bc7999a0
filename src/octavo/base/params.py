"""What a caller asks of the engine: validated once, immutable, free of text-side and device-side types."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, Literal, TypeVar

import msgspec

from octavo.base.errors import InvalidRequest
from octavo.base.media import MediaItem, MediaTensor
from octavo.base.ranges import RANGES, Range, check_number, check_token_id, clip_number
from octavo.base.repetition import RepetitionDetection

#: Below this temperature sampling is greedy.
GREEDY_EPSILON = 1e-5
#: Less than the most likely token ever has: it alone is left.
MIN_TOP_P: Final = 1e-6
#: Most words that a request may forbid; each is two sequences, with and without a space in front.
MAX_BAD_WORDS = 128
#: Most token ids whose log probabilities a request may name.
MAX_LOGPROB_TOKEN_IDS = 128
#: Where DRY's repetitions end, unless a request says otherwise.
DRY_SEQUENCE_BREAKERS: Final = ("\n", ":", '"', "*")


class StructuredOutputsParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the output must be: exactly one of the first six. The same fields as in a request's `structured_outputs`."""

    json: str | dict[str, Any] | bool | None = None  # a schema, also as JSON in a string
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None  # None: as the engine was started
    disable_additional_properties: bool | None = None
    disable_fallback: bool = False


class GuidedDecodingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`StructuredOutputsParams` under its older name. `backend` has no effect but to be known."""

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    backend: str | None = None
    whitespace_pattern: str | None = None


class SpeechRules(msgspec.Struct, frozen=True, kw_only=True):
    """What a decoder of speech is held to: first tokens that steer it, then text between times.

    Times stand at the beginning, in pairs where one piece ends and the next begins, and never go back. Where they
    are together more likely than any single token of text, a time it is. The ids from `first_time` to the end of the
    vocabulary are 0.00 s, 0.02 s, ...; those between `end_id` and it are never written behind the first.

    Log probabilities of the tokens are those behind these rules. The very first token has one alternative beside it:
    `no_speech_id`, with the model's own log probability of it.
    """

    first: tuple[tuple[int, ...], ...] = ()  # what each of the first tokens may be
    forbidden_ids: tuple[int, ...] = ()  # of text
    forbidden_start_ids: tuple[int, ...] = ()  # of text, where it begins
    end_id: int
    first_time: int
    max_initial_time: int = 50  # the first is at most so many steps of 0.02 s
    no_speech_id: int


class SpeechAlignment(msgspec.Struct, frozen=True, kw_only=True):
    """When what is known to be said was said, is wanted in place of tokens: how much each token's row looks at each
    row of the encoder.

    The result is float32 [tokens, rows], little endian, of the prompt's tokens from `first_token` on: of each of
    `heads` the attention, as standard deviations from the mean of all these tokens and without what stands out along
    the rows, and the mean of the heads.
    """

    heads: tuple[tuple[int, int], ...]  # layer of the decoder, head: those that look at where it is said
    first_token: int
    num_rows: int  # of the encoder: those of the sound, without what was padded
    smoothing: int = 7  # rows of which the middle value is taken, an odd number


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to generate. The same object for HTTP and offline use; docs/sampling.md describes each field.

    Construct it, then call `validate(...)` once, which returns a normalised copy or raises `InvalidRequest`
    naming the field. Fields with a default of None are off.
    """

    n: int = 1
    best_of: int | None = None  # None: n; else so many are generated, and the n most likely returned
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 and -1: off
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    repeat_last_n: int = -1  # the last tokens, of which the three penalties know; -1: all, 0: none
    typical_p: float = 1.0
    top_n_sigma: float = -1.0  # 0 and below: off
    dynatemp_range: float = 0.0  # to both sides of the temperature
    dynatemp_exponent: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0  # 0: off
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1  # the last tokens that DRY looks at; -1: all, 0: off
    dry_sequence_breakers: tuple[str, ...] = DRY_SEQUENCE_BREAKERS
    dry_breaker_token_ids: tuple[tuple[int, ...], ...] = ()  # the same as sequences of tokens
    mirostat: int = 0  # 1 and 2: its versions, in place of all filters
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repetition_detection: RepetitionDetection | None = None
    logit_bias: dict[int, float] | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None  # None: all
    bad_word_token_ids: tuple[tuple[int, ...], ...] = ()  # sequences of which the last token is never generated
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = None  # None: as many as the context allows
    min_tokens: int = 0
    logprobs: int | None = None  # None: off; k: the sampled token and the k most likely
    logprob_token_ids: tuple[int, ...] | None = None  # alternatives in place of the most likely; needs `logprobs`
    prompt_logprobs: int | None = None  # the same for each token of the prompt but the first
    return_progress: bool = False  # a stream tells how much of the prompt is computed
    skip_special_tokens: bool = True
    #: What the output must be, as a program says it, the second under the name of older versions of vLLM. Whoever
    #: takes the parameters makes `grammar` of them.
    structured_outputs: StructuredOutputsParams | None = None
    guided_decoding: GuidedDecodingParams | None = None
    #: What the output must be, proven to compile; None: anything.
    grammar: str | None = None
    speech: SpeechRules | None = None  # of a model that transcribes
    alignment: SpeechAlignment | None = None  # likewise; no token is generated

    @property
    def num_samples(self) -> int:
        """Sequences that are generated."""
        return self.best_of or self.n

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_EPSILON

    @property
    def needs_output(self) -> bool:
        """Whether the host must know the tokens generated so far before the next can be sampled: which words may not
        go on depends on them, and what may follow a time."""
        of_speech = self.speech is not None or self.alignment is not None
        return of_speech or self.shapes_rows or any(len(word) > 1 for word in self.bad_word_token_ids)

    @property
    def penalises(self) -> bool:
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        return bool(penalties) and self.repeat_last_n != 0

    @property
    def uses_dry(self) -> bool:
        return self.dry_multiplier > 0 and self.dry_penalty_last_n != 0

    @property
    def shapes_rows(self) -> bool:
        """Whether its samplers are among those that shape a row on the host (`ops.samplers`)."""
        return (
            self.uses_dry
            or (self.penalises and self.repeat_last_n > 0)
            or self.typical_p < 1.0
            or self.top_n_sigma > 0
            or self.dynatemp_range > 0
            or self.xtc_probability > 0
            or self.mirostat > 0
        )

    def validate(self, *, vocab_size: int, max_logprobs: int = 20, max_n: int = 128) -> SamplingParams:
        """Check every field against the model's numbers and return the normalised parameters.

        `vocab_size` is the width of the logits, not the tokenizer's length: an id outside it would reach
        memory that is not the row's. `max_logprobs` of -1: the whole vocabulary, which a request may also call -1.
        Raises `InvalidRequest` whose `param` is the field's name.
        """
        for name in ("speech", "alignment"):
            if getattr(self, name) is not None:
                raise InvalidRequest(f"`{name}` is set by whoever transcribes, and by no caller.", name)
        ranges = {
            **RANGES,
            "n": Range(1, max_n),
            "best_of": Range(self.n, max_n),
            "min_tokens": Range(0, self.max_tokens),
        }
        for name, bounds in ranges.items():
            if (value := getattr(self, name)) is not None:
                check_number(name, value, bounds)
        self._check_ids(vocab_size)
        if self.repetition_detection is not None:
            self.repetition_detection.check()
        if any(not s for s in self.stop):
            raise InvalidRequest("`stop` cannot contain an empty string.", "stop")
        most = vocab_size if max_logprobs == -1 else min(max_logprobs, vocab_size)
        for name in ("logprobs", "prompt_logprobs"):
            wanted = getattr(self, name)
            if wanted is not None:
                check_number(name, wanted, Range(-1 if max_logprobs == -1 else 0))
                if wanted > most:
                    raise InvalidRequest(f"Cannot request more than {most} logprobs.", name)
        if self.logprob_token_ids is not None and self.logprobs is None:
            raise InvalidRequest("`logprob_token_ids` needs `logprobs`.", "logprob_token_ids")
        return self._normalised(vocab_size)

    def _check_ids(self, vocab_size: int) -> None:
        """Every field that holds token ids, against the width of the logits; no list is longer than that either."""
        for name in ("stop_token_ids", "allowed_token_ids"):
            if len(getattr(self, name) or ()) > vocab_size:
                raise InvalidRequest(f"`{name}` has more entries than the model has tokens, {vocab_size}.", name)
        for token_id, bias in (self.logit_bias or {}).items():
            check_token_id("logit_bias", token_id, vocab_size)
            check_number("logit_bias", bias, Range())
        for token_id in self.stop_token_ids:
            check_token_id("stop_token_ids", token_id, vocab_size)
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise InvalidRequest("`allowed_token_ids` cannot be empty.", "allowed_token_ids")
            for token_id in self.allowed_token_ids:
                check_token_id("allowed_token_ids", token_id, vocab_size)
        if len(self.bad_word_token_ids) > MAX_BAD_WORDS * 2:
            raise InvalidRequest(f"`bad_words` has at most {MAX_BAD_WORDS} words.", "bad_words")
        if len(self.logprob_token_ids or ()) > MAX_LOGPROB_TOKEN_IDS:
            raise InvalidRequest(
                f"`logprob_token_ids` has at most {MAX_LOGPROB_TOKEN_IDS} entries.", "logprob_token_ids"
            )
        for token_id in self.logprob_token_ids or ():
            check_token_id("logprob_token_ids", token_id, vocab_size)
        if not all(self.bad_word_token_ids):
            raise InvalidRequest("`bad_words` cannot contain a word without tokens.", "bad_words")
        sequences = {"bad_words": self.bad_word_token_ids, "dry_sequence_breakers": self.dry_breaker_token_ids}
        for name, words in sequences.items():
            for token_id in (token_id for word in words for token_id in word):
                check_token_id(name, token_id, vocab_size)

    def check_choice(self, eos_token_ids: Collection[int], vocab_size: int) -> None:
        """Raise `InvalidRequest` when the masks could leave no token at all to choose from."""
        forbidden = {word[-1] for word in self.bad_word_token_ids}
        if self.min_tokens:
            forbidden |= {*eos_token_ids, *self.stop_token_ids}
        allowed = range(vocab_size) if self.allowed_token_ids is None else self.allowed_token_ids
        if forbidden and forbidden.issuperset(allowed):
            names = "`bad_words`, `stop_token_ids` and `min_tokens`"
            if self.allowed_token_ids is None:
                raise InvalidRequest(f"{names} forbid every token.", "bad_words")
            raise InvalidRequest(f"{names} forbid all of `allowed_token_ids`.", "allowed_token_ids")

    def _normalised(self, vocab_size: int) -> SamplingParams:
        changes: dict[str, Any] = {}
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) == -1:
                changes[name] = vocab_size
        if self.top_k < 0 or self.top_k >= vocab_size:
            changes["top_k"] = 0
        if self.repetition_detection is not None and not self.repetition_detection.max_pattern_size:
            changes["repetition_detection"] = None
        if self.seed == -1:
            changes["seed"] = None
        if self.logit_bias:
            changes["logit_bias"] = {i: min(100.0, max(-100.0, b)) for i, b in self.logit_bias.items()}
        if self.logprob_token_ids is not None:
            ids = tuple(dict.fromkeys(self.logprob_token_ids))
            changes |= {"logprob_token_ids": ids or None, "logprobs": len(ids) or self.logprobs}
        if self.greedy:
            changes |= {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0}
            changes |= {"top_n_sigma": -1.0, "dynatemp_range": 0.0, "xtc_probability": 0.0, "mirostat": 0}
        else:
            # Below these float32 has no room: for the scaled logits, and for what is left of the tokens.
            changes |= {"temperature": max(self.temperature, 0.01), "top_p": max(self.top_p, MIN_TOP_P)}
        return msgspec.structs.replace(self, **changes)


class GrammarSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller wants the output to be, checked as far as that goes without compiling it.

    kind: "json" (source: a schema), "regex" and "grammar" (a text), "choice" (a list of texts), "structural_tag" (a
    list of {trigger, begin, schema, end}), "lark" (grammars of octavo's own: {"lark": for the engine, "proof": the same
    with the special tokens spelled}). `options` are those of the JSON compiler. `param` is the request's field.
    `frames`: such grammars too, from the inside to the outside, in each of which the rule `body` stands for what is
    inside it.
    """

    kind: str
    source: Any
    param: str
    options: dict[str, Any] = {}
    frames: tuple[dict[str, str], ...] = ()


PoolingKind = Literal["cls", "last", "mean", "all"]


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of a sequence in place of tokens: a vector, or with `all` one for each token.

    None, and "": as the model has it.
    """

    kind: Literal["", "cls", "last", "mean", "all"] = ""
    dimensions: int | None = None  # so many of the first values
    normalize: bool | None = None  # to length 1
    activation: bool | None = None  # of classes: probabilities in place of the head's values
    second_from: int = 0  # the first token of the second text of a pair; 0: there is one text


class BeamParams(msgspec.Struct, frozen=True, kw_only=True):
    """Beam search with `width` beams, of which the best `SamplingParams.n` are returned (S21 to S23).

    `early_stopping` True ends when `width` beams are finished; False when no running beam scores better as it is;
    "never" when none could.
    """

    width: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def check(self, params: SamplingParams, max_width: int = 128) -> None:
        """Raise `InvalidRequest` naming what does not go with beams; fields have their names in the API."""
        if self.width < 2 or self.width > max_width:
            raise InvalidRequest(
                f"`best_of` must be in [2, {max_width}] when `use_beam_search` is true, got {clip_number(self.width)}.",
                "best_of",
            )
        if self.width < params.n:
            raise InvalidRequest(f"`best_of` must be at least `n`, got {self.width} and {params.n}.", "best_of")
        check_number("length_penalty", self.length_penalty, Range(-MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY))
        if not params.greedy:
            raise InvalidRequest("`temperature` must be 0 when `use_beam_search` is true.", "temperature")
        # Whatever else a sampler can be told: the scores of beams are plain log probabilities.
        for name in SamplingParams.__struct_fields__:
            if name not in _BEAM_FIELDS and getattr(params, name) != getattr(_DEFAULTS, name):
                raise InvalidRequest(f"`{name}` cannot be combined with `use_beam_search`.", name)


def with_types(params: P) -> P:
    """`params`, which a program may have made of anything, with fields of the declared types.

    Raises `InvalidRequest` naming the field that cannot be.
    """
    try:
        return msgspec.convert(msgspec.structs.asdict(params), type(params))
    except msgspec.ValidationError as exc:
        # "Expected `int`, got `str` - at `$.n`", or "... - at `key` in `$.logit_bias`".
        message, _, place = str(exc).partition(" - at ")
        path = place.rpartition("$.")[2].rstrip("`")
        raise InvalidRequest(f"{path}: {message}", path) from None
    except UnicodeEncodeError:  # half of a surrogate pair, where no text may be
        raise InvalidRequest("`sampling_params` contain what is no text.", "sampling_params") from None


def check_samples(params: SamplingParams, beams: BeamParams | None, *, has_logits: bool, max_width: int = 128) -> None:
    """Raise `InvalidRequest` for samples or beams that cannot be told apart or ranked.

    `has_logits`: the engine gives logits in place of log probabilities; sums of them rank nothing.
    """
    ranked = None
    if beams is not None:
        beams.check(params, max_width)
        ranked = "use_beam_search"
    elif params.num_samples > 1 and params.greedy:
        name = "n" if params.n > 1 else "best_of"
        raise InvalidRequest(f"`{name}` must be 1 when `temperature` is 0: all choices would be equal.", name)
    elif params.num_samples > params.n:
        ranked = "best_of"
    if ranked is not None and has_logits:
        raise InvalidRequest(
            f"`{ranked}` needs log probabilities, and the engine gives logits in their place: start it with "
            "--logprobs-mode raw_logprobs or processed_logprobs.",
            ranked,
        )


#: Beyond it the power of a length leaves float64.
MAX_LENGTH_PENALTY = 16.0
_DEFAULTS = SamplingParams()
_BEAM_FIELDS = frozenset(
    {"n", "temperature", "seed", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "max_tokens"}
    | {"min_tokens", "logprobs", "skip_special_tokens"}
)


P = TypeVar("P", SamplingParams, BeamParams)


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, ready for the engine. `params` has been validated; `params.max_tokens` is set (never None).

    `external_id` is the caller's or the server's public id: it is echoed and logged, never used as a key. `turn_id` is
    that of the reply, of which the prompt may be one of several.
    """

    external_id: str
    turn_id: str = ""
    prompt_token_ids: list[int]
    encoder_token_ids: list[int] = []  # of a model with an encoder: its input; the prompt is the decoder's then
    encoder_frames: MediaTensor | None = None  # where it takes frames of a sound: these, and above a 0 for each row
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    arrival_time: float = 0.0  # time.monotonic() seconds
    beams: BeamParams | None = None  # checked with `params`
    shown_special_ids: frozenset[int] = frozenset()  # special tokens that stay in the text for its parser
    is_whole: bool = False  # the reader has no use for deltas before the end: it gets one
    num_wanted: int = 0  # choices of the reply, where more are generated to choose from; 0: `params.n`
    pooling: PoolingParams | None = None  # a vector is wanted in place of tokens
    is_counted: bool = True  # its prompt is a caller's; not: it was counted with the request that this one goes on with
    adapter: str = ""  # key of the adapter that it runs with; "": none
    adapter_name: str = ""  # as it is served, for metrics
    adapter_path: str = ""
    num_virtual_tokens: int = 0  # rows of a prompt adapter in front of the prompt
    tokenizer: Any = None  # `text.tokenizers.tokenizer.Tokenizer` of the adapter; None: the model's
    eos_token_ids: tuple[int, ...] = ()  # with it: the tokens that end a text
    trace_headers: tuple[tuple[str, str], ...] = ()  # traceparent and tracestate, as the caller sent them
    is_chat: bool = False  # the prompt is a conversation, for traces
    media: tuple[MediaItem, ...] = ()  # what tokens of the prompt stand for, in order

    def has_id(self, matches: Callable[[str], bool]) -> bool:
        """One of its public ids matches."""
        return matches(self.external_id) or (self.turn_id != "" and matches(self.turn_id))

    @property
    def num_prompt_tokens(self) -> int:
        """Of the prompt with what an adapter puts in front of it, and of the encoder's input where there is one."""
        return self.num_virtual_tokens + len(self.prompt_token_ids) + len(self.encoder_token_ids)

    @property
    def num_sequences(self) -> int:
        """What the request puts into the engine at once."""
        return self.params.num_samples if self.beams is None else self.beams.width
