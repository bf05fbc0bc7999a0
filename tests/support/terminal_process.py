"""`octavo COMMAND` in a terminal of its own: a pseudo-terminal whose keyboard and screen the test holds."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil

from support.server_process import bound, eventually

SOURCES = Path(__file__).parents[2] / "src"
CTRL_C, CTRL_D = "\x03", "\x04"
PASTE, END_OF_PASTE = "\x1b[200~", "\x1b[201~"
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class TerminalProcess:
    """One command. `screen` is all that it wrote, with its control sequences; `stdout` goes elsewhere if given."""

    def __init__(self, *words: str, env: dict[str, str] | None = None, stdout: int | None = None) -> None:
        self._master, terminal = pty.openpty()
        # xterm: readline turns its editing on, with bracketed paste.
        own = {"PYTHONPATH": str(SOURCES), "TERM": "xterm", "LC_ALL": "C.UTF-8", "INPUTRC": os.devnull}
        inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "OPENAI_API_KEY")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "octavo", *words],
            stdin=terminal, stdout=terminal if stdout is None else stdout, stderr=terminal,
            env=inherited | own | (env or {}),
            start_new_session=True,
            # The terminal must be the session's own, or Ctrl-C would be a character like others.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(terminal)
        self.screen = ""
        self._bytes = b""
        self._seen = 0  # characters of `text` that an earlier `expect` has passed

    @property
    def text(self) -> str:
        """The screen without control sequences, its lines ending in \\n."""
        return _SEQUENCE.sub("", self.screen).replace("\r", "")

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def enter(self, line: str) -> None:
        self.type(line + "\r")

    def interrupt(self) -> None:
        """Ctrl-C, as late as a person is: when the command waits again. One that comes between the last key and the
        wait is seen by Python at the next key only."""
        process = psutil.Process(self.process.pid)
        eventually(lambda: process.status() == psutil.STATUS_SLEEPING or None, 20, "a command that waits")
        self.type(CTRL_C)

    def expect(self, wanted: str, seconds: float = 20) -> None:
        """Wait until `wanted` stands on the screen, behind what was expected before."""
        deadline = time.monotonic() + bound(seconds)
        while (found := self.text.find(wanted, self._seen)) < 0:
            assert self._read(deadline), f"{wanted!r} is not behind {self.text[: self._seen]!r}: {self.text!r}"
        self._seen = found + len(wanted)

    def wait(self, seconds: float = 20) -> int:
        """The exit code; all that was written is in `screen` then."""
        deadline = time.monotonic() + bound(seconds)
        while self._read(deadline):
            pass
        return self.process.wait(bound(seconds))

    def _read(self, deadline: float) -> bool:
        """Take in what comes next; False at the end, or when nothing comes until the deadline."""
        if not select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self._bytes += data
        self.screen = self._bytes.decode(errors="replace")
        return bool(data)

    def __enter__(self) -> TerminalProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
