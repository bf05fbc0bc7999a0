"""The settings of the engine process: model, KV cache, scheduler, threads and devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from octavo.base.config.log import LogSetup
from octavo.base.config.lora import LoraConfig, PromptAdapterConfig
from octavo.base.config.media import MediaLimits
from octavo.base.config.observe import StepTimes
from octavo.base.config.options import json_object, opt
from octavo.base.errors import InvalidConfig

DType = Literal["auto", "float32", "float", "bfloat16", "float16", "half"]
KVCacheDType = Literal["auto", "float32", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "int8"]
LoadFormat = Literal[
    "auto", "safetensors", "gguf", "pt", "npcache", "sharded_state", "mistral", "tensorizer", "dummy",
]  # fmt: skip
TokenizerMode = Literal["auto", "slow", "mistral"]
#: Those behind gguf name what a checkpoint's weights are.
Quantization = Literal[
    "fp8", "int8", "int4", "bitsandbytes", "experts_int8", "deepspeedfp", "gguf", "gptq", "gptq_marlin",
    "gptq_bitblas", "marlin", "awq", "awq_marlin", "compressed-tensors", "fbgemm_fp8", "hqq",
    "aqlm", "squeezellm", "qqq", "gptq_marlin_24", "auto-round", "modelopt", "modelopt_fp4", "quanto", "torchao",
]  # fmt: skip
#: To what unquantized matrices can be quantized while they load.
LoadQuantization = Literal["fp8", "int8", "int4", "bitsandbytes", "experts_int8", "deepspeedfp"]
Task = Literal["auto", "generate", "embed", "classify", "score", "reward"]
LogprobsMode = Literal["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(MediaLimits):
    """Which model, and how its files are read."""

    model: str = opt("smollm2", "Hub id, directory, .gguf file, or the name of the demo model.", positional=True)
    mmproj: str | None = opt(
        None,
        "The projector of a .gguf file: what its model sees with, another .gguf file or its name on the hub; default: "
        "the mmproj*.gguf beside it, if there is one alone.",
    )
    tokenizer: str | None = opt(None, "Directory, .gguf file or hub id of the tokenizer; default: the model's.")
    tokenizer_mode: TokenizerMode = opt(
        "auto",
        "Which vocabulary of a directory is read: auto, tokenizer.json where there is one; slow, the original "
        "(tokenizer.model, *.tiktoken, vocab.json) where there is one; mistral, tekken.json or tokenizer.model, with "
        "Mistral's own form of conversations.",
    )
    revision: str | None = opt(None, "Branch, tag or commit of the model on the hub.")
    tokenizer_revision: str | None = opt(None, "Branch, tag or commit of the tokenizer on the hub.")
    skip_tokenizer_init: bool = opt(
        False, "Load no tokenizer: prompts are token ids, and the text of replies is empty (see return_token_ids)."
    )
    trust_remote_code: bool = opt(
        False,
        "Run the Python code that comes with a model: of a class that neither octavo nor transformers has, in the "
        "engine's process; of a tokenizer that octavo does not read itself, in a process of its own.",
    )
    code_revision: str | None = opt(None, "Branch, tag or commit of that code, where it is in another repository.")
    model_hub: Literal["huggingface", "modelscope"] = opt("huggingface", "Where models are fetched from by name.")
    download_dir: str | None = opt(None, "Where downloads are kept; default: the hub's cache.")
    ignore_patterns: list[str] = opt(list, "Files of a hub's repository that are not downloaded: names with * and ?.")
    load_format: LoadFormat = opt(
        "auto",
        "How the weights are stored; auto: as the files show. pt: *.bin and *.pt, of which no code is run. npcache, "
        "sharded_state: as vLLM keeps them. mistral: consolidated*.safetensors and params.json. tensorizer: "
        "*.tensors. dummy: random weights, for measuring.",
    )
    model_loader_extra_config: str | None = opt(
        None,
        "Settings of a load format, as a JSON object. sharded_state: pattern, the names of its files, with {rank} and "
        "{part}. tensorizer: tensorizer_uri or tensorizer_dir, where its file is; vllm_tensorized, whether it has "
        "vLLM's names; verify_hash.",
        json=True,
    )
    dtype: DType = opt(
        "auto",
        "Data type of unquantized weights; auto: the checkpoint's, but on a GPU never float32. half is another name "
        "for float16, float for float32.",
    )
    float32_matmul_precision: Literal["auto", "highest", "high"] = opt(
        "auto",
        "How exact products with float32 and float16 matrices are on a CPU: highest, float32; high, 16 bits a value "
        "with a scale for every 128 of them, in half the time, which rounds less than TF32; auto: high for models that "
        "give vectors or have an encoder and for towers of pictures and sounds, unless --dtype is given, else highest. "
        "On a GPU they are float32's, or the activations'.",
    )
    quantization: Quantization | None = opt(
        None,
        "Quantize the matrices of an unquantized model while they load: int8, int4, fp8, bitsandbytes (nf4), "
        "experts_int8 or deepspeedfp; on a GPU fp8 and int8 quantize their inputs in each step too. Any other name "
        "must be that of the model's weights, which are read as they are with or without it.",
        short="-q",
        choices=get_args(Quantization),
    )
    model_impl: Literal["auto", "octavo", "transformers", "vllm"] = opt(
        "auto",
        "Whose implementation of the model: octavo's (vllm is another name for it), or transformers' modules with "
        "octavo's matrices and attention in them; auto: transformers' where octavo has none.",
    )
    max_model_len: int | None = opt(
        None, "Longest sequence (prompt and output) in tokens; default: the model's context length.", low=1
    )
    task: Task = opt(
        "auto",
        "What the model is for: generate, text; embed, vectors; classify, score and reward, the values of a "
        "classifier; auto: vectors or values where the architecture or sentence-transformers' files say so, else text.",
    )
    pooler_config: str | None = opt(
        None,
        "How a vector is made of a text's tokens, in place of what the model's files say: a JSON object with "
        "pooling_type (CLS, LAST, MEAN or ALL), normalize, softmax or activation.",
        json=True,
        aliases=("override_pooler_config",),
    )
    hf_overrides: str | None = opt(
        None,
        "Values in place of those in the model's configuration: a JSON object, or key=value with commas between. A key "
        "is replaced as a whole.",
        json=True,
    )
    rope_scaling: str | None = opt(
        None, "Another scaling of positions than the model's own: a JSON object, such as a yarn's.", json=True
    )
    rope_theta: float | None = opt(None, "Another base of the positions' rotation than the model's own.", above=0.0)
    disable_sliding_window: bool = opt(
        False, "Let all layers see all tokens, and serve no longer sequences than the model's sliding window."
    )
    logprobs_mode: LogprobsMode = opt(
        "raw_logprobs",
        "What replies give as log probabilities: the model's own (raw), or those after penalties, temperature and "
        "filters (processed); or the logits of either.",
    )
    seed: int = opt(0, "Seed for requests without one, and for dummy weights.", low=0, high=2**63 - 1)

    @property
    def load_quantization(self) -> LoadQuantization | None:
        """To what matrices are quantized while they load, if the model's are not quantized yet."""
        return self.quantization if self.quantization in get_args(LoadQuantization) else None  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The paged KV cache."""

    block_size: int = opt(16, "Tokens in a block: 16, 32 or 64.", choices=(16, 32, 64))
    kv_cache_dtype: KVCacheDType = opt(
        "auto",
        "Data type of cached keys and values; auto: the model's dtype. fp8 is another name for fp8_e4m3. int8 has a "
        "scale for each token and head, and is for CPUs.",
    )
    quantization_param_path: str | None = opt(
        None, "JSON file with a scale for each layer's keys and values, for --kv-cache-dtype fp8, as vLLM 0.6 reads it."
    )
    calculate_kv_scales: bool = opt(
        False,
        "Find the scales of --kv-cache-dtype fp8 at start, from a run over tokens that are always the same, instead of "
        "taking the checkpoint's.",
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
        "Maximum number of prompt tokens in one step, beside the one token of each running request. Default: 128, on "
        "a GPU 2048; as many as --max-num-batched-tokens where that is given.",
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
        "and those beyond the last run without a graph, also with parts of prompts. Default: a series up to "
        "--max-num-seqs.",
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
    lora: LoraConfig = field(default_factory=LoraConfig)
    prompt_adapter: PromptAdapterConfig = field(default_factory=PromptAdapterConfig)
    # Of the server's settings what the engine's process must know.
    log: LogSetup = field(default_factory=LogSetup)
    step_times: StepTimes = field(default_factory=StepTimes)


SHARD_PATTERN: Final = "model-rank-{rank}-part-{part}.safetensors"


def shard_pattern(text: str | None, load_format: LoadFormat) -> str:
    """The names of the files of sharded_state, as `model_loader_extra_config` says. Raises `InvalidConfig` for settings
    that nothing reads."""
    settings = {} if text is None else json_object(text, "--model-loader-extra-config")
    for name in settings.keys() - {"pattern"}:
        raise InvalidConfig(
            f"--model-loader-extra-config: there is no setting {name!r}: octavo maps the files of a model into memory, "
            "so that there is nothing to set about how they are read"
        )
    if settings and load_format not in ("auto", "sharded_state"):
        raise InvalidConfig("--model-loader-extra-config: pattern is for --load-format sharded_state")
    pattern = settings.get("pattern", SHARD_PATTERN)
    if not isinstance(pattern, str) or "{rank}" not in pattern or "{part}" not in pattern or "/" in pattern:
        raise InvalidConfig("--model-loader-extra-config: pattern must be a file name with {rank} and {part} in it")
    return pattern


@dataclass(frozen=True)
class TensorizerSettings:
    """Of --load-format tensorizer, by vLLM's names."""

    uri: str | None = None  # of the file: a path, or a URL of https or s3
    vllm_tensorized: bool = False  # its tensors have vLLM's names
    verify_hash: bool = False


