"""The server without an engine: a scripted client, a tokenizer of bytes, and an ASGI driver.

The engine answers with what a test scripts; the tokenizer's ids are the bytes of the text, so every expected
number in a test can be counted by hand.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.base.config import LogprobsMode, ModelConfig, ServerConfig
from octavo.base.errors import InvalidRequest, ServerError
from octavo.base.params import GenerateRequest, GrammarSpec, SamplingParams
from octavo.client.generation import CompletionDelta, GenerationDelta, OpenSequence
from octavo.client.siblings import Locks, NoSiblings, Offer, Siblings, numbers_of
from octavo.client.sleep_mode import SleepMode
from octavo.served.adapters import Adapters
from octavo.served.media import MediaReader
from octavo.served.model import ServedModel
from octavo.served.models import Models
from octavo.served.parts import OutputSettings
from octavo.served.transcription import Transcriber
from octavo.server.app import ServerState, create_app
from octavo.server.http.exchange import ASGIApp
from octavo.server.metrics import Metrics
from octavo.text.formats.table import REASONING_FORMATS, TOOL_FORMATS
from octavo.text.grammars.tool_grammar import SpecialTokens
from octavo.text.speech import SpeechVocabulary
from octavo.wire.messages import AdapterInfo, EngineInfo, TokenLogprobs

MODEL = "tiny"
CONTEXT = 512
VOCAB = 300

Step = GenerationDelta | Exception | asyncio.Event
Script = Callable[[GenerateRequest], Sequence[Step]]


class ByteTokenizer:
    """Ids 0..255 are bytes; 256 is a special token, the rest of the vocabulary is unused."""

    has_text = True

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text = b"".join(bytes([i]) if i < 256 else b"" if skip_special_tokens else b"<end>" for i in ids)
        return text.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes | None:
        return bytes([token_id]) if token_id < 256 else None


class ByteDetokenizer:
    """Gives out whole characters."""

    num_held = 0

    def __init__(self, skip_special_tokens: bool) -> None:
        self._skip = skip_special_tokens
        self._ids: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        self._ids += ids
        text = ByteTokenizer().decode(self._ids, self._skip)
        if text.endswith("\ufffd") and len(self._ids) < 4:
            return ""
        self._ids = []
        return text

    def finish(self) -> str:
        return ByteTokenizer().decode(self._ids, self._skip)


class PlainRenderer:
    """Chat as `role:content` lines. Keeps the options of the last call."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.messages: list[Mapping[str, Any]] = []
        self.can_infill = False
        self.template_names = frozenset({"default", "tool_use"})
        self.template_variables = frozenset({"enable_thinking"})

    def chat_text(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        self.messages, self.options = list(messages), options
        if (media := options.get("media")) is not None:
            return "\n".join(f"{m['role']}:{_with_placeholders(m['content'], media)}" for m in messages)
        for i, message in enumerate(messages):
            for j, part in enumerate(message["content"] if isinstance(message["content"], list) else []):
                if part.get("type") != "text":
                    raise InvalidRequest("Text only.", f"messages[{i}].content[{j}]")
        return "\n".join(f"{m['role']}:{m['content']}" for m in messages)

    def render_text(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.options = {**self.options, "add_special_tokens": add_special_tokens}
        return list(text.encode())

    def render_infill(self, before: Any, after: str, add_special_tokens: bool = True) -> Any:
        """As `before<after>`, ended by 7, when a test allows it."""
        if not self.can_infill:
            return None
        return [*(before.encode() if isinstance(before, str) else before), 60, *after.encode(), 62], (7,)


def _with_placeholders(content: Any, media: Mapping[str, str]) -> str:
    """A text, or parts of a conversation whose media are marks, as a template shows them."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    for part in parts:
        if part["type"] not in ("text", *media):
            raise InvalidRequest(f"A part of type '{part['type']}' cannot be read.", "messages")
    return "".join(part["text"] if part["type"] == "text" else media[part["type"]] for part in parts)


def answer(
    text: str, *, n: int = 1, num_prompt: int = 5, num_cached: int = 0, reason: str = "stop", stop: Any = None
) -> list[GenerationDelta]:
    """The deltas of n equal samples: one a character, the last with the finish reason."""
    deltas = []
    for i, char in enumerate(text):
        is_last = i == len(text) - 1
        outputs = [
            CompletionDelta(k, char, [ord(char)], None, reason if is_last else None, stop if is_last else None)
            for k in range(n)
        ]
        deltas.append(GenerationDelta(outputs, num_prompt, num_cached, n * (i + 1), is_last))
    return deltas


def with_logprobs(deltas: list[GenerationDelta], entries: list[TokenLogprobs]) -> list[GenerationDelta]:
    """The same deltas; the i-th token of each sample gets the i-th entry."""
    for delta, entry in zip(deltas, entries, strict=True):
        for output in delta.outputs:
            output.logprobs = [entry]
    return deltas


class FakeEngine:
    """`Engine` for the server: yields what `script` says for a request."""

    def __init__(self, script: Script | None = None) -> None:
        self.script: Script = script or (lambda request: answer("Hi!", n=request.params.n))
        self.requests: list[GenerateRequest] = []
        self.num_closed = 0
        self.num_open = 0
        self.num_resets = 0
        self.aborted: list[str] = []
        self.adapters: dict[str, str] = {}  # by key
        self.profiles: list[tuple[str, bool]] = []
        self.is_healthy = True
        self.is_ready = True
        self.dead_reason: str | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.sleep_mode = SleepMode(self.call, lambda: self.abort(lambda external_id: True), self.wait_idle)
        self.refusal: Exception | None = None  # raised at admission

    def check_servable(self, request: GenerateRequest) -> None: ...

    @property
    def num_unfinished(self) -> int:
        return self.num_open

    def sequences(self) -> list[OpenSequence]:
        return [OpenSequence(i, request, 2, 1) for i, request in enumerate(self.requests[: self.num_open], 7)]

    def abort(self, matches: Callable[[str], bool]) -> int:
        self.aborted = [r.external_id for r in self.requests if r.has_id(matches)]
        return len(self.aborted)

    async def call(self, *words: Any) -> None:
        self.calls.append(words)

    async def wait_idle(self) -> None:
        while self.num_open:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def reset_prefix_cache(self) -> None:
        self.num_resets += 1

    async def load_adapter(self, key: str, path: str, *, is_prompt: bool = False) -> AdapterInfo:
        if "damaged" in path:
            raise ServerError(f"{path}: tensor 'x': it holds NaN or infinite values")
        self.adapters[key] = path
        if is_prompt:
            return AdapterInfo(num_virtual_tokens=6)
        return AdapterInfo(num_extra=4, context_length=CONTEXT) if "long" in path else AdapterInfo()

    async def drop_adapter(self, key: str) -> None:
        self.adapters.pop(key, None)

    async def start_profile(self, directory: str, *, with_torch: bool) -> None:
        self.profiles.append((directory, with_torch))

    async def stop_profile(self) -> dict[str, Any]:
        return {"files": [self.profiles[-1][0] + "/a.json"], "steps": 3, "steps_not_recorded": 0}

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationDelta, None]:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        return self._deltas(request)

    def detokenizer(
        self, params: SamplingParams, shown: frozenset[int] = frozenset(), tokenizer: Any = None
    ) -> ByteDetokenizer:
        return ByteDetokenizer(params.skip_special_tokens)

    async def prepare_grammars(self) -> None: ...

    async def _deltas(self, request: GenerateRequest) -> AsyncGenerator[GenerationDelta, None]:
        self.num_open += 1
        try:
            for step in self.script(request):
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    await asyncio.sleep(0)
                    yield step
        finally:
            self.num_open -= 1
            self.num_closed += 1


class FakeGrammars:
    """Every grammar compiles, but for those that contain the word `refused`. Keeps what it was asked."""

    def __init__(self) -> None:
        self.specs: list[GrammarSpec] = []

    async def check(self, spec: GrammarSpec) -> str:
        self.specs.append(spec)
        if "refused" in str(spec.source):
            raise InvalidRequest(f"`{spec.param}` cannot be enforced: planted", spec.param)
        return f"{spec.kind} {spec.source}"

    async def close(self) -> None: ...


def engine_info(**changes: Any) -> EngineInfo:
    values: dict[str, Any] = {
        "model_type": "fake", "vocab_size": VOCAB, "max_model_len": CONTEXT, "num_kv_blocks": 64, "block_size": 16,
        "max_num_seqs": 8, "max_num_batched_tokens": 256, "max_num_prefill_tokens": 256,
    "max_request_tokens": 1024, "kv_cache_bytes": 1,
        "weight_bytes": 1, "num_params": 1, "dtype": "float32", "kv_cache_dtype": "float32",
        "quantization": "none", "device": "fake", "ops": {}, "load_seconds": {},
    }  # fmt: skip
    return EngineInfo(**{**values, **changes})


class Family:
    """Processes of one server that are all in this one. Its members are `Siblings`."""

    def __init__(self, count: int) -> None:
        self.offers: list[dict[str, Offer]] = [{} for _ in range(count)]
        self.locks = Locks()
        self.members = [_Member(self, index, count) for index in range(count)]


class _Member(NoSiblings):
    def __init__(self, family: Family, index: int, count: int) -> None:
        self._family, self._offers, self._locks = family, family.offers[index], family.locks
        self.index, self.count = index, count  # type: ignore[misc]

    async def everywhere(self, name: str, *args: Any) -> list[Any]:
        results = [offers[name](*args) for offers in self._family.offers]
        found = await asyncio.gather(*results, return_exceptions=True)
        for result in found:
            if isinstance(result, BaseException):
                raise result
        return found


@dataclass
class Server:
    """An application and its fakes."""

    engine: FakeEngine
    renderer: PlainRenderer
    model: ServedModel
    state: ServerState
    app: ASGIApp
    grammars: FakeGrammars

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Reply:
        return call(self.app, "POST", path, body, headers)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        return call(self.app, "GET", path, None, headers)

    def chat(self, text: str = "Hello", **fields: Any) -> Reply:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})

    def complete(self, prompt: Any = "Hello", **fields: Any) -> Reply:
        return self.post("/v1/completions", {"prompt": prompt, **fields})


def make_server(
    script: Script | None = None,
    *,
    names: tuple[str, ...] = (MODEL, "alias"),
    info: EngineInfo | None = None,
    max_fanout: int = 64,
    logprobs_mode: LogprobsMode = "raw_logprobs",
    default_sampling: Mapping[str, Any] | None = None,
    tools: str | None = None,
    reasoning: str | None = None,
    processor: Any = None,
    fetcher: Any = None,
    decoder: Any = None,
    takes_adapters: bool = False,
    siblings: Siblings | None = None,
    speech: SpeechVocabulary | None = None,
    **config: Any,
) -> Server:
    """`tools`, `reasoning`: names of output formats. `processor`: of a model that takes media. `siblings`: of a server
    that is one of several processes. `speech`: of a model that transcribes."""
    engine, renderer, grammars = FakeEngine(script), PlainRenderer(), FakeGrammars()
    siblings = siblings or NoSiblings()
    settings = ServerConfig(**config)
    hears: Transcriber | None = None
    if speech is not None:
        hears = Transcriber(speech, engine, ByteTokenizer(), renderer, info or engine_info(), settings)
    model = ServedModel(
        names=names,
        engine=engine,
        tokenizer=ByteTokenizer(),
        renderer=renderer,
        info=info or engine_info(),
        config=settings,
        max_fanout=max_fanout,
        logprobs_mode=logprobs_mode,
        default_sampling=default_sampling or {},
        adapters=Adapters(engine, ModelConfig(), names, settings.lora_resolver_dir, numbers=numbers_of(siblings))
        if takes_adapters
        else None,
        speech=hears,
        grammars=grammars,
        media=None
        if processor is None
        else MediaReader(processor, settings, rows_width=4, fetcher=fetcher and fetcher(settings), decoder=decoder),
        output=OutputSettings(
            TOOL_FORMATS[tools] if tools else None,
            REASONING_FORMATS[reasoning] if reasoning else None,
            SpecialTokens({"<end>": 256}, frozenset({256})),
        ),
    )
    state = ServerState(settings, Models([model]), Metrics(MODEL, CONTEXT), siblings=siblings)
    if model.media is not None:
        state.metrics.tell_media(model.media.stats)
    return Server(engine, renderer, model, state, create_app(state), grammars)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    writes: list[bytes] = field(default_factory=list)  # one an ASGI body message

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        body = self.json()
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        error: dict[str, Any] = body["error"]
        return error

    def events(self) -> list[Any]:
        """The decoded events. Checks the framing (E50), that the stream ends in [DONE], and that nothing follows."""
        lines = self.body.decode().split("\n\n")
        assert lines.pop() == "", "the stream ends with an empty line"
        assert all(line.startswith("data: ") and "\n" not in line for line in lines)
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    def named_events(self) -> list[Any]:
        """The decoded events of the other APIs: each is named as its type says, and nothing follows the last."""
        events = []
        for block in self.body.decode().removesuffix("\n\n").split("\n\n"):
            name, data = block.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            events.append(event)
        return events


async def drive(
    app: ASGIApp,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    chunks: Sequence[bytes] | None = None,
    disconnect: asyncio.Event | None = None,
    on_write: Callable[[bytes], None] | None = None,
) -> Reply:
    """One request. `body`: bytes as they are, else JSON. `disconnect`: when set, the client goes away."""
    if chunks is None:
        chunks = [body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()]
    sent = {"content-type": "application/json", "content-length": str(sum(map(len, chunks))), **(headers or {})}
    messages = [
        {"type": "http.request", "body": chunk, "more_body": i < len(chunks) - 1} for i, chunk in enumerate(chunks)
    ]
    gone = disconnect or asyncio.Event()
    reply = Reply(0, {})

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert reply.status == 0, "one reply"
            reply.status = message["status"]
            names = [name.decode() for name, _ in message["headers"]]
            assert len(names) == len(set(names)), "no header twice"
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        elif message["body"]:
            reply.writes.append(message["body"])
            if on_write is not None:
                on_write(message["body"])

    path, _, query = path.partition("?")
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": query.encode(),
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in sent.items() if v],
    }  # fmt: skip
    await app(scope, receive, send)
    return reply


def call(
    app: ASGIApp, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, **options: Any
) -> Reply:
    """`drive` for tests that have no loop of their own."""
    return asyncio.run(drive(app, method, path, body, headers, **options))
