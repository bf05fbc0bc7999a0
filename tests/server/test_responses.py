"""/v1/responses: items in, items and events out; the shapes are those of the `openai` package, field by field."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from octavo.base.errors import ContextLengthExceeded, EngineDead, Overloaded
from octavo.client.generation import CompletionDelta, GenerationDelta
from octavo.wire.messages import TokenLogprobs
from support.published import unknown_fields
from support.server_fakes import CONTEXT, Reply, Server, answer, drive, make_server, with_logprobs
from support.tool_fakes import CLOCK, ONE, TWO, WEATHER, message_of, server_saying

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
#: Fields beyond the package's types: those of OpenAI's own replies, and the bytes of tokens, which the types of events
#: leave out and those of parts require.
OURS = {"Response.store", "ResponseFunctionCallArgumentsDoneEvent.name", "Logprob.bytes", "LogprobTopLogprob.bytes"}
TOOLS = [{"type": "function", **WEATHER["function"]}, {"type": "function", **CLOCK["function"]}]
USER = {"role": "user", "content": "Hello"}


def respond(server: Server, value: Any = "Hello", **fields: Any) -> Reply:
    return server.post("/v1/responses", {"input": value, **fields})


def checked(body: Any) -> Any:
    """The body, which is a `Response` of the `openai` package, with all that it must have, and no field at any depth
    that its types do not know but ours."""
    assert set(unknown_fields(Response.model_validate(body, strict=True))) == {"Response.store"}
    return body


def events_of(reply: Reply) -> list[Any]:
    """The events, each checked against the package's type; numbers without a gap, and names that are their types."""
    events = reply.named_events()
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        typed = EVENT.validate_python(event, strict=True)
        assert type(typed).model_fields["type"].annotation.__args__ == (event["type"],)
        assert set(unknown_fields(typed)) <= OURS
    return events


def without_ids(value: Any) -> Any:
    """The value without what differs between two equal requests."""
    if isinstance(value, dict):
        varying = {"id", "item_id", "created_at", "completed_at", "call_id"}
        return {key: without_ids(child) for key, child in value.items() if key not in varying}
    return [without_ids(child) for child in value] if isinstance(value, list) else value


def both(server: Server, value: Any = "Hello", **fields: Any) -> tuple[Any, list[Any]]:
    """The whole response, and the events of the same one streamed, whose last tells the same."""
    whole = checked(respond(server, value, **fields).json())
    events = events_of(respond(server, value, stream=True, **fields))
    assert without_ids(checked(events[-1]["response"])) == without_ids(whole)
    check_fold(events)
    return whole, events


