"""POST /v1/completions: from the body to a turn, and the encoding of the reply."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from octavo.base.errors import InvalidRequest
from octavo.base.params import SamplingParams
from octavo.served.events import Content, News, PromptReply, Reply, SampleNews, Usage
from octavo.served.model import Prepared, ServedModel
from octavo.served.models import Lease
from octavo.served.turn import Continuation, Turn
from octavo.server.http.exchange import Exchange
from octavo.server.http.sse import TextEvent, event
from octavo.server.openai.limits import beam_params, check_stream_fields
from octavo.server.openai.logprobs import TextOffsets, completion_logprobs, echoed_logprobs, joined, prompt_logprobs
from octavo.server.openai.protocol.common import RequestMetrics, metrics_of, progress_of, usage_of
from octavo.server.openai.protocol.common import Usage as UsageReply
from octavo.server.openai.protocol.completions import (
    COMPLETION_REFUSALS,
    DEFAULT_MAX_TOKENS,
    CompletionChoice,
    CompletionLogprobs,
    CompletionReply,
    CompletionRequest,
)
from octavo.server.openai.serving import Serving, reply_id
from octavo.text.grammars.grammar import spec_of
from octavo.wire.messages import TokenLogprobs


class CompletionHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        serving.state.check_available()
        body, request = await serving.read(exchange, CompletionRequest, COMPLETION_REFUSALS)
        lease = serving.state.models.resolve(request.model)
        check_stream_fields(request)
        turn = self._turn(body, request, lease.model, reply_id("cmpl", exchange, request))
        turn = replace(turn, trace_headers=serving.trace_headers(exchange))
        async with exchange.cancelled_on_disconnect():
            prepared = await lease.model.prepare(turn)
            encoder = CompletionEncoder(serving, lease, request, prepared)
            await serving.send(
                exchange,
                lease.model,
                prepared,
                encoder,
                streams=bool(request.stream),
                interval=request.stream_interval,
            )

    def _turn(self, body: Mapping[str, Any], request: CompletionRequest, model: ServedModel, request_id: str) -> Turn:
        if request.suffix:
            for name in ("echo", "truncate_prompt_tokens"):
                if getattr(request, name):
                    raise InvalidRequest(f"`{name}` cannot be combined with `suffix`.", name)
        if request.echo and model.info.max_encoder_len:
            raise InvalidRequest("`echo` is not supported: the prompt is the input of the model's encoder.", "echo")
        most = self._serving.state.config.max_prompts
        if len(request.prompt) > most:
            raise InvalidRequest(f"At most {most} prompts are allowed in one request.", "prompt")
        special = request.add_special_tokens is not False
        return Turn(
            request_id=request_id,
            prompts=[
                Continuation(prompt=prompt, add_special_tokens=special, suffix=request.suffix)
                for prompt in request.prompt
            ],
            sampling=_sampling(request),
            default_max_tokens=DEFAULT_MAX_TOKENS,
            beams=beam_params(request),
            constraint=spec_of(body, model.grammar_limits),
            **request.turn_values(),
        )


def _sampling(request: CompletionRequest) -> dict[str, Any]:
    values = request.sampling_values()
    values["logprobs"] = request.logprobs
    if request.scores_only:  # the engine generates one token, which is not returned
        values["max_tokens"] = 1
        if request.min_tokens:
            raise InvalidRequest("`min_tokens` must be 0 when `max_tokens` is 0.", "min_tokens")
    if request.echo and request.logprobs is not None:  # the prompt's are part of the choice's
        numbers = (request.logprobs, request.prompt_logprobs or 0)
        values["prompt_logprobs"] = -1 if -1 in numbers else max(numbers)
    return values


class CompletionEncoder:
    """One request's reply. A choice's index is prompt x n + sample."""

    def __init__(self, serving: Serving, lease: Lease, request: CompletionRequest, prepared: Prepared) -> None:
        self._model = lease.model
        self._model_name = lease.name
        self._fingerprint = lease.model.fingerprint
        self._names = serving.names(lease.model, request.return_tokens_as_token_ids)
        self._request = request
        self._params: SamplingParams = prepared.params
        self._prompts = prepared.prompts
        # As an echo shows them: as they were given, or decoded when given as ids or cut.
        self._echoes = [
            lease.model.tokenizer.decode(prompt.ids, self._params.skip_special_tokens)
            if prompt.text is None
            else prompt.text
            for prompt in (prepared.prompts if request.echo else ())
        ]
        self._gives_ids = bool(request.return_token_ids)
        self._id = prepared.turn.request_id
        self._created = int(time.time())
        self._include_usage, self._continuous_usage = serving.usage_events(request)
        self._usage = Usage()
        self._gives_metrics = serving.gives_metrics(request)
        self._text_events: dict[int, TextEvent] = {}
        self._offsets: dict[int, TextOffsets] = {}  # of the choices
        self._scores: dict[int, list[TokenLogprobs]] = {}  # of the prompts
        self._echoed: set[int] = set()  # choices whose prompt is out
        self._identified: set[int] = set()  # choices whose prompt's ids are out

    # ------------------------------------------------------------ the whole
    def whole(self, replies: Sequence[PromptReply], usage: Usage) -> CompletionReply:
        choices = []
        for reply in replies:
            self._scores[reply.place] = reply.prompt_logprobs or []
            scores = self._prompt_logprobs(reply.place)
            for index in sorted(reply.samples):
                choice = self._choice(reply.place, _as_news(reply.samples[index]))
                choice.prompt_logprobs = scores
                choices.append(choice)
        return self._object(choices, self._usage_of(usage), self._metrics_of(usage))

    def _prompt_logprobs(self, place: int) -> Any:
        wanted = self._request.prompt_logprobs
        if wanted is None:
            return None
        if wanted == -1:
            wanted = self._params.prompt_logprobs or 0
        return prompt_logprobs(self._model.texts, self._prompts[place].ids, self._scores[place], wanted)

    # ------------------------------------------------------------ events
    def events(self, news: News) -> bytes:
        if news.prompt_logprobs is not None:
            self._scores[news.place] = news.prompt_logprobs
        self._usage.add(news)
        begin = b""
        if news.progress is not None:
            chunk = self._object([CompletionChoice(news.place * self._params.n, "")], self._running_usage())
            chunk.prompt_progress = progress_of(news)
            begin = event(chunk)
        return begin + b"".join([self._sample(news.place, sample) for sample in news.samples])

    def last_events(self) -> bytes:
        if not (self._include_usage or self._gives_metrics):
            return b""
        usage = self._usage_of(self._usage) if self._include_usage else UNSET
        return event(self._object([], usage, self._metrics_of(self._usage)))

    def _sample(self, place: int, sample: SampleNews) -> bytes:
        """One choice's chunk; b"" when its text is held back and there is nothing else to send."""
        is_plain = sample.logprobs is None and sample.finish_reason is None and not self._request.scores_only
        if is_plain and not (self._echoes or self._gives_ids or self._continuous_usage):
            text = _text(sample)
            return self._text_event(place * self._params.n + sample.index)(text) if text else b""
        choice = self._choice(place, sample)
        has_ids = self._gives_ids and choice.token_ids
        if not (choice.text or choice.logprobs or has_ids or choice.finish_reason is not None):
            return b""
        return event(self._object([choice], self._running_usage()))

    def _text_event(self, index: int) -> TextEvent:
        made = self._text_events.get(index)
        if made is None:
            made = TextEvent(lambda text: self._object([CompletionChoice(index, text)], self._running_usage()))
            self._text_events[index] = made
        return made

    def _running_usage(self) -> UsageReply | UnsetType | None:
        """Null until the last chunk, or the counts so far when asked for."""
        if self._continuous_usage:
            return self._usage_of(self._usage)
        return None if self._include_usage else UNSET

    def _usage_of(self, usage: Usage) -> UsageReply:
        return usage_of(usage, num_output_tokens=0 if self._request.scores_only else None)

    def _metrics_of(self, usage: Usage) -> RequestMetrics | UnsetType:
        return metrics_of(usage, len(self._prompts) * self._params.n) if self._gives_metrics else UNSET

    # ------------------------------------------------------------ a choice
    def _choice(self, place: int, sample: SampleNews) -> CompletionChoice:
        index = place * self._params.n + sample.index
        if self._request.scores_only:
            sample = _scores_only(sample)
        text, echoed = self._echo(place, index)
        logprobs = None
        if sample.logprobs is not None:
            offsets = self._text_offsets(place, index).take(sample.token_ids)
            top = self._params.logprobs or 0
            own = completion_logprobs(self._names, sample.token_ids, sample.logprobs, top, offsets)
            logprobs = joined(echoed, own)
            if not logprobs.tokens:
                logprobs = None
        choice = CompletionChoice(index, text + _text(sample), logprobs, sample.finish_reason, sample.stop_reason)
        if self._gives_ids:
            choice.token_ids = sample.token_ids
            if index not in self._identified:
                self._identified.add(index)
                choice.prompt_token_ids = self._prompts[place].ids
        return choice

    def _echo(self, place: int, index: int) -> tuple[str, CompletionLogprobs | None]:
        """What goes before a choice's first token: the prompt and its log probabilities, once, when asked for."""
        if not self._echoes or index in self._echoed:
            return "", None
        self._echoed.add(index)
        text = self._echoes[place]
        if self._params.logprobs is None:
            return text, None
        ids, scores = self._prompts[place].ids, self._scores[place]
        return text, echoed_logprobs(self._names, ids, scores, self._params.logprobs, self._prompt_offsets(place))

    def _text_offsets(self, place: int, index: int) -> TextOffsets:
        """Of a choice's tokens, after the echo."""
        if index not in self._offsets:
            start = len(self._echoes[place]) if self._echoes else 0
            self._offsets[index] = TextOffsets(self._model.engine.detokenizer(self._params), start)
        return self._offsets[index]

    def _prompt_offsets(self, place: int) -> list[int]:
        """Of a prompt's tokens in its echo: the text that was given, or that of its ids."""
        prompt, detokenizer = self._prompts[place], self._model.engine.detokenizer
        if prompt.text is None:
            return TextOffsets(detokenizer(self._params)).take(prompt.ids)
        shows_all = detokenizer(msgspec.structs.replace(self._params, skip_special_tokens=False))
        hides_special = detokenizer(msgspec.structs.replace(self._params, skip_special_tokens=True))
        # The tokenizer may have put a special token in front, which is no part of the text that was given.
        first = self._names.text(prompt.ids[0])
        if not prompt.text.startswith(first) and "\ufffd" not in first and not hides_special.push(prompt.ids[:1]):
            return [0, *TextOffsets(shows_all).take(prompt.ids[1:])]
        return TextOffsets(shows_all).take(prompt.ids)

    def _object(
        self,
        choices: list[CompletionChoice],
        usage: UsageReply | UnsetType | None,
        metrics: RequestMetrics | UnsetType = UNSET,
    ) -> CompletionReply:
        return CompletionReply(
            self._id,
            "text_completion",
            self._created,
            self._model_name,
            choices,
            self._fingerprint,
            usage,
            metrics,
        )


def _text(sample: SampleNews) -> str:
    """The text of the news; in text completions all of it is content."""
    return "".join([said.text for said in sample.said if isinstance(said, Content)])


def _as_news(reply: Reply) -> SampleNews:
    """The whole of a sample as one piece of news."""
    said = [Content(reply.content)]
    return SampleNews(reply.index, list(said), reply.token_ids, reply.logprobs, reply.finish_reason, reply.stop_reason)


def _scores_only(sample: SampleNews) -> SampleNews:
    """The reply when only the prompt is scored: the token that was generated is left out."""
    finish_reason = None if sample.finish_reason is None else "length"
    return SampleNews(sample.index, [], [], None if sample.logprobs is None else [], finish_reason)
