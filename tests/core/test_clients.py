"""Several API processes as clients of one engine loop: each hears of its own requests, and its end is its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from core.fake import FakeExecutor, info
from octavo.base.config import EngineConfig
from octavo.base.params import SamplingParams
from octavo.core.clients import ClientConnections, ClientGone
from octavo.core.engine_core import EngineCore
from octavo.wire.messages import (
    AddRequest,
    Call,
    CallResult,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineInfo,
    FromEngine,
    Phase,
    Shutdown,
    ToEngine,
)
from octavo.wire.transport import BlockingConnection, TransportError
from support.server_process import eventually


class Engine:
    """In a thread, with a parent and two clients. Steps wait for `may_step`."""

    def __init__(self) -> None:
        self.may_step = threading.Semaphore(0)
        executor = FakeExecutor(info(), before_step=lambda: self.may_step.acquire(timeout=20) and None)
        pairs = [socket.socketpair() for _ in range(3)]
        for ours, _ in pairs:
            ours.settimeout(20)
        self.parent, *self.clients = (BlockingConnection(ours) for ours, _ in pairs)
        parent = BlockingConnection(pairs[0][1])
        self.connections = ClientConnections(parent, [theirs for _, theirs in pairs[1:]])
        parent.start(ToEngine)
        self.connections.start()
        self.core = EngineCore(EngineConfig(), executor.info, executor, self.connections)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.core.run()
        self.connections.close()

    def step(self, count: int = 1) -> None:
        self.may_step.release(count)

    def add(self, client: int, request_id: int, max_tokens: int = 3, **params: object) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, **params)  # type: ignore[arg-type]
        self.clients[client].send(AddRequest(request_id, [request_id, 2, 3], sampling))

    def frames(self, client: int, request_id: int) -> list[EngineCoreOutputs]:
        """Until the request ends."""
        found: list[EngineCoreOutputs] = []
        while not any(o.request_id == request_id and o.finish_reason for frame in found for o in frame.outputs):
            message = self.clients[client].receive(FromEngine)
            if isinstance(message, EngineCoreOutputs):
                found.append(message)
        return found


def outputs_of(frames: list[EngineCoreOutputs]) -> list[EngineCoreOutput]:
    return [output for frame in frames for output in frame.outputs]


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    engine.thread.start()
    yield engine
    engine.step(1000)
    engine.parent.send(Shutdown())
    engine.thread.join(10)
    assert not engine.thread.is_alive()
    for connection in (engine.parent, *engine.clients):
        connection.close()


def test_outputs_go_to_who_asked_and_the_first_hears_of_every_step(engine: Engine) -> None:
    engine.add(0, 2)
    engine.add(1, 3, 5)
    engine.step(1000)
    first, second = engine.frames(0, 2), engine.frames(1, 3)
    assert {output.request_id for output in outputs_of(first)} == {2}
    assert {output.request_id for output in outputs_of(second)} == {3}
    assert sum(len(output.new_token_ids) for output in outputs_of(second)) == 5
    assert all(frame.outputs for frame in second), "nobody is woken for nothing"
    last = second[-1].stats.num_steps
    while first[-1].stats.num_steps < last:
        message = engine.clients[0].receive(FromEngine)
        first += [message] if isinstance(message, EngineCoreOutputs) else []
    assert [frame.stats.num_steps for frame in first if not frame.outputs], "steps of the other's alone"


def test_a_call_is_answered_to_who_called(engine: Engine) -> None:
    for client, call_id in ((1, 3), (0, 2), (1, 5)):
        engine.clients[client].send(Call(call_id, "ping"))
        message: object = None
        while not isinstance(message, CallResult):
            message = engine.clients[client].receive(FromEngine)
        assert (message.call_id, message.result) == (call_id, "pong")


def test_the_end_of_one_client_aborts_its_requests_and_no_others(engine: Engine) -> None:
    engine.add(0, 2, 20)
    engine.add(1, 3, 40)
    engine.add(1, 5, 40)
    requests, inbox = engine.core.scheduler.requests, engine.connections.inbox
    while len(requests) < 3:
        engine.step()
        while not isinstance(engine.clients[0].receive(FromEngine), EngineCoreOutputs):
            pass
    engine.clients[1].close()
    # The engine waits in its next step, or has taken the news in before.
    eventually(lambda: not inbox.empty() or 3 not in requests or None, 10, "word of the end")
    engine.step(1000)
    frames = engine.frames(0, 2)
    assert outputs_of(frames)[-1].finish_reason == "length"
    assert {output.request_id for output in outputs_of(frames)} == {2}
    engine.add(0, 4, 2)
    assert outputs_of(engine.frames(0, 4))[-1].finish_reason == "length"
    assert not requests


def test_a_request_that_waits_for_its_grammar_goes_with_its_client_too(engine: Engine) -> None:
    asked = ["a grammar", "another"]
    engine.core.structured._enqueue = lambda task: None  # type: ignore[method-assign]  # it is never ready
    for client, grammar in enumerate(asked):
        engine.add(client, 2 + client, grammar=grammar)
    engine.clients[1].send(Call(5, "ping"))
    while not isinstance(engine.clients[1].receive(FromEngine), CallResult):
        pass
    engine.clients[1].close()
    while engine.core.structured.pending_requests != [2]:
        engine.clients[0].send(Call(2, "ping"))
        while not isinstance(engine.clients[0].receive(FromEngine), CallResult):
            pass


def test_the_start_is_told_to_the_parent_and_its_end_to_all(engine: Engine) -> None:
    engine.connections.send(Phase("weights", "1 of 2"))
    engine.connections.send(info())
    assert engine.parent.receive(FromEngine) == Phase("weights", "1 of 2")
    assert isinstance(engine.parent.receive(FromEngine), EngineInfo)
    for client in engine.clients:
        message: object = None
        while not isinstance(message, EngineInfo):
            message = client.receive(FromEngine)
            assert not isinstance(message, Phase)


def test_the_end_of_the_parent_is_the_end(engine: Engine) -> None:
    engine.parent.send(Shutdown())
    engine.thread.join(10)
    for client in engine.clients:
        with pytest.raises(TransportError):
            while True:
                client.receive(FromEngine)


def test_whose_a_request_is_follows_from_its_number() -> None:
    assert ClientGone(1, 3).owned([1, 2, 3, 4, 6, 7]) == [1, 4, 7]
    assert ClientGone(0, 3).owned([1, 2, 3, 4, 6, 7]) == [3, 6]
