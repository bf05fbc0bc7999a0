"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from octavo.admission import sized
from octavo.errors import InvalidRequest
from octavo.generation import CompletionDelta, GenerationDelta
from octavo.messages import TokenLogprobs
from octavo.params import GenerateRequest, SamplingParams
from octavo.server.exchange import Exchange
from octavo.server.limits import beam_params
from octavo.server.logprobs import TextOffsets, completion_logprobs, echoed_logprobs, joined, prompt_logprobs
from octavo.server.protocol.common import Usage, usage_of
from octavo.server.protocol.completions import (
    COMPLETION_REFUSALS,
    DEFAULT_MAX_TOKENS,
    CompletionChoice,
    CompletionLogprobs,
    CompletionReply,
    CompletionRequest,
)
from octavo.server.serving import Serving, reply_id
from octavo.server.sse import TextEvent, event
from octavo.server.streaming import UsageCount, send_whole


class CompletionHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        serving.state.check_available()
        body, request = await serving.read(exchange, CompletionRequest, COMPLETION_REFUSALS)
        model = serving.state.resolve_model(request.model)
        params = self._params(request)
        async with exchange.cancelled_on_disconnect():
            params = await serving.constrained(params, serving.constraint(body), request)
            full_id = reply_id("cmpl", exchange, request)
            requests, texts = await self._requests(request, params, full_id)
            reply = _Reply(serving, request, params, full_id, model, requests, texts)
            if request.stream and params.num_samples == params.n:
                await serving.stream(exchange, request, requests, params, reply)
                return
            async with aclosing(serving.generate(requests, params)) as deltas:
                async for place, delta in deltas:
                    reply.fold(place, delta)
        await send_whole(exchange, reply.whole(), bool(request.stream))

    def _params(self, request: CompletionRequest) -> SamplingParams:
        changes: dict[str, Any] = {"logprobs": request.logprobs}
        if request.scores_only:  # the engine generates one token, which is not returned
            changes["max_tokens"] = 1
            if request.min_tokens:
                raise InvalidRequest("`min_tokens` must be 0 when `max_tokens` is 0.", "min_tokens")
        if request.echo and request.logprobs is not None:  # the prompt's are part of the choice's
            numbers = (request.logprobs, request.prompt_logprobs or 0)
            changes["prompt_logprobs"] = -1 if -1 in numbers else max(numbers)
        if request.suffix:
            for name in ("echo", "truncate_prompt_tokens"):
                if getattr(request, name):
                    raise InvalidRequest(f"`{name}` cannot be combined with `suffix`.", name)
        params = self._serving.checked_params(request, **changes)
        most = self._serving.state.config.max_prompts
        if len(request.prompt) > most:
            raise InvalidRequest(f"At most {most} prompts are allowed in one request.", "prompt")
        beams = beam_params(request)
        samples = params.num_samples if beams is None else beams.width
        fanout = len(request.prompt) * samples
        if fanout > self._serving.state.max_fanout:
            raise InvalidRequest(
                f"{len(request.prompt)} prompts with {samples} samples each are {fanout} sequences; at most "
                f"{self._serving.state.max_fanout} are allowed.",
                "prompt",
            )
        return params

    async def _requests(
        self, request: CompletionRequest, params: SamplingParams, reply_id: str
    ) -> tuple[list[GenerateRequest], list[str]]:
        """One request a prompt, ids `<id>-<i>` when there are several (E70). All are checked before any starts.

        Also the prompts' texts as an echo shows them: as they were given, or decoded when given as ids or cut.
        """
        requests, texts = [], []
        prompts: Sequence[str | list[int]] = request.prompt
        num_chars = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        for i, prompt in enumerate(prompts):
            param = f"prompt.{i}" if len(request.prompt) > 1 else "prompt"
            own_params = params
            if not isinstance(prompt, str):
                self._check_ids(prompt, param)
            if request.suffix:
                ids, ends = await self._infill(prompt, request, param, num_chars)
                own_params = msgspec.structs.replace(params, stop_token_ids=(*params.stop_token_ids, *ends))
            elif isinstance(prompt, str):
                ids = await self._tokenized(prompt, request.add_special_tokens is not False, param, num_chars)
            else:
                ids = prompt
            whole, ids = ids, self._serving.truncated(ids, _with_default(params), request)
            external_id = f"{reply_id}-{i}" if len(request.prompt) > 1 else reply_id
            fitted = sized(own_params, len(ids), self._serving.state.info, param, DEFAULT_MAX_TOKENS)
            requests.append(self._serving.generate_request(external_id, ids, fitted, request))
            if request.echo:
                decode = self._serving.state.tokenizer.decode
                texts.append(
                    prompt if isinstance(prompt, str) and ids is whole else decode(ids, params.skip_special_tokens)
                )
        return requests, texts

    async def _tokenized(self, prompt: str, add_special_tokens: bool, param: str, total: int) -> list[int]:
        if not prompt:
            raise InvalidRequest("Prompt cannot be empty.", param)
        render = self._serving.state.renderer.render_text
        return await self._serving.tokenize(len(prompt), lambda: render(prompt, add_special_tokens), param, total)

    async def _infill(
        self, prompt: str | list[int], request: CompletionRequest, param: str, total: int
    ) -> tuple[list[int], tuple[int, ...]]:
        """C6: a prompt for what stands between `prompt` and `suffix`, and the tokens that end it."""
        suffix, add_special_tokens = request.suffix or "", request.add_special_tokens is not False
        ends: tuple[int, ...] = ()

        def render() -> list[int]:
            nonlocal ends
            found = self._serving.state.renderer.render_infill(prompt, suffix, add_special_tokens)
            if found is None:
                raise InvalidRequest(
                    "`suffix` is not supported: the model's vocabulary has no tokens to fill in the middle.", "suffix"
                )
            ids, ends = found
            return ids

        size = len(suffix) + (len(prompt) if isinstance(prompt, str) else 0)
        return await self._serving.tokenize(size, render, param, total + len(suffix)), ends

    def _check_ids(self, ids: list[int], param: str) -> None:
        vocab_size = self._serving.state.info.vocab_size
        if min(ids) < 0 or max(ids) >= vocab_size:
            raise InvalidRequest(f"Token ids should lie in 0..{vocab_size - 1}.", param)


