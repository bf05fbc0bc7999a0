"""The terminal, or what stands in its place: replies go to stdout, all else to stderr.

Piped, stdout gets the text of replies and nothing more: no colour, no thoughts, no prompts.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from typing import TextIO

from octavo.base.errors import OctavoError

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
#: A model may write control characters, which must not move the cursor or rename the window: shown, not obeyed.
_SHOWN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_SHOWN |= dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)


class Screen:
    """Where a command writes. `is_terminal`: a person reads the replies."""

    def __init__(self, out: TextIO | None, err: TextIO | None, environ: Mapping[str, str]) -> None:
        """None: the stream is closed, as Python has it."""
        self._out, self._err = out or _nowhere(), err or _nowhere()
        self.is_terminal = self._out.isatty()
        has_colour = not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"
        self._dims_out = has_colour and self.is_terminal
        self._dims_err = has_colour and self._err.isatty()
        self._is_line_open = False
        self._is_thinking = False

    def write(self, text: str) -> None:
        """Text of a reply, as it comes."""
        if text:
            self._end_thoughts()
            self._put(text)

    def write_thought(self, text: str) -> None:
        """What the model thinks before it replies: dimmed in a terminal, left out elsewhere."""
        if not text or not self.is_terminal:
            return
        if not self._is_thinking:
            self._is_thinking = True
            self._out.write(_DIM if self._dims_out else "(thinking) ")
        self._put(text)

    def end(self) -> None:
        """End what was written with its line."""
        self._end_thoughts()
        if self._is_line_open:
            self._put("\n")

    def say(self, text: str, *, dim: bool = False) -> None:
        """A line, or lines, of the command itself."""
        self.end()
        print(f"{_DIM}{text}{_PLAIN}" if dim and self._dims_err else text, file=self._err, flush=True)

    def _end_thoughts(self) -> None:
        if self._is_thinking:
            self._is_thinking = False
            self._out.write((_PLAIN if self._dims_out else "") + ("\n\n" if self._is_line_open else "\n"))
            self._is_line_open = False

    def _put(self, text: str) -> None:
        self._is_line_open = not text.endswith("\n")
        try:
            self._out.write(text.translate(_SHOWN) if self.is_terminal else text)
            self._out.flush()
        except BrokenPipeError:
            raise  # the reader has had enough: no error
        except OSError as e:
            # What could not be written stays in the buffer, and Python would try again while it shuts down.
            self._out = sys.stdout = _nowhere()
            raise OctavoError(f"cannot write the reply: {e.strerror or e}") from None


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def tolerate_any_text() -> None:
    """Pipes and files are UTF-8, whatever the locale; what a terminal cannot show, and what is no text, is replaced."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
