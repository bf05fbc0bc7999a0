"""Routes for administrators: what changes the server, or tells how it was started. They need an admin key."""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import Any

import msgspec

import octavo
from octavo.base.command_line import HIDDEN
from octavo.base.errors import InvalidRequest
from octavo.server.http.errors import validate_body
from octavo.server.http.exchange import Exchange, decode_json
from octavo.server.http.routing import Handler, Route
from octavo.server.keys import check_admin
from octavo.server.protocol.admin import AbortReply, AbortRequest, ProfileReply, ProfileRequest, ServerInfo
from octavo.server.sleep import SleepHandlers
from octavo.server.state import ServerState

logger = logging.getLogger(__name__)


class AdminHandlers:
    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._siblings = state.siblings
        self._is_profiling = False
        self._siblings.offer("abort", self._abort)
        self._siblings.offer("note_profiling", self._note_profiling)

    def routes(self) -> list[Route]:
        reset = Route("POST", "/reset_prefix_cache", self.reset_prefix_cache, "Forget all cached prompts")
        abort = Route("POST", "/abort_requests", self.abort, "End requests", AbortRequest, AbortReply)
        info = Route("GET", "/server_info", self.server_info, "Settings and facts of the server", reply=ServerInfo)
        table = [reset, abort, info]
        if self._state.config.profiler_dir is not None:
            table.append(Route("POST", "/start_profile", self.start_profile, "Record steps", ProfileRequest))
            table.append(
                Route("POST", "/stop_profile", self.stop_profile, "Write the steps recorded", reply=ProfileReply)
            )
        if self._state.config.enable_sleep_mode:
            table += SleepHandlers(self._state).routes()
        return [dataclasses.replace(route, handler=_for_admins(route.handler), for_admins=True) for route in table]

    async def reset_prefix_cache(self, exchange: Exchange) -> None:
        """200 and nothing. Requests that run keep their blocks; no later request finds them."""
        for model in self._state.models.all:
            if not model.engine.sleep_mode.is_asleep:  # it has none then
                model.check_available()
                await model.engine.reset_prefix_cache()
        logger.info("the prefix cache was reset, as an administrator asked")
        await exchange.send_bytes(b"", 200, [])

    async def abort(self, exchange: Exchange) -> None:
        request = validate_body(AbortRequest, await exchange.read_json())
        wanted = request.wanted()
        count = sum(await self._siblings.everywhere("abort", None if wanted is None else list(wanted)))
        logger.info("%d requests were ended, as an administrator asked", count)
        await exchange.send_json(AbortReply(count))

    async def _abort(self, wanted: list[str] | None) -> int:
        matches = (lambda external_id: True) if wanted is None else _IdMatch(frozenset(wanted))
        return sum(model.abort(matches) for model in self._state.models.all)

    async def start_profile(self, exchange: Exchange) -> None:
        """200 and nothing, when the recording runs."""
        body = await exchange.read_body()
        request = validate_body(ProfileRequest, decode_json(body, exchange.limits.max_depth) if body.strip() else {})
        directory = self._state.config.profiler_dir
        assert directory is not None, "the route exists with --profiler-dir only"
        engine = self._state.models.default.engine
        async with self._siblings.alone("profile"):
            if self._is_profiling:
                raise InvalidRequest("A profile is being recorded already; see /stop_profile.")
            await engine.start_profile(directory, with_torch=request.torch is not False)
            await self._siblings.everywhere("note_profiling", True)
        await exchange.send_bytes(b"", 200, [])

    async def stop_profile(self, exchange: Exchange) -> None:
        async with self._siblings.alone("profile"):
            if not self._is_profiling:
                raise InvalidRequest("No profile is being recorded; see /start_profile.")
            await self._siblings.everywhere("note_profiling", False)
            recorded = await self._state.models.default.engine.stop_profile()
        await exchange.send_json(ProfileReply(**recorded))

    async def _note_profiling(self, is_profiling: bool) -> None:
        self._is_profiling = is_profiling

    async def server_info(self, exchange: Exchange) -> None:
        engine = self._state.engine_config
        parts = {field.name: getattr(engine, field.name) for field in dataclasses.fields(engine)}
        config = {name: _plain(part) for name, part in {**parts, "server": self._state.config}.items()}
        engines = {model.names[0]: msgspec.structs.asdict(model.info) for model in self._state.models.all}
        await exchange.send_json(ServerInfo(octavo.__version__, config, engines))


def _for_admins(handler: Handler) -> Handler:
    async def checked(exchange: Exchange) -> None:
        check_admin(exchange)
        await handler(exchange)

    return checked


class _IdMatch:
    """Which public ids the given ones mean: a reply's `id`, or the request's id that it was made of."""

    def __init__(self, wanted: frozenset[str]) -> None:
        self._wanted = wanted

    def __call__(self, public_id: str) -> bool:
        # The request's id stands behind `chatcmpl-`, `msg_` and the like.
        return public_id in self._wanted or re.sub("^[a-z]+[-_]", "", public_id) in self._wanted


def _plain(config: Any) -> dict[str, Any]:
    """The fields of a configuration, without its secrets."""
    values = {field: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {field.name: HIDDEN if field.metadata.get("secret") and value else value for field, value in values.items()}
