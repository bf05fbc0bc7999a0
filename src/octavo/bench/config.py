"""The settings of the benchmarks; each field is a flag, as in `octavo.base.config`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from octavo.base.config import opt

DatasetName = Literal["random", "sharegpt"]
Endpoint = Literal["/v1/completions", "/v1/chat/completions"]
OpName = Literal[
    "linear", "embedding", "rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm", "norm_parts_", "add_",
    "add_gated_", "clip_", "act_mul", "act", "route", "rope_kv_write", "attention", "latent_write", "latent_attention",
    "causal_conv", "selective_scan", "gated_delta", "gate_", "forbid", "sample", "logprobs",
]  # fmt: skip
WeightType = Literal["int4", "int5", "int6", "int8", "bfloat16", "float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Where the figures go."""

    json: str | None = opt(
        None, "Write the figures to this file, with a stamp of the machine.", aliases=("output_json", "result_filename")
    )
    progress: bool = opt(True, "Show a progress bar, if stderr is a terminal.", inverse=("disable_tqdm",))


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(ReportConfig):
    """Which prompts, and how long the replies."""

    dataset_name: DatasetName = opt("random", "Prompts of random words or tokens, or those of a ShareGPT file.")
    dataset_path: str | None = opt(None, "The file of ShareGPT conversations (JSON).")
    random_input_len: int = opt(128, "Length of random prompts.", low=1, aliases=("input_len",))
    random_output_len: int = opt(128, "Tokens of a reply to a random prompt.", low=1, aliases=("output_len",))
    sharegpt_output_len: int | None = opt(
        None, "Tokens of a reply to a ShareGPT prompt; default: as many as in the file.", low=1
    )


@dataclass(frozen=True, kw_only=True)
class ServeBenchConfig(DatasetConfig):
    """`octavo bench serve`."""

    url: str = opt(
        "http://127.0.0.1:8000", "The server: HOST:PORT or an address, with or without /v1.", aliases=("base_url",)
    )
    endpoint: Endpoint = opt("/v1/completions", "Route that the requests are sent to.")
    model: str | None = opt(None, "Model to ask; default: the first that the server lists.")
    api_key: str | None = opt(None, "Key to send; default: OCTAVO_API_KEY, else OPENAI_API_KEY.")
    num_prompts: int | None = opt(
        None, "Requests per level; default: four for each stream, at least 8; 100 without --max-concurrency.", low=1
    )
    max_concurrency: list[int] = opt(
        list,
        "Maximum number of requests at a time; of several (1,8,32) each is measured in turn. Default: no limit.",
        low=1,
    )
    request_rate: float = opt(
        math.inf, "Requests per second, at random times (Poisson); inf: all at once.", above=0.0, infinite=True
    )
    seed: int = opt(0, "Seed of the prompts and of their times.", low=0)
    temperature: float = opt(0.0, "Sampling temperature.", low=0.0, high=2.0)
    ignore_eos: bool = opt(True, "Ask for replies of the full length; off for servers that refuse the field.")
    num_warmups: int = opt(2, "Short requests before the measurement.", low=0)
    request_timeout: float = opt(900.0, "Seconds after which a request has failed.", above=0.0)
    beside_input_len: int | None = opt(
        None,
        "Length of random prompts that arrive beside the load and get one token each. They are not counted: they show "
        "how long streams wait while the prompts of others are computed.",
        low=1,
    )
    beside_interval: float | None = opt(None, "Seconds between two such prompts; default: 1.", above=0.0)
    weight_bytes: int | None = opt(
        None,
        "Bytes of weights that the server reads for a token, to report the share of the memory's bandwidth that one "
        "stream uses. The server must run on this machine.",
        low=1,
        unit="bytes",
    )
    save_result: bool = opt(False, "Write the figures to bench-serve-MODEL-TIME.json, if --json names no file.")


@dataclass(frozen=True, kw_only=True)
class ThroughputConfig(DatasetConfig):
    """`octavo bench throughput`."""

    num_prompts: int = opt(100, "Number of requests, all sent at once.", low=1)


@dataclass(frozen=True, kw_only=True)
class LatencyConfig(ReportConfig):
    """`octavo bench latency`."""

    input_len: int = opt(32, "Tokens of a prompt.", low=1)
    output_len: int = opt(128, "Tokens of a reply.", low=2)
    batch_size: int = opt(1, "Requests in a batch.", low=1)
    num_iters: int = opt(10, "Number of batches that are measured.", low=1)
    num_iters_warmup: int = opt(2, "Number of batches before the measurement.", low=0)
    profile: bool = opt(False, "Record one more batch, behind those that are measured, as traces for Perfetto.")
    profile_result_dir: str = opt("profiles", "Folder for what --profile records.")


@dataclass(frozen=True, kw_only=True)
class KernelsConfig(ReportConfig):
    """`octavo bench kernels`. The sizes are those of a model; the defaults are SmolLM2-135M's."""

    op: list[OpName] = opt(list, "Operations to measure; default: all.")
    weight_type: list[WeightType] = opt(lambda: ["int4", "int8", "bfloat16"], "Types of the matrices.")
    rows: list[int] = opt(lambda: [1, 8, 32, 512], "Tokens in a step.", low=1)
    hidden_size: int = opt(576, "Width of the model.", low=32)
    intermediate_size: int = opt(1536, "Width between the matrices of the MLP.", low=32)
    num_heads: int = opt(9, "Query heads.", low=1)
    num_kv_heads: int = opt(3, "Key and value heads.", low=1)
    head_dim: int = opt(64, "Width of a head.", low=16, high=256)
    vocab_size: int = opt(49152, "Rows of the output layer.", low=32)
    context_len: int = opt(1024, "Tokens that attention looks back on.", low=1)
    kv_cache_dtype: Literal["float32", "bfloat16", "float16", "fp8", "fp8_e5m2", "int8"] = opt(
        "bfloat16", "Type of cached keys and values."
    )
    spread_bytes: int = opt(
        96 << 20,
        "Size of all copies of weights and KV caches, used in turn as the layers of a model are.",
        low=1,
        unit="bytes",
    )
    passes: int = opt(5, "Number of passes; the median counts.", low=1)
    num_threads: int | None = opt(None, "Threads of the kernels; default: those of octavo serve.", low=1, high=1024)
    isa: str | None = opt(None, "CPU kernels to use; default: the best that this CPU supports.")
