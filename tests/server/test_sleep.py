"""Sleep mode over HTTP and in the client: who is refused, who is waited for, and what the engine is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.base.errors import Aborted, Asleep, EngineDead, ServerError
from octavo.client.generation import fold
from octavo.client.observer import Observers
from octavo.client.sleep_mode import SleepMode
from octavo.server.metrics import Metrics
from octavo.wire.messages import Call, CallResult
from support.client_fakes import Engine, out, request, run, settle
from support.server_fakes import Server, answer, drive, make_server

KEY = {"authorization": "Bearer boss"}


def sleepy(script: Any = None) -> Server:
    return make_server(script, admin_api_key="boss", enable_sleep_mode=True)


@pytest.mark.parametrize(("query", "level"), [("", 1), ("?level=1", 1), ("?level=2&mode=wait", 2), ("?mode=abort", 1)])
def test_n19_a_model_that_sleeps_refuses_requests_until_it_is_woken(query: str, level: int) -> None:
    server = sleepy()
    assert server.get("/is_sleeping", KEY).json() == {"is_sleeping": False}
    reply = server.post(f"/sleep{query}", None, KEY)
    assert (reply.status, reply.body) == (200, b"")
    assert server.engine.calls == [("sleep", level)]
    assert server.get("/is_sleeping", KEY).json() == {"is_sleeping": True}
    for refused in (server.chat(), server.complete(stream=True), server.get("/ready")):
        assert (refused.status, refused.error["code"]) == (503, "asleep")
        assert "POST /wake_up" in refused.error["message"]
    assert server.get("/health").status == server.get("/v1/models").status == 200
    assert server.post("/tokenize", {"prompt": "a"}).status == 200
    assert server.post("/reset_prefix_cache", None, KEY).status == 200, "it is empty"
    assert server.post("/wake_up", None, KEY).status == 200
    assert server.engine.calls == [("sleep", level), ("wake_up",)]
    assert server.complete().status == 200
    assert server.get("/is_sleeping", KEY).json() == {"is_sleeping": False}


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/sleep?level=0", "level"),
        ("/sleep?level=3", "level"),
        ("/sleep?level=", "level"),
        ("/sleep?mode=keep", "mode"),
        ("/sleep?levle=2", "levle"),
        ("/wake_up?tags=weights", None),
        ("/wake_up?tags=weights&tags=kv_cache", None),
        ("/wake_up?tags=all", "tags"),
    ],
)
def test_what_octavo_cannot_do_is_refused_by_name(path: str, param: str | None) -> None:
    server = sleepy()
    if "tags=weights" in path:
        param = None if "kv_cache" in path else "tags"
    reply = server.post(path, None, KEY)
    assert reply.status == (200 if param is None else 400)
    assert param is None or reply.error["param"] == param
    assert server.engine.calls == []


def test_it_sleeps_deeper_and_never_less_deep() -> None:
    server = sleepy()
    for path in ("/sleep", "/sleep?level=2", "/sleep?level=1", "/sleep?level=2", "/wake_up", "/wake_up"):
        assert server.post(path, None, KEY).status == 200
    assert server.engine.calls == [("sleep", 1), ("sleep", 2), ("wake_up",)]


def test_n19_who_is_asked_to_wait_waits_for_what_runs() -> None:
    async def main() -> None:
        gate, begun = asyncio.Event(), asyncio.Event()
        server = sleepy(lambda request: [*answer("Hi!")[:1], gate, *answer("Hi!")[1:]])
        running = asyncio.create_task(
            drive(server.app, "POST", "/v1/completions", {"prompt": "a", "stream": True},
                  on_write=lambda data: begun.set())
        )  # fmt: skip
        await begun.wait()
        sleep = asyncio.create_task(drive(server.app, "POST", "/sleep?mode=wait", None, KEY))
        await settle()
        assert not sleep.done() and server.engine.calls == []
        assert (await drive(server.app, "POST", "/v1/completions", {"prompt": "a"})).status == 503
        gate.set()
        assert (await running).events()[-1]["choices"][0]["finish_reason"] == "stop"
        assert (await sleep).status == 200
        assert server.engine.calls == [("sleep", 1)]

    run(main())


async def calls_of(engine: Engine) -> list[Call]:
    await settle()
    return [message for message in engine.connection.sent if isinstance(message, Call)]


def test_n19_the_client_ends_what_runs_before_the_engine_sleeps() -> None:
    async def main() -> None:
        async with Engine() as engine:
            reading = asyncio.create_task(fold(engine.client.generate(request())))
            await engine.step(out(1, "a"))
            sleep = asyncio.create_task(engine.client.sleep_mode.sleep(1, waits=False))
            (call,) = await calls_of(engine)
            assert (call.method, call.args) == ("sleep", (1,)) and engine.connection.aborted == [1]
            with pytest.raises(Aborted, match="sleep"):
                await reading
            with pytest.raises(Asleep):
                engine.client.generate(request())
            assert engine.client.is_healthy and not engine.client.is_ready
            engine.connection.put(CallResult(call.call_id, True))
            await sleep
            wake = asyncio.create_task(engine.client.sleep_mode.wake_up())
            (_, call) = await calls_of(engine)
            assert call.method == "wake_up" and engine.client.sleep_mode.is_asleep
            engine.connection.put(CallResult(call.call_id, True))
            await wake
            engine.client.generate(request())

    run(main())


def test_n19_a_sleep_that_failed_leaves_the_model_awake_and_a_failed_waking_leaves_it_asleep() -> None:
    async def main() -> None:
        async with Engine() as engine:
            mode = engine.client.sleep_mode
            sleep = asyncio.create_task(mode.sleep(1, waits=False))
            (call,) = await calls_of(engine)
            engine.connection.put(CallResult(call.call_id, error="no room"))
            with pytest.raises(ServerError, match="no room"):
                await sleep
            assert not mode.is_asleep and engine.client.is_ready
            sleep = asyncio.create_task(mode.sleep(2, waits=False))
            engine.connection.put(CallResult((await calls_of(engine))[-1].call_id, True))
            await sleep
            wake = asyncio.create_task(mode.wake_up())
            engine.connection.put(CallResult((await calls_of(engine))[-1].call_id, error="files are gone"))
            with pytest.raises(ServerError, match="files are gone"):
                await wake
            assert mode.is_asleep

    run(main())


def test_what_the_engine_was_told_is_known_when_its_caller_has_gone() -> None:
    async def main() -> None:
        async with Engine() as engine:
            mode = engine.client.sleep_mode
            sleep = asyncio.create_task(mode.sleep(1, waits=False))
            (call,) = await calls_of(engine)
            sleep.cancel()
            await asyncio.gather(sleep, return_exceptions=True)
            assert mode.is_asleep, "it may be asleep by now"
            engine.connection.put(CallResult(call.call_id, True))
            await settle()
            assert (mode.is_asleep, mode.level) == (True, 1)

    run(main())


def test_the_engine_s_death_ends_a_wait() -> None:
    async def main() -> None:
        async with Engine() as engine:
            reading = asyncio.create_task(fold(engine.client.generate(request())))
            sleep = asyncio.create_task(engine.client.sleep_mode.sleep(1, waits=True))
            await settle()
            engine.connection.put(None)
            for task in (reading, sleep):
                with pytest.raises(EngineDead):
                    await task

    run(main())


def test_n19_the_metrics_tell_how_deep_the_model_sleeps() -> None:
    metrics = Metrics("tiny", 100)

    def states() -> dict[str, float]:
        [family] = [family for family in metrics.registry.collect() if family.name == "vllm:engine_sleep_state"]
        return {sample.labels["sleep_state"]: sample.value for sample in family.samples}

    assert states() == {"awake": 1, "weights_offloaded": 0, "discard_all": 0}

    async def main() -> None:
        async def call(*args: Any) -> None: ...

        async def idle() -> None: ...

        mode = SleepMode(call, lambda: None, idle, Observers(metrics).on_sleep)
        await mode.sleep(2, waits=True)
        assert states() == {"awake": 0, "weights_offloaded": 0, "discard_all": 1}
        await mode.wake_up()
        assert states()["awake"] == 1

    run(main())
