"""A server that is ready: from listening to the exit code.

The first TERM or INT drains: idle connections end, and the port still answers, with 503 for new work, until the
requests in flight are done or their time is up; those that are left end with an error. A second signal ends everything
at once. When the engine dies, every request ends with an error, `/health` answers 503 for a moment, and the process
ends with exit code 1: its supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.base.config import ServeConfig, ServerConfig
from octavo.base.errors import InvalidConfig, ShuttingDown, StartupError
from octavo.client.engine_client import SHUT_DOWN, EngineClient
from octavo.launch.engine_process import EngineEnd
from octavo.launch.http_server import http_config
from octavo.launch.listener import Listener
from octavo.launch.place import Place
from octavo.launch.watchers import Watchers
from octavo.served.adapters import load_modules
from octavo.served.model import ServedModel
from octavo.served.models import Models
from octavo.served.parts import OutputSettings, Renderer
from octavo.server.app import create_app
from octavo.server.state import ServerState
from octavo.text.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from octavo.served.media import AnyProcessor
    from octavo.text.speech import SpeechVocabulary

logger = logging.getLogger(__name__)

#: Seconds for which the server still answers its clients after the engine's death.
DEATH_GRACE_SECONDS = 1.0
#: Seconds that the engine gets to finish its last step before it is killed.
ENGINE_STOP_SECONDS = 1.0
#: Seconds that the end takes at most when no request is left, as told to the service manager.
END_SECONDS = 10.0


@dataclass(frozen=True)
class TextSide:
    """What turns texts into the engine's tokens and back."""

    tokenizer: Tokenizer
    renderer: Renderer
    output: OutputSettings
    default_sampling: Mapping[str, Any]
    tokenizer_info: bytes = b"{}"  # JSON, for /tokenizer_info
    processor: AnyProcessor | None = None  # of a model that takes media
    vocabulary: SpeechVocabulary | None = None  # of one that transcribes


async def run_server(
    config: ServeConfig, place: Place, names: tuple[str, ...], listener: Listener, engine: EngineEnd, text: TextSide
) -> int:
    """Serve with a ready engine until told to stop; the value is the exit code."""
    return await ServeLoop(config, place, names, listener, engine).run(text)


class ServeLoop:
    """Owns the client and the HTTP server while they run. The engine process is stopped at the end of `run`, where it
    has this client only."""

    def __init__(
        self, config: ServeConfig, place: Place, names: tuple[str, ...], listener: Listener, engine: EngineEnd
    ) -> None:
        self._config = config
        self._place = place
        self._names = names
        self._listener = listener
        self._engine = engine
        self._exit_code = 0
        self._num_signals = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, text: TextSide) -> int:
        info = self._engine.info
        server, place = self._config.server, self._place
        watchers = Watchers(self._config, self._names[0], info, tells_engine=place.siblings.index == 0)
        self._client = EngineClient(
            await self._engine.connect(),
            info,
            text.tokenizer,
            self._config.engine,
            process=self._engine,
            observer=watchers.observer,
            on_dead=self._on_dead,
            has_vocabulary=self._engine.has_vocabulary,
            siblings=place.siblings,
            occupancy=place.occupancy,
        )
        model = served_model(self._config, self._names, self._client, text, place.adapter_numbers)
        if (taker := model.media or model.speech) is not None:
            watchers.metrics.tell_media(taker.stats)
        if info.max_loras:
            watchers.metrics.tell_adapters(self._client.adapter_names, info.max_loras)
        state = ServerState(server, Models([model]), watchers.metrics, self._config.engine, place.siblings, place.store)
        self._server = place.http_server(http_config(create_app(state), server), self._on_listening)
        await place.open(self._on_signal)
        self._client.start()
        try:
            await load_modules(model.adapters, server)
            if server.responses_store is not None and place.store is None:
                await state.store.open()
            await place.wait_turn(self._listener)
            await self._server.serve(self._listener.sockets)
        except OSError as exc:
            raise StartupError(f"Cannot listen on {self._listener.url}: {exc.strerror}.") from exc
        finally:
            is_hurried = self._num_signals > 1
            await self._client.close(0.0 if is_hurried else ENGINE_STOP_SECONDS)
            await self._engine.stop(0.0 if is_hurried else ENGINE_STOP_SECONDS)
            await watchers.close(hurried=is_hurried)
        return self._exit_code

    def _on_listening(self) -> None:
        self._place.tell_listening(self._names[0], self._listener)

    # ------------------------------------------------------------ ends
    def _on_signal(self, signum: int) -> None:
        self._num_signals += 1
        name = signal.Signals(signum).name
        if self._num_signals == 1:
            logger.info(
                "%s: draining %d sequences for at most %g s",
                name,
                self._client.num_unfinished,
                self._config.server.shutdown_timeout,
            )
            self._place.tell_leaving(
                f"draining {self._client.num_unfinished} sequences",
                self._config.server.shutdown_timeout + END_SECONDS,
            )
            self._client.start_draining()
            self._server.start_draining()
            self._spawn(self._drain())
        elif self._num_signals == 2:
            logger.warning("second signal (%s): ending at once", name)
            self._exit_code = 128 + signum
            self._client.abort_all(ShuttingDown(SHUT_DOWN))
            self._server.should_exit = True

    async def _drain(self) -> None:
        timeout = self._config.server.shutdown_timeout
        try:
            async with asyncio.timeout(timeout):
                await self._client.wait_idle()
        except TimeoutError:
            logger.warning("%d sequences were not finished in %g s", self._client.num_unfinished, timeout)
            self._client.abort_all(ShuttingDown(SHUT_DOWN))
        self._server.should_exit = True

    def _on_dead(self, reason: str) -> None:
        self._exit_code = self._exit_code or 1
        self._place.tell_leaving("the engine died", END_SECONDS)
        self._spawn(self._leave_after_death())

    async def _leave_after_death(self) -> None:
        await asyncio.sleep(DEATH_GRACE_SECONDS)
        self._server.should_exit = True

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def served_model(
    config: ServeConfig,
    names: tuple[str, ...],
    client: EngineClient,
    text: TextSide,
    adapter_numbers: Iterator[int] | None = None,
) -> ServedModel:
    """The model of an engine that can serve."""
    return ServedModel.of(
        config,
        client,
        client.info,
        names=names,
        tokenizer=text.tokenizer,
        renderer=text.renderer,
        default_sampling=text.default_sampling,
        tokenizer_info=text.tokenizer_info,
        output=text.output,
        processor=text.processor,
        vocabulary=text.vocabulary,
        adapter_numbers=adapter_numbers,
    )


def check_tls(config: ServerConfig) -> None:
    """Raise `InvalidConfig` for TLS files that cannot be used."""
    if config.ssl_certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = f"--ssl-certfile {config.ssl_certfile} and --ssl-keyfile {config.ssl_keyfile}"
    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
        if config.ssl_ca_certs is not None:
            files = f"--ssl-ca-certs {config.ssl_ca_certs}"
            context.load_verify_locations(config.ssl_ca_certs)
        if config.ssl_ciphers is not None:
            files = f"--ssl-ciphers {config.ssl_ciphers}"
            context.set_ciphers(config.ssl_ciphers)
    except OSError as exc:  # ssl.SSLError is one
        raise InvalidConfig(f"{files} cannot be used: {exc.strerror or exc}") from exc
