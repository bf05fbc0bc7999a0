"""Messages from the keyboard: lines with readline's editing and history, which may be continued.

A line that ends in a backslash goes on in the next. Three quotes begin a text of any lines, up to the next three
quotes. What is pasted stays one message, where the terminal marks pastes (bracketed paste).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

from octavo.base.errors import InvalidConfig
from octavo.cli.screen import Screen

PROMPT, CONTINUED = "> ", "... "
_QUOTES = '"""'


@dataclass(frozen=True)
class Message:
    """What was entered. `is_quoted`: between triple quotes, so that it is no command whatever it begins with."""

    text: str
    is_quoted: bool = False


def converse(screen: Screen, answer: Callable[[Message], bool]) -> int:
    """Read messages and pass them to `answer` until it returns False, or until Ctrl-D or two Ctrl-C; the exit code."""
    read = _line_reader(screen)
    was_interrupted = False
    while True:
        try:
            message = read_message(read)
            was_interrupted = False
            if not answer(message):
                return 0
        except EOFError:
            screen.say("")
            return 0
        except KeyboardInterrupt:
            # Readline leaves the line as it is; what was entered of it, or of its block, is dropped.
            screen.say("")
            if was_interrupted:
                return 0
            was_interrupted = True
            screen.say("Ctrl-C again, or Ctrl-D, ends.", dim=True)


def read_message(read: Callable[[str], str]) -> Message:
    """`read` gives the line that is entered at a prompt. Its EOFError and KeyboardInterrupt pass."""
    line = read(PROMPT)
    if line.lstrip().startswith(_QUOTES):
        return Message(_quoted(line.lstrip()[len(_QUOTES) :], read), is_quoted=True)
    text = line
    while text.endswith("\\"):
        text = text[:-1] + "\n" + read(CONTINUED)
    return Message(text)


def _quoted(first: str, read: Callable[[str], str]) -> str:
    """The text up to the closing quotes, without the ends of line beside the quotes."""
    lines = [first]
    while not lines[-1].rstrip().endswith(_QUOTES):
        lines.append(read(CONTINUED))
    lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
    return "\n".join(lines).removeprefix("\n").removesuffix("\n")


def _line_reader(screen: Screen) -> Callable[[str], str]:
    if not screen.is_terminal:
        return _plain_line
    with contextlib.suppress(ImportError):  # a Python built without it reads plain lines
        import readline

        # Python switches it off; without it each pasted line would be a message.
        readline.parse_and_bind("set enable-bracketed-paste on")
    return input


def _plain_line(prompt: str) -> str:
    """Read a line with the prompt on stderr, for when stdout is not the terminal."""
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def piped_text(flag: str) -> str | None:
    """The whole of stdin, without its last end of line, where it is no terminal; else None.

    Raises `InvalidConfig` when there is nothing.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        return None
    text = "" if sys.stdin is None else sys.stdin.read().removesuffix("\n")
    if not text.strip():
        raise InvalidConfig(f"nothing to send: stdin is empty; {flag} TEXT gives it on the command line")
    return text
