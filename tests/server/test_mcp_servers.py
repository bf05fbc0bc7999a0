"""MCP servers that fail, are slow, or are not to be asked: what becomes of the response, and what is told to whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidConfig
from octavo.server.mcp.servers import check_mcp, servers_of
from octavo.server.mcp.transport import CheckedTransport
from server.test_mcp import items
from server.test_responses import checked, events_of, respond
from support import odd_mcp_server
from support.mcp_fakes import ADD, call_of, kinds, server_calling, tool_of
from support.mcp_server import Running, running
from support.server_fakes import drive


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


def odd(*args: str, **settings: Any) -> dict[str, Any]:
    server = {"command": sys.executable, "args": [odd_mcp_server.__file__, *args], "env": {"ODD_KEY": "operators-key"}}
    return {"mcp_servers": json.dumps({"odd": server}), **settings}


def test_a_server_that_repeats_itself_and_the_keys_it_was_given(caplog: pytest.LogCaptureFixture) -> None:
    server = server_calling(None, call_of("odd"), "Sorry.", **odd())
    body = respond(server, tools=[tool_of("odd")]).json()
    assert items(body) == ["mcp_list_tools", "mcp_call", "message"]
    listed, call, _ = body["output"]
    assert [(tool["name"], tool["description"]) for tool in listed["tools"]] == [("odd", "first")]
    assert [tool["function"]["name"] for tool in server.renderer.options["tools"]] == ["odd"]
    assert call["error"] == {"type": "mcp_protocol_error", "code": -32010, "message": "the key *** is not known"}
    assert "the key *** is not known" in caplog.text and "operators-key" not in caplog.text + json.dumps(body)


def test_a_server_that_leads_elsewhere_shows_no_path_of_its_url(caplog: pytest.LogCaptureFixture) -> None:
    with running() as run:
        run.status, run.location = 307, "http://elsewhere.example/operators-path/"
        servers = {"small": {"url": run.url.removesuffix("mcp") + "operators-path"}}
        body = respond(server_calling(run, "Hi", mcp_servers=json.dumps(servers)), tools=[tool_of()]).json()
    assert items(body) == ["mcp_list_tools", "message"]
    assert "Redirect to http://elsewhere.example***/ not followed" in body["output"][0]["error"]
    told = [record.getMessage() for record in caplog.records if record.name.startswith("octavo")]
    assert "operators-path" not in json.dumps([body, *told])


def test_arguments_that_no_server_could_get_leave_the_session_as_it_is() -> None:
    server = server_calling(None, call_of("count"), call_of("count", half="\ud800"), call_of("count"), "Done.")
    body = respond(server, tools=[tool_of()]).json()
    assert items(body) == ["mcp_list_tools", "mcp_call", "mcp_call", "mcp_call", "message"]
    first, half, second = body["output"][1:4]
    assert (first["output"], half["status"], second["output"]) == ("1", "failed", "2")
    assert half["error"]["message"] == "the arguments are no JSON object"


def test_a_list_of_pages_without_end_is_given_up_at_its_bound() -> None:
    server = server_calling(None, "Hi", **odd("endless", mcp_max_bytes=2500))
    body = respond(server, tools=[tool_of("odd")]).json()
    assert items(body) == ["mcp_list_tools", "message"] and "--mcp-max-bytes" in body["output"][0]["error"]


def test_a_name_that_a_list_has_again_and_again_is_one_tool(small: Running) -> None:
    """Names that tell them apart would grow with each, and with them the time in which nobody else is served."""
    tools = [{"name": "t", "description": str(i), "input_schema": {"type": "object"}} for i in range(1024)]
    given = [{"type": "mcp_list_tools", "server_label": "small", "tools": tools}, {"role": "user", "content": "Hello"}]
    server = server_calling(small, "Hi")
    assert items(respond(server, given, tools=[tool_of()]).json()) == ["message"]
    [shown] = server.renderer.options["tools"]
    assert (shown["function"]["name"], shown["function"]["description"]) == ("t", "0")


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


def test_a_client_that_leaves_ends_its_call() -> None:
    async def work() -> None:
        server = server_calling(run, call_of("wait"), "Never.")
        gone, told = asyncio.Event(), b""

        def on_write(data: bytes) -> None:
            nonlocal told
            told += data

        body = {"input": "Hello", "tools": [tool_of()], "stream": True}
        asked = asyncio.create_task(
            drive(server.app, "POST", "/v1/responses", body, disconnect=gone, on_write=on_write)
        )
        await asyncio.to_thread(run.waiting.wait, 20)
        gone.set()
        with contextlib.suppress(Exception):
            await asked
        response_id = json.loads(told.split(b"data: ")[1].split(b"\n")[0])["response"]["id"]
        kept = (await drive(server.app, "GET", f"/v1/responses/{response_id}")).json()
        assert (kept["status"], kept["output"][1]["status"]) == ("cancelled", "incomplete")
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
        ('{"a b": {"url": "http://a"}}', "a label has"),
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
