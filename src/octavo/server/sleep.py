"""/sleep, /wake_up and /is_sleeping, as vLLM has them: their settings are in the query."""

from __future__ import annotations

from octavo.base.errors import InvalidRequest
from octavo.server.http.errors import validate_body
from octavo.server.http.exchange import Exchange
from octavo.server.http.routing import Route
from octavo.server.openai.protocol.common import WireModel
from octavo.server.protocol.admin import SleepQuery, SleepState, WakeQuery
from octavo.server.state import ServerState


class SleepHandlers:
    def __init__(self, state: ServerState) -> None:
        self._state = state

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/sleep", self.sleep, "Give back memory", query=SleepQuery),
            Route("POST", "/wake_up", self.wake_up, "Take the memory again", query=WakeQuery),
            Route("GET", "/is_sleeping", self.is_sleeping, "Does the model sleep?", reply=SleepState),
        ]

    async def sleep(self, exchange: Exchange) -> None:
        """200 and nothing, when the memory has been given back."""
        given = _query(exchange, SleepQuery)
        query = validate_body(SleepQuery, {name: texts[-1] for name, texts in given.items()})
        for model in self._state.models.all:
            await model.engine.sleep_mode.sleep(int(query.level), waits=query.mode == "wait")
        await exchange.send_bytes(b"", 200, [])

    async def wake_up(self, exchange: Exchange) -> None:
        """200 and nothing, when requests are taken again."""
        tags = validate_body(WakeQuery, _query(exchange, WakeQuery)).tags
        if tags and set(tags) != {"weights", "kv_cache"}:
            raise InvalidRequest("octavo wakes weights and KV cache together: leave `tags` out.", "tags")
        for model in self._state.models.all:
            await model.engine.sleep_mode.wake_up()
        await exchange.send_bytes(b"", 200, [])

    async def is_sleeping(self, exchange: Exchange) -> None:
        asleep = [model.engine.sleep_mode.is_asleep for model in self._state.models.all]
        await exchange.send_json(SleepState(any(asleep)))


def _query(exchange: Exchange, model: type[WireModel]) -> dict[str, list[str]]:
    """The query's values by name. Raises `InvalidRequest` for a name that `model` has not."""
    query = exchange.query()
    for name in query:
        if name not in model.model_fields:
            known = ", ".join(model.model_fields)
            raise InvalidRequest(f"There is no parameter `{name[:100]}` here; there is {known}.", name[:100])
    return query
