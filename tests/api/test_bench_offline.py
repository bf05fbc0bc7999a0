"""`octavo bench throughput` and `octavo bench latency` on real weights (K7)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.bench import offline
from octavo.bench.config import LatencyConfig
from octavo.bench.limits import Limits
from octavo.cli import main

SMALL = ["--max-model-len", "256", "--kv-cache-memory-bytes", "64M", "--no-progress"]


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    found = Limits(2, 20.0, 100.0, 400.0)
    monkeypatch.setattr(offline, "measure_limits", lambda num_threads: found)
    return found


def bench(capsys: pytest.CaptureFixture[str], file: Path, *words: str) -> tuple[Any, str]:
    assert main(["bench", *words, *SMALL, "--json", str(file)]) == 0
    return json.loads(file.read_text()), capsys.readouterr().out


def test_throughput_counts_the_tokens_of_all_requests(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--num-prompts", "3", "--input-len", "20", "--output-len", "4", "--seed", "5"]
    document, text = bench(capsys, tmp_path / "x.json", "throughput", str(smollm2_gguf), *words)
    assert (document["prompt_tokens"], document["output_tokens"], document["cached_tokens"]) == (60, 12, 0)
    assert document["total_tok_s"] == pytest.approx(6 * document["output_tok_s"], rel=0.01)
    assert document["engine"]["model_type"] == "llama" and document["machine"]["cores"] >= 1
    assert document["roofline_share"] > 0 and document["limits"]["memory_read_gb_s"] == 20
    assert "total tok/s" in text and "of what the machine could do; at best it reads 20.0 GB/s" in text


def test_throughput_takes_a_sharegpt_file_by_the_models_tokens(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"value": "What is the capital of France?"}, {"value": "It is Paris, a city."}]
    (tmp_path / "talks.json").write_text(json.dumps([{"conversations": turns}]))
    words = ["--dataset-name", "sharegpt", "--dataset-path", str(tmp_path / "talks.json"), "--num-prompts", "1"]
    document, _ = bench(capsys, tmp_path / "x.json", "throughput", str(smollm2_gguf), *words)
    assert (document["prompt_tokens"], document["output_tokens"]) == (7, 7)


def test_latency_tells_steps_and_their_share_of_the_memory(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--input-len",
        "4",
        "--output-len",
        "12",
        "--batch-size",
        "2",
        "--num-iters",
        "2",
        "--num-iters-warmup",
        "1",
    ]
    document, text = bench(capsys, tmp_path / "x.json", "latency", str(smollm2_gguf), *words)
    assert document["latency_ms"]["p50"] > 0 and document["first_token_ms"]["p99"] > 0
    assert document["engine"]["weight_bytes"] > 80e6
    assert "whole batch" in text and "prompt:" in text


def test_the_time_of_a_step_is_what_further_tokens_take(limits: Limits) -> None:
    config = LatencyConfig(input_len=10, output_len=5, batch_size=2)
    found = offline.latency_figures(config, [0.1, 0.1], [0.5, 0.5], 10**9, limits)
    assert (found["step_ms"], found["decode_tok_s"], found["prompt_tok_s"]) == (100.0, 20.0, 200.0)
    assert (found["weights_gb_s"], found["memory_share"]) == (10.0, 0.5)
    noise = offline.latency_figures(config, [0.5], [0.4], 10**9, limits)
    assert (noise["decode_tok_s"], noise["weights_gb_s"], noise["memory_share"]) == (None, None, None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("latency --output-len 1", "--output-len must be at least 2"),
        ("latency --batchsize 2", "did you mean --batch-size?"),
        ("throughput --dataset-path x.json", "--dataset-name sharegpt and --dataset-path must be given together"),
        ("throughput --port 8000", "unknown flag --port"),
        ("throughput --tensor-parallel-size 2", "several devices are not built yet"),
        ("throughput no-such-model.gguf", "no-such-model.gguf"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words.split()]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith(f"octavo bench {words.split()[0]}: error: ") and told in error
