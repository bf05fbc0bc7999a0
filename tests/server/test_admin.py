"""What administrators can do, and /load."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import octavo
from octavo.base.errors import Aborted, EngineDead
from support.server_fakes import MODEL, Family, Server, answer, drive, make_server

KEY = {"authorization": "Bearer boss"}


def server_of(*ids: str) -> Server:
    """One that has answered chats with these request ids."""
    server = make_server(admin_api_key="boss")
    for request_id in ids:
        server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "request_id": request_id})
    return server


@pytest.mark.parametrize(
    ("body", "aborted"),
    [
        ({"request_ids": ["one"]}, ["chatcmpl-one"]),
        ({"request_ids": ["chatcmpl-one", "two", "none"]}, ["chatcmpl-one", "chatcmpl-two"]),
        ({"request_ids": ["chatcmpl"]}, []),
        ({"request_ids": [""]}, []),
        ({"all": True}, ["chatcmpl-one", "chatcmpl-two", "chatcmpl-one-2"]),
    ],
)
def test_n20_requests_are_ended_by_their_ids_or_all(body: dict[str, object], aborted: list[str]) -> None:
    server = server_of("one", "two", "one-2")
    reply = server.post("/abort_requests", body, KEY)
    assert reply.json() == {"aborted": len(aborted)}
    assert server.engine.aborted == aborted


def test_all_prompts_of_a_completion_are_ended_together() -> None:
    server = make_server(admin_api_key="boss")
    server.post("/v1/completions", {"prompt": ["a", "b"], "request_id": "many"})
    assert server.post("/abort_requests", {"request_ids": ["many"]}, KEY).json() == {"aborted": 2}
    assert server.post("/abort_requests", {"request_ids": ["many-1"]}, KEY).json() == {"aborted": 1}


def test_all_conversations_of_a_batch_are_ended_together() -> None:
    server = make_server(admin_api_key="boss")
    talk = [{"role": "user", "content": "a"}]
    server.post("/v1/chat/completions/batch", {"messages": [talk, talk], "request_id": "many"})
    for wanted, count in (("many", 2), ("chatcmpl-many", 2), ("chatcmpl-many-1", 1), ("man", 0)):
        assert server.post("/abort_requests", {"request_ids": [wanted]}, KEY).json() == {"aborted": count}


@pytest.mark.parametrize(("path", "reply_id"), [("/v1/messages", "msg_my_id-1"), ("/api/chat", "ollama-my_id-1")])
def test_replies_of_other_apis_are_ended_by_either_id(path: str, reply_id: str) -> None:
    server = make_server(admin_api_key="boss")
    body = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
    server.post(path, body, {"x-request-id": "my_id-1"})
    for wanted in (reply_id, "my_id-1"):
        assert server.post("/abort_requests", {"request_ids": [wanted]}, KEY).json() == {"aborted": 1}


@pytest.mark.parametrize("body", [{}, {"request_ids": []}, {"all": False}, {"request_ids": ["a"], "all": True}])
def test_an_abort_says_what(body: dict[str, object]) -> None:
    reply = server_of().post("/abort_requests", body, KEY)
    assert (reply.status, reply.error["param"]) == (400, "request_ids")


def test_who_waits_for_an_aborted_request_is_told() -> None:
    error = Aborted("An administrator ended this request.")
    reply = make_server(lambda request: [error]).complete()
    assert (reply.status, reply.error["code"]) == (410, "request_aborted")
    stream = make_server(lambda request: [*answer("Hi!")[:1], error]).complete(stream=True)
    assert b'"code":"request_aborted"' in stream.body


def test_a_reset_of_a_dead_engine_is_an_error() -> None:
    server = make_server(admin_api_key="boss")
    server.engine.is_healthy = False
    reply = server.post("/reset_prefix_cache", {}, KEY)
    assert (reply.status, reply.error["code"]) == (503, EngineDead.code)


def test_server_info_tells_settings_and_facts_and_no_secret() -> None:
    server = make_server(admin_api_key="boss", api_key=["secret-key"], max_n=7)
    reply = server.get("/server_info", KEY)
    info = reply.json()
    assert info["version"] == octavo.__version__
    assert info["config"]["server"]["max_n"] == 7
    assert info["config"]["cache"]["block_size"] == 16
    assert info["engines"]["tiny"]["num_kv_blocks"] == 64
    assert info["config"]["server"]["api_key"] == info["config"]["server"]["admin_api_key"] == "***"
    assert b"secret-key" not in reply.body and b"boss" not in reply.body


def test_e98_profiles_are_recorded_where_the_server_was_told_to() -> None:
    server = make_server(admin_api_key="boss", profiler_dir="/profiles")
    assert server.post("/start_profile", b"").status == 401
    assert server.post("/stop_profile", b"", KEY).error["message"].startswith("No profile is being recorded")
    assert server.post("/start_profile", b"", KEY).status == 200
    assert server.post("/start_profile", b"", KEY).error["message"].startswith("A profile is being recorded already")
    reply = server.post("/stop_profile", b"", KEY)
    assert reply.json() == {"files": ["/profiles/a.json"], "steps": 3, "steps_not_recorded": 0}
    assert server.post("/start_profile", {"torch": False}, KEY).status == 200
    assert server.engine.profiles == [("/profiles", True), ("/profiles", False)]


@pytest.mark.parametrize("body", [{"torch": "no"}, b"{", [1]])
def test_a_profile_that_is_asked_for_wrongly_is_not_begun(body: Any) -> None:
    server = make_server(admin_api_key="boss", profiler_dir="/profiles")
    assert server.post("/start_profile", body, KEY).status == 400
    assert server.post("/start_profile", b"", KEY).status == 200


def test_without_a_folder_there_are_no_profiles() -> None:
    error = make_server(admin_api_key="boss").post("/start_profile", b"", KEY).error
    assert error["code"] == "route_not_served" and "--profiler-dir" in error["message"]


def test_the_load_is_the_number_of_sequences() -> None:
    async def main() -> None:
        gate, begun = asyncio.Event(), asyncio.Event()
        server = make_server(lambda request: [*answer("Hi!")[:1], gate, *answer("Hi!")[1:]])
        assert (await drive(server.app, "GET", "/load")).json() == {"server_load": 0}
        task = asyncio.create_task(
            drive(
                server.app, "POST", "/v1/completions", {"prompt": "a", "stream": True},
                on_write=lambda data: begun.set(),
            )
        )  # fmt: skip
        await begun.wait()
        assert (await drive(server.app, "GET", "/load")).json() == {"server_load": 1}
        gate.set()
        await task

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_request_whose_prompt_is_still_being_made_is_ended_too() -> None:
    server = make_server(admin_api_key="boss")
    rendering, rendered = asyncio.Event(), asyncio.Event()
    made = server.model.prompts.made

    async def slow(*args: object) -> object:
        rendering.set()
        await rendered.wait()
        return await made(*args)  # type: ignore[arg-type]

    server.model.prompts.made = slow  # type: ignore[method-assign, assignment]

    async def scenario() -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "request_id": "one"}
        asked = asyncio.create_task(drive(server.app, "POST", "/v1/chat/completions", body))
        await rendering.wait()
        for count in (1, 0):
            reply = await drive(server.app, "POST", "/abort_requests", {"request_ids": ["one"]}, KEY)
            assert reply.json() == {"aborted": count}
        rendered.set()
        reply = await asked
        assert (reply.status, reply.error["code"]) == (410, "request_aborted")
        assert server.engine.requests == []

    asyncio.run(scenario())


def test_a_profile_is_the_servers_and_not_a_processs() -> None:
    one, other = (
        make_server(admin_api_key="boss", profiler_dir="/profiles", siblings=each) for each in Family(2).members
    )
    assert one.post("/start_profile", b"", KEY).status == 200
    assert other.post("/start_profile", b"", KEY).error["message"].startswith("A profile is being recorded already")
    other.engine.profiles.append(("/profiles", True))
    assert other.post("/stop_profile", b"", KEY).status == 200
    assert one.post("/stop_profile", b"", KEY).error["message"].startswith("No profile is being recorded")
