"""Adapters that come and go while the server runs: for administrators, or for everyone where the settings say so."""

from __future__ import annotations

from octavo.base.errors import InvalidRequest, OctavoError
from octavo.served.adapters import Adapters
from octavo.server.http.errors import validate_body
from octavo.server.http.exchange import Exchange
from octavo.server.http.routing import Handler, Route
from octavo.server.keys import check_admin
from octavo.server.protocol.admin import LoadAdapterRequest, UnloadAdapterRequest
from octavo.server.state import ServerState


def adapter_routes(state: ServerState) -> list[Route]:
    """None where the engine takes no adapters, or nobody may change them."""
    config, handlers = state.config, AdapterHandlers(state)
    for_all = config.allow_runtime_lora_updating
    if state.models.default.adapters is None or (config.admin_api_key is None and not for_all):
        return []

    def route(path: str, handler: Handler, summary: str, body: type) -> Route:
        if for_all:
            return Route("POST", path, handler, summary, body, media_type="text/plain")

        async def checked(exchange: Exchange) -> None:
            check_admin(exchange)
            await handler(exchange)

        return Route("POST", path, checked, summary, body, media_type="text/plain", for_admins=True)

    return [
        route("/v1/load_lora_adapter", handlers.load, "Serve another adapter", LoadAdapterRequest),
        route("/v1/unload_lora_adapter", handlers.unload, "Serve an adapter no more", UnloadAdapterRequest),
    ]


class AdapterHandlers:
    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._siblings = state.siblings
        self._siblings.offer("load_adapter", self._load)
        self._siblings.offer("unload_adapter", self._unload)
        self._siblings.offer("forget_adapter", self._forget)

    @property
    def _adapters(self) -> Adapters:
        adapters = self._state.models.default.adapters
        assert adapters is not None, "the routes exist where there are adapters only"
        return adapters

    async def load(self, exchange: Exchange) -> None:
        """200 and a line of text, when requests may name the adapter."""
        request = validate_body(LoadAdapterRequest, await exchange.read_json())
        self._state.models.default.check_available()
        name, key = request.lora_name, self._adapters.new_key(request.lora_name)
        async with self._siblings.alone(f"adapter {name}"):
            if request.load_inplace and name in self._adapters.names:
                await self._siblings.everywhere("unload_adapter", name)
            try:
                await self._siblings.everywhere("load_adapter", name, request.lora_path, key)
            except OctavoError:
                await self._siblings.everywhere("forget_adapter", name, key)
                raise
        await _say(exchange, f"Success: {self._kind(name)} adapter '{name}' added successfully.")

    async def unload(self, exchange: Exchange) -> None:
        request = validate_body(UnloadAdapterRequest, await exchange.read_json())
        if not request.lora_name:
            raise InvalidRequest("`lora_name` is missing: octavo knows adapters by their names.", "lora_name")
        name = request.lora_name
        kind = self._kind(name)
        async with self._siblings.alone(f"adapter {name}"):
            await self._siblings.everywhere("unload_adapter", name)
        await _say(exchange, f"Success: {kind} adapter '{name}' removed successfully.")

    def _kind(self, name: str) -> str:
        adapter = self._adapters.find(name)
        return "prompt" if adapter is not None and adapter.is_prompt else "LoRA"

    # ------------------------------------------------------------ in each process
    async def _load(self, name: str, path: str, key: str) -> None:
        await self._adapters.load(name, path, key)

    async def _unload(self, name: str) -> None:
        await self._adapters.unload(name)

    async def _forget(self, name: str, key: str) -> None:
        await self._adapters.forget(name, key)


async def _say(exchange: Exchange, text: str) -> None:
    await exchange.send_bytes(text.encode(), 200, [(b"content-type", b"text/plain; charset=utf-8")])
