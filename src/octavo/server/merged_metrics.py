"""The metrics of several API processes as those of one server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

#: Of one metric: its name, help text, kind, and samples as (name, labels, value).
Family = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]

#: Gauges that processes have each for themselves. Of others the first process has the server's: it hears of all steps.
_SUMMED: Final = frozenset({"process_virtual_memory_bytes", "process_resident_memory_bytes", "process_open_fds"})
#: Its labels are lists of names.
_ADAPTERS: Final = "vllm:lora_requests_info"


def families_of(registry: CollectorRegistry) -> list[Family]:
    """What one process has, for the others."""
    return [
        (metric.name, metric.documentation, metric.type, [(s.name, s.labels, s.value) for s in metric.samples])
        for metric in registry.collect()
    ]


def rendered(processes: Sequence[Sequence[Family]]) -> tuple[bytes, str]:
    """The exposition of what all processes have together, the first one's first, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Merged(processes))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Merged(Collector):
    def __init__(self, processes: Sequence[Sequence[Family]]) -> None:
        self._processes = processes

    def collect(self) -> Iterable[Metric]:
        by_name: dict[str, list[Family]] = {}
        for families in self._processes:
            for family in families:
                by_name.setdefault(family[0], []).append(family)
        for name, found in by_name.items():
            _, help, kind, samples = found[0]
            metric = Metric(name, help, kind)
            if name == _ADAPTERS:
                samples = [_all_adapters([sample for family in found for sample in family[3]])]
            elif kind != "gauge" or name in _SUMMED:
                samples = _sums([sample for family in found for sample in family[3]])
            for sample_name, labels, value in samples:
                metric.add_sample(sample_name, labels, value)
            yield metric


def _sums(samples: Iterable[tuple[str, dict[str, str], float]]) -> list[tuple[str, dict[str, str], float]]:
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for name, labels, value in samples:
        key = (name, tuple(labels.items()))
        sums[key] = sums.get(key, 0.0) + value
    return [(name, dict(labels), value) for (name, labels), value in sums.items()]


def _all_adapters(samples: Sequence[tuple[str, dict[str, str], float]]) -> tuple[str, dict[str, str], float]:
    name, labels, _ = samples[0]
    together = dict(labels)
    for label in ("running_lora_adapters", "waiting_lora_adapters"):
        names = {word for _, each, _ in samples for word in each[label].split(",") if word}
        together[label] = ",".join(sorted(names))
    return name, together, max(value for _, _, value in samples)
