"""Logging: one clean line a record on stderr, whatever a client sends.

Strings that a client controls are logged through `escape`, and the formatter escapes again whatever slipped
through: no record can forge a second line or drive a terminal.
"""

from __future__ import annotations

import logging
import sys
import unicodedata

#: Most characters of one message; a traceback follows it on lines of its own.
MAX_LINE_CHARS = 4000

_TRACE = 5


def escape(text: str, limit: int = 500) -> str:
    """`text` on one line: control, format and lone surrogate characters as escapes, at most `limit` characters."""
    clipped = text[:limit]
    if not (clipped.isascii() and clipped.isprintable()):
        clipped = "".join(_visible(char) for char in clipped)
    return clipped if len(text) <= limit else f"{clipped}... ({len(text)} characters)"


def _visible(char: str) -> str:
    # Categories C*: control, format (right-to-left overrides), surrogate, private, unassigned; Zl, Zp break lines.
    if unicodedata.category(char)[0] == "C" or unicodedata.category(char) in ("Zl", "Zp"):
        return char.encode("unicode_escape").decode("ascii")
    return char


class LineFormatter(logging.Formatter):
    """`12:34:56.789 INFO  octavo.server: message`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # another handler's, if any: it is not escaped
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escape(record.message, MAX_LINE_CHARS)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        # Indented: the text of an exception may have lines of its own, which must not look like records.
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join("  " + escape(line, MAX_LINE_CHARS) for line in text.split("\n"))


def setup_logging(level: str = "info") -> None:
    """Send all logs to stderr, from `level` on ("trace" to "critical").

    The HTTP server's loggers must have been left alone (uvicorn: log_config=None): they then come through here.
    """
    logging.addLevelName(_TRACE, "TRACE")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    number = _TRACE if level == "trace" else logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger("octavo").setLevel(number)
    logging.getLogger("uvicorn").setLevel(number)
    # A server that ran before in this process may have quietened its own.
    logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)