def check_fold(events: list[Any]) -> None:
    """The deltas make the items of the last event, one after the other."""
    assert [e["type"] for e in events[:2]] == ["response.created", "response.in_progress"]
    texts: dict[int, str] = {}
    open_index = -1
    for event in events[2:-1]:
        index, kind = event["output_index"], event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert index == open_index + 1
            open_index, texts[index] = index, ""
        assert index == open_index
        if kind.endswith(".delta"):
            texts[index] += event["delta"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert event["text"] == texts[index]
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == texts[index]
        elif kind == "output_item.done":
            assert event["item"] == events[-1]["response"]["output"][index]


# ---------------------------------------------------------------- what is said
def test_n3_a_text_whole_and_streamed() -> None:
    whole, events = both(make_server())
    [item] = whole["output"]
    assert (item["type"], item["role"], item["content"][0]["text"]) == ("message", "assistant", "Hi!")
    assert (whole["status"], whole["usage"]["input_tokens"], whole["usage"]["output_tokens"]) == ("completed", 5, 3)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.delta", "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip


def test_n3_calls_and_the_text_before_them_as_in_chat() -> None:
    server = server_saying(TWO)
    whole, events = both(server, tools=TOOLS)
    message, _ = message_of(server)
    text, *calls = whole["output"]
    assert text["content"][0]["text"] == message["content"]
    assert [(call["name"], call["arguments"]) for call in calls] == [
        (call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]
    ]
    assert len({call["call_id"] for call in calls}) == 2
    kinds = [event["type"] for event in events if "arguments" in event["type"]]
    assert kinds[-1] == "response.function_call_arguments.done" and len(kinds) > 3
    assert whole["tools"][0]["name"] == "get_weather" and whole["tool_choice"] == "auto"


def test_n3_text_between_calls_is_an_item_in_its_place() -> None:
    whole, _ = both(server_saying(f"{ONE}\nthen\n{ONE} bye"), tools=TOOLS)
    assert [item["type"] for item in whole["output"]] == ["function_call", "message", "function_call", "message"]


def test_n3_a_named_function_and_a_call_that_is_cut_off() -> None:
    named = {"type": "function", "name": "get_weather"}
    whole, _ = both(make_server(lambda request: answer('{"city": "Oslo"}')), tools=TOOLS, tool_choice=named)
    assert [item["arguments"] for item in whole["output"]] == ['{"city": "Oslo"}'] and whole["status"] == "completed"
    whole, _ = both(server_saying(ONE[:-24], reason="length"), tools=TOOLS)
    [call] = whole["output"]
    assert (call["status"], call["arguments"], whole["status"]) == ("incomplete", '{"city', "incomplete")


def test_n3_thoughts_are_an_item_of_their_own() -> None:
    server = server_saying("<think>Well.</think>Yes.", reasoning="deepseek_r1")
    whole, events = both(server)
    thought, said = whole["output"]
    assert thought["type"] == "reasoning" and thought["summary"] == []
    assert thought["content"] == [{"type": "reasoning_text", "text": "Well."}]
    assert said["content"][0]["text"] == "Yes."
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert "response.reasoning_text.done" in [event["type"] for event in events]


def test_a_reply_that_goes_round_in_circles_is_incomplete() -> None:
    detection = {"max_pattern_size": 4, "min_count": 3}
    server = make_server(lambda request: answer("Ha ha ha", reason="repetition"))
    events = respond(server, repetition_detection=detection, stream=True).named_events()
    body = events[-1]["response"]
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "repetition"})
    assert body["output"][0]["content"][0]["text"] == "Ha ha ha" and body["output"][0]["status"] == "incomplete"
    found = server.engine.requests[0].params.repetition_detection
    assert found is not None and (found.max_pattern_size, found.min_count) == (4, 3)
    wrong = respond(server, repetition_detection={"max_pattern_size": 4, "more": 1})
    assert (wrong.status, wrong.error["param"]) == (400, "repetition_detection.more")


def test_log_probabilities_of_tokens_that_are_named() -> None:
    entries = [TokenLogprobs(-0.5, 1, [97, 98], [-1.0, -2.0])] * len("Hi")
    server = make_server(lambda request: with_logprobs(answer("Hi"), entries))
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "logprob_token_ids": [97, 98]}
    whole, _ = both(server, **asked)
    [first, _] = whole["output"][0]["content"][0]["logprobs"]
    assert [(top["token"], top["logprob"]) for top in first["top_logprobs"]] == [("a", -1.0), ("b", -2.0)]
    assert server.engine.requests[0].params.logprob_token_ids == (97, 98)
    for fields in ({"logprob_token_ids": [97]}, asked | {"logprob_token_ids": [9999]}):
        reply = respond(server, **fields)
        assert (reply.status, reply.error["param"].split(".")[0]) == (400, "logprob_token_ids")


def test_log_probabilities_are_of_the_text_alone() -> None:
    entries = [TokenLogprobs(-0.5, 1, [ord("x")], [-0.25])] * len("<think>Well.</think>Yes.")
    text = "<think>Well.</think>Yes."
    server = make_server(lambda request: with_logprobs(answer(text), entries), reasoning="deepseek_r1")
    whole, events = both(server, include=["message.output_text.logprobs"], top_logprobs=1)
    scores = whole["output"][1]["content"][0]["logprobs"]
    assert "".join(score["token"] for score in scores) == "Yes."
    assert scores[0]["logprob"] == -0.5 and scores[0]["top_logprobs"][0]["logprob"] == -0.25
    told = [score for event in events if event["type"].endswith("text.delta") for score in event.get("logprobs", [])]
    assert told == scores
    assert respond(server, top_logprobs=1).error["param"] == "top_logprobs"


