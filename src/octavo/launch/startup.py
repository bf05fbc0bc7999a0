"""The part of a start that the server and `octavo.LLM` share: the engine and the tokenizer load side by side."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from octavo.base.config import EngineConfig, ModelConfig
from octavo.base.errors import StartupError
from octavo.files import sources
from octavo.launch.engine_process import EngineEnd
from octavo.launch.progress import phase_report
from octavo.text.templates.renderer import Renderer
from octavo.text.tokenizers.tokenizer import Tokenizer, load_tokenizer, without_tokenizer
from octavo.text.tokenizers.vocabulary import all_eos_token_ids, vocabulary_of

logger = logging.getLogger(__name__)

T = TypeVar("T")


def resolve(config: EngineConfig) -> EngineConfig:
    """The configuration with local paths, which is what the engine gets. Raises `CheckpointError`."""
    return dataclasses.replace(config, model=sources.resolve(config.model))


def wait_loaded(
    engine: EngineEnd,
    resolved: EngineConfig,
    make_renderer: Callable[[Tokenizer], Renderer],
    *,
    with_vocabulary: bool = False,
) -> tuple[Tokenizer, Renderer]:
    """Load the tokenizer and its renderer while the engine loads the weights; all are ready then.

    `with_vocabulary`: the engine has also been sent what it needs for grammars. To take it in may hold the engine up
    for a second, once: for a server the time is now, when there are no streams.

    Raises `StartupError`. The engine is then to be killed.
    """
    text = in_background(lambda: _load_text(resolved, make_renderer, with_vocabulary))
    # Without a tokenizer the weights are of no use: stop reading them.
    text.add_done_callback(lambda future: engine.kill() if future.exception() is not None else None)
    try:
        with phase_report() as on_phase:
            info = engine.wait_ready(on_phase)
    except StartupError:
        if text.done():
            text.result()  # the true cause, when it failed
        raise
    tokenizer, renderer, tokens = text.result()
    if tokens is not None:
        engine.send_vocabulary(vocabulary_of(tokenizer, all_eos_token_ids(tokenizer, info), tokens))
    renderer.max_model_len = info.max_model_len
    if tokenizer.max_token_id >= info.vocab_size:
        logger.warning(
            "the tokenizer's ids go up to %d, but the model has only %d; prompts with higher ids are refused",
            tokenizer.max_token_id,
            info.vocab_size,
        )
    return tokenizer, renderer


def _load_text(
    resolved: EngineConfig, make_renderer: Callable[[Tokenizer], Renderer], with_vocabulary: bool
) -> tuple[Tokenizer, Renderer, list[bytes] | None]:
    """The bytes of the tokens come with `with_vocabulary`, if the tokenizer knows them."""
    tokenizer = _tokenizer(resolved.model)
    renderer = make_renderer(tokenizer)
    return tokenizer, renderer, tokenizer.all_token_bytes() if with_vocabulary else None


def _tokenizer(config: ModelConfig) -> Tokenizer:
    place = config.tokenizer or config.model
    if config.skip_tokenizer_init:
        return without_tokenizer(place)
    return load_tokenizer(
        place,
        config.tokenizer_mode,
        trust_remote_code=config.trust_remote_code,
        code_revision=config.code_revision,
    )


def in_background(function: Callable[[], T]) -> Future[T]:
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