def _with_default(params: SamplingParams) -> SamplingParams:
    """`params` with the tokens that a request asks for which does not say."""
    if params.max_tokens is not None:
        return params
    return msgspec.structs.replace(params, max_tokens=max(DEFAULT_MAX_TOKENS, params.min_tokens))


class _Reply:
    """One request's reply, whole or as events. A choice's index is prompt x n + sample (E71)."""

    def __init__(
        self,
        serving: Serving,
        request: CompletionRequest,
        params: SamplingParams,
        reply_id: str,
        model: str,
        requests: list[GenerateRequest],
        texts: list[str],
    ) -> None:
        self._serving = serving
        self._request = request
        self._params = params
        self._requests = requests
        self._echoes = texts  # empty unless asked for
        self._names = serving.names(request)
        self._gives_ids = bool(request.return_token_ids)
        self._id = reply_id
        self._model = model
        self._created = int(time.time())
        self._include_usage, self._continuous_usage = serving.usage_events(request)
        self._usage = UsageCount()
        self._text_events: dict[int, TextEvent] = {}
        num_choices = len(request.prompt) * params.n
        self._offsets: dict[int, TextOffsets] = {}
        self._whole = [CompletionChoice(i, "") for i in range(num_choices)]
        self._texts: list[list[str]] = [[] for _ in range(num_choices)]
        self._token_ids: list[list[int]] = [[] for _ in range(num_choices)]
        self._scores: dict[int, list[TokenLogprobs]] = {}  # of the prompts
        self._echoed: set[int] = set()  # choices whose prompt is out
        self._identified: set[int] = set()  # choices whose prompt's ids are out

    def fold(self, place: int, delta: GenerationDelta) -> None:
        delta = self._begin(place, delta)
        for output in delta.outputs:
            part = self._choice(place, output)
            whole = self._whole[part.index]
            self._texts[part.index].append(part.text)
            if part.logprobs is not None:
                whole.logprobs = joined(whole.logprobs, part.logprobs)
            if self._gives_ids:
                self._token_ids[part.index] += output.token_ids
            if part.finish_reason is not None:
                whole.finish_reason, whole.stop_reason = part.finish_reason, part.stop_reason

    def whole(self) -> CompletionReply:
        wanted = self._request.prompt_logprobs
        if wanted == -1:
            wanted = self._params.prompt_logprobs
        for place, request in enumerate(self._requests):
            scores = None
            if wanted is not None:
                ids = request.prompt_token_ids
                scores = prompt_logprobs(self._serving.texts, ids, self._scores[place], wanted)
            for choice in self._whole[place * self._params.n : (place + 1) * self._params.n]:
                choice.text = "".join(self._texts[choice.index])
                choice.prompt_logprobs = scores
                if self._gives_ids:
                    choice.prompt_token_ids = request.prompt_token_ids
                    choice.token_ids = self._token_ids[choice.index]
        return self._object(self._whole, usage_of(*self._usage.totals()))

    # ------------------------------------------------------------ EventWriter
    def events(self, place: int, delta: GenerationDelta) -> bytes:
        delta = self._begin(place, delta)
        return b"".join([self._output(place, output) for output in delta.outputs])

    def last_events(self) -> bytes:
        return event(self._object([], usage_of(*self._usage.totals()))) if self._include_usage else b""

    def _begin(self, place: int, delta: GenerationDelta) -> GenerationDelta:
        """What every delta goes through first: it is counted, and keeps what the caller is to see."""
        if delta.prompt_logprobs is not None:
            self._scores[place] = delta.prompt_logprobs
        if self._request.scores_only:
            outputs = [
                replace(part, text="", token_ids=[], logprobs=part.logprobs and [], stop_reason=None,
                        finish_reason=part.finish_reason and "length")
                for part in delta.outputs
            ]  # fmt: skip
            delta = replace(delta, outputs=outputs, num_output_tokens=0)
        self._usage.add(place, delta)
        return delta

    def _output(self, place: int, output: CompletionDelta) -> bytes:
        """One choice's chunk; b"" when its text is held back and nothing else is to be said."""
        is_plain = output.logprobs is None and output.finish_reason is None
        if is_plain and not (self._echoes or self._gives_ids or self._continuous_usage):
            return self._text_event(place * self._params.n + output.index)(output.text) if output.text else b""
        choice = self._choice(place, output)
        has_ids = self._gives_ids and output.token_ids
        if not (choice.text or choice.logprobs or has_ids or choice.finish_reason is not None):
            return b""
        return event(self._object([choice], self._running_usage()))

    def _text_event(self, index: int) -> TextEvent:
        made = self._text_events.get(index)
        if made is None:
            made = TextEvent(lambda text: self._object([CompletionChoice(index, text)], self._running_usage()))
            self._text_events[index] = made
        return made

    def _running_usage(self) -> Usage | UnsetType | None:
        """E56: null until the last chunk, or the counts so far when asked for."""
        if self._continuous_usage:
            return usage_of(*self._usage.totals())
        return None if self._include_usage else UNSET

    def _choice(self, place: int, output: CompletionDelta) -> CompletionChoice:
        index = place * self._params.n + output.index
        text, echoed = self._echo(place, index)
        logprobs = None
        if output.logprobs is not None:
            offsets = self._text_offsets(place, index).take(output.token_ids)
            top = self._params.logprobs or 0
            own = completion_logprobs(self._names, output.token_ids, output.logprobs, top, offsets)
            logprobs = joined(echoed, own)
            if not logprobs.tokens:
                logprobs = None
        choice = CompletionChoice(index, text + output.text, logprobs, output.finish_reason, output.stop_reason)
        if self._gives_ids:
            choice.token_ids = output.token_ids
            if index not in self._identified:
                self._identified.add(index)
                choice.prompt_token_ids = self._requests[place].prompt_token_ids
        return choice

    def _echo(self, place: int, index: int) -> tuple[str, CompletionLogprobs | None]:
        """What goes before a choice's first token: the prompt and its log probabilities, once, when asked for."""
        if not self._echoes or index in self._echoed:
            return "", None
        self._echoed.add(index)
        text = self._echoes[place]
        if self._params.logprobs is None:
            return text, None
        ids, scores = self._requests[place].prompt_token_ids, self._scores[place]
        return text, echoed_logprobs(self._names, ids, scores, self._params.logprobs, self._prompt_offsets(place))

    def _text_offsets(self, place: int, index: int) -> TextOffsets:
        """Of a choice's tokens, after the echo."""
        if index not in self._offsets:
            start = len(self._echoes[place]) if self._echoes else 0
            self._offsets[index] = TextOffsets(self._serving.state.client.detokenizer(self._params), start)
        return self._offsets[index]

    def _prompt_offsets(self, place: int) -> list[int]:
        """Of a prompt's tokens in its echo: the text that was given, or that of its ids."""
        text, ids = self._echoes[place], self._requests[place].prompt_token_ids
        detokenizer = self._serving.state.client.detokenizer
        if self._request.prompt[place] != text:
            return TextOffsets(detokenizer(self._params)).take(ids)
        shows_all = detokenizer(msgspec.structs.replace(self._params, skip_special_tokens=False))
        hides_special = detokenizer(msgspec.structs.replace(self._params, skip_special_tokens=True))
        # The tokenizer may have put a special token in front, which is no part of the text that was given.
        first = self._names.text(ids[0])
        if not text.startswith(first) and "\ufffd" not in first and not hides_special.push(ids[:1]):
            return [0, *TextOffsets(shows_all).take(ids[1:])]
        return TextOffsets(shows_all).take(ids)

    def _object(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> CompletionReply:
        return CompletionReply(
            self._id,
            "text_completion",
            self._created,
            self._model,
            choices,
            self._serving.fingerprint,
            usage,
        )
