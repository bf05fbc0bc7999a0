"""What is logged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octavo.base.config.options import opt

LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is logged."""

    uvicorn_log_level: LogLevel = opt("info", "Log level of the HTTP server.")
    disable_log_stats: bool = opt(False, "Do not log throughput and cache use every 10 s.")
    disable_log_requests: bool = opt(True, "Do not log each request.", inverse=("enable_log_requests",))
    max_log_len: int | None = opt(None, "Maximum number of characters or token ids of a prompt in the log.", low=0)
