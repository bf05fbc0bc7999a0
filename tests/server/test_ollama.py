"""Ollama's API (N29): what a body becomes, and how news are spelled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from octavo.base.errors import ShuttingDown
from octavo.client.generation import GenerationDelta
from octavo.client.observer import RequestTimes
from octavo.wire.messages import TokenLogprobs
from support.media_fakes import FakeProcessor, HearingProcessor
from support.server_fakes import CONTEXT, MODEL, Reply, Server, answer, make_server, with_logprobs
from support.tool_fakes import CLOCK, TWO, WEATHER

USER = [{"role": "user", "content": "Hello"}]


def saying(text: str, *, reason: str = "stop", **settings: Any) -> Server:
    def script(request: Any) -> Sequence[GenerationDelta]:
        deltas = answer(text, reason=reason)
        # Half a second in the queue, one for the prompt, two for the reply, and a quarter until its end.
        deltas[-1].times = RequestTimes(10.0, 10.5, 11.5, 13.5, 13.75)
        return deltas

    return make_server(script, **{"tools": "hermes", "reasoning": "deepseek_r1"} | settings)


def lines_of(reply: Reply) -> list[dict[str, Any]]:
    assert (reply.status, reply.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in reply.body.decode().splitlines()]


def chat(server: Server, **fields: Any) -> Reply:
    return server.post("/api/chat", {"model": MODEL, "messages": USER} | fields)


def chat_of(server: Server, **fields: Any) -> dict[str, Any]:
    """The whole reply; the stream's, folded, must be the same."""
    whole = chat(server, stream=False, **fields).json()
    *before, last = lines_of(chat(server, **fields))
    assert all(line["done"] is False for line in before) and last["done"] is True
    folded: dict[str, Any] = {"role": "assistant", "content": "", "thinking": "", "tool_calls": []}
    for line in [*before, last]:
        for name, value in line["message"].items():
            folded[name] = value if name == "role" else folded[name] + value
    shown = {name: value for name, value in folded.items() if value or name == "content"}
    assert _without_ids(shown) == _without_ids(whole["message"])
    ends = ("created_at", "message")
    assert {n: v for n, v in last.items() if n not in ends} == {n: v for n, v in whole.items() if n not in ends}
    return whole


def _without_ids(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"tool_calls": [call["function"] for call in message.get("tool_calls", [])]}


