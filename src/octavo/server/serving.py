"""What chat and text completions share: from a body to `GenerateRequest`s, and from deltas to events."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

import octavo
from octavo.admission import sized
from octavo.config import nearest
from octavo.errors import ContextLengthExceeded, InvalidRequest, Overloaded
from octavo.generation import GenerationDelta
from octavo.log import escape
from octavo.params import GenerateRequest, GrammarSpec, SamplingParams
from octavo.server.best_of import best_of, widened
from octavo.server.errors import clip, validate_body
from octavo.server.exchange import Exchange
from octavo.server.limits import beam_params, check_limits
from octavo.server.logprobs import TokenNames, TokenTexts
from octavo.server.pacing import KeepAlive, at_intervals
from octavo.server.protocol.common import (
    MAX_BAD_WORD_CHARS,
    MAX_CACHE_SALT_CHARS,
    Refusals,
    SamplingFields,
    WireModel,
    ignored_fields,
    refuse_unsupported,
)
from octavo.server.state import DeltaStream, ServerState
from octavo.server.streaming import EventWriter, UsageCount, merged, send_whole, stream_events
from octavo.text.grammar import limits_of, spec_of

__all__ = ["Serving", "UsageCount", "renamed", "reply_id", "send_whole"]

logger = logging.getLogger(__name__)

#: Prompts of more characters than this are tokenized in a thread, so that the streams go on meanwhile.
THREAD_CHARS = 2048
#: No token stands for more bytes of text than this: longer prompts are refused before they are tokenized.
MAX_TOKEN_BYTES = 256
MAX_IGNORED_NAMES = 16
IGNORED_FIELDS = b"x-octavo-ignored-fields"
#: Renderings of requests' own templates that wait for their turn.
MAX_TEMPLATES_QUEUED = 64

M = TypeVar("M", bound=WireModel)
#: `messages[0].content` becomes `messages.0.content`, the spelling of all other paths.
_INDEX = re.compile(r"\[(\d+)\]")
_UNSAFE_IN_HEADER = re.compile(r"[^A-Za-z0-9_.-]")


class Serving:
    """The ground of the handlers. Holds no state of requests."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.texts = TokenTexts(state.tokenizer)
        self.fingerprint = _fingerprint(state)
        # Two threads: a few long prompts at once must not take the cores from the engine.
        self.grammar_limits = limits_of(state.config, state.output.special_tokens.ids)
        self._threads = ThreadPoolExecutor(2, "tokenize")
        # A template that a request brought may take its full time: only others of its kind wait for it.
        self._template_thread = ThreadPoolExecutor(1, "template")
        self._num_templates = 0

    # ------------------------------------------------------------ from body to request
    async def read(self, exchange: Exchange, model: type[M], refusals: Refusals) -> tuple[dict[str, Any], M]:
        """The body as decoded and as validated. Names of ignored fields go into the reply's headers."""
        body = await exchange.read_json()
        request = validate_body(model, body)
        refuse_unsupported(body, refusals)
        if ignored := ignored_fields(body, model, refusals):
            if self.state.config.strict_requests:
                name = clip(ignored[0], 64)
                hint = nearest(name, model.model_fields)
                raise InvalidRequest(f"There is no field `{name}`{hint}", name)
            self.note_ignored(exchange, ignored)
        return body, request

    def note_ignored(self, exchange: Exchange, names: Sequence[str]) -> None:
        """Name fields that the answer does not depend on in its header (U20), after those named before."""
        text = ", ".join(_UNSAFE_IN_HEADER.sub("?", name[:64]) for name in names[:MAX_IGNORED_NAMES]).encode()
        for i, (header, before) in enumerate(exchange.extra_headers):
            if header == IGNORED_FIELDS:
                exchange.extra_headers[i] = (header, before + b", " + text)
                return
        exchange.extra_headers.append((IGNORED_FIELDS, text))

    async def tokenize(
        self, size: int, function: Callable[[], list[int]], param: str, total: int = 0, is_slow: bool = False
    ) -> list[int]:
        """Run `function`, which tokenizes `size` characters; in a thread when they are many.

        `param` is the field that holds them, `total` the characters of all prompts of the request: a thousand short
        ones hold up the streams as a long one does. `is_slow`: it may take seconds, whatever the size.
        """
        if size > self.state.info.max_model_len * MAX_TOKEN_BYTES:
            raise ContextLengthExceeded(
                f"The prompt has {size} characters; they cannot fit the context of "
                f"{self.state.info.max_model_len} tokens.",
                param,
            )
        try:
            if is_slow:
                return await self._in_template_thread(function)
            if max(size, total) <= THREAD_CHARS:
                return function()
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        except ContextLengthExceeded as exc:
            raise ContextLengthExceeded(exc.message, exc.param or param) from None
        except InvalidRequest as exc:
            raise InvalidRequest(exc.message, _INDEX.sub(r".\1", exc.param or param)) from None

    async def _in_template_thread(self, function: Callable[[], list[int]]) -> list[int]:
        if self._num_templates >= MAX_TEMPLATES_QUEUED:
            raise Overloaded("Too many chat templates of requests are waiting to be rendered. Try again later.")
        self._num_templates += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._template_thread, function)
        finally:
            self._num_templates -= 1

    def checked_params(self, request: SamplingFields, **changes: Any) -> SamplingParams:
        """Validated sampling parameters; `max_tokens` may still be None."""
        check_limits(request, self.state.config)
        if request.stream_options is not None and not request.stream:
            raise InvalidRequest("Stream options can only be defined when `stream=True`.", "stream_options")
        if request.stream and request.prompt_logprobs is not None:  # S19
            raise InvalidRequest("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
        salt = request.cache_salt or ""
        if len(salt) > MAX_CACHE_SALT_CHARS or not salt.isprintable():
            raise InvalidRequest(
                f"`cache_salt` should be at most {MAX_CACHE_SALT_CHARS} printable characters.", "cache_salt"
            )
        if request.bad_words:
            changes["bad_word_token_ids"] = self._bad_words(request.bad_words)
        beams, defaults = beam_params(request), self.state.default_sampling
        if beams is not None:
            defaults = {}  # they are about sampling; only what the request itself says can be wrong
            changes["best_of"] = None  # it is their number
            if request.temperature is None:
                changes["temperature"] = 0.0
        params = request.sampling_params(defaults, **changes)
        params = params.validate(
            vocab_size=self.state.info.vocab_size,
            max_logprobs=self.state.config.max_logprobs,
            max_n=self.state.config.max_n,
        )
        if beams is not None:
            beams.check(params, self.state.config.max_n)
            self._check_mode("use_beam_search")
        elif params.num_samples > 1 and params.greedy:
            name = "n" if params.n > 1 else "best_of"
            raise InvalidRequest(f"`{name}` must be 1 when `temperature` is 0: all choices would be equal.", name)
        elif params.num_samples > params.n:
            self._check_mode("best_of")
        return params

    def _check_mode(self, name: str) -> None:
        if self.state.logprobs_mode.endswith("_logits"):
            raise InvalidRequest(
                f"`{name}` needs log probabilities, and this server has logits in their place (--logprobs-mode).", name
            )

    def _bad_words(self, words: list[str]) -> tuple[tuple[int, ...], ...]:
        """Each word as it is written at the start of a text and after a space (2.4)."""
        sequences: dict[tuple[int, ...], None] = {}  # an ordered set
        for i, word in enumerate(words):
            param = f"bad_words.{i}"
            if not word.strip() or len(word) > MAX_BAD_WORD_CHARS:
                raise InvalidRequest(
                    f"A word of `bad_words` should have 1 to {MAX_BAD_WORD_CHARS} characters, not only spaces.", param
                )
            for text in (word.lstrip(), " " + word.lstrip()):
                ids = self.state.renderer.render_text(text, False)
                if ids:
                    sequences[tuple(ids)] = None
        return tuple(sequences)

    def constraint(self, body: Mapping[str, Any]) -> GrammarSpec | None:
        """What `body` says of its output, checked as far as that goes without compiling it."""
        return spec_of(body, self.grammar_limits)

    async def constrained(
        self, params: SamplingParams, spec: GrammarSpec | None, request: SamplingFields
    ) -> SamplingParams:
        """`params` with the grammar of `spec`, proven to compile."""
        if spec is None:
            return params
        if request.use_beam_search:  # a beam's tokens come from its log probabilities, not from the sampler
            raise InvalidRequest(f"`{spec.param}` cannot be combined with `use_beam_search`.", spec.param)
        grammar = await self.state.grammars.check(spec)
        await self.state.client.prepare_grammars()
        return msgspec.structs.replace(params, grammar=grammar)

    async def compiles(self, spec: GrammarSpec) -> bool:
        try:
            await self.state.grammars.check(spec)
        except InvalidRequest:
            return False
        return True

    def fit(self, params: SamplingParams, num_prompt: int, param: str) -> SamplingParams:
        """`params` with `max_tokens` set for a prompt of that length, which is in the field `param`."""
        return sized(params, num_prompt, self.state.info, param, self.state.default_sampling.get("max_tokens"))

    def truncated(self, ids: list[int], params: SamplingParams, request: SamplingFields) -> list[int]:
        """The prompt as far as `truncate_prompt_tokens` lets it be (S26); -1 leaves room for what is generated."""
        wanted, info = request.truncate_prompt_tokens, self.state.info
        if wanted is None:
            return ids
        if wanted < -1 or wanted == 0 or wanted > info.max_model_len:
            raise InvalidRequest(
                f"`truncate_prompt_tokens` must be -1 or in [1, {info.max_model_len}].", "truncate_prompt_tokens"
            )
        if wanted == -1:
            room = min(info.max_model_len, info.max_request_tokens)
            wanted = max(1, room - (params.max_tokens or max(1, params.min_tokens)))
        if len(ids) <= wanted:
            return ids
        return ids[:wanted] if request.truncation_side == "right" else ids[-wanted:]

    def generate_request(
        self,
        external_id: str,
        ids: list[int],
        params: SamplingParams,
        request: SamplingFields,
        shown_special_ids: frozenset[int] = frozenset(),
    ) -> GenerateRequest:
        self._log_request(external_id, ids, params)
        return GenerateRequest(
            external_id=external_id,
            prompt_token_ids=ids,
            params=widened(params) if params.num_samples > params.n else params,
            priority=request.priority or 0,
            cache_salt=request.cache_salt or "",
            arrival_time=time.monotonic(),
            beams=beam_params(request),
            shown_special_ids=shown_special_ids,
            is_whole=not request.stream or params.num_samples > params.n,
        )

    def _log_request(self, external_id: str, ids: list[int], params: SamplingParams) -> None:
        if self.state.config.disable_log_requests:
            return
        shown = ids[: self.state.config.max_log_len]
        logger.info("%s: %d prompt tokens, %s, ids %s", external_id, len(ids), escape(str(params)), shown)

    def names(self, request: SamplingFields) -> TokenNames:
        """How the reply calls its tokens (E73)."""
        as_ids = request.return_tokens_as_token_ids
        return TokenNames(self.texts, self.state.config.return_tokens_as_token_ids if as_ids is None else as_ids)

    # ------------------------------------------------------------ from request to deltas
    def usage_events(self, request: SamplingFields) -> tuple[bool, bool]:
        """Whether a stream ends with its usage, and whether each chunk carries it."""
        forced = self.state.config.enable_force_include_usage
        return forced or request.include_usage, request.continuous_usage

    async def stream(
        self,
        exchange: Exchange,
        request: SamplingFields,
        requests: list[GenerateRequest],
        params: SamplingParams,
        writer: EventWriter,
    ) -> None:
        """The reply of a request with `stream`."""
        config = self.state.config
        interval = request.stream_interval or config.stream_interval
        async with aclosing(self.generate(requests, params)) as generated:
            deltas = generated if interval == 1 else at_intervals(generated, interval)
            async with aclosing(deltas):
                await stream_events(exchange, deltas, writer, KeepAlive(exchange, config.sse_keep_alive_interval))

    async def generate(
        self, requests: list[GenerateRequest], params: SamplingParams
    ) -> AsyncGenerator[tuple[int, GenerationDelta], None]:
        """The deltas of all requests as they come, each with its request's place. Closing it aborts all.

        `params` are the caller's: with `best_of` each request has one delta, at its end. All requests are admitted
        before the first delta, or none is.
        """
        streams: list[DeltaStream] = []
        try:
            for request in requests:
                streams.append(self.state.client.generate(request))  # noqa: PERF401  (those before a refusal are closed)
            shown: list[DeltaStream] = streams
            if params.num_samples > params.n:
                shown = [best_of(stream, params) for stream in streams]
            if len(streams) == 1:
                async for delta in shown[0]:
                    yield 0, delta
            else:
                async with aclosing(merged(shown)) as together:
                    async for item in together:
                        yield item
        finally:
            for stream in streams:
                await stream.aclose()


def reply_id(prefix: str, exchange: Exchange, request: SamplingFields) -> str:
    """The reply's id ends in the request's: that of the `X-Request-Id` header, else the body's, else a new one (E16).

    What the body says becomes the reply's header too.
    """
    if request.request_id is not None and not exchange.scope["octavo.request_id_given"]:
        exchange.scope["octavo.request_id"] = request.request_id
    return f"{prefix}-{exchange.scope['octavo.request_id']}"


def renamed(exc: InvalidRequest, names: Mapping[str, str]) -> InvalidRequest:
    """The same error under the name that the request used for the field."""
    new = names.get(exc.param or "")
    if new is None:
        return exc
    return InvalidRequest(exc.message.replace(f"`{exc.param}`", f"`{new}`"), new)


def _fingerprint(state: ServerState) -> str:
    """Equal for servers that should give equal answers to equal seeds."""
    info = state.info
    facts = (octavo.__version__, state.model_root, info.model_type, info.dtype, info.kv_cache_dtype)
    return "fp_" + hashlib.sha256(repr((*facts, info.quantization, info.device)).encode()).hexdigest()[:10]
