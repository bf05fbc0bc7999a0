"""POST /v1/embeddings, /pooling, /classify, /score and /rerank: from the body to texts, and the replies."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any, Final

from msgspec import UNSET

from octavo.base.errors import InvalidRequest, clip
from octavo.base.params import PoolingParams
from octavo.base.suggest import nearest
from octavo.served.model import ServedModel
from octavo.served.models import Lease
from octavo.served.pooling import PooledText, TextsTurn, pool, pooling_info, score
from octavo.served.turn import Continuation, Conversation
from octavo.server.http.exchange import Exchange
from octavo.server.http.routing import Route
from octavo.server.openai.conversation import conversation_of, note_unheard
from octavo.server.openai.protocol import pooling as body
from octavo.server.openai.protocol.conversation import check_prompt_options
from octavo.server.openai.serving import Serving

_KINDS: Final[dict[str, Any]] = {"CLS": "cls", "LAST": "last", "MEAN": "mean", "ALL": "all"}


def pooling_routes(serving: Serving) -> list[Route]:
    texts = TextHandlers(serving)
    embeddings = (body.EmbeddingRequest, body.EmbeddingReply)
    scores, ranks = (body.ScoreRequest, body.ScoreReply), (body.RerankRequest, body.RerankReply)
    return [
        Route("POST", "/v1/embeddings", texts.embeddings, "Vectors of texts", *embeddings),
        Route("POST", "/pooling", texts.pooling, "Vectors of texts or tokens", body.PoolingRequest, body.PoolingReply),
        Route("POST", "/classify", texts.classify, "Classes of texts", body.ClassifyRequest, body.ClassifyReply),
        *(Route("POST", path, texts.score, "Scores of pairs of texts", *scores) for path in ("/score", "/v1/score")),
        *(
            Route("POST", path, texts.rerank, "Order documents by a query", *ranks)
            for path in ("/rerank", "/v1/rerank", "/v2/rerank")
        ),
    ]


class TextHandlers:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    # ------------------------------------------------------------ vectors and classes
    async def embeddings(self, exchange: Exchange) -> None:
        given, request = await self._serving.read(exchange, body.EmbeddingRequest, body.EMBEDDING_REFUSALS)
        lease = self._began(request.model)
        info = pooling_info(lease.model)
        if info.classes:
            raise InvalidRequest("The model gives classes and no embeddings: use /classify or /score.", "model")
        if info.kind == "all":
            raise InvalidRequest("The model gives a vector for each token: use /pooling.", "model")
        normalize = request.use_activation if request.normalize is None else request.normalize
        wanted = PoolingParams(dimensions=request.dimensions, normalize=normalize)
        found = await self._pooled(exchange, lease, given, request, wanted, "embd")
        data = [
            body.EmbeddingData(at, _encoded(each) if request.encoding_format == "base64" else each.floats())
            for at, each in enumerate(found)
        ]
        await exchange.send_json(
            body.EmbeddingReply(_id("embd", exchange), int(time.time()), lease.name, data, _usage(found))
        )

    async def pooling(self, exchange: Exchange) -> None:
        given, request = await self._serving.read(exchange, body.PoolingRequest, body.EMBEDDING_REFUSALS)
        lease = self._began(request.model)
        info = pooling_info(lease.model, "Pooling")
        if request.task == "classify" and not info.classes:
            raise InvalidRequest("The model has no classes.", "task")
        kind: Any = "all" if request.task == "token_embed" else _KINDS.get(request.pooling_type or "", "")
        if info.classes and kind:
            raise InvalidRequest("The model gives classes, which are made as its files say.", "pooling_type")
        active = request.activation if request.use_activation is None else request.use_activation
        normalize = active if request.normalize is None else request.normalize
        wanted = PoolingParams(kind=kind, dimensions=request.dimensions, normalize=normalize, activation=active)
        found = await self._pooled(exchange, lease, given, request, wanted, "pool")
        by_token = (kind or info.kind) == "all"
        width = request.dimensions or info.hidden_size
        data: list[body.PoolingData] = []
        for at, each in enumerate(found):
            values: list[Any] = each.rows(width) if by_token else each.floats()
            data.append(body.PoolingData(at, _encoded(each) if request.encoding_format == "base64" else values))
        await exchange.send_json(
            body.PoolingReply(_id("pool", exchange), int(time.time()), lease.name, data, _usage(found))
        )

    async def classify(self, exchange: Exchange) -> None:
        given, request = await self._serving.read(exchange, body.ClassifyRequest, {})
        lease = self._began(request.model)
        info = pooling_info(lease.model, "Classification")
        if not info.classes:
            raise InvalidRequest("The model does not support the Classification API: it has no classes.", "model")
        active = request.activation if request.use_activation is None else request.use_activation
        found = await self._pooled(exchange, lease, given, request, PoolingParams(activation=active), "classify")
        data = []
        for at, each in enumerate(found):
            values = each.floats()
            best = max(range(len(values)), key=values.__getitem__)
            data.append(body.ClassifyData(at, info.labels[best], values, len(values)))
        await exchange.send_json(
            body.ClassifyReply(_id("classify", exchange), int(time.time()), lease.name, data, _usage(found))
        )

    # ------------------------------------------------------------ pairs
    async def score(self, exchange: Exchange) -> None:
        _, request = await self._serving.read(exchange, body.ScoreRequest, {})
        lease = self._began(request.model)
        pairs = _pairs(request)
        active = request.activation if request.use_activation is None else request.use_activation
        turn = self._turn(exchange, request, "score", "text_2", PoolingParams(activation=active))
        async with exchange.cancelled_on_disconnect():
            scores = await score(lease.model, turn, pairs)
            data = [body.ScoreData(at, value) for at, value in enumerate(scores.values)]
            usage = body.TextUsage(scores.num_tokens, scores.num_tokens)
            await exchange.send_json(body.ScoreReply(_id("score", exchange), int(time.time()), lease.name, data, usage))

    async def rerank(self, exchange: Exchange) -> None:
        """Cohere's clients expect `meta` and no documents; Jina's get these unless they say otherwise."""
        _given, request = await self._serving.read(exchange, body.RerankRequest, body.RERANK_REFUSALS)
        lease = self._began(request.model)
        if request.top_n is not None and request.top_n < 0:
            raise InvalidRequest("`top_n` must be at least 0.", "top_n")
        documents = [each if isinstance(each, str) else each.text for each in request.documents]
        active = request.activation if request.use_activation is None else request.use_activation
        turn = self._turn(exchange, request, "rerank", "documents", PoolingParams(activation=active))
        async with exchange.cancelled_on_disconnect():
            scores = await score(lease.model, turn, [(request.query, document) for document in documents])
            is_cohere = exchange.path.startswith("/v2/")
            shows = not is_cohere if request.return_documents is None else request.return_documents
            order = sorted(range(len(documents)), key=lambda at: -scores.values[at])
            results = [
                body.RerankResult(at, scores.values[at], body.RerankDocument(documents[at]) if shows else UNSET)
                for at in order[: request.top_n or None]
            ]
            usage = body.TextUsage(scores.num_tokens, scores.num_tokens)
            reply = body.RerankReply(_id("rerank", exchange), lease.name, results, usage)
            if is_cohere:
                reply.meta = body.RerankMeta({"version": "2", "is_experimental": False}, body.BilledUnits())
            await exchange.send_json(reply)

    # ------------------------------------------------------------ what they share
    def _began(self, name: str | None) -> Lease:
        self._serving.state.check_available()
        return self._serving.state.models.resolve(name)

    def _turn(
        self, exchange: Exchange, request: Any, prefix: str, param: str, wanted: PoolingParams, **values: Any
    ) -> TextsTurn:
        return TextsTurn(
            request_id=_id(prefix, exchange),
            param=param,
            wanted=wanted,
            truncate=request.truncate_prompt_tokens,
            priority=request.priority or 0,
            cache_salt=request.cache_salt or "",
            trace_headers=self._serving.trace_headers(exchange),
            **{"texts": (), **values},
        )

    async def _pooled(
        self,
        exchange: Exchange,
        lease: Lease,
        given: dict[str, Any],
        request: body.InputFields,
        wanted: PoolingParams,
        prefix: str,
    ) -> list[PooledText]:
        if (request.input is None) == (request.messages is None):
            raise InvalidRequest("Either `input` or `messages` should be given.", "input")
        param = "input" if request.messages is None else "messages"
        texts: Sequence[Continuation | Conversation]
        if request.messages is not None:
            check_prompt_options(given)
            note_unheard(self._serving, lease.model, exchange, request)
            conversation = conversation_of(request, request.messages, self._serving.state.config)
            texts = [conversation]
        else:
            prefix_text = prompt_of(lease.model, request.prompt_name)
            texts = texts_of(request.input, prefix_text, special=request.add_special_tokens is not False)
        turn = self._turn(exchange, request, prefix, param, wanted, texts=texts)
        async with exchange.cancelled_on_disconnect():
            return await pool(lease.model, turn)


def prompt_of(model: ServedModel, name: str | None) -> str:
    """What stands in front of a text: the model's prompt of this name, or its default one."""
    info = pooling_info(model)
    if name is None:
        return info.prompts.get(info.default_prompt or "", "")
    if name not in info.prompts:
        names = ", ".join(sorted(info.prompts)) or "none"
        raise InvalidRequest(
            f"The model has no prompt {clip(name, 64)!r}{nearest(name, info.prompts)}; it has: {names}.", "prompt_name"
        )
    return info.prompts[name]


