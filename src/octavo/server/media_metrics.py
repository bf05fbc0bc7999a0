"""What is counted of media, as metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from octavo.base.config.media import MEDIA_KINDS
from octavo.served.media import MediaStats


class MediaMetrics(Collector):
    def __init__(self, model_name: str, stats: MediaStats) -> None:
        self._model_name = model_name
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats
        yield self._each("octavo:media_items", "Media of requests.", "kind", {k: stats.items[k] for k in MEDIA_KINDS})
        yield self._each("octavo:media_seconds", "Time spent on media, by what was done.", "phase", stats.seconds)
        for name, help, value in (
            ("octavo:media_bytes", "Bytes of media, as they were sent or fetched.", stats.num_bytes),
            ("octavo:media_refused", "Requests refused for their media.", stats.num_refused),
            ("vllm:mm_cache_queries", "Media looked up among those that are kept prepared.", stats.cache_queries),
            ("vllm:mm_cache_hits", "Media found there.", stats.cache_hits),
        ):
            metric = CounterMetricFamily(name, help, labels=["model_name"])
            metric.add_metric([self._model_name], value)
            yield metric

    def _each(self, name: str, help: str, label: str, values: dict[str, int] | dict[str, float]) -> Metric:
        metric = CounterMetricFamily(name, help, labels=["model_name", label])
        for key, value in values.items():
            metric.add_metric([self._model_name, key], value)
        return metric
