"""The engine process: `python -m octavo.core.process --fd N`, N being its end of the socket pair. Where several API
processes share the engine, the pair is the parent's, and each `--client-fd M` is the end of one with an API process.

Order of events: EngineConfig comes in; Phase... and then EngineInfo or StartupFailed go out; then the loop of
`EngineCore`. Exit codes: 0 after Shutdown, 1 when the start or a step failed (the traceback is in the log), 2 when
the peer went away without Shutdown or sent nonsense.

It never outlives its parent: the end of the socket ends it at any moment, also while the model loads, and so does
the parent's death (Linux: of the thread that started it, so start it from a thread that lives on). INT and TERM are
the parent's business: a terminal, or a service manager that stops a group, sends them to both processes, and the
parent needs the engine to finish what is in flight.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable

from octavo.base.child_process import leave_signals_to_parent
from octavo.base.config import EngineConfig
from octavo.base.errors import StartupError
from octavo.base.log import setup_logging
from octavo.core import faults
from octavo.core.clients import ClientConnections
from octavo.core.engine_core import EngineConnection, EngineCore
from octavo.core.executors.executor import Executor, UniprocExecutor
from octavo.wire.messages import Phase, Shutdown, StartupFailed, ToEngine
from octavo.wire.transport import BlockingConnection, TransportError

logger = logging.getLogger("octavo.core")

EXIT_FAILED = 1
EXIT_PEER_GONE = 2

# Takes the configuration and a function that reports (phase, detail).
MakeExecutor = Callable[[EngineConfig, Callable[[str, str], None]], Executor]


def main(argv: list[str] | None = None, make_executor: MakeExecutor = UniprocExecutor) -> int:
    """The whole life of the process; returns the exit code. Tests bring an executor of their own."""
    parser = argparse.ArgumentParser(prog="octavo.core.process")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--client-fd", type=int, action="append", default=[])
    args = parser.parse_args(argv)
    leave_signals_to_parent()
    setup_logging(process="engine")
    connection = BlockingConnection(socket.socket(fileno=args.fd))
    clients = [socket.socket(fileno=fd) for fd in args.client_fd]
    try:
        faults.arm_from_environment()
        config = connection.receive(EngineConfig)
        setup_logging(setup=config.log)
    except StartupError as exc:
        connection.send(StartupFailed(type(exc).__name__, exc.message))
        connection.close()
        return EXIT_FAILED
    except TransportError as exc:
        logger.error("No configuration arrived: %s", exc.message)
        return EXIT_PEER_GONE
    connection.start(ToEngine, on_close=_exit_at_once)
    if not clients:
        code = serve(config, connection, make_executor)
        connection.close()
        return code
    connections = ClientConnections(connection, clients)
    connections.start()
    code = serve(config, connections, make_executor)
    connections.close()
    return code


def serve(config: EngineConfig, connection: EngineConnection, make_executor: MakeExecutor) -> int:
    """Load the model, announce it, run the loop. Returns the exit code; raises nothing."""
    try:
        faults.fault("load")
        executor = make_executor(config, lambda name, detail: connection.send(Phase(name, detail)))
        info = executor.load()
        engine = EngineCore(config, info, executor, connection)
    except StartupError as exc:
        connection.send(StartupFailed(type(exc).__name__, exc.message))
        return EXIT_FAILED
    except Exception as exc:
        logger.exception("The engine could not start.")
        connection.send(StartupFailed(type(exc).__name__, f"{type(exc).__name__}: {exc}"))
        return EXIT_FAILED
    # What is alive now stays: the collector need not look at it again in the middle of a step.
    gc.collect()
    gc.freeze()
    connection.send(info)
    try:
        engine.run()
    except Exception:
        logger.critical("The engine failed and ends.", exc_info=True)
        return EXIT_FAILED
    return 0


def _exit_at_once(reason: TransportError, last_message: object) -> None:
    """Called in the reader thread. No clean-up: a step or a read of the weights may go on for long."""
    if isinstance(last_message, Shutdown):  # the peer did not wait for the rest
        os._exit(0)
    os.write(2, f"octavo engine: {reason.message}\n".encode())  # not the logger: another thread may hold its lock
    os._exit(EXIT_PEER_GONE)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    # Not sys.exit: the interpreter's end would wait for threads of native libraries.
    os._exit(code)
