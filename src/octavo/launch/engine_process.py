"""The engine process as its parent sees it: start, handshake, looks at its state, end; and as other API processes do.

The two share one socket pair. The child dies when its end sees EOF and when the parent dies, so nothing outlives
the server; and nothing with a name (socket file, shared memory, port) is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import site
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

import octavo
from octavo.base import errors
from octavo.base.config import EngineConfig
from octavo.base.errors import StartupError
from octavo.client.watchdog import ProcessState
from octavo.wire.messages import EngineInfo, FromEngine, Phase, StartupFailed, Vocabulary
from octavo.wire.transport import AsyncConnection, TransportError, encode_frame, make_decoder, receive_frame

#: How the engine is started; `--fd N` is added. -P: the working directory is no place to import from.
ENGINE_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "octavo.core.process")

_STOP_POLL_SECONDS = 0.01
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_RUNNABLE = (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)


def launch_engine(config: EngineConfig, on_phase: Callable[[str, str], None] | None = None) -> EngineProcess:
    """Start an engine and wait until it can serve. `config.model.model` is a local path.

    Call it from a thread that lives as long as the engine shall: on Linux the child dies with the thread that
    started it. Raises `StartupError`; no process is left then.
    """
    engine = EngineProcess.spawn(config)
    try:
        engine.wait_ready(on_phase)
    except BaseException:
        engine.kill()
        raise
    return engine


class EngineEnd:
    """An end of a connection with the engine: of its parent, or of an API process that has another parent."""

    info: EngineInfo  # after `wait_ready`

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self._sock: socket.socket | None = sock  # until the event loop has it
        self.has_vocabulary = False
        self._psutil: psutil.Process | None = None

    def wait_ready(self, on_phase: Callable[[str, str], None] | None = None) -> EngineInfo:
        """Wait for the handshake. `on_phase` is told what the engine does meanwhile.

        Raises `StartupError`; the socket is closed then, and the process is to be killed.
        """
        try:
            self.info = self._handshake(on_phase)
        except BaseException:
            if self._sock is not None:
                self._sock.close()
            raise
        return self.info

    def send_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Send it after `wait_ready` and before `connect`, which finds out should the process be gone."""
        assert self._sock is not None, "the socket was handed over before"
        with contextlib.suppress(OSError):
            self._sock.sendall(encode_frame(vocabulary))
        self.has_vocabulary = True

    async def connect(self) -> AsyncConnection[FromEngine]:
        """Hand the socket over to the running event loop, once, after `wait_ready`."""
        assert self._sock is not None, "the socket was handed over before"
        sock, self._sock = self._sock, None
        return await AsyncConnection.open(sock, FromEngine)

    # ------------------------------------------------------------ looks
    def exit_reason(self) -> str | None:
        """How the process ended, for a sentence; None while it runs, and for who is not its parent."""
        return None

    def probe(self) -> ProcessState:
        try:
            if self._psutil is None:
                self._psutil = psutil.Process(self.pid)
            status = self._psutil.status()
            times = self._psutil.cpu_times()
        except psutil.Error:
            return ProcessState(is_gone=True)
        return ProcessState(
            is_gone=status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD),
            is_stopped=status in _STOPPED,
            is_runnable=status in _RUNNABLE,
            cpu_seconds=times.user + times.system,
        )

    # ------------------------------------------------------------ end
    def kill(self) -> None:
        """Be done with the engine; a thread in `wait_ready` sees the end. May be called again, and from any thread."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    async def stop(self, timeout: float = 2.0) -> None:
        """The connection is closed: that is all, for who is not the parent."""

    # ------------------------------------------------------------ handshake
    def _handshake(self, on_phase: Callable[[str, str], None] | None) -> EngineInfo:
        decode = make_decoder(FromEngine)
        while True:
            try:
                assert self._sock is not None, "the socket was handed over before"
                message = decode(receive_frame(self._sock))
            except (TransportError, OSError) as exc:
                raise StartupError(f"The engine process ended while it started: {self._wait_exit()}.") from exc
            if isinstance(message, EngineInfo):
                return message
            if isinstance(message, StartupFailed):
                raise startup_error(message)
            if isinstance(message, Phase) and on_phase is not None:
                on_phase(message.name, message.detail)

    def _wait_exit(self) -> str:
        """The reason for an end whose EOF was seen."""
        return "it closed its connection"


class EngineProcess(EngineEnd):
    """Owner of the child and of the parent's end of the socket. `kill` or `stop` must be called in the end."""

    def __init__(
        self, process: subprocess.Popen[bytes], sock: socket.socket, clients: Sequence[socket.socket] = ()
    ) -> None:
        super().__init__(process.pid, sock)
        self._process = process
        #: Ends of connections for API processes, whose engine it then is. To be closed when those have them.
        self.clients = clients

    @classmethod
    def spawn(
        cls, config: EngineConfig, command: Sequence[str] | None = None, *, num_clients: int = 0
    ) -> EngineProcess:
        """Start the process and send it its configuration. Does not wait. `command`: instead of ENGINE_COMMAND.
        `num_clients`: API processes that share it; 0: this is the only one."""
        ours, theirs = socket.socketpair()
        pairs = [socket.socketpair() for _ in range(num_clients)]
        fds = [end.fileno() for _, end in pairs]
        client_fds = [word for fd in fds for word in ("--client-fd", str(fd))]
        try:
            process = subprocess.Popen(
                [*(command or ENGINE_COMMAND), "--fd", str(theirs.fileno()), *client_fds],
                pass_fds=(theirs.fileno(), *fds),
                stdin=subprocess.DEVNULL,
                env=child_environment(os.environ),
            )
        except OSError as exc:
            for sock in (ours, *(end for end, _ in pairs)):
                sock.close()
            raise StartupError(f"The engine process could not be started: {exc.strerror}.") from exc
        finally:
            # With the child's end open here its death would not close the connection.
            for sock in (theirs, *(end for _, end in pairs)):
                sock.close()
        engine = cls(process, ours, [end for end, _ in pairs])
        try:
            ours.sendall(encode_frame(config))
        except OSError as exc:
            engine.kill()
            raise StartupError(f"The engine process did not take its configuration: {exc.strerror}.") from exc
        return engine

    def exit_reason(self) -> str | None:
        code = self._process.poll()
        return None if code is None else exit_words(code)

    def ends_within(self, seconds: float) -> bool:
        """Wait for the end of the process, at most so long. May be called from another thread."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def kill(self) -> None:
        """End the process now, stopped ones too, and reap it. May be called again, and from another thread."""
        self._process.kill()
        self._process.wait()
        # A thread in `wait_ready` sees the end: the child's side of the socket closed when the child died.

    async def stop(self, timeout: float = 2.0) -> None:
        """Wait for the process, which has been told to stop, for at most `timeout` seconds; then kill it."""
        # Without a thread that waits: when the interpreter ends none can be started any more.
        deadline = time.monotonic() + timeout
        while self._process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110  (nothing tells of the end)
            await asyncio.sleep(_STOP_POLL_SECONDS)
        self.kill()

    def _wait_exit(self) -> str:
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return self.exit_reason() or "for an unknown reason"


def exit_words(code: int) -> str:
    """How a child ended, for a sentence. `code`: as `Popen.returncode`."""
    if code >= 0:
        return f"it exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"it was killed by {name}{hint}"


def startup_error(message: StartupFailed) -> StartupError:
    """The error that another process could not start of."""
    found = getattr(errors, message.error, StartupError)
    is_known = isinstance(found, type) and issubclass(found, StartupError)
    return found(message.message) if is_known else StartupError(message.message)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """A child's environment: it imports the octavo that runs here, however that was found."""
    root = str(Path(octavo.__file__).parent.parent)
    installed = {*site.getsitepackages(), site.getusersitepackages()}
    env = dict(environ)
    # An installed one is found anyway; its directory on PYTHONPATH would go before the standard library.
    if root not in installed:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environ.get("PYTHONPATH", "")]))
    return env
