"""`octavo.LLM`: a model for programs, without a server.

The engine runs in a process of its own, as under the server, and a thread here runs its client's event loop; results
are folds of the same streams of deltas, so that they are the server's results. The calls block, and may come from any
thread and from within a running event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import msgspec
from tqdm import tqdm  # type: ignore[import-untyped]

from octavo.base.config import EngineConfig, ServeConfig, ServerConfig, check
from octavo.base.errors import InvalidConfig, InvalidRequest, Overloaded
from octavo.base.params import BeamParams, SamplingParams, with_types
from octavo.base.suggest import nearest
from octavo.client.generation import FinalOutput, fold
from octavo.client.sleep_mode import SLEEP_LEVELS
from octavo.launch.engine_thread import EngineThread
from octavo.offline.adapters import (
    LoRARequest,
    LoRARequests,
    PromptAdapterRequest,
    PromptAdapterRequests,
    with_adapters,
)
from octavo.offline.media import given_media
from octavo.offline.outputs import CompletionOutput, Logprob, RequestOutput, request_output
from octavo.offline.pooling import PoolingCalls
from octavo.offline.transcription import TranscriptionCalls, TranscriptionOutput
from octavo.served.model import Prepared, ServedModel
from octavo.served.turn import Continuation, Conversation, MediaOptions, Turn
from octavo.text.grammars.grammar import spec_of_params
from octavo.text.tokenizers.tokenizer import Tokenizer
from octavo.wire.messages import EngineInfo

__all__ = [
    "LLM",
    "CompletionOutput",
    "LoRARequest",
    "Logprob",
    "PromptAdapterRequest",
    "RequestOutput",
    "TranscriptionOutput",
]

T = TypeVar("T")
#: Settings that may be mappings in place of JSON.
_JSON_SETTINGS = (
    "override_generation_config", "structured_outputs_config", "hf_overrides", "pooler_config", "rope_scaling",
    "limit_mm_per_prompt", "media_io_kwargs", "mm_processor_kwargs",
)  # fmt: skip
#: A text, token ids, or either in a dictionary under `prompt` or `prompt_token_ids`, with `multi_modal_data`: "image",
#: "audio" or "video" -> one or a list, in the order of the model's placeholders in the prompt. Of a model with an
#: encoder that is the encoder's input; or both, in a dictionary under `encoder_prompt` and `decoder_prompt`.
Prompt: TypeAlias = str | list[int] | Mapping[str, Any]
Messages: TypeAlias = list[Mapping[str, Any]]

#: Settings of the server that mean something to a program.
SERVER_SETTINGS = (
    "chat_template", "max_logprobs", "max_n", "generation_config", "override_generation_config", "max_grammar_bytes",
    "max_schema_depth", "grammar_timeout", "grammar_cache_bytes", "disable_additional_properties",
    "disable_any_whitespace", "structured_outputs_config", "enable_sleep_mode", "limit_mm_per_prompt",
    "allowed_media_domains", "allowed_local_media_path", "media_fetch_timeout", "media_decode_timeout",
    "max_media_bytes", "max_image_pixels", "max_audio_seconds", "max_video_frames", "max_file_pages",
    "media_io_kwargs", "mm_processor_kwargs", "mm_processor_cache_bytes",
)  # fmt: skip
#: What `generate` does when it is told nothing; the same as /v1/completions.
DEFAULT_MAX_TOKENS = 16
#: Seconds between two tries while other threads' requests fill the queue.
RETRY_SECONDS = 0.05


class LLM(PoolingCalls, TranscriptionCalls):
    """A loaded model. Ends with `close`, at the end of a `with` block, or with the last reference to it.

    `LLM("org/repo", max_model_len=4096, ...)`: the model as `octavo serve` takes it, the fields of `ModelConfig`,
    `CacheConfig`, `SchedulerConfig`, `ParallelConfig`, `LoraConfig` and `PromptAdapterConfig`, and those of
    `ServerConfig` in `SERVER_SETTINGS`; those that hold JSON, such as `override_generation_config` and
    `limit_mm_per_prompt`, may be mappings.
    Raises `StartupError`; no process is left then.
    """

    def __init__(self, model: str = "smollm2", **settings: Any) -> None:
        config = offline_config(model, settings)
        self._sleeps = config.server.enable_sleep_mode
        self._thread = EngineThread(config)
        self._ready = self._thread.wait_ready()
        self._model = self._ready.model
        # Not a bound method of self, which would keep it alive.
        self._finalizer = weakref.finalize(self, self._thread.stop)

    # ------------------------------------------------------------ life
    def close(self) -> None:
        """End the engine. Calls in progress in other threads raise `ShuttingDown`. May be called again."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    @property
    def info(self) -> EngineInfo:
        """What the engine says of itself: context, sizes, quantization, kernels."""
        return self._model.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._ready.tokenizer

    def get_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json says, and `override_generation_config`; octavo's defaults beside."""
        return SamplingParams(**self._model.default_sampling)

    # ------------------------------------------------------------ profiles
    def start_profile(self, directory: str, *, with_torch: bool = True) -> None:
        """Record the engine's steps, and what torch does in them, for files in `directory`. Raises `ServerError`."""
        self._thread.run(self._model.engine.start_profile(os.path.abspath(directory), with_torch=with_torch))

    def stop_profile(self) -> list[str]:
        """Write what was recorded; the value are the files. Raises `ServerError`."""
        recorded = self._thread.run(self._model.engine.stop_profile())
        return list(recorded["files"])

    # ------------------------------------------------------------ sleep
    def sleep(self, level: int = 1) -> None:
        """Give memory back and keep the engine's process: 1, the KV cache, and of a GPU the weights, which the host
        keeps; 2, the weights too. Waits for calls in progress; those that come raise `Asleep`.

        Needs `enable_sleep_mode=True`. Raises `ServerError` where it cannot be done; the model is then as it was.
        """
        if not self._sleeps:
            raise InvalidRequest("Sleeping needs `LLM(..., enable_sleep_mode=True)`.", "enable_sleep_mode")
        if level not in SLEEP_LEVELS:
            raise InvalidRequest("`level` is 1 or 2.", "level")
        self._thread.run(self._model.engine.sleep_mode.sleep(level, waits=True))

    def wake_up(self) -> None:
        """Be ready again. Raises `ServerError` where it cannot be done; the model sleeps on then."""
        self._thread.run(self._model.engine.sleep_mode.wake_up())

    # ------------------------------------------------------------ generation
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        priority: Sequence[int] | None = None,
        beams: BeamParams | None = None,
        lora_request: LoRARequests = None,
        prompt_adapter_request: PromptAdapterRequests = None,
    ) -> list[RequestOutput]:
        """The results for all prompts, in their order, generated together; with `beams` the best of a beam search.

        One `sampling_params` for all prompts or one for each; none means the model's defaults, with 16 tokens if they
        do not say. `lora_request`, `prompt_adapter_request`: the adapter of all prompts, or of each. All prompts
        are checked before any is started. Raises `RequestError` naming what is wrong, or `ServerError`.
        """
        if not isinstance(prompts, str | Mapping | Sequence):
            raise InvalidRequest("`prompts` is a prompt or a list of prompts.", "prompts")
        items: Sequence[Any] = [prompts] if _is_one_prompt(prompts) else list(prompts)
        given = [_prompt(item, i) for i, item in enumerate(items)]
        return self._run(
            given, sampling_params, DEFAULT_MAX_TOKENS, priority, use_tqdm, beams, lora_request, prompt_adapter_request
        )

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        lora_request: LoRARequests = None,
        prompt_adapter_request: PromptAdapterRequests = None,
    ) -> list[RequestOutput]:
        """The replies to one conversation or to several. `prompt` of a result is the conversation as the model saw it.

        Without `sampling_params` the model's defaults count, and a reply is as long as they or the context allow, as
        with /v1/chat/completions.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "`continue_final_message` and `add_generation_prompt` cannot both be true.", "continue_final_message"
            )
        is_one = bool(messages) and isinstance(messages[0], Mapping)
        given = [
            _Given(
                Conversation(
                    messages=conversation,  # type: ignore[arg-type]
                    tools=tools,
                    documents=documents,
                    add_generation_prompt=not continue_final_message and add_generation_prompt is not False,
                    continue_final_message=continue_final_message,
                    chat_template=chat_template,
                    chat_template_kwargs=chat_template_kwargs,
                    media_options=MediaOptions(mm_processor_kwargs),
                ),
                "messages",
            )
            for conversation in ([messages] if is_one else messages)
        ]
        return self._run(given, sampling_params, None, None, use_tqdm, None, lora_request, prompt_adapter_request)

    def _run(
        self,
        prompts: list[_Given],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        default_max_tokens: int | None,
        priority: Sequence[int] | None,
        use_tqdm: bool,
        beams: BeamParams | None = None,
        lora_request: LoRARequests = None,
        prompt_adapter_request: PromptAdapterRequests = None,
    ) -> list[RequestOutput]:
        beams = with_types(beams) if beams is not None else None
        if sampling_params is None:
            default_max_tokens = self._model.default_sampling.get("max_tokens", default_max_tokens)
            chosen: list[SamplingParams | Mapping[str, Any]] = [{}] * len(prompts)
        else:
            params = _one_each(sampling_params, len(prompts))
            distinct = {id(one): self._settled(one, beams) for one in {id(one): one for one in params}.values()}
            chosen = [distinct[id(one)] for one in params]
        turns = [
            Turn(
                request_id=f"llm-{uuid.uuid4().hex}",
                prompts=[given.prompt],
                sampling=sampling,
                prompt_param=given.param,
                default_max_tokens=default_max_tokens,
                beams=beams,
                priority=rank,
                is_whole=True,
            )
            for given, sampling, rank in zip(prompts, chosen, _priorities(priority, len(prompts)), strict=True)
        ]
        models = self._thread.run(with_adapters(self._model, lora_request, prompt_adapter_request, len(turns)))
        prepared = self._thread.run(_prepare_all(models, turns))
        with _Progress(len(turns), enabled=use_tqdm) as progress:
            window = 2 * self._model.info.max_num_seqs
            finals = self._thread.run(_generate_all(self._model, prepared, window, progress.note))
        return [
            request_output(one, given.shown, final, self.tokenizer)
            for one, given, final in zip(prepared, prompts, finals, strict=True)
        ]

    def _settled(self, params: SamplingParams, beams: BeamParams | None) -> SamplingParams:
        """`params` with fields of the declared types, and with the grammar that they ask for, proven to compile."""
        params = _normalised(params)
        if params.grammar is not None:
            raise InvalidRequest(
                "`grammar` is made from `structured_outputs`, which says what the output is.", "grammar"
            )
        spec = spec_of_params(params, self._model.grammar_limits)
        if spec is None or beams is not None:  # beams go with no grammar, which is said where they are checked
            return params
        grammar = self._thread.run(_retried(lambda: self._model.proven(spec)))
        return msgspec.structs.replace(params, structured_outputs=None, guided_decoding=None, grammar=grammar)


@dataclass(frozen=True, slots=True)
class _Given:
    """A prompt as the program gave it. `shown`: a text that goes with token ids."""

    prompt: Conversation | Continuation
    param: str
    shown: str | None = None


def _prompt(item: Any, place: int) -> _Given:
    param = f"prompts.{place}"
    both = {"encoder_prompt", "decoder_prompt"}
    if isinstance(item, Mapping) and item.keys() & both:
        if unknown := sorted(item.keys() - both):
            raise InvalidRequest(f"`{unknown[0]}` goes into the prompt of the encoder or of the decoder.", param)
        for name, given in item.items():
            if isinstance(given, Mapping) and given.get("multi_modal_data"):
                raise InvalidRequest("Media cannot stand in it, only text or ids.", f"{param}.{name}.multi_modal_data")
        prompt, text = _one_prompt(item.get("encoder_prompt"), f"{param}.encoder_prompt")
        decoder = item.get("decoder_prompt")
        if decoder is not None:
            decoder, _ = _one_prompt(decoder, f"{param}.decoder_prompt")
        return _Given(Continuation(prompt=prompt, decoder_prompt=decoder), param, text)
    prompt, text = _one_prompt(item, param)
    media = given_media(item, param) if isinstance(item, Mapping) else {}
    return _Given(Continuation(prompt=prompt, **media), param, text)


def _one_prompt(item: Any, param: str) -> tuple[str | list[int], str | None]:
    """A prompt, and the text that goes with ids."""
    text: str | None = None
    if isinstance(item, Mapping):
        text = item.get("prompt") if isinstance(item.get("prompt"), str) else None
        item = item.get("prompt_token_ids") or item.get("prompt", "")
    if isinstance(item, str):
        return item, None
    if isinstance(item, Sequence) and all(type(i) is int for i in item):
        return list(item), text
    raise InvalidRequest("A prompt is a text, a list of token ids, or a dictionary with one.", param)


def offline_config(model: str, settings: Mapping[str, Any]) -> ServeConfig:
    """The configuration from flat settings. Raises `InvalidConfig` for those that do not exist or do not fit."""
    for name in _JSON_SETTINGS:
        if isinstance(settings.get(name), Mapping):
            settings = {**settings, name: json.dumps(settings[name], default=str)}
    known: set[str] = set()

    def part(default: T, names: Collection[str]) -> T:
        known.update(names)
        given = {name: value for name, value in settings.items() if name in names}
        try:
            return msgspec.convert({**_as_dict(default), **given}, type(default))
        except msgspec.ValidationError as exc:
            raise InvalidConfig(f"{exc}") from None

    # The others are of the server's log and traces.
    names = "model", "cache", "scheduler", "parallel", "lora", "prompt_adapter"
    parts = {name: getattr(EngineConfig(), name) for name in names}
    engine = EngineConfig(**{name: part(default, _as_dict(default)) for name, default in parts.items()})
    # What a program asks of its own model needs nobody's trust.
    server = replace(part(ServerConfig(), SERVER_SETTINGS), trust_request_mm_kwargs=True)
    config = ServeConfig(engine=engine, server=server)
    for name in settings:
        if name not in known:
            raise InvalidConfig(f"octavo has no setting {name!r}{nearest(name, known)}")
    config = replace(config, engine=replace(engine, model=replace(engine.model, model=model)))
    check(config)
    return config


def _as_dict(part: Any) -> dict[str, Any]:
    return {f.name: getattr(part, f.name) for f in fields(part)}


def _is_one_prompt(prompts: Any) -> bool:
    return isinstance(prompts, str | Mapping) or (bool(prompts) and all(type(i) is int for i in prompts))


def _one_each(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, Sequence) or not all(isinstance(one, SamplingParams) for one in params):
        raise InvalidRequest("`sampling_params` is a `SamplingParams` or a list of them.", "sampling_params")
    if len(params) != count:
        raise InvalidRequest(f"There are {len(params)} `sampling_params` for {count} prompts.", "sampling_params")
    return list(params)


def _priorities(given: Sequence[int] | None, count: int) -> Sequence[int]:
    if given is None:
        return [0] * count
    if len(given) != count:
        raise InvalidRequest(f"`priority` has {len(given)} entries for {count} prompts.", "priority")
    if not all(type(i) is int and -(2**63) <= i < 2**63 for i in given):
        raise InvalidRequest("`priority` is a list of integers of 64 bits.", "priority")
    return given


def _normalised(params: SamplingParams) -> SamplingParams:
    """`params` with its fields of the declared types. Raises `InvalidRequest` for one that cannot be."""
    stop: Any = params.stop  # a program's may be one string
    return with_types(msgspec.structs.replace(params, stop=(stop,)) if isinstance(stop, str) else params)


# ---------------------------------------------------------------- on the engine's thread
async def _prepare_all(models: Sequence[ServedModel], turns: Sequence[Turn]) -> list[Prepared]:
    """All turns, each with its model, checked before any is generated."""
    return [
        await _retried(lambda model=model, turn=turn: model.prepare(turn))  # type: ignore[misc]
        for model, turn in zip(models, turns, strict=True)
    ]


async def _retried(work: Callable[[], Awaitable[T]]) -> T:
    """Waits where the server would refuse: it is other threads' work that fills the queue, not ours."""
    while True:
        try:
            return await work()
        except Overloaded:
            await asyncio.sleep(RETRY_SECONDS)


