"""What a generation says to its caller, told apart: the one stream that every API encodes, and its fold.

A sample's news come as a list of what it said, in order, with the tokens that said it. An encoder spells them; it
decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from octavo.client.generation import PromptProgress
from octavo.client.observer import RequestTimes, merged_times
from octavo.wire.messages import TokenLogprobs


@dataclass(slots=True)
class Content:
    """Text for the caller."""

    text: str


@dataclass(slots=True)
class Reasoning:
    """Text of the model's thinking."""

    text: str


@dataclass(slots=True)
class CallBegan:
    """A function call, the `call`-th of its sample."""

    call: int
    call_id: str
    name: str


@dataclass(slots=True)
class CallArguments:
    """A piece of the JSON text of a call's arguments."""

    call: int
    text: str


Said: TypeAlias = Content | Reasoning | CallBegan | CallArguments


@dataclass(slots=True)
class SampleNews:
    """What is new of one sample. `finish_reason` is set once, in the last: "stop", "length", "tool_calls",
    "repetition", "abort"."""

    index: int
    said: list[Said]
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None  # one for each of `token_ids`, when asked for
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # the stop string, or the stop token's id


@dataclass(slots=True)
class News:
    """What is new of one prompt's samples. The counts are totals so far, of this prompt."""

    place: int  # which of the turn's prompts
    samples: list[SampleNews]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_reasoning_tokens: int | None = None  # None where thinking is not told apart
    prompt_logprobs: list[TokenLogprobs] | None = None  # in the first news, when asked for
    times: RequestTimes | None = None  # in the last news
    progress: PromptProgress | None = None  # when asked for: before the first token, and with it


@dataclass(slots=True)
class Call:
    call_id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Reply:
    """The whole of one sample: the fold of its news."""

    index: int
    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, news: SampleNews) -> None:
        for said in news.said:
            if isinstance(said, Content):
                self.content += said.text
            elif isinstance(said, Reasoning):
                self.reasoning += said.text
            elif isinstance(said, CallBegan):
                self.calls.append(Call(said.call_id, said.name, ""))
            else:
                self.calls[said.call].arguments += said.text
        self.token_ids += news.token_ids
        if news.logprobs is not None:
            self.logprobs = [*(self.logprobs or ()), *news.logprobs]
        if news.finish_reason is not None:
            self.finish_reason, self.stop_reason = news.finish_reason, news.stop_reason


class Usage:
    """Running counts of a turn over all its prompts. `num_media_tokens`: kind of media -> tokens that stand for it."""

    def __init__(self, num_media_tokens: Mapping[str, int] | None = None) -> None:
        self._last: dict[int, News] = {}
        self.num_media_tokens = num_media_tokens or {}

    def add(self, news: News) -> None:
        """News carry the totals of their prompt so far, so the newest count."""
        self._last[news.place] = news

    def of(self, place: int) -> News:
        """The newest counts of one prompt."""
        return self._last[place]

    @property
    def num_prompt_tokens(self) -> int:
        return sum(news.num_prompt_tokens for news in self._last.values())

    @property
    def num_cached_tokens(self) -> int:
        return sum(news.num_cached_tokens for news in self._last.values())

    @property
    def num_output_tokens(self) -> int:
        return sum(news.num_output_tokens for news in self._last.values())

    @property
    def times(self) -> RequestTimes | None:
        """From the first to the last of all prompts; None before their end."""
        times = [news.times for news in self._last.values() if news.times is not None]
        return merged_times(times) if times and len(times) == len(self._last) else None

    @property
    def num_reasoning_tokens(self) -> int | None:
        counts = [news.num_reasoning_tokens for news in self._last.values()]
        return None if None in counts or not counts else sum(count for count in counts if count is not None)


@dataclass(slots=True)
class PromptReply:
    """The whole of what stands behind one prompt: the fold of its news, samples by their index."""

    place: int
    samples: dict[int, Reply] = field(default_factory=dict)
    prompt_logprobs: list[TokenLogprobs] | None = None

    def add(self, news: News) -> None:
        if news.prompt_logprobs is not None:
            self.prompt_logprobs = news.prompt_logprobs
        for sample in news.samples:
            self.samples.setdefault(sample.index, Reply(sample.index)).add(sample)
