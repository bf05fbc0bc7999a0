"""What chat and text completions share: from a body to `GenerateRequest`s, and from deltas to events."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import msgspec

import octavo
from octavo.errors import ContextLengthExceeded, InvalidRequest, OctavoError
from octavo.generation import GenerationDelta
from octavo.log import escape
from octavo.params import GenerateRequest, SamplingParams
from octavo.server.errors import validate_body
from octavo.server.exchange import Exchange
from octavo.server.limits import beam_params, check_limits
from octavo.server.logprobs import TokenTexts
from octavo.server.pacing import KeepAlive, at_intervals
from octavo.server.protocol.common import (
    MAX_CACHE_SALT_CHARS,
    Refusals,
    SamplingFields,
    WireModel,
    ignored_fields,
    refuse_unsupported,
)
from octavo.server.sse import DONE, error_events
from octavo.server.state import DeltaStream, ServerState

logger = logging.getLogger(__name__)

#: Prompts of more characters than this are tokenized in a thread, so that the streams go on meanwhile.
THREAD_CHARS = 2048
#: No token stands for more bytes of text than this: longer prompts are refused before they are tokenized.
MAX_TOKEN_BYTES = 256
MAX_IGNORED_NAMES = 16

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
        self._threads = ThreadPoolExecutor(2, "tokenize")

    # ------------------------------------------------------------ from body to request
    async def read(self, exchange: Exchange, model: type[M], refusals: Refusals) -> tuple[dict[str, Any], M]:
        """The body as decoded and as validated. Names of ignored fields go into the reply's headers."""
        body = await exchange.read_json()
        request = validate_body(model, body)
        refuse_unsupported(body, refusals)
        if ignored := ignored_fields(body, model, refusals):
            names = [_UNSAFE_IN_HEADER.sub("?", name[:64]) for name in ignored[:MAX_IGNORED_NAMES]]
            exchange.extra_headers.append((b"x-octavo-ignored-fields", ", ".join(names).encode()))
        return body, request

    async def tokenize(self, size: int, function: Callable[[], list[int]], param: str, total: int = 0) -> list[int]:
        """Run `function`, which tokenizes `size` characters; in a thread when they are many.

        `param` is the field that holds them, `total` the characters of all prompts of the request: a thousand short
        ones hold up the streams as a long one does.
        """
        if size > self.state.info.max_model_len * MAX_TOKEN_BYTES:
            raise ContextLengthExceeded(
                f"The prompt has {size} characters; they cannot fit the context of "
                f"{self.state.info.max_model_len} tokens.",
                param,
            )
        try:
            if max(size, total) <= THREAD_CHARS:
                return function()
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        except ContextLengthExceeded as exc:
            raise ContextLengthExceeded(exc.message, exc.param or param) from None
        except InvalidRequest as exc:
            raise InvalidRequest(exc.message, _INDEX.sub(r".\1", exc.param or param)) from None

    def checked_params(self, request: SamplingFields, **changes: Any) -> SamplingParams:
        """Validated sampling parameters; `max_tokens` may still be None."""
        check_limits(request, self.state.config)
        if request.stream_options is not None and not request.stream:
            raise InvalidRequest("Stream options can only be defined when `stream=True`.", "stream_options")
        salt = request.cache_salt or ""
        if len(salt) > MAX_CACHE_SALT_CHARS or not salt.isprintable():
            raise InvalidRequest(
                f"`cache_salt` should be at most {MAX_CACHE_SALT_CHARS} printable characters.", "cache_salt"
            )
        beams = beam_params(request)
        if beams is not None and request.temperature is None:
            changes["temperature"] = 0.0
        params = request.sampling_params(self.state.default_sampling, **changes)
        params = params.validate(
            vocab_size=self.state.info.vocab_size,
            max_logprobs=self.state.config.max_logprobs,
            max_n=self.state.config.max_n,
        )
        if beams is not None:
            beams.check(params, self.state.config.max_n)
        elif params.n > 1 and params.greedy:
            raise InvalidRequest("`n` must be 1 when `temperature` is 0: all choices would be equal.", "n")
        return params

    def fit(self, params: SamplingParams, num_prompt: int, param: str) -> SamplingParams:
        """`params` with `max_tokens` set for a prompt of that length. Decides context overflow (E8, E9).

        `param` is the field that holds the prompt.
        """
        if num_prompt == 0:
            raise InvalidRequest("Prompt cannot be empty.", param)
        info = self.state.info
        limit, what = info.max_model_len, "the model's context"
        if info.max_request_tokens < limit:
            limit, what = info.max_request_tokens, "the KV cache"
        wanted = params.max_tokens
        if num_prompt + (wanted or 1) > limit:
            asked = f" and {wanted} were requested" if wanted is not None else ""
            raise ContextLengthExceeded(
                f"At most {limit} tokens fit {what}, but the prompt has {num_prompt}{asked}.", param
            )
        room = limit - num_prompt
        if params.min_tokens > room:
            raise ContextLengthExceeded(
                f"At most {limit} tokens fit {what}: after a prompt of {num_prompt} there is no room for "
                f"`min_tokens` of {params.min_tokens}.",
                "min_tokens",
            )
        return params if wanted is not None else msgspec.structs.replace(params, max_tokens=room)

    def generate_request(
        self, external_id: str, ids: list[int], params: SamplingParams, request: SamplingFields
    ) -> GenerateRequest:
        self._log_request(external_id, ids, params)
        return GenerateRequest(
            external_id=external_id,
            prompt_token_ids=ids,
            params=params,
            priority=request.priority or 0,
            cache_salt=request.cache_salt or "",
            arrival_time=time.monotonic(),
            beams=beam_params(request),
        )

    def _log_request(self, external_id: str, ids: list[int], params: SamplingParams) -> None:
        if self.state.config.disable_log_requests:
            return
        shown = ids[: self.state.config.max_log_len]
        logger.info("%s: %d prompt tokens, %s, ids %s", external_id, len(ids), escape(str(params)), shown)

    # ------------------------------------------------------------ from request to deltas
    def usage_events(self, request: SamplingFields) -> tuple[bool, bool]:
        """Whether a stream ends with its usage, and whether each chunk carries it."""
        forced = self.state.config.enable_force_include_usage
        return forced or request.include_usage, request.continuous_usage

    async def stream(
        self, exchange: Exchange, request: SamplingFields, requests: list[GenerateRequest], writer: EventWriter
    ) -> None:
        """The reply of a request with `stream`."""
        config = self.state.config
        interval = request.stream_interval or config.stream_interval
        async with aclosing(self.generate(requests)) as generated:
            deltas = generated if interval == 1 else at_intervals(generated, interval)
            async with aclosing(deltas):
                await stream_events(exchange, deltas, writer, KeepAlive(exchange, config.sse_keep_alive_interval))

    async def generate(self, requests: list[GenerateRequest]) -> AsyncGenerator[tuple[int, GenerationDelta], None]:
        """The deltas of all requests as they come, each with its request's place. Closing it aborts all.

        All requests are admitted before the first delta, or none is.
        """
        streams: list[DeltaStream] = []
        try:
            for request in requests:
                streams.append(self.state.client.generate(request))  # noqa: PERF401  (those before a refusal are closed)
            if len(streams) == 1:
                async for delta in streams[0]:
                    yield 0, delta
            else:
                async with aclosing(_merged(streams)) as merged:
                    async for item in merged:
                        yield item
        finally:
            for stream in streams:
                await stream.aclose()


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


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


