"""The configuration: frozen dataclasses, one a concern, composed into `EngineConfig` and `ServeConfig`.

Each field is a flag of the command line and a key of the config file; its help text stands in the field's
metadata, so that there is one declaration for parser, file, help and documents. "auto" values are resolved
once, where the knowledge is; what only the worker knows comes back in `messages.EngineInfo`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

DType = Literal["auto", "float32", "float", "bfloat16", "float16", "half"]
KVCacheDType = Literal["auto", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "safetensors", "gguf", "dummy"]
LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]


def opt(default: Any, help: str, **metadata: Any) -> Any:
    """A field with its help text. `factory=True` in the metadata: `default` is called."""
    meta = {"help": help, **metadata}
    if callable(default):
        return field(default_factory=default, metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how its files are read."""

    model: str = opt("smollm2", "Hub id, directory, .gguf file, or the name of the demo model.")
    tokenizer: str | None = opt(None, "Directory, .gguf file or hub id of the tokenizer; default: the model's.")
    revision: str | None = opt(None, "Branch, tag or commit of the model on the hub.")
    tokenizer_revision: str | None = opt(None, "Branch, tag or commit of the tokenizer on the hub.")
    download_dir: str | None = opt(None, "Where downloads are kept; default: the hub's cache.")
    load_format: LoadFormat = opt("auto", "How the weights are stored; dummy: random weights, for measuring.")
    dtype: DType = opt("auto", "Type of unquantized weights; auto: as in the checkpoint.")
    max_model_len: int | None = opt(None, "Longest sequence, prompt and output, in tokens; default: the model's.")
    seed: int = opt(0, "Seed for requests that give none and for dummy weights.")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The paged KV cache."""

    block_size: int = opt(16, "Tokens in a block: 16, 32 or 64.")
    kv_cache_dtype: KVCacheDType = opt("auto", "Type of cached keys and values; auto: the model's dtype.")
    kv_cache_memory_bytes: int | None = opt(None, "Bytes for the KV cache; default: from what the machine has free.")
    cpu_memory_utilization: float = opt(0.5, "Share of the memory free after loading that the KV cache may take.")
    num_kv_blocks_override: int | None = opt(None, "Exact number of blocks, for tests.")
    enable_prefix_caching: bool = opt(True, "Reuse the KV blocks of prompts that begin alike.")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How requests share the steps."""

    max_num_seqs: int = opt(256, "Most sequences in one step.")
    max_num_batched_tokens: int | None = opt(None, "Most tokens in one step; default 2048.")
    enable_chunked_prefill: bool = opt(True, "Split long prompts over several steps.")
    max_num_queued_reqs: int = opt(2048, "Most requests waiting; one more is refused with 429.")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Threads and devices."""

    device: Literal["auto", "cpu"] = opt("auto", "Where the model runs.")
    num_threads: int | None = opt(None, "Threads of the CPU kernels; default: one a physical core.")
    isa: str | None = opt(None, "CPU kernels to use (portable, avx2, avx512...); default: the best this CPU has.")
    engine_heartbeat_timeout: float = opt(2.0, "Seconds without a sign of life after which the engine counts as dead.")
    engine_step_timeout: float = opt(120.0, "Seconds one step may take before the engine counts as hung.")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """All that the engine process is told. It crosses the process border as msgpack."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP server and its API."""

    host: str | None = opt(None, "Address to bind; default: all interfaces.")
    port: int = opt(8000, "Port to bind; 0: any free one.")
    uds: str | None = opt(None, "Path of a unix socket to bind instead of a port.")
    api_key: list[str] = opt(list, "Keys of which a client must send one; may be given several times.")
    served_model_name: list[str] = opt(list, "Names under which the model is served; the first is reported.")
    uvicorn_log_level: LogLevel = opt("info", "Log level of the HTTP server.")
    allow_credentials: bool = opt(False, "CORS: allow credentials.")
    allowed_origins: list[str] = opt(list, "CORS: allowed origins; default: none.")
    allowed_methods: list[str] = opt(lambda: ["*"], "CORS: allowed methods.")
    allowed_headers: list[str] = opt(lambda: ["*"], "CORS: allowed headers.")
    ssl_keyfile: str | None = opt(None, "TLS key file.")
    ssl_certfile: str | None = opt(None, "TLS certificate file.")
    ssl_ca_certs: str | None = opt(None, "TLS authorities for client certificates.")
    ssl_cert_reqs: int = opt(0, "TLS: whether clients must show a certificate (0, 1 or 2, as in Python's ssl).")
    root_path: str = opt("", "Path prefix behind a proxy.")
    chat_template: str | None = opt(None, "File, inline template, or name of a template of the tokenizer's.")
    response_role: str = opt("assistant", "Role of the reply.")
    max_logprobs: int = opt(20, "Most log probabilities a request may ask for.")
    disable_log_stats: bool = opt(False, "Do not log throughput and cache use every 10 s.")
    disable_log_requests: bool = opt(True, "Do not log each request.")
    max_log_len: int | None = opt(None, "Most characters or ids of a prompt in the log.")
    shutdown_timeout: float = opt(30.0, "Seconds that running requests get to finish after TERM.")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """All that `octavo serve` is told."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
