"""The keys of a server: those in a file, and what a request that sends one may do."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from collections.abc import Iterator, Sequence
from pathlib import Path

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidConfig, Unauthorized
from octavo.server.http.errors import AdminKeyRequired
from octavo.server.http.exchange import ASGIApp, Exchange, Receive, Scope, Send, header_of

#: Paths that answer without a key. Everything else is refused by default, known route or not.
OPEN_PATHS = frozenset({"/", "/health", "/ready"})

_HOW = "Send one as `Authorization: Bearer <key>` or as `x-api-key: <key>`."


def open_paths(config: ServerConfig) -> frozenset[str]:
    """The paths that answer without a key."""
    return OPEN_PATHS | frozenset(config.public_paths)


def with_key_file(config: ServerConfig) -> ServerConfig:
    """The settings with the keys of `api_key_file` among those of `api_key`. Raises `InvalidConfig`."""
    if config.api_key_file is None:
        return config
    keys = read_keys(config.api_key_file)
    if config.admin_api_key in keys:
        raise InvalidConfig(f"--api-key-file {config.api_key_file} holds the key of --admin-api-key")
    return dataclasses.replace(config, api_key=[*config.api_key, *keys])


def read_keys(name: str) -> list[str]:
    """The keys of a file: one a line. Empty lines are left out, and what follows a #. Raises `InvalidConfig`.

    A key has no white space, so that a # in one is no comment.
    """
    try:
        text = Path(name).read_text(encoding="utf-8")
    except OSError as exc:
        raise InvalidConfig(f"--api-key-file {name} cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise InvalidConfig(f"--api-key-file {name} is not UTF-8 text: {exc}") from exc
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 1 and not words[1].startswith("#"):
            raise InvalidConfig(f"--api-key-file {name}, line {number}: more than a key and a comment")
        keys.append(words[0])
    if not keys:
        raise InvalidConfig(f"--api-key-file {name} holds no key, and would leave the server open")
    return keys


class Authentication:
    """Where there are keys, every path but the open ones needs one; a request with the administrators' may do all.

    Only digests are kept and compared: they have one length, and the comparison takes the same time whatever
    a client guessed. OPTIONS is exempt: browsers send it without credentials, and it does nothing.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in config.api_key]
        self._admin = [_digest(config.admin_api_key.encode())] if config.admin_api_key is not None else []
        self._open = open_paths(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = [_digest(key) for key in _sent_keys(scope)]
        owner = _first_known(sent, self._admin)
        if owner is not None:
            scope["octavo.is_admin"] = True
        elif self._digests and scope["method"] != "OPTIONS" and scope["path"] not in self._open:
            if not sent:
                raise Unauthorized(f"No API key was sent. {_HOW}")
            owner = _first_known(sent, self._digests)
            if owner is None:
                raise Unauthorized("Incorrect API key.")
        scope["octavo.owner"] = owner.hex() if owner is not None else ""
        scope["octavo.has_key"] = bool(sent)
        await self._app(scope, receive, send)


def check_admin(exchange: Exchange) -> None:
    """Raise `Unauthorized` or `AdminKeyRequired` unless the request came with the administrators' key."""
    if exchange.scope.get("octavo.is_admin"):
        return
    if not exchange.scope.get("octavo.has_key"):
        raise Unauthorized(f"This path needs the key of --admin-api-key. {_HOW}")
    raise AdminKeyRequired("This path needs the key of --admin-api-key, and another one was sent.")


def _sent_keys(scope: Scope) -> Iterator[bytes]:
    """What the first headers of each kind hold, in the order in which OpenAI's and Anthropic's clients are met."""
    if (authorization := header_of(scope, b"authorization")) is not None:
        scheme, _, key = authorization.strip().partition(b" ")
        yield key.strip() if scheme.lower() == b"bearer" else b""
    if (plain := header_of(scope, b"x-api-key")) is not None:
        yield plain.strip()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _first_known(sent: Sequence[bytes], known: Sequence[bytes]) -> bytes | None:
    pairs = [(digest, other) for digest in sent for other in known]
    matches = [hmac.compare_digest(digest, other) for digest, other in pairs]  # all, for equal time
    return next((digest for (digest, _), is_equal in zip(pairs, matches, strict=True) if is_equal), None)
