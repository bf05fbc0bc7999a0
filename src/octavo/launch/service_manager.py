"""Word to the service manager that started the server, in the protocol of systemd's sd_notify(3).

One datagram with lines of NAME=value goes to the unix socket that $NOTIFY_SOCKET names. Without the variable nobody
waits for word. A word that does not arrive is logged and changes nothing: the manager acts on its own timeouts.
"""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger(__name__)


def tell_ready(status: str) -> None:
    """The server listens; what depends on it may start."""
    _send("READY=1", f"STATUS={status}")


def tell_stopping(status: str, seconds: float) -> None:
    """The server ends by itself within `seconds`; until then nobody need kill it, whatever the unit's own limit."""
    _send("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")


def _send(*lines: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # An @ stands for the zero byte of an abstract name.
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1.0)  # the manager reads at once, or does not read
            sock.connect(name)
            sock.send("\n".join(lines).encode())
    except OSError as exc:
        logger.warning("the service manager was not told (NOTIFY_SOCKET=%s): %s", address, exc.strerror or exc)
