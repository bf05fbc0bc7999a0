"""Traces, times in replies and profiles: how the server lets others see what it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octavo.base.config.options import opt

#: Values of `otlp_traces_protocol`.
TRACE_PROTOCOLS = ("grpc", "http/protobuf")


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Which times of steps are measured for requests: the engine's process gets it with its configuration."""

    collect_detailed_traces: list[Literal["model", "worker", "all"]] = opt(
        list,
        "Times of a request's steps that its trace tells too: of the model's forward pass, of all that the worker "
        "does, or both. On a GPU each step then waits for its forward pass.",
    )


@dataclass(frozen=True, kw_only=True)
class ObserveConfig(StepTimes):
    """Traces, times in replies and profiles."""

    otlp_traces_endpoint: str | None = opt(
        None, "Send a trace of each request to this OpenTelemetry collector (OTLP), such as http://localhost:4317."
    )
    otlp_traces_protocol: str = opt("grpc", "How traces are sent: grpc or http/protobuf.")
    enable_per_request_metrics: bool = opt(
        False, "Tell the times of a request in its reply, whether or not it asks for them (include_metrics)."
    )
    profiler_dir: str | None = opt(None, "Folder for what /start_profile records, a route for administrators.")
