"""Keys, and what answers without one."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.base.config.options import opt


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Keys, and what answers without one."""

    api_key: list[str] = opt(
        list,
        "API key that clients must send; may be given several times, and any of the keys will do.",
        secret=True,
        one_word=True,
    )
    api_key_file: str | None = opt(None, "File with API keys, one a line; what follows a # is a comment.")
    admin_api_key: str | None = opt(
        None,
        "Key of the routes for administrators, such as /reset_prefix_cache; without it there are no such routes.",
        secret=True,
    )
    enable_sleep_mode: bool = opt(
        False, "Serve /sleep, /wake_up and /is_sleeping, which give memory back; with the key of --admin-api-key only."
    )
    public_paths: list[str] = opt(
        list,
        "Paths that answer without a key, beside /, /health and /ready: /metrics for a scraper.",
        choices=(
            "/metrics", "/load", "/ping", "/version", "/v1/models", "/tokenizer_info", "/openapi.json", "/docs",
            "/redoc",
        ),
    )  # fmt: skip
