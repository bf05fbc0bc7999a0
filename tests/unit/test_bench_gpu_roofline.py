"""The arithmetic of bench/gpu: workloads as their sources have them, and rooflines against published figures.

The published shares are those of shared results: each is T_AR over the time that somebody's engine took, so that our
function must give the same number from the same lengths.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

BENCH = Path(__file__).parents[2] / "bench"


class Modules(NamedTuple):
    roofline: ModuleType
    shapes: ModuleType
    workloads: ModuleType


@pytest.fixture(scope="module")
def gpu() -> Iterator[Modules]:
    sys.path.insert(0, str(BENCH))
    try:
        from gpu import roofline, shapes, workloads

        yield Modules(roofline, shapes, workloads)
    finally:
        sys.path.remove(str(BENCH))


def rate(gpu: Modules, shape: Any, lengths: list[Any], peaks: Any, at_a_time: float = 256, **more: Any) -> float:
    """Output tokens a second at the roofline."""
    steps = gpu.roofline.num_steps(lengths, at_a_time)
    seconds = gpu.roofline.ar_seconds(shape, lengths, peaks, steps=steps, **more)
    return float(sum(r.output for r in lengths) / seconds)


def lengths_of(gpu: Modules, load: Any) -> list[Any]:
    return [gpu.roofline.Lengths(len(work.prompt), work.output_len) for work in load.works]


H100, H200, A800 = "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A800-SXM4-80GB"


def test_no_torch_is_needed() -> None:
    """The driver and all arithmetic start at once, also where the import of torch is what fails."""
    import subprocess

    code = "import gpu.main, gpu.roofline, gpu.workloads, gpu.timeline, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=BENCH)


# ---------------------------------------------------------------- workloads
def test_workload_1_is_the_published_load(gpu: Modules) -> None:
    load = gpu.workloads.w1()
    assert (len(load.works), load.num_prompt_tokens, load.num_output_tokens) == (256, 142_827, 133_966)
    assert all(100 <= len(work.prompt) <= 1024 and 100 <= work.output_len <= 1024 for work in load.works)
    assert max(max(work.prompt) for work in load.works) <= 10_000
    assert load.works[0].prompt[:3] == gpu.workloads.w1().works[0].prompt[:3]


def test_workload_3_has_the_lengths_of_sharegpt_on_average(gpu: Modules) -> None:
    load = gpu.workloads.w3(1000, 8.0)
    assert load.num_prompt_tokens == pytest.approx(202 * 500, rel=0.002)
    assert load.num_output_tokens == pytest.approx(179 * 500, rel=0.002)
    assert len({work.output_len for work in load.works}) > 100


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75])
def test_workload_7_shares_what_it_says_and_no_more(gpu: Modules, share: float) -> None:
    load = gpu.workloads.w7(100_000, share, num_requests=8)
    shared = {tuple(work.prompt[: work.shared]) for work in load.works}
    assert {work.shared for work in load.works} == {round(2048 * share)}
    assert len(shared) == 1
    assert len({work.prompt[work.shared] for work in load.works}) == 8
    assert {len(work.prompt) for work in load.works} == {2048}


def test_workload_7_of_another_share_begins_otherwise(gpu: Modules) -> None:
    """Else the second run would find the first one's blocks."""
    a, b = (gpu.workloads.w7(100_000, share, num_requests=1).works[0].prompt for share in (0.25, 0.5))
    assert a[:16] != b[:16]


@pytest.mark.parametrize(
    ("make", "prompt", "output"),
    [
        (lambda w: w.w2(1000), (1024, 1024), (1024, 1024)),
        (lambda w: w.w4(1000, is_prefill_heavy=True), (462, 462), (16, 16)),
        (lambda w: w.w4(1000, is_prefill_heavy=False), (462, 462), (256, 256)),
        (lambda w: w.w6(1000, 20), (17_000, 23_000), (1700, 2300)),
        (lambda w: w.w8(1000, 40), (2048, 4096), (256, 512)),
        (lambda w: w.w9(1000, 1), (128, 128), (128, 128)),
    ],
)
def test_lengths_are_within_the_definition(gpu: Modules, make: Any, prompt: Any, output: Any) -> None:
    works = make(gpu.workloads).works
    assert all(prompt[0] <= len(work.prompt) <= prompt[1] for work in works)
    assert all(output[0] <= work.output_len <= output[1] for work in works)
    assert max(max(work.prompt) for work in works) < 1000


