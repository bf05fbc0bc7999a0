"""Prometheus metrics under vLLM's names, so that dashboards carry over, and the periodic line in the log.

One registry in the API process; the engine sends its numbers with its outputs. The label is the first served
model name: labels never hold what a client sends, so their number is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from octavo.base.config import CacheConfig
from octavo.base.errors import Overloaded
from octavo.base.params import GenerateRequest
from octavo.client.observer import FinishedRequest, FinishedSample
from octavo.served.media import MediaStats
from octavo.server.media_metrics import MediaMetrics
from octavo.wire.messages import AS_GRAPHS, EngineInfo, SchedulerStats

logger = logging.getLogger(__name__)

M = TypeVar("M", Counter, Gauge)

# The time at which each counter was made, as a series of its own: as many again as there are, of no use to a dashboard.
disable_created_metrics()  # type: ignore[no-untyped-call]

#: Seconds between two lines of statistics in the log.
STATS_INTERVAL = 10.0

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_TPOT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_E2E = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_SMALL_COUNTS = (1, 2, 5, 10, 20)
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})


def _one_two_five(limit: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 ... up to `limit`."""

    def steps() -> Iterator[int]:
        scale = 1
        while True:
            yield from (scale, 2 * scale, 5 * scale)
            scale *= 10

    buckets: list[int] = []
    for step in steps():
        if step > limit:
            return buckets or [limit]
        buckets.append(step)
    return buckets


class Tally:
    """Counts by bucket: a histogram that takes a tenth of the library's time, for what is observed at every token."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: upper ends of the buckets, inclusive and rising; one more follows without an end."""
        self.bounds = tuple(map(float, bounds))
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class _Histogram(Collector):
    """How a tally is shown."""

    def __init__(self, name: str, help: str, model_name: str, tally: Tally) -> None:
        self._name = name
        self._help = help
        self._model_name = model_name
        self._tally = tally

    def collect(self) -> Iterable[Metric]:
        bounds = [*map(floatToGoString, self._tally.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._tally.counts), strict=True))
        metric = HistogramMetricFamily(self._name, self._help, labels=["model_name"])
        metric.add_metric([self._model_name], buckets, self._tally.total)
        return [metric]


class _AdapterRequests(Collector):
    """One series, whose labels name the adapters of requests; its value is the time, as vLLM has it."""

    def __init__(self, names: Callable[[], tuple[set[str], set[str]]], most: int) -> None:
        self._names, self._most = names, most

    def collect(self) -> Iterable[Metric]:
        labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"]
        metric = GaugeMetricFamily("vllm:lora_requests_info", "Adapters of requests that run and wait.", labels=labels)
        running, waiting = self._names()
        metric.add_metric([str(self._most), ",".join(sorted(running)), ",".join(sorted(waiting))], time.time())
        return [metric]


#: By level.
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")


