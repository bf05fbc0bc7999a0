"""The small GET routes: models, health, load, version, tokenizer, metrics."""

from __future__ import annotations

import uuid

import octavo
from octavo.server.anthropic.models import model_info, model_page
from octavo.server.dialects import is_anthropic
from octavo.server.http.exchange import Exchange
from octavo.server.merged_metrics import Family, families_of, rendered
from octavo.server.openai.protocol.models import ModelCard, ModelList, ModelPermission, VersionReply
from octavo.server.protocol.admin import LoadReply
from octavo.server.state import ServerState


class InfoHandlers:
    def __init__(self, state: ServerState) -> None:
        self._state = state
        state.siblings.offer("metrics", self._own_metrics)
        state.siblings.offer("load", self._own_load)

    async def models(self, exchange: Exchange) -> None:
        models = self._state.models
        if is_anthropic(exchange.scope):
            await exchange.send_json(model_page(models))
        else:
            await exchange.send_json(ModelList([self._card(name) for name in models.names]))

    async def model(self, exchange: Exchange) -> None:
        name = exchange.path_params[0]
        if is_anthropic(exchange.scope):
            await exchange.send_json(model_info(self._state.models.resolve(name)))
        else:
            await exchange.send_json(self._card(name))

    def _card(self, name: str) -> ModelCard:
        lease = self._state.models.resolve(name)
        model = lease.model
        permission = ModelPermission(f"modelperm-{uuid.uuid4().hex}", model.created)
        root, adapter = model.root or model.names[0], model.adapter
        if adapter is not None:
            return ModelCard(
                lease.name, adapter.created, adapter.source, model.info.max_model_len, [permission],
                parent=model.names[0],
            )  # fmt: skip
        return ModelCard(lease.name, model.created, root, model.info.max_model_len, [permission])

    async def health(self, exchange: Exchange) -> None:
        """200 and nothing while the engine lives; 503 when it is dead or hangs. A server that drains is alive."""
        if not self._state.models.default.engine.is_healthy:
            self._state.check_available()
        await exchange.send_bytes(b"", 200, [])

    async def ready(self, exchange: Exchange) -> None:
        """As health, and 503 while the server drains: no new work should be sent here."""
        self._state.check_available()
        await exchange.send_bytes(b"", 200, [])

    async def version(self, exchange: Exchange) -> None:
        await exchange.send_json(VersionReply(octavo.__version__))

    async def load(self, exchange: Exchange) -> None:
        await exchange.send_json(LoadReply(sum(await self._state.siblings.everywhere("load"))))

    async def _own_load(self) -> int:
        return sum(model.engine.num_unfinished for model in self._state.models.all)

    async def tokenizer_info(self, exchange: Exchange) -> None:
        await exchange.send_bytes(
            self._state.models.default.tokenizer_info, 200, [(b"content-type", b"application/json")]
        )

    async def metrics(self, exchange: Exchange) -> None:
        if self._state.siblings.count == 1:
            body, content_type = self._state.metrics.render()
        else:
            body, content_type = rendered(await self._state.siblings.everywhere("metrics"))
        await exchange.send_bytes(body, 200, [(b"content-type", content_type.encode())])

    async def _own_metrics(self) -> list[Family]:
        return families_of(self._state.metrics.registry)
