"""Which MCP servers there are: those that the operator named, and those whose URLs requests may name."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from octavo.base.config import ServerConfig, json_object
from octavo.base.errors import InvalidConfig, InvalidRequest
from octavo.base.suggest import nearest
from octavo.media.addresses import BadURL, is_allowed_host, parse_target

_OF_URL: Final = ("url", "headers", "description")
_OF_COMMAND: Final = ("command", "args", "env", "cwd", "description")
#: Headers that are the connection's or the protocol's own.
_OWN_HEADERS: Final = frozenset(
    {"host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection", "accept",
     "accept-encoding", "upgrade", "te", "trailer", "expect", "last-event-id"}
)  # fmt: skip
#: What a server is called in requests.
LABEL: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
MAX_HEADERS, MAX_HEADER_CHARS = 64, 16384
#: Sessions of all responses at once; others wait within their time.
MAX_SESSIONS: Final = 64
_LEAVE_SECONDS: Final = 15.0


@dataclass(frozen=True)
class MCPServer:
    """One server. `is_trusted`: the operator named it, so that its address is not looked at. Of `url` and `command`
    one is there."""

    label: str
    url: str | None = field(default=None, repr=False)  # as all that follows, it may hold keys
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    command: str | None = None
    args: tuple[str, ...] = field(default=(), repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    description: str | None = None
    is_trusted: bool = True


class MCPServers:
    """Those of a server, and its open sessions."""

    def __init__(self, config: ServerConfig) -> None:
        """Raises `InvalidConfig`."""
        self.config = config
        self.places = asyncio.Semaphore(MAX_SESSIONS)
        self.tasks: set[asyncio.Task[None]] = set()  # of sessions, also of those that are being closed
        self._own = servers_of(config.mcp_servers)
        self._by_url = {server.url: server for server in self._own.values() if server.url is not None}

    def named(self, label: str, param: str) -> MCPServer:
        """The operator's server of that label. Raises `InvalidRequest`."""
        server = self._own.get(label)
        if server is None:
            raise InvalidRequest(
                f"This server knows no MCP server {label[:64]!r} (--mcp-servers)"
                f"{nearest(label[:64], tuple(self._own))}; give its `server_url` if it is another one.",
                param,
            )
        return server

    def at(self, label: str, url: str, param: str) -> MCPServer:
        """The server at a URL that a request names. Raises `InvalidRequest`."""
        try:
            target = parse_target(url)
        except BadURL as exc:
            raise InvalidRequest(f"The URL cannot be asked: {exc}.", param) from None
        own = self._by_url.get(target.url)
        if own is not None:
            return own
        domains = self.config.mcp_allowed_domains
        if not domains or not ("*" in domains or is_allowed_host(target.host, domains)):
            raise InvalidRequest(
                "The MCP server at this URL may not be asked: it is neither one of --mcp-servers nor is its host one "
                "of --mcp-allowed-domains.",
                param,
            )
        _check_package(InvalidRequest, param)
        return MCPServer(label, url=target.url, is_trusted=False)

    async def close(self) -> None:
        """Wait for the sessions, which are closed by whoever has opened them, to take leave."""
        if self.tasks:
            await asyncio.wait(set(self.tasks), timeout=_LEAVE_SECONDS)


def check_headers(headers: Mapping[str, str]) -> str | None:
    """What is wrong with headers that are to be sent, without their values; None: nothing."""
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers.items()) > MAX_HEADER_CHARS:
        return f"at most {MAX_HEADERS} headers of {MAX_HEADER_CHARS} characters are allowed"
    for name, value in headers.items():
        if not name or not name.isascii() or not all(char.isalnum() or char in "!#$%&'*+-.^_`|~" for char in name):
            return "a name of a header is not one"
        if name.lower() in _OWN_HEADERS or name.lower().startswith("mcp-"):
            return f"the header {name[:64]} is the connection's own"
        if any(not (" " <= char <= "~" or char == "\t") for char in value):
            return f"the value of the header {name[:64]} has characters that no header may have"
    return None


def servers_of(given: str | None) -> dict[str, MCPServer]:
    """The servers of `--mcp-servers`, by label. Raises `InvalidConfig`."""
    if given is None:
        return {}
    text = given
    if not given.lstrip().startswith("{"):
        try:
            with open(given, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as exc:
            raise InvalidConfig(f"--mcp-servers: the file cannot be read: {exc}") from None
    found = json_object(text, "--mcp-servers")
    if set(found) == {"mcpServers"} and isinstance(found["mcpServers"], dict):  # how other clients' files begin
        found = found["mcpServers"]
    return {label: _server(label, entry) for label, entry in found.items()}


def _server(label: str, entry: Any) -> MCPServer:
    place = f"--mcp-servers: {label}"
    if not LABEL.fullmatch(label):
        raise InvalidConfig(f"{place!r}: a label has up to 64 letters, digits, - and _, and begins with a letter")
    if not isinstance(entry, dict) or ("url" in entry) == ("command" in entry):
        raise InvalidConfig(f"{place} must be an object with either `url` or `command`")
    entry = dict(entry)
    kind = entry.pop("type", None)
    if kind not in (None, *(("http", "streamable-http", "streamable_http") if "url" in entry else ("stdio",))):
        raise InvalidConfig(f"{place}: a server of the type {kind!r} is not supported; there are http and stdio")
    known = _OF_URL if "url" in entry else _OF_COMMAND
    for key, value in entry.items():
        if key not in known:
            raise InvalidConfig(f"{place} has no key {key!r}{nearest(key, known)}")
        if not _is_right(key, value):
            raise InvalidConfig(f"{place}: {key} is not what it should be: {_SHOULD[key]}")
    entry = {key: value for key, value in entry.items() if value is not None}
    if "url" in entry:
        try:
            entry["url"] = parse_target(entry["url"]).url
        except BadURL as exc:
            raise InvalidConfig(f"{place}: the URL cannot be asked: {exc}") from None
        if (wrong := check_headers(entry.get("headers", {}))) is not None:
            raise InvalidConfig(f"{place}: {wrong}")
    if "args" in entry:
        entry["args"] = tuple(entry["args"])
    return MCPServer(label, **entry)


_SHOULD: Final = {
    "url": "a text", "command": "a text", "cwd": "a text", "description": "a text", "args": "a list of texts",
    "headers": "an object of texts", "env": "an object of texts",
}  # fmt: skip


def _is_right(key: str, value: Any) -> bool:
    if key in ("headers", "env"):
        return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    if key == "args":
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return isinstance(value, str) and bool(value)


def _check_package(error: type[InvalidConfig] | type[InvalidRequest], *param: str) -> None:
    if importlib.util.find_spec("mcp") is None:
        raise error("MCP servers need the package mcp on the server: pip install octavo[mcp]", *param)


def check_mcp(config: ServerConfig) -> None:
    """Raises `InvalidConfig` when the MCP servers cannot be used, before a model is loaded."""
    for server in servers_of(config.mcp_servers).values():
        if server.cwd is not None and not os.path.isdir(server.cwd):
            raise InvalidConfig(f"--mcp-servers: {server.label}: there is no directory {server.cwd}")
    if config.mcp_servers is not None or config.mcp_allowed_domains:
        _check_package(InvalidConfig)
