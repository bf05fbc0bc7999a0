"""A reply as it comes: on the screen, as a text, and as figures."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.base.errors import OctavoError
from octavo.cli.client import Client
from octavo.cli.screen import Screen


@dataclass
class Reply:
    """One reply. Times are seconds of `time.perf_counter`."""

    started: float
    first: float | None = None  # when the first token came
    last: float | None = None
    pieces: list[str] = field(default_factory=list)
    num_events: int = 0  # pieces of text or thought, as they came
    num_prompt_tokens: int | None = None  # None: the server does not say
    num_cached_tokens: int = 0  # of the prompt's
    num_tokens: int | None = None
    finish_reason: str | None = None
    is_stopped: bool = False  # by Ctrl-C

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def decode_tokens(self) -> int:
        """Tokens after the first; by the events where the server has not counted."""
        count = self.num_events if self.num_tokens is None else self.num_tokens
        return max(count - 1, 0)

    @property
    def decode_seconds(self) -> float:
        return self.last - self.first if self.first is not None and self.last is not None else 0.0

    def figures(self) -> str:
        parts = []
        if self.num_prompt_tokens is not None:
            cached = f" ({self.num_cached_tokens} cached)" if self.num_cached_tokens else ""
            parts.append(f"{self.num_prompt_tokens} prompt tokens{cached}")
        # The server has not counted a reply that was stopped. An event is a token, or several where they come fast.
        is_counted = self.num_tokens is not None
        parts.append(f"{self.num_tokens} tokens" if is_counted else f"about {self.num_events} tokens")
        if self.first is not None:
            parts.append(f"the first after {self.first - self.started:.2f} s")
        return ", ".join([*parts, *_rate(self.decode_tokens, self.decode_seconds)])

    def take(self, event: Mapping[str, Any], screen: Screen) -> None:
        """Take in one event of a stream, and show its text."""
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
            text = choice.get("text") or delta.get("content") or delta.get("refusal") or ""
            if thought or text:
                self.last = time.perf_counter()
                self.first = self.first or self.last
                self.num_events += 1
                self.pieces.append(text)
                screen.write_thought(thought)
                screen.write(text)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if usage := event.get("usage"):
            self.num_prompt_tokens, self.num_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
            details = usage.get("prompt_tokens_details") or {}
            self.num_cached_tokens = details.get("cached_tokens") or 0


def receive(client: Client, screen: Screen, path: str, body: Mapping[str, Any]) -> Reply:
    """Ask, and show the reply while it comes. Ctrl-C ends the reply, here and at the server. Raises `OctavoError`."""
    reply = Reply(time.perf_counter())
    try:
        with contextlib.closing(client.stream(path, body)) as events:
            for event in events:
                _take(reply, event, screen)
    except KeyboardInterrupt:
        reply.is_stopped = True
    finally:
        screen.end()
    return reply


def _take(reply: Reply, event: Mapping[str, Any], screen: Screen) -> None:
    try:
        reply.take(event, screen)
    except (AttributeError, TypeError):  # it is JSON, but not of this form
        raise OctavoError(f"the server sent an unreadable event: {str(event)[:200]}") from None


@dataclass
class Stats:
    """The figures of the last reply and of all."""

    last: Reply | None = None
    num_replies: int = 0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    num_begun: int = 0  # replies that came to a first token
    first_seconds: float = 0.0  # the sum of their times to it
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    def add(self, reply: Reply) -> None:
        self.last = reply
        self.num_replies += 1
        self.num_prompt_tokens += reply.num_prompt_tokens or 0
        self.num_tokens += reply.num_events if reply.num_tokens is None else reply.num_tokens
        if reply.first is not None:
            self.num_begun += 1
            self.first_seconds += reply.first - reply.started
        self.decode_tokens += reply.decode_tokens
        self.decode_seconds += reply.decode_seconds

    def last_line(self) -> str:
        return self.last.figures() if self.last is not None else "no reply yet"

    def all_line(self) -> str:
        replies = "1 reply" if self.num_replies == 1 else f"{self.num_replies} replies"
        parts = [replies, f"{self.num_prompt_tokens} prompt tokens", f"{self.num_tokens} tokens"]
        if self.num_begun:
            parts.append(f"the first after {self.first_seconds / self.num_begun:.2f} s on average")
        return ", ".join([*parts, *_rate(self.decode_tokens, self.decode_seconds)])


def _rate(tokens: int, seconds: float) -> list[str]:
    return [f"{tokens / seconds:.1f} tokens/s"] if tokens and seconds > 0 else []
