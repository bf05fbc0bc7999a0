"""A response while it is made: news become items and, where somebody wants them, the events of a stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from octavo.base.errors import Overloaded, RequestError, ServerError
from octavo.served.events import CallArguments, CallBegan, Content, News, Reasoning, Said, SampleNews, Usage
from octavo.server.http.errors import error_reply
from octavo.server.http.sse import event
from octavo.server.openai.logprobs import TokenNames, chat_logprobs
from octavo.server.openai.protocol.chat import ContentLogprob
from octavo.server.responses.protocol.items import new_id
from octavo.server.responses.protocol.reply import (
    CallItem,
    Event,
    IncompleteDetails,
    InputTokensDetails,
    MessageItem,
    OutputItem,
    OutputText,
    OutputTokensDetails,
    ReasoningItem,
    ReasoningText,
    Response,
    ResponseError,
    ResponseUsage,
)
from octavo.wire.messages import TokenLogprobs


class ResponseBuilder:
    """Owns `response`, and changes it with each news. `has_events`: they are to be taken by `take`.

    Each event has the number of those before it.
    """

    def __init__(self, response: Response, names: TokenNames, top_logprobs: int | None, *, has_events: bool) -> None:
        """`top_logprobs`: None where no log probabilities are told."""
        self.response = response
        self.usage = Usage()
        self._names = names
        self._top = top_logprobs
        self._has_events = has_events
        self._events: list[bytes] = []
        self._num_events = 0
        self._pieces: list[str] = []  # of the open item's text
        self._logprobs: list[ContentLogprob] = []
        self._scored = _ScoredTokens(names)
        self._finish_reason: str | None = None

    def take(self) -> list[bytes]:
        """The events since the last call, ready to be sent."""
        events, self._events = self._events, []
        return events

    # ------------------------------------------------------------ the course of a response
    def begin(self) -> None:
        self._tell("created")
        if self.response.status == "queued":
            self._tell("queued")

    def start(self) -> None:
        self.response.status = "in_progress"
        self._tell("in_progress")

    def add(self, news: News) -> None:
        self.usage.add(news)
        for sample in news.samples:
            self._sample(sample, news.num_reasoning_tokens or 0)

    def end(self) -> None:
        """All was said. Raises `ServerError` when it was not: the engine ended for a reason of its own."""
        if self._finish_reason not in ("stop", "tool_calls", "length"):
            raise ServerError("The generation was ended.")
        is_whole = self._finish_reason != "length"
        self._close(is_whole=is_whole)
        output = self.response.output
        if not output or (is_whole and all(isinstance(item, ReasoningItem) for item in output)):
            # A model that says nothing says an empty text.
            self._open(MessageItem(new_id("msg"), "in_progress", []))
            self._close(is_whole=is_whole)
        self.response.usage = self._usage()
        if is_whole:
            self.response.status = "completed"
            self.response.completed_at = int(time.time())
        else:
            self.response.status = "incomplete"
            self.response.incomplete_details = IncompleteDetails("max_output_tokens")
        self._tell(self.response.status)

    def fail(self, exc: BaseException) -> None:
        message = error_reply(exc).body.error.message
        code = "server_error"
        if isinstance(exc, RequestError):
            code = "rate_limit_exceeded" if isinstance(exc, Overloaded) else "invalid_prompt"
        self._close(is_whole=False)
        self.response.status = "failed"
        self.response.error = ResponseError(code, message)
        self.response.usage = self._usage()
        self._tell("failed")

    def cancel(self) -> None:
        self._close(is_whole=False)
        self.response.status = "cancelled"
        self.response.usage = self._usage()
        self._tell("incomplete")  # the API has no event of its own; the status says what it was

    def _usage(self) -> ResponseUsage:
        counts = self.usage
        num_input, num_output = counts.num_prompt_tokens, counts.num_output_tokens
        return ResponseUsage(
            num_input,
            InputTokensDetails(counts.num_cached_tokens, num_input - counts.num_cached_tokens),
            num_output,
            OutputTokensDetails(counts.num_reasoning_tokens or 0),
            num_input + num_output,
        )

    # ------------------------------------------------------------ items
    def _sample(self, sample: SampleNews, num_reasoning: int) -> None:
        if self._top is not None:
            self._scored.add(sample.token_ids, sample.logprobs or [], num_reasoning)
        for said in sample.said:
            self._say(said)
        if sample.finish_reason is not None:
            self._finish_reason = sample.finish_reason

    def _say(self, said: Said) -> None:
        if isinstance(said, Content):
            if not isinstance(self._item, MessageItem):
                self._open(MessageItem(new_id("msg"), "in_progress", []))
            scores = None if self._top is None else self._scores(said.text)
            self._logprobs += scores or []
            self._delta("output_text.delta", said.text, content_index=0, logprobs=scores or [])
        elif isinstance(said, Reasoning):
            if not isinstance(self._item, ReasoningItem):
                self._open(ReasoningItem(new_id("rs"), "in_progress", []))
            self._delta("reasoning_text.delta", said.text, content_index=0)
        elif isinstance(said, CallBegan):
            self._scored.skip()
            self._open(CallItem(new_id("fc"), "in_progress", said.call_id, said.name, ""))
        else:
            assert isinstance(said, CallArguments) and isinstance(self._item, CallItem)
            self._scored.skip()
            self._delta("function_call_arguments.delta", said.text)

    def _scores(self, text: str) -> list[ContentLogprob]:
        ids, entries = self._scored.take(text)
        made = chat_logprobs(self._names, ids, entries, self._top or 0)
        return made.content if made is not None else []

    @property
    def _item(self) -> OutputItem | None:
        """The item that is open."""
        output = self.response.output
        return output[-1] if output and output[-1].status == "in_progress" else None

    def _open(self, item: OutputItem) -> None:
        self._close(is_whole=True)
        self.response.output.append(item)
        self._tell_item("output_item.added", item=item)
        if isinstance(item, MessageItem):
            self._tell_item("content_part.added", item_id=item.id, content_index=0, part=self._text_part(""))
        elif isinstance(item, ReasoningItem):
            self._tell_item("content_part.added", item_id=item.id, content_index=0, part=ReasoningText(""))

    def _text_part(self, text: str) -> OutputText:
        part = OutputText(text)
        if self._top is not None:
            part.logprobs = self._logprobs
        return part

    def _close(self, *, is_whole: bool) -> None:
        item = self._item
        if item is None:
            return
        text = "".join(self._pieces)
        if isinstance(item, CallItem):
            item.arguments = text
            self._tell_item("function_call_arguments.done", item_id=item.id, name=item.name, arguments=text)
        else:
            part: Any
            if isinstance(item, MessageItem):
                part = self._text_part(text)
                self._tell_item(
                    "output_text.done", item_id=item.id, content_index=0, text=text, logprobs=self._logprobs
                )
            else:
                part = ReasoningText(text)
                self._tell_item("reasoning_text.done", item_id=item.id, content_index=0, text=text)
            item.content.append(part)
            self._tell_item("content_part.done", item_id=item.id, content_index=0, part=part)
        item.status = "completed" if is_whole else "incomplete"
        self._tell_item("output_item.done", item=item)
        self._pieces, self._logprobs = [], []

    # ------------------------------------------------------------ events
    def _delta(self, name: str, text: str, **fields: Any) -> None:
        self._pieces.append(text)
        item = self._item
        assert item is not None
        self._tell_item(name, item_id=item.id, delta=text, **fields)

    def _tell_item(self, event_type: str, /, **fields: Any) -> None:
        self._event(event_type, output_index=len(self.response.output) - 1, **fields)

    def _tell(self, name: str) -> None:
        self._event(name, response=self.response)

    def _event(self, event_type: str, /, **fields: Any) -> None:
        """Encoded at once: what it tells of goes on changing."""
        if self._has_events:
            body = Event(type=f"response.{event_type}", sequence_number=self._num_events, **fields)
            self._events.append(event(body, body.type))
            self._num_events += 1


class _ScoredTokens:
    """The tokens of a sample that are not told yet, with their log probabilities: which of them make a text?"""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._ids: list[int] = []
        self._entries: list[TokenLogprobs] = []
        self._num_gone = 0  # tokens of the sample before those

    def add(self, ids: Sequence[int], entries: Sequence[TokenLogprobs], num_reasoning: int) -> None:
        """`num_reasoning`: how many of all tokens so far are of the thinking."""
        self._ids += ids
        self._entries += entries
        self._drop(max(0, num_reasoning - self._num_gone))

    def skip(self) -> None:
        """What waits made no text."""
        self._drop(len(self._ids))

    def _drop(self, count: int) -> None:
        count = min(count, len(self._ids))
        del self._ids[:count], self._entries[:count]
        self._num_gone += count

    def take(self, text: str) -> tuple[list[int], list[TokenLogprobs]]:
        """The tokens that `text` is made of, and their entries."""
        ends, whole = [], ""
        for token_id in self._ids:
            whole += self._names.text(token_id)
            ends.append(len(whole))
        start = whole.find(text)
        first, last = 0, len(ends)
        if start >= 0:  # else: parts of characters, of which the tokens' own texts know nothing
            first = next(i for i, end in enumerate(ends) if end > start)
            last = next((i + 1 for i, end in enumerate(ends) if end >= start + len(text)), len(ends))
        taken = self._ids[first:last], self._entries[first:last]
        self._drop(last)
        return taken