def test_what_is_cut_off_is_incomplete() -> None:
    whole, events = both(make_server(lambda request: answer("Hi", reason="length")), max_output_tokens=2)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert whole["output"][0]["status"] == "incomplete" and events[-1]["type"] == "response.incomplete"


def test_a_model_that_says_nothing_says_an_empty_text() -> None:
    end = GenerationDelta([CompletionDelta(0, "", [256], None, "stop", None)], 5, 0, 1, True)
    whole, _ = both(make_server(lambda request: [end]))
    assert whole["output"][0]["content"][0]["text"] == "" and whole["status"] == "completed"
    whole, _ = both(server_saying("<think>Well.</think>", reasoning="deepseek_r1"))
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]
    whole, _ = both(server_saying("<think>Well.", reasoning="deepseek_r1", reason="length"))
    assert [item["type"] for item in whole["output"]] == ["reasoning"] and whole["status"] == "incomplete"


# ---------------------------------------------------------------- what the model sees
def test_n2_items_are_the_messages_of_a_chat() -> None:
    server = server_saying("Fine.")
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Ask."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "a", "name": "get_weather", "arguments": '{"city": "Oslo"}'},
        {"type": "function_call", "call_id": "b", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "Rain"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "Noon"}]},
        {"role": "assistant", "content": "It rains."},
        {"role": "assistant", "content": "Take care."},
        USER,
    ]
    items[-1] = {**USER, "type": None}
    assert respond(server, items, instructions="Answer.", tools=TOOLS).status == 200
    ours, options = server.renderer.messages, server.renderer.options
    calls = [
        {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}},
        {"id": "b", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
    ]
    messages = [
        {"role": "system", "content": "Answer."},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me see.", "reasoning_content": "Ask.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "Rain", "name": "get_weather"},
        {"role": "tool", "tool_call_id": "b", "content": "Noon", "name": "get_time"},
        {"role": "assistant", "content": "It rains."},
        {"role": "assistant", "content": "Take care."},
        USER,
    ]
    assert server.post("/v1/chat/completions", {"messages": messages, "tools": [WEATHER, CLOCK]}).status == 200
    assert (ours, options) == (server.renderer.messages, server.renderer.options)
    assert server.engine.requests[0].prompt_token_ids == server.engine.requests[1].prompt_token_ids


def test_n2_fields_reach_the_engine_as_those_of_chat() -> None:
    server = make_server()
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "stop": ["x"], "presence_penalty": 0.5}
    assert respond(server, max_output_tokens=9, **fields).status == 200
    assert server.chat(max_tokens=9, **fields).status == 200
    ours, theirs = server.engine.requests
    assert (ours.params, ours.prompt_token_ids, ours.is_whole) == (
        theirs.params,
        theirs.prompt_token_ids,
        theirs.is_whole,
    )