def test_a_shrunk_load_stays_within_a_small_vocabulary(gpu: Modules) -> None:
    small = gpu.workloads.shrunk(gpu.workloads.w7(100_000, 0.5), 512)
    assert len(small.works) == 4
    assert all(max(work.prompt) < 512 and len(work.prompt) == 64 and work.shared == 32 for work in small.works)


# ---------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("name", "giga_bytes", "kv_bytes"),
    [("Qwen3-0.6B", 1.19, 114_688), ("Qwen3-8B", 15.14, 147_456), ("Llama-3.1-8B", 15.01, 131_072)],
)
def test_a_step_reads_what_the_model_holds(gpu: Modules, name: str, giga_bytes: float, kv_bytes: int) -> None:
    shape = gpu.shapes.SHAPES[name]
    assert 2e-9 * shape.step_params == pytest.approx(giga_bytes, abs=0.006)
    assert 2 * shape.kv_values == kv_bytes
    assert sum(n * k for key, (n, k) in shape.projections.items() if key != "lm_head") * shape.layers == (
        shape.layer_params
    )


def test_the_configuration_has_the_sizes(gpu: Modules) -> None:
    for shape in gpu.shapes.SHAPES.values():
        config = shape.config()
        assert config["num_hidden_layers"] == shape.layers
        assert config["head_dim"] == shape.head_dim
        assert config["tie_word_embeddings"] is shape.is_tied
        assert config["dtype"] == "bfloat16"


def test_each_token_of_the_tokenizer_has_a_text_of_its_own(gpu: Modules, tmp_path: Path) -> None:
    """Streams of ids without text would cost less than real ones."""
    from octavo.text.tokenizers.tokenizer import load_tokenizer

    shape = gpu.shapes.tiny(gpu.shapes.SHAPES["Qwen3-0.6B"])
    tokenizer = load_tokenizer(str(gpu.shapes.write_model(shape, tmp_path)))
    texts = [tokenizer.decode([i]) for i in range(256, shape.vocab)]
    assert tokenizer.max_token_id == shape.vocab - 1
    assert len(set(texts)) == len(texts)
    assert all(text.startswith(" ") and len(text) > 2 for text in texts)
    assert tokenizer.encode("a é", add_special_tokens=False) == [97, 32, *"é".encode()]


# ---------------------------------------------------------------- rooflines
@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("Qwen3-0.6B", H100, 27_900), ("Qwen3-0.6B", H200, 38_900), ("Qwen3-8B", H100, 9_500),
    ],
)  # fmt: skip
def test_the_roofline_of_w1_is_the_stated_one(gpu: Modules, name: str, device: str, expected: float) -> None:
    lengths = lengths_of(gpu, gpu.workloads.w1())
    found = rate(gpu, gpu.shapes.SHAPES[name], lengths, gpu.roofline.datasheet(device))
    assert found == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(("published", "share"), [(8_588, 0.54), (10_009, 0.62)])
def test_shares_of_w1_on_an_a800(gpu: Modules, published: float, share: float) -> None:
    lengths = lengths_of(gpu, gpu.workloads.w1())
    at_best = rate(gpu, gpu.shapes.SHAPES["Qwen3-0.6B"], lengths, gpu.roofline.datasheet(A800))
    assert published / at_best == pytest.approx(share, abs=0.006)


def test_the_share_of_w2_on_an_h200(gpu: Modules) -> None:
    """8,497 tokens a second: 0.76 of the data sheet's, 0.88 of what such a card was measured to do."""
    lengths = lengths_of(gpu, gpu.workloads.w2(1000))
    shape, peaks = gpu.shapes.SHAPES["Qwen3-8B"], gpu.roofline.Peaks(788e12, 1576e12, 4.3e12)
    assert 8_497 / rate(gpu, shape, lengths, gpu.roofline.datasheet(H200)) == pytest.approx(0.76, abs=0.005)
    assert 8_497 / rate(gpu, shape, lengths, peaks) == pytest.approx(0.88, abs=0.005)


