"""The configuration: frozen dataclasses, one a concern, composed into `EngineConfig` and `ServeConfig`.

Each field is a flag of the command line and a key of the config file; its help text stands in the field's
metadata, so that there is one declaration for parser, file, help and documents. "auto" values are resolved
once, where the knowledge is; what only the worker knows comes back in `messages.EngineInfo`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from octavo.errors import InvalidConfig
from octavo.suggest import nearest

DType = Literal["auto", "float32", "float", "bfloat16", "float16", "half"]
KVCacheDType = Literal["auto", "float32", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"]
LoadFormat = Literal["auto", "safetensors", "gguf", "dummy"]
LogprobsMode = Literal["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"]
ContentFormatOption = Literal["auto", "string", "openai"]
ToolStrictLevel = Literal["auto", "function", "parameter"]
LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]


def opt(default: Any, help: str, **metadata: Any) -> Any:
    """A field with its help text; a callable `default` is called for each new object.

    metadata: `low`, `high` (inclusive), `above` (exclusive) and `choices` bound the value, or each of a list;
    `infinite` allows infinity; `unit="bytes"` lets the command line write 2G for 2 GiB; `aliases` are other spellings
    of the flag, `short` is one with a single dash, `inverse` are those of its opposite; `positional` says that there is
    no flag; `secret` that the value is never shown; `json` that the text is a JSON object, which the config file may
    spell in YAML; `one_word` that a list takes one word of the command line at a time.
    """
    meta = {"help": help, **metadata}
    if callable(default):
        return field(default_factory=default, metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how its files are read."""

    model: str = opt("smollm2", "Hub id, directory, .gguf file, or the name of the demo model.", positional=True)
    tokenizer: str | None = opt(None, "Directory, .gguf file or hub id of the tokenizer; default: the model's.")
    revision: str | None = opt(None, "Branch, tag or commit of the model on the hub.")
    tokenizer_revision: str | None = opt(None, "Branch, tag or commit of the tokenizer on the hub.")
    download_dir: str | None = opt(None, "Where downloads are kept; default: the hub's cache.")
    ignore_patterns: list[str] = opt(list, "Files of a hub's repository that are not downloaded: names with * and ?.")
    load_format: LoadFormat = opt("auto", "How the weights are stored; dummy: random weights, for measuring.")
    dtype: DType = opt(
        "auto",
        "Type of unquantized weights; auto: as in the checkpoint, on a GPU never float32. half is another name of "
        "float16, float of float32.",
    )
    quantization: Literal["fp8", "int8", "gguf"] | None = opt(
        None,
        "Quantize unquantized matrices while they load, and their inputs in each step: fp8 or int8, on GPUs only. "
        "gguf: the model must be a .gguf file, whose weights stay as they are.",
        short="-q",
        choices=("fp8", "int8", "gguf"),
    )
    max_model_len: int | None = opt(
        None, "Longest sequence, prompt and output, in tokens; default: the model's.", low=1
    )
    logprobs_mode: LogprobsMode = opt(
        "raw_logprobs",
        "Log probabilities of replies: the model's own, or after penalties, temperature and filters; or logits.",
    )
    seed: int = opt(0, "Seed for requests that give none and for dummy weights.", low=0, high=2**63 - 1)

    @property
    def load_quantization(self) -> Literal["fp8", "int8"] | None:
        """To what unquantized matrices are quantized while they load."""
        return None if self.quantization == "gguf" else self.quantization


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The paged KV cache."""

    block_size: int = opt(16, "Tokens in a block: 16, 32 or 64.", choices=(16, 32, 64))
    kv_cache_dtype: KVCacheDType = opt(
        "auto",
        "Type of cached keys and values; auto: the model's dtype. fp8 is another name of fp8_e4m3; it and fp8_e5m2 are "
        "for GPUs only.",
    )
    kv_cache_memory_bytes: int | None = opt(
        None, "Bytes for the KV cache; default: from what the machine has free.", low=1, unit="bytes"
    )
    cpu_memory_utilization: float = opt(
        0.5, "Share of the memory free after loading that the KV cache may take.", above=0.0, high=1.0
    )
    gpu_memory_utilization: float | None = opt(
        None,
        "Share of a GPU's memory that weights, activations and KV cache may take together; default: 0.9.",
        above=0.0,
        high=1.0,
    )
    swap_space: float | None = opt(
        None,
        "GiB of the host's memory for the KV blocks of requests that were preempted; what does not fit there is "
        "computed again. Default: 4 on a GPU; a CPU has no use for it.",
        low=0.0,
    )
    num_kv_blocks_override: int | None = opt(
        None, "Exact number of blocks, for tests.", low=2, aliases=("num_gpu_blocks_override",)
    )
    enable_prefix_caching: bool = opt(True, "Reuse the KV blocks of prompts that begin alike.")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How requests share the steps."""

    max_num_seqs: int = opt(256, "Most sequences in one step.", low=1, high=4096)
    max_num_batched_tokens: int | None = opt(
        None, "Most tokens in one step; default: 512, on a GPU 8192, and at least --max-num-seqs.", low=1
    )
    max_num_prefill_tokens: int | None = opt(
        None,
        "Most prompt tokens in one step, beside the running requests' one each; default: 128, or as many as "
        "--max-num-batched-tokens where that is given, and on a GPU.",
        low=1,
    )
    enable_chunked_prefill: bool = opt(True, "Split long prompts over several steps.")
    enable_jump_forward: bool = opt(True, "Take text that a grammar dictates without sampling its tokens.")
    max_num_queued_reqs: int = opt(2048, "Most requests waiting; one more is refused with 429.", low=1)
    max_num_queued_tokens: int | None = opt(
        None, "Most prompt tokens waiting; a request beyond is refused with 429. Default: no bound.", low=1
    )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Threads and devices."""

    device: Literal["auto", "cpu", "cuda"] = opt(
        "auto", "Where the model runs; auto: on an NVIDIA GPU if there is one that can, else on the CPU."
    )
    enforce_eager: bool = opt(False, "Launch every kernel of every step instead of replaying captured CUDA graphs.")
    cudagraph_capture_sizes: list[int] = opt(
        list,
        "Batch sizes for which a step of decoding is captured; others are padded to the next, or run as they are "
        "beyond the last. Default: a ladder up to --max-num-seqs.",
        low=1,
    )
    attention_backend: Literal["auto", "triton", "flashinfer", "TRITON_ATTN", "FLASHINFER"] = opt(
        "auto",
        "Who computes the attention of prompts on a GPU; auto: FlashInfer where it is installed and works. TRITON_ATTN "
        "and FLASHINFER are vLLM's names of triton and flashinfer.",
    )
    batch_invariant: bool = opt(
        False, "Hold on a GPU too what holds on a CPU anyway: a reply never depends on the other requests."
    )
    num_threads: int | None = opt(
        None,
        "Threads of the CPU kernels; default: one a physical core, as far as the CPU quota of a container goes.",
        low=1,
        high=1024,
    )
    isa: str | None = opt(None, "CPU kernels to use (portable, avx2, avx512...); default: the best this CPU has.")
    engine_heartbeat_timeout: float = opt(
        2.0, "Seconds without a sign of life after which the engine counts as dead.", above=0.0
    )
    engine_step_timeout: float = opt(120.0, "Seconds one step may take before the engine counts as hung.", above=0.0)


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
    port: int = opt(8000, "Port to bind; 0: any free one.", low=0, high=65535)
    uds: str | None = opt(None, "Path of a unix socket to bind instead of a port.")
    api_key: list[str] = opt(
        list, "Keys of which a client must send one; may be given several times.", secret=True, one_word=True
    )
    api_key_file: str | None = opt(None, "File with such keys, one a line; what follows a # is a comment.")
    admin_api_key: str | None = opt(
        None,
        "Key that routes for administrators ask for, such as /reset_prefix_cache; without it there are none.",
        secret=True,
    )
    public_paths: list[str] = opt(
        list,
        "Paths that answer without a key, beside /health and /ready: /metrics for a scraper.",
        choices=(
            "/metrics", "/load", "/ping", "/version", "/v1/models", "/tokenizer_info", "/openapi.json", "/docs",
            "/redoc",
        ),
    )  # fmt: skip
    middleware: list[str] = opt(
        list,
        "ASGI middleware around the API, as module.name of a class or a function; may be given several times.",
        one_word=True,
    )
    served_model_name: list[str] = opt(list, "Names under which the model is served; the first is reported.")
    uvicorn_log_level: LogLevel = opt("info", "Log level of the HTTP server.")
    allowed_hosts: list[str] = opt(
        list, "Host names to answer to; *: any. Default: any, but only this machine's when bound to loopback."
    )
    allow_credentials: bool = opt(False, "CORS: allow credentials.")
    allowed_origins: list[str] = opt(list, "CORS: allowed origins; default: none.")
    allowed_methods: list[str] = opt(lambda: ["*"], "CORS: allowed methods.")
    allowed_headers: list[str] = opt(lambda: ["*"], "CORS: allowed headers.")
    ssl_keyfile: str | None = opt(None, "TLS key file.")
    ssl_certfile: str | None = opt(None, "TLS certificate file.")
    ssl_ca_certs: str | None = opt(None, "TLS authorities for client certificates.")
    ssl_cert_reqs: int = opt(
        0, "TLS: whether clients must show a certificate (0, 1 or 2, as in Python's ssl).", choices=(0, 1, 2)
    )
    ssl_ciphers: str | None = opt(None, "TLS: ciphers up to TLS 1.2, as OpenSSL writes them; default: OpenSSL's.")
    root_path: str = opt("", "Path prefix behind a proxy.")
    chat_template: str | None = opt(None, "File, inline template, or name of a template of the tokenizer's.")
    chat_template_content_format: ContentFormatOption = opt(
        "auto", "Contents as the template sees them: string, openai (lists of parts), or auto, as it reads them."
    )
    default_chat_template_kwargs: str | None = opt(
        None, "Variables of the chat template as a JSON object, for requests that do not set them.", json=True
    )
    trust_request_chat_template: bool = opt(False, "Render chat templates that requests bring with them.")
    exclude_tools_when_tool_choice_none: bool = opt(
        False, "Do not show the model the tools of a request whose tool_choice is none."
    )
    response_role: str = opt("assistant", "Role of the reply.")
    enable_auto_tool_choice: bool = opt(False, "Let the model decide whether it calls tools.")
    tool_call_parser: str = opt(
        "auto", "How the model writes tool calls: a format's name, or auto, as its template or vocabulary shows."
    )
    tool_parser_plugin: str | None = opt(None, "Python file that registers further formats of tool calls.")
    tool_strict_level: ToolStrictLevel = opt(
        "auto",
        "What calls that the model makes of itself are held to: function, names that exist; parameter, the schemas "
        "too; auto, the schemas of tools that say strict.",
    )
    reasoning_parser: str | None = opt(
        None, "How the model marks what it thinks: a format's name, or auto; default: thoughts are content."
    )
    max_n: int = opt(128, "Most choices (n) of a request.", low=1)
    max_prompts: int = opt(1024, "Most prompts of a request.", low=1)
    max_stop_strings: int = opt(4, "Most stop strings of a request.", low=0)
    max_logit_bias: int = opt(1024, "Most entries of a request's logit_bias.", low=0)
    max_body_bytes: int = opt(16 * 1024 * 1024, "Most bytes of a request's body.", low=1, unit="bytes")
    max_json_depth: int = opt(64, "Deepest nesting of a request's JSON.", low=1, high=200)
    stream_interval: int = opt(1, "Tokens in one event of a stream; its first and last are never delayed.", low=1)
    sse_keep_alive_interval: float = opt(
        0.0, "Seconds of silence after which a stream sends a comment; 0: never.", low=0.0
    )
    enable_force_include_usage: bool = opt(False, "End every stream with its usage, asked for or not.")
    disable_fastapi_docs: bool = opt(False, "Do not serve /openapi.json and /docs.")
    max_logprobs: int = opt(
        20, "Most log probabilities a request may ask for at each place; -1: the whole vocabulary.", low=-1
    )
    return_tokens_as_token_ids: bool = opt(
        False, "Name the tokens of log probabilities token_id:<id>, for requests that do not say."
    )
    generation_config: str = opt(
        "auto",
        "Defaults of requests: auto, from the model's generation_config.json; vllm, none; or a directory or file.",
    )
    override_generation_config: str | None = opt(None, "Defaults of requests as a JSON object; they win.", json=True)
    strict_requests: bool = opt(False, "Refuse requests with unknown fields, which are ignored otherwise.")
    disable_log_stats: bool = opt(False, "Do not log throughput and cache use every 10 s.")
    disable_log_requests: bool = opt(True, "Do not log each request.", inverse=("enable_log_requests",))
    max_log_len: int | None = opt(None, "Most characters or ids of a prompt in the log.", low=0)
    max_grammar_bytes: int = opt(
        64 << 10, "Largest schema, grammar or list of choices that a request may send.", low=1, unit="bytes"
    )
    max_schema_depth: int = opt(64, "Deepest nesting of a request's JSON schema.", low=1, high=200)
    grammar_timeout: float = opt(5.0, "Seconds the compilation of a request's grammar may take.", above=0.0)
    grammar_cache_bytes: int = opt(16 << 20, "Bytes of grammars remembered as sound.", low=0, unit="bytes")
    timeout_keep_alive: float = opt(
        120.0,
        "Seconds an idle connection stays open; longer than the 60 to 90 s after which proxies close theirs, so that "
        "none sends a request into a connection that is being closed.",
        above=0.0,
    )
    enable_tokenizer_info_endpoint: bool = opt(
        False, "Serve /tokenizer_info: the tokenizer's configuration, special tokens and chat template."
    )
    shutdown_timeout: float = opt(30.0, "Seconds that running requests get to finish after TERM.", low=0.0)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """All that `octavo serve` is told."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    server: ServerConfig = field(default_factory=ServerConfig)