def test_n2_a_format_is_held_and_named_as_here() -> None:
    server = make_server()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    text = {"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}, "verbosity": "low"}
    reply = respond(server, text=text)
    assert checked(reply.json())["text"] == text and reply.headers["x-octavo-ignored-fields"] == "text.verbosity"
    server.chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
    assert server.engine.requests[0].params.grammar == server.engine.requests[1].params.grammar is not None
    bad = {"format": {"type": "json_schema", "name": "a", "schema": {"type": "refused"}}}
    error = respond(server, text=bad).error
    assert error["param"].startswith("text.format.schema") and "response_format" not in error["message"]
    assert respond(server, text={"format": {"type": "json_object"}}).status == 200


def test_thoughts_come_back_in_the_field_that_clients_carry() -> None:
    """Some keep no more of a reasoning item than its `encrypted_content`."""
    server = server_saying("<think>Hm.</think>Hi", reasoning="deepseek_r1")
    whole, _ = both(server, include=["reasoning.encrypted_content"], store=False)
    thought = whole["output"][0]
    assert "encrypted_content" not in respond(server).json()["output"][0]
    carried = {
        "type": "reasoning",
        "id": thought["id"],
        "summary": [],
        "encrypted_content": thought["encrypted_content"],
    }
    for item in (carried, thought):
        assert respond(server, [USER, item, {"role": "assistant", "content": "Hi"}, USER]).status == 200
        said = server.renderer.messages[1]
        assert (said["content"], said["reasoning_content"]) == ("Hi", "Hm.")


def test_a_format_of_the_text_holds_nothing_where_calls_are_forced() -> None:
    """Some clients send the schema of an answer as a format, and as a function that must be called."""
    server = server_saying(ONE)
    form = {"type": "json_schema", "name": "a", "schema": {"type": "object", "properties": {}}}
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        fields = {"tools": TOOLS[:1], "tool_choice": choice}
        reply = checked(respond(server, text={"format": form}, **fields).json())
        assert [item["type"] for item in reply["output"]] == ["function_call"]
        respond(server, **fields)
        formed, plain = server.engine.requests[-2:]
        assert formed.params.grammar == plain.params.grammar
    bad = {"format": {**form, "schema": {"$ref": "#/nowhere"}}}
    assert respond(server, text=bad, **fields).error["param"].startswith("text.format.schema")


def test_effort_and_summaries_reach_the_template_or_are_named() -> None:
    server = make_server()
    reply = respond(server, reasoning={"effort": "none", "summary": "auto"})
    assert server.renderer.options["chat_template_kwargs"]["enable_thinking"] is False
    assert reply.headers["x-octavo-ignored-fields"] == "reasoning.summary"
    reply = respond(server, reasoning={"effort": "high"})
    assert reply.headers["x-octavo-ignored-fields"] == "reasoning.effort"
    assert reply.json()["reasoning"] == {"effort": "high", "summary": None}


def test_tool_choice_and_strict_tools_are_those_of_chat() -> None:
    server = server_saying(ONE)
    named = {"type": "function", "name": "get_weather"}
    strict = [{**TOOLS[0], "strict": True}, TOOLS[1]]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
    chat_named = {"type": "function", "function": {"name": "get_weather"}}
    chat_strict = [{"type": "function", "function": {**WEATHER["function"], "strict": True}}, CLOCK]
    for choice, chat_choice in (
        ("auto", "auto"), ("required", "required"), ("none", "none"), (named, chat_named),
        (allowed, {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [chat_named]}}),
    ):  # fmt: skip
        ours = respond(server, tools=strict, tool_choice=choice, parallel_tool_calls=False)
        assert ours.json()["tool_choice"] == choice
        server.chat(tools=chat_strict, tool_choice=chat_choice, parallel_tool_calls=False)
        assert server.engine.requests[-2].params == server.engine.requests[-1].params


def test_truncation_leaves_out_what_came_first() -> None:
    server = make_server()
    items = [{"role": "user", "content": f"{i:03}" + "x" * 100} for i in range(8)]
    assert respond(server, items).error["code"] == "context_length_exceeded"
    reply = respond(server, items, instructions="Keep.", truncation="auto", max_output_tokens=8)
    assert reply.status == 200 and reply.json()["truncation"] == "auto"
    shown = server.renderer.messages
    text = "".join(map(chr, server.engine.requests[0].prompt_token_ids))
    assert text.startswith("system:Keep.\nuser:004") and "user:007" in text and shown
    # One more would not have fitted.
    assert len(text) + 8 <= CONTEXT < len(text) + 8 + len("user:003\n") + 100
    whole = "x" * (CONTEXT + 1)
    assert respond(server, whole, truncation="auto").error["code"] == "context_length_exceeded"