@pytest.mark.parametrize(
    ("lengths", "count", "published", "share"),
    [((128, 128), 3000, 28_312, 0.55), ((1000, 1000), 3000, 15_220, 0.72), ((2048, 128), 3000, 3_450, 0.59)],
)
def test_shares_of_fp8_models_whose_cache_bounds_the_batch(
    gpu: Modules, lengths: tuple[int, int], count: int, published: float, share: float
) -> None:
    """TensorRT-LLM on an H100: weights and cache in fp8, 64 GB for the cache."""
    roofline, shape = gpu.roofline, gpu.shapes.SHAPES["Llama-3.1-8B"]
    precision = roofline.Precision(weight_bytes=1.0, kv_bytes=1.0, is_fp8=True)
    requests = [roofline.Lengths(*lengths)] * count
    at_a_time = roofline.concurrency(requests, 2048, round(64e9 / shape.kv_values))
    found = rate(gpu, shape, requests, roofline.datasheet(H100), at_a_time, precision=precision)
    assert published / found == pytest.approx(share, abs=0.02)


def test_prompts_of_w4_cost_what_their_matrices_cost(gpu: Modules) -> None:
    """72.5 requests a second are 484 TFLOP/s."""
    lengths = lengths_of(gpu, gpu.workloads.w4(1000, is_prefill_heavy=True))
    flops = gpu.roofline.matrix_flops(gpu.shapes.SHAPES["Llama-3.1-8B"], lengths) / len(lengths)
    assert 72.5 * flops == pytest.approx(484e12, rel=0.005)


def test_shares_of_one_stream(gpu: Modules) -> None:
    """6.44 ms a step on an H100 are 70 % of its bandwidth; the slopes of two caches, 89.5 and 82.5 %."""
    roofline, shape = gpu.roofline, gpu.shapes.SHAPES["Llama-3.1-8B"]
    peaks = roofline.datasheet(H100)
    assert roofline.decode_share(shape, 6.44e-3, peaks) == pytest.approx(0.70, abs=0.005)
    assert roofline.kv_slope_share(shape, 4.37e-8, peaks) == pytest.approx(0.895, abs=0.005)
    fp8 = roofline.Precision(kv_bytes=1.0)
    assert roofline.kv_slope_share(shape, 2.37e-8, peaks, fp8) == pytest.approx(0.825, abs=0.005)


def test_what_was_cached_costs_no_arithmetic_but_is_read(gpu: Modules) -> None:
    roofline, shape = gpu.roofline, gpu.shapes.SHAPES["Qwen3-8B"]
    whole, half = [roofline.Lengths(2048, 128)], [roofline.Lengths(2048, 128, 1024)]
    saved = roofline.matrix_flops(shape, whole) - roofline.matrix_flops(shape, half)
    assert saved == 2 * shape.layer_params * 1024
    assert roofline.prompt_attention_flops(shape, half) == roofline.prompt_attention_flops(shape, whole) * 3 / 4
    assert roofline.kv_bytes_read(shape, half) == roofline.kv_bytes_read(shape, whole)


def test_steps_are_those_of_the_longest_reply_or_of_full_batches(gpu: Modules) -> None:
    roofline = gpu.roofline
    requests = [roofline.Lengths(1, 9), roofline.Lengths(1, 2)]
    assert roofline.num_steps(requests, 256) == 9
    assert roofline.num_steps([roofline.Lengths(1, 2)] * 100, 10) == 20
    assert roofline.concurrency([roofline.Lengths(100, 200)], 256, 2000) == 10
    assert roofline.concurrency([roofline.Lengths(100, 200)], 4, 2000) == 4


def test_a_line_is_found_again(gpu: Modules) -> None:
    slope, intercept = gpu.roofline.line_fit([(x, 3 + 0.5 * x) for x in (1, 2, 8, 16)])
    assert (slope, intercept) == (pytest.approx(0.5), pytest.approx(3))


@pytest.mark.parametrize(
    ("device", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12), ("NVIDIA H100 PCIe", 2.0e12), ("NVIDIA H200", 4.8e12),
        ("NVIDIA A100-SXM4-40GB", 1.555e12), ("NVIDIA A100-SXM4-80GB", 2.04e12), ("NVIDIA L40S", 0.864e12),
    ],
)  # fmt: skip
def test_the_data_sheet_is_that_of_the_name(gpu: Modules, device: str, bandwidth: float) -> None:
    assert gpu.roofline.datasheet(device).bandwidth == bandwidth


def test_an_unknown_device_has_no_data_sheet(gpu: Modules) -> None:
    assert gpu.roofline.datasheet("NVIDIA Something") is None
