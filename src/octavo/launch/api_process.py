"""One of several API processes: `python -m octavo.launch.api_process --control N`, N being its end of a socket pair.

Its parent sends it the settings; it loads the text side while the engine loads, says that it is ready, and serves when
all are. Signals are the parent's business, which hands them on. Exit codes are those of a server, and 1 when the parent
is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import sys
from functools import partial

from octavo.base.child_process import leave_signals_to_parent
from octavo.base.errors import StartupError
from octavo.base.log import setup_logging
from octavo.launch.engine_process import EngineEnd
from octavo.launch.listener import Listener
from octavo.launch.serve_loop import run_server
from octavo.launch.server import run_loaded
from octavo.launch.shared_place import SharedPlace
from octavo.wire.api_messages import Setup
from octavo.wire.messages import StartupFailed
from octavo.wire.transport import TransportError, encode_frame, make_decoder, receive_frame

logger = logging.getLogger("octavo.launch")


def main(argv: list[str] | None = None) -> int:
    """The whole life of the process; returns the exit code."""
    parser = argparse.ArgumentParser(prog="octavo.launch.api_process")
    parser.add_argument("--control", type=int, required=True)
    args = parser.parse_args(argv)
    leave_signals_to_parent(with_children=False)  # MCP servers are told by TERM to end
    setup_logging(process="server")
    control = socket.socket(fileno=args.control)
    last_words = control.dup()  # the event loop closes the other
    try:
        setup: Setup = make_decoder(Setup)(receive_frame(control))
    except (TransportError, OSError) as exc:
        logger.error("No settings arrived: %s", exc)
        return 1
    try:
        return serve(setup, control)
    except StartupError as exc:
        with contextlib.suppress(OSError):
            last_words.sendall(encode_frame(StartupFailed(type(exc).__name__, exc.message)))
        return exc.exit_code


def serve(setup: Setup, control: socket.socket) -> int:
    """Serve until told to stop; returns the exit code. Raises `StartupError`."""
    setup_logging(setup=setup.config.server, process=f"server {setup.index}")
    listener = Listener([socket.socket(fileno=fd) for fd in setup.listen_fds], setup.url)
    engine = EngineEnd(setup.engine_pid, socket.socket(fileno=setup.engine_fd))
    main = partial(run_server, setup.config, SharedPlace(setup, control))
    return run_loaded(setup.config, setup.resolved, setup.default_sampling, listener, engine, main)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # as the engine: what a library left running must not hold up the end
