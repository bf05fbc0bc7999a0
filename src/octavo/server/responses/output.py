"""A response while it is made: news become items and, where somebody wants them, the events of a stream."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from octavo.base.errors import Overloaded, RequestError, ServerError
from octavo.served.events import CallArguments, CallBegan, Content, News, Reasoning, Said, SampleNews, Usage
from octavo.server.http.errors import error_reply
from octavo.server.http.sse import event
from octavo.server.openai.logprobs import TokenNames, chat_logprobs
from octavo.server.openai.protocol.chat import ContentLogprob
from octavo.server.responses.protocol.encrypted import encrypted
from octavo.server.responses.protocol.items import new_id
from octavo.server.responses.protocol.reply import (
    CallItem,
    Event,
    IncompleteDetails,
    InputTokensDetails,
    MCPApprovalItem,
    MCPCallError,
    MCPCallItem,
    MCPListItem,
    MCPTool,
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

#: Reasons why the engine ends what was cut off -> what the response says of it.
_CUT_OFF: Final = {"length": "max_output_tokens", "repetition": "repetition"}
_FINISHED: Final = ("stop", "tool_calls", *_CUT_OFF)


@dataclass(frozen=True)
class ServerFunction:
    """A function that is a tool of an MCP server."""

    label: str
    name: str
    needs_approval: bool


class ResponseBuilder:
    """Owns `response`, and changes it with each news. `has_events`: they are to be taken by `take`.

    Each event has the number of those before it.
    """

    def __init__(
        self,
        response: Response,
        names: TokenNames,
        top_logprobs: int | None,
        *,
        has_events: bool,
        has_encrypted: bool = False,
    ) -> None:
        """`top_logprobs`: None where no log probabilities are told. `has_encrypted`: reasoning items tell
        `encrypted_content`."""
        self.response = response
        self.usage = Usage()  # of the round that is being made
        self.server_functions: Mapping[str, ServerFunction] = {}  # by the name that the model knows
        self.calls: list[MCPCallItem] = []  # of MCP servers' tools that the model wants made
        self._past: list[Usage] = []  # of the rounds before
        self._names = names
        self._top = top_logprobs
        self._has_events = has_events
        self._has_encrypted = has_encrypted
        self._events: list[bytes] = []
        self._num_events = 0
        self._pieces: list[str] = []  # of the open item's text
        self._logprobs: list[ContentLogprob] = []
        self._scored = _ScoredTokens(names)
        self._finish_reason: str | None = None
        self._open_item: OutputItem | None = None
        self._needs_text = True  # nothing was said yet that could stand for a reply

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

    def begin_round(self, functions: Mapping[str, ServerFunction]) -> None:
        """The model goes on behind what its calls gave. `functions`: those whose calls are made here."""
        self.server_functions = functions
        self._past.append(self.usage)
        self.usage = Usage()
        self._scored = _ScoredTokens(self._names)
        self._finish_reason = None
        self._needs_text = True

    def end_round(self) -> bool:
        """What was said since the round began is whole; false: it was cut off.

        Raises `ServerError` when the engine ended for a reason of its own.
        """
        if self._finish_reason not in _FINISHED:
            raise ServerError("The generation was ended.")
        is_whole = self._finish_reason not in _CUT_OFF
        self._close(is_whole=is_whole)
        return is_whole

    @property
    def num_output_tokens(self) -> int:
        return sum(usage.num_output_tokens for usage in (*self._past, self.usage))

    @property
    def expects_caller(self) -> bool:
        """There are calls that are the caller's to make, or to approve."""
        return any(isinstance(item, CallItem | MCPApprovalItem) for item in self.response.output)

    def cut_off(self) -> None:
        """No token is left for another round."""
        self._finish_reason = "length"

    def end(self) -> None:
        """All was said. Raises as `end_round`."""
        is_whole = self.end_round()
        self._drop_calls()
        if (is_whole and self._needs_text) or not self.response.output:
            # A model that says nothing says an empty text.
            self._open(MessageItem(new_id("msg"), "in_progress", []))
            self._close(is_whole=is_whole)
        self.response.usage = self._usage()
        if is_whole:
            self.response.status = "completed"
            self.response.completed_at = int(time.time())
        else:
            self.response.status = "incomplete"
            self.response.incomplete_details = IncompleteDetails(_CUT_OFF[self._finish_reason or ""])
        self._tell(self.response.status)

    def fail(self, exc: BaseException) -> None:
        message = error_reply(exc).body.error.message
        code = "server_error"
        if isinstance(exc, RequestError):
            code = "rate_limit_exceeded" if isinstance(exc, Overloaded) else "invalid_prompt"
        self._close(is_whole=False)
        self._drop_calls()
        self.response.status = "failed"
        self.response.error = ResponseError(code, message)
        self.response.usage = self._usage()
        self._tell("failed")

    def cancel(self) -> None:
        self._close(is_whole=False)
        self._drop_calls()
        self.response.status = "cancelled"
        self.response.usage = self._usage()
        self._tell("incomplete")  # the API has no event of its own; the status says what it was

    def _usage(self) -> ResponseUsage:
        rounds = (*self._past, self.usage)
        num_input, num_output = sum(usage.num_prompt_tokens for usage in rounds), self.num_output_tokens
        num_cached = sum(usage.num_cached_tokens for usage in rounds)
        return ResponseUsage(
            num_input,
            InputTokensDetails(num_cached, num_input - num_cached),
            num_output,
            OutputTokensDetails(sum(usage.num_reasoning_tokens or 0 for usage in rounds)),
            num_input + num_output,
        )

    # ------------------------------------------------------------ MCP servers
    def begin_list(self, label: str) -> MCPListItem:
        """A server is asked for its tools; `end_list` follows."""
        item = MCPListItem(new_id("mcpl"), label, [])
        self._open(item)
        self._tell_item("mcp_list_tools.in_progress", item_id=item.id)
        return item

    def end_list(self, tools: Sequence[Mapping[str, Any]], error: str | None = None) -> None:
        item = self._open_item
        assert isinstance(item, MCPListItem)
        item.tools, item.error = [MCPTool(**tool) for tool in tools], error
        self._tell_item(f"mcp_list_tools.{'completed' if error is None else 'failed'}", item_id=item.id)
        self._close(is_whole=True)

    def add_call(self, label: str, name: str, arguments: str, approval_request_id: str) -> MCPCallItem:
        """A call that was approved; `end_call` follows."""
        item = MCPCallItem(new_id("mcp"), "in_progress", label, name, "", approval_request_id)
        self._open(item)
        self._pieces.append(arguments)
        self._tell_item("mcp_call_arguments.delta", item_id=item.id, delta=arguments)
        self._close(is_whole=True)
        return item

    def end_call(self, item: MCPCallItem, output: str | None, error: MCPCallError | None) -> None:
        self.calls.remove(item)
        item.output, item.error = output, error
        item.status = "completed" if error is None else "failed"
        index = self.response.output.index(item)
        self._event(f"mcp_call.{item.status}", output_index=index, item_id=item.id)
        self._event("output_item.done", output_index=index, item=item)

    def _drop_calls(self) -> None:
        """The calls that nobody made."""
        for item in self.calls:
            item.status = "incomplete"
            self._event("output_item.done", output_index=self.response.output.index(item), item=item)
        self.calls = []

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
            self._needs_text = False
            if not isinstance(self._open_item, MessageItem):
                self._open(MessageItem(new_id("msg"), "in_progress", []))
            scores = None if self._top is None else self._scores(said.text)
            self._logprobs += scores or []
            self._delta("output_text.delta", said.text, content_index=0, logprobs=scores or [])
        elif isinstance(said, Reasoning):
            if not isinstance(self._open_item, ReasoningItem):
                self._open(ReasoningItem(new_id("rs"), "in_progress", []))
            self._delta("reasoning_text.delta", said.text, content_index=0)
        elif isinstance(said, CallBegan):
            self._scored.skip()
            self._begin_call(said)
        else:
            assert isinstance(said, CallArguments)
            self._scored.skip()
            if isinstance(self._open_item, MCPApprovalItem):  # told of when it is whole
                self._pieces.append(said.text)
            else:
                is_server = isinstance(self._open_item, MCPCallItem)
                self._delta(f"{'mcp' if is_server else 'function'}_call_arguments.delta", said.text)

    def _begin_call(self, call: CallBegan) -> None:
        function = self.server_functions.get(call.name)
        if function is None:
            self._needs_text = False
            self._open(CallItem(new_id("fc"), "in_progress", call.call_id, call.name, ""))
        elif function.needs_approval:
            self._close(is_whole=True)
            self._open_item = MCPApprovalItem(new_id("mcpr"), function.label, function.name, "")
        else:
            self._open(MCPCallItem(new_id("mcp"), "in_progress", function.label, function.name))

    def _scores(self, text: str) -> list[ContentLogprob]:
        ids, entries = self._scored.take(text)
        made = chat_logprobs(self._names, ids, entries, self._top or 0)
        return made.content if made is not None else []

    def _open(self, item: OutputItem) -> None:
        self._close(is_whole=True)
        self._open_item = item
        self.response.output.append(item)
        self._tell_item("output_item.added", item=item)
        if isinstance(item, MessageItem):
            self._tell_item("content_part.added", item_id=item.id, content_index=0, part=self._text_part(""))
        elif isinstance(item, ReasoningItem):
            self._tell_item("content_part.added", item_id=item.id, content_index=0, part=ReasoningText(""))
        elif isinstance(item, MCPCallItem):
            self._tell_item("mcp_call.in_progress", item_id=item.id)

    def _text_part(self, text: str) -> OutputText:
        part = OutputText(text)
        if self._top is not None:
            part.logprobs = self._logprobs
        return part

    def _close(self, *, is_whole: bool) -> None:
        item = self._open_item
        if item is None:
            return
        text = "".join(self._pieces)
        self._open_item, self._pieces = None, []
        if isinstance(item, MCPListItem):
            if not is_whole:
                item.error = "The list was not read."
            self._tell_item("output_item.done", item=item)
        elif isinstance(item, MCPApprovalItem):
            if is_whole:  # nobody approves half a call
                item.arguments = text
                self._needs_text = False
                self.response.output.append(item)
                self._tell_item("output_item.added", item=item)
                self._tell_item("output_item.done", item=item)
        elif isinstance(item, MCPCallItem):
            item.arguments = text
            self._tell_item("mcp_call_arguments.done", item_id=item.id, arguments=text)
            item.status = "calling" if is_whole else "incomplete"
            if is_whole:
                self.calls.append(item)
            else:
                self._tell_item("output_item.done", item=item)
        else:
            self._close_said(item, text, is_whole=is_whole)

    def _close_said(self, item: MessageItem | ReasoningItem | CallItem, text: str, *, is_whole: bool) -> None:
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
                if self._has_encrypted:
                    item.encrypted_content = encrypted(text)
                self._tell_item("reasoning_text.done", item_id=item.id, content_index=0, text=text)
            item.content.append(part)
            self._tell_item("content_part.done", item_id=item.id, content_index=0, part=part)
        item.status = "completed" if is_whole else "incomplete"
        self._tell_item("output_item.done", item=item)
        self._logprobs = []

    # ------------------------------------------------------------ events
    def _delta(self, name: str, text: str, **fields: Any) -> None:
        self._pieces.append(text)
        item = self._open_item
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
