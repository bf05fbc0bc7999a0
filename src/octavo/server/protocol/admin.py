"""The bodies of the routes for administrators, and of /load."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from octavo.base.errors import InvalidRequest
from octavo.server.openai.protocol.common import WireModel


class AbortRequest(WireModel):
    """Either the ids of requests, or `all`."""

    request_ids: list[str] | None = None
    all: bool | None = None

    def wanted(self) -> frozenset[str] | None:
        """The ids; None: all. Raises `InvalidRequest`."""
        if bool(self.request_ids) == bool(self.all):
            raise InvalidRequest("Either `request_ids` or `all` should be given.", "request_ids")
        return frozenset(self.request_ids or ()) if not self.all else None


class AbortReply(msgspec.Struct):
    aborted: int  # requests that were running or waiting


class ProfileRequest(WireModel):
    """The body may be left out."""

    torch: bool | None = None  # what torch does is recorded too, unless false; it costs far more than the steps alone


class ProfileReply(msgspec.Struct):
    files: list[str]  # on the server's machine
    steps: int
    steps_not_recorded: int  # behind the most that a recording holds


class SleepQuery(WireModel):
    level: Literal["1", "2"] = "1"
    mode: Literal["abort", "wait"] = "abort"  # what becomes of requests in flight


class WakeQuery(WireModel):
    tags: list[str] | None = None  # "weights" and "kv_cache", or left out: octavo wakes them together


class SleepState(msgspec.Struct):
    is_sleeping: bool


class ServerInfo(msgspec.Struct):
    version: str
    config: dict[str, Any]  # the settings by group; secrets are hidden
    engines: dict[str, Any]  # by a model's first name: what the engine chose


class LoadReply(msgspec.Struct):
    server_load: int  # sequences that run or wait


class LoadAdapterRequest(WireModel):
    lora_name: str
    lora_path: str  # on the server's machine, or a hub id
    load_inplace: bool = False  # in the place of one that has the name


class UnloadAdapterRequest(WireModel):
    lora_name: str = ""
    lora_int_id: int | None = None  # vLLM's number, of which octavo has none
