"""`octavo serve`: from a configuration to a server that answers, and from there to an exit code.

The order of a start: check the configuration, bind the sockets, find the model's files, start the engine, load the
tokenizer while the engine loads the weights, report, listen. A failure anywhere raises `StartupError` and leaves no
process behind; a signal in this time ends it at once.

Exit codes: 0 after TERM or INT, when the requests in flight were finished or told; 128 + the signal's number when a
signal came while starting, or a second one while draining; 1 when the engine died.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import uvloop

from octavo import sources
from octavo.config import EngineConfig, ServeConfig, check
from octavo.engine_process import EngineProcess, launch_engine
from octavo.errors import StartupError
from octavo.generation_config import default_sampling
from octavo.listener import Listener, bind
from octavo.log import setup_logging
from octavo.messages import EngineInfo
from octavo.serve_loop import check_tls, run_server
from octavo.text.renderer import Renderer
from octavo.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["launch_engine", "serve"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Stopped(KeyboardInterrupt):
    """A signal came while the server started. No `Exception`, so that nothing on its way takes it for an error."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def serve(config: ServeConfig) -> int:
    """Serve until told to stop; returns the exit code. Raises `StartupError`. To be called in the main thread."""
    check(config)
    check_tls(config.server)
    setup_logging(config.server.uvicorn_log_level)
    started = time.monotonic()
    try:
        with _stopped_by_signals(), bind(config.server) as listener:
            resolved = _resolve(config.engine)
            defaults = default_sampling(config.server, resolved.model.model)
            engine = EngineProcess.spawn(resolved)
            try:
                return _serve(config, resolved, defaults, listener, engine, started)
            finally:
                engine.kill()
    except Stopped as exc:
        logger.info("stopped by %s while starting", signal.Signals(exc.signum).name)
        return 128 + exc.signum


def _serve(
    config: ServeConfig,
    resolved: EngineConfig,
    defaults: dict[str, Any],
    listener: Listener,
    engine: EngineProcess,
    started: float,
) -> int:
    text = _in_background(lambda: _load_text(config, resolved))
    # Without a tokenizer the weights are of no use: stop reading them.
    text.add_done_callback(lambda future: engine.kill() if future.exception() is not None else None)
    try:
        info = engine.wait_ready(PhaseLog())
    except StartupError:
        if text.done():
            text.result()  # the true cause, when it failed
        raise
    tokenizer, renderer = text.result()
    renderer.max_model_len = info.max_model_len
    if tokenizer.max_token_id >= info.vocab_size:
        logger.warning(
            "the tokenizer's ids go up to %d, but the model has only %d; prompts with the others are refused",
            tokenizer.max_token_id,
            info.vocab_size,
        )
    names = served_names(config)
    for line in startup_report(names[0], info, time.monotonic() - started):
        logger.info("%s", line)
    # What is alive now stays: the collector need not look at it again between two tokens.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_server(config, names, listener, engine, tokenizer, renderer, defaults))


# ---------------------------------------------------------------- the start
@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """In the block TERM and INT raise `Stopped`, once; the clean-up that follows is not disturbed."""

    def stop(signum: int, frame: FrameType | None) -> None:
        for handled in previous:
            signal.signal(handled, signal.SIG_IGN)
        raise Stopped(signum)

    previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _resolve(config: EngineConfig) -> EngineConfig:
    """The configuration with local paths, which is what the engine gets. Raises `CheckpointError`."""
    return dataclasses.replace(config, model=sources.resolve(config.model))


def _load_text(config: ServeConfig, resolved: EngineConfig) -> tuple[Tokenizer, Renderer]:
    """Raises `StartupError`."""
    tokenizer = load_tokenizer(resolved.model.tokenizer or resolved.model.model)
    return tokenizer, Renderer(tokenizer, config.server.chat_template)


def _in_background(function: Callable[[], T]) -> Future[T]:
    """Run `function` in a thread that does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = function()
        except BaseException as exc:  # noqa: BLE001  # whoever waits for the future gets it
            future.set_exception(exc)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="octavo-text", daemon=True).start()
    return future


class PhaseLog:
    """Logs what the engine does while it starts: each phase, and its progress once in `INTERVAL` seconds."""

    INTERVAL = 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._name = ""
        self._time = 0.0

    def __call__(self, name: str, detail: str) -> None:
        now = self._clock()
        if name != self._name or now - self._time >= self.INTERVAL:
            self._name, self._time = name, now
            logger.info("engine: %s", f"{name} {detail}".strip())


# ---------------------------------------------------------------- names and report
def served_names(config: ServeConfig) -> tuple[str, ...]:
    """What clients may call the model: the given names; else what the command line said, and for a local path its
    last part too. The first is the one that replies and metrics carry."""
    if config.server.served_model_name:
        return tuple(config.server.served_model_name)
    model = config.engine.model.model
    path = Path(model).expanduser()
    if not path.exists():
        return (model,)
    name = path.resolve().name.removesuffix(".gguf")
    return (model, name) if name != model else (model,)


def startup_report(name: str, info: EngineInfo, seconds: float) -> list[str]:
    """What is served and how, in a few lines."""
    tokens = info.num_kv_blocks * info.block_size
    fit = tokens // max(1, info.max_model_len)
    by_kind: dict[str, list[str]] = {}
    for op, kind in sorted(info.ops.items()):
        by_kind.setdefault(kind, []).append(op)
    # One way for all is said in a word; otherwise the exceptions are what matters.
    ops = ", ".join(kind if len(by_kind) == 1 else f"{kind} ({' '.join(names)})" for kind, names in by_kind.items())
    split = ", ".join(f"{phase} {spent:.1f}" for phase, spent in info.load_seconds.items())
    return [
        f"model {name}: {info.model_type}, {info.num_params / 1e6:.0f} M parameters, {info.weight_bytes / 2**20:.0f} "
        f"MiB, weights {info.dtype}, quantization {info.quantization}",
        f"device {info.device}; kernels: {ops or 'none'}",
        f"context {info.max_model_len} tokens; at most {info.max_num_seqs} sequences and "
        f"{info.max_num_batched_tokens} tokens a step",
        f"KV cache {info.kv_cache_bytes / 2**20:.0f} MiB of {info.kv_cache_dtype}: {info.num_kv_blocks} blocks of "
        f"{info.block_size} = {tokens} tokens; requests of full length that fit at once: {fit}",
        f"started in {seconds:.1f} s ({split})" if split else f"started in {seconds:.1f} s",
    ]
