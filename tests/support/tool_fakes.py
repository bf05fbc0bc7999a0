"""Chat replies with tool calls and thoughts: two functions, and a server that says what a test wants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from octavo.client.generation import GenerationDelta
from support.server_fakes import Server, answer, make_server

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time"}}
ONE = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TWO = f'Let me see.\n{ONE}\n<tool_call>\n{{"name": "get_time", "arguments": {{}}}}\n</tool_call>'


def server_saying(text: str, *, tools: str = "hermes", reason: str = "stop", **settings: Any) -> Server:
    def script(request: Any) -> Sequence[GenerationDelta]:
        return answer(text, n=request.params.n, reason=reason)

    return make_server(script, tools=tools, **{"enable_auto_tool_choice": True} | settings)


def message_of(server: Server, **fields: Any) -> tuple[dict[str, Any], str]:
    """The whole reply's message and finish reason; the stream's, folded, must be the same."""
    fields = {"tools": [WEATHER, CLOCK]} | fields
    choice = server.chat(**fields).json()["choices"][0]
    message, reason = choice["message"], choice["finish_reason"]
    content, thoughts, calls, reasons = "", "", [], []
    for chunk in server.chat(stream=True, **fields).events():
        for part in chunk["choices"]:
            delta = part["delta"]
            content += delta.get("content") or ""
            assert delta.get("reasoning") == delta.get("reasoning_content")
            thoughts += delta.get("reasoning") or ""
            for news in delta.get("tool_calls", []):
                if "id" in news:  # F25: id, type and name together, once
                    assert news["index"] == len(calls) and news["type"] == "function"
                    assert news["function"]["arguments"] == ""
                    calls.append({"id": news["id"], "name": news["function"]["name"], "arguments": ""})
                else:
                    assert "name" not in news["function"] and "type" not in news
                    calls[news["index"]]["arguments"] += news["function"]["arguments"]
            if part["finish_reason"] is not None:
                reasons.append(part["finish_reason"])
    assert reasons == [reason]  # D4: exactly one
    assert content == (message["content"] or "")
    assert thoughts == (message.get("reasoning") or "")
    whole = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    assert whole == [(call["name"], call["arguments"]) for call in calls]
    return message, reason


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    calls = message.get("tool_calls", [])
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
