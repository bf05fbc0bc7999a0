"""The engine process as a process: how it starts, fails and ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import octavo
from octavo.base.config import EngineConfig
from octavo.base.params import SamplingParams
from octavo.wire.messages import (
    AddRequest,
    EngineCoreOutputs,
    EngineInfo,
    FromEngine,
    Heartbeat,
    Shutdown,
    StartupFailed,
)
from octavo.wire.transport import BlockingConnection, TransportError

FAKE = [str(Path(__file__).with_name("fake_process.py"))]
REAL = ["-m", "octavo.core.process"]


class Process:
    def __init__(self, program: list[str], fault: str = "") -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(30)
        paths = [str(Path(octavo.__file__).parents[1]), str(Path(__file__).parents[1])]
        environment = os.environ | {"OCTAVO_FAULTS": fault, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, *program, "--fd", str(theirs.fileno())]
        self.popen = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=environment, stderr=subprocess.PIPE, text=True
        )
        theirs.close()
        self.sock = ours
        self.connection = BlockingConnection(ours)

    def started(self) -> Process:
        self.connection.send(EngineConfig())
        assert isinstance(self.receive(), EngineInfo)
        return self

    def receive(self) -> object:
        while isinstance(message := self.connection.receive(FromEngine), Heartbeat):
            pass
        return message

    def exit_code(self) -> int:
        return self.popen.wait(20)

    def log(self) -> str:
        assert self.popen.stderr is not None
        return self.popen.stderr.read()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    made: list[Process] = []
    yield made
    for process in made:
        process.popen.kill()
        process.popen.wait()
        if process.popen.stderr is not None:
            process.popen.stderr.close()
        process.connection.close()


@pytest.fixture
def launch(processes: list[Process]):  # type: ignore[no-untyped-def]
    def launch(program: list[str] = FAKE, fault: str = "") -> Process:
        processes.append(Process(program, fault))
        return processes[-1]

    return launch


def test_shutdown_is_exit_code_zero(launch) -> None:  # type: ignore[no-untyped-def]
    process = launch().started()
    process.connection.send(AddRequest(1, [1, 2], SamplingParams(max_tokens=1)))
    outputs = process.receive()
    assert isinstance(outputs, EngineCoreOutputs) and outputs.outputs[0].finish_reason == "length"
    process.connection.send(Shutdown())
    assert process.exit_code() == 0
    assert process.log() == ""


def test_a_peer_that_says_shutdown_and_leaves_is_no_failure(launch) -> None:  # type: ignore[no-untyped-def]
    process = launch(FAKE, "step:1=hang").started()
    process.connection.send(AddRequest(1, [1, 2], SamplingParams(max_tokens=1)))
    process.connection.send(Shutdown())
    process.connection.close()
    assert process.exit_code() == 0
    assert process.log() == ""


def test_a_failed_start_is_announced_and_exit_code_one(launch) -> None:  # type: ignore[no-untyped-def]
    process = launch(REAL, "load:1=error")
    process.connection.send(EngineConfig())
    failed = process.receive()
    assert isinstance(failed, StartupFailed) and failed.error == "RuntimeError"
    assert process.exit_code() == 1
    assert process.log().count("Traceback") == 1


@pytest.mark.parametrize("fault", ["load:1=hang", "step:1=hang", ""])
def test_when_the_parent_closes_the_socket_the_engine_is_gone(launch, fault: str) -> None:  # type: ignore[no-untyped-def]
    process = launch(FAKE, fault)
    if fault.startswith("load"):
        process.connection.send(EngineConfig())
    else:
        process.started().connection.send(AddRequest(1, [1, 2], SamplingParams(max_tokens=60)))
    process.connection.close()
    assert process.exit_code() == 2


def test_when_no_configuration_comes_the_engine_is_gone(launch) -> None:  # type: ignore[no-untyped-def]
    process = launch(REAL)
    process.connection.close()
    assert process.exit_code() == 2


@pytest.mark.parametrize("data", [b"\xff" * 64, b"\x05\x00\x00\x00\x80\x04K\x01.", b"\x01\x00\x00\x00\xc0"])
def test_bytes_that_are_no_message_end_the_engine(launch, data: bytes) -> None:  # type: ignore[no-untyped-def]
    process = launch().started()
    process.sock.sendall(data)
    assert process.exit_code() == 2


def test_int_and_term_are_the_parents_business(launch) -> None:  # type: ignore[no-untyped-def]
    process = launch(FAKE).started()
    for signum in (signal.SIGINT, signal.SIGTERM):
        process.popen.send_signal(signum)
    process.connection.send(AddRequest(1, [1, 2], SamplingParams(max_tokens=1)))
    outputs = process.receive()
    assert isinstance(outputs, EngineCoreOutputs) and outputs.outputs[0].finish_reason == "length"
    process.connection.send(Shutdown())
    assert process.exit_code() == 0


def test_an_exception_in_a_step_is_exit_code_one_and_one_traceback(launch) -> None:  # type: ignore[no-untyped-def]
    process = launch(FAKE, "step:1=error").started()
    process.connection.send(AddRequest(1, [1, 2], SamplingParams(max_tokens=1)))
    with pytest.raises(TransportError):
        process.receive()
    assert process.exit_code() == 1
    assert process.log().count("Traceback") == 1


def test_a_process_that_dies_without_a_word_is_seen_as_the_end_of_the_stream(launch) -> None:  # type: ignore[no-untyped-def]
    process = launch(FAKE, "step:1=exit").started()
    process.connection.send(AddRequest(1, [1, 2], SamplingParams(max_tokens=1)))
    with pytest.raises(TransportError):
        process.receive()
    assert process.exit_code() == 70


def test_a_spec_of_faults_that_means_nothing_is_refused(launch) -> None:  # type: ignore[no-untyped-def]
    process = launch(FAKE, "stpe:1=error")
    failed = process.receive()
    assert isinstance(failed, StartupFailed) and failed.error == "InvalidConfig" and "stpe:1=error" in failed.message
    assert process.exit_code() == 1


def test_core_brings_in_neither_torch_nor_numpy_nor_pickle() -> None:
    code = "import sys, octavo.core.process; print(sorted({'torch', 'numpy', 'pickle'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(Path(octavo.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
