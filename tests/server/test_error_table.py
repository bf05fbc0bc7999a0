"""What is refused, how, and what is not: each row is a request and the status, type, param and code of its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server_fakes import CONTEXT, VOCAB, Server, make_server

BAD = "BadRequestError"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> tuple[str, Any]:
    return CHAT, {"messages": USER, **fields}


def text(**fields: Any) -> tuple[str, Any]:
    return TEXT, {"prompt": "Hello", **fields}


def messages(*items: Any) -> tuple[str, Any]:
    return CHAT, {"messages": list(items)}


def raw(body: str | bytes) -> tuple[str, Any]:
    return CHAT, body if isinstance(body, bytes) else body.encode()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


#: (path, body), then param. Status 400, type BadRequestError, no code.
BAD_REQUESTS: list[tuple[tuple[str, Any], str | None]] = [
    # bodies that are no JSON object
    (raw(""), None),
    (raw("{"), None),
    (raw("nonsense"), None),
    (raw("[]"), None),
    (raw('"text"'), None),
    (raw("null"), None),
    (raw("42"), None),
    (raw('{"messages": [}'), None),
    (raw('{"messages": []} trailing'), None),
    (raw(b"\xff\xfe{}"), None),
    (raw(b'{"prompt": "\xff"}'), None),
    (raw(b'\xef\xbb\xbf{"a": 1}'), None),
    (raw('{"messages": [], "x": "\\ud800"}'), None),
    # numbers that are none (J11 to J18)
    (raw('{"messages": [], "temperature": NaN}'), None),
    (raw('{"messages": [], "temperature": Infinity}'), None),
    (raw('{"messages": [], "temperature": -Infinity}'), None),
    (raw('{"messages": [], "temperature": 1e999}'), None),
    (raw('{"messages": [], "n": 1' + "0" * 5000 + "}"), None),
    (raw('{"messages": [{"role":"user","content":"x"}], "seed": 99999999999999999999999}'), "seed"),
    (raw('{"messages": [{"role":"user","content":"x"}], "temperature": 1' + "0" * 400 + "}"), "temperature"),
    # depth
    (raw("[" * 100_000), None),
    (raw('{"messages": ' + "[" * 70 + "]" * 70 + "}"), None),
    (chat(metadata=nested(64)), None),
    # messages
    ((CHAT, {}), "messages"),
    ((CHAT, {"messages": None}), "messages"),
    ((CHAT, {"messages": []}), "messages"),
    ((CHAT, {"messages": "Hello"}), "messages"),
    ((CHAT, {"messages": {"role": "user"}}), "messages"),
    (messages("Hello"), "messages.0"),
    (messages(None), "messages.0"),
    (messages({"content": "Hello"}), "messages.0.role"),
    (messages({"role": 5, "content": "Hello"}), "messages.0.role"),
    (messages({"role": "", "content": "Hello"}), "messages.0.role"),
    (messages({"role": "u\n", "content": "Hello"}), "messages.0.role"),
    (messages({"role": "user", "content": 5}), "messages.0.content"),
    (messages({"role": "user", "content": {"text": "x"}}), "messages.0.content"),
    (messages(USER[0], {"role": "user", "content": True}), "messages.1.content"),
    (messages({"role": "user", "content": ["x"]}), "messages.0.content.0"),
    (messages({"role": "user", "content": [{"text": "x"}]}), "messages.0.content.0"),
    (messages({"role": "user", "content": [{"type": 5}]}), "messages.0.content.0"),
    (messages({"role": "user", "content": [{"type": "text", "text": "a"}, None]}), "messages.0.content.1"),
    (messages({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}), "messages.0.content.0"),
    (messages({"role": "user", "content": "x", "name": 5}), "messages.0.name"),
    (messages({"role": "user", "content": "x", "tool_calls": "x"}), "messages.0.tool_calls"),
    # types: true is no integer, "1" is no number, 1.0 is no integer
    (chat(model=5), "model"),
    (chat(n=True), "n"),
    (chat(n="1"), "n"),
    (chat(n=1.0), "n"),
    (chat(temperature="0.7"), "temperature"),
    (chat(temperature=True), "temperature"),
    (chat(temperature=[]), "temperature"),
    (chat(stream="true"), "stream"),
    (chat(stream=1), "stream"),
    (chat(logprobs=5), "logprobs"),
    (chat(max_tokens="5"), "max_tokens"),
    (chat(stop=5), "stop"),
    (chat(stop=["a", 5]), "stop"),
    (chat(stop_token_ids=["5"]), "stop_token_ids.0"),
    (chat(logit_bias=[]), "logit_bias"),
    (chat(logit_bias={"a": 1}), "logit_bias"),
    (chat(logit_bias={"5": "1"}), "logit_bias.5"),
    (chat(logit_bias={"5": True}), "logit_bias.5"),
    (chat(stream=True, stream_options=5), "stream_options"),
    (chat(stream=True, stream_options={"include_usage": "yes"}), "stream_options.include_usage"),
    (chat(documents="x"), "documents"),
    (chat(chat_template_kwargs=[]), "chat_template_kwargs"),
    # values
    (chat(n=0), "n"),
    (chat(n=-1), "n"),
    (chat(n=1_000_000_000), "n"),
    (chat(n=2, temperature=0), "n"),
    (chat(temperature=-0.1), "temperature"),
    (chat(temperature=2.1), "temperature"),
    (chat(top_p=0), "top_p"),
    (chat(top_p=1.1), "top_p"),
    (chat(top_k=-2), "top_k"),
    (chat(min_p=-0.1), "min_p"),
    (chat(min_p=1.1), "min_p"),
    (chat(presence_penalty=2.1), "presence_penalty"),
    (chat(frequency_penalty=-2.1), "frequency_penalty"),
    (chat(repetition_penalty=0), "repetition_penalty"),
    (chat(seed=2**63), "seed"),
    (chat(stop=""), "stop"),
    (chat(stop=["a", ""]), "stop"),
    (chat(stop=["a", "b", "c", "d", "e"]), "stop"),
    (chat(stop="x" * 5000), "stop"),
    (chat(stop_token_ids=[VOCAB]), "stop_token_ids"),
    (chat(stop_token_ids=[-1]), "stop_token_ids"),
    (chat(logit_bias={str(VOCAB): 1}), "logit_bias"),
    (chat(logit_bias={"-1": 1}), "logit_bias"),
    (chat(max_tokens=0), "max_tokens"),
    (chat(max_tokens=-1), "max_tokens"),
    (chat(max_completion_tokens=0), "max_completion_tokens"),
    (chat(max_completion_tokens=0, max_tokens=5), "max_completion_tokens"),
    (chat(min_tokens=-1), "min_tokens"),
    (chat(min_tokens=6, max_tokens=5), "min_tokens"),
    (chat(top_logprobs=5), "top_logprobs"),
    (chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    (chat(logprobs=True, top_logprobs=-1), "top_logprobs"),
    (chat(stream_options={"include_usage": True}), "stream_options"),
    (chat(cache_salt="x" * 257), "cache_salt"),
    (chat(cache_salt="a\u0000b"), "cache_salt"),
    (chat(continue_final_message=True, add_generation_prompt=True), "continue_final_message"),
    # known, and not supported: refused by name, never ignored
    (chat(tools=[{"type": "function", "function": {"name": "f"}}]), "tools"),
    (chat(tools=[]), "tools"),
    (chat(tool_choice="required"), "tool_choice"),
    (chat(tool_choice={"type": "function", "function": {"name": "f"}}), "tool_choice"),
    (chat(functions=[]), "functions"),
    (chat(function_call={"name": "f"}), "function_call"),
    (chat(response_format={"type": "json_object"}), "response_format"),
    (chat(response_format={"type": "json_schema", "json_schema": {}}), "response_format"),
    (chat(guided_json={}), "guided_json"),
    (chat(guided_regex="a+"), "guided_regex"),
    (chat(guided_choice=["a"]), "guided_choice"),
    (chat(guided_grammar="root"), "guided_grammar"),
    (chat(structured_outputs={"json": {}}), "structured_outputs"),
    (chat(use_beam_search=True), "use_beam_search"),
    (chat(length_penalty=0.5), "length_penalty"),
    (chat(early_stopping=True), "early_stopping"),
    (chat(best_of=2), "best_of"),
    (chat(best_of=True), "best_of"),
    (chat(prompt_logprobs=1), "prompt_logprobs"),
    (chat(prompt_logprobs=0), "prompt_logprobs"),
    (chat(echo=True), "echo"),
    (chat(chat_template="{{ messages }}"), "chat_template"),
    (chat(truncate_prompt_tokens=5), "truncate_prompt_tokens"),
    (chat(allowed_token_ids=[1]), "allowed_token_ids"),
    (chat(bad_words=["x"]), "bad_words"),
    (chat(return_token_ids=True), "return_token_ids"),
    (chat(modalities=["text", "audio"]), "modalities"),
    (chat(audio={"voice": "x"}), "audio"),
    # completions
    ((TEXT, {}), "prompt"),
    (text(prompt=None), "prompt"),
    (text(prompt=5), "prompt"),
    (text(prompt=""), "prompt"),
    (text(prompt=[]), "prompt"),
    (text(prompt=[[]]), "prompt"),
    (text(prompt=["a", 1]), "prompt"),
    (text(prompt=["a", ["b"]]), "prompt"),
    (text(prompt=[1, True]), "prompt"),
    (text(prompt=[1, 2.0]), "prompt"),
    (text(prompt=[[1], "a"]), "prompt"),
    (text(prompt=[-1]), "prompt"),
    (text(prompt=[VOCAB]), "prompt"),
    (text(prompt=[2**70]), "prompt"),
    (text(prompt=["a", ""]), "prompt.1"),
    (text(prompt=[[1], [VOCAB]]), "prompt.1"),
    (text(prompt=["a"] * 65), "prompt"),
    (text(prompt=["a"] * 33, n=2), "prompt"),
    (text(n=2, temperature=0), "n"),
    (text(max_tokens=0), "max_tokens"),
    (text(logprobs=21), "logprobs"),
    (text(logprobs=-1), "logprobs"),
    (text(logprobs=True), "logprobs"),
    (text(suffix="end"), "suffix"),
    (text(echo=True), "echo"),
    (text(echo=True, max_tokens=0), "echo"),
    (text(best_of=3), "best_of"),
    (text(response_format={"type": "json_object"}), "response_format"),
    # tokenize and detokenize
    (("/tokenize", {}), "prompt"),
    (("/tokenize", {"prompt": "a", "messages": USER}), "prompt"),
    (("/tokenize", {"prompt": 5}), "prompt"),
    (("/tokenize", {"messages": []}), "messages"),
    (("/tokenize", {"messages": USER, "tools": []}), "tools"),
    (("/detokenize", {}), "tokens"),
    (("/detokenize", {"tokens": "abc"}), "tokens"),
    (("/detokenize", {"tokens": [True]}), "tokens.0"),
    (("/detokenize", {"tokens": [-1]}), "tokens"),
    (("/detokenize", {"tokens": [VOCAB]}), "tokens"),
    (("/detokenize", {"tokens": [2**64]}), "tokens.0"),
]


def row_id(row: Any) -> str:
    (path, body), param = row
    return f"{path} {param} {body if isinstance(body, bytes) else json.dumps(body)}"[:100]


@pytest.fixture(scope="module")
def server() -> Server:
    return make_server()


@pytest.mark.parametrize("row", BAD_REQUESTS, ids=row_id)
def test_a_bad_request_is_a_400_that_names_the_field(server: Server, row: Any) -> None:
    (path, body), param = row
    reply = server.post(path, body)
    assert reply.status == 400, reply.body[:300]
    error = reply.error
    assert (error["type"], error["param"], error["code"]) == (BAD, param, None), error
    assert 0 < len(error["message"]) < 5000
    assert reply.headers["content-type"] == "application/json"


def test_a_bad_request_never_reaches_the_engine() -> None:
    server = make_server()
    for (path, body), _ in BAD_REQUESTS:
        server.post(path, body)
    assert server.engine.requests == []


#: (path, body), then status, type, param, code.
OTHER_ERRORS: list[tuple[tuple[str, Any], tuple[int, str, str | None, str | None]]] = [
    (chat(model="other"), (404, "NotFoundError", "model", "model_not_found")),
    (text(model="other"), (404, "NotFoundError", "model", "model_not_found")),
    (("/tokenize", {"model": "other", "prompt": "a"}), (404, "NotFoundError", "model", "model_not_found")),
    (("/detokenize", {"model": "other", "tokens": []}), (404, "NotFoundError", "model", "model_not_found")),
    (("/v1/embeddings", {}), (404, "NotFoundError", None, "route_not_found")),
    (("/", {}), (404, "NotFoundError", None, "route_not_found")),
    (("/v1", {}), (404, "NotFoundError", None, "route_not_found")),
    (("/v1/tokenize", {}), (404, "NotFoundError", None, "route_not_found")),
    (("/v1/models", {}), (405, "MethodNotAllowedError", None, "method_not_allowed")),
    (("/health", {}), (405, "MethodNotAllowedError", None, "method_not_allowed")),
    (text(prompt=[1] * CONTEXT), (400, BAD, "prompt", "context_length_exceeded")),
    (text(prompt=[1] * (CONTEXT - 9), max_tokens=10), (400, BAD, "prompt", "context_length_exceeded")),
    (text(prompt=[1], max_tokens=CONTEXT), (400, BAD, "prompt", "context_length_exceeded")),
    (text(prompt="x" * 200_000), (400, BAD, "prompt", "context_length_exceeded")),
    (text(prompt="x" * 600), (400, BAD, "prompt", "context_length_exceeded")),
    (text(max_tokens=None, min_tokens=CONTEXT), (400, BAD, "min_tokens", "context_length_exceeded")),
    (text(prompt=["a", "x" * 600]), (400, BAD, "prompt.1", "context_length_exceeded")),
    (messages({"role": "user", "content": "x" * 600}), (400, BAD, "messages", "context_length_exceeded")),
    (messages({"role": "user", "content": "x" * 200_000}), (400, BAD, "messages", "context_length_exceeded")),
    (chat(max_completion_tokens=CONTEXT), (400, BAD, "messages", "context_length_exceeded")),
]


@pytest.mark.parametrize("row", OTHER_ERRORS, ids=lambda row: f"{row[0][0]} {row[1]} {json.dumps(row[0][1])}"[:100])
def test_other_errors(server: Server, row: Any) -> None:
    (path, body), (status, kind, param, code) = row
    reply = server.post(path, body)
    error = reply.error
    assert (reply.status, error["type"], error["param"], error["code"]) == (status, kind, param, code), error


#: What asks for nothing, or for what happens anyway, is accepted (8b: null wherever OpenAI allows it).
ACCEPTED: list[tuple[str, Any]] = [
    chat(),
    chat(model=None),
    chat(model=""),
    chat(model="alias"),
    chat(
        n=None, temperature=None, top_p=None, max_tokens=None, stop=None, seed=None, logit_bias=None, logprobs=None,
        top_logprobs=None, stream=None, stream_options=None, tools=None, tool_choice=None, response_format=None,
        presence_penalty=None, frequency_penalty=None, max_completion_tokens=None, user=None, functions=None,
    ),
    chat(tool_choice="none"),
    chat(tool_choice="auto"),
    chat(top_logprobs=0),
    chat(logprobs=True, top_logprobs=20),
    chat(response_format={"type": "text"}),
    chat(best_of=1),
    chat(n=2, best_of=2),
    chat(use_beam_search=False, length_penalty=1.0, early_stopping=False, echo=False, bad_words=[]),
    chat(parallel_tool_calls=True),
    chat(modalities=["text"]),
    chat(seed=-1),
    chat(seed=-(2**63)),
    chat(top_k=-1),
    chat(top_k=0),
    chat(temperature=0),
    chat(temperature=2),
    chat(stop=["a", "b", "c", "d"]),
    chat(stop=[]),
    chat(logit_bias={}),
    chat(logit_bias={"5": 500}),
    chat(metadata={"a": "b"}, user="me"),
    chat(metadata=nested(60)),
    chat(continue_final_message=True),
    messages({"role": "user", "content": None}),
    messages({"role": "user", "content": []}),
    messages({"role": "user", "content": [{"type": "text", "text": "a"}]}),
    messages({"role": "narrator", "content": "x", "name": None}),
    messages({"role": "assistant", "content": None, "tool_calls": [], "reasoning_content": "hm"}, USER[0]),
    text(suffix=None),
    text(suffix=""),
    text(prompt=[0, VOCAB - 1]),
    text(prompt=[1] * (CONTEXT - 10), max_tokens=10),
    text(prompt=[1] * (CONTEXT - 1), max_tokens=None),
    text(prompt=["a"] * 64),
    ("/tokenize", {"prompt": ""}),
    ("/detokenize", {"tokens": []}),
]  # fmt: skip


@pytest.mark.parametrize("row", ACCEPTED, ids=lambda row: f"{row[0]} {json.dumps(row[1])}"[:100])
def test_what_asks_for_nothing_more_is_accepted(server: Server, row: Any) -> None:
    reply = server.post(*row)
    assert reply.status == 200, reply.body[:300]
    assert "x-octavo-ignored-fields" not in reply.headers


def test_e8_the_message_names_limit_prompt_and_requested_tokens() -> None:
    message = make_server().complete([1] * 500, max_tokens=20).error["message"]
    assert all(number in message for number in ("512", "500", "20"))


def test_e13_ten_errors_at_most_and_input_clipped() -> None:
    bad = [{"role": "user", "content": 1, "name": "x" * 1000, "tool_call_id": 5}] * 400
    error = make_server().post(CHAT, {"messages": bad, "n": "9" * 1000}).error
    assert len(error["message"]) < 10 * 300
    assert "and " in error["message"] and error["message"].endswith("more")


def test_e7_the_message_quotes_at_most_200_characters_of_the_name() -> None:
    assert len(make_server().chat(model="x" * 10_000).error["message"]) < 300
    assert make_server().chat(model="other").error["message"] == "The model `other` does not exist."


@pytest.mark.parametrize("stream", [False, True])
def test_u20_unknown_fields_are_ignored_and_named(stream: bool) -> None:
    reply = make_server().chat(stream=stream, zeta=1, alpha={"b": 1}, **{"bad\r\nname: x": 1})
    assert reply.status == 200
    assert reply.headers["x-octavo-ignored-fields"] == "alpha, bad??name??x, zeta"


def test_a_500_says_nothing_of_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    server = make_server()
    server.engine.refusal = KeyError("secret path /home/me")
    reply = server.chat()
    assert (reply.status, reply.error["type"]) == (500, "InternalServerError")
    assert b"secret" not in reply.body and b"KeyError" not in reply.body
    assert "secret path" in caplog.text  # the traceback is for the log


def test_a_value_error_is_never_a_400() -> None:
    server = make_server()
    server.engine.refusal = ValueError("a bug")
    assert server.complete().status == 500