def texts_of(given: Any, prefix: str = "", *, special: bool = True) -> list[Continuation]:
    """A text, texts, ids, or lists of ids."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not given:
        raise InvalidRequest("`input` is empty.", "input")
    return [
        Continuation(prompt=prefix + each if isinstance(each, str) and each else each, add_special_tokens=special)
        for each in given
    ]


def _pairs(request: body.ScoreRequest) -> list[tuple[str, str]]:
    first = request.text_1 if request.text_1 is not None else request.queries
    second = request.text_2 if request.text_2 is not None else request.documents
    if first is None or second is None:
        name = "text_1" if first is None else "text_2"
        raise InvalidRequest("Both `text_1` and `text_2` (or `queries` and `documents`) should be given.", name)
    ones = [first] if isinstance(first, str) else first
    others = [second] if isinstance(second, str) else second
    if not ones or not others:
        raise InvalidRequest("At least one text should be given.", "text_1" if not ones else "text_2")
    if len(ones) != len(others) and len(ones) != 1:
        raise InvalidRequest(
            f"`text_1` has {len(ones)} texts and `text_2` {len(others)}: give one, or as many on both sides.", "text_1"
        )
    return list(zip(ones * len(others) if len(ones) == 1 else ones, others, strict=True))


def _encoded(result: PooledText) -> str:
    return base64.b64encode(result.values).decode()


def _usage(found: Sequence[PooledText]) -> body.TextUsage:
    count = sum(each.num_tokens for each in found)
    return body.TextUsage(count, count)


def _id(prefix: str, exchange: Exchange) -> str:
    return f"{prefix}-{exchange.scope['octavo.request_id']}"
