"""The engine loop over a real socket pair, with the fake model, in a thread."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from core import invariants
from core.fake import FakeExecutor, alone, info
from octavo.base.config import EngineConfig
from octavo.base.errors import CheckpointError
from octavo.base.params import SamplingParams
from octavo.core import engine_core, faults
from octavo.core.engine_core import EngineCore
from octavo.core.process import serve
from octavo.core.request import sampling_seed_of
from octavo.wire.messages import (
    Abort,
    AddRequest,
    Call,
    CallResult,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineInfo,
    FromEngine,
    Heartbeat,
    Phase,
    Shutdown,
    StartupFailed,
    ToEngine,
    TokenLogprobs,
)
from octavo.wire.transport import BlockingConnection, TransportError


class Engine:
    """An engine in a thread, and the client's end of its socket. `executor.before_step` runs in the engine."""

    def __init__(self, config: EngineConfig | None = None, **changes: object) -> None:
        self.executor = FakeExecutor(info(**changes))
        ours, theirs = socket.socketpair()
        ours.settimeout(30)
        self.client = BlockingConnection(ours)
        self.connection = BlockingConnection(theirs)
        self.core = EngineCore(config or EngineConfig(), self.executor.info, self.executor, self.connection)
        self.failure: BaseException | None = None
        self.outputs: dict[int, list[EngineCoreOutput]] = {}
        self.connection.start(ToEngine)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Engine:
        self.thread.start()
        return self

    def _run(self) -> None:
        try:
            self.core.run()
        except BaseException as exc:
            self.failure = exc
        finally:
            self.connection.close()

    def add(self, request_id: int, prompt: list[int], max_tokens: int = 4, **fields: Any) -> AddRequest:
        message = AddRequest(request_id, prompt, SamplingParams(max_tokens=max_tokens), **fields)
        self.client.send(message)
        return message

    def receive(self, kind: type) -> Any:
        """The next message of a kind; outputs on the way are kept. Heartbeats are skipped unless asked for."""
        while True:
            message = self.client.receive(FromEngine)
            if isinstance(message, EngineCoreOutputs):
                for output in message.outputs:
                    self.outputs.setdefault(output.request_id, []).append(output)
            if isinstance(message, kind):
                return message

    def wait_for_end(self, *request_ids: int) -> None:
        while not all(self.end(request_id) for request_id in request_ids):
            self.receive(EngineCoreOutputs)

    def end(self, request_id: int) -> str | None:
        outputs = self.outputs.get(request_id)
        return outputs[-1].finish_reason if outputs else None

    def tokens(self, request_id: int) -> list[int]:
        return [token for output in self.outputs[request_id] for token in output.new_token_ids]

    def call(self, method: str, *args: Any) -> CallResult:
        self.client.send(Call(1, method, args))
        result: CallResult = self.receive(CallResult)
        return result

    def shut_down(self) -> None:
        self.client.send(Shutdown())
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture(params=[False, True], ids=["", "ahead"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(plans_ahead=request.param).start()
    yield engine
    engine.shut_down()
    engine.client.close()
    assert engine.failure is None


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    yield
    faults.disarm()


def test_requests_come_back_with_the_tokens_of_the_model(engine: Engine) -> None:
    messages = [engine.add(i, [i, 2, 3], 10) for i in range(1, 4)]
    engine.wait_for_end(1, 2, 3)
    for message in messages:
        seed = sampling_seed_of(message, 0, message.request_id)
        assert engine.tokens(message.request_id) == alone(message, 10, seed)
    first = engine.outputs[1][0]
    assert first.scheduled_time > 0.0 and engine.end(1) == "length"


def test_each_step_is_one_frame_with_the_stats_of_its_end(engine: Engine) -> None:
    engine.add(1, [1, 2, 3], 3)
    frames = [engine.receive(EngineCoreOutputs) for _ in range(3)]
    assert [len(frame.outputs) for frame in frames] == [1, 1, 1]
    # Where steps are planned ahead, the stats are those of the step that is under way when the frame is made.
    is_ahead = engine.executor.info.plans_ahead
    assert [frame.stats.num_steps for frame in frames] == ([2, 3, 3] if is_ahead else [1, 2, 3])
    assert [frame.stats.step_tokens for frame in frames] == ([1, 1, 1] if is_ahead else [3, 1, 1])
    assert (frames[-1].stats.num_running, frames[-1].stats.kv_blocks_used) == (0, 0)
    assert (frames[-1].stats.num_prompt_tokens, frames[-1].stats.num_generation_tokens) == (3, 3)
    assert 0 < frames[0].timestamp <= frames[1].timestamp


def test_a_refused_request_ends_with_an_error_and_the_next_is_served(engine: Engine) -> None:
    engine.add(1, [1] * 100)
    engine.add(2, [1, 2])
    engine.wait_for_end(1, 2)
    assert (engine.end(1), engine.end(2)) == ("error", "length")
    assert "104" in (engine.outputs[1][0].error or "")


def test_an_abort_ends_a_request_and_frees_its_blocks_by_the_next_step() -> None:
    engine = Engine()
    running: list[list[int]] = []

    def before_step() -> None:
        running.append([request.request_id for request in engine.core.scheduler.running])
        if len(running) == 3:
            engine.connection.inbox.put(Abort([1, 12345]))

    engine.executor.before_step = before_step
    engine.add(1, [1, 2, 3], 40)
    engine.add(2, [4, 5, 6], 6)
    while engine.connection.inbox.qsize() < 2:
        pass  # both are in the first step
    engine.start().wait_for_end(1, 2)
    assert running == [[1, 2]] * 3 + [[2]] * 3
    assert (engine.end(1), engine.end(2)) == ("abort", "length")
    assert (len(engine.tokens(1)), len(engine.tokens(2))) == (3, 6)
    assert engine.call("stats").result["kv_blocks_used"] == 0
    engine.shut_down()


def test_a_second_request_under_a_living_id_does_not_touch_the_first() -> None:
    engine = Engine()
    message = engine.add(1, [1, 2, 3], 5)
    engine.add(1, [4, 5, 6], 5)
    engine.start().wait_for_end(1)
    engine.add(2, [1], 1)
    engine.wait_for_end(2)
    assert engine.tokens(1) == alone(message, 5, sampling_seed_of(message, 0, 1))
    engine.shut_down()


@pytest.mark.parametrize("method", ["__init__", "run", "_step", "no such", ""])
def test_only_the_listed_methods_can_be_called(engine: Engine, method: str) -> None:
    assert engine.call(method).error is not None
    assert engine.call("ping").result == "pong"


def test_a_call_with_wrong_arguments_is_an_error_of_the_call_alone(engine: Engine) -> None:
    assert "TypeError" in (engine.call("ping", 1, 2).error or "")
    assert engine.call("reset_prefix_cache").result is True


def test_an_idle_engine_sleeps_and_wakes_and_says_the_same(engine: Engine) -> None:
    first = engine.add(1, [1, 2, 3, 4, 5, 6, 7, 8, 9], max_tokens=6)
    engine.wait_for_end(1)
    assert engine.call("sleep", 2).result is True
    assert (engine.executor.asleep, engine.executor.pool) == (2, [])
    assert engine.call("wake_up").result is True
    engine.add(2, first.prompt_token_ids, max_tokens=6)
    engine.wait_for_end(2)
    assert engine.tokens(2) == alone(first, 6, sampling_seed_of(first, 0, 2))
    assert engine.outputs[2][0].num_cached_tokens == 0, "the prefix cache is gone"


def test_an_engine_with_requests_does_not_sleep() -> None:
    engine, gate = Engine(), threading.Event()
    engine.executor.before_step = lambda: gate.wait(20) and None
    engine.start().add(1, [1, 2, 3], max_tokens=50)
    engine.client.send(Call(7, "sleep", (1,)))
    gate.set()
    result = engine.receive(CallResult)
    assert (result.call_id, result.error) == (7, "The engine cannot sleep: it has requests.")
    assert engine.executor.asleep == 0
    engine.shut_down()


def test_a_failure_to_wake_is_told_in_its_own_words() -> None:
    engine = Engine()

    def fail() -> None:
        raise CheckpointError("x.gguf: cannot be read: gone")

    engine.executor.wake_up = fail  # type: ignore[method-assign]
    engine.start()
    assert engine.call("sleep", 2).result is True
    assert engine.call("wake_up").error == "x.gguf: cannot be read: gone"
    engine.shut_down()


def test_shutdown_ends_what_is_running_with_an_abort() -> None:
    engine = Engine().start()
    engine.add(1, [1, 2, 3], 60)
    engine.client.send(Shutdown())
    engine.wait_for_end(1)
    engine.thread.join(10)
    assert engine.end(1) == "abort" and engine.failure is None


def test_the_loop_ends_when_the_peer_is_gone() -> None:
    engine = Engine().start()
    engine.client.close()
    engine.thread.join(10)
    assert not engine.thread.is_alive() and engine.failure is None


def test_heartbeats_go_on_during_a_long_step_and_say_how_long_it_takes() -> None:
    engine = Engine()
    gate = threading.Event()
    engine.executor.before_step = lambda: gate.wait(30) and None
    engine.start()
    engine.add(1, [1, 2], 1)
    while True:
        beat: Heartbeat = engine.receive(Heartbeat)
        if beat.step_seconds > 0.2:
            break
    assert beat.has_work and beat.num_steps == 0
    gate.set()
    engine.wait_for_end(1)
    while (beat := engine.receive(Heartbeat)).has_work:
        pass
    assert beat.step_seconds == 0.0 and beat.num_steps == 1
    engine.shut_down()


def test_out_of_memory_in_a_step_ends_its_requests_and_the_engine_goes_on(engine: Engine) -> None:
    for n in range(1, 9):
        faults.arm(f"step:{n}=memory_error")
        engine.add(10 * n, [1, 2, 3, 4, 5], 5)
        engine.wait_for_end(10 * n)
        expected = "error" if n <= 5 else "length"
        assert engine.end(10 * n) == expected and len(engine.tokens(10 * n)) == min(n - 1, 5)
        faults.disarm()
    message = engine.add(99, [1, 2, 3, 4, 5], 5)
    engine.wait_for_end(99)
    assert engine.tokens(99) == alone(message, 5, sampling_seed_of(message, 0, 9))


def test_an_exception_in_a_step_kills_the_engine_with_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    client, connection = BlockingConnection(ours), BlockingConnection(theirs)
    connection.start(ToEngine)
    faults.arm("step:2=error")
    client.send(AddRequest(1, [1, 2, 3], SamplingParams(max_tokens=5)))
    with caplog.at_level(logging.INFO):
        code = serve(EngineConfig(), connection, lambda config, on_phase: FakeExecutor(info()))
    connection.close()
    assert code == 1
    assert isinstance(client.receive(FromEngine), EngineInfo)
    assert [len(o.new_token_ids) for o in client.receive(FromEngine).outputs] == [1]
    with pytest.raises(TransportError):
        client.receive(FromEngine)
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= logging.ERROR] == [True]


@pytest.mark.parametrize("point", ["add", "allocate", "step", "update"])
@pytest.mark.parametrize("action", ["error", "memory_error"])
def test_after_the_nth_failure_of_a_point_the_engine_is_right_or_dead_and_never_between(
    point: str, action: str
) -> None:
    n, deaths = 0, 0
    while True:
        n += 1
        engine = Engine(num_kv_blocks=9, max_num_seqs=3)
        faults.arm(f"{point}:{n}={action}")
        messages = [engine.add(i, [i] * 3 + [9] * 6, 12) for i in range(1, 5)]
        engine.start()
        try:
            engine.wait_for_end(1, 2, 3, 4)
        except TransportError:
            deaths += 1
            engine.thread.join(10)
            assert isinstance(engine.failure, RuntimeError | MemoryError)
        else:
            engine.shut_down()
            assert engine.failure is None
            invariants.check_idle(engine.core.scheduler)
        for message in messages:
            # Each has at most one end, and whatever was sent is a beginning of the right answer.
            outputs = engine.outputs.get(message.request_id, [])
            assert all(output.finish_reason is None for output in outputs[:-1])
            tokens = [token for output in outputs for token in output.new_token_ids]
            seeds = (sampling_seed_of(message, 0, number) for number in range(1, 5))
            assert any(tokens == alone(message, 12, seed)[: len(tokens)] for seed in seeds)
        reached = faults._calls.get(point, 0) >= n
        if not reached or n == 12:
            break
    assert n > 4
    survives = point == "add" or (point, action) == ("step", "memory_error")
    assert (deaths == 0) == survives


def test_a_model_that_cannot_be_loaded_is_announced_with_its_error() -> None:
    class Broken:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def load(self) -> EngineInfo:
            raise self.error

        execute = None

    for error, name in ((CheckpointError("model.bin is cut short"), "CheckpointError"), (KeyError("x"), "KeyError")):
        ours, theirs = socket.socketpair()
        client, connection = BlockingConnection(ours), BlockingConnection(theirs)

        def make(config: EngineConfig, on_phase: Any, error: Exception = error) -> Any:
            on_phase("weights", "1 of 2")
            return Broken(error)

        assert serve(EngineConfig(), connection, make) == 1
        connection.close()
        assert client.receive(FromEngine) == Phase("weights", "1 of 2")
        failed = client.receive(FromEngine)
        assert isinstance(failed, StartupFailed) and failed.error == name and str(error) in failed.message
        client.close()


def test_very_many_log_probabilities_are_cut_into_frames_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_core, "MAX_FRAME_SCORES", 10)
    entry = TokenLogprobs(-1.0, 1, [1, 2, 3], [-1.0, -2.0, -3.0])
    plain, scored = EngineCoreOutput(1, [5]), EngineCoreOutput(2, [5], logprobs=[entry])
    whole = EngineCoreOutput(3, [], prompt_logprobs=[entry] * 9)
    outputs = [plain, scored, scored, plain, whole, scored, whole]
    frames = list(engine_core.frames_of(outputs))
    assert [output for frame in frames for output in frame] == outputs
    assert [len(frame) for frame in frames] == [5, 2]
    assert list(engine_core.frames_of([])) == [[]]
    assert list(engine_core.frames_of([plain] * 100)) == [[plain] * 100]
