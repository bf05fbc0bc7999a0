"""The terminal, or what stands in its place: replies go to stdout, all else to stderr.

Piped, stdout gets the text of replies and nothing more: no colour, no thoughts, no prompts.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import TextIO

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
#: A model may write control characters, which must not move the cursor or rename the window: shown, not obeyed.
_SHOWN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_SHOWN |= dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)


class Screen:
    """Where a command writes. `is_terminal`: a person reads the replies."""

    def __init__(self, out: TextIO, err: TextIO, environ: Mapping[str, str]) -> None:
        self._out, self._err = out, err
        self.is_terminal = out.isatty()
        has_colour = not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"
        self._dims_out = has_colour and out.isatty()
        self._dims_err = has_colour and err.isatty()
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
            self._out.write("\n")
        self._is_line_open = False
        self._out.flush()

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
        self._out.write(text.translate(_SHOWN) if self.is_terminal else text)
        self._out.flush()
        self._is_line_open = not text.endswith("\n")


def tolerate_any_text() -> None:
    """Pipes and files are UTF-8, whatever the locale; what a terminal cannot show, and what is no text, is replaced."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
