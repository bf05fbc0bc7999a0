"""Requests of the kind that coding agents send: all that theirs have at once, over their three APIs."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.base.params import GenerateRequest
from support.server_fakes import MODEL, Server, answer, engine_info, make_server

IGNORED = "x-octavo-ignored-fields"
CALL = '<tool_call>\n{"name": "read", "arguments": {"path": "/a"}}\n</tool_call>'
MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "required": ["path"],
    "properties": {"path": {"type": "string"}, "limit": {"type": "number"}}, "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Server:
    def script(request: GenerateRequest) -> Any:
        return answer(f"<think>Hm.</think>I read it.{CALL}")

    info = engine_info(max_model_len=1 << 20, max_request_tokens=1 << 20)
    server = make_server(script, info=info, tools="hermes", reasoning="qwen3", enable_auto_tool_choice=True)
    server.renderer.template_variables = frozenset({"enable_thinking", "reasoning_effort"})
    return server


def test_over_messages(server: Server) -> None:
    """Instructions in marked blocks, thinking between calls, results as text and as blocks, hundreds of messages."""
    num_turns = 200
    messages: list[Any] = [{"role": "user", "content": [
        {"type": "text", "text": "<system-reminder>Date</system-reminder>"},
        {"type": "text", "text": "Mend it.", **MARK},
    ]}]  # fmt: skip
    for i in range(num_turns):
        first, second = f"toolu_{i}a", f"toolu_{i}b"
        messages.append({"role": "assistant", "content": [
            {"type": "thinking", "thinking": f"Thought {i}.", "signature": "abc"},
            {"type": "text", "text": f"Step {i}."},
            {"type": "tool_use", "id": first, "name": "read", "input": {"path": "/a"}, "caller": {"type": "direct"}},
            {"type": "tool_use", "id": second, "name": "run", "input": {"path": "ls"}},
        ]})  # fmt: skip
        mark = MARK if i == num_turns - 1 else {}
        messages.append({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": first, "content": [{"type": "text", "text": "1\tx"}], **mark},
            {"type": "tool_result", "tool_use_id": second, "content": "boom", "is_error": True},
            {"type": "text", "text": "<system-reminder>Go on.</system-reminder>"},
        ]})  # fmt: skip
    shared = {
        "model": MODEL,
        "messages": messages,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cch=1f;"},
            {"type": "text", "text": "You are an agent.", **MARK},
        ],
        "tools": [
            {"name": "read", "description": "Reads.", "input_schema": SCHEMA, "eager_input_streaming": True},
            {"name": "run", "description": "Runs.", "input_schema": SCHEMA, "defer_loading": True, **MARK},
        ],
        "thinking": {"type": "adaptive"},
    }
    body = shared | {
        "max_tokens": 32000, "stream": True, "metadata": {"user_id": '{"session_id": "a"}'},
        "output_config": {"effort": "medium"}, "service_tier": "auto",
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    }  # fmt: skip
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "interleaved-thinking-2025-05-14", "x-api-key": "k"}
    reply = server.post("/v1/messages?beta=true", body, headers)
    assert (reply.status, reply.headers[IGNORED]) == (200, "context_management, tools.defer_loading")
    kinds = [event["content_block"]["type"] for event in reply.named_events() if "content_block" in event]
    assert kinds == ["thinking", "text", "tool_use"]
    system, _, said, read, ran, words, *_ = sent = server.renderer.messages
    assert system["content"] == "You are an agent." and len(sent) == 2 + 4 * num_turns
    assert (said["content"], said["reasoning_content"], len(said["tool_calls"])) == ("Step 0.", "Thought 0.", 2)
    assert (read["content"], read["tool_call_id"]) == ("1\tx", "toolu_0a")
    assert (ran["content"], ran["tool_call_id"]) == ("Error: boom", "toolu_0b")
    assert words == {"role": "user", "content": "<system-reminder>Go on.</system-reminder>"}
    counted = server.post("/v1/messages/count_tokens?beta=true", shared, headers).json()["input_tokens"]
    assert counted == len(server.engine.requests[-1].prompt_token_ids)


def test_over_responses(server: Server) -> None:
    """Nothing is kept: each request has all items, and thoughts in the form that they came in."""
    asked = {"store": False, "include": ["reasoning.encrypted_content"]}
    thought = server.post("/v1/responses", {"input": "Mend it.", **asked}).json()["output"][0]
    text = lambda role, words, kind="input_text": {  # noqa: E731
        "type": "message", "role": role, "content": [{"type": kind, "text": words}],
    }  # fmt: skip
    call = {"type": "function_call", "name": "read", "arguments": '{"path": "/a"}'}
    function = {"type": "function", "name": "read", "description": "Reads.", "strict": False, "parameters": SCHEMA}
    body = asked | {
        "model": MODEL, "instructions": "You are an agent.", "stream": True, "tool_choice": "auto",
        "input": [
            text("developer", "<permissions>"), text("user", "Mend it."),
            {"type": "reasoning", "summary": [], "encrypted_content": thought["encrypted_content"]},
            text("assistant", "I look.", "output_text") | {"phase": "commentary"},
            call | {"call_id": "call_1"}, call | {"call_id": "call_2"},
            {"type": "function_call_output", "call_id": "call_1", "output": "x"},
            {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "y"}]},
        ],
        "tools": [function], "parallel_tool_calls": True, "reasoning": {"effort": "medium", "summary": "auto"},
        "prompt_cache_key": "a", "client_metadata": {"a": "b"},
    }  # fmt: skip
    reply = server.post("/v1/responses", body, {"openai-beta": "responses=experimental", "accept": "text/event-stream"})
    assert (reply.status, reply.headers[IGNORED]) == (200, "client_metadata, input.phase, reasoning.summary")
    items = reply.named_events()[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call"]
    assert items[0]["encrypted_content"] == thought["encrypted_content"]
    system, developer, user, said, first, second = server.renderer.messages
    assert [message["role"] for message in (system, developer, user)] == ["system", "developer", "user"]
    assert (said["content"], said["reasoning_content"], len(said["tool_calls"])) == ("I look.", "Hm.", 2)
    assert (first["content"], second["content"]) == ("x", "y")


def test_over_chat(server: Server) -> None:
    """Examples as messages, files in marked parts, and the usage behind the stream."""
    part = lambda words: [{"type": "text", "text": words, **MARK}]  # noqa: E731
    messages = [
        {"role": "system", "content": part("Act as an expert.")},
        {"role": "user", "content": "An example."},
        {"role": "assistant", "content": "Ok."},
        {"role": "user", "content": part("Files.")},
        {"role": "assistant", "content": "Ok."},
        {"role": "user", "content": "Mend it."},
    ]
    body = {"model": MODEL, "messages": messages, "stream": True, "temperature": 0}
    reply = server.post("/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
    assert reply.status == 200 and IGNORED not in reply.headers
    *_, last = reply.events()
    assert last["choices"] == [] and last["usage"]["completion_tokens"] > 0
    assert [message["role"] for message in server.renderer.messages] == [message["role"] for message in messages]
