"""Whatever JSON comes: an answer or a clean refusal, never a 500, and nothing is left running."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from octavo.server.openai.protocol.chat import CHAT_REFUSALS, ChatRequest
from octavo.server.openai.protocol.completions import COMPLETION_REFUSALS, CompletionRequest
from octavo.server.openai.protocol.conversation import Message
from octavo.server.openai.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from support.server_fakes import Server, make_server

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, -1, 2, 299, 300, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, -(2**63)])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "a", "auto", "none", "text", "tiny", "\0", "\n", "é", "1", "-1", "true", "[", "x" * 600])
    | st.text(max_size=20)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries({}, optional=dict.fromkeys(Message.model_fields, JSON))


def bodies(model: Any, refusals: Any, **valid: Any) -> st.SearchStrategy[Any]:
    """Bodies that are valid but for some fields, which hold anything."""
    names = sorted({*model.model_fields, *refusals})
    changes = st.dictionaries(st.sampled_from(names) | st.text(max_size=8), JSON, max_size=4)
    return changes.map(lambda fields: {**valid, **fields}) | JSON


def check(server: Server, path: str, body: Any) -> None:
    reply = server.post(path, body)
    assert reply.status in (200, 400, 404), reply.body[:500]
    if reply.status != 200:
        assert 0 < len(reply.error["message"]) < 5000
    elif reply.headers["content-type"].startswith("text/event-stream"):
        reply.events()
    else:
        reply.json()
    assert server.engine.num_open == 0


SERVER = make_server()
USER = {"role": "user", "content": "a"}


@given(
    bodies(ChatRequest, CHAT_REFUSALS, messages=[USER]) | st.lists(MESSAGE, max_size=3).map(lambda m: {"messages": m})
)
def test_chat(body: Any) -> None:
    check(SERVER, "/v1/chat/completions", body)


@given(bodies(CompletionRequest, COMPLETION_REFUSALS, prompt="a") | JSON.map(lambda prompt: {"prompt": prompt}))
def test_completions(body: Any) -> None:
    check(SERVER, "/v1/completions", body)


@given(bodies(TokenizeRequest, {}, prompt="a"))
def test_tokenize(body: Any) -> None:
    check(SERVER, "/tokenize", body)


@given(bodies(DetokenizeRequest, {}, tokens=[1]))
def test_detokenize(body: Any) -> None:
    check(SERVER, "/detokenize", body)


@given(st.binary(max_size=60))
def test_bytes(body: bytes) -> None:
    check(SERVER, "/v1/completions", body)