#: What vLLM has beside them, and what to do.
_NOT_OF_TENSORIZER: Final = {
    "s3_access_key_id": "set AWS_ACCESS_KEY_ID", "s3_secret_access_key": "set AWS_SECRET_ACCESS_KEY",
    "s3_endpoint": "set AWS_ENDPOINT_URL", "encryption_keyfile": "octavo does not read encrypted tensors",
    "lora_dir": "adapters are not part of the model",
}  # fmt: skip


def tensorizer_settings(text: str | None) -> TensorizerSettings:
    """As `model_loader_extra_config` says. Raises `InvalidConfig` for settings that nothing reads."""
    where = "--model-loader-extra-config"
    settings = {} if text is None else json_object(text, where)
    for name in settings.keys() - {"tensorizer_uri", "tensorizer_dir", "vllm_tensorized", "verify_hash"}:
        told = "octavo maps the file into memory, so that there is nothing to set about how it is read"
        raise InvalidConfig(f"{where}: there is no setting {name!r}: {_NOT_OF_TENSORIZER.get(name, told)}")
    for name in ("tensorizer_uri", "tensorizer_dir"):
        if not isinstance(settings.get(name), str | None) or settings.get(name) == "":
            raise InvalidConfig(f"{where}: {name} must be a text")
    for name in ("vllm_tensorized", "verify_hash"):
        if not isinstance(settings.get(name), bool | None):
            raise InvalidConfig(f"{where}: {name} must be true or false")
    uri, directory = settings.get("tensorizer_uri"), settings.get("tensorizer_dir")
    if uri is not None and directory is not None:
        raise InvalidConfig(f"{where}: tensorizer_uri and tensorizer_dir say the same; give one of them")
    if uri is not None and "%" in uri:
        raise InvalidConfig(f"{where}: tensorizer_uri names a file for each of several devices, and octavo uses one")
    uri = f"{directory.rstrip('/')}/model.tensors" if directory is not None else uri
    return TensorizerSettings(uri, bool(settings.get("vllm_tensorized")), bool(settings.get("verify_hash")))


