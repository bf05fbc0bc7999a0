"""The API processes of a server as their parent sees them: start, first word, end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from octavo.base.config import EngineConfig, ServeConfig
from octavo.base.errors import StartupError
from octavo.client.siblings import Occupancy
from octavo.launch.engine_process import EngineProcess, child_environment, exit_words, startup_error
from octavo.launch.listener import Listener
from octavo.wire.api_messages import FromApiProcess, Setup
from octavo.wire.messages import StartupFailed
from octavo.wire.transport import TransportError, encode_frame, make_decoder, receive_frame

#: How one is started; `--control N` is added. -P: the working directory is no place to import from.
API_COMMAND: Final = (sys.executable, "-P", "-m", "octavo.launch.api_process")

#: Seconds that a process gets to end whose connection has ended.
_EXIT_SECONDS: Final = 5.0
_EXIT_POLL_SECONDS: Final = 0.01


class ApiProcess:
    """One child, and the parent's end of the socket pair with it."""

    def __init__(self, index: int, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.index, self.process, self.control = index, process, control

    def kill(self) -> None:
        """End it now, and reap it. May be called again."""
        self.process.kill()
        self.process.wait()

    async def exit_code(self) -> int:
        """Of a process whose connection has ended; it is killed if it does not end."""
        deadline = time.monotonic() + _EXIT_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110  (nothing tells of the end)
            await asyncio.sleep(_EXIT_POLL_SECONDS)
        self.kill()
        return self.process.returncode


@contextlib.contextmanager
def api_processes(
    config: ServeConfig,
    resolved: EngineConfig,
    default_sampling: dict[str, Any],
    listener: Listener,
    engine: EngineProcess,
) -> Iterator[list[ApiProcess]]:
    """As many as `config` says, one for each of `engine.clients`, in the block. Raises `StartupError`.

    To be called in a thread that lives as long as they: on Linux a child dies with the thread that started it.
    """
    count = config.server.api_server_count
    processes: list[ApiProcess] = []
    occupancy_fd = _zeros(Occupancy.size(count))
    try:
        for index, client in enumerate(engine.clients):
            setup = Setup(
                index=index, count=count, config=config, resolved=resolved, default_sampling=default_sampling,
                url=listener.url, listen_fds=[sock.fileno() for sock in listener.sockets],
                engine_fd=client.fileno(), engine_pid=engine.pid, occupancy_fd=occupancy_fd,
            )  # fmt: skip
            processes.append(_spawn(setup))
            client.close()  # with it open here the end of the process would not end the connection
        yield processes
    finally:
        os.close(occupancy_fd)
        for client in engine.clients:
            client.close()
        for process in processes:
            process.kill()
            process.control.close()


def _spawn(setup: Setup) -> ApiProcess:
    ours, theirs = socket.socketpair()
    # The parent alone speaks with the service manager.
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    try:
        process = subprocess.Popen(
            [*API_COMMAND, "--control", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), setup.engine_fd, setup.occupancy_fd, *setup.listen_fds),
            stdin=subprocess.DEVNULL,
            env=child_environment(environment),
        )
    except OSError as exc:
        ours.close()
        raise StartupError(f"An API process could not be started: {exc.strerror}.") from exc
    finally:
        theirs.close()
    found = ApiProcess(setup.index, process, ours)
    # One that is gone already is found by `wait_ready`.
    with contextlib.suppress(OSError):
        ours.sendall(encode_frame(setup))
    return found


def _zeros(size: int) -> int:
    """A file descriptor of memory for all children. It has no name, as everything between processes here."""
    if sys.platform == "linux":
        fd = os.memfd_create("octavo")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def wait_ready(processes: Sequence[ApiProcess]) -> None:
    """Wait until all have said that they are ready. Raises `StartupError` with the reason of one that is not."""
    decode = make_decoder(FromApiProcess)
    with selectors.DefaultSelector() as selector:
        for each in processes:
            selector.register(each.control, selectors.EVENT_READ, each)
        while selector.get_map():
            for key, _ in selector.select():
                process: ApiProcess = key.data
                selector.unregister(process.control)
                try:
                    message = decode(receive_frame(process.control))
                except (TransportError, OSError) as exc:
                    raise StartupError(f"An API process ended while it started: {_exit_of(process)}.") from exc
                if isinstance(message, StartupFailed):
                    raise startup_error(message)


def _exit_of(process: ApiProcess) -> str:
    try:
        return exit_words(process.process.wait(1.0))
    except subprocess.TimeoutExpired:
        return "it closed its connection"
