"""The error for a path that does not exist: it suggests the nearest route, or names what octavo does not serve.

The status is always 404: OpenAI's clients take a 501 for a passing fault of the server and retry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from octavo.base.errors import clip
from octavo.base.suggest import suggest
from octavo.server.http.errors import RouteNotFound, RouteNotServed

_CHAT: Final = "/v1/chat/completions"
_TEXT: Final = "/v1/completions"
_MODELS: Final = "/v1/models"
_ADMIN: Final = ("administrators unless --admin-api-key is given", None)
_PROFILES: Final = ("profiles unless --profiler-dir and --admin-api-key are given", None)
_SLEEP: Final = ("sleep mode unless --enable-sleep-mode is given, and --admin-api-key", None)

#: The beginning of a path, behind prefixes like `/v1` -> what it is for, and the route that does the nearest to it.
NOT_SERVED: Final[dict[str, tuple[str, str | None]]] = {
    "assistants": ("the Assistants API", _CHAT),
    "threads": ("the Assistants API", _CHAT),
    "realtime": ("the Realtime API", _CHAT),
    "audio": ("audio", None),
    "images": ("images", None),
    "videos": ("videos", None),
    "moderations": ("moderations", None),
    "files": ("files", None),
    "uploads": ("files", None),
    "vector_stores": ("vector stores", None),
    "containers": ("containers", None),
    "batches": ("batches", "`octavo run-batch` for a file of requests"),
    "fine_tuning": ("fine-tuning", None),
    "evals": ("evaluations", None),
    "organization": ("the administration of organizations", None),
    "edits": ("edits", _CHAT),
    "engines": ("the Engines API", _MODELS),
    # of other servers
    "generate_stream": ("TGI's native API", _TEXT),
    "pull": ("downloads of models", None),
    "push": ("uploads of models", None),
    "create": ("making models", None),
    "copy": ("making models", None),
    "delete": ("removing models", None),
    "blobs": ("uploads of models", None),
    "slots": ("llama.cpp's slots here", "/metrics, or --slots for GET /slots"),
    "load_lora_adapter": ("adapters", None),
    "unload_lora_adapter": ("adapters", None),
    "sleep": _SLEEP,
    "wake_up": _SLEEP,
    "is_sleeping": _SLEEP,
    "pause": ("pauses", None),
    "resume": ("pauses", None),
    "collective_rpc": ("calls of its workers", None),
    "flush_cache": ("SGLang's native API", "/reset_prefix_cache, with --admin-api-key"),
    "reset_prefix_cache": _ADMIN,
    "abort_requests": _ADMIN,
    "abort_request": ("SGLang's native API", "/abort_requests, with --admin-api-key"),
    "server_info": _ADMIN,
    "start_profile": _PROFILES,
    "stop_profile": _PROFILES,
}  # fmt: skip

#: Prefixes in front of the part of a path that names a route.
_PREFIXES: Final = frozenset({"v1", "v2", "v3", "v1beta", "api", "openai", "inference"})
_MAX_QUOTED_CHARS: Final = 200


def unknown_route(path: str, routes: Sequence[str], is_known: Callable[[str], bool]) -> RouteNotFound:
    """The error for `path`, which leads nowhere. `routes`: the paths that do; `is_known`: does this one?"""
    shown = clip(path, _MAX_QUOTED_CHARS)
    if len(path) > _MAX_QUOTED_CHARS:
        return RouteNotFound(f"There is no route {shown}")  # nobody's slip
    segments = [segment for segment in path.split("/") if segment]
    rest = list(segments)
    while rest and rest[0].lower() in _PREFIXES:
        del rest[0]
    found = _completed([rest], is_known) or (suggest(path, routes) if rest else None)
    if found is None and rest and (entry := NOT_SERVED.get(rest[0].lower())) is not None:
        what, instead = entry
        hint = f"; use {instead}" if instead is not None else ""
        return RouteNotServed(f"octavo does not serve {what}: there is no route {shown}{hint}.")
    # A prefix that is a proxy's or another provider's, of any length; one word alone may mean anything.
    found = found or _completed([segments[i:] for i in range(len(segments) - 1)], is_known)
    found = found or suggest("/".join(rest), routes)
    if found is not None:
        return RouteNotFound(f"There is no route {shown}; did you mean {clip(found, _MAX_QUOTED_CHARS)}?")
    return RouteNotFound(f"There is no route {shown}{'; see /docs' if '/docs' in routes else ''}.")


def _completed(candidates: Sequence[Sequence[str]], is_known: Callable[[str], bool]) -> str | None:
    """The first of the candidates that is a route, behind `/v1` or as it is, in any case of its letters."""
    for segments in candidates:
        for prefix in ("/v1/", "/"):
            for spelling in ("/".join(segments), "/".join(segments).lower()):
                if segments and is_known(prefix + spelling):
                    return prefix + spelling
    return None