def test_truncation_within_a_long_turn_keeps_calls_with_their_outputs() -> None:
    server = make_server()
    items: list[Any] = [{"role": "user", "content": "Go." + "x" * 200}]
    for i in range(4):
        items.append({"type": "function_call", "call_id": str(i), "name": "get_time", "arguments": "{}"})
        items.append({"type": "function_call_output", "call_id": str(i), "output": f"{i}" + "y" * 100})
    assert respond(server, items, instructions="Keep.", truncation="auto", max_output_tokens=8).status == 200
    text = "".join(map(chr, server.engine.requests[0].prompt_token_ids))
    assert text.startswith("system:Keep.\nassistant:") and "tool:3" in text and len(text) + 8 <= CONTEXT


def test_a_generation_that_the_engine_ended_has_failed() -> None:
    whole = respond(make_server(lambda request: answer("Hi", reason="abort")))
    assert whole.status == 500
    events = events_of(respond(make_server(lambda request: answer("Hi", reason="abort")), stream=True))
    assert events[-1]["type"] == "response.failed"


def test_n5_input_tokens_are_counted_as_they_would_be_seen() -> None:
    server = make_server()
    fields = {"input": [USER], "instructions": "Be kind."}
    reply = server.post("/v1/responses/input_tokens", fields)
    assert reply.json() == {"input_tokens": len("system:Be kind.\nuser:Hello"), "object": "response.input_tokens"}
    chat = {"messages": [{"role": "system", "content": "Be kind."}, USER]}
    assert server.post("/v1/chat/completions/input_tokens", chat).json() == reply.json()
    assert not server.engine.requests


