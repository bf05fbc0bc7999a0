"""The server's application without a server: for a program in this process, until its work is done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from octavo.base.config import ServeConfig, check
from octavo.client.engine_client import EngineClient
from octavo.launch.engine_process import EngineProcess
from octavo.launch.http_server import HTTPServer, http_config
from octavo.launch.listener import Listener, bind
from octavo.launch.serve_loop import ENGINE_STOP_SECONDS, TextSide, served_model
from octavo.launch.server import run_with_model
from octavo.launch.watchers import Watchers
from octavo.served.adapters import load_modules
from octavo.served.models import Models
from octavo.served.output_settings import check_formats
from octavo.server.app import create_app, routes
from octavo.server.http.exchange import ASGIApp, ASGIMessage
from octavo.server.http.routing import Route
from octavo.server.mcp.servers import check_mcp
from octavo.server.state import ServerState
from octavo.server.tracing import check_tracing

logger = logging.getLogger(__name__)

#: What is served over HTTP beside the work, to whoever watches it.
_WATCHED = ("/metrics", "/health")


@dataclass(frozen=True)
class InProcess:
    """The application for one ready engine, and what it is made of."""

    app: ASGIApp
    routes: Sequence[Route]
    state: ServerState


Work = Callable[[InProcess], Coroutine[Any, Any, None]]


def run_in_process(config: ServeConfig, work: Work, *, serves_metrics: bool = False) -> int:
    """Start an engine, do `work` with its application, end the engine; the exit code.

    TERM and INT cancel the work; the value is then 128 + the signal's number. What `work` raises is raised, and
    `StartupError`. To be called in the main thread. `serves_metrics`: at the configuration's host and port.
    """
    started = time.monotonic()
    check(config)
    check_formats(config.server)
    check_tracing(config.server)
    check_mcp(config.server)
    listen: Callable[[], AbstractContextManager[Listener | None]]
    listen = partial(bind, config.server) if serves_metrics else contextlib.nullcontext
    return run_with_model(config, listen, partial(_run, config, work), started)


async def _run(
    config: ServeConfig,
    work: Work,
    names: tuple[str, ...],
    listener: Listener | None,
    engine: EngineProcess,
    text: TextSide,
) -> int:
    watchers = Watchers(config, names[0], engine.info)
    client = EngineClient(
        await engine.connect(),
        engine.info,
        text.tokenizer,
        config.engine,
        process=engine,
        observer=watchers.observer,
        has_vocabulary=engine.has_vocabulary,
    )
    model = served_model(config, names, client, text)
    if (taker := model.media or model.speech) is not None:
        watchers.metrics.tell_media(taker.stats)
    state = ServerState(config.server, Models([model]), watchers.metrics, config.engine)
    table = routes(state)
    watched = create_app(state, [route for route in table if route.path in _WATCHED])
    client.start()
    try:
        await load_modules(model.adapters, config.server)
        async with _listening(watched, config, listener) if listener is not None else _lifespan(watched):
            return await _until_signal(work(InProcess(create_app(state, table), table, state)))
    finally:
        await client.close(ENGINE_STOP_SECONDS)
        await engine.stop(ENGINE_STOP_SECONDS)
        await watchers.close()


async def _until_signal(work: Coroutine[Any, Any, None]) -> int:
    task = asyncio.create_task(work)
    code = 0

    def stop(signum: int) -> None:
        nonlocal code
        code = code or 128 + signum
        task.cancel()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop, signum)
    try:
        await task
    except asyncio.CancelledError:
        if not code:
            raise
    return code


@contextlib.asynccontextmanager
async def _listening(app: ASGIApp, config: ServeConfig, listener: Listener) -> AsyncIterator[None]:
    """The application at its port, in the block."""
    server = HTTPServer(http_config(app, config.server), lambda: logger.info("metrics at %s/metrics", listener.url))
    listener.make_reusable()
    serving = asyncio.create_task(server.serve(listener.sockets))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def _lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """The application's start, and its end behind the block, as an HTTP server drives them."""
    inbox: asyncio.Queue[ASGIMessage] = asyncio.Queue()
    started = asyncio.Event()

    async def send(message: ASGIMessage) -> None:
        started.set()

    async def run() -> None:
        await app({"type": "lifespan"}, inbox.get, send)

    life = asyncio.create_task(run())
    await inbox.put({"type": "lifespan.startup"})
    await started.wait()
    try:
        yield
    finally:
        await inbox.put({"type": "lifespan.shutdown"})
        await life
