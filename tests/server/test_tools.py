"""Tool calls over the API: who may ask for what (F1 to F10), and what comes back, streamed and not (F20 to F30)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from support.server_fakes import make_server
from support.tool_fakes import CLOCK, ONE, TWO, WEATHER, calls_of, message_of, server_saying


# ------------------------------------------------------------------------------------------------ who may ask
def test_without_tools_everything_is_content_and_none_and_auto_are_taken() -> None:
    """F1, D6."""
    server = server_saying(ONE)
    for choice in (None, "none", "auto"):
        reply = server.chat(tool_choice=choice)
        assert reply.json()["choices"][0]["message"]["content"] == ONE
        assert "tool_calls" not in reply.json()["choices"][0]["message"]


def test_tools_without_a_choice_mean_auto_which_the_server_must_allow() -> None:
    """F2, F3."""
    assert calls_of(message_of(server_saying(ONE))[0]) == [("get_weather", {"city": "Oslo"})]
    for fields in ({}, {"tool_choice": "auto"}):
        error = server_saying(ONE, enable_auto_tool_choice=False).chat(tools=[WEATHER], **fields).error
        assert error["param"] == "tool_choice"
        assert "started with --enable-auto-tool-choice;" in error["message"]
    error = make_server().chat(tools=[WEATHER]).error
    assert "started with --enable-auto-tool-choice --tool-call-parser NAME" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),  # F8
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 300}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools.0.function.parameters"),
        ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools.0.type"),
        ({"tools": [WEATHER, WEATHER]}, "tools.1.function.name"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice"),  # F5
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            "tool_choice",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "required", "guided_regex": "a"}, "guided_regex"),  # D8
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
                "response_format": {"type": "json_object"},
            },
            "response_format",
        ),
        ({"tools": [WEATHER], "tool_choice": "required", "use_beam_search": True, "best_of": 2}, "tool_choice"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    server = server_saying(ONE)
    for stream in (False, True):
        error = server.chat(stream=stream, **fields).error
        assert error["param"] == param, error
    assert server.engine.requests == []


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "properties.a.uniqueItems"),
        ({"type": "banana"}, "type"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}, ""),
        ({"type": "array"}, ""),
        ({"properties": 3}, "properties"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_where_it_would_be(parameters: dict[str, Any], path: str) -> None:
    """F5, F6, F10, U3; the class of CVE-2025-48944: in a prompt alone a schema is just a text."""
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    strict = {"type": "function", "function": {"name": "f", "parameters": parameters, "strict": True}}
    server = server_saying(ONE)
    named = {"type": "function", "function": {"name": "f"}}
    for fields in (
        {"tools": [strict], "tool_choice": "required"},
        {"tools": [strict], "tool_choice": named},
        {"tools": [strict]},
    ):
        reply = server.chat(**fields)
        if parameters.get("properties", {}) != 3 and "pattern" in str(parameters):
            continue  # whether a pattern compiles is for the grammar checker, which is a fake here
        assert reply.status == 400
        where = f"tools.0.function.parameters{'.' if path else ''}{path}"
        assert reply.error["param"] == where
    for loose in ({}, {"tool_choice": "required"}, {"tool_choice": named}):
        assert server.chat(tools=[tool], **loose).status == 200


# ------------------------------------------------------------------------------------------------ what comes back
def test_auto_with_calls_gives_the_text_before_them_as_content() -> None:
    """F22, F26, F30."""
    message, reason = message_of(server_saying(TWO))
    assert message["content"] == "Let me see."
    assert calls_of(message) == [("get_weather", {"city": "Oslo"}), ("get_time", {})]
    assert reason == "tool_calls"
    message, _ = message_of(server_saying(ONE))
    assert message["content"] is None


def test_auto_without_calls_is_a_plain_reply() -> None:
    """F23."""
    message, reason = message_of(server_saying(" It rains.\n"))
    assert (message["content"], reason) == (" It rains.\n", "stop")
    assert "tool_calls" not in message


def test_what_is_no_call_is_content_whole() -> None:
    """F24."""
    text = "<tool_call>\nI would call the weather service.\n</tool_call>"
    message, reason = message_of(server_saying(text))
    assert (message["content"], reason) == (text, "stop")


def test_a_call_that_a_limit_cuts_off_keeps_its_reason() -> None:
    """F22, F27: what was written of the arguments is there, streamed and not."""
    message, reason = message_of(server_saying(ONE[: ONE.index("Oslo") + 2], reason="length"))
    assert reason == "length"
    [call] = message["tool_calls"]
    assert call["function"]["arguments"] == '{"city": "Os'


def test_choice_none_leaves_markup_alone() -> None:
    """F7, T29."""
    for exclude in (False, True):
        server = server_saying(ONE, exclude_tools_when_tool_choice_none=exclude)
        message, reason = message_of(server, tool_choice="none")
        assert (message["content"], reason) == (ONE, "stop")
        assert (server.renderer.options["tools"] is None) == exclude


def test_the_template_gets_the_tools_as_they_came() -> None:
    """C3, T7."""
    extra = {"type": "function", "x": 1, "function": {"name": "f", "y": [2], "strict": False}}
    server = server_saying(ONE)
    server.chat(tools=[WEATHER, extra])
    shown = {"type": "function", "x": 1, "function": {"name": "f", "y": [2]}}
    assert server.renderer.options["tools"] == [WEATHER, shown]


def test_one_call_when_parallel_calls_are_not_wanted() -> None:
    """F9."""
    message, reason = message_of(server_saying(TWO), parallel_tool_calls=False)
    assert calls_of(message) == [("get_weather", {"city": "Oslo"})]
    assert reason == "tool_calls"


def test_n_choices_have_calls_of_their_own() -> None:
    reply = server_saying(TWO).chat(tools=[WEATHER, CLOCK], n=2, temperature=1.0)
    ids = [[call["id"] for call in choice["message"]["tool_calls"]] for choice in reply.json()["choices"]]
    assert len({*ids[0], *ids[1]}) == 4


@pytest.mark.parametrize(
    ("tools", "text", "pattern"),
    [
        ("hermes", ONE, r"chatcmpl-tool-[0-9a-f]{32}"),
        (
            "kimi_k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_time:0<|tool_call_argument_begin|>{}"
            "<|tool_call_end|><|tool_calls_section_end|>",
            r"functions\.get_time:0",
        ),
    ],
)
def test_ids_have_the_style_of_the_format(tools: str, text: str, pattern: str) -> None:
    """F28."""
    message, _ = message_of(server_saying(text, tools=tools))
    assert re.fullmatch(pattern, message["tool_calls"][0]["id"])


def test_arguments_are_the_models_own_text_as_a_string() -> None:
    """F29, D15: neither written anew nor escaped."""
    written = '{ "city" :"Tromsø", "n":[1.0,2e3] }'
    text = f'<tool_call>{{"name": "get_weather", "arguments": {written}}}</tool_call>'
    message, _ = message_of(server_saying(text))
    assert message["tool_calls"][0]["function"]["arguments"] == written


def test_brackets_in_the_arguments_of_mistral_do_not_end_its_list() -> None:
    """D14."""
    arguments = [{"city": "a}]"}, {"city": "[{"}]
    calls = [{"name": "get_weather", "arguments": value} for value in arguments]
    message, _ = message_of(server_saying(f"[TOOL_CALLS] {json.dumps(calls)}", tools="mistral"))
    assert calls_of(message) == [("get_weather", value) for value in arguments]
    assert all(re.fullmatch("[A-Za-z0-9]{9}", call["id"]) for call in message["tool_calls"])  # C7


# ------------------------------------------------------------------------------------------------ forced calls
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_call_that_a_limit_cuts_off_at_once_leaves_no_markup(choice: Any) -> None:
    """F20, F26. A call whose name is there is a call, with the arguments that are."""
    for end in ("\n", '{"na', "weather"):
        message, reason = message_of(server_saying(ONE[: ONE.index(end)], reason="length"), tool_choice=choice)
        assert not message["content"] and "tool_calls" not in message and reason == "length"
    for end, arguments in (("arguments", ""), ('"city', "{"), ("slo", '{"city": "O')):
        message, reason = message_of(server_saying(ONE[: ONE.index(end)], reason="length"), tool_choice=choice)
        (call,) = message["tool_calls"]
        assert call["function"] == {"name": "get_weather", "arguments": arguments}
        assert not message["content"] and reason == "length"


def test_a_function_without_parameters_is_forced_to_take_none() -> None:
    """F5: as OpenAI has it, "omitting parameters defines a function with an empty parameter list"."""
    server = server_saying(ONE)
    message_of(server, tool_choice={"type": "function", "function": {"name": "get_time"}})
    grammar = server.engine.requests[0].params.grammar or ""
    assert r"\"additionalProperties\": false" in grammar or '"additionalProperties": false' in grammar, grammar


def test_a_named_function_is_forced_in_the_models_own_format() -> None:
    """C1, F5, F20, F21: finish "stop", content "". D5: `message_of` sees that a stream tells id and name once."""
    server = server_saying(ONE)
    named = {"type": "function", "function": {"name": "get_weather"}}
    message, reason = message_of(server, tool_choice=named)
    assert calls_of(message) == [("get_weather", {"city": "Oslo"})]
    assert (message["content"], reason) == ("", "stop")
    grammar = server.engine.requests[0].params.grammar or ""
    assert grammar.startswith("lark") and "get_weather" in grammar and "get_time" not in grammar


def test_a_named_function_needs_no_format() -> None:
    """C4: without one the whole text is the arguments."""
    server = server_saying('{"city": "Oslo"}', tools="", enable_auto_tool_choice=False)
    named = {"type": "function", "function": {"name": "get_weather"}}
    message, reason = message_of(server, tool_choice=named)
    assert message["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert (message["content"], reason) == ("", "stop")
    assert (server.engine.requests[0].params.grammar or "").startswith("json")


def test_required_forces_a_call_with_or_without_a_format() -> None:
    """C2, F6."""
    message, reason = message_of(server_saying(ONE), tool_choice="required")
    assert (calls_of(message), reason) == ([("get_weather", {"city": "Oslo"})], "tool_calls")
    text = '[{"name": "get_weather", "parameters": {"city": "Oslo"}}, {"name": "get_time", "parameters": {}}]'
    server = server_saying(text, tools="", enable_auto_tool_choice=False)
    message, reason = message_of(server, tool_choice="required")
    assert calls_of(message) == [("get_weather", {"city": "Oslo"}), ("get_time", {})]
    assert (message["content"], reason) == (None, "tool_calls")


def test_allowed_tools_narrow_the_choice_but_not_the_prompt() -> None:
    server = server_saying(ONE)
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_weather"}}]}
    message_of(server, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    grammar = server.engine.requests[0].params.grammar or ""
    assert "get_weather" in grammar and "get_time" not in grammar
    assert server.renderer.options["tools"] == [WEATHER, CLOCK]


def test_strict_functions_are_held_to_their_schema_in_auto_mode() -> None:
    """F10: by the request for one function, or by the server for all."""
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    for tools, level, has_grammar, has_schema in (
        ([WEATHER], "auto", False, False),
        ([strict], "auto", True, True),
        ([WEATHER], "function", True, False),
        ([WEATHER], "parameter", True, True),
    ):
        server = server_saying(ONE, tool_strict_level=level)
        message_of(server, tools=tools)
        grammar = server.engine.requests[0].params.grammar or ""
        assert bool(grammar) == has_grammar
        assert ("city" in grammar) == has_schema


def test_a_constraint_may_force_the_text_that_auto_reads() -> None:
    server = server_saying(ONE)
    message, _ = message_of(server, guided_choice=[ONE])
    assert calls_of(message) == [("get_weather", {"city": "Oslo"})]
    assert (server.engine.requests[0].params.grammar or "").startswith("choice")


def test_special_tokens_that_the_format_reads_are_shown_to_it() -> None:
    """S24, D13."""
    server = make_server(tools="hermes", enable_auto_tool_choice=True)
    server.chat(tools=[WEATHER])
    assert server.engine.requests[0].shown_special_ids == frozenset()
    assert server.model.output.special_tokens.within(["a <end> b"]) == {256}


# ------------------------------------------------------------------------------------------------ loose tools
def _tool(name: str, parameters: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


ODD: Any = {
    "type": "object",
    "properties": {"x": {"type": "string", "pattern": "^(?!-)[a-z]+$", "maxLength": 8}},
    "required": ["x"],
}


def test_one_odd_keyword_of_a_loose_tool_is_left_out_and_the_rest_is_held() -> None:
    named = {"type": "function", "function": {"name": "odd"}}
    for choice in ("required", named):
        server = server_saying(ONE)
        assert server.chat(tools=[WEATHER, _tool("odd", ODD)], tool_choice=choice).status == 200
        grammar = server.engine.requests[0].params.grammar or ""
        assert '"maxLength": 8' in grammar and "pattern" not in grammar
        error = server.chat(tools=[WEATHER, _tool("odd", ODD, strict=True)], tool_choice=choice).error
        assert error["param"] == "tools.1.function.parameters.properties.x.pattern"


def test_a_loose_tool_that_does_not_compile_is_held_by_names_and_types() -> None:
    """The checker here refuses every grammar in which the word `refused` stands."""
    tool = _tool("odd", {"type": "object", "properties": {"n": {"type": "integer"}, "x": {"const": "refused"}}})
    server = server_saying(ONE)
    assert server.chat(tools=[WEATHER, tool], tool_choice="required").status == 200
    grammar = server.engine.requests[0].params.grammar or ""
    assert "refused" not in grammar and "integer" in grammar and "city" in grammar
    tool["function"]["strict"] = True
    assert server.chat(tools=[WEATHER, tool], tool_choice="required").error["param"] == "tool_choice"


def test_descriptions_are_no_part_of_the_bound_on_grammars() -> None:
    wordy = [
        _tool(f"t{i}", {"type": "object", "properties": {"x": {"type": "string", "description": "word " * 800}}})
        for i in range(18)
    ]
    server = server_saying(ONE)
    assert server.chat(tools=wordy, tool_choice="required").status == 200
    long = _tool("f", {"type": "object", "properties": {"x": {"enum": ["y" * 70_000]}}})
    assert server.chat(tools=[WEATHER, long], tool_choice="required").status == 200
    assert "yyy" not in (server.engine.requests[-1].params.grammar or "")
    long["function"]["strict"] = True
    assert server.chat(tools=[WEATHER, long], tool_choice="required").error["param"] == "tools"


# ------------------------------------------------------------------------------------------------ beside a document
@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"k": {}}}}},
    ],
)
def test_the_model_may_call_beside_a_response_format(response_format: Any) -> None:
    server = server_saying(ONE)
    message, reason = message_of(server, response_format=response_format)
    assert (calls_of(message), reason) == ([("get_weather", {"city": "Oslo"})], "tool_calls")
    assert "get_weather" in (server.engine.requests[0].params.grammar or "")
    message, reason = message_of(server_saying('{"k": 1}'), response_format=response_format)
    assert (message["content"], reason) == ('{"k": 1}', "stop")


def test_other_constraints_leave_no_room_for_strict_calls() -> None:
    strict = _tool("f", {"type": "object"}, strict=True)
    error = server_saying(ONE).chat(tools=[strict], guided_regex="a+").error
    assert error["param"] == "guided_regex"
