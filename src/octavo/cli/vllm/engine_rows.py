"""The flags of the engine that vLLM 0.6.0 had."""

from __future__ import annotations

from octavo.cli.vllm.row import (
    ANY,
    EMPTY,
    NONE,
    OFF,
    ZERO,
    Row,
    only,
    other,
    ours,
    switch,
)

_ONE_DEVICE = "several devices are not built yet: octavo runs a model on one, and uses all cores of a CPU"
_NO_RAY = "octavo runs a model on this machine and does not use Ray"
_NO_SPECULATION = "speculative decoding is not built yet"
_WITHOUT_SPECULATION = "it asks for nothing without --speculative-model"
_GRAPHS = "octavo captures graphs by batch size alone, for contexts of any length"
_THREADS = "octavo makes tokens of text in threads, beside all else"
_BLOCKS = "octavo's blocks have 16, 32 or 64 tokens"

_NO_CODED = "octavo renders conversations with templates: give the model's with --chat-template"
_NO_METHOD = "octavo does not read weights of this kind: take a GGUF file of the model, or its unquantized weights"
_METHODS = (
    "bitblas", "fp8_per_tensor", "ipex", "moe_wna16", "mxfp4", "neuron_quant", "petit_nvfp4", "ptpc_fp8", "quark",
    "rtn", "tpu_int8",
)  # fmt: skip
_NO_DEVICE = "octavo runs on CPUs and on NVIDIA GPUs"
_NO_CACHE = "octavo keeps keys and values as float32, bfloat16, float16, float8 or int8"

