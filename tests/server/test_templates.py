"""Chat templates over HTTP: who may bring one, which variables reach it, and that /tokenize says what chat does."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from support.server_fakes import drive, make_server

USER = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
ROUTES = ["/v1/chat/completions", "/tokenize"]
IGNORED = "x-octavo-ignored-fields"


@pytest.mark.parametrize("route", ROUTES)
def test_t22_a_requests_template_needs_the_servers_trust_and_a_name_does_not(route: str) -> None:
    body = {"messages": USER, "chat_template": "{{ messages }}"}
    server = make_server()
    error = server.post(route, body).error
    assert error["param"] == "chat_template"
    assert "--trust-request-chat-template" in error["message"] and "default, tool_use" in error["message"]
    assert server.post(route, {**body, "chat_template": "tool_use"}).status == 200
    assert server.renderer.options["chat_template"] == "tool_use"
    trusting = make_server(trust_request_chat_template=True)
    assert trusting.post(route, body).status == 200
    assert trusting.renderer.options["chat_template"] == "{{ messages }}"
    for wrong in (5, [], {}, True):
        assert trusting.post(route, {**body, "chat_template": wrong}).error["param"] == "chat_template"


@pytest.mark.parametrize("route", ROUTES)
def test_t24_u20_variables_that_no_template_reads_are_named_in_the_header(route: str) -> None:
    server = make_server()
    body = {"messages": USER, "chat_template_kwargs": {"enable_thinking": True, "b\n": 1, "a": 2}, "odd": 1}
    reply = server.post(route, body)
    assert reply.status == 200
    assert reply.headers[IGNORED] == "odd, chat_template_kwargs.a, chat_template_kwargs.b?"
    assert IGNORED not in server.post(route, {"messages": USER, "chat_template_kwargs": {"enable_thinking": 1}}).headers
    strict = make_server(strict_requests=True)
    error = strict.post(route, {"messages": USER, "chat_template_kwargs": {"enable_thinkin": 1}}).error
    assert error["param"] == "chat_template_kwargs.enable_thinkin"
    assert "did you mean enable_thinking?" in error["message"]


def test_n16_tokenize_renders_with_the_options_of_chat() -> None:
    fields: dict[str, Any] = {
        "documents": [{"title": "t", "text": "x"}],
        "chat_template": "tool_use",
        "chat_template_kwargs": {"enable_thinking": False},
        "add_special_tokens": True,
    }
    for ending in ({}, {"add_generation_prompt": False}, {"continue_final_message": True}):
        server = make_server()
        server.post("/v1/chat/completions", {"messages": USER, **fields, **ending})
        chat = server.renderer.options
        assert server.post("/tokenize", {"messages": USER, **fields, **ending}).status == 200
        assert {**server.renderer.options, "tools": None} == {"tools": None, **chat}
        assert {name: chat[name] for name in fields} == fields
    server.post("/tokenize", {"messages": USER, "tools": TOOLS})
    assert server.renderer.options["tools"] == TOOLS


def test_t29_tools_are_hidden_only_when_the_server_says_so_and_the_choice_is_none() -> None:
    named = {"type": "function", "function": {"name": "f"}}
    for hides in (False, True):
        server = make_server(exclude_tools_when_tool_choice_none=hides)
        for choice in (None, "auto", "required", "none", named):
            fields = {} if choice is None else {"tool_choice": choice}
            assert server.post("/tokenize", {"messages": USER, "tools": TOOLS, **fields}).status == 200
            assert server.renderer.options["tools"] == (None if hides and choice == "none" else TOOLS)


def test_n16_tokenize_shows_the_template_what_chat_shows_it() -> None:
    strict = [{"type": "function", "function": {"name": "f", "strict": True}}]
    body = {"messages": USER, "tools": strict, "enable_thinking": False, "documents": [{"text": "d"}]}
    server = make_server(tools="hermes", enable_auto_tool_choice=True)
    seen = []
    for route in ROUTES:
        assert server.post(route, body).status == 200
        seen.append(server.renderer.options)
    assert seen[0] == seen[1]
    assert server.post("/tokenize", {"messages": USER, "tools": [{}]}).error["param"] == "tools.0.type"


def test_n15_the_text_of_a_conversation_is_that_of_chat() -> None:
    server = make_server()
    body = {"messages": USER, "tools": TOOLS, "enable_thinking": False}
    assert server.post("/apply-template", body).json() == {"prompt": "user:Hello"}
    shown = server.renderer.options
    server.post("/v1/chat/completions", body | {"tool_choice": "none"})
    assert server.renderer.options == shown
    assert server.post("/apply-template", {}).error["param"] == "messages"
    assert server.post("/apply-template", {"messages": []}).status == 400


def test_n17_an_invocation_is_what_its_body_is() -> None:
    server = make_server()
    chat = server.post("/invocations", {"messages": USER, "stream": True}).events()
    assert chat[0]["object"] == "chat.completion.chunk"
    assert server.post("/invocations", {"prompt": "Hello"}).json()["object"] == "text_completion"
    for body in ({}, [], {"messages": "x"}):
        assert server.post("/invocations", body).status == 400


def test_a_template_that_takes_its_time_holds_up_only_others_of_its_kind() -> None:
    async def scenario() -> None:
        server = make_server(trust_request_chat_template=True)
        inner, begun, go_on = server.renderer.chat_text, threading.Event(), threading.Event()

        def render(messages: Any, **options: Any) -> list[int]:
            if options["chat_template"] is not None:
                begun.set()
                assert go_on.wait(60)
            return inner(messages, **options)

        server.renderer.chat_text = render  # type: ignore[method-assign]
        chat = "/v1/chat/completions"
        slow = [
            asyncio.create_task(drive(server.app, "POST", chat, {"messages": USER, "chat_template": "{{ 1 }}"}))
            for _ in range(70)
        ]
        assert await asyncio.to_thread(begun.wait, 60)
        long = [{"role": "user", "content": "x" * 3000}]  # which has a thread too
        assert (await drive(server.app, "POST", chat, {"messages": USER})).status == 200
        assert (await drive(server.app, "POST", "/tokenize", {"messages": long})).status == 200
        refused, _ = await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().status for task in refused} == {429}
        go_on.set()
        assert sorted({(await task).status for task in slow}) == [200, 429]

    asyncio.run(scenario())