async def _generate_all(
    model: ServedModel, prepared: list[Prepared], window: int, on_done: Callable[[FinalOutput], None]
) -> list[FinalOutput]:
    """All results. At most `window` samples are open: enough that no step has room, and no queue overflows."""
    results: dict[int, FinalOutput] = {}
    tasks: set[asyncio.Task[None]] = set()
    num_open = 0

    async def run(place: int) -> None:
        nonlocal num_open
        results[place] = await _retried(lambda: _generate_one(model, prepared[place]))
        num_open -= _num_sequences(prepared[place])
        on_done(results[place])

    try:
        for place, one in enumerate(prepared):
            while tasks and num_open + _num_sequences(one) > window:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            num_open += _num_sequences(one)
            tasks.add(asyncio.create_task(run(place)))
        # The first failure ends the others.
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [results[place] for place in range(len(prepared))]


def _num_sequences(prepared: Prepared) -> int:
    return prepared.prompts[0].request.num_sequences


async def _generate_one(model: ServedModel, prepared: Prepared) -> FinalOutput:
    async with aclosing(model.deltas(prepared)) as deltas:
        return await fold(delta async for _, delta in deltas)


class _Progress:
    """A bar on stderr: prompts done, and tokens a second."""

    def __init__(self, total: int, *, enabled: bool) -> None:
        self._bar = tqdm(total=total, desc="Processed prompts", unit="prompt", disable=not enabled)
        self._started = time.monotonic()
        self._num_prompt = self._num_output = 0

    def note(self, final: FinalOutput) -> None:
        self._num_prompt += final.num_prompt_tokens
        self._num_output += final.num_output_tokens
        if not self._bar.disable:
            seconds = max(1e-9, time.monotonic() - self._started)
            rates = f"{self._num_prompt / seconds:.1f} tokens/s in, {self._num_output / seconds:.1f} tokens/s out"
            self._bar.set_postfix_str(rates, refresh=False)
            self._bar.update(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._bar.close()
