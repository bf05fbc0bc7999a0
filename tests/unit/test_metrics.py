"""Metrics under vLLM's names, and the line in the log."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from octavo.base.params import BeamParams, GenerateRequest, SamplingParams
from octavo.client.observer import FinishedSample, Observer, RequestTimes
from octavo.server.metrics import Metrics, StatsLogger
from octavo.wire.messages import SchedulerStats

# The names of vLLM 0.6.0, without those of speculative decoding, and the names of today's vLLM.
NAMES = [
    "num_requests_running", "num_requests_waiting", "num_requests_swapped", "gpu_cache_usage_perc",
    "cpu_cache_usage_perc", "gpu_prefix_cache_hit_rate", "cpu_prefix_cache_hit_rate",
    "num_preemptions_total", "prompt_tokens_total",
    "generation_tokens_total", "time_to_first_token_seconds", "time_per_output_token_seconds",
    "e2e_request_latency_seconds", "request_prompt_tokens", "request_generation_tokens", "request_params_best_of",
    "request_params_n", "request_success_total", "avg_prompt_throughput_toks_per_s",
    "avg_generation_throughput_toks_per_s", "inter_token_latency_seconds", "request_queue_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds",
    "kv_cache_usage_perc", "prefix_cache_queries_total", "prefix_cache_hits_total", "iteration_tokens_total",
    "request_params_max_tokens",
]  # fmt: skip


def stats(**changes: Any) -> SchedulerStats:
    values = dict.fromkeys(
        ("num_running", "num_waiting", "kv_blocks_used", "kv_blocks_total", "num_preemptions", "prefix_cache_queries",
         "prefix_cache_hits", "num_steps", "num_prompt_tokens", "num_generation_tokens"), 0
    )  # fmt: skip
    return SchedulerStats(**{**values, **changes})


def values_of(metrics: Metrics) -> dict[str, float]:
    lines = metrics.render()[0].decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name.replace('model_name="m"', "").replace("{}", ""): float(value) for name, value in pairs}


REQUEST = GenerateRequest(
    external_id="x", prompt_token_ids=[1, 2, 3], params=SamplingParams(n=2, max_tokens=7), arrival_time=100.0
)


def test_every_name_is_there_from_the_start() -> None:
    text = Metrics("m", 2048).render()[0].decode()
    for name in NAMES:
        bare = f"# TYPE vllm:{name} "
        assert bare in text, name
    for reason in ("stop", "length", "abort"):
        assert f'vllm:request_success_total{{finished_reason="{reason}",model_name="m"}} 0.0' in text


def test_it_is_an_observer() -> None:
    observer: Observer = Metrics("m", 2048)
    observer.on_request_arrival(REQUEST)
    observer.on_first_token(0.5, 1.5)
    observer.on_tokens(4, 2.0)
    observer.on_finish(FinishedSample(REQUEST, "length", 5, 0, RequestTimes(100.0, 100.5, 101.5, 103.5, 103.6)))
    metrics = observer
    assert isinstance(metrics, Metrics)
    values = values_of(metrics)
    assert values["vllm:request_prompt_tokens_sum"] == 3
    assert values["vllm:request_params_n_sum"] == 2
    assert values["vllm:request_params_max_tokens_sum"] == 7
    assert values["vllm:request_queue_time_seconds_sum"] == 0.5
    assert values["vllm:time_to_first_token_seconds_sum"] == 1.5
    for name in ("inter_token_latency", "time_per_output_token"):  # four gaps of half a second
        assert (values[f"vllm:{name}_seconds_sum"], values[f"vllm:{name}_seconds_count"]) == (2.0, 4)
    assert values["vllm:request_generation_tokens_sum"] == 5
    assert values["vllm:e2e_request_latency_seconds_sum"] == pytest.approx(3.6)
    assert values["vllm:request_prefill_time_seconds_sum"] == 1.0
    assert values["vllm:request_decode_time_seconds_sum"] == 2.0
    assert values["vllm:request_inference_time_seconds_sum"] == 3.0
    assert values["vllm:request_time_per_output_token_seconds_sum"] == 0.5
    assert values['vllm:request_success_total{finished_reason="length",}'] == 1


@pytest.mark.parametrize(
    ("request_", "n", "best_of"),
    [
        (REQUEST, 2, 2),
        # What the server makes of n 1 and best_of 5: the engine is asked for five samples.
        (msgspec.structs.replace(REQUEST, params=SamplingParams(n=5), num_wanted=1), 1, 5),
        (msgspec.structs.replace(REQUEST, params=SamplingParams(n=1), beams=BeamParams(width=4), num_wanted=1), 1, 4),
    ],
    ids=["n", "best_of", "beams"],
)
def test_n_and_best_of_are_told_apart(request_: GenerateRequest, n: int, best_of: int) -> None:
    metrics = Metrics("m", 2048)
    metrics.on_request_arrival(request_)
    values = values_of(metrics)
    assert (values["vllm:request_params_n_sum"], values["vllm:request_params_n_count"]) == (n, 1)
    assert (values["vllm:request_params_best_of_sum"], values["vllm:request_params_best_of_count"]) == (best_of, 1)


def test_no_series_tells_when_a_counter_was_made() -> None:
    metrics = Metrics("m", 2048)
    metrics.on_http_request("GET", "/health", 200, 0.1)
    assert b"_created" not in metrics.render()[0]


def test_a_request_that_never_ran_has_an_end_and_no_times() -> None:
    metrics = Metrics("m", 2048)
    metrics.on_finish(FinishedSample(REQUEST, "abort", 0, 0, RequestTimes(100.0, finish=101.0)))
    values = values_of(metrics)
    assert values['vllm:request_success_total{finished_reason="abort",}'] == 1
    assert values["vllm:request_decode_time_seconds_count"] == 0
    assert values["vllm:request_prefill_time_seconds_count"] == 0


def test_totals_of_the_engine_become_counters() -> None:
    metrics = Metrics("m", 2048)
    metrics.on_stats(stats(num_prompt_tokens=10, num_generation_tokens=1, num_preemptions=2, prefix_cache_hits=4))
    metrics.on_stats(
        stats(num_prompt_tokens=10, num_generation_tokens=5, num_preemptions=3, prefix_cache_hits=4,
              prefix_cache_queries=16, num_running=2, num_waiting=1, kv_blocks_used=3, kv_blocks_total=4)
    )  # fmt: skip
    values = values_of(metrics)
    assert values["vllm:prompt_tokens_total"] == 10
    assert values["vllm:generation_tokens_total"] == 5
    assert values["vllm:num_preemptions_total"] == 3
    assert values["vllm:prefix_cache_hits_total"] == 4
    assert values["vllm:gpu_prefix_cache_hit_rate"] == 0.25
    assert (values["vllm:num_requests_running"], values["vllm:num_requests_waiting"]) == (2, 1)
    assert values["vllm:kv_cache_usage_perc"] == values["vllm:gpu_cache_usage_perc"] == 0.75


def test_the_line_appears_only_when_there_was_work_and_once_after_it() -> None:
    metrics = Metrics("m", 2048)
    log = StatsLogger(metrics)
    assert log.line() is None
    metrics.on_stats(stats(num_prompt_tokens=10, num_generation_tokens=50, num_running=1, kv_blocks_total=4))
    line = log.line()
    assert line is not None and "running 1" in line and "KV cache 0.0%" in line
    metrics.on_stats(stats(num_prompt_tokens=10, num_generation_tokens=50, kv_blocks_total=4))
    last = log.line()
    assert last is not None and "generation 0.0 tok/s, running 0" in last
    assert log.line() is None


def test_two_servers_in_one_process_do_not_share_metrics() -> None:
    first, second = Metrics("m", 2048), Metrics("m", 2048)
    first.on_tokens(1, 1.0)
    assert values_of(second)["vllm:inter_token_latency_seconds_count"] == 0


def test_tallies_are_the_librarys_histograms() -> None:
    bounds = [0.5, 1, 2.5, 10]
    observed = [0.0, 0.5, 0.500001, 1.0, 2.0, 2.5, 9.99, 10.0, 10.1, 1e9, -1.0]
    metrics, registry = Metrics("m", 2048), CollectorRegistry()
    tally = metrics._histogram("x:seconds", "Some.", bounds, ("x:old_seconds", "Others."))
    theirs = Histogram("x:seconds", "Some.", ["model_name"], buckets=bounds, registry=registry).labels("m")
    for value in observed:
        tally.observe(value)
        theirs.observe(value)
    shown = metrics.render()[0].decode()
    for line in generate_latest(registry).decode().splitlines():
        assert line in shown.splitlines() and line.replace("x:", "x:old_").replace("Some", "Others") in shown


def test_swapped_requests_and_their_space_are_told() -> None:
    metrics = Metrics("m", 2048)
    metrics.on_stats(stats(num_swapped=3, swap_blocks_used=5, swap_blocks_total=20))
    values = values_of(metrics)
    assert values["vllm:num_requests_swapped"] == 3 and values["vllm:cpu_cache_usage_perc"] == 0.25


def test_steps_are_counted_by_how_a_gpu_ran_them() -> None:
    metrics = Metrics("m", 2048)
    metrics.on_stats(stats(graph_steps={"replayed": 3, "prompt": 2}))
    metrics.on_stats(stats(graph_steps={"replayed": 7, "prompt": 2, "captured": 1}))
    steps = {name: value for name, value in values_of(metrics).items() if name.startswith("octavo:steps_total")}
    assert steps == {
        'octavo:steps_total{graph="replayed",,reason=""}': 7.0,
        'octavo:steps_total{graph="eager",,reason="prompt"}': 2.0,
        'octavo:steps_total{graph="captured",,reason=""}': 1.0,
    }
