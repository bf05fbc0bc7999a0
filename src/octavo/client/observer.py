"""What the engine's client tells whoever keeps count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octavo.base.params import GenerateRequest
from octavo.wire.messages import SchedulerStats


@dataclass(frozen=True, slots=True)
class FinishedSample:
    """The end of one sample, for metrics. Times are time.monotonic() seconds, 0.0 for what never happened."""

    request: GenerateRequest
    finish_reason: str  # "stop", "length", "abort" or "error"
    num_output_tokens: int
    num_cached_tokens: int
    arrival_time: float
    scheduled_time: float
    first_token_time: float
    last_token_time: float
    finish_time: float


class Observer(Protocol):
    """What happens in the client. Methods must be quick and never raise."""

    def on_request_arrival(self, request: GenerateRequest) -> None:
        """A request was admitted."""
        ...

    def on_first_token(self, queue_seconds: float, first_token_seconds: float) -> None:
        """A sample's first tokens came; both durations count from its arrival."""
        ...

    def on_tokens(self, num_tokens: int, seconds: float) -> None:
        """More tokens of one sample came, `seconds` after its previous ones."""
        ...

    def on_finish(self, sample: FinishedSample) -> None:
        """A sample ended."""
        ...

    def on_stats(self, stats: SchedulerStats) -> None:
        """A step ended."""
        ...


class NoObserver:
    """Looks away."""

    def on_request_arrival(self, request: GenerateRequest) -> None:
        return

    def on_first_token(self, queue_seconds: float, first_token_seconds: float) -> None:
        return

    def on_tokens(self, num_tokens: int, seconds: float) -> None:
        return

    def on_finish(self, sample: FinishedSample) -> None:
        return

    def on_stats(self, stats: SchedulerStats) -> None:
        return
