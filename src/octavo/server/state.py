"""What the handlers share: one object, made at start and handed to all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from octavo.base.config import EngineConfig, ServerConfig
from octavo.client.siblings import NoSiblings, Siblings
from octavo.served.models import Models
from octavo.server.mcp.servers import MCPServers
from octavo.server.metrics import Metrics
from octavo.server.responses.runs import BackgroundRuns
from octavo.server.responses.store import ResponseStore


@dataclass(frozen=True)
class ServerState:
    """Made by launch once the engine can serve; never changed."""

    config: ServerConfig
    models: Models
    metrics: Metrics
    engine_config: EngineConfig = field(default_factory=EngineConfig)  # as it was asked for
    siblings: Siblings = field(default_factory=NoSiblings)
    shared_store: ResponseStore | None = None  # of several processes
    runs: BackgroundRuns = field(init=False)  # the responses that are made in the background

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", BackgroundRuns(self.siblings))  # at once: others may ask for them

    @cached_property
    def store(self) -> ResponseStore:
        """Of responses and conversations."""
        return self.shared_store or ResponseStore(self.config)

    @cached_property
    def mcp(self) -> MCPServers:
        """The MCP servers whose tools are called."""
        return MCPServers(self.config)

    async def close(self) -> None:
        await self.runs.close()
        if "mcp" in vars(self):  # it was used
            await self.mcp.close()
        await self.store.close()

    def check_available(self) -> None:
        """Raise `EngineDead`, `Asleep` or `ShuttingDown` when no request can be served."""
        self.models.default.check_available()
