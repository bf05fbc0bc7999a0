"""Anthropic's Messages API (N6): what a body becomes, and how news are spelled."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from octavo.base.errors import Overloaded, ShuttingDown
from octavo.server.app import create_app
from support.server_fakes import CONTEXT, MODEL, Reply, Server, answer, call, make_server
from support.tool_fakes import ONE, TWO

USER = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "name": "get_weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK = {"name": "get_time", "input_schema": {"type": "object", "properties": {}}}


def saying(text: str, *, reason: str = "stop", stop: Any = None, num_cached: int = 0, **settings: Any) -> Server:
    def script(request: Any) -> Any:
        return answer(text, reason=reason, stop=stop, num_cached=num_cached)

    return make_server(script, **{"tools": "hermes", "reasoning": "deepseek_r1"} | settings)


def ask(server: Server, **fields: Any) -> Reply:
    return server.post("/v1/messages", {"model": MODEL, "max_tokens": 300, "messages": USER} | fields)


def message_of(server: Server, **fields: Any) -> dict[str, Any]:
    """The whole reply; the stream's, folded, must be the same."""
    whole = ask(server, **fields).json()
    first, *middle, last = ask(server, stream=True, **fields).named_events()
    assert (first["type"], last) == ("message_start", {"type": "message_stop"})
    message: dict[str, Any] = first["message"]
    inputs: dict[int, str] = {}
    open_block = None
    for event in middle:
        kind = event["type"]
        if kind == "content_block_start":
            assert open_block is None and event["index"] == len(message["content"])
            open_block = event["index"]
            message["content"].append(event["content_block"])
        elif kind == "content_block_stop":
            assert event["index"] == open_block
            if open_block in inputs:
                message["content"][open_block]["input"] = json.loads(inputs[open_block])
            open_block = None
        elif kind == "content_block_delta":
            assert event["index"] == open_block
            block, delta = message["content"][open_block], event["delta"]
            if delta["type"] == "input_json_delta":
                inputs[open_block] = inputs.get(open_block, "") + delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
        else:
            assert (kind, open_block) == ("message_delta", None)
            message |= event["delta"] | {"usage": event["usage"]}
    assert _without_ids(message) == _without_ids(whole)
    return whole


