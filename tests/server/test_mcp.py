"""Tools of MCP servers in /v1/responses: real servers of the package `mcp`, and a model that says what a test wants."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.conversations import ConversationItemList

from server.test_responses import checked, events_of, respond, without_ids
from support.mcp_fakes import ADD, call_of, kinds, server_calling, tool_of
from support.mcp_server import Running
from support.published import unknown_fields
from support.tool_fakes import CLOCK

#: A schema that no strict function may have.
REFUSED = {"type": "object", "properties": 5}


def items(body: Any) -> list[str]:
    return [item["type"] for item in checked(body)["output"]]


# ---------------------------------------------------------------- a call
def test_a_call_is_made_and_the_model_goes_on_behind_it(small: Running) -> None:
    server = server_calling(small, f"Let me see. {ADD}", "It is 3.")
    whole = checked(respond(server, tools=[tool_of()]).json())
    listed, said, call, text = whole["output"]
    assert (listed["type"], listed["server_label"], listed["error"]) == ("mcp_list_tools", "small", None)
    assert [tool["name"] for tool in listed["tools"]] == ["add", "fail", "write", "environment", "count", "wait"]
    assert listed["tools"][0]["annotations"] == {"readOnlyHint": True}
    assert said["content"][0]["text"] == "Let me see." and text["content"][0]["text"] == "It is 3."
    assert call == {
        "id": call["id"], "type": "mcp_call", "status": "completed", "server_label": "small", "name": "add",
        "arguments": '{"a": 1, "b": 2}', "output": "3", "error": None, "approval_request_id": None,
    }  # fmt: skip
    assert whole["status"] == "completed"
    assert len(server.engine.requests) == 2
    assert whole["usage"]["input_tokens"] == 5 + 5
    assert whole["usage"]["output_tokens"] == len(f"Let me see. {ADD}") + len("It is 3.")
    _, asked, gave = server.renderer.messages
    assert asked["content"] == "Let me see." and gave["content"] == "3" and gave["name"] == "add"
    assert asked["tool_calls"][0]["id"] == gave["tool_call_id"] == call["id"]
    [shown, *_] = server.renderer.options["tools"]
    assert shown["function"]["name"] == "add" and shown["function"]["parameters"]["required"] == ["a", "b"]


def test_the_stream_tells_the_same_with_the_published_events(small: Running) -> None:
    server = server_calling(small, ADD, "It is 3.")
    events = events_of(respond(server, tools=[tool_of()], stream=True))
    again = respond(server_calling(small, ADD, "It is 3."), tools=[tool_of()]).json()
    assert without_ids(checked(events[-1]["response"])) == without_ids(again)
    found = kinds(events)
    assert [kind for kind in found if not kind.endswith(".delta")] == [
        "created", "in_progress",
        "output_item.added", "mcp_list_tools.in_progress", "mcp_list_tools.completed", "output_item.done",
        "output_item.added", "mcp_call.in_progress", "mcp_call_arguments.done", "mcp_call.completed",
        "output_item.done", "output_item.added", "content_part.added",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    arguments = "".join(e["delta"] for e in events if e["type"] == "response.mcp_call_arguments.delta")
    assert arguments == '{"a": 1, "b": 2}'
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]


def test_over_stdio_with_a_session_that_lasts_as_long_as_the_response() -> None:
    server = server_calling(None, call_of("count"), call_of("count"), "Done.")
    body = respond(server, tools=[tool_of()]).json()
    assert items(body) == ["mcp_list_tools", "mcp_call", "mcp_call", "message"]
    assert [item["output"] for item in body["output"][1:3]] == ["1", "2"]
    refused = respond(server, tools=[tool_of(authorization="x")])
    assert (refused.status, refused.error["param"]) == (400, "tools.0.authorization")


def test_a_later_response_knows_the_tools_and_the_calls(small: Running) -> None:
    server = server_calling(small, ADD, "It is 3.", ADD, "Still 3.")
    first = respond(server, tools=[tool_of()]).json()
    before = len(small.requests)
    second = respond(server, "Again", tools=[tool_of()], previous_response_id=first["id"]).json()
    assert items(second) == ["mcp_call", "message"] and second["output"][0]["output"] == "3"
    assert [method for method, _ in small.requests[before:]].count("POST") == 3  # begun, told so, called: no list
    roles = [message["role"] for message in server.renderer.messages]
    assert roles == ["user", "assistant", "tool", "assistant", "user", "assistant", "tool"]
    # The same from the items themselves, for a caller who keeps them.
    given = [{"role": "user", "content": "Hello"}, *first["output"], {"role": "user", "content": "Again"}]
    alone = server_calling(small, ADD, "Still 3.")
    assert without_ids(respond(alone, given, tools=[tool_of()], store=False).json()["output"]) == without_ids(
        second["output"]
    )
    assert [m["content"] for m in alone.renderer.messages] == [m["content"] for m in server.renderer.messages]
    count = server.post("/v1/responses/input_tokens", {"input": "Hello", "tools": [tool_of()]})
    assert count.json()["input_tokens"] == len("user:Hello")


def test_a_function_of_the_callers_beside_a_call_is_left_to_the_caller(small: Running) -> None:
    server = server_calling(small, f"{ADD}\n{call_of('get_time')}", "Never said.")
    events = events_of(respond(server, tools=[{"type": "function", **CLOCK["function"]}, tool_of()], stream=True))
    assert items(events[-1]["response"]) == ["mcp_list_tools", "mcp_call", "function_call"]
    assert events[-1]["response"]["output"][1]["output"] == "3"
    assert events[-1]["response"]["status"] == "completed" and len(server.engine.requests) == 1
    # The call of the server is made when the model has written all of its calls.
    at = [(e["type"].removeprefix("response."), e.get("output_index")) for e in events]
    assert at.index(("mcp_call.completed", 1)) > at.index(("output_item.done", 2))


def test_equal_names_are_told_apart(small: Running) -> None:
    mine = {"type": "function", "name": "add", "parameters": {"type": "object"}}
    server = server_calling(small, call_of("small__add", a=1, b=2), "3.")
    body = respond(server, tools=[mine, tool_of()]).json()
    assert items(body) == ["mcp_list_tools", "mcp_call", "message"]
    assert body["output"][1]["name"] == "add" and body["output"][1]["status"] == "completed"
    names = [tool["function"]["name"] for tool in server.renderer.options["tools"]]
    assert names[:2] == ["add", "small__add"]
    assert server.renderer.messages[1]["tool_calls"][0]["function"]["name"] == "small__add"


# ---------------------------------------------------------------- approval
def test_a_call_waits_for_its_approval(small: Running) -> None:
    server = server_calling(small, ADD, "It is 3.", "It is not.")
    asks = tool_of(require_approval=None)
    events = events_of(respond(server, tools=[asks], stream=True))
    first = events[-1]["response"]
    assert items(first) == ["mcp_list_tools", "mcp_approval_request"]
    wanted = first["output"][1]
    assert (wanted["name"], wanted["arguments"]) == ("add", '{"a": 1, "b": 2}')
    assert kinds(events)[-3:] == ["output_item.added", "output_item.done", "completed"]
    yes = {"type": "mcp_approval_response", "approval_request_id": wanted["id"], "approve": True}
    chain: dict[str, Any] = {"tools": [asks], "previous_response_id": first["id"]}
    second = respond(server, [yes], **chain).json()
    assert items(second) == ["mcp_call", "message"]
    call = second["output"][0]
    assert (call["approval_request_id"], call["output"]) == (wanted["id"], "3")
    assert [m["role"] for m in server.renderer.messages] == ["user", "assistant", "tool"]
    third = respond(server, [yes | {"approve": False, "reason": "No sums."}], **chain).json()
    assert items(third) == ["message"]
    assert server.renderer.messages[-1]["content"] == "The call was not approved: No sums."
    # A call without its request, of a caller who has left that out.
    alone = server_calling(small, "Yes.")
    assert items(respond(alone, [second["output"][0]], tools=[asks]).json()) == ["mcp_list_tools", "message"]
    assert [m["role"] for m in alone.renderer.messages] == ["assistant", "tool"]
    # An approval is used once.
    respond(server, "More", tools=[asks], previous_response_id=second["id"])
    assert [m["role"] for m in server.renderer.messages] == ["user", "assistant", "tool", "assistant", "user"]
    for wrong, fields, param in (
        ([yes | {"approval_request_id": "mcpr_no"}], chain, "input.0.approval_request_id"),
        ([yes, yes], chain, "input.1.approval_request_id"),
        ([yes], {"previous_response_id": first["id"]}, "input.0.approval_request_id"),
    ):
        refused = respond(server, wrong, **fields)
        assert (refused.status, refused.error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("approval", "asks"),
    [
        ("never", False),
        ("always", True),
        ({"never": {"tool_names": ["add"]}}, False),
        ({"never": {"tool_names": ["fail"]}}, True),
        ({"always": {"tool_names": ["fail"]}}, False),
        ({"never": {"read_only": True}}, False),
        ({"always": {"read_only": False}}, False),
    ],
)
def test_which_calls_need_approval(small: Running, approval: Any, asks: bool) -> None:
    body = respond(server_calling(small, ADD, "3."), tools=[tool_of(require_approval=approval)]).json()
    assert ("mcp_approval_request" in items(body)) is asks
    assert body["tools"][0]["require_approval"] == approval


# ---------------------------------------------------------------- which tools
def test_only_tools_that_are_allowed_are_offered_and_called(small: Running) -> None:
    def names(**fields: Any) -> list[str]:
        server = server_calling(small, "Hi")
        assert respond(server, tools=[tool_of(**fields)]).status == 200
        return [tool["function"]["name"] for tool in server.renderer.options["tools"] or ()]

    assert names(allowed_tools=["write", "add"]) == ["add", "write"]
    assert names(allowed_tools={"read_only": True}) == ["add"]
    assert names(allowed_tools={"read_only": False, "tool_names": ["add", "fail"]}) == ["fail"]
    forged = [
        {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "small", "name": "fail", "arguments": "{}"},
        {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
    ]
    body = respond(server_calling(small, "Hi"), forged, tools=[tool_of(allowed_tools=["add"])]).json()
    [call] = [item for item in checked(body)["output"] if item["type"] == "mcp_call"]
    assert call["status"] == "failed" and "does not allow" in call["error"]["message"]


def test_a_choice_holds_for_the_first_call(small: Running) -> None:
    add = {"type": "mcp", "server_label": "small", "name": "add"}
    for choice in ("required", add, {"type": "mcp", "server_label": "small"},
                   {"type": "allowed_tools", "mode": "required", "tools": [add]}):  # fmt: skip
        server = server_calling(small, ADD, "It is 3.")
        body = respond(server, tools=[tool_of()], tool_choice=choice).json()
        assert items(body)[-2:] == ["mcp_call", "message"]
        if choice != {"type": "allowed_tools", "mode": "required", "tools": [add]}:
            assert body["tool_choice"] == choice
        first, second = server.engine.requests
        assert first.params.grammar and not second.params.grammar
    server = server_calling(small, "Hi")
    assert respond(server, tools=[tool_of()], tool_choice={"type": "mcp", "server_label": "x"}).status == 400
    late = respond(server, tools=[tool_of()], tool_choice=add | {"name": "no"})
    assert (late.status, late.error["param"]) == (400, "tool_choice")
    assert items(respond(server, tools=[tool_of()], tool_choice="none").json()) == ["mcp_list_tools", "message"]


def test_what_is_wrong_with_a_request_is_said_before_a_server_is_asked(small: Running) -> None:
    server = server_calling(small, "Hi", mcp_allowed_domains=["example.org"])
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tools": [tool_of()], "temperature": -1}, "temperature"),
        ({"tools": [tool_of("other")]}, "tools.0.server_label"),
        ({"tools": [tool_of(connector_id="gmail")]}, "tools.0.connector_id"),
        ({"tools": [tool_of(server_url="http://127.0.0.1:1/mcp")]}, "tools.0.server_url"),
        ({"tools": [tool_of(server_url="ftp://example.org/")]}, "tools.0.server_url"),
        ({"tools": [tool_of(server_url="http://user:pass@example.org/")]}, "tools.0.server_url"),
        ({"tools": [tool_of(), tool_of()]}, "tools"),
        ({"tools": [tool_of("a b")]}, "tools.0.server_label"),
        ({"tools": [tool_of(headers={"Host": "x"})]}, "tools.0.headers"),
        ({"tools": [tool_of(headers={"X-A": "a\nb"})]}, "tools.0.headers"),
        ({"tools": [tool_of(authorization="a\r\nb")]}, "tools.0.authorization"),
        ({"tools": [tool_of(require_approval="sometimes")]}, "tools.0.require_approval"),
        ({"tools": [tool_of(defer_loading=True)]}, "tools.0.defer_loading"),
        ({"tools": [tool_of(tunnel_id="t")]}, "tools.0.tunnel_id"),
        ({"tools": [tool_of(), {"type": "function", "name": "f", "strict": True, "parameters": REFUSED}]}, "tools.1"),
    ]
    for fields, param in wrong:
        reply = respond(server, **fields)
        assert reply.status == 400 and reply.error["param"].startswith(param), fields
    assert small.requests == []
    # A command is the operator's alone: of a request it is no field at all.
    [shown] = respond(server, tools=[tool_of(command="sh")]).json()["tools"]
    assert "server_label" in shown and "command" not in shown
    error = respond(server_calling(small, "Hi", enable_auto_tool_choice=False), tools=[tool_of()]).error
    assert error["param"] == "tool_choice" and "--enable-auto-tool-choice" in error["message"]


def test_a_conversation_keeps_the_list_and_the_calls(small: Running) -> None:
    server = server_calling(small, ADD, "It is 3.", "Still.")
    talk = server.post("/v1/conversations", {}).json()["id"]
    assert items(respond(server, tools=[tool_of()], conversation=talk).json())[-1] == "message"
    kept = server.get(f"/v1/conversations/{talk}/items?order=asc").json()
    assert not list(unknown_fields(ConversationItemList.model_validate(kept, strict=True)))
    assert [item["type"] for item in kept["data"]] == ["message", "mcp_list_tools", "mcp_call", "message"]
    assert items(respond(server, "More", tools=[tool_of()], conversation=talk).json()) == ["message"]
    assert [m["role"] for m in server.renderer.messages] == ["user", "assistant", "tool", "assistant", "user"]


def test_schemas_of_tools_are_heeded_as_those_of_functions(small: Running) -> None:
    def answered(schema: Any, **fields: Any) -> Any:
        tools = [{"name": "odd", "input_schema": schema}]
        listed = {"type": "mcp_list_tools", "server_label": "small", "tools": tools}
        server = server_calling(small, call_of("odd", a=1), "Done.")
        given = [listed, {"role": "user", "content": "Hello"}]
        return server, respond(server, given, tools=[tool_of()], **fields)

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    server, reply = answered(schema, tool_choice="required")
    assert reply.status == 200 and "odd" in server.engine.requests[0].params.grammar
    # Known to the conversation, and not to the server: it says so itself.
    assert "Unknown tool" in json.dumps(checked(reply.json())["output"][0]["error"])
    server, reply = answered({"type": "object", "properties": 5}, tool_choice="required")  # held to what can be held
    assert reply.status == 200 and "odd" in server.engine.requests[0].params.grammar
