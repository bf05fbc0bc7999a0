"""`octavo.LLM`: a model for programs, without a server.

The engine runs in a process of its own, as under the server, and a thread here runs its client's event loop; results
are folds of the same streams of deltas, so that they are the server's results. The calls block, and may come from any
thread and from within a running event loop.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import fields, replace
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import msgspec
from tqdm import tqdm  # type: ignore[import-untyped]

from octavo.admission import Admission, sized
from octavo.client import EngineClient
from octavo.config import EngineConfig, ServeConfig, ServerConfig, check, nearest
from octavo.engine_thread import EngineThread, Ready
from octavo.errors import InvalidConfig, InvalidRequest, Overloaded
from octavo.generation import FinalOutput, fold
from octavo.llm_outputs import CompletionOutput, Logprob, RequestOutput, request_output
from octavo.messages import EngineInfo
from octavo.params import BeamParams, GenerateRequest, GrammarSpec, SamplingParams
from octavo.server.best_of import best_of, widened
from octavo.text.grammar import limits_of, spec_of_params
from octavo.text.tokenizer import Tokenizer

__all__ = ["LLM", "CompletionOutput", "Logprob", "RequestOutput"]

T = TypeVar("T")
#: A text, token ids, or either in a dictionary under `prompt` or `prompt_token_ids`.
Prompt: TypeAlias = str | list[int] | Mapping[str, Any]
Messages: TypeAlias = list[Mapping[str, Any]]

#: Settings of the server that mean something to a program.
SERVER_SETTINGS = (
    "chat_template", "max_logprobs", "max_n", "generation_config", "override_generation_config", "max_grammar_bytes",
    "max_schema_depth", "grammar_timeout", "grammar_cache_bytes", "disable_additional_properties",
    "disable_any_whitespace", "structured_outputs_config",
)  # fmt: skip
#: What `generate` does when it is told nothing; the same as /v1/completions.
DEFAULT_MAX_TOKENS = 16
#: Seconds between two tries while other threads' requests fill the queue.
RETRY_SECONDS = 0.05


class LLM:
    """A loaded model. Ends with `close`, at the end of a `with` block, or with the last reference to it.

    `LLM("org/repo", max_model_len=4096, ...)`: the model as `octavo serve` takes it, the fields of `ModelConfig`,
    `CacheConfig`, `SchedulerConfig` and `ParallelConfig`, and those of `ServerConfig` in `SERVER_SETTINGS`;
    `override_generation_config` and `structured_outputs_config` may be mappings. Raises
    `StartupError`; no process is left then.
    """

    def __init__(self, model: str = "smollm2", **settings: Any) -> None:
        config = offline_config(model, settings)
        self._limits = server = config.server
        self._thread = EngineThread(config)
        self._ready = self._thread.wait_ready()
        self._grammar_limits = limits_of(server, self.tokenizer.special_texts)
        self._admission = Admission(self._ready.info, config.engine.scheduler.max_num_queued_reqs)
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
        return self._ready.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._ready.tokenizer

    def get_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json says, and `override_generation_config`; octavo's defaults beside."""
        return SamplingParams(**self._ready.default_sampling)

    # ------------------------------------------------------------ generation
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        priority: Sequence[int] | None = None,
        beams: BeamParams | None = None,
    ) -> list[RequestOutput]:
        """The results for all prompts, in their order, generated together; with `beams` the best of a beam search.

        One `sampling_params` for all prompts or one for each; none means the model's defaults, with 16 tokens if they
        do not say. All prompts are checked before any is started. Raises `RequestError` naming what is wrong, or
        `ServerError`.
        """
        if not isinstance(prompts, str | Mapping | Sequence):
            raise InvalidRequest("`prompts` is a prompt or a list of prompts.", "prompts")
        items: Sequence[Any] = [prompts] if _is_one_prompt(prompts) else list(prompts)
        pairs = [self._prompt(item, i) for i, item in enumerate(items)]
        return self._run(pairs, sampling_params, DEFAULT_MAX_TOKENS, priority, use_tqdm, beams)

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
        pairs: list[tuple[str | None, list[int]]] = []
        for conversation in [messages] if is_one else messages:
            text = self._ready.renderer.chat_text(
                conversation,  # type: ignore[arg-type]
                tools=tools,
                documents=documents,
                add_generation_prompt=not continue_final_message and add_generation_prompt is not False,
                continue_final_message=continue_final_message,
                chat_template=chat_template,
                chat_template_kwargs=chat_template_kwargs,
            )
            pairs.append((text, self._ready.renderer.render_text(text, add_special_tokens=False)))
        return self._run(pairs, sampling_params, None, None, use_tqdm)

    # ------------------------------------------------------------ before the engine
    def _prompt(self, item: Any, place: int) -> tuple[str | None, list[int]]:
        """A prompt's text, if it has one, and its ids."""
        text: str | None = None
        if isinstance(item, Mapping):
            text = item.get("prompt") if isinstance(item.get("prompt"), str) else None
            item = item.get("prompt_token_ids") or item.get("prompt", "")
        if isinstance(item, str):
            return item, self._ready.renderer.render_text(item)
        if isinstance(item, Sequence) and all(type(i) is int for i in item):
            return text, list(item)
        raise InvalidRequest("A prompt is a text, a list of token ids, or a dictionary with one.", f"prompts.{place}")

    def _run(
        self,
        prompts: list[tuple[str | None, list[int]]],
        given: SamplingParams | Sequence[SamplingParams] | None,
        default_max_tokens: int | None,
        priority: Sequence[int] | None,
        use_tqdm: bool,
        beams: BeamParams | None = None,
    ) -> list[RequestOutput]:
        most = None
        if given is None:
            given = self._default_params(beams)
            most = self._ready.default_sampling.get("max_tokens", default_max_tokens)
        params = _one_each(given, len(prompts))
        distinct = {id(one): one for one in params}
        checked = {key: self._checked(one, beams) for key, one in distinct.items()}
        requests = [
            self._request(ids, checked[id(one)], most, rank, beams)
            for (_, ids), one, rank in zip(prompts, params, _priorities(priority, len(prompts)), strict=True)
        ]
        info, client = self._ready.info, self._ready.client
        with _Progress(len(requests), enabled=use_tqdm) as progress:
            finals = self._thread.run(_generate_all(client, requests, 2 * info.max_num_seqs, progress.note))
        return [
            request_output(request, text, final, self.tokenizer)
            for request, (text, _), final in zip(requests, prompts, finals, strict=True)
        ]

    def _request(
        self, ids: list[int], params: SamplingParams, most: int | None, priority: int, beams: BeamParams | None
    ) -> GenerateRequest:
        request = GenerateRequest(
            external_id=f"llm-{uuid.uuid4().hex}",
            prompt_token_ids=ids,
            params=sized(params, len(ids), self._ready.info, default_max_tokens=most),
            priority=priority,
            arrival_time=time.monotonic(),
            beams=beams,
            is_whole=True,
        )
        self._admission.check(request, 0)
        return request

    def _default_params(self, beams: BeamParams | None) -> SamplingParams:
        """For a call without parameters. A bound on the tokens is not among them: it depends on the prompt."""
        if beams is not None:  # the defaults are about sampling
            return SamplingParams(temperature=0.0)
        return msgspec.structs.replace(self.get_default_sampling_params(), max_tokens=None)

    def _checked(self, params: SamplingParams, beams: BeamParams | None) -> SamplingParams:
        """`params` as the engine takes them, with the grammar that they ask for, if any, proven to compile."""
        params = _normalised(params)
        if params.grammar is not None:
            raise InvalidRequest(
                "`grammar` is made from `structured_outputs`, which says what the output is.", "grammar"
            )
        server, ready = self._limits, self._ready
        spec = spec_of_params(params, self._grammar_limits)
        params = params.validate(vocab_size=ready.info.vocab_size, max_logprobs=server.max_logprobs, max_n=server.max_n)
        if beams is not None:
            beams.check(params, server.max_n)
        elif params.num_samples > 1 and params.greedy:
            raise InvalidRequest("`n` must be 1 when `temperature` is 0: all samples would be equal.", "n")
        if spec is None:
            return params
        grammar = self._thread.run(_proven(ready, spec))
        return msgspec.structs.replace(params, structured_outputs=None, guided_decoding=None, grammar=grammar)


