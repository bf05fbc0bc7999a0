"""What the engine's client tells whoever keeps count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from octavo.base.errors import Overloaded
from octavo.base.params import GenerateRequest
from octavo.wire.messages import SchedulerStats, StepSeconds


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """When things happened to a sample, or to a request over all its samples: time.monotonic() seconds, 0.0 for what
    never did."""

    arrival: float
    scheduled: float = 0.0  # the first of its samples
    first_token: float = 0.0
    last_token: float = 0.0
    finish: float = 0.0  # all of its samples have ended

    @property
    def queue_seconds(self) -> float | None:
        """Arrival to first scheduled. None: it was never scheduled."""
        return max(0.0, self.scheduled - self.arrival) if self.scheduled and self.arrival else None

    @property
    def first_token_seconds(self) -> float | None:
        """Arrival to first token."""
        return self.first_token - self.arrival if self.first_token and self.arrival else None

    @property
    def prefill_seconds(self) -> float | None:
        """First scheduled to first token."""
        return self.first_token - self.scheduled if self.first_token and self.scheduled else None

    @property
    def decode_seconds(self) -> float | None:
        """First to last token."""
        return self.last_token - self.first_token if self.first_token else None

    @property
    def total_seconds(self) -> float | None:
        """Arrival to end."""
        return self.finish - self.arrival if self.finish and self.arrival else None


def merged_times(times: Sequence[RequestTimes]) -> RequestTimes:
    """Of several samples or requests, at least one: from the first to the last."""
    return RequestTimes(
        min(t.arrival for t in times),
        min((t.scheduled for t in times if t.scheduled), default=0.0),
        min((t.first_token for t in times if t.first_token), default=0.0),
        max(t.last_token for t in times),
        max(t.finish for t in times),
    )


@dataclass(frozen=True, slots=True)
class FinishedSample:
    """The end of one sample, for metrics."""

    request: GenerateRequest
    finish_reason: str  # "stop", "length", "abort" or "error"
    num_output_tokens: int
    num_cached_tokens: int
    times: RequestTimes


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """The end of a request, with all its samples."""

    request: GenerateRequest
    times: RequestTimes
    finish_reasons: tuple[str, ...]  # of each sample: "stop", "length", "abort" or "error"
    num_output_tokens: tuple[int, ...]  # of each sample
    num_cached_tokens: int
    #: In the scheduler, in the model's forward pass and in the worker, where --collect-detailed-traces asks for them.
    step_seconds: StepSeconds | None = None


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

    def on_request_finish(self, finished: FinishedRequest) -> None:
        """A request ended, which is behind the end of its last sample."""
        ...

    def on_refusal(self, error: Overloaded) -> None:
        """A request was not admitted, because too much waits."""
        ...

    def on_stats(self, stats: SchedulerStats) -> None:
        """A step ended."""
        ...

    def on_sleep(self, level: int) -> None:
        """The engine sleeps at this level, or is awake again (0)."""
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

    def on_request_finish(self, finished: FinishedRequest) -> None:
        return

    def on_refusal(self, error: Overloaded) -> None:
        return

    def on_stats(self, stats: SchedulerStats) -> None:
        return

    def on_sleep(self, level: int) -> None:
        return


class Observers(NoObserver):
    """A first observer of everything, and others who look at arrivals and ends of requests alone.

    What happens at every token goes to the first only: that is the busiest path of the process.
    """

    def __init__(self, first: Observer, *others: Observer) -> None:
        self._first = first
        self._others = others
        self.on_first_token = first.on_first_token  # type: ignore[method-assign]
        self.on_tokens = first.on_tokens  # type: ignore[method-assign]
        self.on_finish = first.on_finish  # type: ignore[method-assign]
        self.on_refusal = first.on_refusal  # type: ignore[method-assign]
        self.on_stats = first.on_stats  # type: ignore[method-assign]
        self.on_sleep = first.on_sleep  # type: ignore[method-assign]

    def on_request_arrival(self, request: GenerateRequest) -> None:
        self._first.on_request_arrival(request)
        for other in self._others:
            other.on_request_arrival(request)

    def on_request_finish(self, finished: FinishedRequest) -> None:
        self._first.on_request_finish(finished)
        for other in self._others:
            other.on_request_finish(finished)
