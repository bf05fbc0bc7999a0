"""The engine process as its parent sees it, and what the launcher says."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from octavo.base.config import EngineConfig, ModelConfig, ServeConfig, ServerConfig
from octavo.base.errors import CheckpointError, EngineDead, InvalidConfig, StartupError
from octavo.client.engine_client import EngineClient
from octavo.client.generation import fold
from octavo.launch import engine_process, startup
from octavo.launch import server as launch
from octavo.launch.engine_process import EngineProcess, launch_engine
from octavo.launch.progress import PhaseLog, phase_report
from octavo.launch.serve_loop import check_tls
from octavo.text.templates.renderer import Renderer
from support.client_fakes import INFO, TOKENIZER, request
from support.server_process import eventually, wait_gone

TESTS = Path(__file__).parent.parent
FAKE = (sys.executable, str(TESTS / "support" / "fake_engine.py"))
CONFIG = EngineConfig(model=ModelConfig(model="nothing"))

#: An engine that reads its configuration and then does as its line says; `send` and `sock` are at hand.
_SCRIPT = """
import os, socket, sys, time
from octavo.base.config import EngineConfig
from octavo.wire.messages import *
from octavo.wire.transport import BlockingConnection, encode_frame
sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
send = lambda message: sock.sendall(encode_frame(message))
BlockingConnection(sock).receive(EngineConfig)
"""


def scripted(line: str) -> tuple[str, ...]:
    return (sys.executable, "-c", _SCRIPT + line)


@pytest.fixture(autouse=True)
def no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(psutil.Process().children())
    yield
    assert [child for child in psutil.Process().children() if child not in before] == []


#: Tells whether the vocabulary comes after the handshake, with the model's own end of text, by its exit code.
_TAKES_VOCABULARY = f"""
import msgspec
sys.path.insert(0, {str(TESTS)!r})
from support.client_fakes import INFO
send(msgspec.structs.replace(INFO, eos_token_ids=(3,)))
message = BlockingConnection(sock).receive(ToEngine)
is_whole = isinstance(message, Vocabulary) and message.tokens[65] == b"A" and set(message.eos_token_ids) == {{3, 256}}
os._exit(10 if is_whole else 11)
"""


def test_a_server_has_the_engine_prepare_for_grammars_before_there_are_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To prepare holds the engine up for a second where the vocabulary is large: not when a stream runs already."""
    monkeypatch.setattr(startup, "load_tokenizer", lambda *_, **__: TOKENIZER)
    engine = EngineProcess.spawn(CONFIG, scripted(_TAKES_VOCABULARY))
    tokenizer, _ = startup.wait_loaded(engine, CONFIG, Renderer, with_vocabulary=True)
    assert tokenizer is TOKENIZER
    assert engine.has_vocabulary
    assert eventually(engine.exit_reason, 10, "the engine's end") == "it exited with code 10"
    engine.kill()


def fails(line: str, monkeypatch: pytest.MonkeyPatch) -> StartupError:
    monkeypatch.setattr(engine_process, "ENGINE_COMMAND", scripted(line))
    with pytest.raises(StartupError) as caught:
        launch_engine(CONFIG)
    return caught.value


# ---------------------------------------------------------------- handshake
def test_the_phases_are_told_and_then_the_info(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "ENGINE_COMMAND", FAKE)
    phases: list[tuple[str, str]] = []
    engine = launch_engine(CONFIG, lambda name, detail: phases.append((name, detail)))
    try:
        assert engine.info.model_type == "fake"
        assert phases == [("weights", "of the fake model")]
        assert engine.exit_reason() is None
    finally:
        engine.kill()
    assert engine.exit_reason() == "it was killed by SIGKILL (out of memory?)"
    engine.kill()


def test_a_failed_start_is_raised_as_the_engine_named_it(monkeypatch: pytest.MonkeyPatch) -> None:
    error = fails('send(StartupFailed("CheckpointError", "model.safetensors is cut off")); time.sleep(60)', monkeypatch)
    assert isinstance(error, CheckpointError) and error.message == "model.safetensors is cut off"