def _without_ids(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [{name: value for name, value in block.items() if name != "id"} for block in message["content"]]
    return {**message, "id": None, "content": blocks}


# ------------------------------------------------------------------------------------------------ replies
def test_n6_thinking_text_and_calls_are_blocks_in_their_order() -> None:
    server = saying(f"<think>Hm.</think>{TWO}", num_cached=2)
    message = message_of(server, tools=[WEATHER, CLOCK])
    thinking, text, first, second = message["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "Hm.") and thinking["signature"]
    assert text == {"type": "text", "text": "Let me see."}  # some clients take no `citations` that is null
    assert (first["type"], first["name"], first["input"]) == ("tool_use", "get_weather", {"city": "Oslo"})
    assert (second["name"], second["input"]) == ("get_time", {})
    assert first["id"].startswith("toolu_") and first["id"] != second["id"]
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)
    assert message["id"].startswith("msg_") and (message["type"], message["role"]) == ("message", "assistant")
    num_tokens = len(f"<think>Hm.</think>{TWO}")
    assert message["usage"] == {
        "input_tokens": 3, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 0,
        "output_tokens": num_tokens, "output_tokens_details": {"thinking_tokens": 18}, "service_tier": "standard",
    }  # fmt: skip


def test_omitted_thinking_is_an_empty_block_with_its_signature() -> None:
    server = saying("<think>Hm.</think>Yes.")
    shown = message_of(server)["content"][0]
    thinking = {"type": "enabled", "budget_tokens": 100, "display": "omitted"}
    hidden, text = message_of(server, thinking=thinking)["content"]
    assert hidden == {"type": "thinking", "thinking": "", "signature": shown["signature"]}
    assert text["text"] == "Yes."


@pytest.mark.parametrize(
    ("end", "max_tokens", "expected"),
    [
        ({"reason": "stop"}, 9, ("end_turn", None)),
        ({"reason": "stop", "stop": 7}, 9, ("end_turn", None)),  # a token that ends the turn
        ({"reason": "stop", "stop": "END"}, 9, ("stop_sequence", "END")),
        ({"reason": "length"}, 3, ("max_tokens", None)),
        ({"reason": "length"}, 9, ("model_context_window_exceeded", None)),
    ],
)
def test_stop_reasons(end: Any, max_tokens: int, expected: tuple[str, str | None]) -> None:
    message = message_of(saying("Yes", **end), max_tokens=max_tokens)
    assert (message["stop_reason"], message["stop_sequence"]) == expected


def test_a_forced_call_is_a_tool_use_too() -> None:
    server = saying(ONE, reasoning=None)
    message = message_of(server, tools=[WEATHER, CLOCK], tool_choice={"type": "tool", "name": "get_weather"})
    assert message["stop_reason"] == "tool_use"
    assert [block["type"] for block in message["content"]] == ["tool_use"]


def test_a_call_that_is_cut_off_has_the_members_that_are_complete() -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3, "note": "wr'
    message = ask(saying(text, reason="length", reasoning=None), tools=[WEATHER], max_tokens=len(text)).json()
    [block] = message["content"]
    assert block["input"] | {"note": ""} == {"city": "Oslo", "days": 3, "note": ""}
    assert message["stop_reason"] == "max_tokens"


def test_an_empty_reply_has_no_blocks() -> None:
    message = message_of(saying("<think>Hm.</think>"))
    assert [block["type"] for block in message["content"]] == ["thinking"]


# ------------------------------------------------------------------------------------------------ requests
def test_the_request_of_an_agent_becomes_a_conversation() -> None:
    """Blocks with cache marks, fields of betas, results as lists, thinking between calls: nothing is refused."""
    server = saying("Done.")
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    reply = ask(
        server,
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=42;"},
            {"type": "text", "text": "You are an agent."},
            {"type": "text", "text": "Be brief.", **mark},
        ],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hear."}, {"type": "text", "text": "Go."}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "First the weather.", "signature": "abc"},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "toolu_2", "name": "get_time", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "text", "text": "Go on."},
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Rain"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no clock", "is_error": True},
            ]},
            {"role": "user", "content": "Now?"},
        ],
        tools=[WEATHER, {**CLOCK, **mark, "eager_input_streaming": True}],
        thinking={"type": "adaptive"},
        metadata={"user_id": "somebody"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        service_tier="auto",
    )  # fmt: skip
    assert reply.status == 200, reply.body
    assert reply.headers["x-octavo-ignored-fields"] == "context_management"
    system, first, called, rain, failed, last = server.renderer.messages
    texts = lambda *parts: [{"type": "text", "text": part} for part in parts]  # noqa: E731
    assert system == {"role": "system", "content": texts("You are an agent.", "Be brief.")}
    assert first == {"role": "user", "content": texts("Hear.", "Go.")}
    assert (called["content"], called["reasoning_content"]) == ("Let me see.", "First the weather.")
    assert called["tool_calls"][0] == {
        "id": "toolu_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}},
    }  # fmt: skip
    assert rain == {"role": "tool", "tool_call_id": "toolu_1", "name": "get_weather", "content": "Rain"}
    assert failed["content"] == "Error: no clock"
    assert last == {"role": "user", "content": texts("Go on.", "Now?")}  # two messages of one side are one
    tool = {"name": "get_time", "parameters": CLOCK["input_schema"]}
    assert server.renderer.options["tools"][1] == {"type": "function", "function": tool}
    assert server.renderer.options["chat_template_kwargs"] == {"enable_thinking": True, "thinking": True}


def test_a_last_message_of_the_assistant_is_gone_on_with() -> None:
    server = saying("B)", reasoning=None)
    messages = [*USER, {"role": "assistant", "content": "The answer is ("}]
    assert message_of(server, messages=messages)["content"][0]["text"] == "B)"
    options = server.renderer.options
    assert options["continue_final_message"] is True and options["add_generation_prompt"] is False


def test_parameters_reach_the_engine() -> None:
    server = saying("Yes")
    ask(server, temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["END"], max_tokens=11)
    params = server.engine.requests[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.stop) == (0.5, 0.9, 7, ("END",))
    assert params.max_tokens == 11
    ask(server, max_tokens=32_000)  # what agents ask of any model: as much as fits
    assert server.engine.requests[-1].params.max_tokens == CONTEXT - len("user:Hello")


@pytest.mark.parametrize("param", ["output_config", "output_format"])
def test_a_schema_holds_the_text(param: str) -> None:
    server = saying("{}", reasoning=None)
    form = {"type": "json_schema", "schema": {"type": "object", "required": [param]}}
    assert ask(server, **{param: {"format": form} if param == "output_config" else form}).status == 200
    [spec] = server.grammars.specs
    assert spec.kind == "json" and param in str(spec.source)
    form = {"type": "json_schema", "schema": {"type": "object", "$ref": "#/nowhere"}}
    reply = ask(server, **{param: {"format": form} if param == "output_config" else form})
    where = "output_config.format.schema" if param == "output_config" else "output_format.schema"
    assert reply.status == 400 and where in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("choice", "kinds"),
    [({"type": "auto"}, []), ({"type": "any"}, ["lark"]), ({"type": "none"}, [])],
)
def test_tool_choice(choice: Any, kinds: list[str]) -> None:
    """Where a model's format of calls is known, it may call without a flag of the server."""
    server = saying(ONE, reasoning=None)
    reply = ask(server, tools=[WEATHER], tool_choice=choice).json()
    assert [spec.kind for spec in server.grammars.specs] == kinds
    assert reply["stop_reason"] == ("end_turn" if choice["type"] == "none" else "tool_use")