async def _merged(streams: list[DeltaStream]) -> AsyncGenerator[tuple[int, GenerationDelta], None]:
    """One task a stream, and a queue with room for one delta of each: a slow reader still gets merged deltas."""
    queue: asyncio.Queue[tuple[int, GenerationDelta | Exception | None]] = asyncio.Queue(len(streams))

    async def pump(place: int, stream: DeltaStream) -> None:
        end: Exception | None = None
        try:
            async for delta in stream:
                await queue.put((place, delta))
        except Exception as exc:  # noqa: BLE001  (raised again by the reader)
            end = exc
        await queue.put((place, end))

    tasks = [asyncio.create_task(pump(place, stream)) for place, stream in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            place, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield place, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# ---------------------------------------------------------------- from deltas to events
class EventWriter(Protocol):
    """How an endpoint spells its stream."""

    def events(self, place: int, delta: GenerationDelta) -> bytes:
        """All events for one delta, ready to send; b"" when there is nothing to say."""
        ...

    def last_events(self) -> bytes:
        """What follows the last delta, before [DONE]."""
        ...


async def stream_events(
    exchange: Exchange,
    deltas: AsyncIterator[tuple[int, GenerationDelta]],
    writer: EventWriter,
    keep_alive: KeepAlive,
) -> None:
    """Send a stream: one write a delta. Until the reply begins an error raises and gets its own status (E50)."""
    try:
        first = await keep_alive.first(deltas)
        if not exchange.is_begun:
            await exchange.start_events()
        async with keep_alive.running():
            await keep_alive.write(writer.events(*first))
            async for place, delta in deltas:
                if data := writer.events(place, delta):
                    await keep_alive.write(data)
        await exchange.end(writer.last_events() + DONE)
    except Exception as exc:
        if not exchange.is_begun:
            raise
        if not isinstance(exc, OctavoError):
            logger.exception("stream %s failed", exchange.scope.get("octavo.request_id"))
        await exchange.end(error_events(exc))


class UsageCount:
    """Running token counts of a reply over all its prompts."""

    def __init__(self) -> None:
        self._last: dict[int, GenerationDelta] = {}

    def add(self, place: int, delta: GenerationDelta) -> None:
        """Each delta carries its request's totals so far, so the newest one counts."""
        self._last[place] = delta

    def totals(self) -> tuple[int, int, int]:
        """Prompt, cached and output tokens."""
        deltas = self._last.values()
        return (
            sum(d.num_prompt_tokens for d in deltas),
            sum(d.num_cached_tokens for d in deltas),
            sum(d.num_output_tokens for d in deltas),
        )
