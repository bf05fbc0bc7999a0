"""The reply of /api/chat and /api/generate, whole or as lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import UNSET

from octavo.served.events import (
    Call,
    CallArguments,
    CallBegan,
    Content,
    News,
    PromptReply,
    Reasoning,
    Said,
    SampleNews,
    Usage,
)
from octavo.server.call_arguments import value_of
from octavo.server.moments import moment
from octavo.server.ollama.errors import line
from octavo.server.ollama.protocol import (
    OllamaChatReply,
    OllamaGenerateReply,
    OllamaReply,
    OllamaReplyMessage,
    ReplyCall,
    ReplyFunction,
)
from octavo.server.openai.logprobs import TokenNames, chat_logprobs

#: Calls, each with its number in the reply.
Calls = list[tuple[int, Call]]
#: Text, thinking and calls, and the fields that all lines have -> a line.
MakeReply = Callable[[str, str, Calls, dict[str, Any]], OllamaReply]


class LineEncoder:
    """One request's reply. A call is told when it is complete, for its arguments are an object here."""

    def __init__(self, make: MakeReply, model_name: str, names: TokenNames, top_logprobs: int) -> None:
        self._make = make
        self._model_name = model_name
        self._names = names
        self._top = top_logprobs
        self._began = time.monotonic()
        self._usage = Usage()
        self._call: Call | None = None  # whose arguments are being written
        self._num_calls = 0

    # ------------------------------------------------------------ the whole
    def whole(self, replies: Sequence[PromptReply], usage: Usage) -> OllamaReply:
        reply = replies[0].samples[0]
        scores = chat_logprobs(self._names, reply.token_ids, reply.logprobs, self._top)
        end = self._end(reply.finish_reason, usage)
        fields = end | ({} if scores is None else {"logprobs": scores.content})
        return self._reply(reply.content, reply.reasoning, list(enumerate(reply.calls)), fields)

    # ------------------------------------------------------------ lines
    def events(self, news: News) -> bytes:
        self._usage.add(news)
        return b"".join([self._sample(sample) for sample in news.samples])

    def last_events(self) -> bytes:
        return b""

    def _sample(self, sample: SampleNews) -> bytes:
        content = "".join([said.text for said in sample.said if isinstance(said, Content)])
        thinking = "".join([said.text for said in sample.said if isinstance(said, Reasoning)])
        is_last = sample.finish_reason is not None
        calls = self._completed(sample.said, is_last=is_last)
        scores = chat_logprobs(self._names, sample.token_ids, sample.logprobs, self._top)
        fields: dict[str, Any] = {"done": False}
        if scores is not None and scores.content:
            fields["logprobs"] = scores.content
        out = b""
        if content or thinking or calls or "logprobs" in fields:
            out = line(self._reply(content, thinking, calls, fields))
        return out + (line(self._reply("", "", [], self._end(sample.finish_reason, self._usage))) if is_last else b"")

    def _completed(self, said: Sequence[Said], *, is_last: bool) -> Calls:
        """The calls that are at their end."""
        ended: list[Call] = []
        for each in said:
            if isinstance(each, CallArguments) and self._call is not None:
                self._call.arguments += each.text
            elif self._call is not None:
                ended.append(self._call)
                self._call = None
            if isinstance(each, CallBegan):
                self._call = Call(each.call_id, each.name, "")
        if is_last and self._call is not None:
            ended.append(self._call)
            self._call = None
        first = self._num_calls
        self._num_calls += len(ended)
        return list(enumerate(ended, first))

    def _reply(self, content: str, thinking: str, calls: Calls, fields: dict[str, Any]) -> OllamaReply:
        return self._make(content, thinking, calls, {"model": self._model_name, "created_at": now(), **fields})

    def _end(self, finish_reason: str | None, usage: Usage) -> dict[str, Any]:
        """The fields of the last line."""
        times = usage.times
        elapsed = time.monotonic() - self._began
        total, prefill, decode = (
            (elapsed, None, None) if times is None
            else (times.total_seconds, times.prefill_seconds, times.decode_seconds)
        )  # fmt: skip
        return {
            "done": True,
            "done_reason": "length" if finish_reason == "length" else "stop",
            "total_duration": _nanoseconds(elapsed if total is None else total),
            "load_duration": 0,  # the model was there
            "prompt_eval_count": usage.num_prompt_tokens,
            "prompt_eval_duration": _nanoseconds(prefill),
            "eval_count": usage.num_output_tokens,
            "eval_duration": _nanoseconds(decode),
        }


def chat_reply(content: str, thinking: str, calls: Calls, fields: dict[str, Any]) -> OllamaChatReply:
    shown = [ReplyCall(call.call_id, ReplyFunction(i, call.name, value_of(call.arguments))) for i, call in calls]
    message = OllamaReplyMessage(content, thinking=thinking or UNSET, tool_calls=shown or UNSET)
    return OllamaChatReply(message=message, **fields)


def generate_reply(content: str, thinking: str, calls: Calls, fields: dict[str, Any]) -> OllamaGenerateReply:
    return OllamaGenerateReply(response=content, thinking=thinking or UNSET, **fields)


def now() -> str:
    return moment(time.time())


def _nanoseconds(seconds: float | None) -> int:
    return 0 if seconds is None else round(seconds * 1e9)