def offline_config(model: str, settings: Mapping[str, Any]) -> ServeConfig:
    """The configuration from flat settings. Raises `InvalidConfig` for those that do not exist or do not fit."""
    for name in ("override_generation_config", "structured_outputs_config"):
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

    parts = {f.name: getattr(EngineConfig(), f.name) for f in fields(EngineConfig)}
    engine = EngineConfig(**{name: part(default, _as_dict(default)) for name, default in parts.items()})
    config = ServeConfig(engine=engine, server=part(ServerConfig(), SERVER_SETTINGS))
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
    values = msgspec.structs.asdict(params)
    if isinstance(values["stop"], str):
        values["stop"] = (values["stop"],)
    try:
        return msgspec.convert(values, SamplingParams)
    except msgspec.ValidationError as exc:
        # "Expected `int`, got `str` - at `$.n`", or "... - at `key` in `$.logit_bias`".
        message, _, place = str(exc).partition(" - at ")
        path = place.rpartition("$.")[2].rstrip("`")
        raise InvalidRequest(f"{path}: {message}", path) from None
    except UnicodeEncodeError:  # half of a surrogate pair, where no text may be
        raise InvalidRequest("`sampling_params` contain what is no text.", "sampling_params") from None


# ---------------------------------------------------------------- on the engine's thread
async def _proven(ready: Ready, spec: GrammarSpec) -> str:
    """The grammar, as the server makes it. Waits where the server would refuse, for other threads' grammars."""
    while True:
        try:
            grammar = await ready.grammars.check(spec)
        except Overloaded:
            await asyncio.sleep(RETRY_SECONDS)
            continue
        await ready.client.prepare_grammars()
        return grammar


async def _generate_all(
    client: EngineClient, requests: list[GenerateRequest], window: int, on_done: Callable[[FinalOutput], None]
) -> list[FinalOutput]:
    """All results. At most `window` samples are open: enough that no step has room, and no queue overflows."""
    results: dict[int, FinalOutput] = {}
    tasks: set[asyncio.Task[None]] = set()
    num_open = 0

    async def run(place: int) -> None:
        nonlocal num_open
        results[place] = await _generate_one(client, requests[place])
        num_open -= requests[place].num_sequences
        on_done(results[place])

    try:
        for place, request in enumerate(requests):
            while tasks and num_open + request.num_sequences > window:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            num_open += request.num_sequences
            tasks.add(asyncio.create_task(run(place)))
        # The first failure ends the others.
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [results[place] for place in range(len(requests))]


async def _generate_one(client: EngineClient, request: GenerateRequest) -> FinalOutput:
    while True:
        try:
            params = request.params
            if params.num_samples > params.n:
                stream = client.generate(msgspec.structs.replace(request, params=widened(params)))
                async with aclosing(stream):
                    return await fold(best_of(stream, params))
            stream = client.generate(request)
        except Overloaded:  # by other threads: there is nothing of ours to wait for
            await asyncio.sleep(RETRY_SECONDS)
            continue
        async with aclosing(stream):
            return await fold(stream)


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
