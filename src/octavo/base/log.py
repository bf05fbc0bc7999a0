"""Logging: one clean line a record on stderr, whatever a client sends.

Strings that a client controls are logged through `escape`, and the formatter escapes again whatever slipped
through: no record can forge a second line or drive a terminal.
"""

from __future__ import annotations

import json
import logging
import sys
import unicodedata
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from octavo.base.config import LogSetup, json_object
from octavo.base.errors import InvalidConfig

#: Most characters of one message; a traceback follows it on lines of its own.
MAX_LINE_CHARS = 4000

#: The id of the HTTP request that is being answered, for the log. A record may carry another, as `request_id`.
current_request_id: ContextVar[str] = ContextVar("octavo_request_id", default="")

_TRACE = 5
_process = "server"


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


class JSONFormatter(logging.Formatter):
    """One JSON object a line, whatever a record holds: `time` (UTC), `level`, `logger`, `process`, `pid`, `message`,
    and where there are any `request_id` and `exception`."""

    def __init__(self, process: str = "") -> None:
        """`process`: "server", "engine" or "batch"; by default that of the last `setup_logging`."""
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry: dict[str, Any] = {
            "time": time,
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process or _process,
            "pid": record.process,
        }
        request_id = getattr(record, "request_id", None) or current_request_id.get()
        if request_id:
            entry["request_id"] = request_id
        entry["message"] = _clipped(record.getMessage())
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = record.stack_info
        return json.dumps(entry)  # in ASCII: control characters and line separators are escapes


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_LINE_CHARS else f"{text[:MAX_LINE_CHARS]}... ({len(text)} characters)"


def setup_logging(level: str = "info", setup: LogSetup | None = None, process: str = "") -> None:
    """Send all logs to stderr, from `level` on ("trace" to "critical"), or as `setup` says, which then has the level.

    The HTTP server's loggers must have been left alone (uvicorn: log_config=None): they then come through here.
    `process` is named in JSON. Raises `InvalidConfig` for a configuration file that cannot be used.
    """
    global _process
    _process = process or _process
    logging.addLevelName(_TRACE, "TRACE")
    if setup is not None:
        level = setup.uvicorn_log_level
        if not setup.configure_logging:
            logging.getLogger().handlers.clear()
            return
        if setup.log_config_file is not None:
            _configure(setup.log_config_file)
            return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if setup is not None and setup.log_format == "json" else LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    number = _TRACE if level == "trace" else logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger("octavo").setLevel(number)
    logging.getLogger("uvicorn").setLevel(number)
    # A server that ran before in this process may have quietened its own.
    logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)


def _configure(name: str) -> None:
    place = f"--log-config-file {name}"
    try:
        settings = json_object(Path(name).read_bytes(), place)
    except OSError as exc:
        raise InvalidConfig(f"{place} cannot be read: {exc.strerror or exc}") from exc
    # Loggers exist by now that the file need not name: they keep their voice unless it says otherwise.
    settings.setdefault("disable_existing_loggers", False)
    logging.getLogger().handlers.clear()
    from logging.config import dictConfig  # it brings in pickle and sockets, of which the engine has no need

    try:
        dictConfig(settings)
    except (ValueError, TypeError, AttributeError, ImportError) as exc:
        cause = f": {exc.__cause__}" if exc.__cause__ is not None else ""
        raise InvalidConfig(f"{place} is no configuration of Python's logging: {exc}{cause}") from exc