@pytest.mark.parametrize("name", ["KeyError", "OctavoError", "annotations", "no such thing"])
def test_a_name_that_is_no_startup_error_becomes_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = fails(f'send(StartupFailed("{name}", "why")); time.sleep(60)', monkeypatch)
    assert type(error) is StartupError and error.message == "why"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("os._exit(3)", "it exited with code 3"),
        ("os.kill(os.getpid(), 11)", "it was killed by SIGSEGV"),
        ("sock.close(); os.close(1); time.sleep(60)", "it closed its connection"),
        ("sock.sendall(b'\\0' * 4); time.sleep(60)", "it closed its connection"),
        ("sock.sendall(b'\\5\\0\\0\\0hello'); time.sleep(60)", "it closed its connection"),
    ],
)
def test_an_engine_that_ends_or_talks_nonsense_while_it_starts(
    line: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The connection's own thread holds the socket too, so that closing it takes a shutdown.
    line = line.replace("sock.close()", "sock.shutdown(socket.SHUT_RDWR)")
    assert reason in fails(line, monkeypatch).message


def test_a_command_that_does_not_exist_is_a_startup_error() -> None:
    with pytest.raises(StartupError, match="could not be started"):
        EngineProcess.spawn(CONFIG, ("/no/such/python",))


def test_a_kill_from_another_thread_ends_the_wait() -> None:
    engine = EngineProcess.spawn(CONFIG, scripted("time.sleep(60)"))
    timer = threading.Timer(0.2, engine.kill)
    timer.start()
    with pytest.raises(StartupError, match="killed by SIGKILL"):
        engine.wait_ready()
    timer.join()


def test_frames_that_follow_the_handshake_are_not_lost() -> None:
    info = repr(msgspec.to_builtins(INFO))
    line = f"import msgspec; send(msgspec.convert({info}, EngineInfo));"
    line += "[send(Heartbeat(i, 0.0, False)) for i in range(50)]; time.sleep(60)"
    engine = EngineProcess.spawn(CONFIG, scripted(line))
    try:
        engine.wait_ready()

        async def main() -> list[Any]:
            connection = await engine.connect()
            messages = [await asyncio.wait_for(connection.receive(), 10) for _ in range(50)]
            await connection.close()
            return messages

        assert [message.num_steps for message in asyncio.run(main())] == list(range(50))
    finally:
        engine.kill()


# ---------------------------------------------------------------- looks and ends
def test_the_state_of_the_process_is_seen() -> None:
    engine = EngineProcess.spawn(CONFIG, scripted("while True: pass"))
    try:
        eventually(lambda: engine.probe().is_runnable or None, 20, "a process that runs")
        before = engine.probe().cpu_seconds
        eventually(lambda: engine.probe().cpu_seconds > before or None, 20, "CPU time")
        os.kill(engine.pid, signal.SIGSTOP)
        eventually(lambda: engine.probe().is_stopped or None, 5, "a process that is stopped")
        os.kill(engine.pid, signal.SIGKILL)
        eventually(lambda: engine.probe().is_gone or None, 5, "a process that is gone")
        assert engine.exit_reason() is not None
    finally:
        engine.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is a signal on Linux only")
def test_the_engine_dies_with_its_parent() -> None:
    code = (
        "import sys, time; from octavo.launch.engine_process import EngineProcess;"
        "from octavo.base.config import EngineConfig;"
        f"e = EngineProcess.spawn(EngineConfig(), {FAKE!r}); e.wait_ready(); print(e.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=child_environment()) as parent:
        assert parent.stdout is not None
        engine = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    wait_gone(engine, 5)


def child_environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{TESTS.parent / 'src'}{os.pathsep}{TESTS}"}


def test_client_and_engine_over_the_real_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests, a call, an end that was asked for; then the same and a death."""

    async def main(engine: EngineProcess, is_killed: bool) -> None:
        client = EngineClient(await engine.connect(), engine.info, TOKENIZER, CONFIG, process=engine)
        client.start()
        assert await client.call("ping") == "pong"
        results = await asyncio.gather(*(fold(client.generate(request(n=2, max_tokens=20))) for _ in range(5)))
        assert {c.finish_reason for r in results for c in r.outputs} == {"length"}
        assert {r.num_output_tokens for r in results} == {40}
        if is_killed:
            stream = client.generate(request(prompt=5, max_tokens=4000))
            os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises(EngineDead, match="SIGKILL"):
                await fold(stream)
        await client.close()
        await engine.stop()
        assert engine.exit_reason() == (
            "it was killed by SIGKILL (out of memory?)" if is_killed else "it exited with code 0"
        )

    for is_killed in (False, True):
        engine = EngineProcess.spawn(CONFIG, FAKE)
        try:
            engine.wait_ready()
            asyncio.run(asyncio.wait_for(main(engine, is_killed), 30))
        finally:
            engine.kill()


# ---------------------------------------------------------------- what the launcher says
def named(model: str, *names: str) -> tuple[str, ...]:
    config = ServeConfig(
        engine=EngineConfig(model=ModelConfig(model=model)), server=ServerConfig(served_model_name=list(names))
    )
    return launch.served_names(config)


def test_the_model_is_called_as_asked_or_by_its_source(tmp_path: Path) -> None:
    file = tmp_path / "tiny.Q4_0.gguf"
    file.touch()
    assert named(str(file)) == (str(file), "tiny.Q4_0")
    assert named(str(tmp_path) + "/.") == (f"{tmp_path}/.", tmp_path.name)
    assert named("org/model") == ("org/model",)
    assert named(str(file), "a", "b") == ("a", "b")


def test_the_report_tells_what_fits() -> None:
    info = msgspec.structs.replace(
        INFO, num_kv_blocks=100, block_size=16, max_model_len=500, load_seconds={"weights": 1.25},
        ops={"linear": "cpu", "sample": "reference"},
    )  # fmt: skip
    report = "\n".join(launch.startup_report("tiny", info, 2.0))
    for part in ("1600 tokens", "fit at once: 3", "cpu (linear), reference (sample)", "in 2.0 s (weights 1.2)"):
        assert part in report
    stateful = msgspec.structs.replace(info, kv_group_windows=(), num_kv_blocks=2, kv_cache_bytes=0)
    assert "no KV cache: no layer has attention" in "\n".join(launch.startup_report("tiny", stateful, 2.0))


def test_progress_is_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = PhaseLog(lambda: now)
    with caplog.at_level("INFO", "octavo.launch.progress"):
        log("import", "")
        for i in range(30):
            now = i / 10
            log("weights", f"{i} of 30")
    assert [r.getMessage() for r in caplog.records] == [
        "engine: import", "engine: weights 0 of 30", "engine: weights 10 of 30", "engine: weights 20 of 30",
    ]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    with phase_report() as on_phase:
        on_phase("import", "")
        for i in (10, 20, 30):
            on_phase("weights", f"{i} of 30 tensors")
        on_phase("kv cache", "")
    return stderr.getvalue()


def test_weights_are_a_bar_on_a_terminal_that_is_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "octavo.launch.progress"):
        shown = report(Terminal(), monkeypatch)
        assert "engine: weights:  33%" in shown and "10/30" in shown and "tensors" in shown
        assert shown.endswith("\r") and shown.split("\r")[-2].strip() == ""
        assert [r.getMessage() for r in caplog.records] == ["engine: import", "engine: kv cache"]


def test_no_bar_is_drawn_into_a_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "octavo.launch.progress"):
        assert report(io.StringIO(), monkeypatch) == ""
    assert "engine: weights 10 of 30 tensors" in [r.getMessage() for r in caplog.records]


def test_a_bad_configuration_names_the_flag_before_anything_starts() -> None:
    with pytest.raises(InvalidConfig, match="--port"):
        launch.serve(ServeConfig(server=ServerConfig(port=70000)))


def test_tls_files_that_cannot_be_used_are_named_before_anything_starts(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for cert in (str(bad), "/no/cert"):
        server = ServerConfig(ssl_keyfile="/no/key", ssl_certfile=cert)
        with pytest.raises(InvalidConfig, match=f"--ssl-certfile {cert}"):
            launch.serve(ServeConfig(server=server))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_ciphers_that_openssl_has_not_are_named(tmp_path: Path) -> None:
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-subj", "/CN=a"]
    subprocess.run(make, check=True, capture_output=True)
    check_tls(ServerConfig(ssl_keyfile=key, ssl_certfile=cert, ssl_ciphers="ECDHE+AESGCM"))
    with pytest.raises(InvalidConfig, match="--ssl-ciphers NO-SUCH-CIPHER cannot be used"):
        check_tls(ServerConfig(ssl_keyfile=key, ssl_certfile=cert, ssl_ciphers="NO-SUCH-CIPHER"))


def test_the_child_finds_the_octavo_that_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(engine_process.octavo.__file__).parent.parent)
    monkeypatch.setattr("site.getsitepackages", list)
    assert engine_process.child_environment({"PYTHONPATH": "x", "A": "b"}) == {
        "PYTHONPATH": f"{root}{os.pathsep}x",
        "A": "b",
    }
    # In front of the standard library, the directory of all packages would do harm.
    monkeypatch.setattr("site.getsitepackages", lambda: [root])
    assert engine_process.child_environment({"A": "b"}) == {"A": "b"}
