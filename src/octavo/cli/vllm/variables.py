"""The environment variables that vLLM reads."""

from __future__ import annotations

import re

from octavo.cli.vllm.row import ANY, NONE, Values, Variable, only

_ONE_TIMEOUT = "--media-fetch-timeout counts for all media"
_NO_DEVICES = "several devices are not built yet"
_FALSE = only("0", "false", "no", "off")
_LEVELS = {"warn": "warning", "fatal": "critical", "notset": "trace"}
_ATTENTION = {"flashinfer": "flashinfer", "triton_attn": "triton", "triton_attn_vllm_v1": "triton"}


def _level(text: str) -> str:
    return _LEVELS.get(text.lower(), text.lower())


def _configures_logging(text: str) -> str | None:
    return None if text.lower() in ("1", "true") else text


def _hub(text: str) -> str | None:
    return None if text.lower() in ("", "0", "false", "no", "off") else "modelscope"


def _attention(text: str) -> str | None:
    return _ATTENTION.get(text.lower())


def _matmul_precision(text: str) -> str:
    return "high" if text == "medium" else text


def _gibibytes(text: str) -> str | None:
    if re.fullmatch(r"\d+(\.\d+)?", text):
        size = int(float(text) * 2**30)
        return str(size) if size else None  # 0: the default
    return text  # for its error


def _unset(name: str, today: str | None, meaning: str, reason: str, accepts: Values = NONE) -> Variable:
    """One that 0.6.0 and today's have without a value."""
    return Variable(name=name, seed="none", today=today, meaning=meaning, accepts=accepts, reason=reason)


