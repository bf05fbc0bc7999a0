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
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import uvloop

from octavo.base.command_line import command_line
from octavo.base.config import EngineConfig, ServeConfig, ServerConfig, check, json_object
from octavo.base.errors import InvalidConfig
from octavo.base.log import setup_logging
from octavo.cache.spec import max_sequence_blocks
from octavo.files.generation_config import default_sampling
from octavo.launch.engine_process import EngineEnd, EngineProcess, launch_engine
from octavo.launch.listener import bind
from octavo.launch.media import load_processor, load_speech
from octavo.launch.place import OnlyPlace
from octavo.launch.serve_loop import TextSide, check_tls, run_server
from octavo.launch.startup import resolve, wait_loaded
from octavo.served.adapters import parse_modules
from octavo.served.output_settings import check_formats, output_settings
from octavo.server.keys import with_key_file
from octavo.server.mcp.servers import check_mcp
from octavo.server.plugins import load_middleware
from octavo.server.responses.store import check_store
from octavo.server.tokenizer_info import tokenizer_info
from octavo.server.tracing import check_tracing
from octavo.text.templates.renderer import Renderer
from octavo.text.tokenizers.tokenizer import Tokenizer
from octavo.text.tokenizers.vocabulary import all_eos_token_ids
from octavo.wire.messages import EngineInfo

__all__ = ["launch_engine", "serve"]

logger = logging.getLogger(__name__)

L = TypeVar("L")