class Metrics:
    """All metrics of one API process. Implements the client's `Observer`; called on the event loop only."""

    def __init__(self, model_name: str, max_model_len: int, *, tells_engine: bool = True) -> None:
        """`tells_engine`: the engine's numbers are counted here, and in no other process."""
        self._tells_engine = tells_engine
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._model_name = model_name
        self._last: SchedulerStats | None = None
        self._make_gauges()
        self._make_counters()
        self._make_histograms(max_model_len)

    # ------------------------------------------------------------ declarations
    def _gauge(self, name: str, help: str) -> Gauge:
        return Gauge(name, help, ["model_name"], registry=self.registry).labels(self._model_name)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(name, help, ["model_name"], registry=self.registry).labels(self._model_name)

    def _each(self, kind: type[M], name: str, help: str, label: str, values: Iterable[str]) -> dict[str, M]:
        """A metric with one more label, and all values that this has."""
        metric = kind(name, help, ["model_name", label], registry=self.registry)
        return {value: metric.labels(self._model_name, value) for value in values}

    def _histogram(self, name: str, help: str, buckets: Sequence[float], *also: tuple[str, str]) -> Tally:
        """`also`: (name, help) of others that show the same."""
        tally = Tally(buckets)
        for shown_name, shown_help in ((name, help), *also):
            self.registry.register(_Histogram(shown_name, shown_help, self._model_name, tally))
        return tally

    def tell_adapters(self, names: Callable[[], tuple[set[str], set[str]]], most: int) -> None:
        """`names`: of the adapters of requests that run, and that wait; `most`: in one step."""
        self.registry.register(_AdapterRequests(names, most))

    def _make_gauges(self) -> None:
        gauge = self._gauge
        self._running = gauge("vllm:num_requests_running", "Requests in the running batch.")
        self._waiting = gauge("vllm:num_requests_waiting", "Requests waiting to run.")
        self._waiting_by_reason = self._each(
            Gauge,
            "vllm:num_requests_waiting_by_reason",
            "Requests waiting to run: for room (capacity), or until their grammar is compiled (deferred).",
            "reason",
            ("capacity", "deferred"),
        )
        self._sleep_states = self._each(
            Gauge,
            "vllm:engine_sleep_state",
            "1 for what is so: awake, weights_offloaded (sleep level 1) or discard_all (level 2).",
            "sleep_state",
            _SLEEP_STATES,
        )
        self.on_sleep(0)
        self._swapped = gauge("vllm:num_requests_swapped", "Preempted requests whose KV blocks the host keeps.")
        self._kv_usage = (
            gauge("vllm:kv_cache_usage_perc", "KV cache in use; 1 is all of it."),
            gauge("vllm:gpu_cache_usage_perc", "The same under its old name."),
        )
        self._swap_usage = gauge("vllm:cpu_cache_usage_perc", "Swap space in use; 1 is all of it.")
        gauge("vllm:cpu_prefix_cache_hit_rate", "Always 0: swapped blocks serve their own request only.")
        self._hit_rate = gauge("vllm:gpu_prefix_cache_hit_rate", "Share of prompt tokens found in the prefix cache.")
        self._prompt_rate = gauge("vllm:avg_prompt_throughput_toks_per_s", "Prompt tokens/s over the last interval.")
        self._generation_rate = gauge(
            "vllm:avg_generation_throughput_toks_per_s", "Generated tokens/s over the last interval."
        )

    def _make_counters(self) -> None:
        counter = self._counter
        # The engine counts these since its start; `on_stats` adds what is new.
        self._from_engine = (
            ("num_prompt_tokens", (counter("vllm:prompt_tokens", "Prompt tokens of sequences that began to run."),)),
            ("num_generation_tokens", (counter("vllm:generation_tokens", "Generated tokens."),)),
            ("num_preemptions", (counter("vllm:num_preemptions", "Preemptions."),)),
            (
                "prefix_cache_queries",
                (
                    counter("vllm:prefix_cache_queries", "Tokens looked up in the prefix cache."),
                    counter("vllm:gpu_prefix_cache_queries", "The same under its old name."),
                ),
            ),
            (
                "prefix_cache_hits",
                (
                    counter("vllm:prefix_cache_hits", "Tokens found in the prefix cache."),
                    counter("vllm:gpu_prefix_cache_hits", "The same under its old name."),
                    counter("vllm:prompt_tokens_cached", "Prompt tokens that were not computed: the same."),
                ),
            ),
            ("num_steps", (counter("octavo:engine_steps", "Steps of the engine."),)),
        )
        self._graph_steps = Counter(
            "octavo:steps", "Steps on a GPU: replayed as a graph, captured, or launched kernel by kernel, and why.",
            ["model_name", "graph", "reason"], registry=self.registry,
        )  # fmt: skip
        self._ends = self._each(
            Counter, "vllm:request_success", "Ended sequences by reason.", "finished_reason",
            ("stop", "length", "repetition", "abort", "error"),
        )  # fmt: skip
        self._refusals = self._each(
            Counter, "vllm:admission_rejections", "Requests refused with 429, by the limit that was full.", "reason",
            ("max_num_queued_reqs", "max_num_queued_tokens"),
        )  # fmt: skip
        self._http_requests = Counter(
            "http_requests", "HTTP requests.", ["method", "handler", "status"], registry=self.registry
        )

    def _make_histograms(self, max_model_len: int) -> None:
        histogram = self._histogram
        lengths = _one_two_five(max_model_len)
        self._ttft = histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", _TTFT)
        self._itl = histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a sequence.", _TPOT,
            ("vllm:time_per_output_token_seconds", "The same under its old name."),
        )  # fmt: skip
        self._e2e = histogram("vllm:e2e_request_latency_seconds", "Arrival to end.", _E2E)
        self._queue_time = histogram("vllm:request_queue_time_seconds", "Arrival to first scheduled.", _E2E)
        self._prefill_time = histogram("vllm:request_prefill_time_seconds", "First scheduled to first token.", _E2E)
        self._decode_time = histogram("vllm:request_decode_time_seconds", "First to last token.", _E2E)
        self._inference_time = histogram("vllm:request_inference_time_seconds", "First scheduled to last token.", _E2E)
        self._mean_tpot = histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time a token of a sequence.", _TPOT
        )
        self._prompt_len = histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", lengths)
        self._output_len = histogram("vllm:request_generation_tokens", "Generated tokens of a sequence.", lengths)
        self._max_output_len = histogram(
            "vllm:request_max_num_generation_tokens", "Generated tokens of a request's longest sequence.", lengths
        )
        self._max_tokens = histogram("vllm:request_params_max_tokens", "`max_tokens` of a request.", lengths)
        self._n = histogram("vllm:request_params_n", "`n` of a request.", _SMALL_COUNTS)
        self._best_of = histogram(
            "vllm:request_params_best_of",
            "`best_of` of a request, or its beams; n if it asks for no more.",
            _SMALL_COUNTS,
        )
        self._step_tokens = histogram(
            "vllm:iteration_tokens_total", "Tokens in a step of the engine.", _one_two_five(16384)
        )
        self._http_seconds = Histogram(
            "http_request_duration_seconds", "Duration of HTTP requests.", ["method", "handler"], buckets=_E2E,
            registry=self.registry,
        )  # fmt: skip

    def tell_cache(self, info: EngineInfo, config: CacheConfig) -> None:
        """Show the settings of the KV cache, as labels of a series that is always 1. To be called once."""
        labels = {
            "model_name": self._model_name,
            "block_size": info.block_size,
            "cache_dtype": info.kv_cache_dtype,
            "num_gpu_blocks": info.num_kv_blocks,
            "num_cpu_blocks": info.num_swap_blocks,
            "kv_cache_bytes": info.kv_cache_bytes,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "enable_prefix_caching": config.enable_prefix_caching,
            "sliding_window": max(info.kv_group_windows, default=0) or None,
        }
        gauge = Gauge("vllm:cache_config_info", "The KV cache, as labels.", list(labels), registry=self.registry)
        gauge.labels(**{name: str(value) for name, value in labels.items()}).set(1)

    def tell_media(self, stats: MediaStats) -> None:
        """Show what is counted of media. To be called once, for a model that takes some."""
        self.registry.register(MediaMetrics(self._model_name, stats))

    # ------------------------------------------------------------ the client's Observer
    def on_request_arrival(self, request: GenerateRequest) -> None:
        self._prompt_len.observe(request.num_prompt_tokens)
        self._n.observe(request.num_wanted or request.params.n)
        self._best_of.observe(request.num_sequences)
        if request.params.max_tokens is not None:
            self._max_tokens.observe(request.params.max_tokens)

    def on_first_token(self, queue_seconds: float, first_token_seconds: float) -> None:
        self._queue_time.observe(queue_seconds)
        self._ttft.observe(first_token_seconds)

    def on_tokens(self, num_tokens: int, seconds: float) -> None:
        self._itl.observe(seconds / num_tokens, num_tokens)  # tokens of one step share its time

    def on_finish(self, sample: FinishedSample) -> None:
        if sample.finish_reason in self._ends:
            self._ends[sample.finish_reason].inc()
        self._output_len.observe(sample.num_output_tokens)
        times = sample.times
        if (total := times.total_seconds) is not None:
            self._e2e.observe(total)
        if (decode := times.decode_seconds) is None:
            return
        self._decode_time.observe(decode)
        if (prefill := times.prefill_seconds) is not None:
            self._prefill_time.observe(prefill)
            self._inference_time.observe(times.last_token - times.scheduled)
        if sample.num_output_tokens > 1:
            self._mean_tpot.observe(decode / (sample.num_output_tokens - 1))

    def on_request_finish(self, finished: FinishedRequest) -> None:
        self._max_output_len.observe(max(finished.num_output_tokens, default=0))

    def on_refusal(self, error: Overloaded) -> None:
        if error.reason in self._refusals:
            self._refusals[error.reason].inc()

    def on_sleep(self, level: int) -> None:
        for state, gauge in self._sleep_states.items():
            gauge.set(state == _SLEEP_STATES[level])

    def on_stats(self, stats: SchedulerStats) -> None:
        """The engine's numbers after a step."""
        if not self._tells_engine:
            return
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._waiting_by_reason["deferred"].set(stats.num_deferred)
        self._waiting_by_reason["capacity"].set(stats.num_waiting - stats.num_deferred)
        usage = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
        for gauge in self._kv_usage:
            gauge.set(usage)
        self._swapped.set(stats.num_swapped)
        self._swap_usage.set(stats.swap_blocks_used / stats.swap_blocks_total if stats.swap_blocks_total else 0.0)
        self._hit_rate.set(stats.prefix_cache_hits / stats.prefix_cache_queries if stats.prefix_cache_queries else 0.0)
        for name, counters in self._from_engine:
            new = getattr(stats, name) - (getattr(self._last, name) if self._last is not None else 0)
            if new > 0:
                for counter in counters:
                    counter.inc(new)
        for graph, total in stats.graph_steps.items():
            new = total - (self._last.graph_steps.get(graph, 0) if self._last is not None else 0)
            if new > 0:
                labels = (graph, "") if graph in AS_GRAPHS else ("eager", graph)
                self._graph_steps.labels(self._model_name, *labels).inc(new)
        if stats.step_tokens:
            self._step_tokens.observe(stats.step_tokens)
        self._last = stats

    # ------------------------------------------------------------ HTTP
    def on_http_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route` is the route's own path, "" when there was none: never what the client wrote."""
        method = method if method in _METHODS else "other"
        self._http_requests.labels(method, route or "none", str(status)).inc()
        self._http_seconds.labels(method, route or "none").observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    # ------------------------------------------------------------ the log
    @property
    def latest_stats(self) -> SchedulerStats | None:
        return self._last

    def set_rates(self, prompt: float, generation: float) -> None:
        self._prompt_rate.set(prompt)
        self._generation_rate.set(generation)


class StatsLogger:
    """Logs throughput and cache use every `STATS_INTERVAL` seconds in which there was work."""

    def __init__(self, metrics: Metrics, interval: float = STATS_INTERVAL) -> None:
        self._metrics = metrics
        self._interval = interval
        self._time = time.monotonic()
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._was_idle = True

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            line = self.line()
            if line is not None:
                logger.info("%s", line)

    def line(self) -> str | None:
        """The line for the time since the last call; None when nothing was done, or when that was said already."""
        stats, now = self._metrics.latest_stats, time.monotonic()
        seconds = max(now - self._time, 1e-9)
        self._time = now
        if stats is None:
            return None
        prompt = (stats.num_prompt_tokens - self._prompt_tokens) / seconds
        generation = (stats.num_generation_tokens - self._generation_tokens) / seconds
        self._prompt_tokens, self._generation_tokens = stats.num_prompt_tokens, stats.num_generation_tokens
        self._metrics.set_rates(prompt, generation)
        is_idle = not (prompt or generation or stats.num_running or stats.num_waiting)
        # One line after the work ended shows the zeros.
        if is_idle and self._was_idle:
            return None
        self._was_idle = is_idle
        usage = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
        hits = stats.prefix_cache_hits / stats.prefix_cache_queries if stats.prefix_cache_queries else 0.0
        return (
            f"prompt {prompt:.1f} tok/s, generation {generation:.1f} tok/s, running {stats.num_running}, "
            f"waiting {stats.num_waiting}, KV cache {usage:.1%}, prefix cache hits {hits:.1%}"
        )
