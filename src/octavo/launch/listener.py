"""The sockets that the server listens on. They are bound before the model is read, so that a taken port, a wrong
address or a missing permission is known at once; they listen only when the server is ready.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from types import TracebackType
from typing import Any

from octavo.base.config import ServerConfig
from octavo.base.errors import StartupError

#: Tries to find a port that is free for every address, when any port will do.
_PORT_TRIES = 16

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]

_REASONS = {
    errno.EADDRINUSE: "the port is in use; choose another with --port",
    errno.EACCES: "permission denied",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


class Listener:
    """Bound sockets and the URL that leads to them. Leaving the context closes them and removes a socket file."""

    def __init__(self, sockets: list[socket.socket], url: str, path: str | None = None) -> None:
        self.sockets = sockets
        self.url = url
        self._path = path
        self._inode = os.stat(path).st_ino if path is not None else 0

    def make_reusable(self) -> None:
        """To be called just before listening: connections of today must not block the port after a restart.

        Not sooner: two servers may bind one port when both sockets allow it and neither listens yet.
        """
        for sock in self.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        path, self._path = self._path, None
        if path is None:
            return
        try:
            if os.stat(path).st_ino == self._inode:
                os.unlink(path)
        except OSError:
            return  # somebody was faster

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def bind(config: ServerConfig) -> Listener:
    """Bind what the configuration says. Raises `StartupError` with the reason."""
    if config.uds is not None:
        return _bind_path(config.uds)
    scheme = "https" if config.ssl_certfile else "http"
    addresses = _addresses(config.host, config.port)
    for last_try in [False] * (_PORT_TRIES - 1) + [True]:
        try:
            sockets = _bind_all(addresses, config.host is None)
            break
        except OSError as exc:
            if config.port == 0 and exc.errno == errno.EADDRINUSE and not last_try:
                continue  # free for the first address, taken for the second
            where = f"{config.host or 'all interfaces'}, port {config.port}"
            reason = _REASONS.get(exc.errno or 0, exc.strerror or str(exc))
            raise StartupError(f"Cannot listen on {where}: {reason}.") from exc
    port = sockets[0].getsockname()[1]
    return Listener(sockets, f"{scheme}://{_url_host(config.host)}:{port}")


def _addresses(host: str | None, port: int) -> list[_Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not a valid name"
        raise StartupError(f"Cannot listen on {host}: {reason}.") from exc
    addresses: list[_Address] = list(dict.fromkeys((family, tuple(address)) for family, _, _, _, address in found))
    # IPv4 first: it is there on every machine, and its port is the one to agree on.
    return sorted(addresses, key=lambda item: item[0] != socket.AF_INET)


def _bind_all(addresses: list[_Address], is_wildcard: bool) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            if sockets:  # the port that the first one got
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            try:
                sockets.append(_bind_tcp(family, address))
            except OSError as exc:
                # A machine without IPv6 still has names and wildcards for it.
                missing = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                if not (sockets and family == socket.AF_INET6 and is_wildcard and exc.errno in missing):
                    raise
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind_tcp(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    """Bind without sharing first, so that a server that still loads is seen; then past old connections."""
    for shared in (False, True):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shared)
            sock.bind(address)
            return sock
        except OSError as exc:
            sock.close()
            if shared or exc.errno != errno.EADDRINUSE:
                raise
    raise AssertionError("unreachable")


def _bind_path(path: str) -> Listener:
    """Bind a unix socket. A file that a server left behind is replaced; anything else is not touched."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
    except OSError as exc:
        sock.close()
        reason = "the socket is in use" if exc.errno == errno.EADDRINUSE else exc.strerror or str(exc)
        raise StartupError(f"Cannot listen on {path}: {reason}.") from exc
    except StartupError:
        sock.close()
        raise
    return Listener([sock], f"unix:{path}", path)


def _remove_stale(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartupError(f"Cannot listen on {path}: the file exists and is not a socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise StartupError(f"Cannot listen on {path}: a server answers there.")


def _url_host(host: str | None) -> str:
    """A host that a client on this machine can use."""
    if host is None:
        return "localhost"
    if host == "0.0.0.0":
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
