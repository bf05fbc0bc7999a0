"""Several conversations in one request (N14)."""

from __future__ import annotations

from typing import Any

import pytest

from support.server_fakes import Server, answer, make_server

BATCH = "/v1/chat/completions/batch"


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def echoing() -> Server:
    """Says the last character of the prompt, twice."""
    return make_server(lambda request: answer(chr(request.prompt_token_ids[-1]) * 2, num_prompt=4))


def test_n14_each_conversation_has_its_choice() -> None:
    server = echoing()
    body: dict[str, Any] = {"messages": [conversation("a"), conversation("b")], "temperature": 0, "max_tokens": 7}
    reply = server.post(BATCH, body).json()
    assert [(choice["index"], choice["message"]["content"]) for choice in reply["choices"]] == [(0, "aa"), (1, "bb")]
    assert (reply["object"], reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (
        "chat.completion", 8, 4,
    )  # fmt: skip
    assert [(request.params.temperature, request.params.max_tokens) for request in server.engine.requests] == [
        (0, 7)
    ] * 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": conversation("a")}, "messages.0"),
        ({"messages": [conversation("a"), [{"content": "b"}]]}, "messages.1.0.role"),
        ({"messages": [conversation("a"), conversation("b" * 600)]}, "messages.1"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_errors_name_the_field(fields: Any, param: str) -> None:
    reply = echoing().post(BATCH, {"messages": [conversation("a")]} | fields)
    assert (reply.status, reply.error["param"]) == (400, param)


def test_the_number_of_conversations_is_bounded() -> None:
    reply = make_server(max_prompts=1).post(BATCH, {"messages": [conversation("a"), conversation("b")]})
    assert (reply.status, reply.error["param"]) == (400, "messages")
