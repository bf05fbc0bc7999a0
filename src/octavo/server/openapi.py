"""The API's own description: /openapi.json (OpenAPI 3.1) and /docs, a page that shows it.

Request schemas come from the models that check the bodies, reply schemas from the structs that are encoded, paths from
the table of routes: the description cannot differ from the server. Both documents are made on the first request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import msgspec
from pydantic.json_schema import models_json_schema

import octavo
from octavo.server.anthropic.errors import MessagesError
from octavo.server.http.exchange import Exchange
from octavo.server.http.routing import Route
from octavo.server.keys import open_paths
from octavo.server.ollama.errors import OllamaError
from octavo.server.openai.limits import add_bounds, json_bounds
from octavo.server.openai.protocol.common import WireModel
from octavo.server.openai.protocol.completions import CompletionRequest
from octavo.server.state import ServerState

_REF = "#/components/schemas/{name}"
#: The page is one file of ours: it may run its own script, ask this server, and nothing else.
_PAGE_POLICY = (
    b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ERRORS = {
    "400": "The request is at fault; the error names the field",
    "401": "No valid key was sent",
    "403": "Another key than the administrators' was sent",
    "404": "There is no such model, or nothing of that id",
    "410": "An administrator ended the request",
    "413": "The body is too large",
    "429": "Too many requests are waiting",
    "500": "The server is at fault",
    "503": "The server drains, or its engine is dead",
    "529": "Too many requests are waiting",
}


class DocumentHandlers:
    """`routes` are those that the document describes."""

    def __init__(self, state: ServerState, routes: Sequence[Route]) -> None:
        self._state = state
        self._routes = routes

    async def openapi(self, exchange: Exchange) -> None:
        await exchange.send_bytes(self._json, 200, [(b"content-type", b"application/json")])

    async def page(self, exchange: Exchange) -> None:
        headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", _PAGE_POLICY),
            (b"x-content-type-options", b"nosniff"),
        ]
        await exchange.send_bytes(self._page, 200, headers)

    @cached_property
    def _json(self) -> bytes:
        return msgspec.json.encode(document(self._state, self._routes))

    @cached_property
    def _page(self) -> bytes:
        page = Path(__file__).with_name("docs.html").read_bytes()
        # The page contains the document: a second request would need the key again. JSON in a script element must
        # not end it, nor begin a comment.
        return page.replace(b"{{document}}", self._json.replace(b"<", rb"\u003c"))


def document(state: ServerState, routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document as plain data."""
    used = {body for route in routes if (body := route.body or route.form) is not None}
    bodies = sorted(used, key=lambda model: model.__name__)
    schemas = _body_schemas(bodies, state) | _reply_schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, state)
    components: dict[str, Any] = {"schemas": schemas}
    if state.config.api_key or state.config.admin_api_key is not None:
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "plain_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "octavo",
            "version": octavo.__version__,
            "description": f"Serves {state.models.default.names[0]} over the OpenAI HTTP API.",
        },
        "servers": [{"url": state.config.root_path or "/"}],
        "paths": paths,
        "components": components,
    }


def _needs_key(route: Route, state: ServerState) -> bool:
    return route.for_admins or (bool(state.config.api_key) and route.path not in open_paths(state.config))


def _operation(route: Route, state: ServerState) -> dict[str, Any]:
    name = route.path.strip("/").replace("/", "_").replace("{", "").replace("}", "") or "root"
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}_{name}",
        "summary": route.summary,
        "tags": [_tag(route)],
        "responses": {"200": _reply(route)},
    }
    codes = ["500", "503"]
    if (body := route.body or route.form) is not None:
        schema = {"$ref": _REF.format(name=body.__name__)}
        kind = "application/json" if route.form is None else "multipart/form-data"
        operation["requestBody"] = {"required": True, "content": {kind: {"schema": schema}}}
        codes = ["400", "404", "413", "429", *codes]
    if names := re.findall(r"\{([^}]*)\}", route.path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
        codes = ["404", *codes]
    if route.error is MessagesError:
        codes = ["529", *codes]
    if route.query is not None:
        operation["parameters"] = [*operation.get("parameters", ()), *_query_parameters(route.query)]
    if names or route.query is not None:
        codes = ["400", *codes]
    if route.event is not None and state.config.admin_api_key is not None:
        codes = ["410", *codes]
    if _needs_key(route, state):
        operation["security"] = [{"key": []}, {"plain_key": []}]
        codes = ["401", *(["403"] if route.for_admins else []), *codes]
    error = {"application/json": {"schema": {"$ref": _REF.format(name=route.error.__name__)}}}
    for code in sorted(set(codes)):
        operation["responses"][code] = {"description": _ERRORS[code], "content": error}
    return operation


def _query_parameters(query: type[WireModel]) -> list[dict[str, Any]]:
    schema = query.model_json_schema(ref_template=_REF.replace("name", "model"))
    return [{"name": name, "in": "query", "schema": prop} for name, prop in schema["properties"].items()]


def _tag(route: Route) -> str:
    """Whose API it is."""
    if route.error is MessagesError:
        return "Anthropic"
    if route.error is OllamaError:
        return "Ollama"
    return "OpenAI" if route.path.startswith("/v1/") else "octavo"


def _alternatives(event: Any) -> tuple[Any, ...]:
    """The structs of a union, or the one that it is; none of None."""
    return () if event is None else get_args(event) or (event,)


def _reply(route: Route) -> dict[str, Any]:
    if route.reply is None:
        return {"description": "OK"} | ({"content": {route.media_type: {}}} if route.media_type else {})
    replies = [{"$ref": _REF.format(name=reply.__name__)} for reply in _alternatives(route.reply)]
    schema = replies[0] if len(replies) == 1 else {"anyOf": replies}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if route.event is not None:
        # What one `data:` line holds, or one line; the last is `[DONE]` in OpenAI's API.
        names = [event.__name__ for event in _alternatives(route.event)]
        content[route.stream_type] = {"x-event": names[0] if len(names) == 1 else names}
    return {"description": "OK", "content": content}


def _body_schemas(models: Sequence[type[WireModel]], state: ServerState) -> dict[str, Any]:
    _, schema = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REF.replace("name", "model")
    )
    found: dict[str, Any] = schema.get("$defs", {})
    bounds = json_bounds(state.config, state.models.default.info)
    for model in models:
        scores_only = {"max_tokens": {"minimum": 0}} if model is CompletionRequest else {}
        add_bounds(found[model.__name__], bounds | scores_only)
    return found


def _reply_schemas(routes: Sequence[Route]) -> dict[str, Any]:
    types = [
        each
        for route in routes
        for each in (*_alternatives(route.reply), route.error, *_alternatives(route.event))
        if each is not None
    ]
    _, schemas = msgspec.json.schema_components([*dict.fromkeys(types)], ref_template=_REF)
    return schemas
