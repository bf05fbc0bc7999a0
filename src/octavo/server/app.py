"""The ASGI application: the table of routes inside the layers that surround every request."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence

from octavo.server.adapters import adapter_routes
from octavo.server.admin import AdminHandlers
from octavo.server.anthropic.routes import anthropic_routes
from octavo.server.dialects import error_shape
from octavo.server.generate import generate_routes
from octavo.server.http.exchange import ASGIApp, Receive, Scope, Send
from octavo.server.http.middleware import HostCheck, RequestScope, allowed_hosts
from octavo.server.http.routing import Route, Router
from octavo.server.info import InfoHandlers
from octavo.server.keys import Authentication
from octavo.server.llamacpp.routes import llamacpp_routes
from octavo.server.metrics import StatsLogger
from octavo.server.ollama.routes import ollama_routes
from octavo.server.openai.audio import AudioHandler
from octavo.server.openai.chat import ChatHandler
from octavo.server.openai.chat_batch import ChatBatchHandler
from octavo.server.openai.completions import CompletionHandler
from octavo.server.openai.invocations import InvocationsHandler
from octavo.server.openai.limits import body_limits
from octavo.server.openai.pooling import pooling_routes
from octavo.server.openai.protocol.audio import (
    TranscriptionForm,
    TranscriptionReply,
    TranscriptTextDelta,
    TranscriptTextDone,
    TranslationForm,
)
from octavo.server.openai.protocol.chat import ChatBatchRequest, ChatChunk, ChatReply, ChatRequest
from octavo.server.openai.protocol.completions import CompletionReply, CompletionRequest
from octavo.server.openai.protocol.models import ModelCard, ModelList, VersionReply
from octavo.server.openai.protocol.tokenize import (
    TOKENIZED,
    DetokenizeReply,
    DetokenizeRequest,
    InputTokens,
    TemplateReply,
    TemplateRequest,
    TokenizeRequest,
)
from octavo.server.openai.serving import Serving
from octavo.server.openai.tokenization import ChatTokensHandler, DetokenizeHandler, TemplateHandler, TokenizeHandler
from octavo.server.openapi import DocumentHandlers
from octavo.server.plugins import with_middleware
from octavo.server.protocol.admin import LoadReply
from octavo.server.responses.routes import responses_routes
from octavo.server.state import ServerState
from octavo.server.ui import PageHandler

__all__ = ["ServerState", "create_app", "routes"]

logger = logging.getLogger(__name__)

_SLASHES = re.compile("/{2,}")


def routes(state: ServerState) -> list[Route]:
    """Every route of the server."""
    serving = Serving(state)
    info = InfoHandlers(state)
    chat, complete = ChatHandler(serving), CompletionHandler(serving)
    tokenize, detokenize = TokenizeHandler(serving), DetokenizeHandler(serving)
    template, batch = TemplateHandler(serving), ChatBatchHandler(serving)
    table = [
        Route("POST", "/v1/chat/completions", chat, "Answer a conversation", ChatRequest, ChatReply, ChatChunk),
        Route("POST", "/v1/chat/completions/batch", batch, "Answer conversations", ChatBatchRequest, ChatReply),
        Route(
            "POST", "/v1/completions", complete, "Complete a text", CompletionRequest, CompletionReply, CompletionReply
        ),
        Route(
            "POST",
            "/v1/chat/completions/input_tokens",
            ChatTokensHandler(serving),
            "Count the tokens of a conversation",
            ChatRequest,
            InputTokens,
        ),
        Route(
            "POST",
            "/v1/audio/transcriptions",
            AudioHandler(serving, "transcribe"),
            "Write down what is said in a sound",
            reply=TranscriptionReply,
            event=TranscriptTextDelta | TranscriptTextDone,
            form=TranscriptionForm,
        ),
        Route(
            "POST",
            "/v1/audio/translations",
            AudioHandler(serving, "translate"),
            "Write down in English what is said in a sound",
            reply=TranscriptionReply,
            event=TranscriptTextDelta | TranscriptTextDone,
            form=TranslationForm,
        ),
        *pooling_routes(serving),
        *responses_routes(serving),
        Route(
            "POST",
            "/invocations",
            InvocationsHandler(chat, complete),
            "Chat or text completion, by the body's shape",
            ChatRequest,
            ChatReply,
            ChatChunk,
        ),
        *anthropic_routes(serving),
        *ollama_routes(serving),
        *llamacpp_routes(serving),
        *generate_routes(serving),
        Route("GET", "/v1/models", info.models, "List the models", reply=ModelList),
        Route("GET", "/v1/models/{model}", info.model, "Describe one model", reply=ModelCard),
        Route("POST", "/tokenize", tokenize, "Text or messages to token ids", TokenizeRequest, TOKENIZED),
        Route("POST", "/detokenize", detokenize, "Token ids to text", DetokenizeRequest, DetokenizeReply),
        Route("POST", "/apply-template", template, "Messages to the prompt's text", TemplateRequest, TemplateReply),
        Route("GET", "/health", info.health, "Is the engine alive?"),
        Route("GET", "/ready", info.ready, "Can requests be sent here?"),
        Route("GET", "/ping", info.health, "The same as /health"),
        Route("POST", "/ping", info.health, "The same as /health"),
        Route("GET", "/version", info.version, "The server's version", reply=VersionReply),
        Route("GET", "/load", info.load, "How many sequences run or wait", reply=LoadReply),
        Route("GET", "/metrics", info.metrics, "Prometheus metrics", media_type="text/plain"),
    ]
    if state.config.enable_tokenizer_info_endpoint:
        about = "The tokenizer's configuration, special tokens and chat template"
        table.append(Route("GET", "/tokenizer_info", info.tokenizer_info, about, media_type="application/json"))
    if not state.config.disable_ui:
        table.append(
            Route("GET", "/", PageHandler().page, "A page to chat and to watch the engine", media_type="text/html")
        )
    if state.config.admin_api_key is not None:
        table += AdminHandlers(state).routes()
    table += adapter_routes(state)
    if not state.config.disable_fastapi_docs:
        documents = DocumentHandlers(state, tuple(table))
        table.append(Route("GET", "/openapi.json", documents.openapi, "This document"))
        table.append(Route("GET", "/docs", documents.page, "This document as a page"))
        table.append(Route("GET", "/redoc", documents.page, "The same as /docs"))
    return table


def create_app(state: ServerState, table: Sequence[Route] | None = None) -> ASGIApp:
    """The application for one ready engine. The engines of `state.models` must be able to serve already.

    `table`: some of its routes; None: all.
    """
    table = routes(state) if table is None else table
    config = state.config
    app: ASGIApp = Router(table)
    if config.api_key or config.admin_api_key is not None:
        app = Authentication(app, config)
    if (hosts := allowed_hosts(config)) is not None:
        app = HostCheck(app, hosts)
    app = RequestScope(app, state.metrics, shape_of=error_shape, has_traces=config.otlp_traces_endpoint is not None)
    if config.allowed_origins:
        app = _with_cors(app, state)
    app = with_middleware(app, config.middleware)
    for route in table:
        logger.debug("route %s %s", route.method, route.path)
    return _Root(app, state)


def _with_cors(app: ASGIApp, state: ServerState) -> ASGIApp:
    from starlette.middleware.cors import CORSMiddleware  # rarely configured, and starlette is slow to import

    config = state.config
    if config.allow_credentials and "*" in config.allowed_origins:
        logger.warning("CORS: --allow-credentials has no effect, because --allowed-origins allows every origin")
    return CORSMiddleware(
        app,
        allow_origins=config.allowed_origins,
        allow_methods=config.allowed_methods,
        allow_headers=config.allowed_headers,
        allow_credentials=config.allow_credentials and "*" not in config.allowed_origins,
        expose_headers=["x-request-id", "request-id", "x-octavo-ignored-fields"],
    )


class _Root:
    """Dispatches ASGI scopes by kind, and removes the proxy's prefix from the path."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state
        self._limits = body_limits(state.config)
        self._prefix = "/" + state.config.root_path.strip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            inner = self._without_prefix(scope)
            inner["octavo.limits"] = self._limits
            await self._app(inner, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})

    def _without_prefix(self, scope: Scope) -> Scope:
        path = scope["path"]
        # Some proxies strip the prefix and some do not, and the HTTP server may add it again.
        while self._prefix != "/" and (path == self._prefix or path.startswith(self._prefix + "/")):
            path = path[len(self._prefix) :]
        # A base URL that ends in a slash, joined with a path that begins with one.
        return {**scope, "path": _SLASHES.sub("/", path) or "/"}

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        stats_log: asyncio.Task[None] | None = None
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                # Of several processes the first one hears of all steps.
                if not self._state.config.disable_log_stats and self._state.siblings.index == 0:
                    stats_log = asyncio.create_task(StatsLogger(self._state.metrics).run())
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                if stats_log is not None:
                    stats_log.cancel()
                await self._state.close()
                for model in self._state.models.all:
                    await model.close()
                await send({"type": "lifespan.shutdown.complete"})
                return
