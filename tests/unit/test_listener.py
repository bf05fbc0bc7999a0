"""Binding: a reason for every refusal, nothing left behind, and no two servers on one port."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from octavo.base.config import ServerConfig
from octavo.base.errors import StartupError
from octavo.launch.listener import Listener, bind


def config(**changes: Any) -> ServerConfig:
    changes.setdefault("port", 0)
    if "uds" not in changes:
        changes.setdefault("host", "127.0.0.1")
    return ServerConfig(**changes)


def port_of(listener: Listener) -> int:
    return int(listener.sockets[0].getsockname()[1])


def test_port_0_is_any_port_and_the_url_says_which() -> None:
    with bind(config()) as listener:
        assert listener.url == f"http://127.0.0.1:{port_of(listener)}"
        assert port_of(listener) > 0


def test_nobody_can_connect_before_the_server_listens() -> None:
    with bind(config()) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(listener)), 2)


def test_e1_all_interfaces_share_one_port() -> None:
    with bind(config(host=None)) as listener:
        ports = {sock.getsockname()[1] for sock in listener.sockets}
        assert len(ports) == 1
        assert listener.url == f"http://localhost:{ports.pop()}"
        assert listener.sockets[0].family == socket.AF_INET


@pytest.mark.parametrize("is_listening", [False, True])
def test_a_taken_port_is_refused_also_while_its_owner_still_loads(is_listening: bool) -> None:
    with bind(config()) as first:
        if is_listening:
            first.make_reusable()
            first.sockets[0].listen()
        with pytest.raises(StartupError, match="the port is in use"):
            bind(config(port=port_of(first)))


def test_a_restart_may_take_the_port_past_old_connections() -> None:
    with bind(config()) as first:
        port = port_of(first)
        first.make_reusable()
        first.sockets[0].listen()
        client = socket.create_connection(("127.0.0.1", port), 2)
        accepted, _ = first.sockets[0].accept()
        accepted.close()  # this side closes first, so it keeps the connection in TIME_WAIT
        client.close()
    with bind(config(port=port)) as second:
        second.sockets[0].listen()


@pytest.mark.parametrize(
    ("host", "reason"),
    [("192.0.2.1", "no such address"), ("no-such-host.invalid", "Cannot listen on no-such-host.invalid")],
)
def test_a_bad_host_is_named(host: str, reason: str) -> None:
    with pytest.raises(StartupError, match=reason):
        bind(config(host=host))


def test_a_socket_file_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "octavo.sock"
    with bind(config(uds=str(path))) as listener:
        assert path.is_socket()
        assert listener.url == f"unix:{path}"
    assert not path.exists()


def test_a_stale_socket_file_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "octavo.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with bind(config(uds=str(path))) as listener:
        listener.sockets[0].listen()
        with pytest.raises(StartupError, match="a server answers there"):
            bind(config(uds=str(path)))
        assert path.is_socket()


def test_a_file_that_is_no_socket_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(StartupError, match="is not a socket"):
        bind(config(uds=str(path)))
    assert path.read_text() == "mine"


def test_a_socket_in_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="No such file or directory"):
        bind(config(uds=str(tmp_path / "missing" / "octavo.sock")))


def test_a_socket_file_that_somebody_replaced_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "octavo.sock"
    with bind(config(uds=str(path))):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"
