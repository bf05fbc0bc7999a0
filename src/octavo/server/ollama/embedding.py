"""POST /api/embed and /api/embeddings, as Ollama has them."""

from __future__ import annotations

import time

from octavo.base.errors import InvalidRequest
from octavo.base.params import PoolingParams
from octavo.served.pooling import PooledText, TextsTurn, pool, pooling_info
from octavo.served.turn import Continuation
from octavo.server.http.exchange import Exchange
from octavo.server.ollama.models import resolve
from octavo.server.ollama.protocol import EmbeddingsReply, EmbeddingsRequest, EmbedReply, EmbedRequest
from octavo.server.openai.serving import Serving


class EmbeddingHandlers:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def embed(self, exchange: Exchange) -> None:
        """Texts that are too long are cut, unless `truncate` is false."""
        start = time.monotonic_ns()
        _, request = await self._serving.read(exchange, EmbedRequest, {}, any_type=True)
        texts = [request.input] if isinstance(request.input, str) else request.input
        cuts = request.truncate is not False
        name, found = await self._pooled(exchange, request.model, texts, "input", cuts, request.dimensions)
        spent = time.monotonic_ns() - start
        count = sum(each.num_tokens for each in found)
        await exchange.send_json(EmbedReply(name, [each.floats() for each in found], spent, 0, count))

    async def embeddings(self, exchange: Exchange) -> None:
        """The older route, of one text."""
        _, request = await self._serving.read(exchange, EmbeddingsRequest, {}, any_type=True)
        _, found = await self._pooled(exchange, request.model, [request.prompt], "prompt", True, None)
        await exchange.send_json(EmbeddingsReply(found[0].floats() if found else []))

    async def _pooled(
        self, exchange: Exchange, name: str, texts: list[str], param: str, cuts: bool, dimensions: int | None
    ) -> tuple[str, list[PooledText]]:
        self._serving.state.check_available()
        lease = resolve(self._serving.state.models, name)
        info = pooling_info(lease.model)
        if info.classes or info.kind == "all":
            raise InvalidRequest("The model gives no vectors of texts: use /classify, /score or /pooling.", "model")
        if not texts or texts == [""]:  # a client that only wants the model loaded
            return lease.name, []
        front = info.prompts.get(info.default_prompt or "", "")
        turn = TextsTurn(
            request_id=f"embd-{exchange.scope['octavo.request_id']}",
            texts=[Continuation(prompt=front + text if text else text) for text in texts],
            param=param,
            wanted=PoolingParams(dimensions=dimensions),
            is_ready_to_cut=cuts,
            trace_headers=self._serving.trace_headers(exchange),
        )
        async with exchange.cancelled_on_disconnect():
            return lease.name, await pool(lease.model, turn)
