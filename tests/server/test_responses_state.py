"""What is kept of responses and conversations: for whom, how long, and in which state each ends."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types.conversations import Conversation, ConversationItemList
from openai.types.responses import ResponseItemList

from octavo.base.errors import EngineDead, InvalidConfig
from octavo.base.params import GenerateRequest
from octavo.launch.in_process import _lifespan
from octavo.server.responses.store import LOST
from server.test_responses import TOOLS, checked, events_of, respond
from support.published import unknown_fields
from support.server_fakes import Reply, Server, answer, drive, make_server
from support.tool_fakes import ONE, server_saying


def delete(server: Server, path: str, headers: dict[str, str] | None = None) -> Reply:
    return asyncio.run(drive(server.app, "DELETE", path, None, headers))


def prompt_of(server: Server, index: int = -1) -> str:
    return "".join(map(chr, server.engine.requests[index].prompt_token_ids))


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


# ---------------------------------------------------------------- one after the other
def test_n2_a_response_goes_on_from_another() -> None:
    server = make_server()
    first = respond(server, "One", instructions="Be kind.").json()
    second = respond(server, "Two", previous_response_id=first["id"]).json()
    assert prompt_of(server) == "user:One\nassistant:Hi!\nuser:Two"  # instructions are not carried over
    third = respond(server, "Three", previous_response_id=second["id"], store=False).json()
    assert prompt_of(server) == "user:One\nassistant:Hi!\nuser:Two\nassistant:Hi!\nuser:Three"
    assert third["previous_response_id"] == second["id"]
    assert server.get(f"/v1/responses/{third['id']}").status == 404
    assert server.get(f"/v1/responses/{first['id']}").json() == first
    count = server.post("/v1/responses/input_tokens", {"previous_response_id": second["id"]}).json()
    assert count["input_tokens"] == len("user:One\nassistant:Hi!\nuser:Two\nassistant:Hi!")


def test_a_call_and_its_output_go_on_from_a_response() -> None:
    server = server_saying(ONE)
    first = respond(server, "Weather?", tools=TOOLS).json()
    call = first["output"][0]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "Rain"}
    assert respond(server, [output], previous_response_id=first["id"], tools=TOOLS).status == 200
    _, said, gave = server.renderer.messages
    assert said["tool_calls"][0]["id"] == gave["tool_call_id"] == call["call_id"]
    wrong = respond(server, [output | {"call_id": "x"}], previous_response_id=first["id"])
    assert wrong.error["param"] == "input.0.call_id"


def test_an_item_can_be_named_instead_of_sent() -> None:
    server = make_server()
    first = respond(server, "One").json()
    item = {"type": "item_reference", "id": first["output"][0]["id"]}
    asked = server.get(f"/v1/responses/{first['id']}/input_items").json()["data"][0]
    assert respond(server, [{"id": asked["id"]}, item, {"role": "user", "content": "Two"}]).status == 200
    assert prompt_of(server) == "user:One\nassistant:Hi!\nuser:Two"


def test_what_ended_badly_is_no_beginning() -> None:
    server = make_server(lambda request: [answer("Hi")[0], EngineDead("Gone.")])
    failed = events_of(respond(server, stream=True))[-1]["response"]
    error = respond(server, previous_response_id=failed["id"]).error
    assert error["param"] == "previous_response_id" and "failed" in error["message"]


def test_a_chain_with_a_deleted_response_says_which() -> None:
    server = make_server()
    first = respond(server).json()
    second = respond(server, previous_response_id=first["id"]).json()
    reply = delete(server, f"/v1/responses/{first['id']}")
    assert reply.json() == {"id": first["id"], "object": "response", "deleted": True}
    assert delete(server, f"/v1/responses/{first['id']}").status == 404
    error = respond(server, previous_response_id=second["id"]).error
    assert error["param"] == "previous_response_id" and first["id"] in error["message"]


def test_input_items_are_listed_in_pages() -> None:
    server = make_server()
    items = [{"role": "user", "content": str(i)} for i in range(5)]
    path = f"/v1/responses/{respond(server, items).json()['id']}/input_items"
    page = server.get(f"{path}?limit=2&order=asc").json()
    assert not list(unknown_fields(ResponseItemList.model_validate(page, strict=True)))
    texts = [item["content"][0]["text"] for item in page["data"]]
    assert (texts, page["has_more"], page["last_id"]) == (["0", "1"], True, page["data"][1]["id"])
    rest = server.get(f"{path}?order=asc&after={page['last_id']}").json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["2", "3", "4"] and not rest["has_more"]
    assert [item["content"][0]["text"] for item in server.get(path).json()["data"]] == ["4", "3", "2", "1", "0"]
    for query, param in (("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=no", "after")):
        assert server.get(f"{path}?{query}").error["param"] == param


# ---------------------------------------------------------------- keys
def test_n4_another_key_finds_nothing() -> None:
    server = make_server(api_key=["one", "two"], admin_api_key="boss")
    mine, other, boss = ({"authorization": f"Bearer {key}"} for key in ("one", "two", "boss"))
    response = server.post("/v1/responses", {"input": "a"}, mine).json()
    talk = server.post("/v1/conversations", {"items": [{"role": "user", "content": "a"}]}, mine).json()
    item = server.get(f"/v1/conversations/{talk['id']}/items", mine).json()["data"][0]
    paths = [f"/v1/responses/{response['id']}", f"/v1/conversations/{talk['id']}"]
    paths += [f"{paths[0]}/input_items", f"{paths[1]}/items", f"{paths[1]}/items/{item['id']}"]
    for headers in (other, boss):
        for path in paths:
            assert server.get(path, headers).status == 404
        for path in (*paths[:2], paths[4]):
            assert delete(server, path, headers).status == 404
        for path, body in ((f"{paths[0]}/cancel", None), (paths[1], {"metadata": {}}), (paths[3], {"items": []})):
            assert server.post(path, body, headers).status == 404
        for fields in (
            {"previous_response_id": response["id"]}, {"conversation": talk["id"]},
            {"input": [{"type": "item_reference", "id": item["id"]}]},
            {"input": [{"type": "item_reference", "id": response["output"][0]["id"]}]},
        ):  # fmt: skip
            assert server.post("/v1/responses", {"input": "a", **fields}, headers).status == 404
    assert all(server.get(path, mine).status == 200 for path in paths)


# ---------------------------------------------------------------- conversations
def test_n30_a_conversation_takes_what_was_asked_and_said() -> None:
    server = make_server()
    made = server.post("/v1/conversations", {"metadata": {"a": "b"}}).json()
    Conversation.model_validate(made, strict=True)
    path = f"/v1/conversations/{made['id']}"
    body = respond(server, "One", conversation=made["id"]).json()
    assert body["conversation"] == {"id": made["id"]}
    assert respond(server, "Two", conversation={"id": made["id"]}, store=False, stream=True).status == 200
    assert prompt_of(server) == "user:One\nassistant:Hi!\nuser:Two"
    error = respond(server, previous_response_id=body["id"]).error
    assert error["param"] == "previous_response_id" and made["id"] in error["message"]
    items = server.get(f"{path}/items?order=asc").json()
    assert not list(unknown_fields(ConversationItemList.model_validate(items, strict=True)))
    assert [item["role"] for item in items["data"]] == ["user", "assistant", "user", "assistant"]
    one = items["data"][1]
    assert server.get(f"{path}/items/{one['id']}").json() == one
    assert delete(server, f"{path}/items/{one['id']}").json() == made
    assert server.get(f"{path}/items/{one['id']}").status == 404
    added = server.post(f"{path}/items", {"items": [{"role": "user", "content": "Three"}]}).json()
    assert added["data"][0]["content"][0]["text"] == "Three"
    assert len(server.get(f"{path}/items").json()["data"]) == 4
    assert server.post(path, {"metadata": {"c": "d"}}).json()["metadata"] == {"c": "d"}
    assert server.get(path).json()["metadata"] == {"c": "d"}
    assert delete(server, path).json() == {"id": made["id"], "object": "conversation.deleted", "deleted": True}
    assert server.get(path).status == 404


def test_what_failed_is_not_in_the_conversation() -> None:
    server = make_server(lambda request: [answer("Hi")[0], EngineDead("Gone.")])
    made = server.post("/v1/conversations", {}).json()
    assert respond(server, conversation=made["id"]).status == 503
    assert server.get(f"/v1/conversations/{made['id']}/items").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"items": [{"role": "user"}]}, "items.0.content"),
        ({"items": [{"role": "user", "content": "a"}] * 21}, "items"),
        ({"metadata": {"a" * 65: ""}}, "metadata"),
    ],
)
def test_a_bad_conversation_is_refused(body: Any, param: str) -> None:
    assert make_server().post("/v1/conversations", body).error["param"] == param


# ---------------------------------------------------------------- in the background
def gated(*, after: int = 1) -> tuple[Server, asyncio.Event]:
    """A server that says two letters of three, and the third when told."""
    gate = asyncio.Event()
    deltas = answer("Hi!")
    return make_server(lambda request: [*deltas[:after], gate, *deltas[after:]]), gate


async def post(server: Server, path: str, body: Any = None) -> Any:
    return (await drive(server.app, "POST", path, body)).json()


async def ended(server: Server, response_id: str) -> Any:
    """The response when it is at its end."""
    while True:
        body = (await drive(server.app, "GET", f"/v1/responses/{response_id}")).json()
        if body["status"] not in ("queued", "in_progress"):
            return body
        await asyncio.sleep(0)


def test_n4_in_the_background_the_reply_comes_at_once() -> None:
    async def test() -> None:
        server, gate = gated()
        body = checked(await post(server, "/v1/responses", {"input": "a", "background": True}))
        assert (body["status"], body["background"], body["output"]) == ("queued", True, [])
        gate.set()
        done = checked(await ended(server, body["id"]))
        assert (done["status"], done["output"][0]["content"][0]["text"]) == ("completed", "Hi!")
        again = await post(server, f"/v1/responses/{body['id']}/cancel")
        assert again == done
        path = f"/v1/responses/{body['id']}?stream=true"
        events = events_of(await drive(server.app, "GET", path))
        assert events[-1]["response"] == done and events[1]["type"] == "response.queued"
        rest = (await drive(server.app, "GET", f"{path}&starting_after={events[-3]['sequence_number']}")).body
        assert [json.loads(block.split(b"data: ")[1]) for block in rest.split(b"\n\n")[:-1]] == events[-2:]
        assert (await drive(server.app, "GET", f"{path}&starting_after=999")).body == b""

    run(test)


def test_n4_a_reader_may_go_and_come_back() -> None:
    async def test() -> None:
        server, gate = gated()
        gone, parts = asyncio.Event(), list[bytes]()

        def on_write(data: bytes) -> None:
            parts.append(data)
            if b'"delta":"H"' in data:
                gone.set()

        fields = {"input": "a", "background": True, "stream": True}
        await drive(server.app, "POST", "/v1/responses", fields, disconnect=gone, on_write=on_write)
        seen = b"".join(parts).split(b"\n\n")[:-1]
        response_id = json.loads(seen[0].split(b"data: ")[1])["response"]["id"]
        path = f"/v1/responses/{response_id}?stream=true&starting_after={len(seen) - 1}"
        reader = asyncio.create_task(drive(server.app, "GET", path))
        await asyncio.sleep(0)
        gate.set()
        rest = (await reader).body
        whole = Reply(200, {}, [b"\n\n".join(seen) + b"\n\n", rest])
        assert events_of(whole)[-1]["response"]["output"][0]["content"][0]["text"] == "Hi!"

    run(test)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 50])  # of the loop: from before the engine has it to its first text
@pytest.mark.parametrize("how", ["cancel", "delete", "shutdown"])
def test_n4_what_is_ended_before_its_end_frees_the_engine_and_has_a_state(how: str, num_steps: int) -> None:
    async def test() -> None:
        server, _ = gated()
        body = await post(server, "/v1/responses", {"input": "a", "background": True})
        path = f"/v1/responses/{body['id']}"
        reader = asyncio.create_task(drive(server.app, "GET", f"{path}?stream=true"))
        for _ in range(num_steps):
            await asyncio.sleep(0)
        if how == "cancel":
            cancelled = checked(await post(server, f"{path}/cancel"))
            assert cancelled["status"] == "cancelled"
            assert all(item["status"] == "incomplete" for item in cancelled["output"])
            assert cancelled["output"] or num_steps < 50
            assert (await drive(server.app, "GET", path)).json() == cancelled
            last = events_of(await reader)[-1]
            events_of(await drive(server.app, "GET", f"{path}?stream=true"))
            assert (last["type"], last["response"]) == ("response.incomplete", cancelled)
        elif how == "delete":
            assert (await drive(server.app, "DELETE", path)).status == 200
            assert (await drive(server.app, "GET", path)).status == 404
        else:
            await server.state.runs.close()
            kept = (await drive(server.app, "GET", path)).json()
            assert (kept["status"], kept["error"]["message"]) == ("failed", "The server was shut down.")
        await reader
        assert server.engine.num_open == 0

    run(test)


def test_n4_a_client_that_leaves_ends_its_response() -> None:
    async def test() -> None:
        server, _ = gated()
        gone, parts = asyncio.Event(), list[bytes]()

        def on_write(data: bytes) -> None:
            parts.append(data)
            if b'"delta":"H"' in data:
                gone.set()

        await drive(
            server.app, "POST", "/v1/responses", {"input": "a", "stream": True}, disconnect=gone, on_write=on_write
        )
        response_id = json.loads(parts[0].split(b"data: ")[1].split(b"\n")[0])["response"]["id"]
        kept = (await drive(server.app, "GET", f"/v1/responses/{response_id}")).json()
        assert kept["status"] == "cancelled" and kept["output"][0]["content"][0]["text"] == "H"
        assert server.engine.num_open == 0

    run(test)


def test_a_background_response_that_fails_says_why() -> None:
    async def test() -> None:
        server = make_server()
        server.engine.refusal = EngineDead("Gone.")
        body = await post(server, "/v1/responses", {"input": "a", "background": True})
        done = await ended(server, body["id"])
        assert (done["status"], done["error"]) == ("failed", {"code": "server_error", "message": "Gone."})

    run(test)


def test_n4_only_a_background_response_is_cancelled() -> None:
    server = make_server()
    reply = server.post(f"/v1/responses/{respond(server).json()['id']}/cancel", None)
    assert reply.status == 400 and "background" in reply.error["message"]
    assert server.post("/v1/responses/resp_x/cancel", None).status == 404


def test_a_response_of_the_foreground_has_no_stream_to_read_again() -> None:
    server = make_server()
    path = f"/v1/responses/{respond(server).json()['id']}"
    assert server.get(f"{path}?stream=true").error["param"] == "stream"
    assert server.get(f"{path}?starting_after=1").error["param"] == "starting_after"
    assert server.get(f"{path}?stream=yes").error["param"] == "stream"
    assert server.get(f"{path}?include=message.output_text.logprobs&include[]=x").error["param"] == "include.1"


# ---------------------------------------------------------------- the file
def closed(server: Server) -> None:
    asyncio.run(server.state.close())


def test_u18_responses_and_conversations_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    server = make_server(responses_store=str(path))
    talk = server.post("/v1/conversations", {"items": [{"role": "user", "content": "a"}]}).json()
    first = respond(server, "One").json()
    closed(server)
    assert path.stat().st_mode & 0o077 == 0
    server = make_server(responses_store=str(path))
    assert server.get(f"/v1/responses/{first['id']}").json() == first
    assert len(server.get(f"/v1/conversations/{talk['id']}/items").json()["data"]) == 1
    assert respond(server, "Two", previous_response_id=first["id"]).status == 200
    assert prompt_of(server) == "user:One\nassistant:Hi!\nuser:Two"
    closed(server)


def test_u18_what_a_server_was_making_when_it_died_has_failed(tmp_path: Path) -> None:
    async def begun() -> tuple[str, bytes]:
        server, _ = gated()
        server.state.__dict__["store"] = make_server(responses_store=str(path)).state.store
        body = await post(server, "/v1/responses", {"input": "a", "background": True})
        await server.state.store.open()
        await server.state.store.close()  # from here on nothing is written: the process is gone
        return body["id"], path.read_bytes()

    path = tmp_path / "responses.db"
    response_id, _ = asyncio.run(begun())
    server = make_server(responses_store=str(path))
    body = checked(server.get(f"/v1/responses/{response_id}").json())
    assert (body["status"], body["error"]) == ("failed", LOST)
    stream = server.get(f"/v1/responses/{response_id}?stream=true&starting_after=3").body
    last = json.loads(stream.split(b"data: ")[1])
    assert (last["type"], last["sequence_number"], last["response"]) == ("response.failed", 4, body)
    closed(server)


def test_u18_a_server_that_is_stopped_keeps_the_state_of_all(tmp_path: Path) -> None:
    async def test() -> None:
        def script(request: GenerateRequest) -> list[Any]:
            is_slow = bytes(request.prompt_token_ids).endswith(b"slow")
            return [answer("Hi!")[0], asyncio.Event()] if is_slow else answer("Hi!")

        server = make_server(script, responses_store=str(path))
        async with _lifespan(server.app):
            running = await post(server, "/v1/responses", {"input": "slow", "background": True})
            names.extend([running["id"], (await post(server, "/v1/responses", {"input": "a"}))["id"]])

    path, names = tmp_path / "responses.db", list[str]()
    run(test)
    server = make_server(responses_store=str(path))
    kept = [server.get(f"/v1/responses/{name}").json() for name in names]
    assert [body["status"] for body in kept] == ["failed", "completed"]
    assert kept[0]["error"]["message"] == "The server was shut down."
    closed(server)
    assert [file.name for file in tmp_path.iterdir()] == ["responses.db"]


def test_a_file_that_is_none_of_ours_or_in_use_is_refused_at_start(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    text = tmp_path / "text"
    text.write_text("no database at all, and longer than a header" * 50)
    for name in (str(other), str(text), str(tmp_path / "no" / "where.db")):
        with pytest.raises(InvalidConfig, match="--responses-store"):
            asyncio.run(make_server(responses_store=name).state.store.open())
    server = make_server(responses_store=str(tmp_path / "mine.db"))
    asyncio.run(server.state.store.open())
    with pytest.raises(InvalidConfig, match="locked"):
        asyncio.run(make_server(responses_store=str(tmp_path / "mine.db")).state.store.open())
    closed(server)


def test_u18_what_was_not_used_for_longest_goes_first() -> None:
    server = make_server(responses_store_bytes=8000)
    first = respond(server, "0").json()["id"]
    later = [respond(server, str(i), previous_response_id=first).json()["id"] for i in range(1, 12)]
    names = [first, *later]
    kept = [name for name in names if server.get(f"/v1/responses/{name}").status == 200]
    assert kept[0] == first and 2 <= len(kept) < 8 and kept[1:] == names[-len(kept) + 1 :]
    assert 0 < (server.state.store._num_bytes or 0) <= 8000


def test_u18_what_is_too_old_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("octavo.server.responses.store.time.time", lambda: now)
    server = make_server(responses_store_age=500.0)
    old = respond(server).json()["id"]
    talk = server.post("/v1/conversations", {}).json()["id"]
    now = 1600.0
    new = respond(server).json()["id"]
    assert [server.get(f"/v1/responses/{name}").status for name in (old, new)] == [404, 200]
    assert server.get(f"/v1/conversations/{talk}").status == 404


def test_deleting_everything_leaves_nothing() -> None:
    server = make_server()
    talk = server.post("/v1/conversations", {"items": [{"role": "user", "content": "a"}]}).json()["id"]
    names = [respond(server, "a", conversation=talk).json()["id"] for _ in range(3)]
    for path in (*(f"/v1/responses/{name}" for name in names), f"/v1/conversations/{talk}"):
        assert delete(server, path).status == 200
    assert server.state.store._num_bytes == 0


def test_a_disk_that_fails_is_a_500_and_takes_no_answer_away(monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server()
    first = respond(server).json()

    def fail(*args: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("octavo.server.responses.store._response", fail)
    reply = server.get(f"/v1/responses/{first['id']}")
    assert reply.status == 500 and "store" in reply.error["message"]
    monkeypatch.setattr(server.state.store, "_grow", fail)
    assert respond(server).status == 500
    assert respond(server, store=False).status == 200
    monkeypatch.undo()
    assert delete(server, f"/v1/responses/{first['id']}").status == 200
    assert server.state.store._num_bytes == 0
