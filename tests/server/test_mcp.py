"""Tools of MCP servers in /v1/responses: real servers of the package `mcp`, and a model that says what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai.types.conversations import ConversationItemList

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidConfig
from octavo.base.params import GenerateRequest
from octavo.client.generation import GenerationDelta
from octavo.server.mcp.servers import check_mcp, servers_of
from octavo.server.mcp.transport import CheckedTransport
from server.test_responses import checked, events_of, respond, without_ids
from support import mcp_server
from support.mcp_server import Running, running
from support.published import unknown_fields
from support.server_fakes import Server, answer, drive, make_server
from support.tool_fakes import CLOCK

STDIO = {"command": sys.executable, "args": [mcp_server.__file__]}
NEVER = {"require_approval": "never"}


def call_of(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


ADD = call_of("add", a=1, b=2)
#: A schema that no strict function may have.
REFUSED = {"type": "object", "properties": 5}


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with running() as run:
        yield run


@pytest.fixture
def small(shared: Running) -> Running:
    return shared.apart()


def server_calling(run: Running | None, *texts: str, reason: str = "stop", **settings: Any) -> Server:
    """A server that knows the MCP server `small`; the model says the texts one after the other, then the last again."""
    said = 0

    def script(request: GenerateRequest) -> Sequence[GenerationDelta]:
        nonlocal said
        said += 1
        return answer(texts[min(said, len(texts)) - 1], reason=reason)

    servers = {"small": {"url": run.url, "headers": {"X-Operator": "o-secret"}} if run is not None else STDIO}
    settings = {"mcp_servers": json.dumps(servers), "enable_auto_tool_choice": True} | settings
    return make_server(script, tools="hermes", **settings)


def tool_of(label: str = "small", **fields: Any) -> dict[str, Any]:
    return {"type": "mcp", "server_label": label, **NEVER, **fields}


def kinds(events: Sequence[Any]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


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


# ---------------------------------------------------------------- servers that fail
def test_a_server_that_cannot_be_asked_is_a_list_that_failed(small: Running) -> None:
    closed = {"mcp_servers": json.dumps({"small": {"url": "http://127.0.0.1:9/mcp"}})}
    server = server_calling(small, "Hi", **closed)
    events = events_of(respond(server, tools=[tool_of()], stream=True))
    body = events[-1]["response"]
    assert items(body) == ["mcp_list_tools", "message"] and "cannot be reached" in body["output"][0]["error"]
    assert "mcp_list_tools.failed" in kinds(events) and body["status"] == "completed"
    # A name that leads to this machine, in a URL of a request's.
    own = server_calling(small, "Hi", mcp_allowed_domains=["*"])
    url = small.url.replace("127.0.0.1", "localhost")
    before = len(small.requests)
    body = respond(own, tools=[tool_of("mine", server_url=url)]).json()
    assert "not on the public internet" in body["output"][0]["error"] and len(small.requests) == before
    # The operator's own URL may be named, and a failed list is asked for again.
    again = respond(own, tools=[tool_of("mine", server_url=small.url)], previous_response_id=body["id"]).json()
    assert items(again) == ["mcp_list_tools", "message"] and again["output"][0]["error"] is None


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "says"),
    [
        ("fail", {"why": "because"}, "mcp_tool_execution_error", "Error executing tool fail"),
        ("write", {"chars": 3000}, "mcp_protocol_error", "--mcp-max-bytes"),
        ("wait", {}, "mcp_protocol_error", "--mcp-timeout"),
        ("add", {"a": "x"}, "mcp_tool_execution_error", "validation error"),
    ],
)
def test_a_call_that_fails_is_an_item_and_the_model_is_told(
    small: Running, name: str, arguments: dict[str, Any], kind: str, says: str
) -> None:
    server = server_calling(small, call_of(name, **arguments), "Sorry.", mcp_timeout=1.0, mcp_max_bytes=2500)
    events = events_of(respond(server, tools=[tool_of()], stream=True))
    body = events[-1]["response"]
    assert items(body) == ["mcp_list_tools", "mcp_call", "message"] and body["status"] == "completed"
    call = body["output"][1]
    assert (call["status"], call["output"], call["error"]["type"]) == ("failed", None, kind)
    assert says in json.dumps(call["error"]) and says in server.renderer.messages[-1]["content"]
    assert "mcp_call.failed" in kinds(events)


def test_a_server_that_answers_with_an_http_error() -> None:
    with running() as run:
        server = server_calling(run, ADD, "Sorry.")
        first = respond(server, tools=[tool_of()]).json()
        run.status = 503
        body = respond(server, tools=[tool_of()], input=first["output"] + [{"role": "user", "content": "?"}]).json()
        assert items(body) == ["message"]  # the model said no more calls; now it wants one:
        body = respond(server_calling(run, ADD, "Sorry."), first["output"], tools=[tool_of()]).json()
        [call, _] = checked(body)["output"]
        assert call["error"] == {
            "type": "http_error",
            "code": 503,
            "message": "the server answers with the HTTP status 503",
        }


# ---------------------------------------------------------------- bounds
@pytest.mark.parametrize(("fields", "flag"), [({"max_tool_calls": 2}, 32), ({}, 2), ({"max_tool_calls": 9}, 2)])
def test_a_model_that_calls_for_ever_is_stopped(small: Running, fields: dict[str, Any], flag: int) -> None:
    server = server_calling(small, f"{ADD}\n{ADD}\n{ADD}", "3, then.", mcp_max_calls=flag)
    body = respond(server, tools=[tool_of()], **fields).json()
    assert items(body) == ["mcp_list_tools", "mcp_call", "mcp_call", "mcp_call", "message"]
    assert [item["status"] for item in body["output"][1:4]] == ["completed", "completed", "failed"]
    assert "no call is left" in body["output"][3]["error"]["message"]
    endless = server_calling(small, ADD, mcp_max_calls=flag)
    body = respond(endless, tools=[tool_of()], **fields).json()
    assert [item["type"] for item in body["output"]].count("mcp_call") == 2
    # Then no call is looked for: what the model says is text.
    assert body["output"][-1]["type"] == "message" and len(endless.engine.requests) == 3


def test_the_bound_on_tokens_is_that_of_all_rounds(small: Running) -> None:
    most = len(ADD) + 4
    server = server_calling(small, ADD, "It is 3.")
    body = respond(server, tools=[tool_of()], max_output_tokens=most).json()
    assert [request.params.max_tokens for request in server.engine.requests] == [most, 4]
    server = server_calling(small, ADD, "It is 3.")
    body = respond(server, tools=[tool_of()], max_output_tokens=len(ADD)).json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert items(body) == ["mcp_list_tools", "mcp_call"] and len(server.engine.requests) == 1
    cut = respond(server_calling(small, ADD[:-24], reason="length"), tools=[tool_of()]).json()
    assert (cut["status"], cut["output"][1]["status"], cut["output"][1]["output"]) == ("incomplete", "incomplete", None)


def test_what_fails_behind_a_call_is_a_response_that_failed(small: Running) -> None:
    """Its status would have clients ask again, and the calls be made again."""
    server = server_calling(small, call_of("write", chars=600), "Never.")
    reply = respond(server, tools=[tool_of()])
    body = checked(reply.json())
    assert (reply.status, body["status"], body["error"]["code"]) == (200, "failed", "invalid_prompt")
    assert body["output"][1]["status"] == "completed" and "context" in body["error"]["message"]


# ---------------------------------------------------------------- cancelled
def test_a_cancelled_response_ends_its_call_and_its_session() -> None:
    async def work() -> None:
        server = server_calling(run, call_of("wait"), "Never.")
        body = {"input": "Hello", "tools": [tool_of()], "background": True, "stream": False}
        made = (await drive(server.app, "POST", "/v1/responses", body)).json()
        assert made["status"] == "queued"
        path = f"/v1/responses/{made['id']}"
        await asyncio.to_thread(run.waiting.wait, 20)
        ended = (await drive(server.app, "POST", f"{path}/cancel", {})).json()
        assert ended["status"] == "cancelled"
        assert [item["type"] for item in ended["output"]] == ["mcp_list_tools", "mcp_call"]
        assert ended["output"][1]["status"] == "incomplete"
        await server.state.close()

    with running() as run:
        asyncio.run(asyncio.wait_for(work(), 30))
        assert run.cancelled.wait(10) and run.num_sessions == 0


def test_in_the_background_with_a_stream_that_is_read_later(small: Running) -> None:
    async def work() -> None:
        server = server_calling(small, ADD, "It is 3.")
        body = {"input": "Hello", "tools": [tool_of()], "background": True, "stream": True}
        events = events_of(await drive(server.app, "POST", "/v1/responses", body))
        assert kinds(events)[:3] == ["created", "queued", "in_progress"] and kinds(events)[-1] == "completed"
        again = await drive(server.app, "GET", f"/v1/responses/{events[0]['response']['id']}?stream=true")
        assert events_of(again) == events
        await server.state.close()

    asyncio.run(asyncio.wait_for(work(), 30))


# ---------------------------------------------------------------- secrets
def test_secrets_are_told_to_the_server_and_to_nobody_else(
    shared: Running, small: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    before = len(shared.requests)
    path = tmp_path / "kept.db"
    url = small.url.replace("caller", "key=q-secret&caller")
    servers = {"small": {"url": url, "headers": {"X-Operator": "o-secret"}}}
    server = server_calling(small, ADD, "3.", responses_store=str(path), mcp_servers=json.dumps(servers))
    tool = tool_of(headers={"X-Caller": "c-secret"}, authorization="a-secret", server_url=url)
    reply = respond(server, tools=[tool], stream=True)
    assert items(events_of(reply)[-1]["response"]) == ["mcp_list_tools", "mcp_call", "message"]
    asked = shared.requests[before:]
    assert len(asked) > 3
    for _, headers in asked:
        assert headers["x-operator"] == "o-secret" and headers["x-caller"] == "c-secret"
        assert headers["authorization"] == "Bearer a-secret"
    shown = events_of(reply)[-1]["response"]["tools"][0]
    assert shown["server_url"] == small.url.partition("mcp")[0] + "<redacted>" and shown["headers"] is None
    assert b"secret" not in reply.body
    asyncio.run(server.state.close())
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"secret" not in kept
    told = [(record.name, record.getMessage()) for record in caplog.records if not record.name.startswith("uvicorn")]
    assert not [line for line in told if "secret" in line[1]]
    assert "secret" not in repr(server.state.mcp.named("small", ""))


# ---------------------------------------------------------------- addresses
def test_what_is_checked_is_what_is_connected_to(small: Running) -> None:
    port, _, path = small.url.split(":")[2].partition("/")
    asked: list[tuple[str, int]] = []

    async def sent(*addresses: str) -> CheckedTransport:
        async def resolve(host: str, port: int) -> list[str]:
            asked.append((host, port))
            return list(addresses)

        transport = CheckedTransport(1000, lambda address: str(address) == "127.0.0.1", resolver=resolve)
        async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
            with contextlib.suppress(httpx2.NetworkError):
                await client.post(f"http://mcp.example.org:{port}/{path}", content=b"{}")
        return transport

    assert asyncio.run(sent("127.0.0.1")).failure is None
    assert small.requests[-1][1]["host"] == f"mcp.example.org:{port}" and asked == [("mcp.example.org", int(port))]
    before = len(small.requests)
    for addresses in (("127.0.0.1", "10.0.0.1"), ("::1",), ()):
        assert asyncio.run(sent(*addresses)).failure == "its host is not on the public internet"
    assert len(small.requests) == before


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_the_certificate_must_be_of_the_name(tmp_path: Path) -> None:
    files = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-out", files[0], "-keyout", files[1]]
    named = ["-subj", "/CN=a", "-addext", "subjectAltName=DNS:mcp.example.org"]
    subprocess.run([*make, *named], check=True, capture_output=True)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(*files)
    trusting = ssl.create_default_context(cafile=files[0])

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        writer.close()

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async def work() -> None:
        async with await asyncio.start_server(answered, "127.0.0.1", 0, ssl=serving) as server:
            port = server.sockets[0].getsockname()[1]
            for name, failure in (("mcp.example.org", None), ("other.example.org", "the server cannot be reached")):
                transport = CheckedTransport(1000, lambda address: True, resolver=resolve, tls=trusting)
                async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
                    with contextlib.suppress(httpx2.NetworkError):
                        assert (await client.post(f"https://{name}:{port}/")).text == "ok"
                assert transport.failure == failure

    asyncio.run(asyncio.wait_for(work(), 20))


# ---------------------------------------------------------------- flags
def test_the_servers_of_the_operator(tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    file.write_text(json.dumps({"mcpServers": {"a": {"type": "stdio", "command": "x", "args": ["y"]}}}))
    assert servers_of(str(file))["a"].args == ("y",)
    assert servers_of('{"a": {"url": "http://LOCALHOST:80/mcp"}}')["a"].url == "http://localhost/mcp"
    for text, says in (
        ('{"a": {}}', "either `url` or `command`"),
        ('{"a": {"url": "x"}}', "URL cannot be asked"),
        ('{"a": {"url": "http://a", "headers": {"Host": "b"}}}', "Host"),
        ('{"a": {"command": "x", "arg": []}}', "no key 'arg'"),
        ('{"a": {"command": "x", "args": "y"}}', "list of texts"),
        ('{"a": {"url": "http://a", "type": "sse"}}', "'sse'"),
        ('{"a": {"command": "x", "cwd": "/no/such/place"}}', "no directory"),
        ("/no/such/file.json", "cannot be read"),
        ("{", "not valid JSON"),
    ):
        with pytest.raises(InvalidConfig, match="--mcp-servers") as caught:
            check_mcp(ServerConfig(mcp_servers=text))
        assert says in str(caught.value)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidConfig, match=r"octavo\[mcp\]"):
        check_mcp(ServerConfig(mcp_allowed_domains=["*"]))
    check_mcp(ServerConfig())
