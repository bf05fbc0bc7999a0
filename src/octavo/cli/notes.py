"""What a start tells of its settings beside the settings: what needed nothing done, and what has no effect."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from octavo.base.config import ServerConfig

#: A level of `logging`, and a line.
Note = tuple[int, str]


def notes(accepted: Iterable[str], warnings: Iterable[str], config: ServerConfig) -> list[Note]:
    """`accepted`: flags and variables of vLLM, with their values; `warnings`: lines of their own."""
    words = ", ".join(accepted)
    told: list[Note] = (
        [(logging.INFO, f"accepted, nothing to do: {words} (docs/from-vllm.md says why)")] if words else []
    )
    return told + [(logging.WARNING, line) for line in (*warnings, *_without_effect(config))]


def _without_effect(config: ServerConfig) -> Iterator[str]:
    """Settings that count together with others only, which were not given."""
    if not config.allowed_origins:
        for option, is_set in (
            ("--allow-credentials", config.allow_credentials),
            ("--allowed-methods", config.allowed_methods != ["*"]),
            ("--allowed-headers", config.allowed_headers != ["*"]),
        ):
            if is_set:
                yield f"{option} has no effect without --allowed-origins: no page of another site is answered"
    if config.max_log_len is not None and config.disable_log_requests:
        yield "--max-log-len has no effect without --enable-log-requests"
    if config.collect_detailed_traces and config.otlp_traces_endpoint is None:
        yield "--collect-detailed-traces has no effect without --otlp-traces-endpoint"
    if config.profiler_dir is not None and config.admin_api_key is None:
        yield "--profiler-dir has no effect without --admin-api-key: there are no routes for administrators"
    if config.public_paths and not (config.api_key or config.api_key_file):
        yield "--public-paths has no effect without --api-key: no path needs a key"
