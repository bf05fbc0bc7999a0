"""Command lines of vLLM: each flag and variable acts, is told as needing nothing done, or is refused with why."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.base.config import ServeConfig
from octavo.base.errors import InvalidConfig
from octavo.cli.flags import flags
from octavo.cli.serve import serve_config, settings
from octavo.cli.vllm import ROWS, VARIABLES
from octavo.cli.vllm.page import renewed
from octavo.cli.vllm.row import Row

TABLE = flags()
OWN = {option for flag in TABLE.values() for option in (*flag.options, *flag.off_options)}
OTHERS = [row for row in ROWS if row.option not in OWN and row.option not in ("--config", "--model")]
#: A value of each kind that nobody's octavo has a use for.
ODD = {"text": "odd", "int": "17", "float": "0.7", "json": '{"odd": 1}', "list": "odd", "switch": ""}


def names(text: str) -> list[str]:
    return text.split()


FLAGS_OF_0_6_0 = names("""
--host --port --uvicorn-log-level --allow-credentials --allowed-origins --allowed-methods --allowed-headers
--api-key --lora-modules --prompt-adapters --chat-template --response-role --ssl-keyfile --ssl-certfile
--ssl-ca-certs --ssl-cert-reqs --root-path --middleware --return-tokens-as-token-ids
--disable-frontend-multiprocessing --enable-auto-tool-choice --tool-call-parser --max-log-len --config --model
--tokenizer --skip-tokenizer-init --revision --code-revision --tokenizer-revision --tokenizer-mode
--trust-remote-code --download-dir --load-format --dtype --kv-cache-dtype --quantization-param-path --max-model-len
--guided-decoding-backend --distributed-executor-backend --worker-use-ray --engine-use-ray --pipeline-parallel-size
--tensor-parallel-size --max-parallel-loading-workers --ray-workers-use-nsight --block-size --enable-prefix-caching
--disable-sliding-window --use-v2-block-manager --num-lookahead-slots --seed --swap-space --cpu-offload-gb
--gpu-memory-utilization --num-gpu-blocks-override --max-num-batched-tokens --max-num-seqs --max-logprobs
--disable-log-stats --disable-log-requests --quantization --rope-scaling --rope-theta --enforce-eager
--max-context-len-to-capture --max-seq-len-to-capture --disable-custom-all-reduce --tokenizer-pool-size
--tokenizer-pool-type --tokenizer-pool-extra-config --limit-mm-per-prompt --enable-lora --max-loras --max-lora-rank
--lora-extra-vocab-size --lora-dtype --long-lora-scaling-factors --max-cpu-loras --fully-sharded-loras
--enable-prompt-adapter --max-prompt-adapters --max-prompt-adapter-token --device --num-scheduler-steps
--scheduler-delay-factor --enable-chunked-prefill --speculative-model --speculative-model-quantization
--num-speculative-tokens --speculative-draft-tensor-parallel-size --speculative-max-model-len
--speculative-disable-by-batch-size --ngram-prompt-lookup-max --ngram-prompt-lookup-min
--spec-decoding-acceptance-method --typical-acceptance-sampler-posterior-threshold
--typical-acceptance-sampler-posterior-alpha --disable-logprobs-during-spec-decoding --model-loader-extra-config
--ignore-patterns --preemption-mode --served-model-name --qlora-adapter-name-or-path --otlp-traces-endpoint
--collect-detailed-traces --disable-async-output-proc --override-neuron-config
""")
FLAGS_OF_TODAY = names("""
--uds --api-server-count --headless --grpc --grpc-port --enable-request-id-headers
--disable-access-log-for-endpoints --sse-keep-alive-interval --stream-interval --enable-force-include-usage
--enable-prompt-tokens-details --enable-per-request-metrics --fingerprint-mode --h11-max-header-count
--enable-ssl-refresh --ssl-ciphers --shutdown-timeout --enable-log-outputs --reasoning-parser --tool-parser-plugin
--tool-server --tool-strict-level --default-chat-template-kwargs --chat-template-content-format
--trust-request-chat-template --runner --convert --hf-overrides --generation-config --override-generation-config
--model-impl --config-format --logits-processors --enable-prompt-embeds --allowed-local-media-path
--allowed-media-domains --structured-outputs-config --logprobs-mode --kv-cache-memory-bytes --kv-offloading-size
--kv-offloading-backend --cpu-offload-params --scheduling-policy --async-scheduling --max-num-queued-reqs
--max-num-queued-tokens --long-prefill-token-threshold --watermark --max-num-active-seqs --data-parallel-size
--enable-expert-parallel --enable-eplb --all2all-backend --decode-context-parallel-size --nnodes --enable-elastic-ep
--enable-dbo --speculative-config --spec-method --spec-model --spec-tokens --kv-transfer-config --ec-transfer-config
--kv-events-config --enable-sleep-mode --enable-fault-tolerance --custom-histogram-buckets --kv-cache-metrics
--profiler-config --optimization-level --performance-mode --compilation-config
""")
VARIABLES_OF_0_6_0 = names("""
VLLM_API_KEY VLLM_CONFIGURE_LOGGING VLLM_LOGGING_LEVEL VLLM_LOGGING_CONFIG_PATH VLLM_ATTENTION_BACKEND
VLLM_TORCH_PROFILER_DIR VLLM_IMAGE_FETCH_TIMEOUT VLLM_AUDIO_FETCH_TIMEOUT VLLM_CPU_KVCACHE_SPACE
VLLM_CPU_OMP_THREADS_BIND VLLM_ALLOW_LONG_MAX_MODEL_LEN VLLM_KEEP_ALIVE_ON_ENGINE_DEATH VLLM_USE_MODELSCOPE
VLLM_PLUGINS VLLM_PP_LAYER_PARTITION VLLM_NO_USAGE_STATS PROMETHEUS_MULTIPROC_DIR OTEL_EXPORTER_OTLP_TRACES_PROTOCOL
""")


def told(*words: str, **environ: str) -> tuple[ServeConfig, str, list[str]]:
    """The configuration, the line of what needs nothing done, and the warnings."""
    config, notes = settings(words, environ)
    lines = {level: [line for at, line in notes if at == level] for level in (logging.INFO, logging.WARNING)}
    return config, "".join(lines[logging.INFO]), lines[logging.WARNING]


def refused(*words: str, **environ: str) -> str:
    with pytest.raises(InvalidConfig) as caught:
        serve_config(words, environ)
    return caught.value.message


# ---------------------------------------------------------------- the table
def test_the_table_has_every_flag_and_variable_once() -> None:
    options = [row.option for row in ROWS]
    assert len(options) == len(set(options))
    assert set(FLAGS_OF_0_6_0) | set(FLAGS_OF_TODAY) <= set(options)
    assert {row.option for row in ROWS if row.seed is not None} == set(FLAGS_OF_0_6_0)
    names = [variable.name for variable in VARIABLES]
    assert len(names) == len(set(names))
    assert set(VARIABLES_OF_0_6_0) <= set(names)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.option)
def test_a_row_says_what_octavo_does_and_nothing_that_a_field_says(row: Row) -> None:
    if row in OTHERS:
        assert row.meaning and row.reason, "why is it accepted or refused?"
        assert not row.renamed and not row.refused and not row.note
    else:
        assert not row.reason, "octavo has a field of this name"
    for text in (row.meaning, row.note):
        assert not text or text.endswith(".")
    assert not row.reason.endswith(".")


def test_the_page_is_what_the_table_says() -> None:
    """`make tables` writes it anew."""
    page = (Path(__file__).parents[2] / "docs" / "from-vllm.md").read_text(encoding="utf-8")
    assert page == renewed(page)
    for name in (*(row.option for row in ROWS), *(variable.name for variable in VARIABLES)):
        assert page.count(f"\n| `{name}`") == 1


def test_the_older_spelling_of_the_command_is_the_same() -> None:
    command = [sys.executable, "-m", "octavo.entrypoints.openai.api_server", "--model", "m", "--pot", "1"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OCTAVO_", "VLLM_"))}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert run.returncode == 2
    assert run.stderr == "octavo serve: error: unknown flag --pot; did you mean --port?\n"


# ---------------------------------------------------------------- flags that octavo has not
@pytest.mark.parametrize("row", OTHERS, ids=lambda row: row.option)
def test_each_is_told_or_refused_with_its_reason(row: Row) -> None:
    if row.kind == "switch":
        words = [(row.option, "true"), ("--no-" + row.option[2:], "false")]
    else:
        words = [(f"{row.option}={value}", value) for value in (ODD[row.kind], "0", "1", "{}", "[]", "none")]
    outcomes = set()
    for word, value in words:
        try:
            config, accepted, _ = told("m", word)
        except InvalidConfig as exc:
            outcomes.add("refused")
            assert row.reason in exc.message or "must be" in exc.message, exc.message
            assert exc.message.startswith(row.option) or exc.message.startswith("--no-")
            continue
        outcomes.add("accepted")
        assert row.accepts.hold(value) or value in ("none", "[]")
        assert word.replace("=", " ") in accepted or value in ("none", "[]")
        if value not in row.sets:
            assert config == serve_config(["m"], {})
    assert "accepted" in outcomes, "some way to ask for nothing must be accepted"


@pytest.mark.parametrize(
    "words",
    [
        "--disable-frontend-multiprocessing", "--max-seq-len-to-capture 32768",
        "--distributed-executor-backend mp", "--fully-sharded-loras", "--tensor-parallel-size 1", "-tp 1 -pp 1 -dp 1",
        "--use-v2-block-manager", "--guided-decoding-backend lm-format-enforcer", "--guided-decoding-backend any:thing",
        "--disable-custom-all-reduce", "--num-scheduler-steps 8", "--preemption-mode swap", "--tokenizer-pool-size 4",
        "--scheduling-policy priority", "--skip-mm-profiling",
        "--compilation-config {}", "-O 3", "-O3", "-O=2",
        "--speculative-config none", "--async-scheduling", "--use_v2_block_manager",
        "--disable-logprobs-during-spec-decoding false",
    ],
)  # fmt: skip
def test_what_asks_for_what_octavo_does_anyway_is_accepted_and_told(words: str) -> None:
    config, accepted, warnings = told("m", *words.split())
    assert config.engine.model.model == "m"
    assert accepted.startswith("accepted, nothing to do: -")
    assert warnings == []


@pytest.mark.parametrize(
    ("words", "capability"),
    [
        ("--tensor-parallel-size 2", "several devices are not built yet"),
        ("-tp 2", "several devices are not built yet"),
        ("--speculative-model m", "speculative decoding is not built yet"),
        ('--speculative-config {"method":"ngram"}', "speculative decoding is not built yet"),
        ("--num-speculative-tokens 5", "speculative decoding is not built yet"),
        ("--limit-mm-per-prompt image=many", "image must be a number from 0 to 1024"),
        ("--limit-mm-per-prompt picture=4", "has no key 'picture'"),
        ("--media-io-kwargs {\"video\":{\"num_frames\":0}}", "num_frames must be a number of at least 1"),
        ("--language-model-only", "--limit-mm-per-prompt image=0,audio=0,video=0,file=0 refuses them"),
        ("--otlp-traces-endpoint http://c:4317 --otlp-traces-protocol thrift", "one of grpc, http/protobuf"),
        ("--otlp-traces-endpoint c:4318 --otlp-traces-protocol http/protobuf", "must begin with http:// or https://"),
        ("--collect-detailed-traces model,all,none", "must be one of model, worker, all"),
        ("--log-config-file log.json --no-configure-logging", "--no-configure-logging forbids"),
        ("--convert other", "--task says what the model is for"),
        ("--kv-transfer-config {\"a\":1}", "to move KV blocks between servers is not built yet"),
        ("--cpu-offload-gb 4", "offloading of weights is not built yet"),
        ("--hf-overrides.rope_theta 1", "give --hf-overrides as one JSON object"),
        ("--max-loras many", "--max-loras must be a whole number; got 'many'"),
        ("-tp", "--tensor-parallel-size needs a value"),
    ],
)  # fmt: skip
def test_a_capability_that_is_not_there_is_refused_by_its_name(words: str, capability: str) -> None:
    assert capability in refused("m", *words.split())


def test_the_tokenizer_modes_are_fields() -> None:
    for mode in ("slow", "mistral"):
        assert told("m", "--tokenizer-mode", mode)[0].engine.model.tokenizer_mode == mode
    for mode in ("auto", "hf"):
        assert told("m", "--tokenizer-mode", mode)[0] == serve_config(["m"], {})
    assert "plugins" in refused("m", "--tokenizer-mode", "custom")


def test_settings_that_stand_for_octavo_s_own() -> None:
    assert told("m", "--preemption-mode", "recompute")[0].engine.cache.swap_space == 0.0
    assert told("m", "--preemption-mode", "recompute", "--swap-space", "4")[0].engine.cache.swap_space == 0.0
    assert told("m", "--preemption-mode", "swap")[0].engine.cache.swap_space is None
    assert told("m", "-O0")[0].engine.parallel.enforce_eager
    assert not told("m", "-O2")[0].engine.parallel.enforce_eager


# ---------------------------------------------------------------- values of octavo's own flags
@pytest.mark.parametrize(
    ("words", "part", "field", "value"),
    [
        ("--block-size 8", "cache", "block_size", 16),
        ("--block-size=128", "cache", "block_size", 64),
        ("--block-size 32", "cache", "block_size", 32),
        ("--max-model-len -1", "model", "max_model_len", None),
        ("--max-model-len auto", "model", "max_model_len", None),
        ("--load-format hf", "model", "load_format", "auto"),
        ("--quantization gguf", "model", "quantization", "gguf"),
        ("-q None", "model", "quantization", None),
        ("-q gptq_marlin", "model", "quantization", "gptq_marlin"),
        ("--load-format bitsandbytes", "model", "load_format", "safetensors"),
        ("--attention-backend FLASH_ATTN", "parallel", "attention_backend", "auto"),
        ("--attention-backend FLASHINFER", "parallel", "attention_backend", "FLASHINFER"),
        ("--enable-chunked-prefill true", "scheduler", "enable_chunked_prefill", True),
        ("--enable-chunked-prefill false", "scheduler", "enable_chunked_prefill", False),
        ("--ignore-patterns []", "model", "ignore_patterns", []),
        ("--ignore-patterns *.pth original/*", "model", "ignore_patterns", ["*.pth", "original/*"]),
        ("--gpu-memory-utilization 0.9", "cache", "gpu_memory_utilization", 0.9),
        ("--swap-space 4", "cache", "swap_space", 4.0),
        ("--revision None", "model", "revision", None),
    ],
)  # fmt: skip
def test_values_that_octavo_calls_otherwise(words: str, part: str, field: str, value: object) -> None:
    config, accepted, _ = told("m", *words.split())
    assert getattr(getattr(config.engine, part), field) == value
    given = words.split()[-1]
    if str(value) != given and given in ("8", "-1", "auto", "hf", "FLASH_ATTN"):
        assert f"{words} (as " in accepted


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("-q quark", "--quantization quark: octavo does not read weights of this kind: take a GGUF file"),
        ("--quantization Quark", "octavo does not read weights of this kind"),
        ("--kv-cache-dtype nvfp4", "octavo keeps keys and values as"),
        ("--device tpu", "--device tpu: octavo runs on CPUs and on NVIDIA GPUs"),
        ("-q quark9", "--quantization must be one of fp8, int8, int4"),
        ("--block-size", "--block-size needs a value"),
        ("--block-size --port 1", "--block-size needs a value"),
        ("--guided-decoding-backend --port 1", "--guided-decoding-backend needs a value"),
    ],
)
def test_values_that_octavo_has_not_are_refused_with_why(words: str, reason: str) -> None:
    assert reason in refused("m", *words.split())


# ---------------------------------------------------------------- config file
def test_the_config_file_speaks_the_same(tmp_path: Path) -> None:
    def file(text: str) -> str:
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "c.yaml")

    text = "tensor-parallel-size: 1\nasync-scheduling: true\ncpu-offload-gb: 0\nblock_size: 8\nlora-modules: []\n"
    text += "hf-overrides: {}\nenable-lora: false\nspeculative_config: null\npreemption-mode: recompute\n"
    text += "max-model-len: -1\n"
    config, accepted, _ = told("m", "--config", file(text))
    assert config.engine.cache.block_size == 16
    assert config.engine.cache.swap_space == 0.0
    assert config.engine.model.max_model_len is None
    # The command line wins over the file here too.
    assert told("--swap-space", "2", "--config", file(text))[0].engine.cache.swap_space == 2
    for word in ("--tensor-parallel-size 1", "--async-scheduling", "--cpu-offload-gb 0", "--block-size 8 (as 16)"):
        assert word in accepted
    for line, reason in {
        "tensor-parallel-size: 2": "several devices are not built yet",
        "enable-prompt-adapter: true": "--enable-prompt-adapter needs --max-prompt-adapter-token",
        "enable-lora: 3": "--enable-lora must be",
        "pooler-config: {type: mean}": "--pooler-config",
        "quantization: quark": "octavo does not read weights of this kind",
    }.items():
        assert reason in refused("m", "--config", file(line))


# ---------------------------------------------------------------- environment
def test_variables_that_stand_for_settings_count_last(tmp_path: Path) -> None:
    name = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"
    assert told()[0].server.timeout_keep_alive == 120
    assert told(**{name: "75"})[0].server.timeout_keep_alive == 75
    assert told(**{name: ""})[0].server.timeout_keep_alive == 120
    assert told("--timeout-keep-alive", "9", **{name: "75"})[0].server.timeout_keep_alive == 9
    (tmp_path / "c.yaml").write_text("timeout-keep-alive: 8", encoding="utf-8")
    assert told("--config", str(tmp_path / "c.yaml"), **{name: "75"})[0].server.timeout_keep_alive == 8
    assert refused(**{name: "x"}) == f"{name}: --timeout-keep-alive must be a number; got 'x'"
    assert "--timeout-keep-alive must be greater than 0" in refused("--timeout-keep-alive", "0")


def test_variables_act() -> None:
    assert told(VLLM_LOGGING_LEVEL="DEBUG")[0].server.uvicorn_log_level == "debug"
    assert told(VLLM_LOGGING_LEVEL="WARN")[0].server.uvicorn_log_level == "warning"
    assert "VLLM_LOGGING_LEVEL must be one of" in refused(VLLM_LOGGING_LEVEL="loud")
    assert told("--uvicorn-log-level", "error", VLLM_LOGGING_LEVEL="DEBUG")[0].server.uvicorn_log_level == "error"
    assert told(VLLM_ATTENTION_BACKEND="FLASHINFER")[0].engine.parallel.attention_backend == "flashinfer"
    config, accepted, _ = told(VLLM_ATTENTION_BACKEND="XFORMERS")
    assert config == ServeConfig() and "VLLM_ATTENTION_BACKEND XFORMERS (as the default)" in accepted
    assert told(VLLM_CPU_KVCACHE_SPACE="2")[0].engine.cache.kv_cache_memory_bytes == 2 << 30
    assert told(VLLM_CPU_KVCACHE_SPACE="0")[0].engine.cache.kv_cache_memory_bytes is None
    assert told("--device", "cuda", VLLM_CPU_KVCACHE_SPACE="2")[0].engine.cache.kv_cache_memory_bytes is None
    assert "VLLM_CPU_KVCACHE_SPACE" in refused(VLLM_CPU_KVCACHE_SPACE="much")
    assert told(VLLM_BATCH_INVARIANT="1")[0].engine.parallel.batch_invariant
    assert told(OCTAVO_ADMIN_API_KEY="a")[0].server.admin_api_key == "a"


@pytest.mark.parametrize("name", sorted({*VARIABLES_OF_0_6_0, "VLLM_SERVER_DEV_MODE", "VLLM_NEW_ONE"}))
def test_no_variable_passes_unseen(name: str) -> None:
    for value in ("1", "odd"):
        try:
            config, accepted, warnings = told(**{name: value})
        except InvalidConfig as exc:
            assert name in exc.message
            continue
        assert config != ServeConfig() or f"{name} {value}" in accepted or any(name in line for line in warnings)


def test_unknown_variables_are_named_without_their_values() -> None:
    _, _, warnings = told(VLLM_APY_KEY="secret")
    assert warnings == ["octavo does not read VLLM_APY_KEY; did you mean VLLM_API_KEY?"]
    assert told(VLLM_SERVICE_HOST="10.0.0.1", VLLM_PORT="tcp://10.0.0.1:80", VLLM_PORT_80_TCP_PORT="80")[1:] == ("", [])


# ---------------------------------------------------------------- what has no effect
@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("--allow-credentials", "--allowed-origins https://a"),
        ('--allowed-methods ["GET"]', "--allowed-origins https://a"),
        ("--allowed-headers x-a", "--allowed-origins https://a"),
        ("--max-log-len 10", "--enable-log-requests"),
        ("--public-paths /metrics", "--api-key k"),
    ],
)
def test_a_setting_that_needs_another_is_warned_of(words: str, others: str) -> None:
    (line,) = told("m", *words.split())[2]
    assert line.startswith(f"{words.split()[0]} has no effect without {others.split()[0]}")
    assert told("m", *words.split(), *others.split())[2] == []


# ---------------------------------------------------------------- help
def help_of(topic: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        serve_config([f"--help={topic}"], {})
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_of_a_group_a_flag_and_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    listed = help_of("groups", capsys)
    for flag in TABLE.values():
        assert f"  {flag.group}\n" in listed
        shown = help_of(flag.group.replace(" ", "-"), capsys)
        assert f"{flag.group}:\n" in shown
        assert ("--[no-]" + flag.option[2:] if flag.kind is bool else flag.option) in shown
    assert help_of("SchedulerConfig", capsys) == help_of("scheduling", capsys)
    assert help_of("Frontend", capsys) == help_of("http-server", capsys)
    assert help_of("max-model-len", capsys).split("\n")[1].startswith("  --max-model-len N")
    assert "--num-gpu-blocks-override" in help_of("--num_gpu_blocks_override", capsys)
    assert "-q" in help_of("-q", capsys)
    found = help_of("max", capsys)
    assert "--max-num-seqs" in found and "--max-log-len" in found and "--port" not in found
    assert "--port" in help_of("all", capsys)
    assert refused("--help=porrt") == "--help=porrt: there is no such flag or group; did you mean port?"


def test_help_of_a_flag_of_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    assert "octavo accepts it (1)" in help_of("tensor-parallel-size", capsys)
    assert "octavo accepts it (1)" in help_of("-tp", capsys)
    assert "octavo refuses it.\nWhy: speculative decoding is not built yet." in help_of("speculative-model", capsys)
