"""Which MCP servers' tools the Responses API may call for its callers."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.base.config.options import opt


@dataclass(frozen=True, kw_only=True)
class MCPConfig:
    """Which MCP servers' tools the Responses API may call for its callers."""

    mcp_servers: str | None = opt(
        None,
        'MCP servers whose tools requests of /v1/responses may use, by label: {"LABEL": {"url": ...}} or {"LABEL": '
        '{"command": ..., "args": [...]}}, as JSON or as a file that holds it.',
        secret=True,  # it may have headers with keys
    )
    mcp_allowed_domains: list[str] = opt(
        list,
        "Hosts of MCP servers that requests may name by URL; .example.org stands for all hosts below it, * for all "
        "public ones. Default: none.",
    )
    mcp_timeout: float = opt(
        60.0, "Seconds in which an MCP server must list its tools, or answer a call.", above=0.0, high=3600.0
    )
    mcp_max_bytes: int = opt(
        1 << 20,
        "Maximum size of what a call of an MCP tool, or a list of tools, gives.",
        low=1,
        unit="bytes",
    )
    mcp_max_calls: int = opt(32, "Most calls of MCP servers' tools that one response makes.", low=1, high=1024)
