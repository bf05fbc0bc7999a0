"""Who looks at the requests of a served model: its metrics always, traces and the log of requests where asked for."""

from __future__ import annotations

import asyncio

from octavo.base.config import ServeConfig
from octavo.client.observer import Observer, Observers
from octavo.served.request_log import RequestLog
from octavo.server.metrics import Metrics
from octavo.server.tracing import CLOSE_SECONDS, Tracer
from octavo.wire.messages import EngineInfo


class Watchers:
    """`observer` is for the client, `metrics` for the server's state; `close` at the end."""

    def __init__(self, config: ServeConfig, model_name: str, info: EngineInfo, *, tells_engine: bool = True) -> None:
        server = config.server
        self.metrics = Metrics(model_name, info.max_model_len, tells_engine=tells_engine)
        self.metrics.tell_cache(info, config.engine.cache)
        self._tracer = Tracer(server, model_name) if server.otlp_traces_endpoint is not None else None
        others: list[Observer] = [] if self._tracer is None else [self._tracer]
        if not server.disable_log_requests:
            others.append(RequestLog())
        self.observer: Observer = Observers(self.metrics, *others) if others else self.metrics

    async def close(self, *, hurried: bool = False) -> None:
        """Let the traces that are left reach their collector, unless there is a hurry."""
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close, 0.0 if hurried else CLOSE_SECONDS)
