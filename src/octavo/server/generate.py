"""POST /inference/v1/generate: tokens in, tokens out, as vLLM has it for routers and for training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import AfterValidator, Field

from octavo.base.errors import InvalidRequest
from octavo.base.params import GrammarSpec
from octavo.served.events import News, PromptReply, Usage
from octavo.served.model import Prepared
from octavo.served.models import Lease
from octavo.served.turn import Continuation, Turn
from octavo.server.http.exchange import Exchange
from octavo.server.http.routing import Route
from octavo.server.http.sse import event
from octavo.server.openai.limits import beam_params
from octavo.server.openai.logprobs import chat_logprobs, prompt_logprobs
from octavo.server.openai.protocol.chat import ChatLogprobs
from octavo.server.openai.protocol.common import (
    COMMON_REFUSALS,
    PromptLogprob,
    Refusals,
    SamplingFields,
    StreamOptions,
    check_request_id,
    inert,
    refuse_unsupported,
    usage_of,
)
from octavo.server.openai.protocol.common import Usage as UsageReply
from octavo.server.openai.protocol.completions import DEFAULT_MAX_TOKENS
from octavo.server.openai.protocol.model import Int, WireModel
from octavo.server.openai.serving import Serving
from octavo.text.grammars.grammar import GrammarLimits, spec_of
from octavo.wire.messages import TokenLogprobs

_PREFIX = "sampling_params."


class SamplingBody(SamplingFields):
    """The fields of a text completion that are about sampling, and `logprobs` as a number."""

    logprobs: Int | None = None
    detokenize: bool | None = None  # without effect: the reply has tokens only


#: Those that stand in the body itself, or ask for a text.
_MISPLACED: Refusals = {
    **COMMON_REFUSALS,
    **dict.fromkeys(("model", "stream", "stream_options", "request_id", "cache_salt", "priority"), inert(None)),
    "echo": inert(None, False),
    "return_progress": inert(None, False),
}


class GenerateBody(WireModel):
    model: str | None = None
    token_ids: Annotated[list[Int], Field(min_length=1)]
    sampling_params: SamplingBody = Field(default_factory=SamplingBody)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    request_id: Annotated[str | None, AfterValidator(check_request_id)] = None
    cache_salt: str | None = None
    priority: Int | None = None


_REFUSALS: Refusals = {"features": inert(None), "kv_transfer_params": inert(None)}


class GenerateChoice(msgspec.Struct):
    index: int
    token_ids: list[int]
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class GenerateReply(msgspec.Struct):
    """The whole reply, and an event of a stream; the usage stands in the last."""

    request_id: str
    model: str
    choices: list[GenerateChoice]
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None = None
    usage: UsageReply | UnsetType = UNSET


def generate_routes(serving: Serving) -> list[Route]:
    about = "Continue tokens with tokens"
    handler = GenerateHandler(serving)
    return [Route("POST", "/inference/v1/generate", handler, about, GenerateBody, GenerateReply, GenerateReply)]


class GenerateHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        serving.state.check_available()
        body, request = await serving.read(exchange, GenerateBody, _REFUSALS)
        given, params = body.get("sampling_params") or {}, request.sampling_params
        self._check(given, request)
        lease = serving.state.models.resolve(request.model)
        if request.request_id is not None and not exchange.scope["octavo.request_id_given"]:
            exchange.scope["octavo.request_id"] = request.request_id
        turn = Turn(
            request_id=f"generate-tokens-{exchange.scope['octavo.request_id']}",
            prompts=[Continuation(prompt=request.token_ids)],
            prompt_param="token_ids",
            sampling=params.sampling_values() | {"logprobs": params.logprobs},
            default_max_tokens=DEFAULT_MAX_TOKENS,
            beams=beam_params(params),
            constraint=_constraint(given, lease.model.grammar_limits),
            names={name: _PREFIX + name for name in SamplingBody.model_fields},
            trace_headers=serving.trace_headers(exchange),
            **params.turn_values()
            | {
                "priority": request.priority or 0,
                "cache_salt": request.cache_salt or "",
                "is_whole": not request.stream,
            },
        )
        async with exchange.cancelled_on_disconnect():
            prepared = await lease.model.prepare(turn)
            encoder = TokenEncoder(serving, lease, request, prepared)
            streams = bool(request.stream)
            await serving.send(
                exchange, lease.model, prepared, encoder, streams=streams, interval=params.stream_interval
            )

    def _check(self, given: Mapping[str, Any], request: GenerateBody) -> None:
        """What the parameters cannot ask for, under their place in the body."""
        with _within_params():
            refuse_unsupported(given, _MISPLACED)
            if request.stream and request.sampling_params.prompt_logprobs is not None:
                raise InvalidRequest("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
            if request.sampling_params.stream_interval is not None and not request.stream:
                raise InvalidRequest("`stream_interval` can only be set when `stream=True`.", "stream_interval")


@contextmanager
def _within_params() -> Iterator[None]:
    try:
        yield
    except InvalidRequest as exc:
        raise InvalidRequest(exc.message, _PREFIX + (exc.param or "")) from None


def _constraint(given: Mapping[str, Any], limits: GrammarLimits) -> GrammarSpec | None:
    with _within_params():
        return spec_of(given, limits)


class TokenEncoder:
    def __init__(self, serving: Serving, lease: Lease, request: GenerateBody, prepared: Prepared) -> None:
        self._texts = lease.model.texts
        self._names = serving.names(lease.model)
        self._model_name = lease.name
        self._params = prepared.params
        self._prompt = prepared.prompts[0]
        self._id = request.request_id or prepared.turn.request_id
        self._gives_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._usage = Usage()

    def whole(self, replies: Sequence[PromptReply], usage: Usage) -> GenerateReply:
        samples = [replies[0].samples[index] for index in sorted(replies[0].samples)]
        choices = [self._choice(s.index, s.token_ids, s.logprobs, s.finish_reason, s.stop_reason) for s in samples]
        scores, wanted = None, self._params.prompt_logprobs
        if wanted is not None:
            scores = prompt_logprobs(self._texts, self._prompt.ids, replies[0].prompt_logprobs or [], wanted)
        return GenerateReply(self._id, self._model_name, choices, scores, usage_of(usage))

    def events(self, news: News) -> bytes:
        self._usage.add(news)
        choices = [
            self._choice(s.index, s.token_ids, s.logprobs, s.finish_reason, s.stop_reason)
            for s in news.samples
            if s.token_ids or s.finish_reason is not None
        ]
        return event(GenerateReply(self._id, self._model_name, choices)) if choices else b""

    def last_events(self) -> bytes:
        if not self._gives_usage:
            return b""
        return event(GenerateReply(self._id, self._model_name, [], usage=usage_of(self._usage)))

    def _choice(
        self,
        index: int,
        token_ids: list[int],
        logprobs: list[TokenLogprobs] | None,
        finish_reason: str | None,
        stop_reason: int | str | None,
    ) -> GenerateChoice:
        scores = chat_logprobs(self._names, token_ids, logprobs, self._params.logprobs or 0)
        return GenerateChoice(index, token_ids, scores, finish_reason, stop_reason)
