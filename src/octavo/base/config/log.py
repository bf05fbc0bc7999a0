"""What is logged, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octavo.base.config.options import opt

LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]


@dataclass(frozen=True, kw_only=True)
class LogSetup:
    """How both processes log: the engine's gets it with its configuration."""

    uvicorn_log_level: LogLevel = opt("info", "Level of the log: of octavo's and of its HTTP server's.")
    log_format: Literal["text", "json"] = opt("text", "Lines of the log: text, or a JSON object each.")
    log_config_file: str | None = opt(
        None,
        "JSON file for Python's logging.config.dictConfig, which then sets up the log of both processes.",
    )
    configure_logging: bool = opt(
        True, "Set up the log. Without that, it is as Python has it, or as a middleware sets it up: warnings on stderr."
    )


@dataclass(frozen=True, kw_only=True)
class LogConfig(LogSetup):
    """What is logged."""

    disable_log_stats: bool = opt(False, "Do not log throughput and cache use every 10 s.")
    disable_log_requests: bool = opt(
        True, "Do not log each request, with its prompt, and its end.", inverse=("enable_log_requests",)
    )
    max_log_len: int | None = opt(
        None,
        "Maximum number of characters and of token ids of a prompt in the log; default: what fits a line.",
        low=0,
    )
