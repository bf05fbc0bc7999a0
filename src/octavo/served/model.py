"""One model as it is served: every check of a turn, its prompts as token ids, and the stream of what comes of it."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

import octavo
from octavo.base.config import LogprobsMode, ServeConfig, ServerConfig
from octavo.base.errors import Aborted, EngineDead, InvalidRequest, RequestError, ShuttingDown
from octavo.base.media import MediaItem
from octavo.base.params import GenerateRequest, GrammarSpec, SamplingParams
from octavo.client.admission import check_encoder_input, sized
from octavo.client.best_of import best_of, widened
from octavo.client.generation import GenerationDelta
from octavo.served.adapters import Adapter, Adapters
from octavo.served.breakers import BreakerTokens
from octavo.served.checks import checked_params, renamed, truncated
from octavo.served.events import News, PromptReply, Usage
from octavo.served.media import AnyProcessor, MediaReader, media_reader
from octavo.served.output_plan import OutputPlan, arguments_spec, plan_output
from octavo.served.parts import DeltaStream, Engine, Grammars, OutputSettings, Renderer, Tokenizer, TokenTexts
from octavo.served.pooling import refusal_of_text
from octavo.served.prompts import PromptMaker
from octavo.served.reading import OutputReading
from octavo.served.request_log import log_request
from octavo.served.streams import NewsReader, at_intervals, merged
from octavo.served.transcription import Transcriber
from octavo.served.turn import Conversation, ReplyWishes, Turn
from octavo.served.voice import Voice, voice_reader
from octavo.text.grammars.checker import GrammarChecker
from octavo.text.grammars.grammar import limits_of
from octavo.text.tokenizers.vocabulary import all_eos_token_ids
from octavo.wire.messages import EngineInfo

if TYPE_CHECKING:
    from octavo.text.speech import SpeechVocabulary

#: Tokens at the end of a prompt in which its last mark is looked for.
_TAIL_TOKENS = 32


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """One prompt of a turn, ready for the engine. `text`: None where it was given as ids, or was cut."""

    request: GenerateRequest
    text: str | None
    reading: OutputReading | None  # None: all of the reply is content
    encoder_text: str | None = None  # the same of the encoder's input, where there is one

    @property
    def ids(self) -> list[int]:
        return self.request.prompt_token_ids


@dataclass(frozen=True, slots=True)
class Prepared:
    """A turn that can be generated. `params` are the caller's, checked, before they were fitted to a prompt."""

    turn: Turn
    params: SamplingParams
    prompts: list[PreparedPrompt]

    @property
    def is_ranked(self) -> bool:
        """Which samples are returned is known at the end only, so that there is nothing to stream before."""
        return self.params.num_samples > self.params.n

    @property
    def num_media_tokens(self) -> dict[str, int]:
        """Kind of media ("image", "audio") -> tokens of the prompts that stand for them; empty without media."""
        counts: dict[str, int] = {}
        for item in (item for prompt in self.prompts for item in prompt.request.media):
            kind = "audio" if item.kind == "audio" else "image"
            counts[kind] = counts.get(kind, 0) + item.rows
        return counts


@dataclass(slots=True, eq=False)
class _Preparing:
    """A turn on its way to the engine."""

    request_id: str
    is_ended: bool = False


