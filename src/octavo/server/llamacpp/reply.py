"""The reply of /completion and /infill, whole or as events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from octavo.base.params import SamplingParams
from octavo.served.events import Content, News, PromptReply, Reply, SampleNews, Usage
from octavo.served.model import Prepared
from octavo.server.http.errors import error_reply
from octavo.server.http.framing import KEEP_ALIVE, SSE, Framing
from octavo.server.http.sse import event
from octavo.server.llamacpp.protocol import CompletionEnd, CompletionPiece, Timings, TokenProbability
from octavo.server.openai.logprobs import TokenNames, floored
from octavo.server.openai.protocol.common import progress_of
from octavo.wire.messages import TokenLogprobs

#: A stream ends with its last event: there is no `[DONE]`.
EVENTS = Framing(SSE, lambda exc: event(error_reply(exc).body), keep_alive=KEEP_ALIVE)


class NativeEncoder:
    """One request's reply. `index` is the prompt's number."""

    def __init__(
        self, model_name: str, prepared: Prepared, names: TokenNames, *, is_list: bool, returns_tokens: bool
    ) -> None:
        self._model_name = model_name
        self._params: SamplingParams = prepared.params
        self._prompts = [prompt.text or "" for prompt in prepared.prompts]
        self._names = names
        self._is_list = is_list
        self._returns_tokens = returns_tokens
        self._has_line: set[int] = set()  # prompts whose reply has a line break

    # ------------------------------------------------------------ the whole
    def whole(self, replies: Sequence[PromptReply], usage: Usage) -> Any:
        ends = []
        for reply in replies:
            sample, own = reply.samples[0], usage.of(reply.place)
            if "\n" in sample.content:
                self._has_line.add(reply.place)
            ends.append(self._end(own, _as_news(sample), sample.token_ids, sample.content))
        return ends if self._is_list else ends[0]

    # ------------------------------------------------------------ events
    def events(self, news: News) -> bytes:
        out = b""
        if news.progress is not None:
            piece = CompletionPiece(
                index=news.place,
                content="",
                tokens=[],
                tokens_predicted=0,
                tokens_evaluated=news.num_prompt_tokens,
                prompt_progress=progress_of(news),
            )
            out = event(piece)
        for sample in news.samples:
            text = "".join([said.text for said in sample.said if isinstance(said, Content)])
            if "\n" in text:
                self._has_line.add(news.place)
            probabilities = self._probabilities(sample)
            if text or sample.token_ids:
                out += event(
                    CompletionPiece(
                        index=news.place,
                        content=text,
                        tokens=sample.token_ids,
                        tokens_predicted=news.num_output_tokens,
                        tokens_evaluated=news.num_prompt_tokens,
                        completion_probabilities=probabilities,
                    )
                )
            if sample.finish_reason is not None:
                out += event(self._end(news, sample, [], ""))
        return out

    def last_events(self) -> bytes:
        return b""

    # ------------------------------------------------------------ parts
    def _end(self, news: News, sample: SampleNews, token_ids: list[int], content: str) -> CompletionEnd:
        word = sample.stop_reason if isinstance(sample.stop_reason, str) else ""
        kinds = {"length": "limit", "repetition": "repetition"}
        kind = kinds.get(sample.finish_reason or "", "word" if word else "eos")
        return CompletionEnd(
            index=news.place,
            content=content,
            tokens=token_ids if self._returns_tokens else [],
            stop=True,
            tokens_predicted=news.num_output_tokens,
            tokens_evaluated=news.num_prompt_tokens,
            completion_probabilities=self._probabilities(sample) if token_ids else UNSET,
            model=self._model_name,
            generation_settings=settings_of(self._params),
            prompt=self._prompts[news.place],
            has_new_line=news.place in self._has_line,
            stop_type=kind,
            stopping_word=word,
            tokens_cached=news.num_prompt_tokens + news.num_output_tokens,
            timings=_timings(news),
        )

    def _probabilities(self, sample: SampleNews) -> list[TokenProbability] | UnsetType:
        if not sample.logprobs:
            return UNSET
        return [self._probability(i, entry) for i, entry in zip(sample.token_ids, sample.logprobs, strict=True)]

    def _probability(self, token_id: int, entry: TokenLogprobs) -> TokenProbability:
        tops = zip(entry.top_ids, entry.top_logprobs, strict=True)
        return self._token(token_id, entry.logprob, [self._token(i, value) for i, value in tops])

    def _token(
        self, token_id: int, logprob: float, tops: list[TokenProbability] | UnsetType = UNSET
    ) -> TokenProbability:
        names = self._names
        return TokenProbability(token_id, names.text(token_id), names.bytes(token_id), floored(logprob), tops)


def settings_of(params: SamplingParams) -> dict[str, Any]:
    """What was sampled with, under the names of this API."""
    names = {
        "temperature", "top_k", "top_p", "min_p", "seed", "presence_penalty", "frequency_penalty", "typical_p",
        "top_n_sigma", "dynatemp_range", "dynatemp_exponent", "xtc_probability", "xtc_threshold", "dry_multiplier",
        "dry_base", "dry_allowed_length", "dry_penalty_last_n", "mirostat", "mirostat_tau", "mirostat_eta",
        "repeat_last_n", "stop", "ignore_eos",
    }  # fmt: skip
    values = {name: value for name, value in msgspec.structs.asdict(params).items() if name in names}
    predicted = -1 if params.max_tokens is None else params.max_tokens
    return values | {"repeat_penalty": params.repetition_penalty, "n_predict": predicted}


def _timings(news: News) -> Timings:
    times = news.times
    prefill = (times.prefill_seconds if times else None) or 0.0
    decode = (times.decode_seconds if times else None) or 0.0
    num_prompt = news.num_prompt_tokens - news.num_cached_tokens
    # The first token comes with the prompt.
    num_later = max(0, news.num_output_tokens - 1)
    return Timings(
        news.num_cached_tokens,
        num_prompt,
        *_rates(num_prompt, prefill),
        news.num_output_tokens,
        *_rates(num_later, decode),
    )


def _rates(count: int, seconds: float) -> tuple[float, float, float]:
    """Milliseconds, those of a token, and tokens a second."""
    millis = round(1000 * seconds, 3)
    return millis, round(millis / count, 3) if count else 0.0, round(count / seconds, 2) if seconds else 0.0


def _as_news(reply: Reply) -> SampleNews:
    return SampleNews(
        reply.index, [Content(reply.content)], reply.token_ids, reply.logprobs, reply.finish_reason, reply.stop_reason
    )
