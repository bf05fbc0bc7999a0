"""Every number of every body: one that cannot be used is a 400 that names its field, and null is as good as nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from octavo.base.params import GenerateRequest
from octavo.client.generation import GenerationDelta
from octavo.server.openai.protocol.chat import ChatRequest
from octavo.server.openai.protocol.common import WireModel
from octavo.server.openai.protocol.completions import CompletionRequest
from octavo.server.openai.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from octavo.wire.messages import TokenLogprobs
from support.server_fakes import Server, answer, make_server, with_logprobs

ENDPOINTS: dict[str, tuple[type[WireModel], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, {"messages": [{"role": "user", "content": "Hi"}]}),
    "/v1/completions": (CompletionRequest, {"prompt": "Hi"}),
    "/tokenize": (TokenizeRequest, {"prompt": "Hi"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [1]}),
}
#: As they stand in a body. Of floats: what float32 makes 0 or infinite, and what it cannot tell from its neighbour.
FLOATS = (
    *("1e-320", "-1e-320", "5e-324", "1e-45", "1e-38", "1e-6", "0.9999999999", "3.5e38", "-3.5e38", "1e300", "-1e300"),
    *("0", "-0", "-0.0", "0.0", "1", "2", "-1", "1" + "0" * 30, "-1" + "0" * 30, "1" + "0" * 400, "-1" + "0" * 400),
)
INTEGERS = (
    *("0", "-0", "-1", "1", str(2**31), str(2**32), str(2**53 + 1), str(2**63 - 1), str(2**63), str(-(2**63))),
    *(
        str(-(2**63) - 1),
        str(2**64),
        str(2**64 + 1),
        "1" + "0" * 30,
        "-1" + "0" * 400,
        "1.5",
        "1.0",
        "-0.0",
        "1e3",
        "1e300",
    ),
)
#: What makes a field count.
BESIDE: dict[str, dict[str, Any]] = {
    "length_penalty": {"use_beam_search": True, "best_of": 2},
    "top_logprobs": {"logprobs": True},
    "stream_interval": {"stream": True},
}


def scored(request: GenerateRequest) -> list[GenerationDelta]:
    deltas = answer("Hi", n=request.params.n)
    if request.params.logprobs is not None:
        deltas = with_logprobs(deltas, [TokenLogprobs(-1.0, 1, [], [])] * 2)
    if request.params.prompt_logprobs is not None:
        deltas[0].prompt_logprobs = [TokenLogprobs(-1.0, 1, [], [])] * (len(request.prompt_token_ids) - 1)
    return deltas


def _types(model: type[WireModel], name: str) -> str:
    return str(model.model_fields[name].annotation)


def _number_rows() -> Iterator[tuple[str, str, str]]:
    """(path, field, a body's value with `NUMBER` in the place of one)."""
    for path, (model, _) in ENDPOINTS.items():
        for name in model.model_fields:
            types = _types(model, name)
            if name in ("prompt", "tokens", "stop_token_ids", "allowed_token_ids"):
                if name in ("tokens",) or path != "/tokenize":
                    yield path, name, "[NUMBER]"
            elif name == "logit_bias":
                yield path, name, '{"5": NUMBER}'
                yield path, name, '{"NUMBER": 1}'
            elif ("int" in types or "float" in types) and "str" not in types and "dict" not in types:
                yield path, name, "NUMBER"


ROWS = list(_number_rows())


def test_the_table_has_the_numbers_of_the_api() -> None:
    names = {name for _, name, _ in ROWS}
    assert names >= {
        "n", "best_of", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "length_penalty", "logit_bias", "max_tokens", "max_completion_tokens", "min_tokens",
        "logprobs", "top_logprobs", "prompt_logprobs", "stop_token_ids", "allowed_token_ids", "prompt", "tokens",
        "truncate_prompt_tokens", "stream_interval", "priority", "thinking_token_budget",
    }  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Server:
    return make_server(scored, reasoning="qwen3", max_logprobs=20)


@pytest.mark.parametrize(("path", "name", "shape"), ROWS, ids=lambda value: str(value))
def test_a_number_is_used_or_refused_by_its_name(server: Server, path: str, name: str, shape: str) -> None:
    _, body = ENDPOINTS[path]
    fields = {key: json.dumps(value) for key, value in {**body, **BESIDE.get(name, {})}.items() if key != name}
    for number in dict.fromkeys((*FLOATS, *INTEGERS, "true", '"1"', "[]")):
        value = shape.replace("NUMBER", number.strip('"') if f'"{"NUMBER"}"' in shape else number)
        text = ", ".join(f'"{key}": {item}' for key, item in {**fields, name: value}.items())
        server.engine.requests.clear()
        reply = server.post(path, ("{" + text + "}").encode())
        assert reply.status in (200, 400), (number, reply.body)
        if reply.status == 400:
            assert (reply.error["param"] or "").split(".")[0] == name, (number, reply.error)
            assert len(reply.error["message"]) < 500
        for request in server.engine.requests:
            _assert_has_room(request)


def _assert_has_room(request: GenerateRequest) -> None:
    """What the engine is given is a number in float32 too, and as an integer of 64 bits."""
    params = request.params
    for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
        value = getattr(params, name)
        assert math.isfinite(np.float32(value)) and value == value, (name, value)
    # What logits are divided by, also when they are large.
    assert np.isfinite(np.float32(1e6) / np.float32(params.repetition_penalty) / np.float32(params.temperature or 1))
    assert np.float32(params.top_p) > 0
    for name in ("n", "top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs"):
        assert -(2**63) <= (getattr(params, name) or 0) < 2**63
    assert -(2**63) <= request.priority < 2**63


@pytest.mark.parametrize("path", ENDPOINTS)
def test_null_is_as_good_as_leaving_a_field_out(path: str) -> None:
    model, body = ENDPOINTS[path]

    def asked(**fields: Any) -> tuple[Any, list[Any]]:
        server = make_server(lambda request: answer("Hi"))
        reply = server.post(path, {**body, **fields})
        assert reply.status == 200, (fields, reply.body)
        assert "x-octavo-ignored-fields" not in reply.headers, fields
        kept = {key: value for key, value in reply.json().items() if key not in ("id", "created")}
        return kept, [(r.params, r.prompt_token_ids, r.priority, r.beams, r.is_whole) for r in server.engine.requests]

    plain = asked()
    names = [name for name, field in model.model_fields.items() if not field.is_required() and name not in body]
    assert len(names) > 1 or path == "/detokenize"
    for name in names:
        assert asked(**{name: None}) == plain, name
    assert asked(**dict.fromkeys(names)) == plain


def test_nulls_within_fields_are_as_good_as_nothing() -> None:
    server = make_server()
    function = {"name": "f", "description": None, "parameters": None, "strict": None}
    message = {"role": "user", "content": "Hi", "name": None, "tool_calls": None, "tool_call_id": None}
    body = {"tools": [{"type": "function", "function": function}], "tool_choice": "none", "messages": [message]}
    assert server.post("/v1/chat/completions", body).status == 200
    assert server.renderer.options["tools"] == [{"type": "function", "function": {"name": "f"}}]
    options = {"include_usage": None, "continuous_usage_stats": None}
    plain = server.chat(stream=True).events()
    told = server.chat(stream=True, stream_options=options).events()
    assert [event["choices"] for event in told] == [event["choices"] for event in plain]


def test_a_top_p_of_0_leaves_the_most_likely_token() -> None:
    server = make_server()
    for top_p in (0, 0.0, 1e-320):
        assert server.chat(top_p=top_p).status == 200
    assert {request.params.top_p for request in server.engine.requests} == {1e-6}