@dataclass(kw_only=True)
class ServedModel:
    """Made once the engine can serve. Of requests it knows those that are being prepared; the engine knows the rest.

    `config` is read for what bounds and shapes requests; nothing of it is about HTTP here.
    """

    names: tuple[str, ...]  # as served; the first is reported where a request names none
    engine: Engine
    tokenizer: Tokenizer
    renderer: Renderer
    info: EngineInfo
    config: ServerConfig
    root: str = ""  # where the model comes from
    tokenizer_info: bytes = b"{}"  # JSON, for /tokenizer_info
    default_sampling: Mapping[str, Any] = field(default_factory=dict)  # for fields that a request leaves out
    logprobs_mode: LogprobsMode = "raw_logprobs"
    max_fanout: int = 2048  # most sequences (prompts x samples) of one turn
    output: OutputSettings = field(default_factory=OutputSettings)
    grammars: Grammars
    media: MediaReader | None = None  # None: the model takes text only
    adapters: Adapters | None = None  # None: the engine takes none
    adapter: Adapter | None = None  # that requests run with
    speech: Transcriber | None = None  # of a model that transcribes, and does nothing else
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(
        cls,
        settings: ServeConfig,
        engine: Engine,
        info: EngineInfo,
        *,
        processor: AnyProcessor | None = None,
        vocabulary: SpeechVocabulary | None = None,
        adapter_numbers: Iterator[int] | None = None,
        **parts: Any,
    ) -> ServedModel:
        """As `settings` say; `parts` are the fields that they say nothing of. `processor`: of a model that takes media.
        `vocabulary`: of one that transcribes. `adapter_numbers`: those of this process, where there are others.

        Raises `InvalidConfig`.
        """
        server, speech = settings.server, None
        if vocabulary is not None:
            speech = Transcriber(vocabulary, engine, parts["tokenizer"], parts["renderer"], info, server)
        adapters = None
        if info.max_loras or info.max_prompt_adapters:
            read_voice = voice_reader(parts["tokenizer"], parts["renderer"])
            adapters = Adapters(
                engine, settings.engine.model, parts["names"], server.lora_resolver_dir, read_voice, adapter_numbers
            )
        return cls(
            adapters=adapters,
            engine=engine,
            info=info,
            config=server,
            root=settings.engine.model.model,
            logprobs_mode=settings.engine.model.logprobs_mode,
            max_fanout=settings.engine.scheduler.max_num_queued_reqs,
            media=media_reader(processor, server, most_items=info.max_media_items, rows_width=info.media_width),
            speech=speech,
            grammars=GrammarChecker(seconds=server.grammar_timeout, cache_bytes=server.grammar_cache_bytes),
            **parts,
        )

    def __post_init__(self) -> None:
        self.engine_info = self.info
        if 0 < self.info.num_positions < self.info.max_model_len:  # more is for adapters that know them
            self.info = msgspec.structs.replace(self.info, max_model_len=self.info.num_positions)
        self.num_ids = self.info.vocab_size  # of tokens that requests may name
        self.num_virtual_tokens = 0  # of a prompt adapter, in front of each prompt
        self.voice: Voice | None = None  # of an adapter with a tokenizer of its own
        self.texts = TokenTexts(self.tokenizer)
        self.prompts = PromptMaker(self.renderer, self.config, self.info, self.media)
        self.grammar_limits = limits_of(self.config, self.output.special_tokens.ids)
        self._breakers = BreakerTokens(self.tokenizer, self.renderer, self.info.vocab_size)
        self._preparing: list[_Preparing] = []

    def with_adapter(self, adapter: Adapter) -> ServedModel:
        """The same model, whose requests run with an adapter."""
        model = copy.copy(self)
        model.adapter = adapter
        return model

    async def close(self) -> None:
        self.prompts.close()
        await self.grammars.close()
        if self.media is not None:
            await self.media.close()
        if self.speech is not None:
            await self.speech.close()

    @cached_property
    def fingerprint(self) -> str:
        """Equal for servers that should give equal answers to equal seeds."""
        info = self.info
        facts = (octavo.__version__, self.root, info.model_type, info.dtype, info.kv_cache_dtype)
        return "fp_" + hashlib.sha256(repr((*facts, info.quantization, info.device)).encode()).hexdigest()[:10]

    def check_available(self) -> None:
        """Raise `EngineDead`, `Asleep` or `ShuttingDown` when no request can be served."""
        if not self.engine.is_healthy:
            raise EngineDead(self.engine.dead_reason or "The engine does not respond.")
        self.engine.sleep_mode.check()
        if not self.engine.is_ready:
            raise ShuttingDown("The server is shutting down.")

    # ------------------------------------------------------------ from a turn to requests
    async def prepare(self, turn: Turn) -> Prepared:
        """Check all of a turn and make its prompts. Nothing is sent to the engine.

        Raises `RequestError` whose `param` is the caller's name of the field, or `ServerError`.
        """
        preparing = _Preparing(turn.request_id)
        self._preparing.append(preparing)
        try:
            await self.adapter_ready()
            prepared = await self._prepare(turn)
        except RequestError as exc:
            raise renamed(exc, turn.names) from None
        finally:
            self._preparing.remove(preparing)
        if preparing.is_ended:
            raise Aborted
        return prepared

    async def adapter_ready(self) -> None:
        """Wait until the engine has the model's adapter, if it has one, and speak as that does from then on. Raises
        `InvalidRequest`."""
        if self.adapter is None or self.adapters is None:
            return
        try:
            facts = await self.adapters.ready(self.adapter)
        except InvalidRequest as exc:
            raise InvalidRequest(exc.message, "model") from None
        voice, self.num_ids = facts.voice, self.info.vocab_size + facts.info.num_extra
        self.num_virtual_tokens = facts.info.num_virtual_tokens
        if facts.info.context_length:
            self.info = msgspec.structs.replace(self.engine_info, max_model_len=facts.info.context_length)
        if voice is not None and voice is not self.voice:
            self.voice, self.tokenizer, self.renderer = voice, voice.tokenizer, voice.renderer
            self.texts = TokenTexts(self.tokenizer)
            self._breakers = BreakerTokens(self.tokenizer, self.renderer, self.num_ids)
        self.prompts = self.prompts.speaking(self.renderer, self.info, self.num_ids)

    @property
    def adapter_fields(self) -> dict[str, Any]:
        """What a request says of the adapter that it runs with."""
        adapter, voice = self.adapter, self.voice
        if adapter is None:
            return {}
        fields: dict[str, Any] = {
            "adapter": adapter.key, "adapter_name": adapter.name, "adapter_path": adapter.path,
            "num_virtual_tokens": self.num_virtual_tokens,
        }  # fmt: skip
        if voice is not None:
            fields["tokenizer"] = voice.tokenizer
            fields["eos_token_ids"] = all_eos_token_ids(voice.tokenizer, self.info, self.num_ids)
        return fields

    def abort(self, matches: Callable[[str], bool]) -> int:
        """End the requests of matching public ids with `Aborted`, as an administrator asks; the value is their number.
        Those whose prompts are still being made end before the engine sees them."""
        found = [each for each in self._preparing if not each.is_ended and matches(each.request_id)]
        for each in found:
            each.is_ended = True
        return len(found) + self.engine.abort(matches)

    async def _prepare(self, turn: Turn) -> Prepared:
        if self.info.pooling is not None:
            raise InvalidRequest(refusal_of_text(self.info.pooling), "model")
        if self.speech is not None:
            raise InvalidRequest(
                "This model transcribes sounds and continues no text: send them to /v1/audio/transcriptions.", "model"
            )
        params = await self._breakers.resolved(checked_params(self, turn))
        plan = None if turn.wishes is None else self._plan(turn, turn.wishes)
        made = await self.prompts.made(turn.prompts, turn.prompt_param, turn.cache_salt)
        prompts = []
        for place, prompt in enumerate(made):
            is_thinking = None if plan is None else self._is_thinking(prompt.ids)
            own = await self._held(params, plan, is_thinking, turn)
            if prompt.ends:
                own = msgspec.structs.replace(own, stop_token_ids=(*own.stop_token_ids, *prompt.ends))
            ids = truncated(prompt.ids, own, turn, self.info, self.num_virtual_tokens)
            encoder_ids, text, encoder_text = [], prompt.text, None
            if ids is not prompt.ids:
                text = None
                if prompt.media:
                    raise InvalidRequest("A prompt with media cannot be cut.", "truncate_prompt_tokens")
            if prompt.media and self.num_virtual_tokens:
                raise InvalidRequest("A prompt adapter takes no media beside it.", prompt.param)
            if prompt.decoder_ids is not None:
                check_encoder_input(ids, self.info, prompt.param)
                ids, encoder_ids, text, encoder_text = prompt.decoder_ids, ids, prompt.decoder_text, text
            num_prompt = self.num_virtual_tokens + len(ids)
            own = sized(own, num_prompt, self.info, prompt.param, self._default_max_tokens(turn))
            reading = None if plan is None else self._reading(turn, plan, is_thinking, own)
            request_id = turn.request_id if len(made) == 1 else f"{turn.request_id}-{place}"
            prompts.append(
                PreparedPrompt(
                    self._request(turn, request_id, ids, encoder_ids, text, own, reading, prompt.media),
                    text,
                    reading,
                    encoder_text,
                )
            )
        for ready in prompts:
            self.engine.check_servable(ready.request)
        return Prepared(turn, params, prompts)

    def _default_max_tokens(self, turn: Turn) -> int | None:
        """What bounds the reply where the caller does not."""
        if isinstance(turn.sampling, SamplingParams):
            return None
        if turn.default_max_tokens is not None:
            return turn.default_max_tokens
        most: int | None = self.default_sampling.get("max_tokens")
        return most

    def _is_thinking(self, ids: list[int]) -> bool | None:
        """Whether a prompt ends inside the model's thinking, or right behind it; None: it says nothing."""
        row = self.output.reasoning_format
        if row is None:
            return None
        tail = self.tokenizer.decode(ids[-_TAIL_TOKENS:], skip_special_tokens=False).rstrip()
        if tail.endswith(row.begins):
            return True
        return False if tail.endswith(row.ends) else None

    def _plan(self, turn: Turn, wishes: ReplyWishes, bare: Collection[str] = ()) -> OutputPlan:
        return plan_output(wishes, turn.constraint, self.output, self.config, self.grammar_limits, bare)

    async def _held(
        self, params: SamplingParams, plan: OutputPlan | None, is_thinking: bool | None, turn: Turn
    ) -> SamplingParams:
        """`params` with the grammar of what the output is held to. A function that is not strict does not refuse a
        turn: where its schema does not compile, or all of them together do not, only the names and types of its
        arguments are held."""
        if plan is None or turn.wishes is None:
            return await self._constrained(params, turn.constraint, turn)
        try:
            return await self._constrained(params, plan.constraint(is_thinking), turn)
        except InvalidRequest:
            if not plan.loose:
                raise
        bare = [tool.name for tool in plan.loose if not await self._compiles(arguments_spec(tool))]
        plan = self._plan(turn, turn.wishes, bare or [tool.name for tool in plan.loose])
        return await self._constrained(params, plan.constraint(is_thinking), turn)

    async def _compiles(self, spec: GrammarSpec) -> bool:
        try:
            await self.grammars.check(spec)
        except InvalidRequest:
            return False
        return True

    async def _constrained(self, params: SamplingParams, spec: GrammarSpec | None, turn: Turn) -> SamplingParams:
        """`params` with the grammar of `spec`, proven to compile."""
        if spec is None:
            return params
        if turn.beams is not None:  # a beam's tokens come from its log probabilities, not from the sampler
            raise InvalidRequest(f"`{spec.param}` cannot be combined with `use_beam_search`.", spec.param)
        return msgspec.structs.replace(params, grammar=await self.proven(spec))

    async def proven(self, spec: GrammarSpec) -> str:
        """The grammar of a constraint, proven to compile. Raises `InvalidRequest` naming the field, or `Overloaded`."""
        grammar = await self.grammars.check(spec)
        await self.engine.prepare_grammars()
        return grammar

    def _reading(
        self, turn: Turn, plan: OutputPlan, is_thinking: bool | None, params: SamplingParams
    ) -> OutputReading | None:
        output_format = plan.output_format(is_thinking)
        if output_format is None or turn.wishes is None:
            return None
        special = self.output.special_tokens
        hidden = frozenset(special.ids.values()) if params.skip_special_tokens else frozenset[int]()
        return OutputReading(
            output_format,
            self.texts,
            hidden - special.within(output_format.marks),
            turn.wishes.include_reasoning,
            plan.is_named,
            plan.is_forced,
            turn.wishes.call_prefix,
        )

    def _request(
        self,
        turn: Turn,
        request_id: str,
        ids: list[int],
        encoder_ids: list[int],
        text: str | None,
        params: SamplingParams,
        reading: OutputReading | None,
        media: tuple[MediaItem, ...],
    ) -> GenerateRequest:
        if not self.config.disable_log_requests:
            log_request(request_id, ids, text, params, self.config.max_log_len, media)
        is_ranked = params.num_samples > params.n
        marks = frozenset[int]() if reading is None else self.output.special_tokens.within(reading.format.marks)
        return GenerateRequest(
            external_id=request_id,
            turn_id=turn.request_id,
            prompt_token_ids=ids,
            encoder_token_ids=encoder_ids,
            params=widened(params) if is_ranked else params,
            priority=turn.priority,
            cache_salt=turn.cache_salt,
            **self.adapter_fields,
            arrival_time=time.monotonic(),
            beams=turn.beams,
            shown_special_ids=marks,
            is_whole=turn.is_whole or is_ranked,
            num_wanted=params.n,
            trace_headers=turn.trace_headers,
            is_chat=isinstance(turn.prompts[0], Conversation),
            media=media,
        )

    # ------------------------------------------------------------ from requests to events
    async def deltas(self, prepared: Prepared) -> AsyncGenerator[tuple[int, GenerationDelta], None]:
        """What the engine says of all prompts as it comes, each with its prompt's place. Closing it aborts all.

        All prompts are admitted before the first delta, or none is.
        """
        streams: list[DeltaStream] = []
        try:
            for prompt in prepared.prompts:
                streams.append(self.engine.generate(prompt.request))  # noqa: PERF401  (those before a refusal are closed)
            shown: list[DeltaStream] = streams
            if prepared.is_ranked:
                shown = [best_of(stream, prepared.params) for stream in streams]
            if len(streams) == 1:
                async for delta in shown[0]:
                    yield 0, delta
            else:
                async with aclosing(merged(shown)) as together:
                    async for item in together:
                        yield item
        finally:
            for stream in streams:
                await stream.aclose()

    async def generate(self, prepared: Prepared, interval: int = 1) -> AsyncGenerator[News, None]:
        """What comes of a turn, as it comes; `interval`: how many tokens of a sample are gathered into one piece.

        Closing it aborts what still runs. Raises `RequestError` when the turn is refused, before anything else, and
        `ServerError`.
        """
        readers = [NewsReader(place, prompt.reading) for place, prompt in enumerate(prepared.prompts)]
        if len(readers) == 1 and interval == 1 and not prepared.is_ranked:
            # Nearly every stream, and its busiest path: a generator less between the engine's tokens and the socket.
            stream = self.engine.generate(prepared.prompts[0].request)
            try:
                async for delta in stream:
                    yield readers[0].read(delta)
            finally:
                await stream.aclose()
            return
        async with aclosing(self.deltas(prepared)) as deltas:
            gathered = deltas if interval == 1 else at_intervals(deltas, interval)
            async with aclosing(gathered):
                async for place, delta in gathered:
                    yield readers[place].read(delta)

    async def whole(self, prepared: Prepared) -> tuple[list[PromptReply], Usage]:
        """The fold of `generate`: a reply for each prompt."""
        replies = [PromptReply(place) for place in range(len(prepared.prompts))]
        usage = Usage(prepared.num_media_tokens)
        async with aclosing(self.generate(prepared)) as stream:
            async for news in stream:
                usage.add(news)
                replies[news.place].add(news)
        return replies, usage
