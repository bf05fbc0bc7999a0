"""What the handlers share: one object, made at start and handed to all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.base.config import EngineConfig, ServerConfig
from octavo.served.models import Models
from octavo.server.metrics import Metrics


@dataclass(frozen=True)
class ServerState:
    """Made by launch once the engine can serve; never changed."""

    config: ServerConfig
    models: Models
    metrics: Metrics
    engine_config: EngineConfig = field(default_factory=EngineConfig)  # as it was asked for

    def check_available(self) -> None:
        """Raise `EngineDead`, `Asleep` or `ShuttingDown` when no request can be served."""
        self.models.default.check_available()