# ---------------------------------------------------------------- refusals
REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [5]}, "input.0"),
    ({"input": [{"role": "tool", "content": "a"}]}, "input.0.role"),
    ({"input": [{"role": "user", "content": 5}]}, "input.0.content"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input.0.content.0"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0"),
    ({"input": [{"type": "web_search_call", "id": "a"}]}, "input.0"),
    ({"input": [{"type": 5, "role": "user", "content": "a"}]}, "input.0"),
    ({"input": [{"id": 5}]}, "input.0.id"),
    ({"input": [{}]}, "input.0.id"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "input.0.arguments"),
    ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, "input.0.call_id"),
    ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input.0.encrypted_content"),
    (
        {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "octavo-reasoning-1.*"}]},
        "input.0.encrypted_content",
    ),
    ({"input": "a", "tools": [{"type": "web_search"}]}, "tools.0"),
    ({"input": "a", "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "tools.0"),
    ({"input": "a", "tools": [{"type": "mcp", "server_label": "a", "server_url": "http://a"}]}, "tools.0.server_url"),
    ({"input": "a", "tools": [{"type": "custom", "name": "a"}]}, "tools.0"),
    ({"input": "a", "tools": [{"type": "function"}]}, "tools.0.name"),
    ({"input": "a", "tools": [TOOLS[0], TOOLS[0]]}, "tools.1.name"),
    ({"input": "a", "tools": [{**TOOLS[0], "defer_loading": True}]}, "tools.0.defer_loading"),
    ({"input": "a", "tools": [{**TOOLS[0], "allowed_callers": ["programmatic"]}]}, "tools.0.allowed_callers.0"),
    ({"input": "a", "tools": [{**TOOLS[0], "async": True}]}, "tools.0.async"),
    ({"input": "a", "tools": [TOOLS[0]], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
    ({"input": "a", "tools": [TOOLS[0]], "tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"input": "a", "include": ["web_search_call.results"]}, "include.0"),
    ({"input": "a", "text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"input": "a", "text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"input": "a", "text": {"verbosity": "none"}}, "text.verbosity"),
    ({"input": "a", "reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"input": "a", "reasoning": {"context": "current_turn"}}, "reasoning.context"),
    ({"input": "a", "reasoning": {"mode": "pro"}}, "reasoning.mode"),
    ({"input": "a", "truncation": "left"}, "truncation"),
    ({"input": "a", "metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"input": "a", "metadata": {"a": 5}}, "metadata.a"),
    ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
    ({"input": "a", "max_tool_calls": 0}, "max_tool_calls"),
    ({"input": "a", "stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"input": "a", "stop": "a" * 4097}, "stop"),
    ({"input": "a", "logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"input": "a", "top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
    ({"input": "a", "background": True, "store": False}, "background"),
    ({"input": "a", "prompt": {"id": "x"}}, "prompt"),
    ({"input": "a", "context_management": [{"type": "compaction"}]}, "context_management"),
    ({"input": "a", "response_format": {"type": "json_object"}}, "response_format"),
    ({"input": "a", "max_tokens": 5}, "max_tokens"),
    (
        {"input": "a", "stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
    ),
    ({"input": "a", "service_tier": "gold"}, "service_tier"),
    ({"input": "a", "previous_response_id": "resp_1", "conversation": "conv_1"}, "previous_response_id"),
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: str(row[1]))
def test_n2_what_is_not_had_is_refused_by_name(row: Any) -> None:
    body, param = row
    reply = server_saying("Hi").post("/v1/responses", body)
    assert (reply.status, reply.error["param"], reply.error["type"]) == (400, param, "BadRequestError")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.id"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_is_not_there_is_a_404(fields: dict[str, Any], param: str) -> None:
    reply = make_server().post("/v1/responses", {"input": "a", **fields})
    assert (reply.status, reply.error["param"]) == (404, param)


def test_a_refusal_at_admission_has_its_own_status_and_keeps_nothing() -> None:
    server = make_server()
    server.engine.refusal = Overloaded("Full.")
    for stream in (False, True):
        reply = respond(server, stream=stream)
        assert (reply.status, reply.headers["retry-after"]) == (429, "1")
    server.engine.refusal = ContextLengthExceeded("Long.")
    assert respond(server).error["code"] == "context_length_exceeded"


def test_a_refusal_behind_a_keep_alive_is_an_event() -> None:
    gate = asyncio.Event()
    server = make_server(lambda request: [gate, Overloaded("Full.")], sse_keep_alive_interval=0.01)

    async def run() -> Reply:
        return await drive(
            server.app, "POST", "/v1/responses", {"input": "a", "stream": True}, on_write=lambda data: gate.set()
        )

    reply = asyncio.run(run())
    event = json.loads(reply.writes[-1].split(b"data: ")[1])
    assert reply.writes[-1].startswith(b"event: error\n") and event["message"] == "Full."
    EVENT.validate_python(event, strict=True)


def test_n3_an_engine_that_dies_fails_the_response_and_says_so() -> None:
    server = make_server(lambda request: [*answer("Hi!")[:2], EngineDead("Gone.")])
    events = events_of(respond(server, stream=True))
    last = checked(events[-1]["response"])
    assert (events[-1]["type"], last["status"]) == ("response.failed", "failed")
    assert last["error"] == {"code": "server_error", "message": "Gone."}
    assert last["output"][0]["status"] == "incomplete" and last["output"][0]["content"][0]["text"] == "Hi"
    assert json.loads(server.get(f"/v1/responses/{last['id']}").body)["status"] == "failed"
    reply = respond(server)
    assert (reply.status, reply.error["code"]) == (503, "engine_dead")


def test_fields_without_effect_are_told_back() -> None:
    fields = {
        "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k", "user": "u", "max_tool_calls": 3,
        "instructions": "Be.", "store": False,
    }  # fmt: skip
    reply = respond(make_server(), service_tier="flex", **fields)
    body = reply.json()
    assert reply.headers["x-octavo-ignored-fields"] == "service_tier"
    assert {name: body[name] for name in fields} == fields and body["service_tier"] == "default"
    reply = respond(make_server(), frobnicate=1)
    assert reply.headers["x-octavo-ignored-fields"] == "frobnicate"