def test_a_format_of_the_text_holds_nothing_where_calls_are_forced() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    fields = {"tools": [WEATHER], "tool_choice": {"type": "any"}}
    server = saying(ONE, reasoning=None)
    assert ask(server, output_config={"format": form}, **fields).json()["stop_reason"] == "tool_use"
    ask(server, **fields)
    formed, plain = server.engine.requests
    assert formed.params.grammar == plain.params.grammar
    bad = {"format": {**form, "schema": {"$ref": "#/nowhere"}}}
    assert ask(server, output_config=bad, **fields).status == 400


def test_one_call_at_most() -> None:
    server = saying(TWO, reasoning=None)
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    kinds = [block["type"] for block in message_of(server, tools=[WEATHER, CLOCK], tool_choice=choice)["content"]]
    assert kinds.count("tool_use") == 1


def test_what_a_model_cannot_heed_is_named_and_not_refused() -> None:
    """Agents ask every model to think; one that cannot answers all the same."""
    fields: Any = {
        "thinking": {"type": "enabled", "budget_tokens": 4000}, "output_config": {"effort": "high"},
    }  # fmt: skip
    reply = ask(saying("Yes", reasoning=None), **fields)
    assert reply.status == 200
    assert reply.headers["x-octavo-ignored-fields"] == "output_config.effort, thinking.budget_tokens"
    strict = ask(saying("Yes", reasoning=None, strict_requests=True), **fields)
    assert strict.status == 400 and "output_config.effort" in strict.json()["error"]["message"]


def test_thinking_is_bounded_and_switched_off() -> None:
    server = saying("<think>Hm.</think>Yes.")
    ask(server, thinking={"type": "enabled", "budget_tokens": 5})
    [spec] = server.grammars.specs
    assert "5" in str(spec.source) or "5" in str(spec.options)
    ask(server, thinking={"type": "disabled"})
    assert server.renderer.options["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}


# ------------------------------------------------------------------------------------------------ the other routes
def test_n7_tokens_are_counted_as_the_prompt_has_them() -> None:
    server = saying("Yes")
    reply = server.post("/v1/messages/count_tokens", {"model": MODEL, "messages": USER, "tools": [WEATHER]})
    assert (reply.status, reply.json()) == (200, {"input_tokens": len("user:Hello")})
    assert server.renderer.options["tools"] is not None
    assert not server.engine.requests


def test_models_are_told_to_anthropics_clients_in_their_words() -> None:
    server = make_server()
    headers = {"anthropic-version": "2023-06-01"}
    page = server.get("/v1/models", headers).json()
    assert [model["id"] for model in page["data"]] == ["tiny", "alias"]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "tiny", "alias")
    one = server.get("/v1/models/alias", headers).json()
    assert (one["type"], one["display_name"], one["max_input_tokens"]) == ("model", "alias", CONTEXT)
    assert server.get("/v1/models/none", headers).json()["error"]["type"] == "not_found_error"
    assert server.get("/v1/models").json()["object"] == "list"