#: Of `pooler_config`; `use_activation` and `seq_pooling_type` are vLLM's newer names.
_POOLER_SETTINGS: Final = (
    "pooling_type", "normalize", "softmax", "activation", "use_activation", "seq_pooling_type",
)  # fmt: skip


def pooler_settings(text: str | None) -> dict[str, object]:
    """What `pooler_config` says, without nulls. Raises `InvalidConfig` for settings that nothing reads."""
    settings = {} if text is None else json_object(text, "--pooler-config")
    for name in settings.keys() - set(_POOLER_SETTINGS):
        names = ", ".join(_POOLER_SETTINGS[:4])
        raise InvalidConfig(f"--pooler-config: there is no setting {name[:80]!r}; these are: {names}")
    return {name: value for name, value in settings.items() if value is not None}


def check_engine(config: EngineConfig) -> None:
    """Settings that must fit each other. Raises `InvalidConfig`."""
    pooler_settings(config.model.pooler_config)
    if config.model.load_format == "tensorizer":
        tensorizer_settings(config.model.model_loader_extra_config)
    else:
        shard_pattern(config.model.model_loader_extra_config, config.model.load_format)
    scheduler, max_model_len = config.scheduler, config.model.max_model_len
    lora = config.lora
    if lora.num_kept < lora.max_loras:
        raise InvalidConfig(f"--max-cpu-loras ({lora.num_kept}) must be at least --max-loras ({lora.max_loras})")
    config.prompt_adapter.check()
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
