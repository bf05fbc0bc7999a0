"""The configuration: frozen dataclasses, one for each concern, composed into `EngineConfig` and `ServeConfig`.

Each field is a flag of the command line and a key of the config file; its help text stands in the field's
metadata, so that parser, file, help and documents share one declaration. Each "auto" value is resolved once, in the
process that knows the answer; what only the worker knows comes back in `messages.EngineInfo`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from octavo.base.errors import InvalidConfig
from octavo.base.suggest import nearest

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
        "Data type of unquantized weights; auto: the checkpoint's, but on a GPU never float32. half is another name "
        "for float16, float for float32.",
    )
    quantization: Literal["fp8", "int8", "gguf"] | None = opt(
        None,
        "Quantize the matrices of an unquantized model while they load, and their inputs in each step: fp8 or int8, on "
        "GPUs only. gguf: the model must be a .gguf file, whose weights stay as they are.",
        short="-q",
        choices=("fp8", "int8", "gguf"),
    )
    max_model_len: int | None = opt(
        None, "Longest sequence (prompt and output) in tokens; default: the model's context length.", low=1
    )
    logprobs_mode: LogprobsMode = opt(
        "raw_logprobs",
        "What replies give as log probabilities: the model's own (raw), or those after penalties, temperature and "
        "filters (processed); or the logits of either.",
    )
    seed: int = opt(0, "Seed for requests without one, and for dummy weights.", low=0, high=2**63 - 1)

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
        "Data type of cached keys and values; auto: the model's dtype. fp8 is another name for fp8_e4m3; fp8_e4m3 and "
        "fp8_e5m2 need a GPU.",
    )
    kv_cache_memory_bytes: int | None = opt(
        None,
        "Bytes for the KV cache; default: a share of the memory of the CPU or GPU.",
        low=1,
        unit="bytes",
    )
    cpu_memory_utilization: float = opt(
        0.5, "Share of the CPU's memory that is left after loading, for the KV cache.", above=0.0, high=1.0
    )
    gpu_memory_utilization: float | None = opt(
        None,
        "Share of a GPU's memory that weights, activations and KV cache may take together; default: 0.9.",
        above=0.0,
        high=1.0,
    )
    swap_space: float | None = opt(
        None,
        "GiB of the host's memory for the KV blocks of preempted requests; blocks that do not fit are computed again. "
        "Default: 4 on a GPU; a CPU does not need it.",
        low=0.0,
    )
    num_kv_blocks_override: int | None = opt(
        None,
        "Exact number of blocks, for tests. A block holds tokens of one group of layers: of all, if none has a window.",
        low=2,
        aliases=("num_gpu_blocks_override",),
    )
    enable_prefix_caching: bool = opt(True, "Reuse the KV blocks of prompts that begin alike.")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How requests share the steps."""

    max_num_seqs: int = opt(256, "Maximum number of sequences in one step.", low=1, high=4096)
    max_num_batched_tokens: int | None = opt(
        None, "Maximum number of tokens in one step; default: 512, on a GPU 8192, and at least --max-num-seqs.", low=1
    )
    max_num_prefill_tokens: int | None = opt(
        None,
        "Maximum number of prompt tokens in one step, beside the one token of each running request. Default: 128; as "
        "many as --max-num-batched-tokens on a GPU, and where that is given.",
        low=1,
    )
    enable_chunked_prefill: bool = opt(True, "Split long prompts over several steps.")
    enable_jump_forward: bool = opt(True, "Take text that a grammar dictates without sampling its tokens.")
    max_num_queued_reqs: int = opt(
        2048, "Maximum number of waiting requests; further ones are refused with 429.", low=1
    )
    max_num_queued_tokens: int | None = opt(
        None,
        "Maximum number of waiting prompt tokens; requests beyond it are refused with 429. Default: no limit.",
        low=1,
    )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Threads and devices."""

    device: Literal["auto", "cpu", "cuda"] = opt(
        "auto", "Where the model runs; auto: on an NVIDIA GPU that octavo can use, else on the CPU."
    )
    enforce_eager: bool = opt(
        False, "Launch the kernels of a step one by one instead of replaying captured CUDA graphs."
    )
    cudagraph_capture_sizes: list[int] = opt(
        list,
        "Batch sizes for which a decoding step is captured as a CUDA graph; other batches are padded to the next size, "
        "and those beyond the last run without a graph. Default: a series up to --max-num-seqs.",
        low=1,
    )
    attention_backend: Literal["auto", "triton", "flashinfer", "TRITON_ATTN", "FLASHINFER"] = opt(
        "auto",
        "Kernels for the attention of prompts on a GPU; auto: FlashInfer where it is installed and works. TRITON_ATTN "
        "and FLASHINFER are vLLM's names for triton and flashinfer.",
    )
    batch_invariant: bool = opt(
        False, "Make a reply on a GPU independent of the other requests, as it always is on a CPU."
    )
    num_threads: int | None = opt(
        None,
        "Threads of the CPU kernels; default: one for each physical core, within the CPU quota of the container.",
        low=1,
        high=1024,
    )
    isa: str | None = opt(
        None, "CPU kernels to use (portable, avx2, avx512...); default: the best that this CPU supports."
    )
    engine_heartbeat_timeout: float = opt(
        2.0, "Seconds without a sign of life after which the engine counts as dead.", above=0.0
    )
    engine_step_timeout: float = opt(
        120.0, "Seconds that one step may take before the engine counts as hung.", above=0.0
    )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The settings of the engine process, which gets them as msgpack."""

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
        list,
        "API key that clients must send; may be given several times, and any of the keys will do.",
        secret=True,
        one_word=True,
    )
    api_key_file: str | None = opt(None, "File with API keys, one a line; what follows a # is a comment.")
    admin_api_key: str | None = opt(
        None,
        "Key of the routes for administrators, such as /reset_prefix_cache; without it there are no such routes.",
        secret=True,
    )
    public_paths: list[str] = opt(
        list,
        "Paths that answer without a key, beside /, /health and /ready: /metrics for a scraper.",
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
    served_model_name: list[str] = opt(
        list, "Names by which clients may ask for the model; the first is the default and labels the metrics."
    )
    uvicorn_log_level: LogLevel = opt("info", "Log level of the HTTP server.")
    allowed_hosts: list[str] = opt(
        list, "Host names that the server answers to; *: any. Default: any; on a loopback address only loopback names."
    )
    allow_credentials: bool = opt(False, "CORS: allow credentials.")
    allowed_origins: list[str] = opt(list, "CORS: allowed origins; default: none.")
    allowed_methods: list[str] = opt(lambda: ["*"], "CORS: allowed methods.")
    allowed_headers: list[str] = opt(lambda: ["*"], "CORS: allowed headers.")
    ssl_keyfile: str | None = opt(None, "TLS key file.")
    ssl_certfile: str | None = opt(None, "TLS certificate file.")
    ssl_ca_certs: str | None = opt(None, "TLS: file of the authorities for client certificates.")
    ssl_cert_reqs: int = opt(
        0, "TLS: whether clients must show a certificate (0, 1 or 2, as in Python's ssl).", choices=(0, 1, 2)
    )
    ssl_ciphers: str | None = opt(None, "TLS: ciphers up to TLS 1.2, as OpenSSL writes them; default: OpenSSL's.")
    root_path: str = opt("", "Path prefix that a proxy adds in front of the server's paths.")
    chat_template: str | None = opt(
        None, "Chat template: a file, the template itself, or the name of one of the tokenizer's templates."
    )
    chat_template_content_format: ContentFormatOption = opt(
        "auto",
        "How the template sees the content of a message: string, openai (a list of parts), or auto, as it reads it.",
    )
    default_chat_template_kwargs: str | None = opt(
        None, "Default variables of the chat template, as a JSON object.", json=True
    )
    trust_request_chat_template: bool = opt(False, "Render chat templates that come with requests.")
    exclude_tools_when_tool_choice_none: bool = opt(
        False, "Hide the tools from the chat template when a request's tool_choice is none."
    )
    response_role: str = opt("assistant", "Role of the reply.")
    enable_auto_tool_choice: bool = opt(False, "Let the model decide whether it calls tools.")
    tool_call_parser: str = opt(
        "auto", "Format of the model's tool calls; auto: the one that its chat template or vocabulary shows."
    )
    tool_parser_plugin: str | None = opt(None, "Python file that registers further formats of tool calls.")
    tool_strict_level: ToolStrictLevel = opt(
        "auto",
        "What tool calls must fit when the model decides whether to call. function: names that exist; parameter: the "
        "schemas too; auto: the schemas of tools with strict.",
    )
    reasoning_parser: str | None = opt(
        None, "Format of the model's thinking, or auto; default: thinking stays in the content."
    )
    max_n: int = opt(128, "Maximum n and best_of of a request.", low=1)
    max_prompts: int = opt(1024, "Maximum number of prompts in a request.", low=1)
    max_stop_strings: int = opt(4, "Maximum number of stop strings in a request.", low=0)
    max_logit_bias: int = opt(1024, "Maximum number of entries in a request's logit_bias.", low=0)
    max_body_bytes: int = opt(16 * 1024 * 1024, "Maximum size of a request's body in bytes.", low=1, unit="bytes")
    max_json_depth: int = opt(64, "Maximum nesting of a request's JSON.", low=1, high=200)
    stream_interval: int = opt(
        1, "Minimum number of tokens in one event of a stream; the first and the last event never wait.", low=1
    )
    sse_keep_alive_interval: float = opt(
        0.0, "Seconds of silence after which a stream sends a comment; 0: never.", low=0.0
    )
    enable_force_include_usage: bool = opt(
        False, "End every stream with its usage, even when the request does not ask for it."
    )
    disable_fastapi_docs: bool = opt(False, "Do not serve /docs, /redoc and /openapi.json.")
    disable_ui: bool = opt(False, "Do not serve the page at /: a chat and a view of the engine.")
    max_logprobs: int = opt(
        20, "Maximum number of log probabilities for each token of a reply; -1: the whole vocabulary.", low=-1
    )
    return_tokens_as_token_ids: bool = opt(
        False, "Name tokens token_id:<id> in log probabilities, unless the request says otherwise."
    )
    generation_config: str = opt(
        "auto",
        "Source of the default sampling parameters: auto, the model's generation_config.json; vllm, none; or a "
        "directory or file.",
    )
    override_generation_config: str | None = opt(
        None, "Default sampling parameters as a JSON object; they override --generation-config.", json=True
    )
    strict_requests: bool = opt(False, "Refuse requests with unknown fields instead of ignoring the fields.")
    disable_log_stats: bool = opt(False, "Do not log throughput and cache use every 10 s.")
    disable_log_requests: bool = opt(True, "Do not log each request.", inverse=("enable_log_requests",))
    max_log_len: int | None = opt(None, "Maximum number of characters or token ids of a prompt in the log.", low=0)
    max_grammar_bytes: int = opt(
        64 << 10, "Maximum size of a request's schema, grammar or list of choices in bytes.", low=1, unit="bytes"
    )
    max_schema_depth: int = opt(64, "Maximum nesting of a request's JSON schema.", low=1, high=200)
    grammar_timeout: float = opt(5.0, "Seconds that the compilation of a request's grammar may take.", above=0.0)
    grammar_cache_bytes: int = opt(
        16 << 20, "Bytes of grammars that are remembered because they compiled.", low=0, unit="bytes"
    )
    disable_additional_properties: bool = opt(
        False,
        "Forbid keys that a request's JSON schema does not name, where the schema leaves them open.",
        aliases=(
            "guided_decoding_disable_additional_properties",
            "structured_outputs_config.disable_additional_properties",
        ),
    )
    disable_any_whitespace: bool = opt(
        False,
        "Forbid white space between the tokens of JSON output.",
        aliases=("guided_decoding_disable_any_whitespace", "structured_outputs_config.disable_any_whitespace"),
    )
    structured_outputs_config: str | None = opt(
        None, "disable_additional_properties and disable_any_whitespace, as a JSON object.", json=True
    )
    timeout_keep_alive: float = opt(
        120.0,
        "Seconds that an idle connection stays open. Proxies close theirs after 60 to 90 s; with a shorter time here "
        "one may send a request into a connection that is being closed.",
        above=0.0,
    )
    enable_tokenizer_info_endpoint: bool = opt(
        False, "Serve /tokenizer_info: the tokenizer's configuration, special tokens and chat template."
    )
    shutdown_timeout: float = opt(30.0, "Seconds that running requests have to finish after TERM.", low=0.0)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The settings of `octavo serve`."""

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


#: Keys of `structured_outputs_config` that are flags too, and others that ask for what octavo does anyway.
STRUCTURED_OUTPUTS: Final = ("disable_additional_properties", "disable_any_whitespace")
_STRUCTURED_OUTPUTS_SAME: Final[dict[str, tuple[Any, ...]]] = {
    "backend": ("auto", "guidance", "outlines", "lm-format-enforcer", "xgrammar"),
    "disable_fallback": (True, False),  # there is one engine
    "enable_in_reasoning": (False,),
    "reasoning_parser": ("",),
}


def _check_structured_outputs(text: str) -> None:
    for key, value in json_object(text, "--structured-outputs-config").items():
        allowed = (True, False) if key in STRUCTURED_OUTPUTS else _STRUCTURED_OUTPUTS_SAME.get(key, ())
        if not allowed:
            raise InvalidConfig(f"--structured-outputs-config has no key {key!r}{nearest(key, STRUCTURED_OUTPUTS)}")
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in allowed):
            shown = " or ".join(json.dumps(choice) for choice in allowed)
            raise InvalidConfig(f"--structured-outputs-config: {key} must be {shown}")


def _check_server(config: ServerConfig) -> None:
    if config.structured_outputs_config is not None:
        _check_structured_outputs(config.structured_outputs_config)
    if config.uds is not None and config.host is not None:
        raise InvalidConfig("--uds and --host cannot be combined")
    if (config.ssl_keyfile is None) != (config.ssl_certfile is None):
        raise InvalidConfig("--ssl-keyfile and --ssl-certfile must be given together")
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