def flag_name(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def json_object(data: str | bytes, place: str) -> dict[str, Any]:
    """The object that a setting holds as JSON text. Raises `InvalidConfig`, which begins with `place`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidConfig(f"{place} is not valid JSON") from None
    if not isinstance(value, dict):
        raise InvalidConfig(f"{place} must be a JSON object")
    return value


def check(config: Any) -> None:
    """Check every field of a configuration, nested ones too. Raises `InvalidConfig` naming the flag."""
    hints = get_type_hints(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            check(value)
        elif value is not None:
            _check_value(f.name, value, hints[f.name], f.metadata)
            if f.metadata.get("json"):
                json_object(value, flag_name(f.name))
    if isinstance(config, EngineConfig):
        _check_engine(config)
    elif isinstance(config, ServerConfig):
        _check_server(config)


def _check_value(name: str, value: Any, hint: Any, bounds: Any) -> None:
    if get_origin(hint) is list:
        for item in value:
            _check_value(name, item, get_args(hint)[0], bounds)
        return
    choices = bounds.get("choices") or (get_args(hint) if get_origin(hint) is Literal else None)
    if choices is not None and value not in choices:
        allowed = ", ".join(map(str, choices))
        hint_text = nearest(value, choices) if isinstance(value, str) else ""
        raise InvalidConfig(f"{flag_name(name)} must be one of {allowed}; got {value!r}{hint_text}")
    if isinstance(value, float) and not (math.isfinite(value) or (bounds.get("infinite") and value == math.inf)):
        raise InvalidConfig(f"{flag_name(name)} must be a finite number")
    low, high, above = bounds.get("low"), bounds.get("high"), bounds.get("above")
    if (
        (low is not None and value < low)
        or (above is not None and value <= above)
        or (high is not None and value > high)
    ):
        least = f"at least {low}" if low is not None else f"greater than {above}"
        most = f" and at most {high}" if high is not None else ""
        raise InvalidConfig(f"{flag_name(name)} must be {least}{most}; got {value}")


def _check_engine(config: EngineConfig) -> None:
    scheduler, max_model_len = config.scheduler, config.model.max_model_len
    budget = scheduler.max_num_batched_tokens
    if budget is None:
        return  # the worker chooses one that fits
    if budget < scheduler.max_num_seqs:
        raise InvalidConfig(
            f"--max-num-batched-tokens ({budget}) must be at least --max-num-seqs ({scheduler.max_num_seqs})"
        )
    if not scheduler.enable_chunked_prefill and max_model_len is not None and budget < max_model_len:
        raise InvalidConfig(
            f"--no-enable-chunked-prefill needs --max-num-batched-tokens ({budget}) "
            f"to be at least --max-model-len ({max_model_len})"
        )


def _check_server(config: ServerConfig) -> None:
    if config.uds is not None and config.host is not None:
        raise InvalidConfig("--uds and --host exclude each other")
    if (config.ssl_keyfile is None) != (config.ssl_certfile is None):
        raise InvalidConfig("--ssl-keyfile and --ssl-certfile go together")
    if config.ssl_certfile is None and (config.ssl_ca_certs or config.ssl_cert_reqs or config.ssl_ciphers):
        raise InvalidConfig("--ssl-ca-certs, --ssl-cert-reqs and --ssl-ciphers need --ssl-certfile")
    if any(not key for key in config.api_key):
        raise InvalidConfig("--api-key must not be empty")
    if config.admin_api_key is not None and (not config.admin_api_key or config.admin_api_key in config.api_key):
        raise InvalidConfig("--admin-api-key must not be empty, and not one of --api-key")
    if any(not name for name in config.served_model_name):
        raise InvalidConfig("--served-model-name must not be empty")
    if config.root_path and not config.root_path.startswith("/"):
        raise InvalidConfig(f"--root-path must begin with a slash; got {config.root_path!r}")
