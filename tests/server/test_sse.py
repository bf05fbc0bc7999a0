"""The framing of events."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from octavo.server.http.sse import TextEvent, event


def body(name: str, text: str) -> dict[str, Any]:
    return {"model": name, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


@given(st.text(), st.text(st.characters(exclude_characters="\0")))
@example("\0", "m")
@example('"\n\\', '"\\u0000"')
def test_a_text_event_is_the_event(text: str, name: str) -> None:
    assert TextEvent(lambda mark: body(name, mark))(text) == event(body(name, text))


@given(st.text())
def test_an_event_is_one_line_and_its_json_is_the_body(text: str) -> None:
    data = event({"text": text})
    assert data.startswith(b"data: ") and data.endswith(b"\n\n")
    assert b"\n" not in data[:-2] and b"\r" not in data
    assert json.loads(data[6:]) == {"text": text}