# ------------------------------------------------------------------------------------------------ errors
def error_of(reply: Reply) -> tuple[int, str, str]:
    body = reply.json()
    assert body["type"] == "error" and set(body["error"]) == {"type", "message"}
    assert body["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    return reply.status, body["error"]["type"], body["error"]["message"]


BLOCKED = [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": ""}}]}]
RESULT = [{"type": "tool_result", "tool_use_id": "a"}]
CALL = [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": BLOCKED}, "messages.0.content.0: This model takes text only; blocks of type 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "blocks of type 'document'"),
        ({"messages": [{"role": "user", "content": [{"type": "server_tool_use"}]}]}, "'server_tool_use' are not"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text: Field required"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content: Input should be a string or a list"),
        ({"messages": [{"role": "user", "content": CALL}]}, "messages.0.content.0: A block of type 'tool_use' cannot"),
        ({"messages": [{"role": "assistant", "content": RESULT}, *USER]}, "messages.0.content.0: A block of type"),
        ({"messages": [*USER, {"role": "assistant", "content": CALL}]}, "messages.1: The last message calls tools"),
        ({"messages": [{"role": "user", "content": [{**RESULT[0], "content": BLOCKED[0]["content"]}]}]},
         "messages.0.content.0.content.0: This model takes text only"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0: Only tools with an"),
        ({"tools": [WEATHER, WEATHER]}, "tools.1.name: Two tools"),
        ({"tools": [{"name": "f", "input_schema": {"type": "string"}, "strict": True}], "tool_choice": {"type": "any"}},
         "tools.0.input_schema: The schema"),
        ({"tools": [{"name": "f", "input_schema": {"properties": {"a": 5}}, "strict": True}],
          "tool_choice": {"type": "any"}},
         "tools.0.input_schema.properties.a: A schema should be an object or a boolean, at tools.0.input_schema.prop"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name: "),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice: The name 'g'"),
        ({"tool_choice": {"type": "any"}}, "`tool_choice` needs `tools`"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens: Input should be greater"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type: Input should be"),
        ({"stop_sequences": ["a"] * 5}, "stop_sequences: At most 4"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["a" * 4097]}, "stop_sequences: A stop string has at most 4096"),
        ({"temperature": 2.5}, "`temperature` must be in"),
        ({"mcp_servers": [{"url": "x"}]}, "`mcp_servers` is not"),
        ({"compaction": {"type": "summarize"}}, "`compaction` is not"),
        ({"inference_geo": "us"}, "`inference_geo` is not"),
        ({"tools": [{**WEATHER, "allowed_callers": ["code_execution_20260120"]}]}, "tools.0.allowed_callers.0: "),
        ({"messages": [{"role": "user", "content": [{"type": "document", "citations": {"enabled": True}}]}]},
         "messages.0.content.0.citations.enabled: "),
        ({"messages": [{"role": "user", "content": "x" * CONTEXT}]}, "prompt is too long: messages: At most 512"),
    ],
)  # fmt: skip
def test_errors_name_the_field(fields: Any, words: str) -> None:
    status, kind, message = error_of(ask(saying("Yes"), **fields))
    assert (status, kind) == (400, "invalid_request_error")
    assert words in message


def test_errors_of_all_kinds_have_anthropics_shape() -> None:
    server = saying("Yes", api_key=["k"])
    assert error_of(ask(server))[:2] == (401, "authentication_error")
    headers = {"x-api-key": "k", "anthropic-version": "2023-06-01", "anthropic-beta": "anything-2026-01-01"}

    def post(path: str, body: Any) -> Reply:
        return call(create_app(server.state), "POST", path, body, headers)

    body = {"model": MODEL, "max_tokens": 9, "messages": USER}
    assert post("/v1/messages?beta=true", body).status == 200
    assert error_of(post("/v1/messages", {**body, "model": "x"}))[:2] == (404, "not_found_error")
    assert error_of(post("/v1/messages/batches", {}))[:2] == (404, "not_found_error")
    assert error_of(post("/v1/messages", b"{"))[:2] == (400, "invalid_request_error")
    server.engine.refusal = Overloaded("Busy.", 3)
    reply = post("/v1/messages", body)
    assert error_of(reply)[:2] == (529, "overloaded_error") and reply.headers["retry-after"] == "3"
    server.engine.refusal = ShuttingDown("Bye.")
    assert error_of(post("/v1/messages", body))[:2] == (503, "overloaded_error")
    server.engine.refusal = RuntimeError("secret")
    assert error_of(post("/v1/messages", body)) == (500, "api_error", "Internal server error.")
    large = make_server(max_body_bytes=10)
    assert error_of(ask(large))[:2] == (413, "request_too_large")


def test_threads_are_refused_in_words_after_which_clients_send_all() -> None:
    reply = ask(saying("Yes"), thread={"type": "create"})
    assert reply.status == 400
    assert reply.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}


def test_an_error_within_a_stream_is_an_event() -> None:
    server = make_server(lambda request: [*answer("Yes")[:2], ShuttingDown("Bye.")])
    *_, last = ask(server, stream=True).named_events()
    assert last == {"type": "error", "error": {"type": "overloaded_error", "message": "Bye."}}


def test_the_sign_of_life_is_a_ping() -> None:
    gate = asyncio.Event()

    def script(request: Any) -> Any:
        asyncio.get_running_loop().call_later(0.05, gate.set)
        return [gate, *answer("Yes")]

    events = ask(make_server(script, sse_keep_alive_interval=0.01), stream=True).named_events()
    assert events[0] == {"type": "ping"}
    assert next(event["type"] for event in events if event["type"] != "ping") == "message_start"


def test_hundreds_of_messages() -> None:
    turn = [{"role": "user", "content": RESULT}, {"role": "assistant", "content": CALL}]
    server = saying("Yes")
    ask(server, messages=[*USER, {"role": "assistant", "content": CALL}, *turn * 300, *USER])
    assert len(server.renderer.messages) == 603
