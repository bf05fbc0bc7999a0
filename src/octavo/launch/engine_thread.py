"""An engine and its client's event loop in a thread of their own, for programs whose own threads do other things."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import uvloop

from octavo.base.config import ServeConfig
from octavo.base.errors import ShuttingDown
from octavo.client.engine_client import SHUT_DOWN, EngineClient
from octavo.files.generation_config import default_sampling
from octavo.launch.engine_process import EngineProcess
from octavo.launch.media import load_processor, load_speech
from octavo.launch.startup import resolve, wait_loaded
from octavo.served.media import AnyProcessor
from octavo.served.model import ServedModel
from octavo.served.output_settings import special_tokens
from octavo.served.parts import OutputSettings
from octavo.text.speech import SpeechVocabulary
from octavo.text.templates.renderer import Renderer
from octavo.text.tokenizers.tokenizer import Tokenizer

T = TypeVar("T")

#: Seconds that the engine gets to end its step at the end, before it is killed.
STOP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Ready:
    model: ServedModel
    tokenizer: Tokenizer
    loop: asyncio.AbstractEventLoop


class EngineThread:
    """Owner of the engine. It starts the process too: on Linux a child dies with the thread that started it, and the
    caller's thread may end before the engine shall."""

    def __init__(self, config: ServeConfig) -> None:
        # The program brings its own templates, and keeps its own logs.
        server = replace(config.server, trust_request_chat_template=True, disable_log_requests=True)
        self._config = replace(config, server=server)
        self._ready: concurrent.futures.Future[Ready] = concurrent.futures.Future()
        self._engine: EngineProcess | None = None
        self._is_stopped = False
        self._stop = asyncio.Event()
        # A daemon, so that a program ends that forgot `close`; the finalizer stops it before.
        self._thread = threading.Thread(target=self._main, name="octavo-llm", daemon=True)
        self._thread.start()

    def wait_ready(self) -> Ready:
        """Raises `StartupError`."""
        try:
            return self._ready.result()
        except BaseException:
            self._is_stopped = True
            if self._engine is not None:
                self._engine.kill()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which runs on the thread's loop. It is cancelled when the caller is interrupted."""
        if self._is_stopped or not self._thread.is_alive():
            work.close()
            raise ShuttingDown("This LLM is closed.")
        future = asyncio.run_coroutine_threadsafe(work, self._ready.result().loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ShuttingDown(SHUT_DOWN) from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the engine and the thread."""
        if self._is_stopped:
            return
        self._is_stopped = True
        loop = self._ready.result().loop
        if self._thread.is_alive() and not loop.is_closed():
            loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is not self._thread:  # the collector may run anywhere
            self._thread.join()

    def _main(self) -> None:
        try:
            resolved = resolve(self._config.engine)
            defaults = default_sampling(self._config.server, resolved.model.model)
            self._engine = EngineProcess.spawn(resolved)
            try:
                if self._is_stopped:
                    return  # interrupted meanwhile
                template = self._config.server.chat_template
                tokenizer, renderer = wait_loaded(
                    self._engine, resolved, lambda tokenizer: Renderer(tokenizer, template)
                )
                processor = load_processor(resolved.model, self._engine.info, tokenizer)
                vocabulary = load_speech(resolved.model, self._engine.info, tokenizer)
                with contextlib.closing(renderer), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(self._serve(self._engine, tokenizer, renderer, defaults, processor, vocabulary))
            finally:
                self._engine.kill()
        except BaseException as exc:
            if self._ready.done():
                raise
            self._ready.set_exception(exc)

    async def _serve(
        self,
        engine: EngineProcess,
        tokenizer: Tokenizer,
        renderer: Renderer,
        defaults: Mapping[str, Any],
        processor: AnyProcessor | None,
        vocabulary: SpeechVocabulary | None,
    ) -> None:
        client = EngineClient(await engine.connect(), engine.info, tokenizer, self._config.engine, process=engine)
        client.start()
        model = ServedModel.of(
            self._config,
            client,
            engine.info,
            names=(self._config.engine.model.model,),
            tokenizer=tokenizer,
            renderer=renderer,
            default_sampling=defaults,
            processor=processor,
            vocabulary=vocabulary,
            output=OutputSettings(special_tokens=special_tokens(tokenizer, client.eos_token_ids)),
        )
        self._ready.set_result(Ready(model, tokenizer, asyncio.get_running_loop()))
        await self._stop.wait()
        await client.close(STOP_SECONDS)
        await model.close()
        await engine.stop(STOP_SECONDS)