# ------------------------------------------------------------------------------------------------ replies
def test_thinking_text_and_calls_are_told_apart() -> None:
    whole = chat_of(saying(f"<think>Hm.</think>{TWO}"), tools=[WEATHER, CLOCK])
    message = whole["message"]
    assert (message["thinking"], message["content"]) == ("Hm.", "Let me see.")
    assert [call["function"] for call in message["tool_calls"]] == [
        {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo"}},
        {"index": 1, "name": "get_time", "arguments": {}},
    ]
    assert whole["done_reason"] == "stop"


def test_durations_are_those_of_the_request_in_nanoseconds() -> None:
    whole = chat_of(saying("<think>Hm.</think>Yes", reason="length"))
    assert whole["done_reason"] == "length"
    assert (whole["prompt_eval_count"], whole["eval_count"]) == (5, len("<think>Hm.</think>Yes"))
    assert (whole["prompt_eval_duration"], whole["eval_duration"]) == (1_000_000_000, 2_000_000_000)
    assert (whole["total_duration"], whole["load_duration"]) == (3_750_000_000, 0)


def test_log_probabilities() -> None:
    def script(request: Any) -> Any:
        return with_logprobs(
            answer("Hi"), [TokenLogprobs(-0.5, 1, [72], [-0.5]), TokenLogprobs(-1.0, 1, [105], [-1.0])]
        )

    whole = chat(make_server(script), stream=False, logprobs=True, top_logprobs=1).json()
    assert [(each["token"], each["logprob"]) for each in whole["logprobs"]] == [("H", -0.5), ("i", -1.0)]
    assert whole["logprobs"][0]["top_logprobs"][0]["token"] == "H"


@pytest.mark.parametrize("content_type", ["", "application/x-www-form-urlencoded"])
def test_the_content_type_does_not_count_but_for_pages(content_type: str) -> None:
    """As with curl's default, and with clients that send none."""
    server, headers = saying("Yes"), {"content-type": content_type}
    for path in ("/api/chat", "/api/generate", "/api/show"):
        body = {"model": MODEL, "messages": USER, "stream": False} if path == "/api/chat" else {"model": MODEL}
        assert server.post(path, body, headers).status == 200
        assert server.post(path, body, headers | {"origin": "http://example.org"}).status == 400
    for path in ("/api/embed", "/api/embeddings"):
        error = server.post(path, {"model": MODEL, "input": "a", "prompt": "a"}, headers).json()["error"]
        assert "Embeddings" in error  # this model gives none


def test_a_text_is_gone_on_with() -> None:
    server = saying("Yes", reasoning=None)
    fields = {"model": f"{MODEL}:latest", "prompt": "Hello", "stream": False}
    assert server.post("/api/generate", {**fields, "system": "Be brief."}).json()["response"] == "Yes"
    assert [message["role"] for message in server.renderer.messages] == ["system", "user"]
    assert server.post("/api/generate", {**fields, "raw": True}).json()["response"] == "Yes"
    assert server.engine.requests[-1].prompt_token_ids == list(b"Hello")
    server.renderer.can_infill = True
    assert server.post("/api/generate", {**fields, "suffix": "!"}).json()["response"] == "Yes"
    assert server.engine.requests[-1].prompt_token_ids == list(b"Hello<!>")
    *_, last = lines_of(server.post("/api/generate", {**fields, "stream": None}))
    assert last["done"] and last["response"] == ""


def test_a_request_without_a_prompt_finds_the_model_loaded() -> None:
    server = saying("Yes")
    assert chat(server, messages=[]).json()["done_reason"] == "load"
    assert server.post("/api/generate", {"model": MODEL}).json()["done_reason"] == "load"
    assert not server.engine.requests


# ------------------------------------------------------------------------------------------------ requests
def test_options_reach_the_engine() -> None:
    server = saying("Yes")
    options = {
        "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "seed": 3, "stop": ["END"], "num_predict": 11,
        "repeat_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3, "num_ctx": CONTEXT, "mirostat": 0,
    }  # fmt: skip
    assert "x-octavo-ignored-fields" not in chat(server, options=options, keep_alive=-1).headers
    params = server.engine.requests[-1].params
    assert (params.temperature, params.top_k, params.top_p, params.min_p, params.seed) == (0.5, 7, 0.9, 0.1, 3)
    assert (params.stop, params.max_tokens, params.repetition_penalty) == (("END",), 11, 1.1)
    assert (params.presence_penalty, params.frequency_penalty) == (0.2, 0.3)


def test_what_has_no_effect_is_named() -> None:
    reply = chat(saying("Yes"), options={"num_gpu": 1, "num_thread": 2}, keep_alive="5m")
    assert reply.headers["x-octavo-ignored-fields"] == "options.num_gpu, options.num_thread, keep_alive"
    strict = chat(saying("Yes", strict_requests=True), keep_alive="5m")
    assert (strict.status, strict.json()) == (400, {"error": "`keep_alive` has no effect here."})


def test_calls_and_their_results_find_each_other_without_ids() -> None:
    server = saying("Yes")
    call = {"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    other = {"function": {"name": "get_time"}}
    messages = [
        *USER,
        {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [call, other]},
        {"role": "tool", "tool_name": "get_time", "content": "noon"},
        {"role": "tool", "content": "rain"},
    ]
    assert chat(server, messages=messages, tools=[WEATHER, CLOCK]).status == 200
    _, called, noon, rain = server.renderer.messages
    assert [each["id"] for each in called["tool_calls"]] == ["call00000", "call00001"]
    assert (noon["name"], noon["tool_call_id"]) == ("get_time", "call00001")
    assert (rain["name"], rain["tool_call_id"]) == ("get_weather", "call00000")
    assert called["reasoning_content"] == "Hm."


@pytest.mark.parametrize(("form", "kind"), [("json", "json"), ({"type": "object"}, "json"), ("", None)])
def test_format(form: Any, kind: str | None) -> None:
    server = saying("{}", reasoning=None)
    assert chat(server, format=form).status == 200
    assert [spec.kind for spec in server.grammars.specs] == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("think", "kwargs", "is_shown"),
    [
        (True, {"enable_thinking": True, "thinking": True}, True),
        (False, {"enable_thinking": False, "thinking": False}, False),
        ("high", {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}, True),
        (None, None, True),
    ],
)
def test_think(think: Any, kwargs: Any, is_shown: bool) -> None:
    server = saying("<think>Hm.</think>Yes.")
    message = chat_of(server, think=think)["message"]
    assert server.renderer.options["chat_template_kwargs"] == kwargs
    assert ("thinking" in message) == is_shown and message["content"] == "Yes."


# ------------------------------------------------------------------------------------------------ the other routes
def test_models() -> None:
    server = saying("Yes")
    [listed, alias] = server.get("/api/tags").json()["models"]
    assert (listed["name"], alias["model"], listed["digest"]) == ("tiny", "alias", alias["digest"])
    assert listed["details"]["family"] == "fake"
    running = server.get("/api/ps").json()["models"][0]
    assert (running["size"], running["size_vram"], running["context_length"]) == (2, 0, CONTEXT)
    shown = server.post("/api/show", {"model": "tiny:latest"}).json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["model_info"]["fake.context_length"] == CONTEXT
    assert server.get("/api/version").json()["server"].startswith("octavo ")


@pytest.mark.parametrize(
    ("processor", "limit", "expected"),
    [
        (FakeProcessor(), None, ["completion", "vision"]),
        (HearingProcessor(), None, ["completion", "vision", "audio"]),
        (HearingProcessor(), '{"audio": 0}', ["completion", "vision"]),
    ],
)
def test_a_model_says_which_media_it_reads(processor: FakeProcessor, limit: str | None, expected: list[str]) -> None:
    server = make_server(processor=processor, limit_mm_per_prompt=limit)
    assert server.post("/api/show", {"model": MODEL}).json()["capabilities"] == expected


# ------------------------------------------------------------------------------------------------ errors
GENERATE = {"model": MODEL, "prompt": "a"}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/chat", {"model": "x", "messages": USER}, 404, "The model `x` does not exist"),
        ("/api/chat", {"messages": USER}, 400, "model: Field required"),
        (
            "/api/chat",
            {"model": MODEL, "messages": [{**USER[0], "images": ["a"]}]},
            400,
            "messages.0.images: This model",
        ),
        ("/api/chat", {"model": MODEL, "messages": [{"role": "x"}]}, 400, "messages.0.role"),
        ("/api/generate", GENERATE | {"images": ["a"]}, 400, "images: This model takes text only"),
        ("/api/generate", GENERATE | {"template": "a"}, 400, "`template` is not currently"),
        ("/api/generate", GENERATE | {"context": [1]}, 400, "`context` is not currently"),
        ("/api/generate", GENERATE | {"format": "xml"}, 400, "`format` should be"),
        ("/api/generate", GENERATE | {"options": {"mirostat": 3}}, 400, "`options.mirostat` must be in"),
        ("/api/generate", GENERATE | {"options": {"tfs_z": 0.5}}, 400, "`options.tfs_z` is not"),
        ("/api/generate", GENERATE | {"options": {"temperature": 3}}, 400, "`options.temperature` must be in"),
        ("/api/generate", GENERATE | {"options": {"num_ctx": 8192}}, 400, "`options.num_ctx`"),
        ("/api/generate", GENERATE | {"options": {"num_predict": 0}}, 400, "`options.num_predict`"),
        ("/api/generate", GENERATE | {"options": {"stop": ["a"] * 5}}, 400, "options.stop: At most 4 stop strings"),
        ("/api/generate", GENERATE | {"options": {"stop": "a" * 4097}}, 400, "options.stop: A stop string has at most"),
        ("/api/generate", GENERATE | {"raw": True, "system": "a"}, 400, "`system` needs a chat template"),
        ("/api/generate", GENERATE | {"suffix": "a"}, 400, "`suffix` is not supported"),
        ("/api/chat", {"model": MODEL, "messages": USER, "think": True}, 400, "`think`"),
        ("/api/embed", {"model": MODEL, "input": "a"}, 400, "does not support the Embeddings API"),
        ("/api/pull", {"model": "a"}, 404, "octavo does not serve downloads of models"),
        ("/api/delete", {"model": "a"}, 404, "octavo does not serve removing models"),
    ],
)
def test_errors_name_the_field(path: str, body: Any, status: int, words: str) -> None:
    reply = saying("Yes", reasoning=None).post(path, body)
    assert reply.status == status and set(reply.json()) == {"error"}
    assert words in reply.json()["error"]


def test_an_error_within_a_stream_is_its_last_line() -> None:
    server = make_server(lambda request: [*answer("Yes")[:2], ShuttingDown("Bye.")])
    assert lines_of(chat(server))[-1] == {"error": "Bye."}


def test_a_key_is_needed_here_too() -> None:
    reply = chat(saying("Yes", api_key=["k"]))
    assert reply.status == 401 and "No API key" in reply.json()["error"]
