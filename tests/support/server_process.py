"""`octavo serve` as a process of its own, driven from outside, and a small HTTP client for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).parents[1]
#: The bounds in seconds that tests of real processes state are for a machine of their own; a shared one needs more.
TIME_SCALE = float(os.environ.get("OCTAVO_TEST_TIME_SCALE", "1"))
READY = "octavo serves "


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Stream:
    """A reply of server-sent events that is being read."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self.connection, self.response = connection, response
        self.status = response.status

    def __iter__(self) -> Iterator[Any]:
        """The events' data: decoded JSON, or "[DONE]". Ends where the body ends."""
        for line in self.response:
            if line.startswith(b"data: "):
                data = line[6:].strip()
                yield "[DONE]" if data == b"[DONE]" else json.loads(data)

    def close(self) -> None:
        # The response holds a file of its own on the socket: both must go for the peer to notice.
        self.response.close()
        self.connection.close()


class ServerProcess:
    """One server. `fake`: with the fake model's engine, which needs a directory with a tokenizer only. `program`: the
    file to run in place of `octavo`."""

    def __init__(
        self, model: Path, *flags: str, fake: bool = False, program: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        if fake:
            program = TESTS / "support" / "fake_serve.py"
        command = [str(program)] if program is not None else ["-m", "octavo"]
        port = () if "--port" in flags or "--uds" in flags else ("--host", "127.0.0.1", "--port", "0")
        path = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, *command, "serve", str(model), *port, *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
            env=os.environ | {"PYTHONPATH": path} | (env or {}),
        )  # fmt: skip
        self.started = time.monotonic()
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._stderr: list[str] = []
        self._threads = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.url = ""

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        self._stderr.extend(self.process.stderr)

    # ------------------------------------------------------------ life
    def wait_ready(self, timeout: float = 60) -> ServerProcess:
        deadline = time.monotonic() + bound(timeout)
        while (line := self._lines.get(timeout=max(0.01, deadline - time.monotonic()))) is not None:
            if line.startswith(READY):
                self.url = line.split(" at ")[-1].strip()
                return self
        raise AssertionError(f"exit code {self.wait(5)}:\n{self.stderr}")

    def wait(self, timeout: float) -> int:
        """The exit code."""
        code = self.process.wait(bound(timeout))
        for thread in self._threads:
            thread.join(5)
        return code

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    @property
    def stderr(self) -> str:
        return "".join(self._stderr)

    def wait_stderr(self, text: str, timeout: float = 20) -> None:
        eventually(lambda: text in self.stderr or None, timeout, f"{text!r} in the log")

    def engine(self) -> psutil.Process:
        """The engine process."""

        def find() -> psutil.Process | None:
            children = psutil.Process(self.process.pid).children()
            return next((child for child in children if "--fd" in child.cmdline()), None)

        found: psutil.Process = eventually(find, 20, "an engine process")
        return found

    def close(self) -> None:
        """Kill what is left."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------ HTTP
    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(self, method: str, path: str, body: Any = None, timeout: float = 60) -> Reply:
        connection = self.connect(timeout)
        try:
            response = self._send(connection, method, path, body)
            data = response.read()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, data)
        finally:
            connection.close()

    def stream(self, path: str, body: dict[str, Any], timeout: float = 60) -> Stream:
        """Sent, and its head received."""
        connection = self.connect(timeout)
        return Stream(connection, self._send(connection, "POST", path, body | {"stream": True}))

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any
    ) -> http.client.HTTPResponse:
        headers = {"content-type": "application/json"} if body is not None else {}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        return connection.getresponse()

    def complete(self, prompt: str = "one two three", timeout: float = 60, **fields: Any) -> Reply:
        return self.request("POST", "/v1/completions", {"prompt": prompt, **fields}, timeout)

    def metrics(self) -> dict[str, float]:
        """Sample name without labels -> value, of the samples that have one value."""
        values: dict[str, float] = {}
        for line in self.request("GET", "/metrics").body.decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                values[name.partition("{")[0]] = float(value)
        return values

    def wait_metric(self, name: str, wanted: Callable[[float], bool], timeout: float = 10) -> None:
        eventually(lambda: wanted(self.metrics()[name]) or None, timeout, name)


@dataclass
class Background:
    """Calls in threads, with their results in order."""

    results: list[Any] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, function: Callable[[], Any]) -> None:
        place = len(self.results)
        self.results.append(None)

        def run() -> None:
            try:
                self.results[place] = function()
            except Exception as exc:
                self.results[place] = exc

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def join(self, timeout: float) -> list[Any]:
        deadline = time.monotonic() + bound(timeout)
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a request hangs"
        return self.results


def bound(seconds: float) -> float:
    """`seconds` of a machine of its own, as seconds of this one."""
    return seconds * TIME_SCALE


def eventually(look: Callable[[], Any], timeout: float, what: str) -> Any:
    """The first result of `look` that is not None. Fails after `bound(timeout)` seconds."""
    deadline = time.monotonic() + bound(timeout)
    while time.monotonic() < deadline:
        result = look()
        if result is not None:
            return result
        time.sleep(0.02)
    raise AssertionError(f"not in {timeout} s: {what}")


def wait_gone(process: psutil.Process, timeout: float) -> None:
    """Wait for the end of a process that is not our child."""

    def is_gone() -> bool | None:
        try:
            return process.status() == psutil.STATUS_ZOMBIE or None
        except psutil.NoSuchProcess:
            return True

    eventually(is_gone, timeout, f"the end of process {process.pid}")


__all__ = ["Background", "Reply", "ServerProcess", "Stream", "bound", "eventually", "signal", "wait_gone"]