ENGINE_ROWS: tuple[Row, ...] = (
    # ---- the model
    ours("--tokenizer", "as MODEL", "as MODEL"),
    ours("--skip-tokenizer-init", "off", "off"),
    ours("--revision", "none", "none"),
    ours("--code-revision", "none", "none"),
    ours("--tokenizer-revision", "none", "none"),
    ours(
        "--tokenizer-mode", "auto", "auto", "One implementation reads all vocabularies.",
        renamed={"hf": "auto"},
        refused={
            "custom": "octavo takes no tokenizers from plugins", "deepseek_v32": _NO_CODED, "deepseek_v4": _NO_CODED,
        },
    ),
    ours("--trust-remote-code", "off", "off"),
    ours("--download-dir", "the hub's cache", "the hub's cache"),
    ours(
        "--load-format", "auto", "auto",
        renamed={
            "hf": "auto", "fastsafetensors": "safetensors", "runai_streamer": "safetensors",
            "bitsandbytes": "safetensors", "instanttensor": "safetensors", "runai_streamer_sharded": "sharded_state",
        },
    ),
    ours("--dtype", "auto", "auto", "Of float32 checkpoints a CPU keeps float32; a GPU computes in bfloat16."),
    ours(
        "--kv-cache-dtype", "auto", "auto",
        renamed={"int8_per_token_head": "int8"},
        refused=dict.fromkeys(("int4", "nvfp4", "fp8_inc", "fp8_ds_mla"), _NO_CACHE),
    ),
    ours("--quantization-param-path", "none", None),
    ours(
        "--max-model-len", "the model's", "the model's", "Beyond the model's positions it is refused.",
        renamed={"-1": None, "auto": None},
    ),
    ours(
        "--quantization", "from the model", "from the model",
        "fp8, int8, int4, bitsandbytes, experts_int8 and deepspeedfp quantize weights while they load.",
        refused=dict.fromkeys(_METHODS, _NO_METHOD), renamed={"inc": "auto-round", "auto_round": "auto-round"},
    ),
    ours("--rope-scaling", "none", None),
    ours("--rope-theta", "none", None),
    ours("--disable-sliding-window", "off", "off"),
    ours("--seed", "0", "0"),
    ours("--model-loader-extra-config", "none", "{}", renamed={"{}": None}),
    ours("--ignore-patterns", "[]", "original/**/*"),
    ours("--served-model-name", "as MODEL", "as MODEL", "The last part of a local path is a name too."),
    other(
        "--qlora-adapter-name-or-path", "none", None, "A QLoRA adapter.", NONE,
        "serve it with --lora-modules, and quantize the model with --quantization bitsandbytes",
    ),
    ours("--limit-mm-per-prompt", "1 each", "999 each", "A model that takes text only is given no counts above 0."),
    # ---- devices and processes
    ours(
        "--device", "auto", None,
        refused=dict.fromkeys(("neuron", "openvino", "tpu", "xpu", "hpu", "rocm", "mps"), _NO_DEVICE),
    ),
    other(
        "--distributed-executor-backend", "auto", "auto", "How the workers of several devices are run.",
        only("mp", "uni"), _NO_RAY,
    ),
    switch("--worker-use-ray", "off", None, "The older spelling of the executor ray.", OFF, _NO_RAY),
    switch("--engine-use-ray", "off", None, "Run the engine in a Ray actor.", OFF, _NO_RAY),
    switch("--ray-workers-use-nsight", "off", "off", "Profile Ray's workers.", OFF, _NO_RAY),
    other(
        "--pipeline-parallel-size", "1", "1", "Devices in a row.", only("1"), _ONE_DEVICE, kind="int", short="-pp"
    ),
    other(
        "--tensor-parallel-size", "1", "1", "Devices that share each layer.", only("1"), _ONE_DEVICE, kind="int",
        short="-tp",
    ),
    other(
        "--max-parallel-loading-workers", "none", "none", "How many workers load at once.", ANY,
        "octavo has one worker", kind="int",
    ),
    switch(
        "--disable-custom-all-reduce", "off", "off", "Sums over devices by NCCL.", ANY,
        "there is one device, and no sum",
    ),
    # ---- memory
    ours("--block-size", "16", "16", "Sizes that octavo lacks become the next that it has.", renamed={
        "1": "16", "8": "16", "128": "64", "256": "64",
    }),
    ours("--enable-prefix-caching", "off", "on"),
    ours("--swap-space", "4", None, "On a CPU there is nothing to do: the KV cache is in the host's memory."),
    other(
        "--cpu-offload-gb", "0", "0", "GiB of weights that a GPU reads from the host.", ZERO,
        "offloading of weights is not built yet", kind="float",
    ),
    ours("--gpu-memory-utilization", "0.9", "0.92", "On a CPU there is nothing to do: see --cpu-memory-utilization."),
    ours("--num-gpu-blocks-override", "none", "none"),
    other(
        "--preemption-mode", "auto", None, "What becomes of the KV blocks of preempted requests.",
        only("auto", "recompute", "swap"),
        "octavo keeps them in the host's memory as far as --swap-space goes, and recomputes the others",
        sets={"recompute": {"swap_space": 0.0}},
    ),
    # ---- scheduling
    ours("--max-num-batched-tokens", "512 or more", "2048 to 16384"),
    ours("--max-num-seqs", "256", "256 to 1024"),
    ours("--enable-chunked-prefill", "auto", "on"),
    switch("--use-v2-block-manager", "off", None, "A newer block manager.", ANY, "octavo has one block manager"),
    other("--num-lookahead-slots", "0", None, "Slots for tokens of a draft.", ZERO, _NO_SPECULATION, kind="int"),
    other(
        "--num-scheduler-steps", "1", None, "Steps between two plans.", ANY,
        "octavo plans every step, on a GPU while the one before runs, which costs nothing", kind="int",
    ),
    other("--scheduler-delay-factor", "0", None, "Hold prompts back.", ZERO, "octavo delays no prompt", kind="float"),
    switch(
        "--disable-async-output-proc", "off", "off", "Process outputs between the steps.", ANY,
        "octavo processes outputs beside the steps, which changes no reply",
    ),
    # ---- graphs
    ours("--enforce-eager", "off", "off"),
    other("--max-context-len-to-capture", "none", None, "The older spelling of the next.", ANY, _GRAPHS, kind="int"),
    other("--max-seq-len-to-capture", "8192", None, "Longest context of a graph.", ANY, _GRAPHS, kind="int"),
    # ---- text
    ours("--max-logprobs", "20", "20"),
    other(
        "--guided-decoding-backend", "outlines", None, "Which library holds outputs to grammars.", ANY,
        "octavo has one engine for grammars, which honours every constraint in full or refuses it",
    ),
    other("--tokenizer-pool-size", "0", None, "Tokenizers in a pool.", ANY, _THREADS, kind="int"),
    other("--tokenizer-pool-type", "ray", None, "Kind of the pool.", ANY, _THREADS),
    other("--tokenizer-pool-extra-config", "none", None, "Settings of the pool.", EMPTY, _THREADS, kind="json"),
    # ---- logs
    ours("--disable-log-stats", "off", "off"),
    ours("--disable-log-requests", "off", None, "Requests are logged with --enable-log-requests."),
    ours("--otlp-traces-endpoint", "none", "none", "It needs the packages of octavo[otel]."),
    ours("--collect-detailed-traces", "none", "none"),
    # ---- adapters
    ours("--enable-lora", "off", "off", "docs/lora.md says what an adapter may be."),
    ours("--max-loras", "1", "1"),
    ours("--max-lora-rank", "16", "16"),
    ours("--lora-extra-vocab-size", "256", None, "By default an adapter that adds tokens is refused."),
    ours("--lora-dtype", "auto", "auto"),
    ours("--long-lora-scaling-factors", "none", None, "An adapter's factor follows from its context_length."),
    ours("--max-cpu-loras", "as --max-loras", "none"),
    switch("--fully-sharded-loras", "off", "off", "Shard adapters in full.", ANY, "a model has one device"),
    ours("--enable-prompt-adapter", "off", None, "docs/lora.md says what a prompt adapter may be."),
    ours("--max-prompt-adapters", "1", None),
    ours("--max-prompt-adapter-token", "0", None),
    # ---- speculation
    other("--speculative-model", "none", None, "The model that drafts.", NONE, _NO_SPECULATION),
    other("--speculative-model-quantization", "none", None, "Its quantization.", ANY, _WITHOUT_SPECULATION),
    other("--num-speculative-tokens", "none", None, "Tokens of a draft.", ZERO, _NO_SPECULATION, kind="int"),
    other(
        "--speculative-draft-tensor-parallel-size", "none", None, "Devices of the draft.", ANY, _WITHOUT_SPECULATION,
        kind="int", short="-spec-draft-tp",
    ),
    other("--speculative-max-model-len", "none", None, "Longest draft.", ANY, _WITHOUT_SPECULATION, kind="int"),
    other(
        "--speculative-disable-by-batch-size", "none", None, "Batch beyond which nothing is drafted.", ANY,
        _WITHOUT_SPECULATION, kind="int",
    ),
    other("--ngram-prompt-lookup-max", "none", None, "Longest n-gram.", ANY, _WITHOUT_SPECULATION, kind="int"),
    other("--ngram-prompt-lookup-min", "1", None, "Shortest n-gram.", ANY, _WITHOUT_SPECULATION, kind="int"),
    other("--spec-decoding-acceptance-method", "rejection_sampler", None, "Which drafts are taken.", ANY,
          _WITHOUT_SPECULATION),
    other("--typical-acceptance-sampler-posterior-threshold", "0.09", None, "A bound of it.", ANY,
          _WITHOUT_SPECULATION, kind="float"),
    other("--typical-acceptance-sampler-posterior-alpha", "0.3", None, "A factor of it.", ANY,
          _WITHOUT_SPECULATION, kind="float"),
    switch("--disable-logprobs-during-spec-decoding", "on", None, "No log probabilities then.", ANY,
           _WITHOUT_SPECULATION),
    # ---- other devices
    other("--override-neuron-config", "none", None, "Settings of AWS Neuron.", EMPTY, _NO_DEVICE, kind="json"),
)  # fmt: skip
