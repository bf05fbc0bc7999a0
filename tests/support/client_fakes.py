"""The client without an engine: a connection that a test drives, and a tokenizer whose ids are bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from octavo.base.config import EngineConfig, ParallelConfig, SchedulerConfig
from octavo.base.params import GenerateRequest, SamplingParams
from octavo.client.engine_client import EngineClient
from octavo.client.observer import Observer
from octavo.client.watchdog import ProcessState
from octavo.text.tokenizers.decoder_plan import plan_of
from octavo.text.tokenizers.parts import TokenizerParts
from octavo.text.tokenizers.tokenizer import Tokenizer
from octavo.wire.messages import (
    Abort,
    AddRequest,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineInfo,
    SchedulerStats,
    TokenLogprobs,
)
from octavo.wire.transport import TransportError

EOS = 256
INFO = EngineInfo(
    model_type="fake", vocab_size=260, max_model_len=100, num_kv_blocks=9, block_size=16, max_num_seqs=4,
    max_num_batched_tokens=64, max_num_prefill_tokens=64,
    max_request_tokens=100, kv_cache_bytes=0, weight_bytes=0, num_params=0, dtype="",
    kv_cache_dtype="", quantization="none", device="fake", ops={}, load_seconds={},
)  # fmt: skip
STATS = SchedulerStats(
    num_running=0, num_waiting=0, kv_blocks_used=0, kv_blocks_total=8, num_preemptions=0, prefix_cache_queries=0,
    prefix_cache_hits=0, num_steps=0, num_prompt_tokens=0, num_generation_tokens=0,
)  # fmt: skip


def byte_tokenizer() -> Tokenizer:
    """Id i < 256 is byte i; 256 ends a text and is special."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    vocab = {chr(byte if byte in printable else next(others)): byte for byte in range(256)}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", special=True, normalized=False)])
    assert plan_of(backend) is not None
    return Tokenizer(
        TokenizerParts(
            backend=backend, source="test", special_tokens_map={"eos_token": "<eos>"}, eos_token_ids=(EOS,),
            longest_token=1, max_token_id=EOS,
        )
    )  # fmt: skip


TOKENIZER = byte_tokenizer()


class FakeConnection:
    """`sent` is what the client sent; `put` is what the engine sends, None being its end."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.is_broken = False
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()

    def send(self, message: Any) -> None:
        if self.is_broken:
            raise TransportError("The connection is closed.")
        self.sent.append(message)

    async def receive(self) -> Any:
        message = await self._inbox.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def close(self) -> None:
        self.is_broken = True

    def put(self, message: Any) -> None:
        self._inbox.put_nowait(message)

    # what a test asks
    @property
    def added(self) -> list[AddRequest]:
        return [message for message in self.sent if isinstance(message, AddRequest)]

    @property
    def aborted(self) -> list[int]:
        return [i for message in self.sent if isinstance(message, Abort) for i in message.request_ids]


class Engine:
    """A started client on a fake connection."""

    def __init__(
        self,
        *,
        info: dict[str, Any] | None = None,
        max_num_queued_reqs: int = 8,
        max_num_queued_tokens: int | None = None,
        parallel: ParallelConfig | None = None,
        process: Any = None,
        observer: Observer | None = None,
        on_dead: Callable[[str], None] | None = None,
    ) -> None:
        self.connection = FakeConnection()
        scheduler = SchedulerConfig(
            max_num_queued_reqs=max_num_queued_reqs, max_num_queued_tokens=max_num_queued_tokens
        )
        config = EngineConfig(scheduler=scheduler, parallel=parallel or ParallelConfig())
        self.client = EngineClient(
            self.connection, msgspec.structs.replace(INFO, **(info or {})), TOKENIZER, config,
            process=process, observer=observer, on_dead=on_dead,
        )  # fmt: skip
        self.client.start()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.connection.put(None)
        await self.client.close()

    async def step(self, *outputs: EngineCoreOutput) -> None:
        """One step of the engine, taken in by the client."""
        self.connection.put(EngineCoreOutputs(list(outputs), STATS))
        await settle()


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


def out(request_id: int, text: str | list[int], reason: str | None = None, **changes: Any) -> EngineCoreOutput:
    ids = list(text.encode()) if isinstance(text, str) else text
    return EngineCoreOutput(request_id, ids, reason, **changes)


def logprob(value: float) -> TokenLogprobs:
    return TokenLogprobs(value, 1, [1], [value])


def request(prompt: int = 3, external_id: str = "r", **params: Any) -> GenerateRequest:
    params.setdefault("max_tokens", 50)
    return GenerateRequest(
        external_id=external_id, prompt_token_ids=[1] * prompt, params=SamplingParams(**params), arrival_time=1.0
    )


class FakeProcess:
    """A process in a state that a test sets."""

    def __init__(self) -> None:
        self.state = ProcessState()
        self.ended: str | None = None

    def probe(self) -> ProcessState:
        return self.state

    def exit_reason(self) -> str | None:
        return self.ended


def write_model(directory: Path) -> Path:
    """A directory with the tokenizer of bytes, for servers before the engine of the tests."""
    directory.mkdir()
    TOKENIZER._backend.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text("{}")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": template}))
    return directory
