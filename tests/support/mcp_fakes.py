"""A model that calls tools of MCP servers: what it says, and a server that knows the small one."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from octavo.base.params import GenerateRequest
from octavo.client.generation import GenerationDelta
from support import mcp_server
from support.mcp_server import Running
from support.server_fakes import Server, answer, make_server

STDIO = {"command": sys.executable, "args": [mcp_server.__file__]}


def call_of(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


ADD = call_of("add", a=1, b=2)


def server_calling(run: Running | None, *texts: str, reason: str = "stop", **settings: Any) -> Server:
    """A server that knows the MCP server `small`; the model says the texts one after the other, then the last again."""
    said = 0

    def script(request: GenerateRequest) -> Sequence[GenerationDelta]:
        nonlocal said
        said += 1
        return answer(texts[min(said, len(texts)) - 1], reason=reason)

    servers = {"small": {"url": run.url, "headers": {"X-Operator": "o-secret"}} if run is not None else STDIO}
    settings = {"mcp_servers": json.dumps(servers), "enable_auto_tool_choice": True} | settings
    return make_server(script, tools="hermes", **settings)


def tool_of(label: str = "small", **fields: Any) -> dict[str, Any]:
    return {"type": "mcp", "server_label": label, "require_approval": "never", **fields}


def kinds(events: Sequence[Any]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]