class Stopped(KeyboardInterrupt):
    """A signal came while the server started. Not an `Exception`, so that no handler takes it for an error."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def serve(config: ServeConfig, notes: Sequence[tuple[int, str]] = ()) -> int:
    """Serve until told to stop; returns the exit code. Raises `StartupError`. To be called in the main thread.

    `notes`: levels of `logging` and lines, to be told after the settings.
    """
    check(config)
    check_tls(config.server)
    check_formats(config.server)
    if config.server.enable_sleep_mode and config.server.admin_api_key is None:
        raise InvalidConfig("--enable-sleep-mode needs --admin-api-key: its routes are for administrators")
    setup_logging(setup=config.server, process="server")
    started = time.monotonic()
    load_middleware(config.server.middleware)  # for its errors
    check_tracing(config.server)
    check_store(config.server)
    check_mcp(config.server)
    logger.info("settings: %s", command_line(config))
    for level, line in notes:
        logger.log(level, "%s", line)
    config = dataclasses.replace(config, server=with_key_file(config.server))
    if config.server.api_server_count > 1:
        from octavo.launch.supervisor import serve_by_several  # a server of one process does without it

        return serve_by_several(config, started)
    return run_with_model(config, partial(bind, config.server), partial(run_server, config, OnlyPlace()), started)


E = TypeVar("E", bound=EngineEnd)

#: What is done with a ready engine: its exit code.
Main = Callable[[tuple[str, ...], L, E, TextSide], Coroutine[Any, Any, int]]


def run_with_model(
    config: ServeConfig, listen: Callable[[], AbstractContextManager[L]], main: Main[L, EngineProcess], started: float
) -> int:
    """Start the engine of a checked configuration and run `main`, given the model's names, what `listen` bound before
    all else, the engine and the text side; the exit code. Raises `StartupError`; no process is left behind.

    `started`: when the start began, time.monotonic().
    """

    def run() -> int:
        with listen() as listener:
            resolved, defaults = found_model(config)
            engine = EngineProcess.spawn(resolved)
            try:
                return run_loaded(config, resolved, defaults, listener, engine, main, started)
            finally:
                engine.kill()

    return unless_stopped(run)


def found_model(config: ServeConfig) -> tuple[EngineConfig, dict[str, Any]]:
    """The engine's configuration with local paths, and what the model's files say of sampling.

    Raises `StartupError`.
    """
    check_modules(config, served_names(config))
    resolved = resolve(config.engine)
    return resolved, default_sampling(config.server, resolved.model.model)


def unless_stopped(run: Callable[[], int]) -> int:
    """The exit code of `run`, which TERM and INT end."""
    try:
        with _stopped_by_signals():
            return run()
    except Stopped as exc:
        logger.info("stopped by %s while starting", signal.Signals(exc.signum).name)
        return 128 + exc.signum


def run_loaded(
    config: ServeConfig,
    resolved: EngineConfig,
    defaults: dict[str, Any],
    listener: L,
    engine: E,
    main: Main[L, E],
    started: float | None = None,
) -> int:
    """Load the text side while the engine loads, and run `main`; the exit code. Raises `StartupError`.

    `started`: when the start began, for the report; None: it is told elsewhere.
    """
    tokenizer, renderer = wait_loaded(
        engine, resolved, lambda tokenizer: make_renderer(tokenizer, config.server), with_vocabulary=True
    )
    info = engine.info
    eos_token_ids = all_eos_token_ids(tokenizer, info)
    output = output_settings(config.server, tokenizer, renderer.template_sources, eos_token_ids)
    about = b"{}"
    if config.server.enable_tokenizer_info_endpoint:
        about = tokenizer_info(tokenizer, renderer.template_sources)
    processor = load_processor(resolved.model, info, tokenizer)
    vocabulary = load_speech(resolved.model, info, tokenizer)
    text = TextSide(tokenizer, renderer, output, defaults, about, processor, vocabulary)
    names = served_names(config)
    if started is not None:
        report(names[0], info, started)
    # All objects so far stay alive: the collector need not visit them again between two tokens.
    gc.collect()
    gc.freeze()
    with contextlib.closing(renderer), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main(names, listener, engine, text))


def make_renderer(tokenizer: Tokenizer, config: ServerConfig) -> Renderer:
    kwargs = config.default_chat_template_kwargs
    return Renderer(
        tokenizer,
        config.chat_template,
        content_format=config.chat_template_content_format,
        default_template_kwargs=json_object(kwargs, "--default-chat-template-kwargs") if kwargs is not None else None,
    )


def check_modules(config: ServeConfig, names: Sequence[str]) -> None:
    """Raise `InvalidConfig` for adapters of a kind that is not enabled, and for those that cannot be meant."""
    server, lora, prompts = config.server, "--enable-lora", "--enable-prompt-adapter"
    given = {
        "--lora-modules": (server.lora_modules, [lora]), "--prompt-adapters": (server.prompt_adapters, [prompts]),
        "--lora-resolver-dir": (server.lora_resolver_dir, [lora, prompts]),
        "--allow-runtime-lora-updating": (server.allow_runtime_lora_updating, [lora, prompts]),
    }  # fmt: skip
    enabled = {lora: config.engine.lora.enable_lora, prompts: config.engine.prompt_adapter.enable_prompt_adapter}
    for flag, (value, needed) in given.items():
        if value and not any(enabled[each] for each in needed):
            raise InvalidConfig(f"{flag} needs {' or '.join(needed)}")
    parse_modules(server, names)
    if server.lora_resolver_dir is not None and not Path(server.lora_resolver_dir).expanduser().is_dir():
        raise InvalidConfig(f"--lora-resolver-dir {server.lora_resolver_dir}: there is no such directory")


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


# ---------------------------------------------------------------- names and report
def served_names(config: ServeConfig) -> tuple[str, ...]:
    """The names by which clients may ask for the model: those of --served-model-name; else MODEL as it was given, and
    the last part of a local path. Metrics, and replies to requests without a name, carry the first."""
    if config.server.served_model_name:
        return tuple(config.server.served_model_name)
    model = config.engine.model.model
    path = Path(model).expanduser()
    if not path.exists():
        return (model,)
    name = path.resolve().name.removesuffix(".gguf")
    return (model, name) if name != model else (model,)


def report(name: str, info: EngineInfo, started: float) -> None:
    for line in startup_report(name, info, time.monotonic() - started):
        logger.info("%s", line)


def startup_report(name: str, info: EngineInfo, seconds: float) -> list[str]:
    """What is served and how, in a few lines."""
    split = ", ".join(f"{phase} {spent:.1f}" for phase, spent in info.load_seconds.items())
    by_kind: dict[str, list[str]] = {}
    for op, kind in sorted(info.ops.items()):
        by_kind.setdefault(kind, []).append(op)
    # When all operations have kernels of one kind, the kind is enough.
    ops = ", ".join(kind if len(by_kind) == 1 else f"{kind} ({' '.join(names)})" for kind, names in by_kind.items())
    return [
        f"model {name}: {info.model_type}, {info.num_params / 1e6:.0f} M parameters, {info.weight_bytes / 2**20:.0f} "
        f"MiB, weights {info.dtype}, quantization {info.quantization}",
        f"device {info.device}; kernels: {ops or 'none'}",
        f"context {info.max_model_len} tokens; at most {info.max_num_seqs} sequences and "
        f"{info.max_num_batched_tokens} tokens a step, {info.max_num_prefill_tokens} of prompts",
        _cache_report(info),
        f"started in {seconds:.1f} s ({split})" if split else f"started in {seconds:.1f} s",
    ]


def _cache_report(info: EngineInfo) -> str:
    windows = info.kv_group_windows
    if not windows:
        return "no KV cache: no layer has attention, and what layers keep of a sequence does not grow"
    each = max_sequence_blocks(windows, info.max_model_len, info.block_size, info.max_num_prefill_tokens)
    fit = (info.num_kv_blocks - 1) // max(1, each)
    blocks = f"{info.num_kv_blocks} blocks of {info.block_size}"
    if any(windows):
        blocks += (
            f" tokens for {len(windows)} groups of layers, windows {', '.join(map(str, sorted({*windows} - {0})))}"
        )
    else:
        blocks += f" = {info.num_kv_blocks * info.block_size} tokens"
    return (
        f"KV cache {info.kv_cache_bytes / 2**20:.0f} MiB of {info.kv_cache_dtype}: {blocks}; requests of full length "
        f"that fit at once: {fit}"
    )
