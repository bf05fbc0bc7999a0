"""/inference/v1/generate: tokens in, tokens out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.wire.messages import TokenLogprobs
from support.server_fakes import MODEL, Reply, Server, answer, make_server, with_logprobs


def generate(server: Server, token_ids: Any = (1, 2, 3), **fields: Any) -> Reply:
    return server.post("/inference/v1/generate", {"token_ids": list(token_ids), **fields})


def saying(text: str = "Hi") -> Server:
    return make_server(lambda request: answer(text, n=request.params.n))


def test_tokens_whole_and_streamed() -> None:
    server = saying()
    whole = generate(server, request_id="mine", sampling_params={"n": 2, "max_tokens": 9, "temperature": 0.5}).json()
    assert (whole["request_id"], whole["model"], whole["usage"]["completion_tokens"]) == ("mine", MODEL, 4)
    assert [(c["index"], c["token_ids"], c["finish_reason"]) for c in whole["choices"]] == [
        (0, [72, 105], "stop"), (1, [72, 105], "stop"),
    ]  # fmt: skip
    request = server.engine.requests[-1]
    assert request.prompt_token_ids == [1, 2, 3] and request.params.max_tokens == 9
    reply = generate(server, stream=True, stream_options={"include_usage": True})
    lines = [line.removeprefix("data: ") for line in reply.body.decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert [i for event in events for choice in event["choices"] for i in choice["token_ids"]] == [72, 105]
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 2
    assert server.engine.requests[-1].params.max_tokens == 16, "as in vLLM's SamplingParams"


def test_scores_of_the_reply() -> None:
    server = make_server(lambda _: with_logprobs(answer("H"), [TokenLogprobs(-0.5, 1, [72], [-0.5])]))
    choice = generate(server, sampling_params={"logprobs": 1}).json()["choices"][0]
    assert choice["logprobs"]["content"][0]["logprob"] == -0.5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [100_000]}, "token_ids"),
        ({"token_ids": [1], "sampling_params": {"temperature": 9.0}}, "sampling_params.temperature"),
        ({"token_ids": [1], "sampling_params": {"n": "1"}}, "sampling_params.n"),
        ({"token_ids": [1], "sampling_params": {"stream": True}}, "sampling_params.stream"),
        ({"token_ids": [1], "sampling_params": {"guided_regex": 5}}, "sampling_params.guided_regex"),
        ({"token_ids": [1], "kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
        ({"token_ids": [1], "features": {}}, "features"),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], param: str) -> None:
    reply = saying().post("/inference/v1/generate", fields)
    assert (reply.status, reply.error["param"]) == (400, param), reply.body


def test_unknown_parameters_are_named() -> None:
    reply = generate(saying(), sampling_params={"output_kind": 1})
    assert reply.headers["x-octavo-ignored-fields"] == "sampling_params.output_kind"
