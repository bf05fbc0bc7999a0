"""/sleep, /wake_up and /is_sleeping, as vLLM has them: their settings are in the query."""

from __future__ import annotations

from collections.abc import Collection

from octavo.base.errors import InvalidRequest
from octavo.client.sleep_mode import SLEEP_LEVELS
from octavo.server.http.exchange import Exchange
from octavo.server.http.routing import Route
from octavo.server.protocol.admin import SleepState
from octavo.server.state import ServerState

#: What becomes of requests in flight.
_MODES = ("abort", "wait")
_TAGS = frozenset({"weights", "kv_cache"})


class SleepHandlers:
    def __init__(self, state: ServerState) -> None:
        self._state = state

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/sleep", self.sleep, "Give back memory: ?level=1 or 2, mode=abort or wait"),
            Route("POST", "/wake_up", self.wake_up, "Take the memory again"),
            Route("GET", "/is_sleeping", self.is_sleeping, "Does the model sleep?", reply=SleepState),
        ]

    async def sleep(self, exchange: Exchange) -> None:
        """200 and nothing, when the memory has been given back."""
        query = _query(exchange, ("level", "mode"))
        level, mode = query.get("level", ["1"])[-1], query.get("mode", ["abort"])[-1]
        if level not in map(str, SLEEP_LEVELS):
            raise InvalidRequest(
                "`level` should be 1 (the KV cache, and a GPU's weights to the host) or 2 (the weights too).", "level"
            )
        if mode not in _MODES:
            raise InvalidRequest("`mode` should be abort (end the requests in flight) or wait (for them).", "mode")
        for model in self._state.models.all:
            await model.engine.sleep_mode.sleep(int(level), waits=mode == "wait")
        await exchange.send_bytes(b"", 200, [])

    async def wake_up(self, exchange: Exchange) -> None:
        """200 and nothing, when requests are taken again."""
        tags = _query(exchange, ("tags",)).get("tags", [])
        if tags and not _TAGS.issubset(tags):
            raise InvalidRequest("octavo wakes weights and KV cache together: leave `tags` out.", "tags")
        for model in self._state.models.all:
            await model.engine.sleep_mode.wake_up()
        await exchange.send_bytes(b"", 200, [])

    async def is_sleeping(self, exchange: Exchange) -> None:
        asleep = [model.engine.sleep_mode.is_asleep for model in self._state.models.all]
        await exchange.send_json(SleepState(any(asleep)))


def _query(exchange: Exchange, known: Collection[str]) -> dict[str, list[str]]:
    """The query's values by name. Raises `InvalidRequest` for a name that means nothing."""
    query = exchange.query()
    for name in query:
        if name not in known:
            raise InvalidRequest(f"There is no parameter `{name[:100]}` here; there is {', '.join(known)}.", name[:100])
    return query
