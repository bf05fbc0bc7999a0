"""What the endpoints that generate share: the body, the reply's id and headers, and how a reply is sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from octavo.base.errors import InvalidRequest, clip
from octavo.base.log import current_request_id
from octavo.base.suggest import nearest
from octavo.served.model import Prepared, ServedModel
from octavo.server.http.errors import validate_body
from octavo.server.http.exchange import Exchange
from octavo.server.http.framing import OPENAI_EVENTS, Framing
from octavo.server.http.middleware import TRACE_HEADERS
from octavo.server.http.pacing import KeepAlive
from octavo.server.http.streaming import ReplyEncoder, send_whole, stream_events
from octavo.server.openai.logprobs import TokenNames
from octavo.server.openai.protocol.common import (
    Refusals,
    SamplingFields,
    WireModel,
    ignored_below,
    ignored_fields,
    refuse_unsupported,
)
from octavo.server.state import ServerState

MAX_IGNORED_NAMES = 16
IGNORED_FIELDS = b"x-octavo-ignored-fields"

M = TypeVar("M", bound=WireModel)
_UNSAFE_IN_HEADER = re.compile(r"[^A-Za-z0-9_.-]")


class Serving:
    """What the handlers hold. Has no state of requests."""

    def __init__(self, state: ServerState) -> None:
        self.state = state

    async def read(
        self, exchange: Exchange, model: type[M], refusals: Refusals, *, any_type: bool = False
    ) -> tuple[dict[str, Any], M]:
        """The body as decoded and as validated. Names of ignored fields go into the reply's headers."""
        body = await exchange.read_json(any_type=any_type)
        request = validate_body(model, body)
        refuse_unsupported(body, refusals)
        if ignored := [*ignored_fields(body, model, refusals), *ignored_below(body, request)]:
            if self.state.config.strict_requests:
                name = clip(ignored[0], 64)
                hint = "" if "." in name else nearest(name, model.model_fields)
                raise InvalidRequest(f"There is no field `{name}`{hint}", name)
            self.note_ignored(exchange, ignored)
        return body, request

    def note_ignored(self, exchange: Exchange, names: Sequence[str]) -> None:
        """Add names of ignored fields to the reply's header, behind those already there."""
        text = ", ".join(_UNSAFE_IN_HEADER.sub("?", name[:64]) for name in names[:MAX_IGNORED_NAMES]).encode()
        for i, (header, before) in enumerate(exchange.extra_headers):
            if header == IGNORED_FIELDS:
                exchange.extra_headers[i] = (header, before + b", " + text)
                return
        exchange.extra_headers.append((IGNORED_FIELDS, text))

    def names(self, model: ServedModel, as_ids: bool | None = None) -> TokenNames:
        """How the reply names its tokens. `as_ids`: what the request says of it."""
        return TokenNames(model.texts, self.state.config.return_tokens_as_token_ids if as_ids is None else as_ids)

    def usage_events(self, request: SamplingFields) -> tuple[bool, bool]:
        """Whether a stream ends with its usage, and whether each chunk carries it."""
        forced = self.state.config.enable_force_include_usage
        return forced or request.include_usage, request.continuous_usage

    def gives_metrics(self, request: SamplingFields) -> bool:
        """Whether the reply tells the times of the request."""
        asked = request.include_metrics
        return self.state.config.enable_per_request_metrics if asked is None else asked

    def trace_headers(self, exchange: Exchange) -> tuple[tuple[str, str], ...]:
        """What the caller says of the trace that the request is a part of; nothing where none are sent."""
        if self.state.config.otlp_traces_endpoint is None:
            return ()
        found = ((name.decode(), exchange.header(name)) for name in TRACE_HEADERS)
        return tuple((name, value) for name, value in found if value is not None)

    async def send(
        self,
        exchange: Exchange,
        model: ServedModel,
        prepared: Prepared,
        encoder: ReplyEncoder,
        *,
        streams: bool,
        framing: Framing = OPENAI_EVENTS,
        interval: int | None = None,  # tokens of a sample in one event; None: as the server says
    ) -> None:
        """Generate, and send the reply: piece by piece, or whole."""
        if not streams or prepared.is_ranked:
            await send_whole(exchange, encoder.whole(*await model.whole(prepared)), streams)
            return
        config = self.state.config
        keep_alive = KeepAlive(exchange, config.sse_keep_alive_interval, framing)
        async with aclosing(model.generate(prepared, interval or config.stream_interval)) as news:
            await stream_events(exchange, news, encoder.events, keep_alive, encoder.last_events)


def reply_id(prefix: str, exchange: Exchange, request: SamplingFields) -> str:
    """The reply's id ends in the request's: that of the `X-Request-Id` header, else the body's, else a new one.

    What the body says becomes the reply's header too.
    """
    if request.request_id is not None and not exchange.scope["octavo.request_id_given"]:
        exchange.scope["octavo.request_id"] = request.request_id
        current_request_id.set(request.request_id)
    return f"{prefix}-{exchange.scope['octavo.request_id']}"