VARIABLES: tuple[Variable, ...] = (
    Variable(
        name="VLLM_API_KEY", seed="none", today="none", meaning="The API key.", field="api_key",
        reason="OCTAVO_API_KEY comes first.",
    ),
    Variable(
        name="VLLM_HTTP_TIMEOUT_KEEP_ALIVE", seed=None, today="5", meaning="Seconds an idle connection stays open.",
        field="timeout_keep_alive",
    ),
    Variable(
        name="VLLM_ALLOW_RUNTIME_LORA_UPDATING", seed=None, today="False",
        meaning="Adapters may be loaded and unloaded over HTTP.", field="allow_runtime_lora_updating",
    ),
    Variable(
        name="VLLM_LOGGING_LEVEL", seed="INFO", today="INFO", meaning="Level of the log.", field="uvicorn_log_level",
        convert=_level,
    ),
    Variable(
        name="VLLM_ATTENTION_BACKEND", seed="none", today=None, meaning="Who computes attention.",
        field="attention_backend", convert=_attention,
        reason="FLASHINFER and TRITON_ATTN are taken; for all others octavo chooses.",
    ),
    Variable(
        name="VLLM_CPU_KVCACHE_SPACE", seed="0", today="0", meaning="GiB of the KV cache on a CPU.",
        field="kv_cache_memory_bytes", convert=_gibibytes, device="cpu",
        reason="It counts unless --device cuda is given.",
    ),
    Variable(
        name="VLLM_CONFIGURE_LOGGING", seed="1", today="1", meaning="Whether the log is set up at all.",
        field="configure_logging", convert=_configures_logging,
    ),
    Variable(
        name="VLLM_LOGGING_CONFIG_PATH", seed="none", today="none", field="log_config_file",
        meaning="Python's logging, configured by a JSON file.",
    ),
    _unset("VLLM_CPU_OMP_THREADS_BIND", "auto", "CPUs on which threads are bound.",
           "octavo binds no threads: taskset or the container chooses the CPUs, --num-threads their number",
           only("auto", "all", "nobind")),
    Variable(name="VLLM_IMAGE_FETCH_TIMEOUT", seed="5", today="5", meaning="Seconds to fetch an image.",
             field="media_fetch_timeout", reason="It counts for all media."),
    Variable(name="VLLM_VIDEO_FETCH_TIMEOUT", seed=None, today="30", meaning="Seconds to fetch a video.",
             accepts=ANY, reason=_ONE_TIMEOUT),
    Variable(name="VLLM_AUDIO_FETCH_TIMEOUT", seed="5", today="10", meaning="Seconds to fetch sounds.", accepts=ANY,
             reason=_ONE_TIMEOUT),
    Variable(
        name="VLLM_ALLOW_LONG_MAX_MODEL_LEN", seed="0", today="0", accepts=_FALSE,
        meaning="Take a --max-model-len beyond the model's positions.",
        reason="octavo refuses a --max-model-len beyond the model's positions",
    ),
    Variable(
        name="VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", seed="0", today="0", accepts=_FALSE,
        meaning="Let the server live without its engine.",
        reason="octavo ends when its engine dies, for whoever supervises it to start it again",
    ),
    Variable(
        name="VLLM_USE_MODELSCOPE", seed="0", today="0", meaning="Fetch models from ModelScope.", field="model_hub",
        convert=_hub,
    ),
    Variable(
        name="VLLM_SERVER_DEV_MODE", seed=None, today="0", accepts=_FALSE, meaning="Serve routes for administrators.",
        reason="octavo serves them with --admin-api-key only",
    ),
    _unset("VLLM_PLUGINS", "none", "Plugins to load.", "octavo has no plugins"),
    _unset("VLLM_PP_LAYER_PARTITION", "none", "Layers of each device.", _NO_DEVICES),
    Variable(
        name="VLLM_TORCH_PROFILER_DIR", seed="none", today=None, meaning="Where profiles go.", field="profiler_dir",
        reason="The routes need --admin-api-key too.",
    ),
    _unset("VLLM_HOST_IP", "none", "This node's address among several.", "it asks for nothing on one node", ANY),
    Variable(name="VLLM_WORKER_MULTIPROC_METHOD", seed="fork", today="fork", meaning="How workers are started.",
             accepts=ANY, reason="octavo has one worker"),
    Variable(name="VLLM_USE_V1", seed=None, today=None, meaning="Which engine.", accepts=ANY,
             reason="octavo has one engine"),
    Variable(name="VLLM_BATCH_INVARIANT", seed=None, today="0", meaning="Replies never depend on other requests.",
             field="batch_invariant"),
    Variable(
        name="VLLM_FLOAT32_MATMUL_PRECISION", seed=None, today="highest", field="float32_matmul_precision",
        meaning="How exact products of float32 are.", convert=_matmul_precision,
        reason="medium counts as high, which rounds less. Without it some models have high: see the flag.",
    ),
    Variable(
        name="VLLM_ENABLE_RESPONSES_API_STORE", seed=None, today="0", accepts=ANY,
        meaning="Keep responses that are to be kept.",
        reason="octavo keeps them, within bounds (docs/responses.md), but for those of requests with `store` false",
    ),
    Variable(name="VLLM_NO_USAGE_STATS", seed="0", today="0", meaning="Do not report usage to vLLM's authors.",
             accepts=ANY, reason="octavo reports nothing to anybody"),
    Variable(name="VLLM_DO_NOT_TRACK", seed="0", today="0", meaning="The same.", accepts=ANY,
             reason="octavo reports nothing to anybody"),
    _unset("PROMETHEUS_MULTIPROC_DIR", "none", "Where several API processes keep their metrics.",
           "octavo's API processes ask each other for their metrics", ANY),
    Variable(
        name="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", seed="none", today="none", meaning="Where traces are sent.",
        field="otlp_traces_endpoint", reason="In vLLM it has no effect without the flag; in octavo it stands for it.",
    ),
    Variable(
        name="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", seed="grpc", today="grpc", meaning="How traces are sent.",
        field="otlp_traces_protocol",
    ),
    Variable(
        name="OTEL_EXPORTER_OTLP_PROTOCOL", seed=None, today=None, meaning="How all that OpenTelemetry has is sent.",
        field="otlp_traces_protocol",
    ),
)  # fmt: skip
